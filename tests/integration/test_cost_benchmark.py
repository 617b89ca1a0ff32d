"""The benchmark of what remembering costs measures what it says."""

from __future__ import annotations

import pytest

from benchmarks.cost import METHODS, RECIPES, measure, report, turns_of

LIMIT = 1_500
TURNS = 30


@pytest.mark.parametrize("recipe", list(RECIPES))
async def test_every_way_to_remember_keeps_to_its_limit(recipe: str, soak: bool) -> None:
    """All but the buffer, which is there to show what it costs to keep everything; inserted in all ways with `--soak`."""
    costs = [await measure(recipe, method, turns_of(TURNS), LIMIT) for method in (METHODS if soak else METHODS[-1:])]
    for cost in costs:
        assert 0 < cost.last <= cost.most <= cost.total and 0 <= cost.prefix < 1
        assert cost.most <= LIMIT or recipe == "buffer: everything"
        assert (cost.calls > 0) is (cost.model_tokens > 0) is any(word in recipe for word in ("summary", "facts", "entities"))
    assert recipe in report(costs, TURNS)


async def test_a_window_costs_the_same_each_turn_and_a_buffer_ever_more() -> None:
    window, longer = [await measure("window: the last 5 turns", "system", turns_of(count), LIMIT) for count in (60, 120)]
    buffer, more = [await measure("buffer: everything", "system", turns_of(count), LIMIT) for count in (60, 120)]
    assert longer.total < 3 * window.total
    assert more.total > 3 * buffer.total and more.most > LIMIT
