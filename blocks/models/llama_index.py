"""LLMs of LlamaIndex."""

from __future__ import annotations

from typing import Any

from memory_engine.blocks.models.protocol import Completion, Prompt
from memory_engine.blocks.services.loading import load
from memory_engine.errors import ConfigurationError


class LlamaIndexModel:
    """An LLM of LlamaIndex, through its `achat`; `ConfigurationError` for anything else."""

    def __init__(self, llm: Any) -> None:
        if not hasattr(llm, "achat"):
            raise ConfigurationError(f"llm is a {type(llm).__name__} of LlamaIndex, which cannot chat; give an LLM.")
        self._llm = llm
        self.model = str(getattr(getattr(llm, "metadata", None), "model_name", "") or type(llm).__name__)

    def __repr__(self) -> str:
        return f"LlamaIndexModel({self.model!r})"

    async def __call__(self, messages: Prompt, /) -> Completion:
        """The content of the answer."""
        llms = load("llama_index.core.llms", who="A LlamaIndex LLM", pip="llama-index-core")
        given = [llms.ChatMessage(role=one["role"], content=one["content"]) for one in messages]
        answer = await self._llm.achat(given)
        told = answer.additional_kwargs or {}
        return Completion(answer.message.content or "", told.get("prompt_tokens"), told.get("completion_tokens"))
