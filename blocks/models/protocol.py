"""What a language model is for a block: an async function from messages to text. And whatever else can be made one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

from memory_engine.errors import ConfigurationError


class PromptMessage(TypedDict):
    """One message of a prompt, in the form that OpenAI's API and most others take."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = list[PromptMessage]


@dataclass(frozen=True, slots=True)
class Completion:
    """A model's answer with what it cost; None: it did not say."""

    text: str
    input_tokens: int | None = None
    output_tokens: int | None = None


@runtime_checkable
class LanguageModel(Protocol):
    """Answers a prompt. A plain async function from messages to text is one.

    The prompt is a list of `{"role": ..., "content": ...}`: a system message with the instructions, a user message with the
    data, and when the answer could not be used, that answer and what was wrong with it. What it raises is translated: errors
    of connection, rate limits and 5xx become `BlockUnavailableError`, everything else `BlockError`.
    """

    async def __call__(self, messages: Prompt, /) -> str | Completion:
        """The answer."""


_ADAPTERS = {
    "langchain_core": ("langchain", "LangChainModel"),
    "llama_index": ("llama_index", "LlamaIndexModel"),
    "openai": ("openai_compatible", None),
    "pydantic_ai": ("pydantic_ai", "PydanticAIModel"),
}


def adapt(llm: Any) -> Any:
    """The model itself if it can be called with messages, else the adapter for the package that it comes from.

    A text is the name of a model of pydantic-ai, such as "openai:gpt-5-mini".

    :raises ConfigurationError: for anything else, saying what to give instead.
    :raises MissingExtraError: the package that a name needs is not installed.
    """
    if isinstance(llm, type):
        raise ConfigurationError(f"llm is the class {llm.__name__}; give an instance of it.")
    if isinstance(llm, str):
        return _adapter("pydantic_ai", "PydanticAIModel")(llm)
    for base in type(llm).__mro__:
        # By name: the package is loaded if somebody has an instance of its class.
        module, name = _ADAPTERS.get(base.__module__.partition(".")[0], (None, None))
        if module is not None and name is None:
            raise ConfigurationError(
                "llm is a client of OpenAI, which does not say which model to use; give "
                'OpenAICompatibleModel("gpt-5-mini", client=client) of memory_engine.blocks.models.'
            )
        if module is not None and name is not None:
            return _adapter(module, name)(llm)
    if callable(llm):
        return llm
    raise ConfigurationError(
        "llm is an async function from messages to text, a model of memory_engine.blocks.models, of pydantic-ai (also by "
        f'name, "openai:gpt-5-mini"), LlamaIndex or LangChain, not {llm!r:.100}.'
    )


def _adapter(module: str, name: str) -> Any:
    return getattr(import_module(f"memory_engine.blocks.models.{module}"), name)
