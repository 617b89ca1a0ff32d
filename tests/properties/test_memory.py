"""Promises 1, 2 and 4 for whole memories: any settings, any blocks, any messages, any order of calls."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter as Tally
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from checks import check_part
from hypothesis import HealthCheck, Phase, currently_in_test_context, given, note, settings
from hypothesis import strategies as st
from machine import Machine
from worlds import MARKER_LIKE, MESSAGE_KINDS, WORLDS, Recorder, World

from memory_engine import ChatMessage, Memory
from memory_engine.blocks import StaticMemoryBlock
from memory_engine.render import Section
from memory_engine.view import shorten

CALLS = (
    *(
        "get",
        "get",
        "get",
        "turns",
        "turns",
        "turns",
        "batch",
        "reput",
        "conflict",
        "own_id",
        "put_back",
        "set_back",
        "set",
        "get_of_run",
    ),
    *("flush", "final", "pop", "delete", "rewind", "reset", "drain", "reopen", "reopen"),
)
STEP = st.tuples(st.one_of(st.sampled_from(CALLS), st.sampled_from(MESSAGE_KINDS)), st.integers(0, 9_999))
STEPS = st.one_of(st.lists(STEP, min_size=1, max_size=8), st.lists(STEP, min_size=16, max_size=32))
GETS = 120
_NUMBERS = count()
SOAK_GETS = 20_000


async def run(worlds: list[World], steps: list[tuple[str, int]], uri: str | None, tally: Tally[str], name: str = "s") -> None:
    machine = Machine(worlds[0], uri, tally, name)
    try:
        async with machine:
            for kind, seed in steps:
                if kind == "reopen":
                    await machine.reopen(worlds[seed % len(worlds)])
                else:
                    await machine.step(kind, seed)
                    await machine.step("get", seed)
            await machine.step("drain", 0)
            await machine.step("get", 0)
    except BaseException:
        if currently_in_test_context():
            note("\n".join(machine.log))
        raise


def sqlite(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def explore(examples: int, tally: Tally[str], where: str) -> None:
    """Run that many random programs, each on a database of its own, on PostgreSQL each in a session of its own."""

    @settings(
        max_examples=examples,
        derandomize=False,
        deadline=None,
        database=None,
        print_blob=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(worlds=st.lists(WORLDS, min_size=1, max_size=2), steps=STEPS)
    def program(worlds: list[World], steps: list[tuple[str, int]]) -> None:
        with TemporaryDirectory() as folder:
            uri = {"memory": None, "file": sqlite(Path(folder) / "memory.db")}.get(where, where)
            asyncio.run(run(worlds, steps, uri, tally, f"session {next(_NUMBERS)}"))
        tally["programs"] += 1

    program()


@pytest.mark.parametrize("where", ["memory", "file", "postgresql"])
@pytest.mark.timeout(3600)
def test_any_program(where: str, soak: bool, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "memory_engine")
    if where == "postgresql":
        where = request.getfixturevalue("postgres_uri")
    tally: Tally[str] = Tally()
    goal = (SOAK_GETS if soak else GETS) // (2 if where in ("memory", "file") else 4)
    while tally["gets"] < goal:
        explore(200 if soak else 8, tally, where)
    print(f"\n{where}: 0 violations in {dict(tally)}")


async def test_what_blocks_have_not_absorbed_yet_does_not_make_the_history_longer(tmp_path: Path) -> None:
    """A call left the FIFO, its result was popped and came again: as long as a block lagged, all of its turn was fixed."""
    world = World(tokenizer="length", media=8)
    await run([world], [("turns", 318), ("set_back", 0), ("pop", 0), ("answer", 1)], sqlite(tmp_path / "memory.db"), Tally())


@pytest.mark.parametrize(("rendering", "said"), [(300, 790), (321, 229)])
@pytest.mark.parametrize("over", [5, 46, 47, 52], ids=["most fits", "a word fits", "nothing fits", "not even what is added"])
async def test_what_rendering_added_goes_with_the_section(rendering: int, said: int, over: int) -> None:
    """What rendering adds cuts the section, and when it has gone takes no room from what may never be cut."""

    def at_length(sections: Sequence[Section]) -> str:
        return "word " * rendering + "\n".join(section.text for section in sections)

    block = StaticMemoryBlock(name="notes", static_content="note " * 47, priority=1)
    limit = said + 4 + 47 + rendering + 4 - over
    async with Memory.from_defaults(
        token_limit=limit, tokenizer_fn=str.split, renderer=at_length, memory_blocks=[block]
    ) as memory:
        await memory.put(ChatMessage(role="user", content="word " * said))
        context = await memory.context()
    notes = context.receipt.source("notes")
    if over < 47:
        assert context.receipt.tokens == limit and notes.outcome.startswith("trimmed")
        assert sum(message.content.split().count("note") for message in context.messages) == 47 - over
    else:
        assert context.receipt.tokens == said + 4 and notes.given == 0


@given(
    st.lists(st.sampled_from([*MARKER_LIKE, "\n", "word ", "[…]"]), min_size=20, max_size=60).map("".join),
    st.lists(st.integers(1, 600), min_size=2, max_size=4),
)
def test_a_text_is_cut_in_one_place_only(content: str, limits: list[int]) -> None:
    """However often it is made shorter, and even if a tool's text holds what looks like the marker of a cut."""
    stored = ChatMessage(role="tool", content=content, tool_call_id="c", id="m")
    shown = stored
    for limit in sorted(limits, reverse=True):
        shown = shorten(shown, limit, lambda message: len(message.content))
        check_part(shown, stored)


async def test_what_is_archived_is_counted_by_the_tokenizer_in_use(tmp_path: Path) -> None:
    """A block that comes later makes the archive visible until it has absorbed it; its stored counts may be another's."""
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    async with Memory.from_defaults("s", async_database_uri=uri, tokenizer_fn=str.split) as memory:
        for number in range(20):
            await memory.put(ChatMessage(role="user", content=f"{number}" + "-" * 90))
        await memory.flush(final=True)
    late = Recorder(name="late", refuses=True)
    async with Memory.from_defaults(
        "s", token_limit=1000, async_database_uri=uri, tokenizer_fn=len, memory_blocks=[late], delivery="inline"
    ) as memory:
        context = await memory.context()
        await memory.drain(timeout=30)
    assert sum(len(message.content) + 4 for message in context.messages) == context.receipt.tokens <= 1000
    assert len(context.messages) == 10
