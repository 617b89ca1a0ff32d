"""PURE: the same ranking by words for a few texts at hand, that no store holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memory_engine.blocks.vector.ranking import NO_FLOOR, Weights, rank
from memory_engine.blocks.vector.store import Candidates, Item
from memory_engine.blocks.vector.words import Words

_WEIGHTS = Weights(context=())
"""What stands beside a text says nothing about it: facts and results have no order."""


def best_texts(query: str, texts: Sequence[str], limit: int, *, language: str = "english") -> list[int]:
    """The places of the texts that share words with a query, best first, at most `limit`."""
    words = Words(language)
    asked = words.content(query)
    if not asked or not texts:
        return []
    found = [words.count(text) for text in texts]
    counts = np.array([[count[word] for word in asked] for count in found], dtype=np.float32)
    lengths = np.array([count.total() for count in found], dtype=np.float32)
    candidates = Candidates(
        items=[Item(key=str(place), text="") for place in range(len(texts))],
        counts=counts,
        lengths=lengths,
        frequency=np.count_nonzero(counts, axis=0).astype(np.float32),
        average_length=float(lengths.mean()),
        dense=None,
        follows=np.zeros(len(texts), dtype=np.bool_),
        total=len(texts),
    )
    scores = rank(candidates, [1.0] * len(asked), None, _WEIGHTS, NO_FLOOR).scores
    best = np.argsort(-scores, kind="stable")[:limit]
    return [int(place) for place in best if scores[place] > 0]
