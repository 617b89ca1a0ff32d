"""The sessions of OpenAI's Agents SDK: `SQLiteSession` and `SQLAlchemySession`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from memory_engine.errors import ConfigurationError
from memory_engine.importers.openai_items import OpenAIItemsReader
from memory_engine.importers.source import Item, SourceSession, as_moment
from memory_engine.importers.sql import Columns, SqlRows


class OpenAISessions:
    """The conversations in a table of items, (id, session_id, message_data, created_at)."""

    kind = "openai-sessions"
    order = "id, as SQLiteSession reads them"

    _columns = Columns("id", "session_id", "message_data", ("id",), times=("created_at",))

    def __init__(self, uri: str, *, table: str = "agent_messages", schema: str | None = None) -> None:
        self._rows = SqlRows(uri, table, schema=schema)
        self.tables: tuple[str, ...] = (table,)
        self._branched = False

    async def sessions(self) -> list[SourceSession]:
        known = await self._rows.columns()
        found = known["columns"]
        if any(name.endswith("_session_time") for name in known["indexes"]):
            # Only SQLAlchemySession makes that index; the agent saw them in its order.
            self._columns = replace(self._columns, order=("created_at", "id"))
            self.order = "created_at and id, as SQLAlchemySession reads them"
        self._branched = "message_structure" in known["tables"]
        if missing := {"id", "session_id", "message_data", "created_at"} - found:
            raise ConfigurationError(f"This is no table of the Agents SDK: it has no column {', '.join(sorted(missing))}.")
        self._rows.refresh()
        return [SourceSession(name) for name in await self._rows.sessions(self._columns)]

    async def read(self, session: SourceSession) -> AsyncIterator[Item]:
        reader = OpenAIItemsReader()
        async for row, data, created in self._rows.read(session.name, self._columns):
            for item in reader.read(data, str(row), as_moment(created)):
                yield item
        for item in reader.end():
            yield item

    async def notes(self) -> list[str]:
        if not self._branched:
            return []
        return ["AdvancedSQLiteSession keeps branches of a conversation: what was said in any of them is brought over."]

    async def aclose(self) -> None:
        await self._rows.aclose()
