"""The items of one scope in memory: found by word and by vector, exactly, and put in the order of their conversations."""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memory_engine.block import Erased, Record
from memory_engine.blocks.embedders.protocol import DimensionError
from memory_engine.blocks.vector.erased import by_session, is_erased, last_seq_of
from memory_engine.blocks.vector.rows import NO_BLOB, hash_of, item_of, unit, unpack
from memory_engine.blocks.vector.store import GAP, PAUSE, Candidates, Item, Probe, Vector


class Index:
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
        item = item_of(record)
        words, counts, vector = unpack(record.blob or NO_BLOB)
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
                rows, numbers = self._postings.of(hash_of(word))
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
        wanted = unit(vector)
        if len(wanted) != self._vectors.shape[1]:
            raise DimensionError(
                f"The query has a vector of dimension {len(wanted)}, the items have {self._vectors.shape[1]}. After a change "
                "of the embedding model give it an `identity` of its own and call `rebuild()` on the bound block."
            )
        known = self._vectors[: len(self._items)]
        # Not `@`: its threads wait for one another, three times as long as this takes where the cores are busy.
        scores = np.einsum("ij,j->i", known, wanted)
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
        self._last.append(last_seq_of(item))
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
    erased = by_session(erasing)
    keep = np.array([not is_erased(item, erased) for item in found.items], dtype=np.bool_)
    counts, lengths = found.counts[keep], found.lengths[keep]
    return replace(
        found,
        items=[item for item, kept in zip(found.items, keep.tolist(), strict=True) if kept],
        counts=counts,
        lengths=lengths,
        frequency=np.count_nonzero(counts, axis=0).astype(np.float32),
        average_length=float(lengths.mean()) if len(lengths) else 0.0,
        total=len(lengths),
        dense=None if found.dense is None else found.dense[keep],
        follows=order.only(keep).follows(),
    )
