"""Nothing is lost on its way into a vector store (P4): a program is killed at random moments, each item is there once."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest
from chaos_blocks import PATIENCE, Program, acts, carry_out, small_engine
from chaos_database import audit, rows
from chaos_recall import KINDS, Shop, SlowEmbedder, Stored, recalling, shop

from memory_engine import ChatMessage, MemoryEngine

pytestmark = pytest.mark.asyncio

SESSIONS = ("a", "b")
SCOPES = ("session", "user")
ACTS = 120


def engine_on(where: Shop) -> MemoryEngine:
    """An engine as the killed program has it."""
    return small_engine(where.database, recalling(where, SlowEmbedder(), SCOPES))


async def begin(database: Path, kind: str) -> None:
    """Let one message in undisturbed.

    Qdrant's local mode overwrites its list of collections in place; killed in that instant, it could not be opened again.
    """
    async with shop(kind, database, database.with_suffix(".qdrant")) as where, engine_on(where) as engine:
        memory = engine.session("first", user_id="ada")
        await memory.put(ChatMessage(role="user", content="the first words"))
        await memory.flush(final=True)
        await memory.drain(PATIENCE)


def flushed_seqs(database: Path, session: str) -> list[int]:
    """The messages that must be found in each block."""
    found = rows(
        database,
        "SELECT m.seq FROM memory_messages m JOIN memory_sessions s ON s.pk = m.session_pk "
        "WHERE s.session_id = ? AND m.seq < s.horizon AND m.role NOT IN ('system', 'developer') ORDER BY m.seq",
        session,
    )
    return [seq for (seq,) in found]


def holds_each_message_once(stored: list[Stored], database: Path, what: str) -> None:
    """Every flushed message is in one item, in each block; none is there that was not flushed."""
    for session in SESSIONS:
        expected = flushed_seqs(database, session)
        for scope in SCOPES:
            mine = [one for one in stored if (one.block, one.session_id) == (f"of_{scope}", session)]
            held = Counter(seq for one in mine for seq in range(one.seq, one.last_seq + 1))
            doubled = [seq for seq, times in held.items() if times > 1]
            assert not doubled, f"{what}: {scope} of {session} holds {doubled} more than once"
            assert sorted(held) == expected, f"{what}: {scope} of {session}"


async def check(program: Program, kind: str, what: str) -> list[Stored]:
    """Drain, then look at the store itself; returns what it holds."""
    async with shop(kind, program.database, program.database.with_suffix(".qdrant")) as where, engine_on(where) as engine:
        await engine.drain(PATIENCE)
        audit(program.database)
        stored = await where.stored()
        holds_each_message_once(stored, program.database, what)
        for session in ("first", *SESSIONS):
            await counts_are_right(engine, session, stored, what)
        return stored


async def counts_are_right(engine: MemoryEngine, session: str, stored: list[Stored], what: str) -> None:
    """The block knows how many items it should find, so that it notices when some are lost."""
    memory = engine.session(session, user_id="ada")
    receipt = (await memory.context("tea")).receipt
    for scope in SCOPES:
        block = await memory.block(f"of_{scope}")
        here = [one for one in stored if (one.block, one.scope) == (block.name, block.context.scope_key)]
        assert block.stored_items == len(here), f"{what}: {scope} of {session}"
        source = receipt.source(block.name)
        assert source.error is None and source.notes == (), f"{what}: {scope} of {session}"


@pytest.mark.parametrize("kind", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.soak)])
async def test_a_program_that_is_killed_while_it_fills_a_vector_store_has_each_item_once(
    tmp_path: Path, kind: str, scale: int
) -> None:
    """100 kills of each kind with `--soak`: no item doubled, none missing, the same ones as without any kill."""
    for seed in range(max(1, scale // 2)):
        program = Program(tmp_path / f"killed-{seed}.db", seed, "recall", kind, count=ACTS, patience=0.8)
        await begin(program.database, kind)
        for kill in range(10 if scale > 1 else 2):
            await asyncio.to_thread(program.run_and_end, signal.SIGKILL)
            if program.random.random() < 0.5:
                await check(program, kind, f"seed {seed}, kill {kill}")
        todo = acts(seed, ACTS)
        async with shop(kind, program.database, program.database.with_suffix(".qdrant")) as where, engine_on(where) as engine:
            await carry_out(engine, todo[program.done :])
        found = await check(program, kind, f"seed {seed}, at the end")
        quiet = Program(tmp_path / f"undisturbed-{seed}.db", seed, count=ACTS)
        await begin(quiet.database, kind)
        async with shop(kind, quiet.database, quiet.database.with_suffix(".qdrant")) as where, engine_on(where) as engine:
            await carry_out(engine, todo)
        expected = await check(quiet, kind, f"seed {seed}, undisturbed")
        assert len(expected) > 100, "the test is too small to say anything"
        assert sorted(map(repr, (one.timeless for one in found))) == sorted(map(repr, (one.timeless for one in expected)))
