"""mem0's `history.db`: the newest messages of each scope, and what became of each memory.

mem0 keeps the last ten messages of a scope, no more: whole conversations are not in it. Its memories are, with all their
changes, but not whose they are (that stands in the vector store alone). So they are brought over only when asked for, into one
session, where they are statements for blocks to learn from, in the order in which mem0 learned them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from memory_engine.errors import ConfigurationError, InvalidMessageError
from memory_engine.importers.source import Item, SourceSession, as_message, as_moment, filled
from memory_engine.importers.sql import Columns, SqlRows

_ROLES = ("system", "developer", "user", "assistant")


class Mem0History:
    """The messages, and with `memories` (the name of a session for them) the memories that mem0 still has."""

    kind = "mem0-history"
    order = "rowid, the order of insertion; created_at is the same for all messages of a call"
    tables: tuple[str, ...] = ("messages", "history")

    _messages = Columns("id", "session_scope", "content", ("rowid",), ("role", "name"), ("created_at",))
    _history = Columns("id", None, "new_memory", ("rowid",), ("memory_id", "event", "is_deleted", "actor_id", "role"))

    def __init__(self, uri: str, *, memories: str | None = None) -> None:
        self._rows = SqlRows(uri, "messages")
        self._events = SqlRows(uri, "history")
        self._memories = memories

    async def sessions(self) -> list[SourceSession]:
        if self._rows.engine.dialect.name != "sqlite":
            raise ConfigurationError("mem0 keeps its history in a SQLite file; give its path.")
        self._rows.refresh()
        self._events.refresh()
        found = [] if not await self._has_messages() else await self._rows.sessions(self._messages)
        sessions = [SourceSession(name, _scope(name)) for name in found]
        if self._memories:
            await self._events.columns()
            sessions.append(SourceSession(self._memories, {"memories": "yes"}))
        return sessions

    async def read(self, session: SourceSession) -> AsyncIterator[Item]:
        if "memories" in session.fields:
            async for item in self._living():
                yield item
            return
        async for row, content, role, name, created in self._rows.read(session.name, self._messages):
            yield _item(row, {"role": role, "content": content or "", "name": name or None}, created)

    async def notes(self) -> list[str]:
        notes = ["mem0 keeps the ten newest messages of a scope; what was said before is not in the file."]
        try:
            living = 0 if self._memories else await self._count()
        except ConfigurationError:
            living = 0  # It has messages alone.
        if living:
            notes.append(
                f"{living} memories are left out: the file does not say whose they are. If all belong to one user, "
                "--memories SESSION brings them over as messages of that session."
            )
        return notes

    async def aclose(self) -> None:
        await self._rows.aclose()
        await self._events.aclose()

    async def _has_messages(self) -> bool:
        try:
            found = await self._rows.columns()
        except ConfigurationError:
            # Before mem0 2 there was `history` alone.
            await self._events.columns()
            return False
        return {"id", "session_scope", "content", "role", "name", "created_at"} <= found["columns"]

    async def _count(self) -> int:
        """So many memories there are that were not deleted."""
        living: dict[Any, bool] = {}
        async for row in self._events.read("", await self._known()):
            gone = row.event == "DELETE" or row.is_deleted
            living[row.memory_id] = living.get(row.memory_id, True) and not gone
        return sum(living.values())

    async def _known(self) -> Columns:
        """The columns of `history`, as far as this file has them."""
        columns = self._history
        known = (await self._events.columns())["columns"]
        if missing := {columns.row, columns.data, "memory_id", "event", "is_deleted"} - known:
            raise ConfigurationError(f"This is no history of mem0: it has no column {', '.join(sorted(missing))}.")
        more = tuple(name for name in columns.more if name in known)
        return replace(columns, more=more, times=tuple(sorted({"created_at", "updated_at"} & known)))

    async def _living(self) -> AsyncIterator[Item]:
        """What the memories that were not deleted have said, in the order in which they said it."""
        columns = await self._known()
        deleted = set()
        async for row in self._events.read("", columns):
            if row.event == "DELETE" or row.is_deleted:
                deleted.add(row.memory_id)
        async for row in self._events.read("", columns):
            # What was forgotten there does not come back here.
            if row.memory_id in deleted or row.event not in ("ADD", "UPDATE") or not row.new_memory:
                continue
            noted = row._mapping
            about = ("memory_id", "event", "actor_id", "role")
            extras = filled({name: noted.get(name) for name in about})
            created = noted.get("updated_at") if row.event == "UPDATE" else None
            fields = {"role": "user", "content": row.new_memory, "metadata": {"mem0": extras}}
            yield _item(row.id, fields, created or noted.get("created_at"))


def _item(row: Any, fields: Mapping[str, Any], created: object) -> Item:
    try:
        if fields["role"] not in _ROLES:
            raise InvalidMessageError(f"its role {fields['role']!r:.60} is none of ours")
        return Item(str(row), as_message(fields), created_at=as_moment(created))
    except InvalidMessageError as error:
        return Item(str(row), problem=str(error))


def _scope(name: str) -> dict[str, str]:
    """What a scope such as `agent_id=a&user_id=ada` says."""
    pairs = [part.partition("=") for part in name.split("&")]
    return {key: unquote(value) for key, _, value in pairs if key in ("user_id", "agent_id", "run_id") and value}
