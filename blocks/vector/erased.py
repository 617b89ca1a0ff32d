"""PURE: which items no answer may show, because their messages are being erased; the same in every store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from memory_engine.block import Erased
from memory_engine.blocks.vector.store import Item

Erasing = Mapping[str | None, frozenset[int] | None]


def by_session(erasing: Iterable[Erased]) -> Erasing:
    """What is being erased of each session, None: all of it; of session None: everything."""
    result: dict[str | None, frozenset[int] | None] = {}
    for erased in erasing:
        before = result.get(erased.session_uid, frozenset())
        whole = before is None or erased.seqs is None or erased.session_uid is None
        result[erased.session_uid] = None if whole else before.union(erased.seqs)  # type: ignore[union-attr, arg-type]
    return result


def is_erased(item: Item, erasing: Erasing) -> bool:
    """Whether an item came from what is being erased; a step goes whole with any of its messages."""
    if None in erasing:
        return True
    if item.seq is None or item.session_uid not in erasing:
        return False
    seqs = erasing[item.session_uid]
    return seqs is None or not seqs.isdisjoint(range(item.seq, last_seq_of(item) + 1))


def last_seq_of(item: Item) -> int:
    """The last message of an item; 0 for documents."""
    last = item.seq if item.last_seq is None else item.last_seq
    return 0 if last is None else last
