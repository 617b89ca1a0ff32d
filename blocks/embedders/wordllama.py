"""wordllama: small word vectors inside its package. Offline, no torch, thousands of texts per second on a CPU."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_engine.blocks.services.loading import Worker, load, require
from memory_engine.errors import ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WHO = "WordLlamaEmbedder"
PIP = "memory-engine-blocks[local-embed]"
DIMENSIONS = (64, 128, 256)
CONFIG = "l2_supercat"
PADDED = 200_000
"""Characters of one run, padding included: wordllama holds a row of numbers for each token at once."""

_models: dict[int, Any] = {}
_loading = threading.Lock()


class WordLlamaEmbedder:
    """The weights come with the package and are loaded once per process, on first use. Nothing is ever downloaded.

    Averages of word vectors know what words mean, not what order they are in; a transformer finds more.
    """

    def __init__(self, model: Any = None, *, dimensions: int = 256) -> None:
        """`dimensions` is 64, 128 or 256; `model` a model that `WordLlama.load` returned, instead of the one in the package."""
        if model is None:
            if dimensions not in DIMENSIONS:
                raise ConfigurationError(f"dimensions of {WHO} is one of {DIMENSIONS}, not {dimensions!r}.")
            require("wordllama", who=WHO, pip=PIP)
            self.identity = f"wordllama-{CONFIG}-{dimensions}"
        else:
            self.identity = f"wordllama-custom-{'x'.join(map(str, model.embedding.shape))}"
        self._model = model
        self._dimensions = dimensions
        self._worker = Worker("wordllama")

    async def __call__(self, texts: list[str], /) -> NDArray[np.float32]:
        """One row per text."""
        rows: NDArray[np.float32] = await self._worker.run(self._embed, texts)
        return rows

    def _embed(self, texts: list[str]) -> NDArray[np.float32]:
        import numpy as np

        model = self._model if self._model is not None else shared_model(self._dimensions)
        parts = list(_runs(texts))
        if not parts:
            return np.zeros((0, model.embedding.shape[1]), dtype=np.float32)
        rows = np.zeros((len(texts), model.embedding.shape[1]), dtype=np.float32)
        for part in parts:
            rows[part] = model.embed([texts[index] for index in part])
        return rows


def shared_model(dimensions: int) -> Any:
    """The model of this process."""
    with _loading:
        if dimensions not in _models:
            package = load("wordllama", who=WHO, pip=PIP)
            # Otherwise it looks for its tokenizer in the home folder and then on the network, although it has it.
            folder = Path(package.__file__).parent
            shorter = None if dimensions == max(DIMENSIONS) else dimensions
            _models[dimensions] = package.WordLlama.load(
                CONFIG, cache_dir=folder, dim=max(DIMENSIONS), trunc_dim=shorter, disable_download=True
            )
        return _models[dimensions]


def _runs(texts: list[str]) -> list[list[int]]:
    """Indices of texts of about equal length that fit into memory together."""
    runs: list[list[int]] = []
    for index in sorted(range(len(texts)), key=lambda index: len(texts[index])):
        if runs and len(texts[index]) * (len(runs[-1]) + 1) <= PADDED:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs
