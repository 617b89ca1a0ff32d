"""What docs/production.md tells operators to do, done while others write: backups, their restoring, partitions."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from memory_engine import BaseMemoryBlock, ChatMessage, Limits, Memory, MemoryEngine
from memory_engine.testing.postgres import PostgresServer

pytestmark = pytest.mark.asyncio

WRITERS = 4
WORDS = "of the journey to the north, and what was said about it"


class Heard(BaseMemoryBlock[str]):
    """Notes every message that it absorbs."""

    name: str = "heard"
    heard: list[str] = []

    async def _aget(self, messages: Sequence[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return f"{len(self.heard)} messages"

    async def _aput(self, messages: Sequence[ChatMessage]) -> None:
        self.heard.extend(message.content for message in messages)


def engine_at(uri: str) -> MemoryEngine:
    limits = Limits(get=10.0, delivery=30.0, first_retry=0.01, last_retry=0.1, lease=5.0, poll=0.1)
    return MemoryEngine(async_database_uri=uri, memory_blocks=[Heard()], limits=limits, token_limit=1_000, token_flush_size=50)


async def written_during(engine: MemoryEngine, backup: Callable[[], Awaitable[object]]) -> list[int]:
    """Let writers write before, during and after a backup; how many messages of each were acknowledged before it began."""
    acknowledged = [0] * WRITERS
    done = asyncio.Event()

    async def write(writer: int) -> None:
        memory = engine.session(f"s{writer}")
        while not done.is_set():
            number = acknowledged[writer]
            await memory.put({"role": ("user", "assistant")[number % 2], "content": f"{number} {WORDS}"})
            acknowledged[writer] += 1

    async with asyncio.TaskGroup() as group:
        for writer in range(WRITERS):
            group.create_task(write(writer))
        while min(acknowledged) < 60:
            await asyncio.sleep(0.01)
        before = list(acknowledged)
        await backup()
        end = min(acknowledged) + 10
        while min(acknowledged) < end:
            await asyncio.sleep(0.01)
        done.set()
    return before


async def check_restored(uri: str, before: Sequence[int]) -> None:
    """Everything of before the backup is there; what was pending then is delivered now; it can be written on."""
    async with engine_at(uri) as engine:
        await engine.drain(60)
        for writer in range(WRITERS):
            memory = engine.session(f"s{writer}")
            texts = [message.content for message in await memory.get_all()]
            assert texts == [f"{number} {WORDS}" for number in range(len(texts))]
            assert len(texts) >= before[writer]
            await memory.put({"role": "user", "content": "and on"})
            await absorbed_what_left(memory)


async def absorbed_what_left(memory: Memory) -> None:
    """The block heard everything that left the FIFO, once and in order."""
    await memory.drain(60)
    archived = [message.content for message in await memory.get_all(archived=True)]
    assert archived, "nothing was flushed: the test says nothing"
    assert (await memory.block("heard")).heard == archived  # type: ignore[attr-defined]


async def test_a_copy_of_sqlite_made_while_others_write_is_a_whole_memory(tmp_path: Path) -> None:
    path, copy = tmp_path / "memory.db", tmp_path / "copy.db"

    def back_up() -> None:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)

    async with engine_at(f"sqlite+aiosqlite:///{path}") as engine:
        before = await written_during(engine, lambda: asyncio.to_thread(back_up))
    await check_restored(f"sqlite+aiosqlite:///{copy}", before)


async def test_a_dump_of_postgresql_made_while_others_write_is_a_whole_memory(own_server: PostgresServer) -> None:
    dump = own_server.folder / "memory.dump"
    async with engine_at(own_server.uri("memory")) as engine:
        arguments = ("--host", own_server.folder, "--username", "postgres", "--format", "custom", "--file", dump, "memory")
        before = await written_during(engine, lambda: asyncio.to_thread(own_server.run, "pg_dump", *arguments))
    own_server.execute("CREATE DATABASE restored")
    own_server.run("pg_restore", "--host", own_server.folder, "--username", "postgres", "--dbname", "restored", dump)
    await check_restored(own_server.uri("restored"), before)


async def test_messages_may_be_partitioned_by_session(own_server: PostgresServer) -> None:
    """With the statements of docs/production.md, on tables that are empty yet."""
    text = (Path(__file__).parents[2] / "docs" / "production.md").read_text(encoding="utf-8")
    statements = text.partition("```sql\n")[2].partition("```")[0]
    assert "PARTITION BY HASH" in statements
    uri = own_server.uri("memory")
    async with engine_at(uri):
        pass
    own_server.execute(statements, "memory")
    async with engine_at(uri) as engine:

        async def nothing() -> None:
            return None

        before = await written_during(engine, nothing)
        await engine.session("s0").rewind((await engine.session("s0").get_all())[-1].id or "")
        await engine.session("other").put_messages([{"role": "user", "content": "hello"}])
        assert await engine.delete_session("other")
    await check_restored(uri, [before[0] - 1, *before[1:]])
    used = own_server.execute("SELECT count(DISTINCT tableoid) FROM memory_messages", "memory")
    assert int(used) > 1
