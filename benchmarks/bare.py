"""The lower limits: the statements of a `put` and the reading of a window on this engine's own tables, without the engine.

The tables are reflected from a database that the engine wrote, and every row that is inserted is a copy of a row that the
engine stored for the same text, so the data are the same to the byte. Nothing is validated, encoded, counted or flushed here.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import aiosqlite
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from benchmarks.contenders import FIFO_TOKENS, FLUSH_TOKENS, PRAGMAS, Contender, Conversation, Line, Ours, Read, engine_at
from benchmarks.databases import sqlite_path
from memory_engine.messages import ChatMessage, decode

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Fifo:
    """Where a session's window begins, moved by the engine's rule: whole turns, at least the flush size."""

    pk: int
    uid: str
    tokenizer: str
    horizon: int
    window: deque[tuple[str, int]] = field(default_factory=deque)
    tokens: int = 0

    def add(self, role: str, tokens: int) -> None:
        self.window.append((role, tokens))
        self.tokens += tokens
        if self.tokens <= FIFO_TOKENS:
            return
        flushed = 0
        while self.window and (flushed < FLUSH_TOKENS or self.window[0][0] != "user"):
            _, cost = self.window.popleft()
            flushed += cost
            self.tokens -= cost
            self.horizon += 1


@dataclass(frozen=True, slots=True)
class Template:
    """What the engine stored for one text: a row of its messages table."""

    row: Mapping[str, Any]

    def fresh(self, *, pk: int, seq: int) -> dict[str, Any]:
        # Ids in the order of time, as the engine gives them: random ones would cost an index more.
        new_id = f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
        return {**self.row, "session_pk": pk, "seq": seq, "message_id": new_id}


async def templates_of(uri: str, conversation: Conversation) -> list[Template]:
    """The rows that the engine makes of one period of the conversation, written to a database of its own."""
    ours = Ours()
    await ours.open(uri)
    await ours.fill("templates", conversation.lines(conversation.period))
    await ours.close()
    engine = engine_at(uri)
    async with engine.connect() as connection:
        messages = (await tables_of(connection)).messages
        rows = (await connection.execute(messages.select().order_by(messages.c.seq))).mappings().all()
    await engine.dispose()
    return [Template(dict(row)) for row in rows]


@dataclass(frozen=True, slots=True)
class Tables:
    sessions: sa.Table
    messages: sa.Table


async def tables_of(connection: AsyncConnection) -> Tables:
    """The engine's tables, as the database says they are."""
    metadata = sa.MetaData()
    await connection.run_sync(lambda sync: metadata.reflect(sync, only=["memory_sessions", "memory_messages"]))
    return Tables(metadata.tables["memory_sessions"], metadata.tables["memory_messages"])


class Limit(Contender):
    """Writes and reads the same as the engine on its tables, and knows from its own bookkeeping where windows begin."""

    layout = Ours.layout

    def __init__(self, conversation: Conversation, templates: Sequence[Template]) -> None:
        super().__init__()
        self._conversation, self._templates = conversation, templates
        self._fifos: dict[str, Fifo] = {}

    def template(self, line: Line) -> Template:
        return self._templates[line.index % self._conversation.period]

    async def after_put(self, session: str, line: Line) -> None:
        self._fifos[session].add(line.role, self.template(line).row["tokens"])


class Bare(Limit):
    """The same statements through SQLAlchemy Core as its documentation shows: `engine.begin()`, `engine.connect()`."""

    name = "bare SQLAlchemy Core"

    def __init__(self, conversation: Conversation, templates: Sequence[Template]) -> None:
        super().__init__(conversation, templates)
        self.reads: Mapping[str, Read] = {"get": self._get_messages, "get, json.loads": self._get_json}

    async def open(self, uri: str) -> None:
        self._engine = engine_at(uri)
        async with self._engine.connect() as connection:
            self._tables = tables = await tables_of(connection)
            self._fifos = await fifos_of(connection, tables)
        self._insert = tables.messages.insert()
        sessions, messages = tables.sessions.c, tables.messages.c
        self._update = (
            tables.sessions.update()
            .where(*(sessions[name] == sa.bindparam(f"this_{name}") for name in ("pk", "uid", "tokenizer")))
            .values(
                next_seq=sessions.next_seq + 1,
                active_tokens=sessions.active_tokens + sa.bindparam("new_tokens"),
                active_turns=sessions.active_turns + sa.bindparam("new_turns"),
                turn_seq=sa.case(
                    (sa.bindparam("new_turns", type_=sa.BigInteger) > 0, sessions.next_seq), else_=sessions.turn_seq
                ),
                messages=sessions.messages + 1,
                version=sessions.version + 1,
                updated_at=sa.bindparam("now"),
            )
            .returning(*tables.sessions.c)
        )
        self._window = (
            tables.messages.select()
            .where(messages.session_pk == sa.bindparam("this_pk"), messages.seq >= sa.bindparam("horizon"))
            .order_by(messages.seq)
        )

    async def put(self, session: str, line: Line) -> None:
        template, fifo = self.template(line), self._fifos[session]
        values = session_values(fifo, line, template)
        async with self._engine.begin() as connection:
            row = (await connection.execute(self._update, values)).one()
            await connection.execute(self._insert, template.fresh(pk=fifo.pk, seq=row.next_seq - 1))

    async def _rows(self, session: str) -> Sequence[sa.Row[Any]]:
        fifo = self._fifos[session]
        async with self._engine.connect() as connection:
            return (await connection.execute(self._window, {"this_pk": fifo.pk, "horizon": fifo.horizon})).all()

    async def _get_messages(self, session: str) -> int:
        return len([message_of(row.data, row.message_id, row.created_at) for row in await self._rows(session)])

    async def _get_json(self, session: str) -> int:
        return len([json.loads(row.data) for row in await self._rows(session)])

    async def close(self) -> None:
        await self._engine.dispose()


class Raw(Limit):
    """The same statements through one aiosqlite connection: the limit for anything asynchronous on SQLite.

    `execute_fetchall` makes one trip to the connection's thread for a statement, and leaves no cursor open: cursors that
    are left to the collector raise InterfaceErrors under many tasks.
    """

    name = "raw aiosqlite"

    def __init__(self, conversation: Conversation, templates: Sequence[Template]) -> None:
        super().__init__(conversation, templates)
        self.reads = {"get": self._get_messages, "get, json.loads": self._get_json}

    async def open(self, uri: str) -> None:
        engine = engine_at(uri)
        async with engine.connect() as connection:
            tables = await tables_of(connection)
            self._fifos = await fifos_of(connection, tables)
        await engine.dispose()
        columns = [column.name for column in tables.messages.columns]
        marks = ", ".join(f":{column}" for column in columns)
        self._insert = f"INSERT INTO memory_messages ({', '.join(columns)}) VALUES ({marks})"
        self._connection = await aiosqlite.connect(sqlite_path(uri), isolation_level=None)
        for pragma in PRAGMAS:
            await self._connection.execute_fetchall(pragma)

    async def put(self, session: str, line: Line) -> None:
        template, fifo = self.template(line), self._fifos[session]
        connection = self._connection
        await connection.execute_fetchall("BEGIN IMMEDIATE")
        ((next_seq, *_),) = await connection.execute_fetchall(_UPDATE, session_values(fifo, line, template))
        await connection.execute_fetchall(self._insert, template.fresh(pk=fifo.pk, seq=next_seq - 1))
        await connection.execute_fetchall("COMMIT")

    async def _rows(self, session: str) -> list[tuple[str, str, int]]:
        fifo = self._fifos[session]
        rows = await self._connection.execute_fetchall(_WINDOW, (fifo.pk, fifo.horizon))
        return [(row[0], row[1], row[2]) for row in rows]

    async def _get_messages(self, session: str) -> int:
        return len([message_of(*row) for row in await self._rows(session)])

    async def _get_json(self, session: str) -> int:
        return len([json.loads(row[0]) for row in await self._rows(session)])

    async def close(self) -> None:
        await self._connection.close()


_UPDATE = """
    UPDATE memory_sessions SET next_seq = next_seq + 1, active_tokens = active_tokens + :new_tokens,
        active_turns = active_turns + :new_turns, messages = messages + 1, version = version + 1, updated_at = :now,
        turn_seq = CASE WHEN :new_turns > 0 THEN next_seq ELSE turn_seq END
    WHERE pk = :this_pk AND uid = :this_uid AND tokenizer = :this_tokenizer RETURNING next_seq, *
"""
_WINDOW = """
    SELECT data, message_id, created_at, seq, role, tokens FROM memory_messages
    WHERE session_pk = ? AND seq >= ? ORDER BY seq
"""


def session_values(fifo: Fifo, line: Line, template: Template) -> dict[str, Any]:
    """The parameters of the UPDATE."""
    now = (datetime.now(UTC) - _EPOCH) // timedelta(microseconds=1)
    turns = int(line.role == "user")
    this = {"this_pk": fifo.pk, "this_uid": fifo.uid, "this_tokenizer": fifo.tokenizer}
    return {**this, "new_tokens": template.row["tokens"], "new_turns": turns, "now": now}


def message_of(data: str, message_id: str, created_at: int) -> ChatMessage:
    """A row as the message that it stands for."""
    return decode(data, id=message_id, created_at=_EPOCH + timedelta(microseconds=created_at))


async def fifos_of(connection: AsyncConnection, tables: Tables) -> dict[str, Fifo]:
    """Where every session's window stands in a database that the engine filled."""
    sessions, messages = tables.sessions, tables.messages
    found = {}
    for session in (await connection.execute(sessions.select())).all():
        fifo = Fifo(session.pk, session.uid, session.tokenizer, session.horizon)
        active = (messages.c.session_pk == session.pk) & (messages.c.seq >= session.horizon)
        rows = await connection.execute(sa.select(messages.c.role, messages.c.tokens).where(active).order_by(messages.c.seq))
        for role, tokens in rows.all():
            fifo.window.append((role, tokens))
            fifo.tokens += tokens
        found[session.session_id] = fifo
    return found
