"""Scores from what a store counted: BM25 with neighbours, fusion, age, and the floor."""

from __future__ import annotations

from dataclasses import replace
from math import log, log1p
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_engine.blocks.vector.ranking import NO_FLOOR, Floor, Ranking, Weights, rank
from memory_engine.blocks.vector.store import Candidates, Item

PLAIN = Weights(context=(), rarity=1.0, lexical=0.5)
"""BM25 as in the textbook."""


def candidates(
    counts: list[list[float]],
    *,
    lengths: list[float] | None = None,
    dense: list[float] | None = None,
    follows: list[bool] | None = None,
    total: int | None = None,
) -> Candidates:
    table = np.array(counts, dtype=np.float32).reshape(len(counts), len(counts[0]) if counts else 1)
    size = len(counts)
    length = np.array(lengths if lengths is not None else [10.0] * size, dtype=np.float32)
    return Candidates(
        items=[Item(key=str(n), text=str(n), session_uid="s", seq=n) for n in range(size)],
        counts=table,
        lengths=length,
        frequency=np.count_nonzero(table, axis=0).astype(np.float32),
        average_length=float(length.mean()) if size else 0.0,
        dense=None if dense is None else np.array(dense, dtype=np.float32),
        follows=np.array(follows if follows is not None else [n > 0 for n in range(size)], dtype=np.bool_),
        total=size if total is None else total,
    )


def ranked(found: Candidates, weights: Weights = PLAIN, floor: Floor = NO_FLOOR, ages: list[float] | None = None) -> Ranking:
    days = None if ages is None else np.array(ages)
    return rank(found, [1.0] * found.counts.shape[1], days, weights, floor)


def naive_bm25(found: Candidates, query: list[float], weights: Weights) -> list[float]:
    """The formula, word by word and item by item."""
    counts, lengths, follows = found.counts.tolist(), found.lengths.tolist(), found.follows.tolist()
    size = len(counts)

    def around(item: int) -> list[tuple[int, float]]:
        """The items whose words count for this one, each with its part."""
        near = [(item, 1.0)]
        for distance, part in enumerate(weights.context, start=1):
            if item + distance < size and all(follows[item + 1 : item + distance + 1]):
                near.append((item + distance, part))
            if item - distance >= 0 and all(follows[item - distance + 1 : item + 1]):
                near.append((item - distance, part))
        return near

    length = [sum(part * lengths[other] for other, part in around(item)) for item in range(size)]
    average = sum(length) / size
    scores = []
    for item in range(size):
        score = 0.0
        for word, weight in enumerate(query):
            frequency = sum(1 for row in counts if row[word])
            rarity = log(1 + (found.total - frequency + 0.5) / (frequency + 0.5))
            count = sum(part * counts[other][word] for other, part in around(item))
            norm = weights.k1 * (1 - weights.b + weights.b * length[item] / max(average, 1e-9))
            score += weight * rarity**weights.rarity * count * (weights.k1 + 1) / (count + norm) if count else 0.0
        scores.append(score)
    return scores


@st.composite
def tables(draw: st.DrawFn) -> Candidates:
    items, words = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    counts = [[float(draw(st.integers(0, 3))) for _ in range(words)] for _ in range(items)]
    lengths = [sum(row) + draw(st.integers(1, 40)) for row in counts]
    follows = [n > 0 and draw(st.booleans()) for n in range(items)]
    return candidates(counts, lengths=lengths, follows=follows)


WEIGHTS = st.builds(
    Weights,
    k1=st.floats(0.1, 3.0),
    b=st.floats(0.0, 1.0),
    rarity=st.floats(0.5, 2.0),
    context=st.lists(st.sampled_from([0.0, 0.15, 0.5]), max_size=4).map(tuple),
)


@given(tables(), WEIGHTS, st.data())
def test_scores_are_those_of_the_formula(found: Candidates, weights: Weights, data: st.DataObject) -> None:
    words = found.counts.shape[1]
    query = data.draw(st.lists(st.sampled_from([1.0, 0.5, 0.25]), min_size=words, max_size=words))
    ranking = rank(found, query, None, weights, NO_FLOOR)
    assert ranking.scores.tolist() == pytest.approx(naive_bm25(found, query, weights), rel=1e-5, abs=1e-9)
    assert ranking.lexical.tolist() == ranking.scores.tolist()
    assert ranking.relevant


@given(tables())
def test_conversations_do_not_touch(found: Candidates) -> None:
    """What one conversation says changes nothing for another but how rare words are and how long items are."""
    border = len(found.items) // 2
    follows = found.follows.copy()
    follows[border:][:1] = False
    apart = replace(found, follows=follows)
    weights = Weights(b=0.0)
    before = ranked(apart, weights).scores[:border]
    other = apart.counts.copy()
    other[border:] = np.where(other[border:] > 0, 3.0, 0.0)
    after = ranked(replace(apart, counts=other), weights).scores[:border]
    assert after.tolist() == pytest.approx(before.tolist())


def test_the_neighbours_of_a_find_score_too_but_less() -> None:
    found = candidates([[0], [0], [0], [1], [0], [0], [0], [0]])
    # Without correction for length: those at the ends have fewer words around them.
    scores = ranked(found, Weights(b=0.0)).scores.tolist()
    assert scores[3] > scores[2] > scores[1] > scores[0] > scores[7] == 0
    assert scores[2] == pytest.approx(scores[4])


@pytest.mark.parametrize("distance", [1, 8, 9, 12, 13, 20])
def test_neighbours_may_be_as_far_away_as_one_likes(distance: int) -> None:
    scores = ranked(candidates([[1]] + [[0]] * 12), replace(PLAIN, context=(0.0,) * (distance - 1) + (0.5,))).scores
    assert np.flatnonzero(scores).tolist() == [0, distance][: 2 if distance <= 12 else 1]


def test_a_score_can_be_handed_on() -> None:
    scores = ranked(candidates([[0], [1], [0], [0]]), replace(PLAIN, spread=(0.2,))).scores
    assert scores.tolist() == pytest.approx([0.2 * scores[1], scores[1], 0.2 * scores[1], 0.0])


def test_nothing_to_rank_is_irrelevant() -> None:
    ranking = rank(candidates([]), [1.0], None, Weights(), Floor())
    assert (len(ranking.scores), ranking.relevant) == (0, False)


def test_a_query_without_words_is_irrelevant_but_ranks_by_vector() -> None:
    assert not ranked(candidates([[], []]), floor=Floor()).relevant
    ranking = ranked(candidates([[], [], []], dense=[0.1, 0.9, 0.2]), floor=Floor())
    assert ranking.relevant
    assert int(ranking.scores.argmax()) == 1


# -- fusion ----------------------------------------------------------------------------------------------------------

DENSE = [0.9, 0.1, 0.5, 0.2]
COUNTS: list[list[float]] = [[0], [3], [1], [0]]


@pytest.mark.parametrize("fusion", ["score", "rank"])
def test_both_orders_count(fusion: str) -> None:
    found = candidates(COUNTS, dense=DENSE)
    scores = ranked(found, replace(PLAIN, fusion=fusion)).scores  # type: ignore[arg-type]
    assert scores[2] > scores[3], "known to both beats unknown to both"
    assert scores.min() >= 0


@pytest.mark.parametrize(("share", "best"), [(1.0, 1), (0.0, 0)])
@pytest.mark.parametrize("fusion", ["score", "rank"])
def test_either_may_decide_alone(fusion: str, share: float, best: int) -> None:
    weights = replace(PLAIN, fusion=fusion, lexical=share)  # type: ignore[arg-type]
    assert int(ranked(candidates(COUNTS, dense=DENSE), weights).scores.argmax()) == best


def test_the_sum_of_scores_is_of_scores_from_0_to_1() -> None:
    found = candidates(COUNTS, dense=DENSE)
    lexical = ranked(found).lexical
    dense = (found.dense - 0.1) / 0.8  # type: ignore[operator]
    expected = 0.25 * lexical / lexical.max() + 0.75 * dense
    # The least similar item has a trace of a score.
    assert ranked(found, replace(PLAIN, lexical=0.25)).scores.tolist() == pytest.approx(expected.tolist(), abs=1e-3)


def test_reciprocal_ranks_are_summed() -> None:
    scores = ranked(candidates(COUNTS, dense=DENSE), replace(PLAIN, fusion="rank", rank_constant=10)).scores
    # Those that have no word in common get nothing from the words.
    assert scores.tolist() == pytest.approx([0.5 / 11, 0.5 / 11 + 0.5 / 14, 0.5 / 12 + 0.5 / 12, 0.5 / 13])


def test_equal_similarities_say_nothing() -> None:
    scores = ranked(candidates(COUNTS, dense=[0.5] * 4)).scores
    assert int(scores.argmax()) == 1
    assert scores[0] == scores[3] < scores[1] / 100


@pytest.mark.parametrize("fusion", ["score", "rank"])
@pytest.mark.parametrize("counts", [[[1]], [[0]], [[]], [[2], [1]], [[0], [0], [0]]])
def test_whatever_has_a_word_or_a_similarity_has_a_score(fusion: str, counts: list[list[float]]) -> None:
    for dense in ([0.4] * len(counts), [0.4, 0.3, -0.2][: len(counts)]):
        scores = ranked(candidates(counts, dense=dense), Weights(fusion=fusion)).scores  # type: ignore[arg-type]
        assert (scores > 0).all()


@pytest.mark.parametrize("fusion", ["score", "rank"])
def test_an_item_without_a_vector_has_no_score_of_one(fusion: str) -> None:
    scores = ranked(candidates([[0], [1], [0]], dense=[0.4, 0.0, 0.0]), Weights(context=(), fusion=fusion)).scores  # type: ignore[arg-type]
    assert (scores > 0).tolist() == [True, True, False]


@given(tables(), st.data())
def test_fused_scores_are_never_negative_nor_nan(found: Candidates, data: st.DataObject) -> None:
    size = len(found.items)
    dense = np.array(data.draw(st.lists(st.floats(-1, 1, width=32), min_size=size, max_size=size)), dtype=np.float32)
    for fusion in ("score", "rank"):
        scores = ranked(replace(found, dense=dense), Weights(fusion=fusion, spread=(0.2,))).scores  # type: ignore[arg-type]
        assert np.isfinite(scores).all()
        assert (scores >= 0).all()


# -- age -------------------------------------------------------------------------------------------------------------


def test_an_item_counts_half_after_its_half_life() -> None:
    found = candidates([[1], [1], [1], [1]])
    fresh = ranked(found).scores
    aged = ranked(found, replace(PLAIN, half_life=10.0), ages=[0.0, 10.0, 20.0, -5.0]).scores
    assert (aged / fresh).tolist() == pytest.approx([1.0, 0.5, 0.25, 1.0]), "clocks that went back make nothing younger"


# -- the floor -------------------------------------------------------------------------------------------------------


def relevant(counts: list[list[float]], *, total: int = 1000, dense: list[float] | None = None, **floor: float) -> bool:
    found = candidates([*counts, *([[0.0] * len(counts[0])] * 10)], total=total, dense=dense)
    return ranked(found, Weights(), Floor(**floor)).relevant


def test_two_words_of_a_question_are_enough() -> None:
    assert relevant([[1, 1, 0, 0, 0]])


def test_one_word_of_five_is_not_enough() -> None:
    assert not relevant([[1, 0, 0, 0, 0]])


def test_one_word_of_one_is_enough() -> None:
    assert relevant([[1]])


def test_two_words_far_apart_are_not_two_words_of_one_place() -> None:
    near: list[list[float]] = [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    far: list[list[float]] = [[1, 0, 0, 0, 0], *([[0.0] * 5] * 8), [0, 1, 0, 0, 0]]
    assert relevant(near)
    assert not relevant(far)


def by_weights(counts: list[float], query: list[float], total: int = 1000) -> bool:
    """Whether a query whose words have these weights is about a single item among others."""
    found = candidates([counts, *([[0.0] * len(counts)] * 10)], total=total)
    return rank(found, query, None, Weights(), Floor()).relevant


@pytest.mark.parametrize("words", [30, 45])
def test_of_a_long_text_the_heaviest_words_alone_need_to_be_held(words: int) -> None:
    held = [1.0] * 5
    assert by_weights(held + [0.0] * (words - 5), [1.0] * words)
    assert not by_weights([1.0] * 3 + [0.0] * (words - 3), [1.0] * words)


def test_what_stands_around_a_question_does_not_hide_what_it_is_about() -> None:
    assert by_weights([1.0, 1.0, 0.0] + [0.0] * 40, [1.0] * 3 + [0.2] * 40)


def test_what_stands_around_a_question_does_not_make_it_be_about_something() -> None:
    assert not by_weights([0.0] * 3 + [1.0] * 40, [1.0] * 3 + [0.2] * 40)
    assert not by_weights([1.0, 0.0, 0.0, 0.0, 0.0] + [1.0] * 40, [1.0] * 5 + [0.2] * 40)


def test_a_question_of_a_word_or_two_is_about_what_was_said_before_it() -> None:
    assert by_weights([0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.5, 0.5])
    assert not by_weights([0.0, 0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.5, 0.5])


def test_a_word_that_nobody_said_makes_a_question_foreign() -> None:
    common: list[list[float]] = [[1, 0]] * 100
    assert not relevant(common, total=310)


def test_what_most_items_are_about_is_spoken_of_however_little_it_tells_them_apart() -> None:
    everywhere: list[list[float]] = [[1, 0, 0]] * 300
    assert relevant(everywhere, total=310)
    assert not relevant([[*row, 0.0] for row in everywhere], total=310)
    assert not relevant(everywhere, total=310, topic=0.5)


def test_vectors_stand_alone_only_when_they_are_strong() -> None:
    def by_vector(best: float) -> bool:
        return relevant([[0, 0, 0]], dense=[best] + [0.0] * 10)

    assert by_vector(0.9)
    assert not by_vector(0.3)


def by_both(best: float, others: float = 0.0, *, held: int = 2, total: int = 1000) -> bool:
    """Whether a question of five words is relevant of which one item has some, with these similarities."""
    row = [1.0] * held + [0.0] * (5 - held)
    return relevant([row], total=total, dense=[best] + [others] * 10)


def test_vectors_that_disagree_withdraw_what_some_words_say() -> None:
    assert by_both(0.35)
    assert not by_both(0.05)


def test_words_that_say_nearly_all_stand_alone() -> None:
    assert by_both(0.05, held=4)
    assert by_both(0.7, 0.7, held=5)


def test_few_items_do_not_show_what_similarity_is_usual() -> None:
    assert by_both(0.05, total=11)
    assert not by_both(0.05, held=0, total=11)


def test_items_that_are_all_alike_agree_with_words_when_they_are_like_the_question() -> None:
    assert by_both(0.6, 0.58)
    assert not by_both(0.3, 0.28)
    assert not by_both(0.6, 0.58, held=0)


@pytest.mark.parametrize(("similarity", "expected"), [(0.8, True), (0.3, False)])
def test_a_single_item_may_be_found_by_its_vector_alone(similarity: float, expected: bool) -> None:
    assert ranked(candidates([[0, 0]], dense=[similarity]), Weights(), Floor()).relevant is expected


def test_models_that_find_everything_alike_are_measured_from_their_mean() -> None:
    assert not relevant([[0, 0, 0]], dense=[0.85] + [0.8] * 10)
    assert relevant([[0, 0, 0]], dense=[0.99] + [0.8] * 10)


def test_rarity_is_what_it_is_in_bm25() -> None:
    [score] = ranked(candidates([[1]], total=100)).scores.tolist()
    # Nothing but the one item is known, so that it is of average length.
    assert score == pytest.approx(log1p((100 - 1 + 0.5) / 1.5))


# -- what makes no sense ---------------------------------------------------------------------------------------------


def test_a_model_that_knows_nothing_leaves_the_words() -> None:
    """Vectors of zeros are like nothing: neither numbers that are none nor a reason to show nothing."""
    words = candidates([[5], [0], [0]], total=1000)
    zeros = replace(words, dense=np.zeros(3, dtype=np.float32))
    ranking = ranked(zeros, floor=Floor())
    assert ranking.relevant
    assert ranking.scores.tolist() == ranked(words).scores.tolist()


def test_an_item_without_words_scores_nothing() -> None:
    scores = ranked(candidates([[1], [0]], lengths=[4, 0]), Weights(b=1.0, context=())).scores
    assert scores[0] > 0 == scores[1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"k1": 0.0}, "k1 is a finite number above 0, not 0.0"),
        ({"k1": float("nan")}, "k1 is a finite number"),
        ({"b": 1.5}, "b is a finite number at least 0 and at most 1, not 1.5"),
        ({"b": -0.1}, "b is"),
        ({"rarity": -1.0}, "rarity is a finite number at least 0"),
        ({"rarity": float("inf")}, "rarity is"),
        ({"context": (0.5, float("nan"))}, "each of context is a finite number at least 0"),
        ({"context": 0.5}, "context is a tuple of numbers"),
        ({"spread": (-0.5,)}, "each of spread is"),
        ({"lexical": 45}, "lexical is a finite number at least 0 and at most 1, not 45"),
        ({"lexical": -0.1}, "lexical is"),
        ({"lexical": "0.5"}, "lexical is a finite number at least 0 and at most 1, not '0.5'"),
        ({"fusion": "rrf"}, 'fusion is "score" or "rank", not \'rrf\''),
        ({"rank_constant": -60}, "rank_constant is a finite number at least 0"),
        ({"half_life": 0}, "half_life is a finite number above 0, not 0"),
        ({"half_life": float("inf")}, "half_life is"),
        ({"half_life": True}, "half_life is"),
    ],
)
def test_weights_that_make_no_sense_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Weights(**options)


def test_weights_may_be_given_in_any_number() -> None:
    Weights(k1=1, b=0, lexical=np.float64(0.5), context=(1, np.float32(0.5)), half_life=7, rank_constant=0)


@pytest.mark.parametrize("name", ["pair", "single", "weak", "strong"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.5, -1.5, "0.5", True, None])
def test_a_floor_that_makes_no_sense_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is a finite number at least"):
        Floor(**{name: value})
