"""Embeddings of LangChain: any `Embeddings`."""

from __future__ import annotations

from typing import Any

from memory_engine.blocks.services.loading import Worker
from memory_engine.errors import ConfigurationError

NAMES = ("model", "model_name", "model_id", "deployment")


class LangChainEmbedder:
    """Wraps an `Embeddings`; `as_embedder` does so by itself.

    Where the class has async methods of its own they are used. Those of the base class only move the sync ones to a shared
    thread pool; here they get a thread of their own.
    """

    def __init__(self, model: Any) -> None:
        if not (hasattr(model, "embed_documents") and hasattr(model, "embed_query")):
            raise ConfigurationError(f"LangChainEmbedder wraps embeddings of LangChain, not {model!r:.100}.")
        self._model = model
        self._worker = Worker("langchain")
        found = (getattr(model, name, None) for name in NAMES)
        name = next((value for value in found if isinstance(value, str) and value), "unknown")
        dimensions = getattr(model, "dimensions", None)
        self.identity = f"langchain:{type(model).__name__}:{name}" + (f":{dimensions}" if dimensions else "")

    async def __call__(self, texts: list[str], /) -> Any:
        """One vector per text."""
        if _own(self._model, "aembed_documents"):
            return await self._model.aembed_documents(texts)
        return await self._worker.run(self._model.embed_documents, texts)

    async def embed_query(self, text: str) -> Any:
        """The vector of a question."""
        if _own(self._model, "aembed_query"):
            return await self._model.aembed_query(text)
        return await self._worker.run(self._model.embed_query, text)


def _own(model: Any, name: str) -> bool:
    """Whether a class other than LangChain's base defines that method."""
    for base in type(model).__mro__:
        if name in vars(base):
            return base.__module__ != "langchain_core.embeddings.embeddings"
    return False
