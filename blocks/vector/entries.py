"""Items to entries: with their words and, if there is an embedder, with vectors that know what came before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from memory_engine.blocks.embedders.protocol import CachedEmbedder
from memory_engine.blocks.vector.store import Entry, Item, Scope, VectorStore, follows
from memory_engine.blocks.vector.transcript import spoken
from memory_engine.blocks.vector.words import Words

T = TypeVar("T")

MOST_PRECEDING = 8
"""So many messages before an item may be embedded with it."""
_LONG = 10_000
"""Characters that take some milliseconds to count and to cut into words."""
_CONTEXT_CHARACTERS = 400
"""Of each message before an item so much is embedded with it: models read a few hundred tokens, the item comes last."""


async def off_loop(characters: int, work: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Work on so many characters: in another thread when it would hold up the event loop."""
    if characters <= _LONG:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


async def entries_of(
    items: Sequence[Item],
    before: Sequence[Item],
    *,
    words: Words,
    embedder: CachedEmbedder | None,
    preceding: int,
    share: float,
) -> list[Entry]:
    """Items with their words and vectors; `before` are those that precede the first, `share` is that of what precedes."""
    alone = [spoken(item) for item in items]
    counts = await off_loop(sum(map(len, alone)), lambda: [words.count(text) for text in alone])
    if embedder is None:
        return [Entry(item, count) for item, count in zip(items, counts, strict=True)]
    line = [*before, *items]
    within = [_with_preceding(line, index, preceding) for index in range(len(before), len(line))]
    # One call for all texts of a flush.
    texts = list(dict.fromkeys([*alone, *within]))
    rows = dict(zip(texts, await embedder.embed(texts), strict=True))
    vectors = [_unit((1 - share) * rows[a] + share * rows[w]) for a, w in zip(alone, within, strict=True)]
    return [Entry(*each) for each in zip(items, counts, vectors, strict=True)]


async def preceding_items(store: VectorStore, scope: Scope, session_uid: str, seq: int) -> Sequence[Item]:
    """The stored items that may be embedded with the one that begins at `seq`."""
    return await store.items(scope, session_uid, max(0, seq - MOST_PRECEDING), seq - 1)


async def followers_of(
    store: VectorStore, scope: Scope, session_uid: str, seqs: Sequence[int], preceding: int
) -> list[tuple[Item, list[Item]]]:
    """Items whose vectors were made with an erased message before them, and what precedes them without it."""
    gone, found = set(seqs), {}
    for seq in sorted(gone):
        for item in await store.items(scope, session_uid, max(0, seq - MOST_PRECEDING), seq + MOST_PRECEDING):
            found[item.key] = item
    line = [item for key, item in sorted(found.items()) if gone.isdisjoint(range(item.seq or 0, (item.last_seq or 0) + 1))]
    touched = []
    for index, item in enumerate(line):
        if any(0 < (item.seq or 0) - seq <= MOST_PRECEDING for seq in gone):
            touched.append((item, line[max(0, index - preceding) : index]))
    return touched


def _with_preceding(line: Sequence[Item], index: int, preceding: int) -> str:
    item = line[index]
    first = index
    while first > max(0, index - preceding) and follows(line[first - 1], line[first]):
        first -= 1
    return "\n".join([*(spoken(other)[:_CONTEXT_CHARACTERS] for other in line[first:index]), spoken(item)])


def _unit(vector: Any) -> Any:
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector
