from __future__ import annotations

import asyncio
import doctest
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest

from memory_engine import testing
from memory_engine.testing import FakeClock, FakeEmbedder, ScriptedLLM, ScriptExhaustedError, doubles


def test_the_clock_stands_still_until_it_is_moved() -> None:
    clock = FakeClock(datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2))))
    assert clock.now() == clock.now() == datetime(2024, 5, 1, 10, tzinfo=UTC)
    assert clock.now().tzinfo is UTC
    assert clock.advance(1.5) == datetime(2024, 5, 1, 10, 0, 1, 500_000, tzinfo=UTC)
    assert clock.advance(-60) == clock.now() == datetime(2024, 5, 1, 9, 59, 1, 500_000, tzinfo=UTC)


def test_the_clock_refuses_naive_times() -> None:
    with pytest.raises(ValueError, match="aware"):
        FakeClock(datetime(2024, 5, 1))


@pytest.mark.asyncio
async def test_the_embedder_is_deterministic_and_puts_like_to_like() -> None:
    embed = FakeEmbedder(dimensions=64)
    [first, second, other, empty] = await embed(["Green tea!", "tea, GREEN", "heavy rain", "..."])
    assert first == second
    assert len(first) == 64
    assert sum(value * value for value in first) == pytest.approx(1.0)
    assert sum(a * b for a, b in zip(first, other, strict=True)) < 0.5
    assert empty == [0.0] * 64
    assert embed.calls == [["Green tea!", "tea, GREEN", "heavy rain", "..."]]
    assert await FakeEmbedder(dimensions=64)(["Green tea!"]) == [first]


@pytest.mark.asyncio
async def test_the_llm_follows_its_script() -> None:
    async def slowly(prompt: object) -> str:
        await asyncio.sleep(0)
        return f"slowly {prompt}"

    llm = ScriptedLLM(["one", ConnectionError("down"), lambda prompt: f"two of {prompt}", slowly])
    assert await llm("a") == "one"
    with pytest.raises(ConnectionError, match="down"):
        await llm("b")
    assert await llm("c") == "two of c"
    assert await llm(["d"]) == "slowly ['d']"
    assert llm.prompts == ["a", "b", "c", ["d"]]
    assert llm.left == 0


@pytest.mark.asyncio
async def test_an_llm_without_a_reply_says_what_it_was_asked() -> None:
    llm = ScriptedLLM("only")
    assert await llm("x") == "only"
    with pytest.raises(ScriptExhaustedError, match=r"no reply for call 2, which asked: 'the question'.*otherwise="):
        await llm("the question")
    llm.add("more")
    assert await llm("x") == "more"


@pytest.mark.asyncio
async def test_an_llm_may_answer_otherwise_for_ever() -> None:
    llm = ScriptedLLM(["first"], otherwise=str.upper)
    assert [await llm(text) for text in ("a", "b", "c")] == ["first", "B", "C"]
    broken = ScriptedLLM(otherwise=TimeoutError("busy"))
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await broken("a")


@pytest.mark.asyncio
async def test_the_prompt_is_recorded_as_it_was() -> None:
    llm = ScriptedLLM(otherwise="ok")
    prompt = ["a"]
    await llm(prompt)
    prompt.append("b")
    assert llm.prompts == [["a"]]


@pytest.mark.asyncio
async def test_a_delayed_llm_can_be_cancelled() -> None:
    llm = ScriptedLLM(["late"], delay=60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(llm("a"), 0.01)


def test_the_front_door_names_everything_and_nothing_else() -> None:
    for name in testing.__all__:
        assert getattr(testing, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        testing.Nonsense  # noqa: B018


def test_the_doubles_need_no_pytest() -> None:
    code = (
        "import sys; from memory_engine.testing import FakeClock, FakeEmbedder, ScriptedLLM; "
        "sys.exit(any(name == 'pytest' or name.startswith('_pytest') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_examples_in_the_docstrings_run() -> None:
    results = doctest.testmod(doubles)
    assert results.attempted > 0
    assert results.failed == 0
