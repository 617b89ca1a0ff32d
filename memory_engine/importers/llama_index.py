"""LlamaIndex's `SQLAlchemyChatStore` (what its `Memory` writes to), and `SimpleChatStore` persisted as JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from memory_engine.errors import ConfigurationError
from memory_engine.importers.llama_messages import LlamaIndexReader
from memory_engine.importers.source import Item, SourceSession, as_moment, read_item
from memory_engine.importers.sql import Columns, SqlRows


class LlamaIndexSql:
    """The conversations in a table of `SQLAlchemyChatStore`; `status` may be "active" or "archived" for those alone.

    What LlamaIndex has archived is no less part of the history. It is not noted with the message, because it changes.
    """

    kind = "llama-index"
    order = "timestamp and id, as LlamaIndex reads them: two hosts with skewed clocks give what the agent saw"

    _columns = Columns("id", "key", "data", ("timestamp", "id"), ("timestamp", "status"))

    def __init__(
        self, uri: str, *, table: str = "llama_index_memory", schema: str | None = None, status: str | None = None
    ) -> None:
        self._rows = SqlRows(uri, table, schema=schema)
        self.tables: tuple[str, ...] = (table,)
        self._status = status
        self._statuses: dict[str, int] = {}

    async def sessions(self) -> list[SourceSession]:
        found = (await self._rows.columns())["columns"]
        if missing := {"id", "key", "timestamp", "status", "data"} - found:
            raise ConfigurationError(f"This is no table of SQLAlchemyChatStore: it has no column {', '.join(sorted(missing))}.")
        self._rows.refresh()
        self._statuses.clear()
        return [SourceSession(name) for name in await self._rows.sessions(self._columns)]

    async def read(self, session: SourceSession) -> AsyncIterator[Item]:
        reader = LlamaIndexReader()
        async for row, data, timestamp, status in self._rows.read(session.name, self._columns):
            self._statuses[str(status)] = self._statuses.get(str(status), 0) + 1
            if self._status not in (None, status):
                continue
            yield read_item(str(row), partial(reader.message, data, str(row)), as_moment(timestamp))

    async def notes(self) -> list[str]:
        counts = ", ".join(f"{count} {status}" for status, count in sorted(self._statuses.items()))
        left = f"; only {self._status} ones are brought over" if self._status else ""
        return [f"By LlamaIndex's status: {counts}{left}."] if counts else []

    async def aclose(self) -> None:
        await self._rows.aclose()


class LlamaIndexJson:
    """The conversations in the JSON of `SimpleChatStore`, which is read as a whole."""

    kind = "llama-index"
    order = "their place in the file"
    tables: tuple[str, ...] = ()

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._store: Mapping[str, Any] = {}

    async def sessions(self) -> list[SourceSession]:
        try:
            read: Any = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"The source cannot be read: {error}") from error
        store = read.get("store") if isinstance(read, Mapping) else None
        if not isinstance(store, Mapping):
            raise ConfigurationError("This is no JSON of SimpleChatStore: it has no 'store'.")
        self._store = store
        return [SourceSession(name) for name in store]

    async def read(self, session: SourceSession) -> AsyncIterator[Item]:
        reader = LlamaIndexReader()
        messages = self._store.get(session.name, [])
        if not isinstance(messages, list):
            yield Item("0", problem=f"its messages are no list but {type(messages).__name__}")
            return
        for place, value in enumerate(messages):
            yield read_item(str(place), partial(reader.message, value, str(place)))

    async def notes(self) -> list[str]:
        return ["The file has no times: the messages get that of the import."]

    async def aclose(self) -> None:
        self._store = {}
