"""Embeddings of LlamaIndex: any `BaseEmbedding`."""

from __future__ import annotations

from typing import Any

from memory_engine.blocks.services.loading import Worker
from memory_engine.errors import ConfigurationError


class LlamaIndexEmbedder:
    """Wraps a `BaseEmbedding`; `as_embedder` does so by itself.

    Its sync methods are used, in a thread of their own: the async ones of many models compute on the event loop. Say
    `asynchronous=True` for a model that really is, such as those that call a service.
    """

    def __init__(self, model: Any, *, asynchronous: bool = False) -> None:
        if not (hasattr(model, "get_text_embedding_batch") and hasattr(model, "get_query_embedding")):
            raise ConfigurationError(f"LlamaIndexEmbedder wraps an embedding of LlamaIndex, not {model!r:.100}.")
        self._model = model
        self._asynchronous = asynchronous
        self._worker = Worker("llama-index")
        dimensions = getattr(model, "dimensions", None)
        name = getattr(model, "model_name", None) or "unknown"
        self.identity = f"llama-index:{type(model).__name__}:{name}" + (f":{dimensions}" if dimensions else "")

    async def __call__(self, texts: list[str], /) -> Any:
        """One vector per text."""
        if self._asynchronous:
            return await self._model.aget_text_embedding_batch(texts)
        return await self._worker.run(self._model.get_text_embedding_batch, texts)

    async def embed_query(self, text: str) -> Any:
        """The vector of a question."""
        if self._asynchronous:
            return await self._model.aget_query_embedding(text)
        return await self._worker.run(self._model.get_query_embedding, text)
