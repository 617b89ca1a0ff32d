"""Reading sessions and their messages. Plain functions over a `Connection`; statements are built once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Select, bindparam, literal, select, union_all

from memory_engine.errors import SessionOwnerError
from memory_engine.sql.states import after_prefix
from memory_engine.sql.tables import Tables, erases, is_of_scope, is_pinned, rows_as_json
from memory_engine.store import (
    Cursor,
    MessageRow,
    ParkedChunk,
    SessionInfo,
    SessionRow,
    SessionSpec,
    Snapshot,
    StateVersion,
    scope_key,
)

MOST_SEQ = 2**63 - 1
UID_LENGTH = 32
"""The length of a session's uid: hexadecimal digits."""


def session_columns(tables: Tables) -> tuple[Column[Any], ...]:
    """The columns of a `SessionRow`, in its order."""
    return tuple(tables.sessions.c)[:18]


def message_columns(tables: Tables) -> tuple[Column[Any], ...]:
    """The columns of a `MessageRow`, in its order."""
    columns = tables.messages.c
    names = ("seq", "message_id", "role", "tokens", "data", "created_at", "pinned", "calls", "results")
    return tuple(columns[name] for name in names)


def message_row(row: Any) -> MessageRow:
    """A `MessageRow` from a row of `message_columns`."""
    seq, message_id, role, tokens, data, created_at, pinned, calls, results = row
    return MessageRow(
        seq,
        message_id,
        role,
        tokens,
        data,
        created_at,
        pinned == 1,
        tuple(json.loads(calls)) if calls is not None else (),
        tuple(json.loads(results)) if results is not None else (),
    )


def message_rows(rows: Iterable[Any]) -> list[MessageRow]:
    """`MessageRow`s from rows of `message_columns`."""
    return [
        MessageRow(seq, message_id, role, tokens, data, created_at, pinned == 1)
        if calls is None and results is None
        else message_row((seq, message_id, role, tokens, data, created_at, pinned, calls, results))
        for seq, message_id, role, tokens, data, created_at, pinned, calls, results in rows
    ]


def check_owner(spec: SessionSpec, session: SessionRow) -> None:
    """Refuse a session of another user."""
    if session.user_id != spec.user_id:
        raise SessionOwnerError(
            f"The session {spec.session_id!r} belongs to another user than {spec.user_id!r}; "
            "open it with the user_id it was created with."
        )


class Reading:
    """What readers ask; none of it takes the write lock."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        sessions, messages = tables.sessions, tables.messages
        named = (sessions.c.tenant == bindparam("p_tenant"), sessions.c.session_id == bindparam("p_session"))
        self._session = select(*session_columns(tables)).where(*named)
        same = (sessions.c.pk == bindparam("p_pk"), sessions.c.uid == bindparam("p_uid"))
        self._lock = select(*session_columns(tables)).where(*same).with_for_update()
        self._snapshot = self._snapshot_statement()
        alive = select(sessions.c.pk).where(sessions.c.pk == bindparam("p_pk"), sessions.c.uid == bindparam("p_uid")).exists()
        columns, of_session = message_columns(tables), messages.c.session_pk == bindparam("p_pk")
        after = messages.c.seq > bindparam("p_after")
        seq, pinned = messages.c.seq, messages.c.pinned
        active = (seq >= bindparam("p_from"), seq < bindparam("p_end"))
        pinned_below = (is_pinned(messages), seq < bindparam("p_horizon"), after)
        turn = (seq == bindparam("p_turn"), pinned == 0, seq < bindparam("p_horizon"), after)
        # The user message of the turn that the horizon cuts: what is left of the turn cannot be shown without it.
        rows = messages.alias("others")
        own = rows.c.session_pk == bindparam("p_pk")
        before = select(rows.c.seq).where(own, rows.c.seq < bindparam("p_horizon"), rows.c.role == "user")
        head_seq = before.order_by(rows.c.seq.desc()).limit(1).scalar_subquery()
        first = select(rows.c.role).where(own, rows.c.pinned == 0)
        first = first.where(rows.c.seq >= bindparam("p_horizon"), rows.c.seq < bindparam("p_end"))
        is_cut = first.order_by(rows.c.seq).limit(1).scalar_subquery() != "user"
        head = (is_cut, seq == head_seq, seq != bindparam("p_turn"), pinned == 0, after)
        parts = (pinned_below, turn, head, active)
        self._visible = union_all(*(select(*columns).where(of_session, alive, *part) for part in parts))
        everything = select(*columns).where(of_session, alive, after, messages.c.seq < bindparam("p_before"))
        self._all = everything.order_by(seq)
        self._some = self._all.limit(bindparam("p_limit"))
        self._last = everything.order_by(seq.desc()).limit(bindparam("p_limit"))
        # The cursor ties session, block and scope together: no other session's messages can be asked for.
        c, given = tables.cursors.c, messages.c.seq.between(bindparam("p_from"), bindparam("p_to") - 1)
        mine = (
            is_of_scope(tables.cursors, bindparam("p_scope")),
            c.block == bindparam("p_block"),
            sessions.c.uid == bindparam("p_uid"),
        )
        fed = select(*columns).join_from(tables.cursors, sessions, sessions.c.pk == c.session_pk)
        fed = fed.join(messages, messages.c.session_pk == sessions.c.pk).where(*mine, given)
        delivered = (messages.c.seq >= c.start_seq, messages.c.seq < c.target, messages.c.role.not_in(("system", "developer")))
        self._delivered = fed.where(*delivered).order_by(seq)
        self._newest = select(*columns).where(of_session, alive, *active).order_by(seq.desc()).limit(bindparam("p_limit"))

    # -- sessions --------------------------------------------------------------------------------------------

    def find(self, connection: Connection, tenant: str, session_id: str) -> SessionRow | None:
        row = connection.execute(self._session, {"p_tenant": tenant, "p_session": session_id}).first()
        return None if row is None else SessionRow(*row)

    def lock(self, connection: Connection, session: SessionRow) -> SessionRow | None:
        """The session as stored now, kept from other writers until the transaction ends; None when it is gone."""
        row = connection.execute(self._lock, {"p_pk": session.pk, "p_uid": session.uid}).first()
        return None if row is None else SessionRow(*row)

    def snapshot(self, connection: Connection, spec: SessionSpec) -> Snapshot:
        """One statement, so that what it returns belongs together without a transaction."""
        if not spec.blocks:
            session = self.find(connection, spec.tenant, spec.session_id)
            if session is not None:
                check_owner(spec, session)
            return Snapshot(session)
        wide = {"p_user": "", "p_global": scope_key("global", tenant=spec.tenant, user_id=None, session_uid="")}
        if spec.user_id is not None:
            wide["p_user"] = scope_key("user", tenant=spec.tenant, user_id=spec.user_id, session_uid="")
        narrow = f"s:{len(spec.tenant)}:{spec.tenant}:{UID_LENGTH}:"
        given = {"p_tenant": spec.tenant, "p_session": spec.session_id, "p_scope": narrow, **wide}
        row = connection.execute(self._snapshot, given).one()
        session = SessionRow(*row[:18]) if row[0] is not None else None
        if session is not None:
            check_owner(spec, session)
        return _assemble(spec, session, *(json.loads(part) if part else [] for part in row[18:]))

    def _snapshot_statement(self) -> Select[Any]:
        """The session's columns (or NULLs) and, each as a JSON array: cursors, states, erasures waiting, parked chunks."""
        tables = self._tables
        sessions, cursors, states = tables.sessions, tables.cursors, tables.states
        one = select(literal(1).label("one")).subquery("one")
        named = (sessions.c.tenant == bindparam("p_tenant")) & (sessions.c.session_id == bindparam("p_session"))
        scopes: tuple[Any, ...] = (bindparam("p_scope") + sessions.c.uid, bindparam("p_user"), bindparam("p_global"))
        erasures, parked = tables.erasures, tables.parked
        c, p = cursors.c, parked.c
        parts = (
            _json(c.block, c.scope_key, c.cursor, c.target, c.attempts, c.last_error).where(c.session_pk == sessions.c.pk),
            _json(states.c.block, states.c.scope_key, states.c.version, states.c.deleted_version).where(
                states.c.scope_key.in_(scopes)
            ),
            _json(erasures.c.block, erasures.c.scope_key).where(erasures.c.scope_key.in_(scopes), erases(tables)),
            _json(p.id, p.block, p.from_seq, p.to_seq, p.error, p.attempts, p.redeliver_at.is_not(None)).where(
                p.session_pk == sessions.c.pk
            ),
        )
        values = (part.correlate(sessions).scalar_subquery() for part in parts)
        return select(*session_columns(tables), *values).select_from(one.outerjoin(sessions, named))

    def listing(self, connection: Connection, /, tenant: str, **options: Any) -> list[SessionInfo]:
        """A page of sessions by the options of `Store.list_sessions`."""
        return [
            SessionInfo(
                row.tenant, row.session_id, row.user_id, row.messages, row.created_at, row.updated_at, json.loads(row.data)
            )
            for row in connection.execute(self.listing_statement(tenant, **options)).all()
        ]

    def listing_statement(
        self,
        tenant: str,
        *,
        prefix: str,
        user_id: str | None,
        inactive_before: int | None,
        limit: int,
        after: str | None,
    ) -> Select[Any]:
        c = self._tables.sessions.c
        columns = (c.tenant, c.session_id, c.user_id, c.messages, c.created_at, c.updated_at, c.metadata.label("data"))
        statement = select(*columns).where(c.tenant == tenant).order_by(c.session_id).limit(limit)
        if prefix:
            end = after_prefix(prefix)
            statement = statement.where(c.session_id >= prefix)
            statement = statement.where(c.session_id < end) if end is not None else statement
        if user_id is not None:
            statement = statement.where(c.user_id == user_id)
        if inactive_before is not None:
            statement = statement.where(c.updated_at < inactive_before)
        return statement.where(c.session_id > after) if after is not None else statement

    # -- messages --------------------------------------------------------------------------------------------

    def visible(self, connection: Connection, session: SessionRow, after_seq: int) -> tuple[MessageRow, ...]:
        given = {
            "p_pk": session.pk,
            "p_uid": session.uid,
            "p_after": after_seq,
            "p_from": max(session.horizon, after_seq + 1),
            "p_end": session.next_seq,
            "p_horizon": session.horizon,
            "p_turn": -1 if session.turn_seq is None else session.turn_seq,
        }
        rows = message_rows(connection.execute(self._visible, given).all())
        rows.sort()  # by seq, the first field
        return tuple(rows)

    def archived(self, connection: Connection, session: SessionRow, from_seq: int, max_tokens: int) -> tuple[MessageRow, ...]:
        """Newest first in pages, until the tokens are reached: a huge backlog is not read for a small room."""
        rows: list[MessageRow] = []
        total, end, page = 0, session.horizon, 100
        while end > from_seq:
            given = {"p_pk": session.pk, "p_uid": session.uid, "p_from": from_seq, "p_end": end, "p_limit": page}
            found = message_rows(connection.execute(self._newest, given).all())
            for row in found:
                total += row.tokens
                if total > max_tokens:
                    return tuple(reversed(rows))
                rows.append(row)
            if len(found) < page:
                break
            end = found[-1].seq
        return tuple(reversed(rows))

    def all(
        self, connection: Connection, session: SessionRow, after: int, before: int, limit: int | None, newest: bool
    ) -> tuple[MessageRow, ...]:
        given = {"p_pk": session.pk, "p_uid": session.uid, "p_after": after, "p_before": before}
        if limit is None:
            return tuple(message_rows(connection.execute(self._all, given).all()))
        rows = connection.execute(self._last if newest else self._some, given | {"p_limit": limit}).all()
        return tuple(message_rows(rows[::-1] if newest else rows))

    def delivered(
        self, connection: Connection, scope: str, block: str, session_uid: str, from_seq: int, to_seq: int
    ) -> tuple[MessageRow, ...]:
        given = {"p_scope": scope, "p_block": block, "p_uid": session_uid, "p_from": from_seq, "p_to": to_seq}
        return tuple(message_rows(connection.execute(self._delivered, given).all()))


def _json(*columns: Any) -> Select[Any]:
    return select(rows_as_json(*columns))


def _assemble(
    spec: SessionSpec,
    session: SessionRow | None,
    cursors: Sequence[Any],
    states: Sequence[Any],
    erasures: Sequence[Any],
    parked: Sequence[Any],
) -> Snapshot:
    names = {block.name for block in spec.blocks}
    versions = {(block, key): (version, deleted) for block, key, version, deleted in states}
    found: list[StateVersion] = []
    for block in spec.blocks:
        if session is None and block.scope == "session":
            continue
        uid = session.uid if session else ""
        key = scope_key(block.scope, tenant=spec.tenant, user_id=spec.user_id, session_uid=uid)
        version, deleted = versions.get((block.name, key), (0, 0))
        waiting = sum(1 for name, scope in erasures if (name, scope) == (block.name, key))
        found.append(StateVersion(block.name, key, version, deleted, waiting))
    return Snapshot(
        session,
        tuple(Cursor(*cursor) for cursor in cursors if cursor[0] in names),
        tuple(found),
        tuple(_parked_chunk(*chunk) for chunk in sorted(parked) if chunk[1] in names),
    )


def _parked_chunk(number: int, block: str, start: int, end: int, error: str, attempts: int, again: int) -> ParkedChunk:
    return ParkedChunk(number, block, start, end, error, attempts, bool(again))
