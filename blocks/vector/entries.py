"""Items to entries: with their words and, if there is an embedder, with vectors that know what came before."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from memory_engine.blocks.embedders.protocol import CachedEmbedder
from memory_engine.blocks.vector.erased import last_seq_of
from memory_engine.blocks.vector.store import Entry, Item, Scope, VectorStore, follows
from memory_engine.blocks.vector.transcript import spoken
from memory_engine.blocks.vector.words import Words

T = TypeVar("T")

MOST_PRECEDING = 8
"""So many messages before an item may be embedded with it."""
_TOGETHER = 400
"""So many messages around erased ones are read, embedded and stored together."""
_LONG = 3_000
"""Characters that take more than a millisecond to count and to cut into words."""
_CONTEXT_CHARACTERS = 400
"""Of each message before an item so much is embedded with it: models read a few hundred tokens, the item comes last."""


async def off_loop(characters: int, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Work on so many characters: in another thread when it would hold up the event loop."""
    if characters <= _LONG:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


@dataclass(frozen=True, slots=True)
class Line:
    """Items as they follow one another, and the places of those that entries are made for."""

    items: Sequence[Item]
    places: Sequence[int]


async def entries_of(line: Line, *, words: Words, embedder: CachedEmbedder | None, preceding: int, share: float) -> list[Entry]:
    """Items with their words and vectors; `share` is the share of what precedes."""
    items = [line.items[place] for place in line.places]
    alone = [spoken(item) for item in items]
    counts = await off_loop(sum(map(len, alone)), lambda: [words.count(text) for text in alone])
    if embedder is None:
        return [Entry(item, count) for item, count in zip(items, counts, strict=True)]
    within = [_with_preceding(line.items, place, preceding) for place in line.places]
    # One call for all texts of a flush.
    texts = list(dict.fromkeys([*alone, *within]))
    rows = dict(zip(texts, await embedder.embed(texts), strict=True))
    vectors = [_unit((1 - share) * rows[a] + share * rows[w]) for a, w in zip(alone, within, strict=True)]
    return [Entry(*each) for each in zip(items, counts, vectors, strict=True)]


async def preceding_items(store: VectorStore, scope: Scope, session_uid: str, seq: int) -> Sequence[Item]:
    """The stored items that may be embedded with the one that begins at `seq`."""
    return await store.items(scope, session_uid, max(0, seq - MOST_PRECEDING), seq - 1)


async def followers_of(store: VectorStore, scope: Scope, session_uid: str, seqs: Sequence[int]) -> list[Line]:
    """Items whose vectors were made with an erased message before them, in lines without what is erased.

    What is near to one another is read together, up to `_TOGETHER` messages, and is to be embedded together.
    """
    gone = sorted(set(seqs))
    erased = frozenset(gone)
    lines = []
    for low, high in _near(gone):
        found = await store.items(scope, session_uid, max(0, low - MOST_PRECEDING), high)
        items = [item for item in found if erased.isdisjoint(range(item.seq or 0, last_seq_of(item) + 1))]
        places = [place for place, item in enumerate(items) if low <= (item.seq or 0) and _follows_any(item.seq or 0, gone)]
        if places:
            lines.append(Line(items, places))
    return lines


def _near(gone: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of seqs whose items may have been embedded with an erased message; none is in two of them."""
    ranges: list[tuple[int, int]] = []
    for seq in gone:
        low, high = ranges[-1] if ranges else (0, -1)
        if seq <= high and high - low < _TOGETHER:
            ranges[-1] = (low, seq + MOST_PRECEDING)
        else:
            ranges.append((max(seq, high + 1), seq + MOST_PRECEDING))
    return ranges


def _follows_any(seq: int, gone: Sequence[int]) -> bool:
    """Whether one of these comes at most `MOST_PRECEDING` before that seq."""
    place = bisect_left(gone, seq) - 1
    return place >= 0 and seq - gone[place] <= MOST_PRECEDING


def _with_preceding(line: Sequence[Item], index: int, preceding: int) -> str:
    item = line[index]
    first = index
    while first > max(0, index - preceding) and follows(line[first - 1], line[first]):
        first -= 1
    return "\n".join([*(spoken(other)[:_CONTEXT_CHARACTERS] for other in line[first:index]), spoken(item)])


def _unit(vector: Any) -> Any:
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector
