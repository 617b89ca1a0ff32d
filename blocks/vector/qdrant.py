"""A vector store on Qdrant: one collection for many scopes, dense and sparse search fused by the server.

The server finds candidates; cosines and counts are computed again from the vectors it returns, so that they mean the same as
in a store that sees everything, whatever index the collection has.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import blake2s
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID, uuid5

from memory_engine.block import Erased
from memory_engine.blocks.vector.store import Candidates, Entry, Item, Probe, Scope, Vector, follows
from memory_engine.errors import BlockError, BlockUnavailableError, ConfigurationError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from qdrant_client import AsyncQdrantClient

K1 = 1.2
B = 0.5
AVERAGE_WORDS = 24.0
"""BM25 constants. They are part of the stored values: the average cannot follow the data without rewriting every point."""

_NAMESPACE = UUID("8f3f0a4e-5a0c-5b7e-9d52-1f6b8d0c7a11")
_BATCH_WEIGHT = 24_000
"""Numbers in one upsert: the client encodes a request on the event loop, which this keeps to about 15 ms."""
_REACH = 2
"""How far a neighbour may be from a candidate, in messages or parts."""
_MOST_AROUND = 512
_MOST_CONDITIONS = 100
_LONGEST_WAIT = 5.0
_PAGE = 256

_KEYWORDS = ("tenant", "scope", "block", "session_uid", "document", "kind")
_NUMBERS = ("seq", "until", "part")


class _MissingError(Exception):
    """The collection does not exist."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the collection is made of; `dimension` None: words only."""

    dimension: int | None
    indexed: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Found:
    """A point as it came back."""

    item: Item
    length: int
    vector: Sequence[float] | None
    words: Mapping[int, float]


class QdrantVectorStore:
    """Keeps items in a collection of any `AsyncQdrantClient`: ":memory:", a path, a server, a cluster.

    The collection is made on first use, with vectors if the first entries have them; `create` is handed to
    `create_collection` then (shards, replicas, `on_disk_payload`). Blocks with and without an embedder, or with embedders of
    different dimensions, need collections of their own. Failed calls are repeated `retries` times with growing waits.

    Qdrant's local mode searches in Python, on the event loop, through all points: it is for tests and small data. Close the
    client yourself.

    :raises MissingExtraError: qdrant-client is not installed.
    :raises ConfigurationError: `client` is not an `AsyncQdrantClient`.
    """

    def __init__(
        self,
        client: AsyncQdrantClient,
        collection: str = "memory",
        *,
        dense_name: str = "dense",
        sparse_name: str = "words",
        batch_size: int = 256,
        neighbours_of: int = 30,
        retries: int = 3,
        backoff: float = 0.2,
        create: Mapping[str, Any] | None = None,
    ) -> None:
        _models()
        from qdrant_client import QdrantClient

        if client is None or isinstance(client, (str, QdrantClient)):
            given = "None" if client is None else f"a {type(client).__name__}"
            raise ConfigurationError(
                "QdrantVectorStore needs an asynchronous client, such as AsyncQdrantClient(url=...) or "
                f"AsyncQdrantClient(':memory:'), not {given}."
            )
        if batch_size < 1 or neighbours_of < 0 or retries < 0 or backoff < 0:
            raise ConfigurationError("batch_size must be positive; neighbours_of, retries and backoff must not be negative.")
        self.client = client
        self.collection = collection
        self.dense_name = dense_name
        self.sparse_name = sparse_name
        self._batch_size = batch_size
        self._neighbours_of = neighbours_of
        self._retries = retries
        self._backoff = backoff
        self._create = dict(create or {})
        self._known: _Layout | None = None
        self._making = asyncio.Lock()

    def __repr__(self) -> str:
        return f"QdrantVectorStore(collection={self.collection!r})"

    # -- the protocol ----------------------------------------------------------------------------------------

    async def add(self, scope: Scope, entries: Sequence[Entry]) -> None:
        """Upsert the entries; what was written when a batch fails is overwritten by the next attempt."""
        dimension = _dimension_of(entries)
        latest = {entry.item.key: entry for entry in entries}
        for batch in _batches(latest.values(), self._batch_size):
            await self._ready(dimension)
            points = await asyncio.to_thread(self._points, scope, batch)
            try:
                await self._call("upsert", points=points, wait=True)
            except _MissingError:  # deleted since we looked
                await self._ready(dimension)
                await self._call("upsert", points=points, wait=True)

    async def search(self, scope: Scope, probe: Probe, *, limit: int) -> Candidates:
        """The best `limit` by vector, the best `limit` by words, and what surrounds the best of both."""
        try:
            return await self._search(scope, probe, limit)
        except _MissingError:
            return _candidates([], [], probe, probe.vector, limit, 0)

    async def items(self, scope: Scope, session_uid: str, from_seq: int, to_seq: int) -> Sequence[Item]:
        """Read without vectors, a page at a time."""
        if await self._layout() is None:
            return []
        within = self._filter(scope, _touching(session_uid, from_seq, to_seq))
        found: list[_Found] = []
        after: Any = None
        while True:
            try:
                points, after = await self._call(
                    "scroll", scroll_filter=within, limit=_PAGE, offset=after, with_payload=True, with_vectors=False
                )
            except _MissingError:
                return []
            found += self._found(scope, points)
            if after is None:
                return [one.item for one in _in_order(found)]

    async def remove(self, scope: Scope, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        """Delete by filter: nothing needs to be read, so it also works when the block has lost track."""
        if session_uid is None:
            await self._delete(self._filter(scope))
        elif seqs is None:
            await self._delete(self._filter(scope, _is("session_uid", session_uid)))
        else:
            for some in _slices([_touching(session_uid, low, high) for low, high in _runs(seqs)], _MOST_CONDITIONS):
                await self._delete(self._filter(scope, should=some))

    async def remove_documents(self, scope: Scope, documents: Sequence[str] | None) -> int:
        """Delete documents by id (None: all)."""
        if documents is None:
            return await self._delete_counted(self._filter(scope, _is("kind", "document")))
        removed = 0
        for some in _slices(sorted(set(documents)), _MOST_CONDITIONS):
            only = self._filter(scope, _is("kind", "document"), _among("document", some))
            removed += await self._delete_counted(only)
        return removed

    async def count(self, scope: Scope) -> int:
        """How many items the scope holds, exactly; 0 when there is no collection."""
        return await self._count(self._filter(scope))

    async def renew(self, scope: Scope, *, dimension: int | None, same_model: bool, keep: Callable[[Item], bool]) -> None:
        """Make or check the collection; then take away what must not stay, a page at a time."""
        if dimension is not None:
            await self._ready(dimension)
        layout = await self._layout()
        if layout is None:
            return
        try:
            if layout.dimension is not None and not same_model:
                everything = _models().FilterSelector(filter=self._filter(scope))
                await self._call("delete_vectors", vectors=[self.dense_name], points=everything, wait=True)
            await self._prune(scope, keep)
        except _MissingError:
            return

    async def _prune(self, scope: Scope, keep: Callable[[Item], bool]) -> None:
        within = self._filter(scope)
        after: Any = None
        while True:
            points, after = await self._call(
                "scroll", scroll_filter=within, limit=_PAGE, offset=after, with_payload=True, with_vectors=False
            )
            gone = [point.id for point in points if not keep(_item(point.payload))]
            if gone:
                await self._call("delete", points_selector=_models().PointIdsList(points=gone), wait=True)
            if after is None:
                return

    # -- searching -------------------------------------------------------------------------------------------

    async def _search(self, scope: Scope, probe: Probe, limit: int) -> Candidates:
        layout = await self._layout()
        if layout is None:
            return _candidates([], [], probe, probe.vector, limit, 0)
        # A block that got its embedder later still finds by words; `add` is where it is told.
        vector = None if layout.dimension is None else probe.vector
        if vector is not None:
            _check_dimension(len(vector), layout, self.collection)
        prefetch = self._prefetches(scope, vector, _hashed(probe.words), limit)
        if not prefetch or any(erased.session_uid is None for erased in scope.erasing):
            return _candidates([], [], probe, vector, limit, await self.count(scope))
        models = _models()
        named = [self.sparse_name] if vector is None else [self.dense_name, self.sparse_name]
        both: tuple[Any, Any] = await asyncio.gather(
            self._call(
                "query_points",
                prefetch=prefetch,
                query=models.FusionQuery(fusion=models.Fusion.RRF),
                limit=limit * len(prefetch),
                with_payload=True,
                with_vectors=named,
            ),
            self.count(scope),
            return_exceptions=True,  # the other call must not go on alone
        )
        for one in both:
            if isinstance(one, BaseException):
                raise one
        answer, total = both
        pool = self._found(scope, answer.points)
        around = await self._around(scope, pool[: self._neighbours_of], named)
        return await asyncio.to_thread(_candidates, pool, around, probe, vector, limit, total)

    def _prefetches(self, scope: Scope, vector: Vector | None, words: Mapping[int, float], limit: int) -> list[Any]:
        models = _models()
        if limit < 1:
            return []
        visible = self._filter(scope, must_not=_hidden(scope.erasing))
        prefetch = []
        if vector is not None:
            prefetch.append(models.Prefetch(query=_numbers(vector), using=self.dense_name, filter=visible, limit=limit))
        if words:
            sparse = models.SparseVector(indices=list(words), values=list(words.values()))
            prefetch.append(models.Prefetch(query=sparse, using=self.sparse_name, filter=visible, limit=limit))
        return prefetch

    async def _around(self, scope: Scope, best: Sequence[_Found], named: list[str]) -> list[_Found]:
        """What was said just before and after the best, in one call."""
        near = _near([found.item for found in best])
        if not near:
            return []
        visible = self._filter(scope, should=near, must_not=_hidden(scope.erasing))
        points, _ = await self._call("scroll", scroll_filter=visible, limit=_MOST_AROUND, with_payload=True, with_vectors=named)
        return self._found(scope, points)

    def _found(self, scope: Scope, points: Iterable[Any]) -> list[_Found]:
        mine = {"tenant": scope.tenant, "scope": scope.key, "block": scope.block}
        found = []
        for point in points:
            payload = point.payload or {}
            # The filter has seen to it; that no other scope is ever shown does not depend on the server alone.
            if any(payload.get(key) != value for key, value in mine.items()):
                continue
            item = _item(payload)
            if not _covered(item, scope.erasing):
                vectors = point.vector if isinstance(point.vector, dict) else {}
                words = vectors.get(self.sparse_name)
                weights = {} if words is None else dict(zip(words.indices, words.values, strict=True))
                found.append(_Found(item, payload["item"]["words"], vectors.get(self.dense_name), weights))
        return found

    # -- the collection --------------------------------------------------------------------------------------

    async def _layout(self) -> _Layout | None:
        """What the collection is made of, None if it does not exist. Readers do not create it."""
        if self._known is None:
            try:
                info = await self._call("get_collection")
            except _MissingError:
                return None
            self._known = self._examine(info)
        return self._known

    async def _ready(self, dimension: int | None) -> None:
        """See that the collection exists, has its indexes, and takes vectors of that dimension."""
        async with self._making:
            layout = await self._layout()
            if layout is None:
                await self._make(dimension)
                layout = await self._layout()
                if layout is None:
                    raise BlockUnavailableError(f"The Qdrant collection {self.collection!r} was deleted as it was made.")
            await self._index(layout)
        if dimension is not None:
            _check_dimension(dimension, layout, self.collection)

    async def _make(self, dimension: int | None) -> None:
        models = _models()
        vectors = {}
        if dimension is not None:
            vectors[self.dense_name] = models.VectorParams(size=dimension, distance=models.Distance.COSINE)
        words = {self.sparse_name: models.SparseVectorParams(modifier=models.Modifier.IDF)}
        try:
            await self._call("create_collection", **self._create, vectors_config=vectors, sparse_vectors_config=words)
        except BlockUnavailableError:
            raise
        except BlockError:
            # Another process may have been first.
            if await self._layout() is None:
                raise

    async def _index(self, layout: _Layout) -> None:
        """Payload indexes that are missing, also after a crash between the collection and its indexes."""
        options = getattr(self.client, "init_options", {})
        if options.get("location") == ":memory:" or options.get("path") is not None:
            return  # local mode has none, and warns
        models = _models()
        for key in (*_KEYWORDS, *_NUMBERS):
            if key in layout.indexed:
                continue
            schema = models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, lookup=True, range=True)
            if key in _KEYWORDS:
                tenant = True if key in {"tenant", "scope"} else None
                schema = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=tenant)
            await self._call("create_payload_index", field_name=key, field_schema=schema, wait=True)
        self._known = _Layout(layout.dimension, frozenset((*_KEYWORDS, *_NUMBERS)))

    def _examine(self, info: Any) -> _Layout:
        """The layout of a collection of ours; another's is refused before anything is written to it."""
        params = info.config.params
        sparse = (params.sparse_vectors or {}).get(self.sparse_name)
        modifier = getattr(getattr(sparse, "modifier", None), "value", None)
        vectors = params.vectors or {}
        problem = ""
        dimension = None
        if sparse is None or modifier != "idf":
            problem = f"it has no sparse vector {self.sparse_name!r} with the IDF modifier"
        elif not isinstance(vectors, dict) or (vectors and self.dense_name not in vectors):
            problem = f"it has dense vectors, but none is named {self.dense_name!r}"
        elif vectors:
            dense = vectors[self.dense_name]
            dimension = dense.size
            if dense.distance.value != "Cosine" or dense.multivector_config is not None:
                problem = f"its vector {self.dense_name!r} is not a single vector compared by cosine"
        if problem:
            raise BlockError(
                f"The Qdrant collection {self.collection!r} was not made by QdrantVectorStore: {problem}. "
                "Give another `collection`, which is made on first use, or the `dense_name` and `sparse_name` it has."
            )
        return _Layout(dimension, frozenset(info.payload_schema or {}))

    def _points(self, scope: Scope, entries: Iterable[Entry]) -> list[Any]:
        models = _models()
        points = []
        for entry in entries:
            vectors: dict[str, Any] = {}
            if entry.vector is not None:
                vectors[self.dense_name] = _numbers(entry.vector)
            if weights := _bm25(entry.words):
                vectors[self.sparse_name] = models.SparseVector(indices=list(weights), values=list(weights.values()))
            payload = _payload(scope, entry)
            points.append(models.PointStruct(id=point_id(scope, entry.item.key), vector=vectors, payload=payload))
        return points

    # -- calls -----------------------------------------------------------------------------------------------

    def _filter(
        self, scope: Scope, *must: Any, should: Sequence[Any] | None = None, must_not: Sequence[Any] | None = None
    ) -> Any:
        """The only place where filters are made: everything else comes on top of the scope."""
        mine = (_is("scope", scope.key), _is("tenant", scope.tenant), _is("block", scope.block))
        return _models().Filter(
            must=[*mine, *must],
            should=list(should) if should else None,
            must_not=list(must_not) if must_not else None,
        )

    async def _count(self, only: Any) -> int:
        if await self._layout() is None:
            return 0
        try:
            answer = await self._call("count", count_filter=only, exact=True)
        except _MissingError:
            return 0
        return int(answer.count)

    async def _delete(self, only: Any) -> None:
        if await self._layout() is None:
            return
        try:
            await self._call("delete", points_selector=_models().FilterSelector(filter=only), wait=True)
        except _MissingError:
            return

    async def _delete_counted(self, only: Any) -> int:
        count = await self._count(only)
        if count:
            await self._delete(only)
        return count

    async def _call(self, method: str, **arguments: Any) -> Any:
        """Call the client; what may pass is tried again, everything else becomes an error that says what to do."""
        wait = self._backoff
        for left in range(self._retries, -1, -1):
            try:
                return await getattr(self.client, method)(collection_name=self.collection, **arguments)
            except Exception as error:
                kind, asked = _judge(error)
                if kind == "unknown":
                    raise
                if kind == "missing":
                    self._known = None
                    raise _MissingError from error
                if kind == "refused":
                    self._known = None  # it may have been made anew, with another layout
                    raise BlockError(f"Qdrant refused {method} on {self.collection!r}: {_told(error)}") from error
                if kind == "down" or not left:
                    raise BlockUnavailableError(
                        f"Qdrant is not available ({method} on {self.collection!r}): {_told(error)}"
                    ) from error
            # Spread, so that processes which failed together do not come back together.
            await asyncio.sleep(min(_LONGEST_WAIT, max(asked, wait * random.uniform(0.5, 1.5))))
            wait *= 2
        raise AssertionError("unreachable")


def point_id(scope: Scope, key: str) -> str:
    """The id of an item's point: the same in every process, for ever, so that storing twice stores once."""
    return str(uuid5(_NAMESPACE, json.dumps([scope.tenant, scope.key, scope.block, key])))


@lru_cache(maxsize=65_536)
def word_index(word: str) -> int:
    """The place of a word in the sparse vectors. Never `hash()`, which differs in each process."""
    return int.from_bytes(blake2s(word.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big")


# -- errors ------------------------------------------------------------------------------------------------------


def _models() -> Any:
    try:
        from qdrant_client import models
    except ImportError as error:
        raise MissingExtraError("QdrantVectorStore needs qdrant-client: pip install memory-engine-blocks[qdrant]") from error
    return models


Verdict = Literal["missing", "passing", "down", "refused", "unknown"]

_GRPC: dict[str, Verdict] = {
    "NOT_FOUND": "missing",
    "UNAVAILABLE": "passing",
    "DEADLINE_EXCEEDED": "passing",
    "RESOURCE_EXHAUSTED": "passing",
    "ABORTED": "passing",
    "INTERNAL": "passing",
    "UNKNOWN": "passing",
}


def _judge(error: Exception) -> tuple[Verdict, float]:
    """What an error means, and how many seconds the server asks to wait.

    By what errors carry, not by their classes: those moved between versions of qdrant-client, and grpc has its own.
    """
    asked = getattr(error, "retry_after_s", None)
    if asked is not None:
        return "passing", float(asked)
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return _judge_status(status, getattr(error, "content", b"")), 0.0
    code = getattr(error, "code", None)
    if callable(code):
        return _GRPC.get(getattr(code(), "name", ""), "refused"), 0.0
    source = getattr(error, "source", None)
    if source is not None:
        # Not understood is a ValueError (of pydantic); everything else there is httpx.
        return ("refused" if isinstance(source, ValueError) else "passing"), 0.0
    return _judge_local(error), 0.0


def _judge_status(status: int, content: bytes) -> Verdict:
    if status in {408, 429} or status >= 500:
        return "passing"
    if status == 404:
        # A proxy or a wrong path says 404 as well; taking that for an empty store would start a rebuild.
        return "missing" if b"Not found: Collection" in content or b"doesn't exist" in content else "down"
    return "refused"


def _judge_local(error: Exception) -> Verdict:
    if isinstance(error, ValueError):
        text = str(error)
        return "missing" if text.startswith("Collection ") and text.endswith(" not found") else "refused"
    if isinstance(error, (OSError, TimeoutError)):
        return "passing"
    # A closed local client, or its file.
    return "down" if isinstance(error, (RuntimeError, sqlite3.Error)) else "unknown"


def _told(error: Exception) -> str:
    return f"{str(error) or repr(error)!s:.500}"


def _check_dimension(given: int, layout: _Layout, collection: str) -> None:
    if layout.dimension is None:
        raise BlockError(
            f"The Qdrant collection {collection!r} was made without vectors, for search by words. For an embed_model, give "
            "another `collection` to the store and call `rebuild()` on the bound block."
        )
    if given != layout.dimension:
        raise BlockError(
            f"The vectors have {given} dimensions, those in the Qdrant collection {collection!r} have {layout.dimension}. "
            "For another embed_model, give another `collection` to the store and call `rebuild()` on the bound block; delete "
            "the old collection when no block uses it any more."
        )


def _dimension_of(entries: Iterable[Entry]) -> int | None:
    dimensions = {len(entry.vector) for entry in entries if entry.vector is not None}
    if len(dimensions) > 1 or 0 in dimensions:
        raise BlockError(f"All vectors must have one dimension, not {sorted(dimensions)}; look at the embed_model.")
    return dimensions.pop() if dimensions else None


def _numbers(vector: Vector) -> list[float]:
    numbers = [float(number) for number in vector]
    if not all(map(math.isfinite, numbers)):
        raise BlockError("A vector holds NaN or infinity; look at the embed_model.")
    return numbers


# -- items and points --------------------------------------------------------------------------------------------


def _payload(scope: Scope, entry: Entry) -> dict[str, Any]:
    """What filters use lies open, the rest in `item`; metadata as JSON text, because a server keeps only 64-bit numbers."""
    item = entry.item
    try:
        metadata = json.dumps(dict(item.metadata), ensure_ascii=False, allow_nan=False) if item.metadata else None
    except (TypeError, ValueError) as error:
        raise BlockError(f"The metadata of item {item.key!r} is not JSON: {error}. Use plain JSON values.") from error
    used = {
        "tenant": scope.tenant,
        "scope": scope.key,
        "block": scope.block,
        "key": item.key,
        "kind": item.kind,
        "session_uid": item.session_uid,
        "seq": item.seq,
        "until": item.seq if item.last_seq is None else item.last_seq,
        "document": item.document,
        "part": item.part,
    }
    rest = {
        "text": item.text,
        "role": item.role,
        "name": item.name,
        "at": item.at and item.at.isoformat(),
        "session_id": item.session_id,
        "last_seq": item.last_seq,
        "tokens": item.tokens,
        "metadata": metadata,
        "words": sum(entry.words.values()),
    }
    payload: dict[str, Any] = {key: value for key, value in used.items() if value is not None}
    payload["item"] = {key: value for key, value in rest.items() if value is not None}
    return payload


def _item(payload: Mapping[str, Any]) -> Item:
    rest = payload["item"]
    return Item(
        key=payload["key"],
        text=rest["text"],
        kind=payload["kind"],
        role=rest["role"],
        name=rest.get("name"),
        at=datetime.fromisoformat(rest["at"]) if "at" in rest else None,
        session_uid=payload.get("session_uid"),
        session_id=rest.get("session_id"),
        seq=payload.get("seq"),
        last_seq=rest.get("last_seq"),
        part=payload["part"],
        tokens=rest["tokens"],
        document=payload.get("document"),
        metadata=json.loads(rest.get("metadata", "{}")),
    )


def _hashed(words: Mapping[str, float]) -> dict[int, float]:
    """Weights by place; words that fall on one place are added."""
    hashed: dict[int, float] = defaultdict(float)
    for word, weight in words.items():
        if weight:
            hashed[word_index(word)] += weight
    return dict(sorted(hashed.items()))


def _bm25(words: Mapping[str, int]) -> dict[int, float]:
    """The part of BM25 that a document knows by itself; the server multiplies by the query's IDF."""
    norm = _norm(sum(words.values()))
    return {place: count * (K1 + 1) / (count + norm) for place, count in _hashed(words).items()}


def _norm(length: int) -> float:
    return K1 * (1 - B + B * length / AVERAGE_WORDS)


def _count_of(weight: float, length: int) -> int:
    """How often the word is there whose weight this is: `_bm25` the other way round."""
    rest = K1 + 1 - weight
    return min(length, round(weight * _norm(length) / rest)) if rest > 0 else length


def _batches(entries: Iterable[Entry], most: int) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    weight = 0
    for entry in entries:
        own = (0 if entry.vector is None else len(entry.vector)) + 2 * len(entry.words) + len(entry.item.text) // 8
        if batch and (len(batch) == most or weight + own > _BATCH_WEIGHT):
            yield batch
            batch, weight = [], 0
        batch.append(entry)
        weight += own
    if batch:
        yield batch


# -- conditions --------------------------------------------------------------------------------------------------


def _is(key: str, value: str) -> Any:
    return _models().FieldCondition(key=key, match=_models().MatchValue(value=value))


def _among(key: str, values: Sequence[int] | Sequence[str]) -> Any:
    return _models().FieldCondition(key=key, match=_models().MatchAny(any=list(values)))


def _range(key: str, **bounds: int) -> Any:
    return _models().FieldCondition(key=key, range=_models().Range(**bounds))


def _touching(session_uid: str, low: int, high: int) -> Any:
    """Items of a session with any message from `low` to `high`."""
    return _models().Filter(must=[_is("session_uid", session_uid), _range("seq", lte=high), _range("until", gte=low)])


def _hidden(erasing: Iterable[Erased]) -> list[Any]:
    """What is being erased, so that it takes no candidate's place. What is too much for a filter is dropped here later."""
    hidden: list[Any] = []
    for erased in erasing:
        if erased.session_uid is not None and erased.seqs is None:
            hidden.append(_is("session_uid", erased.session_uid))
        elif erased.session_uid is not None and erased.seqs:
            hidden.extend(_touching(erased.session_uid, low, high) for low, high in _runs(erased.seqs))
    return hidden[:_MOST_CONDITIONS]


def _covered(item: Item, erasing: Iterable[Erased]) -> bool:
    seqs: Iterable[int | None] = (item.seq,)
    if item.seq is not None and item.last_seq is not None:
        seqs = range(item.seq, item.last_seq + 1)
    return any(erased.covers(item.session_uid, seq) for erased in erasing for seq in seqs)


def _near(items: Iterable[Item]) -> list[Any]:
    """Conditions for the neighbours of these items; few, because local mode checks each of them for each point."""
    begins: dict[str, set[int]] = defaultdict(set)
    ends: dict[str, set[int]] = defaultdict(set)
    documents: dict[str, set[int]] = defaultdict(set)
    for item in items:
        if item.kind == "document" and item.document is not None:
            documents[item.document].update(range(max(0, item.part - _REACH), item.part + _REACH + 1))
        elif item.session_uid is not None and item.seq is not None:
            last = item.seq if item.last_seq is None else item.last_seq
            # Its own seq: the other parts of a long message.
            begins[item.session_uid].update((item.seq, *range(last + 1, last + _REACH + 1)))
            ends[item.session_uid].update(range(max(0, item.seq - _REACH), item.seq))
    near = []
    for uid, seqs in begins.items():
        either = [_among("seq", sorted(seqs))]
        if ends[uid]:
            either.append(_among("until", sorted(ends[uid])))
        near.append(_models().Filter(must=[_is("session_uid", uid)], should=either))
    for document, parts in documents.items():
        of_it = [_is("kind", "document"), _is("document", document), _among("part", sorted(parts))]
        near.append(_models().Filter(must=of_it))
    return near


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as ranges from first to last, in order."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _slices(values: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


# -- answers -----------------------------------------------------------------------------------------------------


def _candidates(
    pool: Sequence[_Found], around: Sequence[_Found], probe: Probe, vector: Vector | None, limit: int, total: int
) -> Candidates:
    """The pool and what surrounds it, in order; `vector` None: no cosines."""
    import numpy as np

    ordered = _in_order(list({found.item.key: found for found in (*around, *pool)}.values()))
    items = [found.item for found in ordered]
    places = [word_index(word) for word in probe.words]
    counts = [[_count_of(one.words[place], one.length) if place in one.words else 0 for place in places] for one in ordered]
    lengths = np.array([found.length for found in ordered], np.float32)
    # Something may have been added between the two calls.
    total = max(total, len(items))
    return Candidates(
        items=items,
        counts=np.array(counts, np.float32).reshape(len(items), len(places)),
        lengths=lengths,
        frequency=np.array(_frequencies(pool, places, limit, total), np.float32),
        # Of those that came back: nobody counts the words of a whole scope for each query.
        average_length=float(lengths.mean()) if items else 0.0,
        dense=None if vector is None else _cosines(ordered, vector),
        follows=np.array([i > 0 and follows(items[i - 1], items[i]) for i in range(len(items))], np.bool_),
        total=total,
    )


def _cosines(found: Sequence[_Found], vector: Vector) -> NDArray[np.float32]:
    import numpy as np

    probe = np.asarray(vector, np.float32)
    zeros = [0.0] * len(probe)
    rows = np.array([zeros if one.vector is None else one.vector for one in found], np.float32).reshape(len(found), len(probe))
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(probe)
    cosines: NDArray[np.float32] = np.divide(rows @ probe, lengths, out=np.zeros(len(found), np.float32), where=lengths > 0)
    return cosines


def _frequencies(pool: Sequence[_Found], places: Sequence[int], limit: int, total: int) -> list[int]:
    """How many items of the scope contain each word; what the server knows is of all scopes together.

    Fewer matches than `limit` are all there are: the counts are exact. Else the pool holds every match of a rare word, for
    those rank first, and little more than a sample of a frequent one: the count is scaled up to the scope by its share.
    """
    frequencies = [sum(place in found.words for found in pool) for place in places]
    matches = sum(any(place in found.words for place in places) for found in pool)
    if matches < max(1, limit):
        return frequencies
    return [round(count * (1 + (total / matches - 1) * count / matches)) for count in frequencies]


def _in_order(found: list[_Found]) -> list[_Found]:
    """Sessions by when their first item here was said, then in their order; documents last."""
    began: dict[str, tuple[int, float]] = {}
    for item in (one.item for one in found if one.item.kind == "message"):
        uid = item.session_uid or ""
        start = (item.seq or 0, item.at.timestamp() if item.at else 0.0)
        began[uid] = min(began.get(uid, start), start)

    def place(one: _Found) -> tuple[Any, ...]:
        item = one.item
        if item.kind == "document":
            return (1, 0.0, item.document or "", 0, item.part, item.key)
        uid = item.session_uid or ""
        return (0, began[uid][1], uid, item.seq or 0, item.part, item.key)

    return sorted(found, key=place)
