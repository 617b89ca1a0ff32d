"""Candidates as the hits that users see, and what their functions make of them."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_engine.blocks.vector.ranking import Ranking
from memory_engine.blocks.vector.store import Candidates, Item
from memory_engine.errors import BlockResultError
from memory_engine.messages import ChatMessage, coerce


@dataclass(frozen=True, slots=True)
class Hit:
    """An item that may be shown: its final score and, for what it is worth, its lexical score and cosine similarity."""

    item: Item
    score: float
    lexical: float = 0.0
    dense: float | None = None


Postprocessor = Callable[[str, list[Hit]], "Iterable[Hit] | Awaitable[Iterable[Hit]]"]
"""What it returns is what is shown, best first; or what the next one gets."""


Asked = str | ChatMessage | Mapping[str, Any] | Sequence["str | ChatMessage | Mapping[str, Any]"]
"""What `get` takes as a query."""


def question_of(query: Asked) -> str:
    """The text of a query.

    :raises ValueError: it is neither a text, nor a message, nor a list of them.
    """
    if isinstance(query, str):
        return query
    parts = [query] if isinstance(query, ChatMessage | Mapping) else query
    if not isinstance(parts, Sequence) or isinstance(parts, bytes):
        raise ValueError(f"a query is a text, a message or a list of them, not {type(query).__name__}")
    texts = [part if isinstance(part, str) else coerce(part).content for part in parts]
    return "\n".join(text for text in texts if text.strip())


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
    """The hits as each function hands them to the next.

    :raises BlockResultError: one returns something else.
    """
    for postprocess in postprocessors:
        result = postprocess(query, hits)
        hits = _checked(postprocess, await result if inspect.isawaitable(result) else result)
    return hits


def _checked(postprocess: object, result: object) -> list[Hit]:
    hits = list(result) if isinstance(result, Iterable) else None
    if hits is not None and all(isinstance(hit, Hit) for hit in hits):
        return hits
    name = getattr(postprocess, "__qualname__", type(postprocess).__qualname__)
    strange = [type(hit).__name__ for hit in hits or () if not isinstance(hit, Hit)]
    what = f"{type(result).__name__} with {strange[0]} in it" if strange else type(result).__name__
    raise BlockResultError(
        f"The postprocessor {name} returned {what}. Return a list of the hits to show, the best first: of those "
        "that it was given, with other scores by `dataclasses.replace(hit, score=...)`."
    )


def choice_of(hits: Sequence[Hit], items: Sequence[Item]) -> NDArray[np.float64]:
    """What the items are worth when these hits are all that may be shown, best first; 0 for all others.

    That is their scores if they are positive and fall, else it follows from the order alone: rerankers give logits, which
    may be negative, and filters may put hits first whatever their scores.
    """
    scores = np.array([hit.score for hit in hits], dtype=np.float64)
    if not (np.isfinite(scores).all() and (scores > 0).all() and (np.diff(scores) <= 0).all()):
        scores = 1.0 / np.arange(1, len(hits) + 1)
    places = {item.key: index for index, item in enumerate(items)}
    worths = np.zeros(len(items))
    for hit, score in zip(hits, scores.tolist(), strict=True):
        place = places.pop(hit.item.key, None)  # what is returned twice counts where it came first
        if place is not None:
            worths[place] = score
    return worths
