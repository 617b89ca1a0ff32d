"""Nothing is lost (P4): a program is killed at random moments, and every block still absorbs every message once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest
from chaos_blocks import ACTS, PATIENCE, Program, acts, carry_out, heads, of_session, recorders, small_engine
from chaos_database import BOTH_IN_SOAK, Database, audit, flushed, rows

from memory_engine import MemoryEngine

pytestmark = pytest.mark.asyncio

SESSIONS = ("a", "b")
KILLS = 10
"""How often each program is killed with `--soak`; each of them has a database of its own."""


async def absorbed(engine: MemoryEngine, session: str) -> dict[str, list[list[str]]]:
    """What each block has written down about a session, call by call, without the texts."""
    found = {}
    for definition in recorders():
        block = await engine.session(session, user_id="ada").block(definition.name)
        found[definition.name] = of_session(await block.absorbed(), session)
    return found


async def check(program: Program, what: str) -> None:
    """Drain, then compare what was acknowledged, what is stored, and what every block has absorbed."""
    async with small_engine(program.database, recorders()) as engine:
        await engine.drain(PATIENCE)
        audit(program.database)
        for session in SESSIONS:
            put = [m.id for act in program.acknowledged if act.session == session for m in act.messages]
            planned = [m.id for act in acts(program.seed, program.count) if act.session == session for m in act.messages]
            stored = [m.id for m in await engine.session(session, user_id="ada").get_all()]
            assert stored[: len(put)] == put, f"{what}: acknowledged, but not stored"
            assert stored == planned[: len(stored)], f"{what}: order"
            expected = flushed(program.database, session)
            for name, calls in (await absorbed(engine, session)).items():
                assert [line for call in calls for line in call] == expected, f"{what}: {name} of session {session}"


def flushes(database: Database) -> list[tuple[object, ...]]:
    """All flush points."""
    return rows(
        database,
        "SELECT s.session_id, f.end_seq, f.tokens FROM memory_flushes f JOIN memory_sessions s ON s.pk = f.session_pk "
        "ORDER BY s.session_id, f.end_seq",
    )


@pytest.mark.parametrize("database_kind", BOTH_IN_SOAK, indirect=True)
async def test_a_program_that_is_killed_again_and_again_loses_and_repeats_nothing(
    new_database: Callable[[str], Database], soak: bool
) -> None:
    """200 kills with `--soak`: exactly once, in order, and in the same chunks as without any."""
    for seed in range(20 if soak else 1):
        program = Program(new_database(f"killed-{seed}"), seed, count=ACTS if soak else 120)
        for kill in range(KILLS if soak else 4):
            await asyncio.to_thread(program.run_and_end, signal.SIGKILL)
            if program.random.random() < 0.5:
                await check(program, f"seed {seed}, kill {kill}")
        async with small_engine(program.database, recorders()) as engine:
            await carry_out(engine, acts(seed, program.count)[program.done :])
        program.done = program.count
        await check(program, f"seed {seed}, at the end")
        await compare_with_an_undisturbed_run(program, new_database(f"undisturbed-{seed}"))


async def compare_with_an_undisturbed_run(program: Program, database: Database) -> None:
    """The same flushes and, for each block, the same calls."""
    async with small_engine(database, recorders()) as quiet, small_engine(program.database, recorders()) as killed:
        await carry_out(quiet, acts(program.seed, program.count))
        await quiet.drain(PATIENCE)
        assert flushes(program.database) == flushes(database), f"seed {program.seed}: flushes"
        assert len(flushes(database)) > 10, "the test is too small to say anything"
        for session in SESSIONS:
            expected, found = await absorbed(quiet, session), await absorbed(killed, session)
            assert found == expected, f"seed {program.seed}: calls of session {session}"


@pytest.mark.parametrize("database_kind", BOTH_IN_SOAK, indirect=True)
async def test_the_end_of_a_session_teaches_all_of_it_after_kills_too(database: Database) -> None:
    """After `flush(final=True)` every acknowledged message that blocks receive is absorbed."""
    program = Program(database, 77)
    for _ in range(3):
        await asyncio.to_thread(program.run_and_end, signal.SIGKILL)
    async with small_engine(program.database, recorders()) as engine:
        for session in SESSIONS:
            memory = engine.session(session, user_id="ada")
            await memory.flush(final=True)
            await memory.drain(PATIENCE)
            everything = [m.id for m in await memory.get_all() if m.role != "system"]
            for name, calls in (await absorbed(engine, session)).items():
                assert [line.split("/")[2] for call in calls for line in heads(call)] == everything, name


@pytest.mark.parametrize("database_kind", BOTH_IN_SOAK, indirect=True)
async def test_an_interrupted_program_loses_and_repeats_nothing(database: Database, soak: bool) -> None:
    """Ctrl-C cancels the whole program at whatever it awaits; what it had acknowledged is there."""
    program = Program(database, 4711)
    for interrupt in range(30 if soak else 2):
        await asyncio.to_thread(program.run_and_end, signal.SIGINT)
        await check(program, f"interrupt {interrupt}")
