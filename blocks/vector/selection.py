"""PURE: which items are worth their tokens, and which go first when room is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from memory_engine.blocks.vector.store import Item
from memory_engine.blocks.vector.transcript import Layout, speaker

_FAIR_LENGTH: Final = 200
"""Up to so many tokens, length does not count against an item: evidence in talk is short or long as it happens to be."""
_MISSES: Final = 32
"""So many items in a row that do not fit end the search: what comes after them is worth little."""


def worth(scores: NDArray[np.float64], tokens: NDArray[np.float64]) -> NDArray[np.float64]:
    """Value for the tokens. The square root keeps a long message that answers ahead of a short one that does not."""
    result: NDArray[np.float64] = scores / np.sqrt(np.maximum(tokens, _FAIR_LENGTH))
    return result


@dataclass(frozen=True, slots=True)
class Costs:
    """What an item adds to a section, about: `line` for who said it, `header` when it is the first at its place."""

    line: Callable[[Item], int]
    header: Callable[[Item], int]


def choose(
    items: Sequence[Item],
    scores: NDArray[np.float64],
    *,
    budget: float,
    limit: int | None,
    least: float,
    layout: Layout,
    costs: Costs,
) -> list[int]:
    """Indexes of the items to show, the most worth first, at most `limit`, costing about `budget` tokens at most.

    Items that score less than `least` times the best are left out however much room there is, and so are repetitions of
    what is chosen already. The order does not depend on the budget: a larger one keeps what a smaller one showed, but for
    items that now fit and take the place of smaller ones after them.
    """
    best = float(scores.max()) if len(scores) else 0.0
    if best <= 0:
        return []
    eligible = np.flatnonzero((scores > 0) & (scores >= least * best))
    tokens = np.fromiter((items[index].tokens for index in eligible.tolist()), dtype=np.float64, count=len(eligible))
    order = eligible[np.argsort(-worth(scores[eligible], tokens), kind="stable")]
    chosen: list[int] = []
    places: set[tuple[object, ...]] = set()
    said: set[tuple[str, str]] = set()
    left, misses = budget, 0
    for index in order.tolist():
        item = items[index]
        words = (speaker(item), " ".join(item.text.split()).casefold())
        if words in said:
            continue
        place = layout.place(item)
        cost = item.tokens + costs.line(item) + (0 if place in places else costs.header(item))
        if cost > left:
            misses += 1
            if misses >= _MISSES:
                break
            continue
        misses = 0
        left -= cost
        chosen.append(index)
        places.add(place)
        said.add(words)
        if limit is not None and len(chosen) >= limit:
            break
    return chosen
