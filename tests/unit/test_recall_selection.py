"""What is chosen for the room there is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_engine.blocks.vector.layout import Layout
from memory_engine.blocks.vector.selection import Costs, Filling, worth
from memory_engine.blocks.vector.store import Item
from memory_engine.blocks.vector.templates import PLAIN

START = datetime(2025, 3, 1, 12, tzinfo=UTC)
LAYOUT = Layout(PLAIN, "[%H:%M]", 600.0)
COSTS = Costs(line=lambda item: 3, header=lambda item: 5)


def said(seq: int, tokens: int, text: str = "", minutes: float = 0.0) -> Item:
    at = START + timedelta(minutes=minutes)
    return Item(key=f"s:{seq}", text=text or f"text {seq}", at=at, session_uid="s", seq=seq, tokens=tokens)


def filling(
    items: list[Item], scores: list[float], *, limit: int | None = None, least: float = 0.0, shown: frozenset[int] = frozenset()
) -> Filling:
    return Filling(
        items,
        np.array(scores),
        limit=limit,
        least=least,
        layout=LAYOUT,
        costs=COSTS,
        shown=lambda item: item.seq in shown,
    )


def chosen(items: list[Item], scores: list[float], room: float, *, limit: int | None = None, least: float = 0.0) -> list[int]:
    found = filling(items, scores, limit=limit, least=least)
    found.extend(room)
    return found.chosen


def cost(items: list[Item]) -> int:
    return sum(item.tokens + 3 for item in items) + 5 * len({LAYOUT.place(item) for item in items})


@st.composite
def pools(draw: st.DrawFn) -> tuple[list[Item], list[float]]:
    size = draw(st.integers(0, 30))
    items = [
        said(n, draw(st.integers(1, 400)), f"text {draw(st.integers(0, 40))}", draw(st.integers(0, 60))) for n in range(size)
    ]
    return items, [draw(st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0])) for _ in range(size)]


@given(pools(), st.integers(0, 2000), st.none() | st.integers(1, 10), st.sampled_from([0.0, 0.05, 0.5]))
def test_it_never_costs_more_than_there_is_room(
    pool: tuple[list[Item], list[float]], room: int, limit: int | None, least: float
) -> None:
    items, scores = pool
    found = chosen(items, scores, room, limit=limit, least=least)
    assert cost([items[index] for index in found]) <= room
    assert len(set(found)) == len(found) <= (limit or len(items))
    assert len({items[index].text for index in found}) == len(found), "what is repeated is said once"
    assert all(scores[index] > 0 and scores[index] >= least * max(scores) for index in found)


@given(pools(), st.lists(st.integers(0, 600), max_size=5))
def test_filling_goes_on_where_it_stopped(pool: tuple[list[Item], list[float]], rooms: list[int]) -> None:
    items, scores = pool
    found = filling(items, scores)
    for room in rooms:
        before = list(found.chosen)
        found.extend(room)
        assert found.chosen[: len(before)] == before
    assert cost([items[index] for index in found.chosen]) <= sum(rooms)


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(0.01, 1.0)), max_size=25), st.integers(0, 1500), st.integers(0, 1500))
def test_more_room_shows_at_least_as_much(pairs: list[tuple[int, float]], room: int, more: int) -> None:
    """Up to the first item that does not fit, choices do not depend on the room; and after it, more room loses nothing but
    items that came after one which fits now."""
    items = [said(n, tokens) for n, (tokens, _) in enumerate(pairs)]
    scores = [score for _, score in pairs]
    small, large = chosen(items, scores, room), chosen(items, scores, room + more)
    order = chosen(items, scores, 1e9)
    lost = [order.index(index) for index in small if index not in large]
    won = [order.index(index) for index in large if index not in small]
    assert not lost or (won and min(won) < min(lost))


@given(st.lists(st.floats(0.01, 1.0), max_size=40), st.integers(0, 600), st.integers(0, 600))
def test_of_items_of_one_length_more_room_never_loses_one(scores: list[float], room: int, more: int) -> None:
    items = [said(n, 20) for n in range(len(scores))]
    small, large = chosen(items, scores, room), chosen(items, scores, room + more)
    assert large[: len(small)] == small


def test_worth_is_score_for_the_tokens() -> None:
    values = worth(np.array([1.0, 1.0, 1.0, 2.0]), np.array([10.0, 200.0, 800.0, 800.0]))
    assert values.tolist() == pytest.approx([200**-0.5, 200**-0.5, 800**-0.5, 2 * 800**-0.5])


def test_a_long_message_gives_way_to_two_short_ones() -> None:
    items = [said(0, 900), said(1, 100), said(2, 100)]
    assert chosen(items, [0.6, 0.5, 0.4], 1000) == [1, 2]
    assert chosen(items, [1.0, 0.3, 0.2], 1000)[0] == 0, "but not when it is much better"


def test_what_does_not_fit_is_passed_over() -> None:
    assert chosen([said(0, 100), said(1, 20), said(2, 200), said(3, 20)], [0.9, 0.2, 1.0, 0.1], 60) == [1, 3]


def test_what_did_not_fit_is_met_first_when_there_is_more_room() -> None:
    found = filling([said(0, 100), said(1, 20), said(2, 20)], [1.0, 0.5, 0.4])
    found.extend(30)
    assert found.chosen == [1]
    found.extend(110)
    assert found.chosen == [1, 0]
    assert not found.exhausted


def test_it_is_exhausted_when_all_is_chosen_or_the_limit_is_reached() -> None:
    items = [said(0, 10), said(1, 10)]
    found = filling(items, [1.0, 0.5])
    assert not found.exhausted
    found.extend(1000)
    assert found.exhausted
    limited = filling(items, [1.0, 0.5], limit=1)
    limited.extend(1000)
    assert limited.exhausted
    assert limited.chosen == [0]


def test_a_header_is_paid_for_once() -> None:
    items = [said(0, 10, minutes=0), said(1, 10, minutes=1), said(2, 10, minutes=30)]
    assert chosen(items, [1.0, 0.9, 0.8], 31) == [0, 1], "18 and 13; the third would be 18 again"
    assert chosen(items, [1.0, 0.9, 0.8], 49) == [0, 1, 2]


def test_the_floor_is_a_part_of_the_best() -> None:
    items = [said(n, 10) for n in range(4)]
    assert chosen(items, [1.0, 0.5, 0.04, 0.0], 1000, least=0.05) == [0, 1]
    assert chosen(items, [0.0, 0.0, 0.0, 0.0], 1000) == []


def test_repetitions_are_those_of_one_speaker() -> None:
    same = [said(0, 10, "Yes,  please"), said(1, 10, "yes, please"), said(2, 10, "yes please")]
    assert chosen(same, [0.5, 0.6, 0.1], 1000) == [1, 2]
    other = Item(key="o", text="yes, please", role="assistant", session_uid="s", seq=9, tokens=10)
    assert chosen([*same, other], [0.5, 0.6, 0.1, 0.2], 1000) == [1, 3, 2]


def test_what_is_shown_elsewhere_takes_no_place() -> None:
    found = filling([said(n, 10) for n in range(4)], [1.0, 0.9, 0.8, 0.7], limit=2, shown=frozenset({0, 2}))
    found.extend(1000)
    assert found.chosen == [1, 3]


def test_very_many_that_do_not_fit_end_the_search() -> None:
    large = [said(n, 500) for n in range(5_000)]
    assert chosen([*large, said(9_999, 1)], [1.0] * 5_000 + [0.001], 100) == []
