"""Many writers are safe (P5): tasks, handles, engines and processes on one session and one file."""

from __future__ import annotations

import asyncio
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from chaos_blocks import PATIENCE, heads, of_session, recorders, small_engine, speech
from chaos_database import BOTH, BOTH_IN_SOAK, Database, audit, flushed, rows

from memory_engine import ChatMessage, Memory, MemoryEngine

pytestmark = pytest.mark.asyncio

CHILD = Path(__file__).with_name("chaos_child.py")


def by_writer(ids: Sequence[str | None]) -> dict[str, list[int]]:
    """The numbers of each writer's messages in the order in which they stand; ids are `name-writer-number`."""
    found: dict[str, list[int]] = defaultdict(list)
    for message_id in ids:
        assert message_id is not None
        _, writer, number = message_id.rsplit("-", 2)
        found[writer].append(int(number))
    return dict(found)


async def check(engine: MemoryEngine, database: Database, session: str, writers: Sequence[str], count: int) -> None:
    """All there, each writer's in its order, sequences without gaps, each flushed message absorbed once."""
    memory = engine.session(session, user_id="ada")
    stored = [message.id for message in await memory.get_all()]
    assert by_writer(stored) == {writer: list(range(count)) for writer in writers}
    seqs = rows(
        database,
        "SELECT m.seq FROM memory_messages m JOIN memory_sessions s ON s.pk = m.session_pk WHERE s.session_id = ? ORDER BY 1",
        session,
    )
    assert [seq for (seq,) in seqs] == list(range(seqs[0][0], seqs[0][0] + len(stored)))
    expected = flushed(database, session)
    assert expected, "nothing was flushed: the test says nothing"
    for definition in recorders():
        calls = of_session(await (await memory.block(definition.name)).absorbed(), session)
        assert [line for call in calls for line in call] == expected, definition.name
    history = [m.id for m in await memory.get() if m.role != "system"]
    assert history == [message_id for message_id in stored if message_id in history]
    assert history[-1] == stored[-1]


async def write(memory: Memory, writer: int, count: int) -> None:
    """Put numbered messages, now and then several at once, and look at the context in between."""
    random_ = random.Random(writer)
    number = 0
    while number < count:
        size = min(count - number, 1 if random_.random() < 0.8 else 3)
        batch = []
        for _ in range(size):
            message_id = f"t-{writer}-{number:04d}"
            batch.append(ChatMessage(role=("user", "assistant")[number % 2], id=message_id, content=speech(random_)))
            number += 1
        stored = await memory.put_messages(batch)
        assert [m.id for m in stored] == [m.id for m in batch]
        if random_.random() < 0.2:
            shown = by_writer([m.id for m in await memory.get() if m.role != "system"])
            # A view shows every writer's messages in their order, and the newest ones of all.
            assert all(run == sorted(set(run)) for run in shown.values())
            assert shown.get(str(writer), [number - 1])[-1] == number - 1


@pytest.mark.parametrize("database_kind", BOTH_IN_SOAK, indirect=True)
async def test_eight_tasks_write_one_session(database: Database, soak: bool) -> None:
    """Through one handle, through handles of their own, and through engines of their own."""
    count = 250 if soak else 25
    blocks = recorders(slow=0.005)
    async with small_engine(database, blocks) as first, small_engine(database, blocks) as second:
        shared = first.session("shared", user_id="ada")
        handles = [shared, shared, shared, *(first.session("shared", user_id="ada") for _ in range(3))]
        handles += [second.session("shared", user_id="ada") for _ in range(2)]
        async with asyncio.timeout(600):
            await asyncio.gather(*(write(handle, number, count) for number, handle in enumerate(handles)))
        await first.drain(PATIENCE)
        await second.drain(PATIENCE)
        audit(database)
        await check(first, database, "shared", [str(n) for n in range(8)], count)
        await check(second, database, "shared", [str(n) for n in range(8)], count)


@pytest.mark.parametrize("database_kind", BOTH_IN_SOAK, indirect=True)
async def test_four_processes_write_one_file(database: Database, soak: bool) -> None:
    """They create it together, share a session and a user, and deliver side by side."""
    count = 250 if soak else 25
    writers = ["1", "2", "3", "4"]
    started = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            str(CHILD),
            "write",
            str(database),
            writer,
            str(count),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        for writer in writers
    ]
    ended = await asyncio.gather(*(process.communicate() for process in started))
    for process, (said, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0 and said == b"end\n", errors.decode()
    async with small_engine(database, recorders()) as engine:
        await engine.drain(PATIENCE)
        audit(database)
        await check(engine, database, "shared", writers, count)
        for writer in writers:
            await check(engine, database, f"own-{writer}", [writer], count)


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
async def test_a_message_with_an_id_is_stored_once_however_many_put_it(database: Database) -> None:
    """The same retry from many tasks and engines at the same time."""
    async with small_engine(database, recorders()) as first, small_engine(database, recorders()) as second:
        for number in range(20):
            message = ChatMessage(role="user", id=f"once-{number}", content="the same words")
            handles = [engine.session("s", user_id="ada") for engine in (first, second) for _ in range(4)]
            stored = await asyncio.gather(*(handle.put(message) for handle in handles))
            assert {m.id for m in stored if m is not None} == {message.id}
        memory = first.session("s", user_id="ada")
        assert [m.id for m in await memory.get_all()] == [f"once-{number}" for number in range(20)]
        await memory.flush(final=True)
        await memory.drain(PATIENCE)
        calls = await (await memory.block("in_records")).absorbed()
        assert [line for call in calls for line in heads(call)] == flushed(database, "s")
        audit(database)
