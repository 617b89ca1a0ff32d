"""Language models for blocks that understand. Any async function from messages to text does; these are for what others have.

Importing this package imports no client; each name loads its module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memory_engine.blocks.models.caller import ModelCaller
    from memory_engine.blocks.models.langchain import LangChainModel
    from memory_engine.blocks.models.llama_index import LlamaIndexModel
    from memory_engine.blocks.models.openai_compatible import OpenAICompatibleModel
    from memory_engine.blocks.models.protocol import Completion, LanguageModel, Prompt, PromptMessage
    from memory_engine.blocks.models.pydantic_ai import PydanticAIModel

__all__ = [
    "Completion",
    "LangChainModel",
    "LanguageModel",
    "LlamaIndexModel",
    "ModelCaller",
    "OpenAICompatibleModel",
    "Prompt",
    "PromptMessage",
    "PydanticAIModel",
]

_WHERE = {
    "Completion": "protocol",
    "LangChainModel": "langchain",
    "LanguageModel": "protocol",
    "LlamaIndexModel": "llama_index",
    "ModelCaller": "caller",
    "OpenAICompatibleModel": "openai_compatible",
    "Prompt": "protocol",
    "PromptMessage": "protocol",
    "PydanticAIModel": "pydantic_ai",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
