"""PURE: chosen items as the text of a section that fits its room, and with less of them when tokens are asked back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import cache

from memory_engine import ContentBlock, TextBlock
from memory_engine.blocks.vector.layout import MARKS, Layout, lines
from memory_engine.blocks.vector.selection import Costs, Filling
from memory_engine.blocks.vector.store import Item

_SPARE = 40
"""Tokens of room that are worth another filling."""
_FILLINGS = 3
_OVERESTIMATE = 1.03
"""Lines cost a little less together than one by one: with this much more, one count is mostly enough."""


class Section:
    """What is shown. The cost of each item alone is an estimate; the text as a whole is counted."""

    def __init__(self, layout: Layout, count: Callable[[str], int]) -> None:
        self.tokens = 0
        self._layout, self._count = layout, count
        self._shown: Sequence[tuple[Item, float]] = ()
        self._text = ""

    def blocks(self) -> list[ContentBlock]:
        """The text as a block, or none."""
        return [TextBlock(text=self._text)] if self._text else []

    def fill(self, items: Sequence[Item], filling: Filling, room: int) -> None:
        """Show what `filling` chooses of the items, as much as the room holds."""
        spare = room * _OVERESTIMATE
        for _ in range(_FILLINGS):
            before = len(filling.chosen)
            filling.extend(spare)
            if len(filling.chosen) == before:
                break
            # The first chosen are worth most.
            worths = {index: float(-place) for place, index in enumerate(filling.chosen)}
            self._show([(items[index], worths[index]) for index in chronological(items, filling.chosen)])
            spare = room - self.tokens
            if filling.exhausted or spare < _SPARE + room // 25:
                break
        if self.tokens > room:
            self.drop(self.tokens - room)

    def drop(self, tokens: int) -> None:
        """Leave out the items of least worth, as few as it takes for the text to cost that many tokens less."""
        shown, goal = self._shown, self.tokens - tokens
        everything = sorted(shown, key=lambda pair: -pair[1])

        def fits(size: int) -> bool:
            least = everything[size - 1][1] if size else math.inf
            self._show([pair for pair in shown if pair[1] >= least])
            return self.tokens <= goal

        # Mostly a few are enough; the text is counted for each attempt.
        gone = 1
        while gone < len(everything) and not fits(len(everything) - gone):
            gone *= 2
        low, high = max(0, len(everything) - gone), len(everything) - gone // 2 - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        fits(low)

    def _show(self, shown: Sequence[tuple[Item, float]]) -> None:
        self._shown = shown
        self._text = "\n".join([line.text for line in lines(shown, self._layout)])
        self.tokens = self._count(self._text)


def chronological(items: Sequence[Item], chosen: Iterable[int]) -> list[int]:
    """Chosen indexes by time; within a conversation by its own order, whatever the clocks said, documents last."""
    chosen = sorted(chosen)
    if len({items[index].session_uid for index in chosen if items[index].kind == "message"}) < 2:
        return chosen  # as they come: in the order of the one conversation, documents after it
    latest: dict[str | None, float] = {}
    keys: dict[int, tuple[bool, float]] = {}
    for index in chosen:
        item = items[index]
        at = item.at.timestamp() if item.at is not None else -math.inf
        latest[item.session_uid] = max(at, latest.get(item.session_uid, -math.inf))
        keys[index] = (item.kind == "document", 0.0 if item.kind == "document" else latest[item.session_uid])
    return sorted(keys, key=lambda index: (keys[index], index))


def costs_of(layout: Layout, count: Callable[[str], int], now: datetime) -> Costs:
    """What lines and headers of a layout cost, about."""

    @cache
    def line(around: str) -> int:
        return count(around) + 1

    # Times cost about the same whatever they say; the text as a whole is counted in the end.
    header = count(now.strftime(layout.header)) + 1 if layout.header else 0
    return Costs(
        line=lambda item: line(layout.written(item, MARKS if item.parts > 1 else "")),
        header=lambda item: 0 if item.at is None or item.kind == "document" else header,
    )


def shown_by(shown: frozenset[int], session_uid: str) -> Callable[[Item], bool] | None:
    """Whether a history that shows these seqs of a session shows a message of an item; None: it shows nothing."""
    if not shown:
        return None
    oldest = min(shown)

    def is_shown(item: Item) -> bool:
        if item.seq is None or item.last_seq is None or item.last_seq < oldest or item.session_uid != session_uid:
            return False
        return not shown.isdisjoint(range(item.seq, item.last_seq + 1))

    return is_shown
