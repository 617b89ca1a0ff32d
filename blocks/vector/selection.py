"""PURE: which items are worth their tokens, and which go first when room is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memory_engine.blocks.vector.layout import Layout
from memory_engine.blocks.vector.store import Item
from memory_engine.blocks.vector.transcript import speaker

_FAIR_LENGTH: Final = 200
"""Up to so many tokens, length does not count against an item: evidence in talk is short or long as it happens to be."""
_CONSIDERED: Final = 4_000
"""So many of the best items are considered; no context has room for more."""
_MISSES: Final = 32
"""So many items that do not fit end the search: what comes after them is worth little."""


def worth(scores: NDArray[np.float64], tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Value for the tokens. The square root keeps a long message that answers ahead of a short one that does not."""
    result: NDArray[np.float64] = scores / np.sqrt(np.maximum(tokens, _FAIR_LENGTH))
    return result


@dataclass(frozen=True, slots=True)
class Costs:
    """What an item adds to a section, about: `line` for who said it, `header` when it is the first at its place."""

    line: Callable[[Item], int]
    header: Callable[[Item], int]


class Filling:
    """Items chosen for a section, the most worth first, at most `limit`, until they cost about what room there is.

    Items that score less than `least` times the best are left out however much room there is, and so are repetitions of
    what is chosen already and what is `shown` elsewhere. The order does not depend on the room: more of it keeps what less
    of it showed, but for items that fit now and take the place of smaller ones after them.
    """

    def __init__(
        self,
        items: Sequence[Item],
        scores: NDArray[np.float64],
        *,
        limit: int | None,
        least: float,
        layout: Layout,
        costs: Costs,
        shown: Callable[[Item], bool],
    ) -> None:
        self.chosen: list[int] = []
        self._items, self._layout, self._costs, self._shown = items, layout, costs, shown
        self._limit = len(items) if limit is None else limit
        best = float(scores.max()) if len(scores) else 0.0
        eligible = np.flatnonzero((scores > 0) & (scores >= least * best))
        if len(eligible) > _CONSIDERED:
            eligible = np.sort(eligible[np.argpartition(-scores[eligible], _CONSIDERED)[:_CONSIDERED]])
        tokens = np.array([items[index].tokens for index in eligible.tolist()], dtype=np.float64)
        # Those that did not fit come last, so that more room meets them first.
        self._waiting: list[int] = eligible[np.argsort(-worth(scores[eligible], tokens), kind="stable")][::-1].tolist()
        self._places: set[tuple[object, ...]] = set()
        self._said: set[tuple[str, str]] = set()

    @property
    def exhausted(self) -> bool:
        """Whether more room would not add anything."""
        return not self._waiting or len(self.chosen) >= self._limit

    def extend(self, room: float) -> None:
        """Choose further items that cost about `room` tokens together."""
        missed: list[int] = []
        while self._waiting and len(self.chosen) < self._limit and len(missed) < _MISSES:
            index = self._waiting.pop()
            item = self._items[index]
            if item.tokens >= room:
                missed.append(index)
                continue
            place = self._layout.place(item)
            cost = item.tokens + self._costs.line(item) + (0 if place in self._places else self._costs.header(item))
            if cost > room:
                missed.append(index)
                continue
            said = (speaker(item), " ".join(item.text.split()).casefold())
            if said in self._said or self._shown(item):
                continue
            room -= cost
            self.chosen.append(index)
            self._places.add(place)
            self._said.add(said)
        self._waiting.extend(reversed(missed))
