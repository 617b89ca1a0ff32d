"""fastembed: ONNX models without torch. They are downloaded on first use, into `cache_dir`."""

from __future__ import annotations

import threading
from typing import Any

from memory_engine.blocks.services.loading import Worker, load, require

WHO = "FastEmbedEmbedder"
PIP = "fastembed"


class FastEmbedEmbedder:
    """A model of fastembed by name, or a `TextEmbedding` of yours. Loaded on first use, runs in a thread of its own."""

    def __init__(
        self, model: Any = "BAAI/bge-small-en-v1.5", *, cache_dir: str | None = None, threads: int | None = None, **options: Any
    ) -> None:
        """`options` go to `fastembed.TextEmbedding`."""
        if isinstance(model, str):
            require("fastembed", who=WHO, pip=PIP)
            self._model: Any = None
            name = model
        else:
            self._model = model
            name = getattr(model, "model_name", type(model).__name__)
        self._options = {"model_name": model, "cache_dir": cache_dir, "threads": threads, **options}
        self._worker = Worker("fastembed")
        self._loading = threading.Lock()
        self.identity = f"fastembed:{name}"

    async def __call__(self, texts: list[str], /) -> list[Any]:
        """One vector per text."""
        rows: list[Any] = await self._worker.run(lambda: self._load().passage_embed(texts))
        return rows

    async def embed_query(self, text: str) -> Any:
        """The vector of a question: several models want it marked as one."""
        rows = await self._worker.run(lambda: self._load().query_embed(text))
        return rows[0]

    def _load(self) -> Any:
        with self._loading:
            if self._model is None:
                self._model = load("fastembed", who=WHO, pip=PIP).TextEmbedding(**self._options)
            return self._model
