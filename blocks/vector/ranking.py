"""PURE: from what a store counted to one score an item, and whether anything is relevant at all.

The defaults were chosen on LoCoMo dialogues and the Apollo 13 transcript; `benchmarks/recall.py` measures them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, nan
from numbers import Real
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from memory_engine.blocks.vector.store import Candidates

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Weights:
    """How items are scored; every number may be changed.

    - `k1`, `b`: BM25's saturation of repeated words and its correction for length (Robertson and Zaragoza, 2009).
    - `rarity`: exponent of a word's inverse document frequency; above 1, rare words count more than BM25 would have it.
    - `context`: a word of a neighbour counts as that part of a word of the item itself; entry 0 is for the items next to
      it, entry 1 for those two away, and so on. In talk, an answer seldom repeats the words of its question.
    - `lexical`: the share of words in the sum with vectors, from 0 (vectors only) to 1 (words only).
    - `fusion`: "score" adds both scores, each scaled to 0..1; "rank" adds reciprocal ranks 1 / (`rank_constant` + rank).
    - `spread`: what each item gives of its final score to the items next to it, as `context`.
    - `half_life`: days after which an item counts half; None: age does not matter.

    :raises ValueError: a number is NaN, infinite, or outside of what makes sense; it says which.
    """

    k1: float = 1.2
    b: float = 0.75
    rarity: float = 1.25
    context: tuple[float, ...] = (0.5, 0.3, 0.15)
    lexical: float = 0.45
    fusion: Literal["score", "rank"] = "score"
    rank_constant: float = 10.0
    spread: tuple[float, ...] = ()
    half_life: float | None = None

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __post_init__(self) -> None:
        # With k1 0, a word that is not there would count 0 / 0.
        for name in ("k1", *(() if self.half_life is None else ("half_life",))):
            check_number(name, getattr(self, name), above=0.0)
        for name in ("rarity", "rank_constant"):
            check_number(name, getattr(self, name), least=0.0)
        for name in ("b", "lexical"):
            check_number(name, getattr(self, name), least=0.0, most=1.0)
        for name in ("context", "spread"):
            parts = getattr(self, name)
            if not isinstance(parts, tuple | list):
                raise ValueError(f"{name} is a tuple of numbers such as (0.5, 0.3), not {parts!r:.80}")
            for part in parts:
                check_number(f"each of {name}", part, least=0.0)
        if self.fusion not in ("score", "rank"):
            raise ValueError(f'fusion is "score" or "rank", not {self.fusion!r:.80}')


def check_number(
    name: str, value: object, *, above: float | None = None, least: float | None = None, most: float = inf
) -> None:
    """Raise `ValueError` unless it is a finite number above `above`, from `least` to `most`."""
    bounds = [f"above {above:g}"] if above is not None else [f"at least {least:g}"] if least is not None else []
    bounds += [f"at most {most:g}"] if most < inf else []
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else nan
    inside = isfinite(number) and (above is None or number > above) and (least is None or number >= least) and number <= most
    if not inside:
        raise ValueError(f"{name} is a finite number {' and '.join(bounds)}".rstrip() + f", not {value!r:.80}")


@dataclass(frozen=True, slots=True)
class Floor:
    """When a query is about nothing that is remembered; then nothing is shown.

    With words alone the best item, its neighbours included, must hold at least two of the query's words that carry `pair`
    of the rarity of all its words (of the rarest 24 in a long query), or one word that carries `single`. Words that two of
    five items hold are what the scope is about, however little they tell items apart: `topic` of a question's words are
    enough of them.
    With vectors, `weak` similarity must agree with the words, unless they carry `clear` of the rarity or there are too few
    items to know what is usual; or `strong` similarity stands alone. Similarity is measured from the mean of the other items
    (0) to 1, because some models find everything alike. Items that are all about the same have no such mean: there, words
    are also agreed with by `strong` similarity from what is usual for most models.
    Calibrated on questions about things that nobody had spoken of.
    """

    pair: float = 0.18
    single: float = 0.45
    weak: float = 0.2
    strong: float = 0.4
    topic: float = 0.3
    clear: float = 0.6

    def __post_init__(self) -> None:
        for name in ("pair", "single", "topic", "clear"):
            check_number(name, getattr(self, name), least=0.0, most=1.0)
        for name in ("weak", "strong"):
            check_number(name, getattr(self, name), least=-1.0, most=1.0)

    def __deepcopy__(self, memo: object) -> Self:
        return self


NO_FLOOR = Floor(pair=0.0, single=0.0, weak=-1.0, strong=-1.0, topic=0.0, clear=0.0)


@dataclass(frozen=True, slots=True)
class Ranking:
    """`scores` are parallel to the candidates, 0 and more; `relevant` is False when the query is about none of them."""

    scores: Scores
    lexical: Scores
    relevant: bool


def rank(
    candidates: Candidates, query_weights: Sequence[float], ages: Scores | None, weights: Weights, floor: Floor
) -> Ranking:
    """Score candidates; `query_weights` are those of the probe's words, `ages` the items' ages in days."""
    if not candidates.items:
        return Ranking(np.zeros(0), np.zeros(0), relevant=False)
    nearby = _Neighbours(candidates.follows)
    lexical, coverage = _lexical(candidates, np.asarray(query_weights, dtype=np.float64), weights, nearby)
    # A model makes zeros of what it does not know: that says nothing, it does not say that nothing is alike.
    similar = candidates.dense
    dense = similar.astype(np.float64) if similar is not None and similar.any() else None
    relevant = _is_relevant(candidates, coverage, dense, floor)
    scores = lexical if dense is None else _fused(lexical, dense, weights)
    scores = nearby.spread(scores, weights.spread)
    if weights.half_life is not None and ages is not None:
        scores = scores * 0.5 ** (np.maximum(ages, 0.0) / weights.half_life)
    return Ranking(scores, lexical, relevant)


@dataclass(frozen=True, slots=True)
class _Coverage:
    """Of the best windows: the share of the query's rarity they hold, with any number of its words and with two or more;
    and the share of its words, however rare, that are frequent in the scope."""

    single: float
    pair: float
    topic: float


class _Neighbours:
    """Hands values from items to those around them, never across the border of a conversation."""

    def __init__(self, follows: NDArray[np.bool_]) -> None:
        self._run = np.cumsum(~follows)
        self._together: dict[int, Scores] = {}

    def spread(self, values: Scores, weights: Sequence[float]) -> Scores:
        """`values` plus what each item gets from those at distance 1, 2 …; rows are items."""
        result = values.copy()
        for distance, weight in enumerate(weights, start=1):
            if not weight or len(values) <= distance:
                continue
            shares = weight * self._same_run(distance)
            shares = shares if values.ndim == 1 else shares[:, None]
            result[distance:] += values[:-distance] * shares
            result[:-distance] += values[distance:] * shares
        return result

    def _same_run(self, distance: int) -> Scores:
        """1 where an item and the one so far behind it belong to the same run, else 0."""
        if distance not in self._together:
            self._together[distance] = (self._run[distance:] == self._run[:-distance]).astype(np.float64)
        return self._together[distance]


def _lexical(candidates: Candidates, query: Scores, weights: Weights, nearby: _Neighbours) -> tuple[Scores, _Coverage]:
    if not len(query):
        return np.zeros(len(candidates.items)), _Coverage(0.0, 0.0, 0.0)
    total = max(candidates.total, len(candidates.items))
    rarity = np.log1p((total - candidates.frequency + 0.5) / (candidates.frequency + 0.5))
    counts = nearby.spread(candidates.counts.astype(np.float64), weights.context)
    lengths = nearby.spread(candidates.lengths.astype(np.float64), weights.context)
    average = lengths.mean() if len(lengths) >= total else candidates.average_length * (1 + 2 * sum(weights.context))
    saturation = weights.k1 * (1 - weights.b + weights.b * lengths / max(average, 1e-9))
    # An item without a word in it has no length to correct for, and with b 1 nothing else.
    terms = counts * (weights.k1 + 1) / (counts + np.maximum(saturation, 1e-9)[:, None])
    # In a scope of a few messages every word is common: as if there were as many as make a word's rarity mean something.
    # A word that was never said weighs as one that was said once: "allergy" must not outweigh "hazelnuts" and its "allergic".
    known = np.maximum(candidates.frequency, 1.0)
    weight = np.log1p((max(total, _ENOUGH) - known + 0.5) / (known + 0.5))
    held = np.minimum(counts, 1.0)
    # What stands around a question must neither hide what it is about nor make it be about something; but a word or two alone
    # say too little.
    asked = query >= query.max()
    meant = [asked.astype(np.float64)] if asked.sum() >= _STANDS_ALONE else [asked.astype(np.float64), query]
    coverage = _covered(held, meant, weight, candidates.frequency >= _FREQUENT * total)
    return terms @ (query * rarity**weights.rarity), coverage


def _covered(held: Scores, meanings: Sequence[Scores], rarity: Scores, frequent: NDArray[np.bool_]) -> _Coverage:
    """How much the best windows hold of what the query may mean: how much each word is meant, 0 if it is not."""
    single = pair = topic = 0.0
    for meant in meanings:
        weights = meant * rarity
        shares = (held @ weights) / _heaviest(weights)
        several = (held[:, weights > 0] >= _NOTED).sum(axis=1) >= _SEVERAL
        single = max(single, float(shares.max()))
        pair = max(pair, float(shares[several].max()) if several.any() else 0.0)
        topic = max(topic, float((held @ (meant * frequent)).max()) / _heaviest(meant))
    return _Coverage(single, pair, topic)


def _heaviest(weights: Scores) -> float:
    return max(float(np.sort(weights)[-_HEAVIEST:].sum()), 1e-9)


_NOTED = 0.3
"""A word that only stands three items away does not make a window one that holds two words of the query."""
_SEVERAL = 2
_STANDS_ALONE = 3
"""A question of so many words is about them, and not about what stands around it."""
_HEAVIEST = 24
"""More words than these need not be held, or a long text could be about nothing."""
_ENOUGH = 400
_FREQUENT = 0.4
"""A word that so many of the items hold is what they are about."""
_FEW = 30
"""With fewer items, how alike they are on the average says nothing about how alike things usually are."""
_USUAL = 0.1
"""The similarity of a question to what has nothing to do with it, for most models."""


def _is_relevant(candidates: Candidates, coverage: _Coverage, dense: Scores | None, floor: Floor) -> bool:
    words = coverage.single >= floor.single or coverage.pair >= floor.pair or coverage.topic >= floor.topic
    if dense is None:
        return words
    best = float(dense.max())
    similarity = _above(_usual(candidates, dense), best)
    agreed = (
        coverage.single >= floor.clear
        or candidates.total < _FEW
        or similarity >= floor.weak
        or _above(_USUAL, best) >= floor.strong
    )
    return (words and agreed) or similarity >= floor.strong


def _usual(candidates: Candidates, dense: Scores) -> float:
    """The similarity of the query to items that it is not about."""
    if len(candidates.items) < candidates.total:
        # Of a part of the scope only the best are known: the least similar of them stands for what is usual.
        return float(dense.min())
    return float(dense.sum() - dense.max()) / (len(dense) - 1) if len(dense) > 1 else _USUAL


def _above(usual: float, similarity: float) -> float:
    return (similarity - usual) / max(1.0 - usual, 1e-9)


def _fused(lexical: Scores, dense: Scores, weights: Weights) -> Scores:
    scale = _reciprocal_ranks if weights.fusion == "rank" else _scaled
    # An item without a vector has the similarity 0; all others say something, if only that they are the least alike.
    by_words = scale(lexical, lexical > 0, weights.rank_constant)
    by_vectors = scale(dense, dense != 0, weights.rank_constant)
    return weights.lexical * by_words + (1 - weights.lexical) * by_vectors


_LEAST = 1e-3
"""What the last of those found gets for being there: where everything is asked for, it comes too."""


def _scaled(values: Scores, found: NDArray[np.bool_], _: float) -> Scores:
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.where(found, np.maximum(scaled, _LEAST), 0.0)


def _reciprocal_ranks(values: Scores, found: NDArray[np.bool_], constant: float) -> Scores:
    """Equal values have one rank; what was not found has no score."""
    ahead = len(values) - np.searchsorted(np.sort(values), values, side="right")
    return np.where(found, 1.0 / (constant + 1 + ahead), 0.0)
