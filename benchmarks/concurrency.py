"""Messages per second when many sessions write at once, beside what one would use instead, in one run.

    python benchmarks/concurrency.py [--sessions 64] [--puts 50] [--rounds 5] [--databases sqlite,postgresql] [--out FOLDER]

Each round gives every system a fresh database, one after the other, and lets all sessions put their messages one by one, all
sessions at once. What is stored afterwards is counted. SQLite runs with synchronous=FULL, PostgreSQL with fsync on, so that a
message that was acknowledged survives a power cut everywhere. "raw" is the driver alone: one table, one INSERT and one COMMIT
for each message; "raw, together" commits whatever waits in one transaction, what the driver could do at best.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

if __package__ in (None, ""):  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.environment import environment
from benchmarks.timing import table
from memory_engine import Memory, MemoryEngine
from memory_engine.testing.postgres import PostgresServer

TEXT = "We talk about this and that, and what was said yesterday about the journey to the north. " * 4
POOL = 64
SECONDS = 60.0
"""A system that is slower than that in one round is ended; what it did until then counts."""


class System:
    """One way to store messages. `uri` is a fresh database."""

    name = ""

    async def open(self, uri: str, sessions: Sequence[str]) -> None:
        raise NotImplementedError

    async def put(self, session: str, number: int) -> None:
        raise NotImplementedError

    async def stored(self) -> int:
        """How many messages are there."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class Ours(System):
    """This project's engine, one handle for each session."""

    name = "memory_engine"

    async def open(self, uri: str, sessions: Sequence[str]) -> None:
        self._engine = MemoryEngine(async_database_uri=uri, sqlite_synchronous="FULL", token_limit=1_000_000)
        self._memories: dict[str, Memory] = {name: self._engine.session(name) for name in sessions}

    async def put(self, session: str, number: int) -> None:
        await self._memories[session].put({"role": "assistant" if number % 2 else "user", "content": f"{number} {TEXT}"})

    async def stored(self) -> int:
        return sum([len(await memory.get_all()) for memory in self._memories.values()])

    async def close(self) -> None:
        await self._engine.aclose()


class RawSqlite(System):
    """aiosqlite: one connection, one INSERT that commits itself for each message."""

    name = "raw"

    async def open(self, uri: str, sessions: Sequence[str]) -> None:
        import aiosqlite

        self._connection = await aiosqlite.connect(uri.partition(":///")[2], isolation_level=None)
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"):
            await self._connection.execute(statement)
        await self._connection.execute(
            "CREATE TABLE messages (session TEXT, seq INTEGER, data TEXT, PRIMARY KEY (session, seq))"
        )

    async def put(self, session: str, number: int) -> None:
        data = json.dumps({"role": "user", "content": f"{number} {TEXT}"})
        await self._connection.execute("INSERT INTO messages VALUES (?, ?, ?)", (session, number, data))

    async def stored(self) -> int:
        found = await self._connection.execute_fetchall("SELECT count(*) FROM messages")
        return int(next(iter(found))[0])

    async def close(self) -> None:
        await self._connection.close()


class RawPostgres(System):
    """asyncpg: a pool of 64 connections, one INSERT that commits itself for each message."""

    name = "raw"

    async def open(self, uri: str, sessions: Sequence[str]) -> None:
        import asyncpg

        address = uri.replace("postgresql+asyncpg", "postgresql")
        self._pool = await asyncpg.create_pool(address, min_size=POOL, max_size=POOL)
        await self._pool.execute("CREATE TABLE raw (session TEXT, seq BIGINT, data TEXT, PRIMARY KEY (session, seq))")

    async def put(self, session: str, number: int) -> None:
        data = json.dumps({"role": "user", "content": f"{number} {TEXT}"})
        await self._pool.execute("INSERT INTO raw VALUES ($1, $2, $3)", session, number, data)

    async def stored(self) -> int:
        return int(await self._pool.fetchval("SELECT count(*) FROM raw"))

    async def close(self) -> None:
        await self._pool.close()


class Together(System):
    """Hands whatever waits while one transaction runs to the next, as `write` does it."""

    name = "raw, together"

    def start(self) -> None:
        self._waiting: list[tuple[tuple[str, int, str], asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def put(self, session: str, number: int) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(((session, number, json.dumps({"role": "user", "content": f"{number} {TEXT}"})), done))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
        await done

    async def _write_all(self) -> None:
        while self._waiting:
            together, self._waiting = self._waiting, []
            await self.write([row for row, _ in together])
            for _, done in together:
                done.set_result(None)
        self._writer = None

    async def write(self, rows: Sequence[tuple[str, int, str]]) -> None:
        raise NotImplementedError


class SqliteTogether(Together, RawSqlite):
    name = "raw, together"

    async def open(self, uri: str, sessions: Sequence[str]) -> None:
        await RawSqlite.open(self, uri, sessions)
        self.start()

    async def write(self, rows: Sequence[tuple[str, int, str]]) -> None:
        await self._connection.execute("BEGIN")
        await self._connection.executemany("INSERT INTO messages VALUES (?, ?, ?)", rows)
        await self._connection.execute("COMMIT")


class PostgresTogether(Together, RawPostgres):
    name = "raw, together"

    async def open(self, uri: str, sessions: Sequence[str]) -> None:
        await RawPostgres.open(self, uri, sessions)
        self.start()

    async def write(self, rows: Sequence[tuple[str, int, str]]) -> None:
        await self._pool.executemany("INSERT INTO raw VALUES ($1, $2, $3)", rows)


def engine_at(uri: str) -> AsyncEngine:
    """An engine for as many sessions as write at once."""
    options = {"pool_size": POOL} if uri.startswith("postgresql") else {"connect_args": {"timeout": 30}}
    return create_async_engine(uri, **options)


class OnEngine(System):
    """One that is given an engine of SQLAlchemy's."""

    _engine: AsyncEngine

    async def close(self) -> None:
        await self._engine.dispose()


class Llama(OnEngine):
    """LlamaIndex's `Memory`, one for each session, on one engine."""

    name = "LlamaIndex Memory"

    async def open(self, uri: str, sessions: Sequence[str]) -> None:
        from llama_index.core.llms import ChatMessage
        from llama_index.core.memory import Memory as LlamaMemory

        self._message = ChatMessage
        self._engine = engine_at(uri)
        made = [
            (name, LlamaMemory.from_defaults(session_id=name, token_limit=1_000_000, async_engine=self._engine))
            for name in sessions
        ]
        self._memories = dict(made)
        # Its first calls at once would race for the creation of its table.
        await self._memories[sessions[0]].aget_all()

    async def put(self, session: str, number: int) -> None:
        await self._memories[session].aput(self._message(role="user", content=f"{number} {TEXT}"))

    async def stored(self) -> int:
        return sum([len(await memory.aget_all()) for memory in self._memories.values()])


class OpenAI(OnEngine):
    """The session of OpenAI's Agents SDK on SQLAlchemy, on one engine."""

    name = "OpenAI Agents SQLAlchemySession"

    async def open(self, uri: str, sessions: Sequence[str]) -> None:
        from agents.extensions.memory import SQLAlchemySession

        self._engine = engine_at(uri)
        first = SQLAlchemySession(sessions[0], engine=self._engine, create_tables=True)
        await first.get_items(1)
        self._sessions = {name: SQLAlchemySession(name, engine=self._engine) for name in sessions}

    async def put(self, session: str, number: int) -> None:
        await self._sessions[session].add_items([{"role": "user", "content": f"{number} {TEXT}"}])

    async def stored(self) -> int:
        return sum([len(await session.get_items()) for session in self._sessions.values()])


class LangChain(OnEngine):
    """LangChain's SQLChatMessageHistory in its asynchronous mode, on one engine."""

    name = "LangChain SQLChatMessageHistory"

    async def open(self, uri: str, sessions: Sequence[str]) -> None:
        from langchain_community.chat_message_histories import SQLChatMessageHistory
        from langchain_core.messages import HumanMessage

        self._message = HumanMessage
        self._engine = engine_at(uri)
        made = [(name, SQLChatMessageHistory(name, connection=self._engine, async_mode=True)) for name in sessions]
        self._histories = dict(made)
        await self._histories[sessions[0]].aget_messages()
        for history in self._histories.values():
            history._table_created = True

    async def put(self, session: str, number: int) -> None:
        await self._histories[session].aadd_message(self._message(f"{number} {TEXT}"))

    async def stored(self) -> int:
        return sum([len(await history.aget_messages()) for history in self._histories.values()])


SYSTEMS: dict[str, list[Callable[[], System]]] = {
    "sqlite": [Ours, RawSqlite, SqliteTogether, Llama, OpenAI, LangChain],
    "postgresql": [Ours, RawPostgres, PostgresTogether, Llama, OpenAI, LangChain],
}


@dataclass(frozen=True, slots=True)
class Round:
    """What one system did in one round."""

    database: str
    system: str
    seconds: float
    acknowledged: int
    failed: int
    stored: int

    @property
    def per_second(self) -> float:
        """Messages that were acknowledged, for each second."""
        return self.acknowledged / self.seconds


async def play(make: Callable[[], System], database: str, uri: str, sessions: int, puts: int) -> Round:
    """All sessions at once, each one message after the other."""
    system, names = make(), [f"session-{number}" for number in range(sessions)]
    await system.open(uri, names)
    for name in names:
        with suppress(Exception):
            await system.put(name, 0)  # connections, statements, sessions
    done = failed = 0
    end = time.perf_counter() + SECONDS

    async def write(name: str) -> None:
        nonlocal done, failed
        for number in range(1, puts + 1):
            if time.perf_counter() > end:
                return
            try:
                await system.put(name, number)
                done += 1
            except Exception:  # noqa: BLE001 - what a system refuses under load is one of the figures
                failed += 1

    started = time.perf_counter()
    await asyncio.gather(*(write(name) for name in names))
    seconds = time.perf_counter() - started
    stored = await system.stored() - sessions
    await system.close()
    return Round(database, system.name, seconds, done, failed, stored)


async def run(databases: Sequence[str], sessions: int, puts: int, rounds: int, say: Callable[[str], None]) -> list[Round]:
    """Every system on a fresh database in every round, each round beginning with another of them."""
    found: list[Round] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="concurrency-")))
        server = stack.enter_context(PostgresServer(fsync=True)) if "postgresql" in databases else None
        for number in range(rounds):
            for database in databases:
                systems = SYSTEMS[database]
                for place in range(len(systems)):
                    make = systems[(place + number) % len(systems)]
                    name = f"{database}_{number}_{place}"
                    uri = f"sqlite+aiosqlite:///{folder / name}.db"
                    if database == "postgresql":
                        assert server is not None
                        server.execute(f"CREATE DATABASE {name}")
                        uri = server.uri(name)
                    try:
                        found.append(await play(make, database, uri, sessions, puts))
                    except ImportError as error:
                        say(f"{make().name} left out: {error}")
                        continue
                    say(f"{database} {found[-1].system}: {found[-1].per_second:,.0f}/s, {found[-1].failed} failed")
    return found


def report(rounds: Sequence[Round]) -> str:
    """A table of medians; ratios are of rounds, then their median."""
    rows = []
    for database in dict.fromkeys(one.database for one in rounds):
        mine = [one for one in rounds if one.database == database]
        raw = [one.per_second for one in mine if one.system == "raw"]
        for system in dict.fromkeys(one.system for one in mine):
            own = [one for one in mine if one.system == system]
            ratios = [one.per_second / base for one, base in zip(own, raw, strict=False)]
            rows.append(
                [
                    f"{database}: {system}",
                    f"{statistics.median(one.per_second for one in own):,.0f}",
                    f"{statistics.median(ratios):.2f}" if ratios else "",
                    f"{sum(one.failed for one in own)}",
                    f"{sum(one.acknowledged - one.stored for one in own)}",
                ]
            )
    return table(["", "messages/s", "of raw", "refused", "acknowledged but missing"], rows)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--puts", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write concurrency.txt and concurrency.json there")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    databases = options.databases.split(",")
    done = asyncio.run(
        run(databases, options.sessions, options.puts, options.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    )
    text = report(done)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "concurrency.txt").write_text(text + "\n", encoding="utf-8")
        packages = ("sqlalchemy", "aiosqlite", "asyncpg", "llama-index-core", "openai-agents", "langchain-community")
        result = {"benchmark": "concurrency", "environment": environment(packages), "results": [asdict(one) for one in done]}
        (options.out / "concurrency.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
