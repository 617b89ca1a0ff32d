"""The systems that are compared, behind one small interface, all fed with the same texts."""

from __future__ import annotations

import importlib
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.databases import sqlite_path
from memory_engine import BaseMemoryBlock, ChatMessage, Memory, MemoryEngine

TOKEN_LIMIT = 30_000
FIFO_TOKENS = 21_000
"""What the FIFO may hold with the default ratio of 0.7."""
FLUSH_TOKENS = 3_000
MIDDLE_OF_CYCLE = FIFO_TOKENS - FLUSH_TOKENS // 2
BATCH = 1_000
PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA busy_timeout = 30000",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA cache_size = -8000",
)
NOTE = "The user's name is Ada. She prefers short answers."
WORDS = """
the a of and to in we it with on for that was this have from project budget meeting river coffee planning deadline remember
Amsterdam colleague birthday preference allergic garden database invoice train weekend because yesterday tomorrow usually
never always please change update explain summary customer release
"""

Read = Callable[[str], Awaitable[int]]
"""Read a session's window; the number of messages in it."""


class Unavailable(Exception):
    """A contender's package is not installed; the message says how to install it."""


@dataclass(frozen=True, slots=True)
class Line:
    """One message of the conversation; `index` is its place in it."""

    index: int
    role: Literal["user", "assistant"]
    text: str


class Conversation:
    """An endless conversation of messages of 50 to 70 tokens, users and assistants in turn; the same on every run."""

    def __init__(self, different: int = 400) -> None:
        self.period = different
        chosen = random.Random(20)
        self._texts = [" ".join(chosen.choices(WORDS.split(), k=chosen.randint(52, 66))) + "." for _ in range(different)]

    def line(self, index: int) -> Line:
        return Line(index, "assistant" if index % 2 else "user", self._texts[index % self.period])

    def lines(self, count: int) -> list[Line]:
        return [self.line(index) for index in range(count)]


class Contender:
    """One system on one database. `fill` is set-up and need not be fast; `put` and `reads` are measured."""

    name = ""
    layout = ""
    """Contenders of one layout have the same tables: one of them fills a database, the others get copies of it."""

    def __init__(self) -> None:
        self.reads: Mapping[str, Read] = {}

    async def open(self, uri: str) -> None:
        """Open the database at this address; it is empty, or what this layout was filled with."""
        raise NotImplementedError

    async def fill(self, session: str, lines: Sequence[Line]) -> None:
        raise NotImplementedError

    async def put(self, session: str, line: Line) -> None:
        raise NotImplementedError

    async def after_put(self, session: str, line: Line) -> None:
        """What is needed between the measured operations; not measured."""

    async def close(self) -> None:
        raise NotImplementedError


def engine_at(uri: str) -> AsyncEngine:
    """A plain async engine; on SQLite its connections have the settings that this engine gives them."""
    engine = create_async_engine(uri)
    if engine.dialect.name != "sqlite":
        return engine

    @event.listens_for(engine.sync_engine, "connect")
    def _settings(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        for pragma in PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    return engine


def imported(module: str, distribution: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"needs {distribution}: pip install '.[bench]' or pip install {distribution} ({error})") from error


class NoteBlock(BaseMemoryBlock[str]):
    """A block that costs nothing itself, so that what remains is the price of having one."""

    async def _aget(self, messages: Sequence[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return NOTE

    async def _aput(self, messages: Sequence[ChatMessage]) -> None:
        return None


class Ours(Contender):
    """This project's engine with its defaults: public API, one handle for each session."""

    name = layout = "memory_engine"

    def __init__(self, *, block: bool = False) -> None:
        super().__init__()
        self._block = block
        self._memories: dict[str, Memory] = {}
        self.reads = {"get": self._get} if block else {"get": self._get, "get, unchanged": self._get, "restart": self._restart}
        if block:
            self.name = "memory_engine, 1 block"

    def _engine_at(self, uri: str) -> MemoryEngine:
        blocks = [NoteBlock(name="note")] if self._block else []
        return MemoryEngine(async_database_uri=uri, token_limit=TOKEN_LIMIT, memory_blocks=blocks)

    async def open(self, uri: str) -> None:
        self._uri = uri
        self._engine = self._engine_at(uri)

    def _memory(self, session: str) -> Memory:
        if session not in self._memories:
            self._memories[session] = self._engine.session(session)
        return self._memories[session]

    async def fill(self, session: str, lines: Sequence[Line]) -> None:
        memory = self._memory(session)
        for start in range(0, len(lines), BATCH):
            messages = [ChatMessage(role=line.role, content=line.text) for line in lines[start : start + BATCH]]
            await memory.put_messages(messages)

    async def put(self, session: str, line: Line) -> None:
        await self._memory(session).put(ChatMessage(role=line.role, content=line.text))

    async def _get(self, session: str) -> int:
        messages = await self._memory(session).get()
        return sum(message.role != "system" for message in messages)

    async def _restart(self, session: str) -> int:
        """What a new process pays: open the database, read one session, close."""
        async with self._engine_at(self._uri) as engine:
            return len(await engine.session(session).get())

    async def close(self) -> None:
        self._memories.clear()
        await self._engine.aclose()


class Llama(Contender):
    """LlamaIndex's `Memory` with its defaults, or with this engine's SQLite settings (`wal`).

    It is filled through its own store: what would have been flushed is stored as archived, the rest as active. Putting
    100,000 messages one by one would end in the same rows after half an hour.
    """

    name = layout = "LlamaIndex"

    def __init__(self, *, wal: bool = False, block: bool = False) -> None:
        super().__init__()
        core = "llama-index-core==0.14.25"
        self._memory_module = imported("llama_index.core.memory", core)
        self._llms = imported("llama_index.core.base.llms.types", core)
        self._stores = imported("llama_index.core.storage.chat_store.sql", core)
        self._statuses = imported("llama_index.core.storage.chat_store.base_db", core)
        self._wal, self._block = wal, block
        self.name += ", WAL" if wal else ", 1 block" if block else ""
        self.reads = {"get": self._get}
        self._memories: dict[str, Any] = {}

    async def open(self, uri: str) -> None:
        engine = engine_at(uri) if self._wal else None
        self._store = self._stores.SQLAlchemyChatStore(
            table_name="llama_index_memory", async_database_uri=uri, async_engine=engine
        )

    def _memory(self, session: str) -> Any:
        if session not in self._memories:
            static = self._memory_module.StaticMemoryBlock
            self._memories[session] = self._memory_module.Memory(
                session_id=session,
                token_limit=TOKEN_LIMIT,
                sql_store=self._store,
                memory_blocks=[static(name="note", static_content=NOTE)] if self._block else [],
            )
        return self._memories[session]

    def _message(self, line: Line) -> Any:
        return self._llms.ChatMessage(role=line.role, content=line.text)

    async def fill(self, session: str, lines: Sequence[Line]) -> None:
        status = self._statuses.MessageStatus
        first_active = len(lines)
        count = self._memory(session).tokenizer_fn
        tokens = 0
        while first_active and (tokens := tokens + len(count(lines[first_active - 1].text))) <= MIDDLE_OF_CYCLE:
            first_active -= 1
        await self._archive(session, lines[:first_active])
        await self._store.add_messages(session, [self._message(line) for line in lines[first_active:]], status=status.ACTIVE)

    async def _archive(self, session: str, lines: Sequence[Line]) -> None:
        """Archived rows: the first ones through its store, further ones as copies of these."""
        if not lines:
            return
        first, rest = lines[:BATCH], len(lines) - BATCH
        archived = self._statuses.MessageStatus.ARCHIVED
        await self._store.add_messages(session, [self._message(line) for line in first], status=archived)
        table = self._store.table_name
        columns = "key, timestamp + CAST(:later AS BIGINT), role, status, data"
        rows = f"SELECT {columns} FROM {table} WHERE key = :key ORDER BY id LIMIT :count"
        insert = f"INSERT INTO {table} (key, timestamp, role, status, data) {rows}"
        factory, _ = await self._store._initialize()
        async with factory() as connection:
            for copied in range(0, rest, BATCH):
                # Later by as many nanoseconds as there are rows before: the order of time stays that of the rows.
                values = {"key": session, "count": min(BATCH, rest - copied), "later": BATCH + copied}
                await connection.execute(text(insert), values)
            await connection.commit()

    async def put(self, session: str, line: Line) -> None:
        await self._memory(session).aput(self._message(line))

    async def _get(self, session: str) -> int:
        messages = await self._memory(session).aget()
        return sum(message.role != "system" for message in messages)

    async def close(self) -> None:
        self._memories.clear()
        # It offers no way to close; its engine is reached through the session factory that it uses itself.
        factory, _ = await self._store._initialize()
        await factory.kw["bind"].dispose()


class OpenAI(Contender):
    """The OpenAI Agents SDK's `SQLiteSession`. It has no budget: `get` asks for as many items as the window holds."""

    name = layout = "OpenAI SQLiteSession"

    def __init__(self, window: int) -> None:
        super().__init__()
        self._session_class = imported("agents", "openai-agents").SQLiteSession
        self._window = window
        self.reads = {"get": self._get}
        self._sessions: dict[str, Any] = {}

    async def open(self, uri: str) -> None:
        self._path = sqlite_path(uri)

    def _session(self, session: str) -> Any:
        if session not in self._sessions:
            self._sessions[session] = self._session_class(session, self._path)
        return self._sessions[session]

    async def fill(self, session: str, lines: Sequence[Line]) -> None:
        await self._session(session).add_items([{"role": line.role, "content": line.text} for line in lines])

    async def put(self, session: str, line: Line) -> None:
        await self._session(session).add_items([{"role": line.role, "content": line.text}])

    async def _get(self, session: str) -> int:
        return len(await self._session(session).get_items(limit=self._window))

    async def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
