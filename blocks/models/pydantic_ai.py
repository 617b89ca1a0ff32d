"""Models of pydantic-ai, which covers the providers."""

from __future__ import annotations

from typing import Any

from memory_engine.blocks.models.protocol import Completion, Prompt
from memory_engine.blocks.services.loading import load, require
from memory_engine.errors import ConfigurationError

WHO = "A model of pydantic-ai"
PIP = "memory-engine-blocks[llm]"


class PydanticAIModel:
    """A model of pydantic-ai, or its name such as "anthropic:claude-haiku-4-5"; `settings` are its `ModelSettings`.

    Nothing of an agent is used: one request for each prompt, without tools.

    :raises ConfigurationError: it is neither.
    """

    def __init__(self, model: Any, *, settings: Any = None) -> None:
        require("pydantic_ai", who=WHO, pip=PIP)
        if not isinstance(model, str) and not hasattr(model, "request"):
            raise ConfigurationError(
                f"llm is a {type(model).__name__} of pydantic-ai, not a model; of an agent give the model that it is made of, "
                'or a name such as "openai:gpt-5-mini".'
            )
        self._given, self._settings = model, settings
        self.model = model if isinstance(model, str) else str(getattr(model, "model_name", type(model).__name__))

    def __repr__(self) -> str:
        return f"PydanticAIModel({self.model!r})"

    async def __call__(self, messages: Prompt, /) -> Completion:
        """The text parts of the answer."""
        direct = load("pydantic_ai.direct", who=WHO, pip=PIP)
        response = await direct.model_request(self._given, _history(messages), model_settings=self._settings)
        text = "".join(part.content for part in response.parts if part.part_kind == "text")
        usage = response.usage
        return Completion(text, usage.input_tokens or None, usage.output_tokens or None)


def _history(messages: Prompt) -> list[Any]:
    parts = load("pydantic_ai.messages", who=WHO, pip=PIP)
    history: list[Any] = []
    request: list[Any] = []
    for message in messages:
        if message["role"] == "assistant":
            history += [parts.ModelRequest(parts=request), parts.ModelResponse(parts=[parts.TextPart(message["content"])])]
            request = []
        else:
            kind = parts.SystemPromptPart if message["role"] == "system" else parts.UserPromptPart
            request.append(kind(message["content"]))
    return [*history, parts.ModelRequest(parts=request)]
