"""LangChain's `SQLChatMessageHistory`: a table of (id, session_id, message)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from memory_engine.errors import ConfigurationError
from memory_engine.importers.langchain_messages import LangChainReader
from memory_engine.importers.source import Item, SourceSession, as_moment, read_item
from memory_engine.importers.sql import Columns, SqlRows


class LangChainSql:
    """The conversations in a table of `SQLChatMessageHistory`, or one of `langchain_postgres`, which has times, too."""

    kind = "langchain-sql"
    order = "id, as LangChain reads them: the table has no other order"

    def __init__(
        self, uri: str, *, table: str = "message_store", schema: str | None = None, session_column: str = "session_id"
    ) -> None:
        self._rows = SqlRows(uri, table, schema=schema)
        self.tables: tuple[str, ...] = (table,)
        self._session_column = session_column
        self._columns: Columns | None = None

    async def sessions(self) -> list[SourceSession]:
        self._rows.refresh()
        return [SourceSession(name) for name in await self._rows.sessions(await self._known())]

    async def read(self, session: SourceSession) -> AsyncIterator[Item]:
        reader = LangChainReader()
        async for row, data, *times in self._rows.read(session.name, await self._known()):
            time = as_moment(times[0]) if times else None
            yield read_item(str(row), partial(reader.message, data, str(row)), time)

    async def notes(self) -> list[str]:
        if (await self._known()).times:
            return []
        return ["The table has no times: the messages get that of the import."]

    async def aclose(self) -> None:
        await self._rows.aclose()

    async def _known(self) -> Columns:
        if self._columns is None:
            found = (await self._rows.columns())["columns"]
            missing = {"id", self._session_column, "message"} - found
            if missing:
                raise ConfigurationError(
                    f"The table has no column {', '.join(sorted(missing))}; its columns are: {', '.join(sorted(found))}. "
                    "Use --session-column for the one that names the session."
                )
            times = ("created_at",) if "created_at" in found else ()
            self._columns = Columns("id", self._session_column, "message", ("id",), times=times)
        return self._columns
