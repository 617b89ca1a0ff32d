"""The lower limits on PostgreSQL: see `bare`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from benchmarks.bare import Bare, Limit, Template, fifos_of, message_of, session_values, tables_of
from benchmarks.contenders import Conversation, Line, engine_at, imported
from benchmarks.databases import driver_address

ONE_ROW = "one-row select"


class BarePostgres(Bare):
    """As on SQLite, and the least that a read through SQLAlchemy can be: one session's row by its primary key.

    `engine.connect()` without further options begins a transaction and rolls it back, each a round trip; with AUTOCOMMIT there
    is the SELECT alone.
    """

    def __init__(self, conversation: Conversation, templates: Sequence[Template]) -> None:
        super().__init__(conversation, templates)
        self.reads = {**self.reads, ONE_ROW: self._one_row, f"{ONE_ROW}, AUTOCOMMIT": self._one_row_alone}

    async def open(self, uri: str) -> None:
        await super().open(uri)
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        sessions = self._tables.sessions
        self._by_key = sessions.select().where(sessions.c.pk == sa.bindparam("this_pk"))

    async def _one_row(self, session: str) -> int:
        async with self._engine.connect() as connection:
            (await connection.execute(self._by_key, {"this_pk": self._fifos[session].pk})).one()
        return 1

    async def _one_row_alone(self, session: str) -> int:
        async with self._autocommit.connect() as connection:
            (await connection.execute(self._by_key, {"this_pk": self._fifos[session].pk})).one()
        return 1


class RawPostgres(Limit):
    """The same statements in one transaction through one asyncpg connection that has prepared them: the limit."""

    name = "raw asyncpg"

    def __init__(self, conversation: Conversation, templates: Sequence[Template]) -> None:
        super().__init__(conversation, templates)
        self._driver = imported("asyncpg", "asyncpg")
        self.reads = {"get": self._get_messages, "get, json.loads": self._get_json}

    async def open(self, uri: str) -> None:
        engine = engine_at(uri)
        async with engine.connect() as connection:
            tables = await tables_of(connection)
            self._fifos = await fifos_of(connection, tables)
        await engine.dispose()
        self._columns = [column.name for column in tables.messages.columns]
        marks = ", ".join(f"${place}" for place in range(1, len(self._columns) + 1))
        self._connection = await self._driver.connect(driver_address(uri))
        self._update = await self._connection.prepare(_UPDATE)
        self._window = await self._connection.prepare(_WINDOW)
        self._insert = await self._connection.prepare(
            f"INSERT INTO memory_messages ({', '.join(self._columns)}) VALUES ({marks})"
        )

    async def put(self, session: str, line: Line) -> None:
        template, fifo = self.template(line), self._fifos[session]
        values = session_values(fifo, line, template)
        await self._connection.execute("BEGIN")
        row = await self._update.fetchrow(*(values[name] for name in _PARAMETERS))
        new = template.fresh(pk=fifo.pk, seq=row["next_seq"] - 1)
        await self._insert.fetch(*(new[name] for name in self._columns))
        await self._connection.execute("COMMIT")

    async def _rows(self, session: str) -> list[Any]:
        fifo = self._fifos[session]
        return list(await self._window.fetch(fifo.pk, fifo.horizon))

    async def _get_messages(self, session: str) -> int:
        rows = await self._rows(session)
        return len([message_of(row["data"], row["message_id"], row["created_at"]) for row in rows])

    async def _get_json(self, session: str) -> int:
        return len([json.loads(row["data"]) for row in await self._rows(session)])

    async def close(self) -> None:
        await self._connection.close()


_PARAMETERS = ("new_tokens", "new_turns", "now", "this_pk", "this_uid", "this_tokenizer")
_UPDATE = """
    UPDATE memory_sessions SET next_seq = next_seq + 1, active_tokens = active_tokens + $1,
        active_turns = active_turns + $2, messages = messages + 1, version = version + 1, updated_at = $3,
        turn_seq = CASE WHEN $2 > 0 THEN next_seq ELSE turn_seq END
    WHERE pk = $4 AND uid = $5 AND tokenizer = $6 RETURNING *
"""
_WINDOW = """
    SELECT data, message_id, created_at, seq, role, tokens FROM memory_messages
    WHERE session_pk = $1 AND seq >= $2 ORDER BY seq
"""
