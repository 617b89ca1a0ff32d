"""The systems that write at once: this engine, the drivers alone, and what one would use instead, one for each session."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from memory_engine import Memory, MemoryEngine

TEXT = "We talk about this and that, and what was said yesterday about the journey to the north. " * 4
POOL = 64
"""Connections of those that are given an engine, and of the driver alone."""


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
