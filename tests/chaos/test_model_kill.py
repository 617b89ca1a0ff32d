"""Summaries and notes after kills are those of an undisturbed run (P4), and a kill repeats no more than what it cut off."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from chaos_blocks import PATIENCE, Program, acts, carry_out
from chaos_database import audit, flushed
from chaos_models import calls, thinking, thinking_engine

from memory_engine import MemoryEngine
from memory_engine.blocks import SummaryMemoryBlock

pytestmark = pytest.mark.asyncio

SESSIONS = ("a", "b")
ACTS = 120
NAMES = tuple(block.name for block in thinking(Path()))


async def known(engine: MemoryEngine, database: Path, session: str) -> dict[str, Any]:
    """What each block knows of a session, without what differs from run to run."""
    memory = engine.session(session, user_id="ada")
    found: dict[str, Any] = {}
    for name in NAMES:
        block: Any = await memory.block(name)
        if isinstance(block, SummaryMemoryBlock):
            versions = [(one.number, one.text, [span[1:] for span in one.added]) for one in await block.versions()]
            waiting = [message.id for _, message in await block._messages(block.waiting)]
            covered = [message.id for message in await block.expand()]
            expected = [line.split("/")[2] for line in flushed(database, session)]
            assert covered + waiting == expected, f"{name} of {session}: each flushed message is in one place"
            found[name] = (block.summary, versions, waiting, block.model_calls)
        else:
            entities = [(one.name, one.text, [n for _, n in one.messages], one.seen) for one in await block.entities()]
            found[name] = (sorted(entities), block.model_calls)
    return found


async def everything(database: Path, log: Path) -> dict[str, Any]:
    """Drain, check the file, and say what is known of all sessions."""
    async with thinking_engine(database, log) as engine:
        await engine.drain(PATIENCE)
        audit(database)
        return {session: await known(engine, database, session) for session in SESSIONS}


async def test_summaries_and_notes_survive_kills(tmp_path: Path, scale: int) -> None:
    """100 kills with `--soak`."""
    for seed in range(max(1, scale // 2)):
        log, quiet_log = tmp_path / f"killed-{seed}.log", tmp_path / f"quiet-{seed}.log"
        program = Program(tmp_path / f"killed-{seed}.db", seed, "think", str(log), count=ACTS, patience=4.0)
        kills = 10 if scale > 1 else 3
        for _ in range(kills):
            await asyncio.to_thread(program.run_and_end, signal.SIGKILL)
            if program.random.random() < 0.4:
                await everything(program.database, log)
        todo = acts(seed, ACTS)
        async with thinking_engine(program.database, log) as engine:
            await carry_out(engine, todo[program.done :])
        found = await everything(program.database, log)
        async with thinking_engine(tmp_path / f"quiet-{seed}.db", quiet_log) as engine:
            await carry_out(engine, todo)
        expected = await everything(tmp_path / f"quiet-{seed}.db", quiet_log)
        assert found == expected, f"seed {seed}"
        assert all(expected[session]["each"][3] > 10 for session in SESSIONS), "the test is too small to say anything"
        assert_few_repeated(calls(log), calls(quiet_log), kills)


def assert_few_repeated(made: Counter[str], needed: Counter[str], kills: int) -> None:
    """The same calls, and of those that a kill cut off one more for each kill, block and session."""
    assert set(made) == set(needed)
    for name in NAMES:
        repeated = sum(count - 1 for call, count in made.items() if call.startswith(f"{name} "))
        undisturbed = sum(count - 1 for call, count in needed.items() if call.startswith(f"{name} "))
        assert undisturbed == 0, "calls must differ, or repeating one would go unnoticed"
        assert repeated <= kills * len(SESSIONS), f"{name}: {repeated} calls were repeated by {kills} kills"
