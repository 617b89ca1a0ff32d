"""The list of what an outside store should hold, in the memory's own database: so that a loss is noticed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memory_engine.block import Records
from memory_engine.blocks.vector.store import Item

_PREFIX = "held:"


class Held:
    """The first and last seq of each item that was stored outside, by session and delivery."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def add(self, session_uid: str, first: int, items: Iterable[Item]) -> None:
        """The items of the delivery that begins at `first`."""
        spans = [[item.seq, item.last_seq] for item in items]
        # Shared: an erasure must still find it, to take it off the list together with the items.
        self._records.put(f"{_PREFIX}{session_uid}:{first:016d}", spans, shared=True)

    async def strike(self, session_uid: str | None, seqs: Sequence[int] | None) -> int:
        """Take what was erased off the list; returns how many items those were.

        By the list, not by what the store holds before and after: an erasure may be repeated that was cut off half way, and a
        store that lost items earlier must go on being noticed.
        """
        gone = None if seqs is None else set(seqs)
        struck = 0
        async for page in self._records.pages(_PREFIX if session_uid is None else f"{_PREFIX}{session_uid}:"):
            for record in page:
                left = [] if gone is None else [span for span in record.data if gone.isdisjoint(range(span[0], span[1] + 1))]
                struck += len(record.data) - len(left)
                if not left:
                    self._records.delete(record.key)
                elif len(left) < len(record.data):
                    self._records.put(record.key, left, shared=True)
        return struck

    async def clear(self) -> None:
        """Nothing is held."""
        async for page in self._records.pages(_PREFIX):
            for record in page:
                self._records.delete(record.key)

    async def spans(self) -> dict[str, set[tuple[int, int]]]:
        """The first and last seqs of all items on the list, by session."""
        spans: dict[str, set[tuple[int, int]]] = {}
        async for page in self._records.pages(_PREFIX):
            for record in page:
                uid = record.key.removeprefix(_PREFIX).partition(":")[0]
                spans.setdefault(uid, set()).update((first, last) for first, last in record.data)
        return spans
