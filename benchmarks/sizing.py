"""What to plan for: bytes on disk for each message and session, memory for each open session, deliveries for each second.

    python benchmarks/sizing.py [--sessions 500] [--messages 100] [--out FOLDER]

Messages have 50 to 70 tokens, half of them of the user. Sizes are of the database after a checkpoint (SQLite) or of the tables
with their indexes (PostgreSQL, before any VACUUM). Deliveries go to a block that keeps a few words of state for each session,
so that what is measured is the delivery, not a model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.contenders import Conversation
from benchmarks.environment import environment
from benchmarks.timing import table
from memory_engine import BaseMemoryBlock, ChatMessage, MemoryEngine
from memory_engine.testing.postgres import PostgresServer

TOKEN_LIMIT = 4_000
AT_ONCE = 64
WINDOWS = 300


class CountBlock(BaseMemoryBlock[str]):
    """State of a few bytes."""

    count: int = 0

    async def _aget(self, messages: Sequence[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return f"{self.count} messages"

    async def _aput(self, messages: Sequence[ChatMessage]) -> None:
        self.count += len(messages)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What was measured on one database; bytes, and messages for each second."""

    database: str
    bytes_per_message: float
    bytes_per_empty_session: float
    memory_per_handle: float | None
    memory_per_message_shown: float | None
    stored_per_second: float
    delivered_per_second: float


async def each(count: int, work: Callable[[int], Awaitable[object]]) -> None:
    """Do something for each number, some of them at once."""
    numbers = iter(range(count))

    async def one_after_another() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))


async def measure(database: str, uri: str, size: Callable[[], int], sessions: int, messages: int) -> Sizes:
    """Fill sessions, read them, and deliver what left their FIFOs; `size` tells the bytes on disk."""
    lines = [ChatMessage(role=line.role, content=line.text) for line in Conversation().lines(messages)]
    block = CountBlock(name="count", scope="session")
    async with MemoryEngine(
        async_database_uri=uri, token_limit=TOKEN_LIMIT, memory_blocks=[block], delivery="worker"
    ) as engine:
        await engine.session("first").put(lines[0])
        disk, memory = [size()], [resident()]
        handles = [engine.session(f"chat-{number}") for number in range(sessions)]
        await each(sessions, lambda number: handles[number].put(lines[0]))
        disk.append(size())
        memory.append(resident())
        began = time.perf_counter()
        await each(sessions, lambda number: handles[number].put_messages(lines[1:]))
        stored = sessions * (messages - 1) / (time.perf_counter() - began)
        disk.append(size())
        memory.append(resident())
        shown = min(sessions, WINDOWS)
        messages_shown = 0

        async def show(number: int) -> None:
            nonlocal messages_shown
            shown_here = len(await handles[number].get())
            messages_shown += shown_here

        await each(shown, show)
        memory.append(resident())
        waiting = (await engine.stats()).pending
    began = time.perf_counter()
    async with MemoryEngine(async_database_uri=uri, token_limit=TOKEN_LIMIT, memory_blocks=[block]) as worker:
        await worker.drain()
    delivered = waiting / (time.perf_counter() - began)
    per_message = (disk[2] - disk[1]) / (sessions * (messages - 1))
    per_session = (disk[1] - disk[0]) / sessions - per_message
    handle, message = (memory[1] - memory[0]) / sessions, (memory[3] - memory[2]) / messages_shown
    return Sizes(database, per_message, per_session, handle, message, stored, delivered)


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


async def run(sessions: int, messages: int) -> list[Sizes]:
    """Both databases, one after the other."""
    with tempfile.TemporaryDirectory(prefix="sizing-") as name, PostgresServer(fsync=True) as server:
        path = Path(name) / "memory.db"

        def on_disk() -> int:
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return path.stat().st_size

        sqlite = await measure("SQLite", f"sqlite+aiosqlite:///{path}", on_disk, sessions, messages)
        server.execute("CREATE DATABASE sizing")
        tables = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r' AND relname LIKE 'memory%'"
        postgres = await measure(
            "PostgreSQL", server.uri("sizing"), lambda: int(server.execute(tables, "sizing")), sessions, messages
        )
    # The second one finds the memory that the first has left.
    return [sqlite, replace(postgres, memory_per_handle=None, memory_per_message_shown=None)]


def report(found: Sequence[Sizes]) -> str:
    """A table."""
    names = [name for name in Sizes.__slots__ if name != "database"]
    cells = {name: [getattr(one, name) for one in found] for name in names}
    rows = [[name.replace("_", " "), *("" if v is None else f"{v:,.0f}" for v in cells[name])] for name in names]
    return table(["", *(one.database for one in found)], rows)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--messages", type=int, default=100, help="in each session")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write sizing.txt and sizing.json there")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    found = asyncio.run(run(options.sessions, options.messages))
    text = report(found)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "sizing.txt").write_text(text + "\n", encoding="utf-8")
        packages = ("sqlalchemy", "aiosqlite", "asyncpg")
        plan = {"sessions": options.sessions, "messages": options.messages}
        result = {
            "benchmark": "sizing",
            "environment": environment(packages),
            "plan": plan,
            "results": [asdict(f) for f in found],
        }
        (options.out / "sizing.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
