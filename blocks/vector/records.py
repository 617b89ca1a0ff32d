"""The default vector store: items as records in the engine's own database, searched exactly with numpy.

What is stored is committed in the transaction that moves the cursor, so that no item is doubled or missing whatever happens.
For searching, each process keeps the indexes of the scopes it asked last; the versions of records and scopes tell it what
changed since, in this process or another.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from memory_engine.block import Record
from memory_engine.blocks.embedders.protocol import DimensionError
from memory_engine.blocks.vector.erased import by_session, is_erased, last_seq_of
from memory_engine.blocks.vector.index import Index
from memory_engine.blocks.vector.rows import NO_BLOB, PREFIX, data_of, dimension_of, item_of, pack, record_key, without_vector
from memory_engine.blocks.vector.store import Candidates, Entry, Item, Probe, Scope
from memory_engine.errors import BlockError

_SMALL = 2_000
"""Up to so many items are searched on the event loop, in less time than a thread would take to begin."""
_PAGE = 250
"""Records read at once: few enough that turning them into objects does not hold up the event loop."""
_WRITTEN = 20
"""Records written before the event loop may do something else."""
_LONGEST_STEP = 256
"""A step begins at most so many messages before its last one."""


class RecordsVectorStore:
    """Items as the records of their block, in the database of the memory itself; nothing to set up.

    `cache_bytes` bounds what one process keeps of the scopes it searched last (about 0.4 kB for an item without a vector,
    plus its text, plus 4 bytes for each number of its vector).
    """

    def __init__(self, *, cache_bytes: int = 256_000_000) -> None:
        self._cache_bytes = cache_bytes
        # One store object may serve engines on several databases, whose scopes may have the same keys.
        self._caches: WeakKeyDictionary[object, _Cache] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return "RecordsVectorStore()"

    async def add(self, scope: Scope, entries: Sequence[Entry]) -> None:
        """Write entries as records of this transaction. Raises `DimensionError` for vectors of several dimensions."""
        dimensions = {len(entry.vector) for entry in entries if entry.vector is not None}
        if len(dimensions) == 1:
            dimensions |= await self._dimension(scope)
        if len(dimensions) > 1:
            raise DimensionError(
                f"Block {scope.block!r} has vectors of dimension {min(dimensions)} and {max(dimensions)}. After a change of "
                "the embedding model give it an `identity` of its own and call `rebuild()` on the bound block."
            )
        packed = await asyncio.to_thread(_packed, entries) if len(entries) > _WRITTEN else _packed(entries)
        for number, (entry, blob) in enumerate(zip(entries, packed, strict=True), start=1):
            if number % _WRITTEN == 0:
                await asyncio.sleep(0)
            item = entry.item
            scope.records.put(
                record_key(item),
                data_of(item),
                blob=blob,
                seq=item.seq,
                session_uid=item.session_uid,
                shared=item.session_uid is None,
            )

    async def search(self, scope: Scope, probe: Probe, *, limit: int) -> Candidates:
        """Every item of the scope, scored exactly; `limit` is not needed."""
        # What is written but not committed is seen by this call alone, so it must not get into what all share.
        index = await self._index(scope) if not scope.records.written else await self._uncommitted(scope)
        if len(index) <= _SMALL:
            return index.search(probe, scope.erasing)
        return await asyncio.to_thread(index.search, probe, scope.erasing)

    async def items(self, scope: Scope, session_uid: str, from_seq: int, to_seq: int) -> Sequence[Item]:
        """The items that contain one of these messages, in order."""
        found, erasing = await self._between(scope, session_uid, from_seq, to_seq), by_session(scope.erasing)
        return [item for item in found if not is_erased(item, erasing)]

    async def _between(self, scope: Scope, session_uid: str, from_seq: int, to_seq: int) -> list[Item]:
        """The same, with what is being erased."""
        prefix = f"{PREFIX}{session_uid}:"
        after = f"{prefix}{max(0, from_seq - _LONGEST_STEP):016d}"
        found: list[Item] = []
        while page := await scope.records.list(prefix, after_key=after, limit=_PAGE):
            after = page[-1].key
            items = [item_of(record) for record in page]
            found += [item for item in items if _overlaps(item, from_seq, to_seq)]
            if (items[-1].seq or 0) > to_seq:
                break
        return found

    async def remove(self, scope: Scope, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        """Delete the records of these items."""
        if session_uid is not None and seqs is not None:
            erased = sorted(set(seqs))
            for start in range(0, len(erased), _PAGE):
                some = erased[start : start + _PAGE]
                for item in await self._between(scope, session_uid, some[0], some[-1]):
                    place = bisect_left(some, item.seq or 0)
                    if place < len(some) and some[place] <= last_seq_of(item):
                        scope.records.delete(record_key(item))
            return
        prefix = PREFIX if session_uid is None else f"{PREFIX}{session_uid}:"
        async for page in scope.records.pages(prefix, size=_PAGE):
            for record in page:
                scope.records.delete(record.key)

    async def remove_documents(self, scope: Scope, documents: Sequence[str] | None) -> int:
        """Delete the records of these documents' passages."""
        keys: list[str] = []
        for document in [None] if documents is None else list(dict.fromkeys(documents)):
            prefix = "" if document is None else f"{document}:"
            async for page in scope.records.pages(f"{PREFIX}document:{prefix}", size=_PAGE):
                # The id "a" is also the beginning of "a:b".
                keys += [record.key for record in page if document is None or record.data["document"] == document]
        # Not earlier, because each page is compared with all that was written.
        for key in keys:
            scope.records.delete(key)
        return len(keys)

    async def renew(self, scope: Scope, *, dimension: int | None, same_model: bool, keep: Callable[[Item], bool]) -> None:
        """Write the items again without their vectors if another model makes the next ones; any dimension fits then."""
        stored = await self._dimension(scope) if same_model and dimension is not None else set()
        if stored and dimension not in stored:
            raise BlockError(
                f"Block {scope.block!r} has vectors of dimension {min(stored)}, now its embed_model makes {dimension} under "
                "the same name. Give the embedder an `identity` of its own, then call `rebuild()` again."
            )
        # Read before anything is written, because each page is compared with all that was written.
        records = [record async for page in _pages(scope) for record in page]
        for index, record in enumerate(records):
            if not keep(item_of(record)):
                scope.records.delete(record.key)
            elif not same_model:
                _write_without_vector(scope, record)
            if index % _PAGE == _PAGE - 1:
                await asyncio.sleep(0)

    async def count(self, scope: Scope) -> int:
        """How many items the scope holds, by its index."""
        if scope.records.written:
            return sum([len(page) async for page in scope.records.pages(PREFIX, size=_PAGE)])
        return len(await self._index(scope))

    # -- indexes ---------------------------------------------------------------------------------------------

    async def _dimension(self, scope: Scope) -> set[int]:
        """The dimension of what is stored; usually the first item tells it."""
        # What this transaction wrote was compared with what is stored already; reading takes longer the more it wrote.
        for key, written in scope.records.written.items():
            if written is not None and key.startswith(PREFIX) and (dimension := dimension_of(written.blob)):
                return {dimension}
        after: str | None = None
        size = 1
        while page := await scope.records.list(PREFIX, after_key=after, limit=size):
            for record in page:
                if dimension := dimension_of(record.blob):
                    return {dimension}
            after, size = page[-1].key, _PAGE
        return set()

    async def _index(self, scope: Scope) -> Index:
        cache = self._caches.setdefault(scope.records.database, _Cache(self._cache_bytes))
        pair = (scope.key, scope.block)
        index = cache.get(pair)
        # Version 0: nothing was ever stored here, or the user or tenant was deleted.
        if index is None or index.worn or scope.deleted_version > index.version or not scope.version:
            index = Index()
        while scope.version > index.version:
            # One reader for all who ask, which goes on when they cannot wait: else a scope that takes longer to read than a
            # `get` may take would be read for ever and never be there.
            index = await asyncio.shield(cache.reading(pair, partial(_read, index, scope)))
            if scope.deleted_version > index.version:
                index = Index()  # it was begun before something was deleted
        cache.keep(pair, index)
        return index

    async def _uncommitted(self, scope: Scope) -> Index:
        """An index for one call, of the records as this transaction sees them."""
        index = Index()
        async for page in _pages(scope):
            await asyncio.to_thread(index.take, page)
        index.reach(scope.version)
        return index


def _packed(entries: Sequence[Entry]) -> list[bytes]:
    return [pack(entry.words, entry.vector) for entry in entries]


async def _pages(scope: Scope, changed_since: int | None = None) -> AsyncIterator[list[Record]]:
    after: str | None = None
    while page := await scope.records.list(PREFIX, changed_since=changed_since, after_key=after, limit=_PAGE):
        after = page[-1].key
        last = len(page) < _PAGE
        yield page
        if last:
            break


async def _read(index: Index, scope: Scope) -> Index:
    """The index with everything that changed since."""
    # Page by page: the records of a large scope in memory at once would keep the garbage collector busy.
    async for page in _pages(scope, changed_since=index.version or None):
        await asyncio.to_thread(index.take, page)
    index.reach(scope.version)
    return index


class _Cache:
    """The indexes of one database that were used last, up to a number of bytes, and those that are being read."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._indexes: OrderedDict[tuple[str, str], Index] = OrderedDict()
        self._readers: dict[tuple[str, str], asyncio.Task[Index]] = {}

    def reading(self, pair: tuple[str, str], read: Callable[[], Coroutine[Any, Any, Index]]) -> asyncio.Task[Index]:
        """The task that reads that index and keeps it: the one that is at it, or a new one."""
        reader = self._readers.get(pair)
        if reader is None:
            reader = self._readers[pair] = asyncio.create_task(read())
            reader.add_done_callback(partial(self._was_read, pair))
        return reader

    def _was_read(self, pair: tuple[str, str], reader: asyncio.Task[Index]) -> None:
        del self._readers[pair]
        # Whoever waits gets the error; when nobody does any more, the next one to ask begins anew.
        if not reader.cancelled() and reader.exception() is None:
            self.keep(pair, reader.result())

    def get(self, pair: tuple[str, str]) -> Index | None:
        return self._indexes.get(pair)

    def keep(self, pair: tuple[str, str], index: Index) -> None:
        current = self._indexes.get(pair)
        if current is None or current.version <= index.version or not index.version:
            self._indexes[pair] = index
        self._indexes.move_to_end(pair)
        total = sum(kept.bytes for kept in self._indexes.values())
        # The one in use stays, or a scope larger than the limit would be read anew for every query.
        while total > self._limit and len(self._indexes) > 1:
            _, dropped = self._indexes.popitem(last=False)
            total -= dropped.bytes


def _write_without_vector(scope: Scope, record: Record) -> None:
    shared = record.session_uid is None
    blob = without_vector(record.blob or NO_BLOB)
    scope.records.put(record.key, record.data, blob=blob, seq=record.seq, session_uid=record.session_uid, shared=shared)


def _overlaps(item: Item, from_seq: int, to_seq: int) -> bool:
    return item.seq is not None and item.seq <= to_seq and last_seq_of(item) >= from_seq
