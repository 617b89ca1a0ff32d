"""What an embedder is, and `CachedEmbedder`, the one form in which blocks use whatever the user has."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from memory_engine.blocks.embedders.cache import EmbeddingCache, cache_key
from memory_engine.blocks.services.failures import translate
from memory_engine.blocks.services.loading import Worker, is_async, require
from memory_engine.errors import BlockResultError, ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = Sequence[Sequence[float]] | NDArray[np.floating[Any]]

log = logging.getLogger("memory_engine.blocks.embedders")

BATCH_SIZE = 64
LARGE = 50_000
"""Numbers that are converted in another thread, because it takes milliseconds."""

_WARNED: set[str] = set()
"""Identities that a warning was given about."""


class DimensionError(BlockResultError):
    """Vectors have another length than those before them: the model is another one, whatever its name."""


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors, one each, all of one length. A plain async function is one.

    An object may have two more members. `async embed_query(text) -> vector`, for a model that wants questions embedded
    otherwise than what they are compared with. `identity: str`, the model and the settings that its vectors depend on: a
    stored vector is compared only with vectors of the same identity, so a change is noticed.
    """

    async def __call__(self, texts: list[str], /) -> Vectors:
        """One vector per text, in their order."""


class CachedEmbedder:
    """An embedder as blocks use it: batches, checks, unit length, a cache, errors that say whether to wait.

    It may be shared by blocks and by memories. `embed_model` may be given to it directly or to `as_embedder`.
    """

    def __init__(
        self,
        embed_model: Any,
        *,
        identity: str | None = None,
        batch_size: int | None = None,
        cache: EmbeddingCache | None = None,
    ) -> None:
        """`identity` and `batch_size` (64) default to those of the model; `cache` may be shared with other embedders."""
        require("numpy", who="An embedder", pip="numpy")
        model = adapt(embed_model)
        size = batch_size if batch_size is not None else getattr(model, "batch_size", BATCH_SIZE)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigurationError(f"batch_size is a number of texts, at least 1, not {size!r}.")
        self._model = model
        self._identity = identity or getattr(model, "identity", None) or _name(model)
        if not identity:
            _warn_of(self._identity)
        self._batch_size = size
        self._worker = Worker("embedder")
        self._query: Callable[[str], Any] | None = getattr(model, "embed_query", None)
        self._dimension: int | None = None
        self.cache = cache if cache is not None else EmbeddingCache()

    def __deepcopy__(self, memo: object) -> CachedEmbedder:
        # Copies of a block share the model and its cache.
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(f"the embedder {self._identity!r} has threads and a cache; construct it in the process that uses it")

    @property
    def identity(self) -> str:
        """Names the model and its settings."""
        return self._identity

    @property
    def dimension(self) -> int | None:
        """The length of the vectors, None until the first one came."""
        return self._dimension

    def __repr__(self) -> str:
        return f"CachedEmbedder({self._identity!r})"

    async def __call__(self, texts: list[str], /) -> NDArray[np.float32]:
        """The same as `embed`."""
        return await self.embed(texts)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row per text, of unit length; a vector of zeros stays one.

        :raises BlockUnavailableError: when the service does not answer, or not now.
        :raises BlockResultError: for a result that is not one vector of finite numbers per text, all of one length
            (`DimensionError`: of another length than before).
        :raises BlockError: for any other failure.
        """
        import numpy as np

        keyed = [(cache_key(self._identity, text), text) for text in texts]
        found = await self.cache.fetch(dict(keyed), partial(self._compute, self._model), batch_size=self._batch_size)
        if not keyed:
            return np.zeros((0, self._dimension or 0), dtype=np.float32)
        return np.stack([self._same_dimension(found[key]) for key, _ in keyed])

    async def embed_query(self, text: str) -> NDArray[np.float32]:
        """The vector of a question. Raises as `embed` does."""
        if self._query is None:
            row: NDArray[np.float32] = (await self.embed([text]))[0]
            return row
        key = cache_key(f"{self._identity}\x00query", text)
        compute = partial(self._compute, partial(_one, self._query))
        found = await self.cache.fetch({key: text}, compute, batch_size=1)
        return self._same_dimension(found[key]).copy()

    async def _compute(self, function: Callable[[list[str]], Any], texts: list[str]) -> NDArray[np.float32]:
        cleaned = [_clean(text) for text in texts]
        try:
            if is_async(function):
                result = await function(cleaned)
            else:
                result = await self._worker.run(function, cleaned)
                if inspect.isawaitable(result):
                    result = await result
            if isinstance(result, Iterator):
                result = list(result)
            return await self._checked(result, len(texts))
        except Exception as error:
            translated = translate(error, f"The embedder {self._identity}")
            if translated is error:
                raise
            raise translated from error

    async def _checked(self, result: Any, count: int) -> NDArray[np.float32]:
        if not hasattr(result, "dtype") and _numbers(result) > LARGE:
            rows: NDArray[np.float32] = await self._worker.run(unit_rows, result, count, self._identity)
        else:
            rows = unit_rows(result, count, self._identity)
        return self._same_dimension(rows)

    def _same_dimension(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        dimension = rows.shape[-1]
        if self._dimension is None:
            self._dimension = dimension
        if dimension != self._dimension:
            raise DimensionError(
                f"The embedder {self._identity} returned vectors of {dimension} numbers, before they had {self._dimension}. "
                "Use one model, with an `identity` of its own, per block."
            )
        return rows


def as_embedder(embed_model: Any) -> CachedEmbedder:
    """Whatever turns texts into vectors, in the form that blocks use.

    Taken are an `Embedder` (so any async function), embeddings of LlamaIndex and LangChain, a model of sentence-transformers,
    fastembed or wordllama, and a sync function; the latter runs in a thread of its own, one call at a time.

    :raises ConfigurationError: for anything else.
    """
    return embed_model if isinstance(embed_model, CachedEmbedder) else CachedEmbedder(embed_model)


_ADAPTERS = {
    "fastembed": ("fastembed", "FastEmbedEmbedder"),
    "langchain": ("langchain", "LangChainEmbedder"),
    "langchain_core": ("langchain", "LangChainEmbedder"),
    "llama_index": ("llama_index", "LlamaIndexEmbedder"),
    "sentence_transformers": ("sentence_transformers", "SentenceTransformersEmbedder"),
    "wordllama": ("wordllama", "WordLlamaEmbedder"),
}


def adapt(embed_model: Any) -> Any:
    """The model itself if it can be called with texts, else the adapter for the package that it comes from."""
    if isinstance(embed_model, type):
        raise ConfigurationError(f"embed_model is the class {embed_model.__name__}; give an instance of it.")
    for base in type(embed_model).__mro__:
        # By name: the package is loaded if somebody has an instance of its class. Classes of models can be called,
        # but not with texts, hence before that question.
        module, name = _ADAPTERS.get(base.__module__.partition(".")[0], (None, None))
        if module is not None and name is not None:
            return getattr(import_module(f"memory_engine.blocks.embedders.{module}"), name)(embed_model)
    if callable(embed_model):
        return embed_model
    if hasattr(embed_model, "embed_documents") and hasattr(embed_model, "embed_query"):
        # LangChain's methods without its base class.
        from memory_engine.blocks.embedders.langchain import LangChainEmbedder

        return LangChainEmbedder(embed_model)
    raise ConfigurationError(
        f"embed_model is a function from a list of texts to vectors, preferably async, an embedder of "
        f"memory_engine.blocks.embedders, or embeddings of LlamaIndex or LangChain, not {embed_model!r:.100}."
    )


async def _one(query: Callable[[str], Any], texts: list[str]) -> list[Any]:
    """`embed_query` as a function of several texts."""
    result = query(texts[0])
    return [await result if inspect.isawaitable(result) else result]


def unit_rows(result: Any, count: int, who: str) -> NDArray[np.float32]:
    """Vectors as rows of unit length.

    :raises BlockResultError: saying what is wrong with them.
    """
    import numpy as np

    wrong = f"The embedder {who} must return one vector of finite numbers per text, all of one length"
    try:
        rows = np.asarray(result)
    except Exception as error:
        raise BlockResultError(f"{wrong}; what it returned is no table of numbers: {error}") from error
    if rows.ndim >= 1 and len(rows) != count:
        raise BlockResultError(f"{wrong}; for {count} texts it returned {len(rows)}.")
    if rows.ndim != 2 or rows.shape[1] == 0 or rows.dtype.kind not in "fiu":
        raise BlockResultError(f"{wrong}; it returned a {type(result).__name__} of shape {rows.shape} and type {rows.dtype}.")
    exact = rows.astype(np.float64)
    if not np.isfinite(exact).all():
        raise BlockResultError(f"{wrong}; there are numbers that are infinite or NaN.")
    # Divided by the largest first: squares of very large or very small numbers leave what a float can hold.
    largest = np.abs(exact).max(axis=1, keepdims=True)
    exact /= np.where(largest > 0, largest, 1)
    norms = np.sqrt(np.square(exact).sum(axis=1, keepdims=True))
    return (exact / np.where(norms > 0, norms, 1)).astype(np.float32)


def _numbers(result: Any) -> int:
    try:
        return len(result) * len(result[0])
    except (TypeError, IndexError, KeyError):
        return 0


def _clean(text: str) -> str:
    """Half a character (a lone surrogate) cannot be encoded, and tokenizers written in Rust refuse it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _warn_of(identity: str) -> None:
    """Say once that functions made in the same place look alike, whatever model they ask."""
    if ("<locals>" in identity or "<lambda>" in identity) and identity not in _WARNED:
        _WARNED.add(identity)
        log.warning(
            "the embedder %s is a function that others may share their name with: a change of its model would not be noticed, "
            'and vectors of two models be mixed. Name the model: CachedEmbedder(function, identity="...")',
            identity,
        )


def _name(function: Any) -> str:
    """A name for an embedder that has none: where it is defined, and its model if it says so."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    name = f"{named.__module__}.{named.__qualname__}"
    model = getattr(function, "model_name", None) or getattr(function, "model", None)
    return f"{name}:{model}" if isinstance(model, str) else name
