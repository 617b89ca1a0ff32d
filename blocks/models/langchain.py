"""Chat models of LangChain."""

from __future__ import annotations

from typing import Any

from memory_engine.blocks.models.protocol import Completion, Prompt
from memory_engine.errors import ConfigurationError


class LangChainModel:
    """A chat model of LangChain, through its `ainvoke`; `ConfigurationError` for anything else."""

    def __init__(self, llm: Any) -> None:
        if not hasattr(llm, "ainvoke"):
            raise ConfigurationError(f"llm is a {type(llm).__name__} of LangChain, which cannot be invoked; give a chat model.")
        self._llm = llm
        name = getattr(llm, "model_name", None) or getattr(llm, "model", None)
        self.model = name if isinstance(name, str) else type(llm).__name__

    def __repr__(self) -> str:
        return f"LangChainModel({self.model!r})"

    async def __call__(self, messages: Prompt, /) -> Completion:
        """The text of the answer, also where its content is a list of blocks."""
        answer = await self._llm.ainvoke([(one["role"], one["content"]) for one in messages])
        content = getattr(answer, "content", answer)
        if isinstance(content, list):
            content = "".join(part if isinstance(part, str) else str(part.get("text", "")) for part in content)
        usage = getattr(answer, "usage_metadata", None) or {}
        return Completion(content, usage.get("input_tokens"), usage.get("output_tokens"))
