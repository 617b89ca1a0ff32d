"""Candidates as the hits that users see, and what their functions make of them."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_engine.blocks.vector.ranking import Ranking
from memory_engine.blocks.vector.store import Candidates, Item


@dataclass(frozen=True, slots=True)
class Hit:
    """An item that may be shown: its final score and, for what it is worth, its lexical score and cosine similarity."""

    item: Item
    score: float
    lexical: float = 0.0
    dense: float | None = None


Postprocessor = Callable[[str, list[Hit]], "list[Hit] | Awaitable[list[Hit]]"]


def best_hits(candidates: Candidates, ranking: Ranking, limit: int) -> list[Hit]:
    """The `limit` best candidates that say anything, best first."""
    best = np.argsort(-ranking.scores, kind="stable")[:limit]
    return [
        Hit(
            candidates.items[index],
            float(ranking.scores[index]),
            float(ranking.lexical[index]),
            None if candidates.dense is None else float(candidates.dense[index]),
        )
        for index in best.tolist()
        if ranking.scores[index] > 0
    ]


async def through(postprocessors: Iterable[Postprocessor], query: str, hits: list[Hit]) -> list[Hit]:
    """The hits as each function hands them to the next."""
    for postprocess in postprocessors:
        result = postprocess(query, hits)
        hits = list(await result) if inspect.isawaitable(result) else list(result)
    return hits


def scores_of(hits: Iterable[Hit], items: Sequence[Item]) -> NDArray[np.float64]:
    """The scores of the hits as those of all items, in their order; items that are no hit have none."""
    places = {item.key: index for index, item in enumerate(items)}
    scores = np.zeros(len(items))
    for hit in hits:
        if hit.item.key in places:
            scores[places[hit.item.key]] = hit.score
    return scores
