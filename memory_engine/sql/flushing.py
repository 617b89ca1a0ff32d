"""Moving the horizon, and the cursors that follow it. Plain functions over a `Connection`; callers bring the transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, func, insert, select, update

from memory_engine.budget import plan_complete_turns, plan_flush
from memory_engine.sql.postgresql import announce
from memory_engine.sql.reading import Reading, session_columns
from memory_engine.sql.states import upsert
from memory_engine.sql.tables import Tables
from memory_engine.store import BlockTarget, Flush, FlushPolicy, SessionRow, SessionSpec, scope_key


class LightRow(NamedTuple):
    """What planning needs to know of a message, without its text."""

    seq: int
    role: str
    tokens: int
    pinned: bool
    calls: tuple[str, ...]
    results: tuple[str, ...]


class Flushing:
    """Statements over the horizon, flushes and cursors."""

    def __init__(self, tables: Tables, reading: Reading) -> None:
        self._tables, self._reading = tables, reading
        sessions, messages = tables.sessions, tables.messages
        changing = update(sessions).returning(*session_columns(tables))
        self._archive = changing.where(sessions.c.pk == bindparam("p_pk")).values(
            horizon=bindparam("p_horizon"),
            active_tokens=sessions.c.active_tokens - bindparam("p_active"),
            active_turns=sessions.c.active_turns - bindparam("p_turns"),
            version=sessions.c.version + 1,
        )
        of_session = messages.c.session_pk == bindparam("p_pk")
        light = (messages.c[name] for name in LightRow._fields)
        between = (messages.c.seq >= bindparam("p_from"), messages.c.seq < bindparam("p_end"))
        self._first = select(func.min(messages.c.seq)).where(of_session)
        self._light = select(*light).where(of_session, *between).order_by(messages.c.seq)

    def light_rows(self, connection: Connection, pk: int, start: int, end: int) -> list[LightRow]:
        """Rows of `[start, end)` in order, without their text."""
        rows = connection.execute(self._light, {"p_pk": pk, "p_from": start, "p_end": end}).all()
        return [
            LightRow(seq, role, tokens, pinned == 1, _ids(calls), _ids(results))
            for seq, role, tokens, pinned, calls, results in rows
        ]

    def as_needed(
        self, connection: Connection, session: SessionRow, spec: SessionSpec, policy: FlushPolicy
    ) -> tuple[SessionRow, Flush | None]:
        rows = self.light_rows(connection, session.pk, session.horizon, session.next_seq)
        horizon = plan_flush(
            rows,
            threshold=policy.threshold,
            flush_size=policy.flush_size,
            active_tokens=session.active_tokens,
            max_turns=policy.max_turns,
            active_turns=session.active_turns,
            horizon=session.horizon,
            turn_seq=session.turn_seq,
        )
        if horizon is None or horizon <= session.horizon:
            return session, None
        return self._move_horizon(connection, session, spec, horizon, rows)

    def flush(self, connection: Connection, session: SessionRow, spec: SessionSpec, final: bool) -> Flush | None:
        found = self._reading.lock(connection, session)
        if found is None:
            return None
        rows = self.light_rows(connection, found.pk, found.horizon, found.next_seq)
        horizon = plan_complete_turns(rows, final=final)
        flush = None
        if horizon is not None and horizon > found.horizon:
            found, flush = self._move_horizon(connection, found, spec, horizon, rows)
        if final and found.turn_seq is not None:
            sessions = self._tables.sessions
            ended = {"turn_seq": None, "version": found.version + 1}
            connection.execute(update(sessions).where(sessions.c.pk == found.pk).values(ended))
        return flush

    def advance(self, connection: Connection, session: SessionRow, spec: SessionSpec, horizon: int) -> Flush | None:
        found = self._reading.lock(connection, session)
        if found is None or (found.revision, found.horizon) != (session.revision, session.horizon):
            return None
        horizon = min(horizon, found.next_seq)
        if horizon <= found.horizon:
            return None
        rows = self.light_rows(connection, found.pk, found.horizon, horizon)
        return self._move_horizon(connection, found, spec, horizon, rows)[1]

    def _move_horizon(
        self, connection: Connection, session: SessionRow, spec: SessionSpec, horizon: int, rows: Sequence[LightRow]
    ) -> tuple[SessionRow, Flush]:
        gone = [row for row in rows if row.seq < horizon and not row.pinned]
        tokens = sum(row.tokens for row in gone)
        turns = sum(row.role == "user" for row in gone)
        given = {"p_pk": session.pk, "p_horizon": horizon, "p_active": tokens, "p_turns": turns}
        moved = SessionRow(*connection.execute(self._archive, given).one())
        connection.execute(insert(self._tables.flushes), {"session_pk": session.pk, "end_seq": horizon, "tokens": tokens})
        cursors = self._tables.cursors
        deaf = [block.name for block in spec.blocks if not block.accepts]
        own = (cursors.c.session_pk == session.pk, cursors.c.target < horizon, cursors.c.block.not_in(deaf))
        connection.execute(update(cursors).where(*own).values(target=horizon))
        self.give_cursors(connection, session, spec.receivers, horizon)
        announce(connection, self._tables)
        return moved, Flush(session.horizon, horizon, tokens)

    def give_cursors(self, connection: Connection, session: SessionRow, blocks: Sequence[BlockTarget], target: int) -> None:
        """A cursor for each block that has none, and a new one for each whose scope is another than it was."""
        if not blocks:
            return
        table = self._tables.cursors
        statement = upsert(connection, table)
        fresh = ("scope_key", "cursor", "target", "start_seq", "attempts", "next_attempt_at", "last_error")
        statement = statement.on_conflict_do_update(
            index_elements=[table.c.session_pk, table.c.block],
            set_={name: statement.excluded[name] for name in fresh},
            where=table.c.scope_key != statement.excluded.scope_key,
        )
        # Below the first stored message there is nothing to absorb, and nothing to lag behind.
        first = connection.execute(self._first, {"p_pk": session.pk}).scalar()
        first = target if first is None else min(first, target)
        connection.execute(statement, [_new_cursor(session, block, first, target) for block in blocks])

    def ensure_cursors(self, connection: Connection, session: SessionRow, spec: SessionSpec) -> None:
        found = self._reading.lock(connection, session)
        if found is not None:
            self.give_cursors(connection, found, spec.receivers, found.horizon)

    def cursors_missing(self, connection: Connection, session: SessionRow, spec: SessionSpec) -> bool:
        cursors = self._tables.cursors
        rows = connection.execute(select(cursors.c.block, cursors.c.scope_key).where(cursors.c.session_pk == session.pk))
        have = {(row.block, row.scope_key) for row in rows.all()}
        return not have.issuperset((block.name, _scope(session, block)) for block in spec.receivers)


def is_over(session: SessionRow, policy: FlushPolicy) -> bool:
    """Whether something has to leave the FIFO."""
    turns = policy.max_turns is not None and session.active_turns > policy.max_turns
    return turns or session.active_tokens > policy.threshold


def _ids(text: str | None) -> tuple[str, ...]:
    return () if text is None else tuple(json.loads(text))


def _scope(session: SessionRow, block: BlockTarget) -> str:
    return scope_key(block.scope, tenant=session.tenant, user_id=session.user_id, session_uid=session.uid)


def _new_cursor(session: SessionRow, block: BlockTarget, first: int, target: int) -> dict[str, Any]:
    start = first if block.start == "beginning" else session.horizon
    return {
        "session_pk": session.pk,
        "block": block.name,
        "scope_key": _scope(session, block),
        "cursor": start,
        "target": target,
        "start_seq": start,
        "attempts": 0,
        "next_attempt_at": 0.0,
        "last_error": None,
    }
