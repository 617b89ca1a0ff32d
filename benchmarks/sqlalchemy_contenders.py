"""Histories of other libraries on SQLAlchemy, each on an engine with SQLAlchemy's defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.contenders import BATCH, Contender, Line, imported


class OnEngine(Contender):
    """One that is given an engine, and one object for each session."""

    def __init__(self) -> None:
        super().__init__()
        self._engine: AsyncEngine
        self._sessions: dict[str, Any] = {}

    async def open(self, uri: str) -> None:
        self._engine = create_async_engine(uri)

    def make(self, session: str) -> Any:
        """The library's object for a session."""
        raise NotImplementedError

    def session(self, name: str) -> Any:
        if name not in self._sessions:
            self._sessions[name] = self.make(name)
        return self._sessions[name]

    async def close(self) -> None:
        self._sessions.clear()
        await self._engine.dispose()


class OpenAISqlAlchemy(OnEngine):
    """The OpenAI Agents SDK's `SQLAlchemySession`. It has no budget: `get` asks for as many items as the window holds."""

    name = layout = "OpenAI SQLAlchemySession"

    def __init__(self, window: int) -> None:
        super().__init__()
        self._window = window
        self._session_class = imported("agents.extensions.memory", "openai-agents").SQLAlchemySession
        self.reads = {"get": self._get}

    def make(self, session: str) -> Any:
        return self._session_class(session, engine=self._engine, create_tables=True)

    async def fill(self, session: str, lines: Sequence[Line]) -> None:
        for start in range(0, len(lines), BATCH):
            items = [{"role": line.role, "content": line.text} for line in lines[start : start + BATCH]]
            await self.session(session).add_items(items)

    async def put(self, session: str, line: Line) -> None:
        await self.session(session).add_items([{"role": line.role, "content": line.text}])

    async def _get(self, session: str) -> int:
        return len(await self.session(session).get_items(limit=self._window))


class LangChain(OnEngine):
    """LangChain's `SQLChatMessageHistory`, asynchronous. It has neither a budget nor a limit: `get` reads everything.

    The first messages are stored by itself, further ones as copies of these.
    """

    name = layout = "LangChain SQLChatMessageHistory"

    def __init__(self) -> None:
        super().__init__()
        histories = imported("langchain_community.chat_message_histories", "langchain-community")
        messages = imported("langchain_core.messages", "langchain-core")
        self._history_class = histories.SQLChatMessageHistory
        self._kinds = {"user": messages.HumanMessage, "assistant": messages.AIMessage}
        self.reads = {"get": self._get}

    def make(self, session: str) -> Any:
        return self._history_class(session, connection=self._engine, async_mode=True)

    async def fill(self, session: str, lines: Sequence[Line]) -> None:
        first, rest = lines[:BATCH], len(lines) - BATCH
        await self.session(session).aadd_messages([self._kinds[line.role](line.text) for line in first])
        rows = "SELECT session_id, message FROM message_store WHERE session_id = :key ORDER BY id LIMIT :count"
        async with self._engine.begin() as connection:
            for copied in range(0, rest, BATCH):
                values = {"key": session, "count": min(BATCH, rest - copied)}
                await connection.execute(text(f"INSERT INTO message_store (session_id, message) {rows}"), values)

    async def put(self, session: str, line: Line) -> None:
        await self.session(session).aadd_message(self._kinds[line.role](line.text))

    async def _get(self, session: str) -> int:
        return len(await self.session(session).aget_messages())
