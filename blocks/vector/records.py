"""The default vector store: items as records in the engine's own database, searched exactly with numpy.

What is stored is committed in the transaction that moves the cursor, so that no item is doubled or missing whatever happens.
For searching, each process keeps the indexes of the scopes it asked last; the versions of records and scopes tell it what
changed since, in this process or another.
"""

from __future__ import annotations

import asyncio
import math
import struct
import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from memory_engine.block import Erased, Record
from memory_engine.blocks.vector.store import GAP, PAUSE, Candidates, Entry, Item, Probe, Scope, Vector
from memory_engine.errors import BlockError

_PREFIX = "item:"
_PAGE = 250
"""Records read at once: few enough that turning them into objects does not hold up the event loop."""
_LONGEST_STEP = 256
"""A step begins at most so many messages before its last one."""
_HEAD = struct.Struct("<BHH")
_FORMAT = 1
_FAR_PAST = datetime.min.replace(tzinfo=UTC)


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
        """Write entries as records of this transaction. Raises `BlockError` for vectors of several dimensions."""
        dimensions = {len(entry.vector) for entry in entries if entry.vector is not None}
        if len(dimensions) == 1:
            dimensions |= await self._dimension(scope)
        if len(dimensions) > 1:
            raise BlockError(
                f"Block {scope.block!r} has vectors of dimension {min(dimensions)} and {max(dimensions)}. After a change of "
                "the embedding model call `rebuild()` on the bound block."
            )
        for entry in entries:
            item = entry.item
            scope.records.put(
                _record_key(item),
                _data_of(item),
                blob=_pack(entry.words, entry.vector),
                seq=item.seq,
                session_uid=item.session_uid,
                shared=item.session_uid is None,
            )

    async def search(self, scope: Scope, probe: Probe, *, limit: int) -> Candidates:
        """Every item of the scope, scored exactly; `limit` is not needed."""
        # What is written but not committed is seen by this call alone, so it must not get into what all share.
        index = await self._index(scope) if not scope.records.written else await self._uncommitted(scope)
        return await asyncio.to_thread(index.search, probe, scope.erasing)

    async def items(self, scope: Scope, session_uid: str, from_seq: int, to_seq: int) -> Sequence[Item]:
        """The items that contain one of these messages, in order."""
        found = await self._between(scope, session_uid, from_seq, to_seq)
        return [item for item in found if not _is_erased(item, _by_session(scope.erasing))]

    async def _between(self, scope: Scope, session_uid: str, from_seq: int, to_seq: int) -> list[Item]:
        """The same, with what is being erased."""
        prefix = f"{_PREFIX}{session_uid}:"
        after = f"{prefix}{max(0, from_seq - _LONGEST_STEP):016d}"
        found: list[Item] = []
        while page := await scope.records.list(prefix, after_key=after, limit=_PAGE):
            after = page[-1].key
            items = [_item_of(record) for record in page]
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
                    if place < len(some) and some[place] <= _last_seq(item):
                        scope.records.delete(_record_key(item))
            return
        prefix = _PREFIX if session_uid is None else f"{_PREFIX}{session_uid}:"
        async for page in scope.records.pages(prefix, size=_PAGE):
            for record in page:
                scope.records.delete(record.key)

    async def remove_documents(self, scope: Scope, documents: Sequence[str] | None) -> int:
        """Delete the records of these documents' passages."""
        keys: list[str] = []
        for document in [None] if documents is None else list(dict.fromkeys(documents)):
            prefix = "" if document is None else f"{document}:"
            async for page in scope.records.pages(f"{_PREFIX}document:{prefix}", size=_PAGE):
                # The id "a" is also the beginning of "a:b".
                keys += [record.key for record in page if document is None or record.data["document"] == document]
        # Not earlier, because each page is compared with all that was written.
        for key in keys:
            scope.records.delete(key)
        return len(keys)

    async def renew(self, scope: Scope, *, dimension: int | None, same_model: bool, keep: Callable[[Item], bool]) -> None:
        """Write the items again without their vectors if another model makes the next ones; any dimension fits then.

        Nothing can have come back that was erased: the items are in the backups of the messages.
        """
        if same_model:
            return
        # Read before anything is written, because each page is compared with all that was written.
        records = [record async for page in _pages(scope) for record in page]
        for index, record in enumerate(records):
            shared = record.session_uid is None
            blob = _without_vector(record.blob or _NO_BLOB)
            scope.records.put(record.key, record.data, blob=blob, seq=record.seq, session_uid=record.session_uid, shared=shared)
            if index % _PAGE == _PAGE - 1:
                await asyncio.sleep(0)

    async def count(self, scope: Scope) -> int:
        """How many items the scope holds, by its index."""
        if scope.records.written:
            return sum([len(page) async for page in scope.records.pages(_PREFIX, size=_PAGE)])
        return len(await self._index(scope))

    # -- indexes ---------------------------------------------------------------------------------------------

    async def _dimension(self, scope: Scope) -> set[int]:
        """The dimension of what is stored; usually the first item tells it."""
        # What this transaction wrote was compared with what is stored already; reading takes longer the more it wrote.
        for key, written in scope.records.written.items():
            if (
                written is not None
                and key.startswith(_PREFIX)
                and (dimension := _HEAD.unpack_from(written.blob or _NO_BLOB)[2])
            ):
                return {dimension}
        after: str | None = None
        size = 1
        while page := await scope.records.list(_PREFIX, after_key=after, limit=size):
            for record in page:
                if dimension := _HEAD.unpack_from(record.blob or _NO_BLOB)[2]:
                    return {dimension}
            after, size = page[-1].key, _PAGE
        return set()

    async def _index(self, scope: Scope) -> _Index:
        cache = self._caches.setdefault(scope.records.database, _Cache(self._cache_bytes))
        index = cache.get((scope.key, scope.block))
        # Version 0: nothing was ever stored here, or the user or tenant was deleted.
        if index is None or index.worn or scope.deleted_version > index.version or not scope.version:
            index = _Index()
        if scope.version > index.version:
            # Page by page: the records of a large scope in memory at once would keep the garbage collector busy.
            async for page in _pages(scope, changed_since=index.version or None):
                await asyncio.to_thread(index.take, page)
            index.reach(scope.version)
        cache.keep((scope.key, scope.block), index)
        return index

    async def _uncommitted(self, scope: Scope) -> _Index:
        """An index for one call, of the records as this transaction sees them."""
        index = _Index()
        async for page in _pages(scope):
            await asyncio.to_thread(index.take, page)
        index.reach(scope.version)
        return index


async def _pages(scope: Scope, changed_since: int | None = None) -> AsyncIterator[list[Record]]:
    after: str | None = None
    while page := await scope.records.list(_PREFIX, changed_since=changed_since, after_key=after, limit=_PAGE):
        after = page[-1].key
        last = len(page) < _PAGE
        yield page
        if last:
            break


class _Cache:
    """The indexes of one database that were used last, up to a number of bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._indexes: OrderedDict[tuple[str, str], _Index] = OrderedDict()

    def get(self, pair: tuple[str, str]) -> _Index | None:
        return self._indexes.get(pair)

    def keep(self, pair: tuple[str, str], index: _Index) -> None:
        current = self._indexes.get(pair)
        if current is None or current.version <= index.version or not index.version:
            self._indexes[pair] = index
        self._indexes.move_to_end(pair)
        total = sum(kept.bytes for kept in self._indexes.values())
        while total > self._limit and self._indexes:
            _, dropped = self._indexes.popitem(last=False)
            total -= dropped.bytes


class _Index:
    """The items of one scope in memory: postings, lengths and vectors, by row; a replaced item gets a new row."""

    def __init__(self) -> None:
        self.version = 0
        self.bytes = 0
        self._lock = threading.Lock()
        self._items: list[Item] = []
        self._row_of: dict[str, int] = {}
        self._dead = bytearray()
        self._has_vector = bytearray()
        self._lengths = array("f")
        self._places = _Places()
        self._postings = _Postings()
        self._vectors: NDArray[np.float32] | None = None
        self._with_vectors = 0
        self._arranged: _Arranged | None = None

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def worn(self) -> bool:
        """Whether most of it is what was replaced since, as after a rebuild."""
        return len(self._items) > 1_000 + 2 * len(self._row_of)

    def take(self, records: Sequence[Record]) -> None:
        """Take records in. Taking one in twice is harmless, so that two readers may bring the same ones."""
        with self._lock:
            for record in records:
                if record.version > self.version or not self.version:
                    self._take(record)

    def reach(self, version: int) -> None:
        """Everything up to that version is in."""
        with self._lock:
            self.version = max(self.version, version)

    def _take(self, record: Record) -> None:
        item = _item_of(record)
        words, counts, vector = _unpack(record.blob or _NO_BLOB)
        row = len(self._items)
        before = self._row_of.get(item.key)
        if before is not None:
            self._dead[before] = 1
            self._with_vectors -= self._has_vector[before]
        self._row_of[item.key] = row
        self._items.append(item)
        self._dead.append(0)
        self._has_vector.append(0)
        self._places.add(item)
        self._lengths.append(float(counts.sum()))
        self._postings.add(row, words, counts)
        self._keep_vector(row, vector)
        self._arranged = None
        self.bytes += 400 + 2 * len(item.text) + 8 * len(words) + 4 * len(vector)

    def _keep_vector(self, row: int, vector: NDArray[np.float32]) -> None:
        if not len(vector):
            return
        if self._vectors is None or self._vectors.shape[1] != len(vector):
            # Another dimension is another model: what older vectors said cannot be compared with it.
            self._vectors = np.zeros((max(64, row + 1), len(vector)), dtype=np.float32)
            self._with_vectors = 0
            self._has_vector = bytearray(row + 1)
        if row >= len(self._vectors):
            grown = np.zeros((max(2 * len(self._vectors), row + 1), len(vector)), dtype=np.float32)
            grown[: len(self._vectors)] = self._vectors
            self._vectors = grown
        self._vectors[row] = vector
        self._has_vector[row] = 1
        self._with_vectors += 1

    def search(self, probe: Probe, erasing: tuple[Erased, ...]) -> Candidates:
        """Everything there is, with what it is scored by."""
        with self._lock:
            if self._arranged is None:
                self._arranged = _Arranged(self._items, self._dead, self._lengths, self._places)
            arranged = self._arranged
            size = len(arranged.items)
            counts = np.zeros((size, len(probe.words)), dtype=np.float32)
            for column, word in enumerate(probe.words):
                rows, numbers = self._postings.of(_hash(word))
                places = arranged.place_of[rows]
                alive = places >= 0
                counts[places[alive], column] = numbers[alive]
            dense = self._similar(probe.vector, arranged)
        found = Candidates(
            items=arranged.items,
            counts=counts,
            lengths=arranged.lengths,
            frequency=np.count_nonzero(counts, axis=0).astype(np.float32),
            average_length=float(arranged.lengths.mean()) if size else 0.0,
            dense=dense,
            follows=arranged.follows,
            total=size,
        )
        return _without(found, arranged.order, erasing) if erasing else found

    def _similar(self, vector: Vector | None, arranged: _Arranged) -> NDArray[np.float32] | None:
        if vector is None or self._vectors is None or not self._with_vectors:
            return None
        wanted = _unit(vector)
        if len(wanted) != self._vectors.shape[1]:
            raise BlockError(
                f"The query has a vector of dimension {len(wanted)}, the items have {self._vectors.shape[1]}. After a change "
                "of the embedding model call `rebuild()` on the bound block."
            )
        known = self._vectors[: len(self._items)]
        scores = known @ wanted
        if len(scores) < len(self._items):
            # The newest items have no vector, so that the table was not lengthened for them.
            scores = np.concatenate([scores, np.zeros(len(self._items) - len(scores), dtype=np.float32)])
        similar: NDArray[np.float32] = scores[arranged.rows]
        return similar


class _Postings:
    """Which rows contain a word, and how often: sorted by word, and what came since then beside it."""

    def __init__(self) -> None:
        self._sorted = _Occurrences.of([])
        self._recent = _Occurrences.of([])
        self._added: list[tuple[int, NDArray[np.uint32], NDArray[np.uint16]]] = []

    def add(self, row: int, words: NDArray[np.uint32], counts: NDArray[np.uint16]) -> None:
        """The words of one more row."""
        self._added.append((row, words, counts))

    def of(self, word: int) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """Rows and counts of a word."""
        if self._added:
            self._recent = self._recent.and_(_Occurrences.of(self._added))
            self._added = []
            if len(self._recent.words) > 1_000 + len(self._sorted.words) // 4:
                self._sorted = self._sorted.and_(self._recent).in_order()
                self._recent = _Occurrences.of([])
        low, high = np.searchsorted(self._sorted.words, [word, word + 1])
        recent = self._recent.words == word
        rows = np.concatenate([self._sorted.rows[low:high], self._recent.rows[recent]])
        return rows, np.concatenate([self._sorted.counts[low:high], self._recent.counts[recent]])


@dataclass(frozen=True, slots=True)
class _Occurrences:
    """Words, the rows that they are in, and how often: parallel arrays."""

    words: NDArray[np.int64]
    rows: NDArray[np.int64]
    counts: NDArray[np.uint16]

    @classmethod
    def of(cls, added: Sequence[tuple[int, NDArray[np.uint32], NDArray[np.uint16]]]) -> _Occurrences:
        rows = np.repeat([row for row, _, _ in added], [len(words) for _, words, _ in added]).astype(np.int64)
        words = np.concatenate([np.empty(0, dtype=np.uint32), *(words for _, words, _ in added)])
        counts = np.concatenate([np.empty(0, dtype=np.uint16), *(counts for _, _, counts in added)])
        return cls(words.astype(np.int64), rows, counts)

    def and_(self, other: _Occurrences) -> _Occurrences:
        words, rows = np.concatenate([self.words, other.words]), np.concatenate([self.rows, other.rows])
        return _Occurrences(words, rows, np.concatenate([self.counts, other.counts]))

    def in_order(self) -> _Occurrences:
        order = np.argsort(self.words, kind="stable")
        return _Occurrences(self.words[order], self.rows[order], self.counts[order])


class _Arranged:
    """The rows of an index in the order of their conversations."""

    def __init__(self, items: list[Item], dead: bytearray, lengths: array[float], places: _Places) -> None:
        self.rows, self.order = places.ordered(np.frombuffer(bytes(dead), dtype=np.uint8) == 0)
        self.items = [items[row] for row in self.rows.tolist()]
        self.lengths = np.array(lengths, dtype=np.float32)[self.rows]
        self.place_of = np.full(len(items), -1, dtype=np.int64)
        self.place_of[self.rows] = np.arange(len(self.rows))
        self.follows = self.order.follows()


class _Places:
    """Where each row of an index stands, as numbers, so that tens of thousands are put in order in no time."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], int] = {}
        self._began: list[float] = []
        self._run, self._seq, self._last, self._part = array("q"), array("q"), array("q"), array("q")
        self._at = array("d")

    def add(self, item: Item) -> None:
        """The place of one more row."""
        name = (item.kind, (item.document if item.kind == "document" else item.session_uid) or "")
        run = self._runs.setdefault(name, len(self._runs))
        at = item.at.timestamp() if item.at is not None else math.nan
        if run == len(self._began):
            self._began.append(math.inf)
        if not at >= self._began[run]:
            self._began[run] = -math.inf if math.isnan(at) else at
        self._run.append(run)
        # Passages of a document are those of one message, as it were.
        self._seq.append(item.seq or 0)
        self._last.append(_last_seq(item))
        self._part.append(item.part)
        self._at.append(at)

    def ordered(self, alive: NDArray[np.bool_]) -> tuple[NDArray[np.int64], _Order]:
        """The rows that are alive: conversations by the time at which they began, then documents by their id."""
        rows = np.flatnonzero(alive)
        names = sorted(self._runs, key=lambda name: (name[0] == "document", self._began[self._runs[name]], name[1]))
        rank = np.zeros(len(names), dtype=np.int64)
        rank[[self._runs[name] for name in names]] = np.arange(len(names))
        # Copies: an array that numpy looks into cannot grow.
        run = rank[np.array(self._run, dtype=np.int64)[rows]]
        numbers = [np.array(each)[rows] for each in (self._seq, self._last, self._part, self._at)]
        order = np.lexsort((numbers[2], numbers[0], run))
        return rows[order], _Order(run[order], *(each[order] for each in numbers))


@dataclass(frozen=True, slots=True)
class _Order:
    """Where items stand, as arrays: `run` numbers conversations and documents, the others are as in `Item`."""

    run: NDArray[np.int64]
    seq: NDArray[np.int64]
    last: NDArray[np.int64]
    part: NDArray[np.int64]
    at: NDArray[np.float64]

    def only(self, keep: NDArray[np.bool_]) -> _Order:
        return _Order(self.run[keep], self.seq[keep], self.last[keep], self.part[keep], self.at[keep])

    def follows(self) -> NDArray[np.bool_]:
        """The function `follows` of all items at once."""
        result = np.zeros(len(self.run), dtype=np.bool_)
        next_part = (self.seq[1:] == self.seq[:-1]) & (self.part[1:] == self.part[:-1] + 1)
        next_message = (self.seq[1:] > self.seq[:-1]) & (self.seq[1:] - self.last[:-1] <= GAP)
        # A time that is missing is no pause.
        paused = np.abs(self.at[1:] - self.at[:-1]) > PAUSE
        result[1:] = (self.run[1:] == self.run[:-1]) & (next_part | (next_message & ~paused))
        return result


def _without(found: Candidates, order: _Order, erasing: tuple[Erased, ...]) -> Candidates:
    erased = _by_session(erasing)
    keep = np.array([not _is_erased(item, erased) for item in found.items], dtype=np.bool_)
    return replace(
        found,
        items=[item for item, kept in zip(found.items, keep.tolist(), strict=True) if kept],
        counts=found.counts[keep],
        lengths=found.lengths[keep],
        dense=None if found.dense is None else found.dense[keep],
        follows=order.only(keep).follows(),
    )


_Erasing = Mapping[str | None, frozenset[int] | None]


def _by_session(erasing: tuple[Erased, ...]) -> _Erasing:
    """What is being erased of each session, None: all of it; of session None: everything."""
    result: dict[str | None, frozenset[int] | None] = {}
    for erased in erasing:
        before = result.get(erased.session_uid, frozenset())
        whole = before is None or erased.seqs is None or erased.session_uid is None
        result[erased.session_uid] = None if whole else before.union(erased.seqs)  # type: ignore[union-attr, arg-type]
    return result


def _is_erased(item: Item, erasing: _Erasing) -> bool:
    if None in erasing:
        return True
    if item.seq is None or item.session_uid not in erasing:
        return False
    seqs = erasing[item.session_uid]
    return seqs is None or not seqs.isdisjoint(range(item.seq, _last_seq(item) + 1))


def _last_seq(item: Item) -> int:
    last = item.seq if item.last_seq is None else item.last_seq
    return 0 if last is None else last


def _overlaps(item: Item, from_seq: int, to_seq: int) -> bool:
    return item.seq is not None and item.seq <= to_seq and _last_seq(item) >= from_seq


# -- items and records ---------------------------------------------------------------------------------------------


def _record_key(item: Item) -> str:
    """Where an item stands: records are listed in the order of their keys."""
    if item.seq is None:
        return f"{_PREFIX}document:{item.document}:{item.part:06d}"
    return f"{_PREFIX}{item.session_uid}:{item.seq:016d}:{item.part:04d}"


def _data_of(item: Item) -> dict[str, Any]:
    data: dict[str, Any] = {"text": item.text, "role": item.role, "tokens": item.tokens}
    optional = {
        "key": None if _PREFIX + item.key == _record_key(item) else item.key,
        "kind": None if item.kind == "message" else item.kind,
        "name": item.name,
        "at": item.at.isoformat() if item.at else None,
        "session_id": item.session_id,
        "last_seq": item.last_seq,
        "part": item.part or None,
        "document": item.document,
        "metadata": dict(item.metadata) or None,
    }
    return data | {name: value for name, value in optional.items() if value is not None}


def _item_of(record: Record) -> Item:
    data: Mapping[str, Any] = record.data
    document = data.get("document")
    at = data.get("at")
    return Item(
        key=data.get("key") or record.key.removeprefix(_PREFIX),
        text=data["text"],
        kind=data.get("kind", "message"),
        role=data["role"],
        name=data.get("name"),
        at=None if at is None else datetime.fromisoformat(at),
        session_uid=None if document is not None else record.session_uid,
        session_id=data.get("session_id"),
        seq=record.seq,
        last_seq=data.get("last_seq"),
        part=data.get("part", 0),
        tokens=data["tokens"],
        document=document,
        metadata=data.get("metadata") or _NOTHING,
    )


@lru_cache(maxsize=65_536)
def _hash(word: str) -> int:
    """A word as 32 bits: among the words of one scope, two that share a number are too rare to matter."""
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "little")


def _pack(words: Mapping[str, int], vector: Vector | None) -> bytes:
    """Format, number of words, dimension; the words as 32-bit hashes, their counts, the vector in half precision."""
    hashes = np.fromiter((_hash(word) for word in words), dtype="<u4", count=len(words))[:65_535]
    counts = np.minimum(np.fromiter(words.values(), dtype=np.int64, count=len(words)), 65_535).astype("<u2")[:65_535]
    # Half precision holds the numbers of a vector of length 1, not those of any vector.
    numbers = np.asarray([], dtype="<f2") if vector is None else _unit(vector).astype("<f2")
    return _HEAD.pack(_FORMAT, len(hashes), len(numbers)) + hashes.tobytes() + counts.tobytes() + numbers.tobytes()


def _unit(vector: Vector) -> NDArray[np.float32]:
    exact = np.asarray(vector, dtype=np.float64)
    length = float(np.linalg.norm(exact))
    result: NDArray[np.float32] = (exact / length if length else exact).astype(np.float32)
    return result


_NOTHING: Mapping[str, Any] = MappingProxyType({})
"""Shared by the items without metadata: of most scopes, all of them."""
_NO_BLOB = _HEAD.pack(_FORMAT, 0, 0)


def _without_vector(blob: bytes) -> bytes:
    form, words, _ = _HEAD.unpack_from(blob)
    return _HEAD.pack(form, words, 0) + blob[_HEAD.size : _HEAD.size + 6 * words]


def _unpack(blob: bytes) -> tuple[NDArray[np.uint32], NDArray[np.uint16], NDArray[np.float32]]:
    form, words, dimension = _HEAD.unpack_from(blob)
    if form != _FORMAT:
        raise BlockError(f"An item was stored in format {form} of a newer version; update this package.")
    start = _HEAD.size
    hashes = np.frombuffer(blob, dtype="<u4", count=words, offset=start)
    counts = np.frombuffer(blob, dtype="<u2", count=words, offset=start + 4 * words)
    vector = np.frombuffer(blob, dtype="<f2", count=dimension, offset=start + 6 * words)
    return hashes, counts, vector.astype(np.float32)
