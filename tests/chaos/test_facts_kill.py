"""Facts are learned once (P4): a program is killed while its model thinks, and knows the same as one that was not."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chaos_blocks import PATIENCE, Act, Program, acts, carry_out
from chaos_database import audit, leaks, raw_leaks, rows
from chaos_facts import NAME, calls_of, facts_engine

from memory_engine import ChatMessage, MemoryEngine

pytestmark = pytest.mark.asyncio

SESSIONS = ("a",)
"""One (scope, block) pair, so that a kill interrupts one call at most."""
COUNT = 150
FLUSH_SIZE = 40


async def go_on(engine: MemoryEngine, todo: Sequence[Act]) -> None:
    """Carry out what is left, undisturbed."""
    await carry_out(engine, list(todo))
    await engine.drain(PATIENCE)


async def known(engine: MemoryEngine) -> list[tuple[Any, ...]]:
    """The whole history, without times and sessions, which two runs do not share."""
    block: Any = await engine.session("a", user_id="ada").block(NAME)
    return [
        (fact.id, fact.text, [(one.message_id, one.seq) for one in fact.proofs], fact.valid_to is None, fact.superseded_by)
        for fact in await block.history()
    ]


def calls(database: Path) -> int:
    return len(calls_of(database).read_text().splitlines())


async def test_a_program_that_is_killed_while_its_model_thinks_knows_the_same(tmp_path: Path, scale: int) -> None:
    """100 kills with `--soak`: the same chunks, facts and proofs, and at most one call repeated for each kill."""
    for seed in range(max(1, scale // 2)):
        todo = acts(seed, COUNT, SESSIONS)
        program = Program(tmp_path / f"killed-{seed}.db", seed, "facts", count=COUNT, patience=1.5)
        kills = 10 if scale > 1 else 4
        for _ in range(kills):
            await asyncio.to_thread(program.run_and_end, signal.SIGKILL)
        async with facts_engine(program.database) as engine:
            await go_on(engine, todo[program.done :])
            audit(program.database)
            found = await known(engine)
        quiet = tmp_path / f"undisturbed-{seed}.db"
        async with facts_engine(quiet, lease=60.0) as engine:
            await go_on(engine, todo)
            expected = await known(engine)
            context = await engine.session("a", user_id="ada").context()
        assert found == expected, f"seed {seed}"
        assert len(expected) > 40 and any(one[4] for one in expected), "the test is too small to say anything"
        assert any(" + " in one[1] for one in expected), "nothing was condensed"
        assert calls(quiet) <= calls(program.database) <= calls(quiet) + kills, f"seed {seed}"
        chunks = [max(1, tokens // FLUSH_SIZE) for (tokens,) in rows(quiet, "SELECT tokens FROM memory_flushes")]
        assert calls(quiet) <= sum(chunks)
        assert context.receipt.source(NAME).usage.calls == calls(quiet)


async def test_what_is_erased_while_facts_are_learned_is_nowhere(tmp_path: Path, scale: int) -> None:
    """Messages of two sessions of a user are deleted at random moments, also those whose facts were corrected or merged."""
    for seed in range(scale):
        database = tmp_path / f"{seed}.db"
        random_ = random.Random(seed)
        gone: list[str] = []
        async with facts_engine(database, slow=0.01, scope="user") as engine:
            memories = [engine.session(name, user_id="ada") for name in ("a", "b")]
            for number in range(150):
                memory = random_.choice(memories)
                mark = f"m{number:03d}x{seed}"
                await memory.put(ChatMessage(role="user", id=mark, content=f"{mark} likes tea and rain and so on"))
                if random_.random() < 0.15:
                    stored = [message.id or "" for message in await memory.get_all()]
                    doomed = random_.sample(stored, min(len(stored), 4))
                    await memory.delete(doomed)
                    gone += doomed
            for memory in memories:
                await memory.flush(final=True)
            await engine.drain(PATIENCE)
            left = {message.id for memory in memories for message in await memory.get_all()}
            block: Any = await memories[0].block(NAME)
            history = await block.history()
            assert len(history) > 5 and len(gone) > 20, "the test is too small to say anything"
            for fact in history:
                assert {one.message_id for one in fact.proofs} <= left
                assert set(fact.text.replace("+", " ").split()) & left, "its text is that of messages that are there"
            assert leaks(database, gone) == {}, f"seed {seed}"
            current = {fact.text for fact in await block.facts()}
            assert current == {fact.text for fact in history if fact.valid_to is None}
        assert raw_leaks(database, gone) == {}, f"seed {seed}"


async def test_deleting_the_sessions_leaves_no_row(tmp_path: Path) -> None:
    database = tmp_path / "memory.db"
    async with facts_engine(database) as engine:
        await go_on(engine, acts(3, COUNT))
        assert rows(database, "SELECT COUNT(*) > 20 FROM memory_block_records") == [(1,)]
        for session in ("a", "b"):
            await engine.delete_session(session)
        await engine.drain(PATIENCE)
        for table in ("block_records", "block_states", "block_cursors", "messages", "flushes", "erasures"):
            assert rows(database, f"SELECT COUNT(*) FROM memory_{table}") == [(0,)], table
