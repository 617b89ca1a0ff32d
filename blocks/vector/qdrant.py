"""A vector store on Qdrant: one collection for many scopes, dense and sparse search fused by the server.

The server finds candidates; cosines and counts are computed again from the vectors it returns, so that they mean the same as
in a store that sees everything, whatever index the collection has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memory_engine.blocks.vector.qdrant_calls import Calls
from memory_engine.blocks.vector.qdrant_errors import MissingError
from memory_engine.blocks.vector.qdrant_filters import (
    MOST_CONDITIONS,
    among,
    client_models,
    equals,
    hidden,
    near_to,
    runs_of,
    slices,
    touching,
)
from memory_engine.blocks.vector.qdrant_layout import KEYWORDS, NUMBERS, CollectionLayout, check_dimension, layout_of
from memory_engine.blocks.vector.qdrant_points import (
    AVERAGE_WORDS,
    K1,
    B,
    Found,
    batches,
    candidates_of,
    dimension_of,
    found_in,
    hashed,
    in_order,
    item_of,
    numbers_of,
    point_id,
    points_of,
    word_index,
)
from memory_engine.blocks.vector.store import Candidates, Entry, Item, Probe, Scope, Vector
from memory_engine.errors import BlockError, BlockUnavailableError, ConfigurationError

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

__all__ = ["AVERAGE_WORDS", "K1", "B", "QdrantVectorStore", "point_id", "word_index"]

_MOST_AROUND = 512
_PAGE = 256


Call = Callable[..., Awaitable[Any]]


class QdrantVectorStore:
    """Keeps items in a collection of any `AsyncQdrantClient`: ":memory:", a path, a server, a cluster.

    The collection is made on first use, with vectors if the first entries have them; `create` is handed to
    `create_collection` then (shards, replicas, `on_disk_payload`). Blocks with and without an embedder, or with embedders of
    different dimensions, need collections of their own. Failed calls are repeated `retries` times with growing waits, but
    those of a search are not, and for 5 seconds (of `clock`) after a failure a search asks nothing: an agent waits for it.

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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        client_models()
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
        self._calls = Calls(client, collection, retries=retries, backoff=backoff, clock=clock, forget=self._forget)
        self._create = dict(create or {})
        self._known: CollectionLayout | None = None
        self._making = asyncio.Lock()

    def __repr__(self) -> str:
        return f"QdrantVectorStore(collection={self.collection!r})"

    # -- the protocol ----------------------------------------------------------------------------------------

    async def add(self, scope: Scope, entries: Sequence[Entry]) -> None:
        """Upsert the entries; what was written when a batch fails is overwritten by the next attempt."""
        dimension = dimension_of(entries)
        latest = {entry.item.key: entry for entry in entries}
        for batch in batches(latest.values(), self._batch_size):
            await self._ready(dimension)
            points = await asyncio.to_thread(points_of, scope, batch, self.dense_name, self.sparse_name)
            try:
                await self._calls.patient("upsert", points=points, wait=True)
            except MissingError:  # deleted since we looked
                await self._ready(dimension)
                await self._calls.patient("upsert", points=points, wait=True)

    async def search(self, scope: Scope, probe: Probe, *, limit: int) -> Candidates:
        """The best `limit` by vector, the best `limit` by words, and what surrounds the best of both."""
        try:
            return await self._search(scope, probe, limit)
        except MissingError:
            return candidates_of([], [], probe, probe.vector, limit, 0)

    async def items(self, scope: Scope, session_uid: str, from_seq: int, to_seq: int) -> Sequence[Item]:
        """Read without vectors, a page at a time."""
        if await self._layout() is None:
            return []
        within = self._filter(scope, touching(session_uid, from_seq, to_seq))
        found: list[Found] = []
        after: Any = None
        while True:
            try:
                points, after = await self._calls.patient(
                    "scroll", scroll_filter=within, limit=_PAGE, offset=after, with_payload=True, with_vectors=False
                )
            except MissingError:
                return []
            found += self._found(scope, points)
            if after is None:
                return [one.item for one in in_order(found)]

    async def remove(self, scope: Scope, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        """Delete by filter: nothing needs to be read, so it also works when the block has lost track."""
        if session_uid is None:
            await self._delete(self._filter(scope))
        elif seqs is None:
            await self._delete(self._filter(scope, equals("session_uid", session_uid)))
        else:
            for some in slices([touching(session_uid, low, high) for low, high in runs_of(seqs)], MOST_CONDITIONS):
                await self._delete(self._filter(scope, should=some))

    async def remove_documents(self, scope: Scope, documents: Sequence[str] | None) -> int:
        """Delete documents by id (None: all)."""
        if documents is None:
            return await self._delete_counted(self._filter(scope, equals("kind", "document")))
        removed = 0
        for some in slices(sorted(set(documents)), MOST_CONDITIONS):
            only = self._filter(scope, equals("kind", "document"), among("document", some))
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
                everything = client_models().FilterSelector(filter=self._filter(scope))
                await self._calls.patient("delete_vectors", vectors=[self.dense_name], points=everything, wait=True)
            await self._prune(scope, keep)
        except MissingError:
            return

    async def _prune(self, scope: Scope, keep: Callable[[Item], bool]) -> None:
        within = self._filter(scope)
        after: Any = None
        while True:
            points, after = await self._calls.patient(
                "scroll", scroll_filter=within, limit=_PAGE, offset=after, with_payload=True, with_vectors=False
            )
            gone = [point.id for point in points if not keep(item_of(point.payload))]
            if gone:
                await self._calls.patient("delete", points_selector=client_models().PointIdsList(points=gone), wait=True)
            if after is None:
                return

    # -- searching -------------------------------------------------------------------------------------------

    async def _search(self, scope: Scope, probe: Probe, limit: int) -> Candidates:
        self._calls.hurry()
        layout = await self._layout(self._calls.quick)
        if layout is None:
            return candidates_of([], [], probe, probe.vector, limit, 0)
        # A block that got its embedder later still finds by words; `add` is where it is told.
        vector = None if layout.dimension is None else probe.vector
        if vector is not None:
            check_dimension(len(vector), layout, self.collection)
        prefetch = self._prefetches(scope, vector, hashed(probe.words), limit)
        if any(erased.session_uid is None for erased in scope.erasing):
            return candidates_of([], [], probe, vector, limit, 0)
        visible = self._filter(scope, must_not=hidden(scope.erasing))
        if not prefetch:
            return candidates_of([], [], probe, vector, limit, await self._count(visible, self._calls.quick))
        models = client_models()
        named = [self.sparse_name] if vector is None else [self.dense_name, self.sparse_name]
        both: tuple[Any, Any] = await asyncio.gather(
            self._calls.quick(
                "query_points",
                prefetch=prefetch,
                query=models.FusionQuery(fusion=models.Fusion.RRF),
                limit=limit * len(prefetch),
                with_payload=True,
                with_vectors=named,
            ),
            self._count(visible, self._calls.quick),
            return_exceptions=True,  # the other call must not go on alone
        )
        for one in both:
            if isinstance(one, BaseException):
                raise one
        answer, total = both
        pool = self._found(scope, answer.points)
        around = await self._around(scope, pool[: self._neighbours_of], named)
        return await asyncio.to_thread(candidates_of, pool, around, probe, vector, limit, total)

    def _prefetches(self, scope: Scope, vector: Vector | None, words: Mapping[int, float], limit: int) -> list[Any]:
        models = client_models()
        if limit < 1:
            return []
        visible = self._filter(scope, must_not=hidden(scope.erasing))
        prefetch = []
        if vector is not None:
            prefetch.append(models.Prefetch(query=numbers_of(vector), using=self.dense_name, filter=visible, limit=limit))
        if words:
            sparse = models.SparseVector(indices=list(words), values=list(words.values()))
            prefetch.append(models.Prefetch(query=sparse, using=self.sparse_name, filter=visible, limit=limit))
        return prefetch

    async def _around(self, scope: Scope, best: Sequence[Found], named: list[str]) -> list[Found]:
        """What was said just before and after the best, in one call."""
        near = near_to([found.item for found in best])
        if not near:
            return []
        visible = self._filter(scope, should=near, must_not=hidden(scope.erasing))
        points, _ = await self._calls.quick(
            "scroll", scroll_filter=visible, limit=_MOST_AROUND, with_payload=True, with_vectors=named
        )
        return self._found(scope, points)

    def _found(self, scope: Scope, points: Iterable[Any]) -> list[Found]:
        return found_in(scope, points, self.dense_name, self.sparse_name)

    # -- the collection --------------------------------------------------------------------------------------

    async def _layout(self, call: Call | None = None) -> CollectionLayout | None:
        """What the collection is made of, None if it does not exist. Readers do not create it."""
        if self._known is None:
            try:
                info = await (call or self._calls.patient)("get_collection")
            except MissingError:
                return None
            self._known = layout_of(info, self.collection, self.dense_name, self.sparse_name)
        return self._known

    def _forget(self) -> None:
        self._known = None

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
            check_dimension(dimension, layout, self.collection)

    async def _make(self, dimension: int | None) -> None:
        models = client_models()
        vectors = {}
        if dimension is not None:
            vectors[self.dense_name] = models.VectorParams(size=dimension, distance=models.Distance.COSINE)
        words = {self.sparse_name: models.SparseVectorParams(modifier=models.Modifier.IDF)}
        try:
            await self._calls.patient("create_collection", **self._create, vectors_config=vectors, sparse_vectors_config=words)
        except BlockUnavailableError:
            raise
        except BlockError:
            # Another process may have been first.
            if await self._layout() is None:
                raise

    async def _index(self, layout: CollectionLayout) -> None:
        """Payload indexes that are missing, also after a crash between the collection and its indexes."""
        options = getattr(self.client, "init_options", {})
        if options.get("location") == ":memory:" or options.get("path") is not None:
            return  # local mode has none, and warns
        models = client_models()
        for key in (*KEYWORDS, *NUMBERS):
            if key in layout.indexed:
                continue
            schema = models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, lookup=True, range=True)
            if key in KEYWORDS:
                tenant = True if key in {"tenant", "scope"} else None
                schema = models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=tenant)
            await self._calls.patient("create_payload_index", field_name=key, field_schema=schema, wait=True)
        self._known = CollectionLayout(layout.dimension, frozenset((*KEYWORDS, *NUMBERS)))

    # -- calls -----------------------------------------------------------------------------------------------

    def _filter(
        self, scope: Scope, *must: Any, should: Sequence[Any] | None = None, must_not: Sequence[Any] | None = None
    ) -> Any:
        """The only place where filters are made: everything else comes on top of the scope."""
        mine = (equals("scope", scope.key), equals("tenant", scope.tenant), equals("block", scope.block))
        return client_models().Filter(
            must=[*mine, *must],
            should=list(should) if should else None,
            must_not=list(must_not) if must_not else None,
        )

    async def _count(self, only: Any, call: Call | None = None) -> int:
        if await self._layout(call) is None:
            return 0
        try:
            answer = await (call or self._calls.patient)("count", count_filter=only, exact=True)
        except MissingError:
            return 0
        return int(answer.count)

    async def _delete(self, only: Any) -> None:
        if await self._layout() is None:
            return
        try:
            await self._calls.patient("delete", points_selector=client_models().FilterSelector(filter=only), wait=True)
        except MissingError:
            return

    async def _delete_counted(self, only: Any) -> int:
        count = await self._count(only)
        if count:
            await self._delete(only)
        return count
