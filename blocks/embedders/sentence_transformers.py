"""sentence-transformers: any model of its hub or of a folder, on CPU or GPU."""

from __future__ import annotations

import threading
from typing import Any

from memory_engine.blocks.services.loading import Worker, load, require

WHO = "SentenceTransformersEmbedder"
PIP = "sentence-transformers"


class SentenceTransformersEmbedder:
    """A model by name or folder, or a `SentenceTransformer` of yours. Loaded on first use, runs in a thread of its own."""

    def __init__(
        self,
        model: Any = "sentence-transformers/all-MiniLM-L6-v2",
        *,
        batch_size: int = 32,
        device: str | None = None,
        **options: Any,
    ) -> None:
        """`batch_size` is that of the model; `options` go to `SentenceTransformer`, such as `truncate_dim`."""
        if isinstance(model, str):
            require("sentence_transformers", who=WHO, pip=PIP)
            self._model: Any = None
            name = model
        else:
            self._model = model
            card = getattr(model, "model_card_data", None)
            name = getattr(card, "base_model", None) or getattr(card, "model_id", None) or type(model).__name__
        self._name = model
        self._size = batch_size
        self._options = {"device": device, **options}
        self._worker = Worker("sentence-transformers")
        self._loading = threading.Lock()
        shorter = options.get("truncate_dim") or getattr(self._model, "truncate_dim", None)
        self.identity = f"sentence-transformers:{name}" + (f":{shorter}" if shorter else "")

    async def __call__(self, texts: list[str], /) -> Any:
        """One row per text."""
        return await self._worker.run(self._embed, texts, "document")

    async def embed_query(self, text: str) -> Any:
        """The vector of a question, with the prompt that the model has for it, if it has one."""
        return (await self._worker.run(self._embed, [text], "query"))[0]

    def _embed(self, texts: list[str], kind: str) -> Any:
        model = self._load()
        arguments: dict[str, Any] = {"batch_size": self._size, "show_progress_bar": False, "convert_to_numpy": True}
        encode = getattr(model, f"encode_{kind}", None)  # since version 5
        if encode is None:
            encode = model.encode
            if kind in (getattr(model, "prompts", None) or {}):
                arguments["prompt_name"] = kind
        return encode(texts, **arguments)

    def _load(self) -> Any:
        with self._loading:
            if self._model is None:
                package = load("sentence_transformers", who=WHO, pip=PIP)
                self._model = package.SentenceTransformer(self._name, **self._options)
            return self._model
