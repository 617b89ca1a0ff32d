"""What the functions of a user return, and what that is worth."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_engine.blocks.vector.hits import Hit, choice_of, through
from memory_engine.blocks.vector.store import Item
from memory_engine.errors import BlockError

ITEMS = [Item(key=str(n), text=f"text {n}") for n in range(8)]
HITS = [Hit(item, 1.0 / (n + 1)) for n, item in enumerate(ITEMS)]


def worths(*scored: tuple[int, float]) -> list[float]:
    return choice_of([Hit(ITEMS[n], score) for n, score in scored], ITEMS).tolist()


def test_scores_that_fall_are_what_hits_are_worth() -> None:
    assert worths((3, 7.5), (1, 0.5), (2, 0.5)) == [0, 0.5, 0.5, 7.5, 0, 0, 0, 0]


@pytest.mark.parametrize("scores", [(-1.0, -2.0), (0.5, 0.0), (0.5, 0.7), (math.nan, 0.1), (math.inf, 0.1)])
def test_otherwise_the_order_decides(scores: tuple[float, float]) -> None:
    assert worths((3, scores[0]), (1, scores[1])) == [0, 0.5, 0, 1, 0, 0, 0, 0]


def test_what_was_not_asked_for_is_ignored_and_what_is_repeated_counts_once() -> None:
    stranger = Hit(Item(key="stranger", text="?"), 3.0)
    assert choice_of([stranger, HITS[4], HITS[2], HITS[4]], ITEMS).tolist() == [0, 0, 1 / 3, 0, 1 / 2, 0, 0, 0]
    assert choice_of([], ITEMS).tolist() == [0] * 8


@given(st.permutations(range(8)), st.integers(0, 8), st.lists(st.floats(), min_size=8, max_size=8))
def test_what_is_returned_keeps_its_order_and_is_worth_something(order: list[int], size: int, scores: list[float]) -> None:
    chosen = order[:size]
    result = choice_of([Hit(ITEMS[n], scores[n]) for n in chosen], ITEMS)
    assert [n for n in range(8) if result[n] > 0] == sorted(chosen)
    assert [result[n] for n in chosen] == sorted((result[n] for n in chosen), reverse=True)


async def test_functions_may_be_of_any_kind() -> None:
    async def awaited(query: str, hits: list[Hit]) -> list[Hit]:
        return hits[1:]

    def generated(query: str, hits: list[Hit]) -> Iterator[Hit]:
        yield from (replace(hit, score=-hit.score) for hit in reversed(hits))

    result = await through([awaited, generated, lambda query, hits: tuple(hits[:2])], "q", HITS)
    assert [(hit.item.key, hit.score) for hit in result] == [("7", -1 / 8), ("6", -1 / 7)]


def nothing(query: str, hits: list[Hit]) -> Any:
    hits.sort(key=lambda hit: hit.score)


def items(query: str, hits: list[Hit]) -> Any:
    return [hit.item for hit in hits]


def words(query: str, hits: list[Hit]) -> Any:
    return "hits"


async def stream(query: str, hits: list[Hit]) -> AsyncIterator[Hit]:
    yield hits[0]


class Reranker:
    def __call__(self, query: str, hits: list[Hit]) -> Any:
        return 7


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (nothing, "nothing returned NoneType"),
        (items, "items returned list with Item in it"),
        (words, "words returned str with str in it"),
        (stream, "stream returned async_generator"),
        (Reranker(), "Reranker returned int"),
    ],
)
async def test_what_is_no_list_of_hits_is_refused(function: Callable[..., Any], told: str) -> None:
    with pytest.raises(BlockError, match=rf"postprocessor {told}\. Return a list of the hits to show"):
        await through([function], "q", list(HITS))
