"""Forgetting: messages, sessions, users, tenants, and the orders to blocks to forget what they made of them.

Everything that the database holds goes in the transaction of the call. What blocks keep elsewhere, or have folded into
their fields, is forgotten by an `Erasure`, carried out under the lease of its (scope, block) pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, select, update

from memory_engine.errors import MessageNotFoundError
from memory_engine.sql.conversation import Conversation, new_uid
from memory_engine.sql.postgresql import announce
from memory_engine.sql.reading import Reading, message_columns, message_row, session_columns
from memory_engine.sql.states import Leases, States, after_prefix, batches
from memory_engine.sql.tables import Tables, epoch_seconds
from memory_engine.store import MessageRow, SessionRow, scope_key


class Erasing:
    """Statements that forget."""

    def __init__(self, tables: Tables, reading: Reading, conversation: Conversation, states: States, leases: Leases) -> None:
        self._tables, self._reading, self._conversation = tables, reading, conversation
        self._states, self._leases = states, leases

    # -- messages --------------------------------------------------------------------------------------------

    def delete_messages(self, connection: Connection, session: SessionRow, ids: Sequence[str]) -> int:
        found = self._reading.lock(connection, session)
        if found is None:
            return 0
        rows = self._conversation.by_ids(connection, found.pk, ids).values()
        return self._remove(connection, found, sorted(row.seq for row in rows))

    def rewind(self, connection: Connection, session: SessionRow, message_id: str) -> int:
        found = self._reading.lock(connection, session)
        rows = self._conversation.by_ids(connection, found.pk, [message_id]) if found is not None else {}
        if found is None or message_id not in rows:
            raise MessageNotFoundError(f"There is no message {message_id!r} in the session {session.session_id!r}.")
        messages = self._tables.messages
        later = (messages.c.session_pk == found.pk, messages.c.seq >= rows[message_id].seq)
        seqs = connection.execute(select(messages.c.seq).where(*later).order_by(messages.c.seq)).scalars().all()
        return self._remove(connection, found, seqs)

    def pop(self, connection: Connection, session: SessionRow) -> MessageRow | None:
        found = self._reading.lock(connection, session)
        if found is None:
            return None
        messages = self._tables.messages
        newest = select(*message_columns(self._tables)).where(messages.c.session_pk == found.pk)
        row = connection.execute(newest.order_by(messages.c.seq.desc()).limit(1)).first()
        if row is None:
            return None
        popped = message_row(row)
        self._remove(connection, found, [popped.seq])
        return popped

    def _remove(self, connection: Connection, session: SessionRow, seqs: Sequence[int]) -> int:
        if not seqs:
            return 0
        messages = self._tables.messages
        for batch in batches(seqs):
            connection.execute(delete(messages).where(messages.c.session_pk == session.pk, messages.c.seq.in_(batch)))
        self._drop_empty_parked(connection, session)
        self._states.forget_records(connection, session.uid, seqs)
        absorbed = self._absorbed(connection, session, seqs[0])
        self._order(connection, session, absorbed, seqs)
        self._conversation.refresh(
            connection, session, added=-len(seqs), epoch=session.epoch + 1, revision=session.revision + 1
        )
        return len(seqs)

    def _drop_empty_parked(self, connection: Connection, session: SessionRow) -> None:
        messages, parked = self._tables.messages, self._tables.parked
        left = (
            select(messages.c.seq)
            .where(messages.c.session_pk == session.pk, messages.c.seq >= parked.c.from_seq, messages.c.seq < parked.c.to_seq)
            .exists()
        )
        connection.execute(delete(parked).where(parked.c.session_pk == session.pk, ~left))

    def _absorbed(self, connection: Connection, session: SessionRow, seq: int) -> list[tuple[str, str]]:
        """The pairs that may have made something of a seq, if only outside of the database.

        A delivery that was cut off leaves no trace here, so that every block which was to absorb it counts.
        """
        c = self._tables.cursors.c
        statement = select(c.scope_key, c.block).where(c.session_pk == session.pk, c.target > seq)
        return [(row.scope_key, row.block) for row in connection.execute(statement).all()]

    def _order(
        self, connection: Connection, session: SessionRow, pairs: Iterable[tuple[str, str]], seqs: Sequence[int] | None
    ) -> None:
        """Queue the forgetting of these messages of a session (None: of all)."""
        text = None if seqs is None else json.dumps(list(seqs))
        origin = {"tenant": session.tenant, "session_id": session.session_id, "session_uid": session.uid, "seqs": text}
        self._queue(connection, [{**origin, "scope_key": scope, "block": block} for scope, block in pairs])

    def _queue(self, connection: Connection, erasures: Sequence[dict[str, Any]]) -> None:
        if erasures:
            statement = insert(self._tables.erasures).values(due_at=epoch_seconds(), attempts=0)
            connection.execute(statement, erasures)
            announce(connection, self._tables)

    # -- sessions --------------------------------------------------------------------------------------------

    def reset(self, connection: Connection, session: SessionRow) -> SessionRow:
        found = self._reading.lock(connection, session)
        if found is None:
            return session
        uid = new_uid()
        self._keep_shared(connection, found, uid)
        self._empty(connection, found, except_scopes=())
        return self._conversation.refresh(
            connection,
            found,
            uid=uid,
            epoch=found.epoch + 1,
            revision=found.revision + 1,
            horizon=found.next_seq,
            turn_seq=None,
            messages=0,
        )

    def delete_session(self, connection: Connection, tenant: str, session_id: str) -> bool:
        c = self._tables.sessions.c
        return self._delete(connection, and_(c.tenant == tenant, c.session_id == session_id)) > 0

    def delete_user(self, connection: Connection, tenant: str, user_id: str) -> int:
        c = self._tables.sessions.c
        key = scope_key("user", tenant=tenant, user_id=user_id, session_uid="")
        pairs = self._pairs(connection, [_only(key)])
        count = self._delete(connection, and_(c.tenant == tenant, c.user_id == user_id), except_scopes=[_only(key)])
        self._clear_scopes(connection, tenant, pairs, [_only(key)])
        return count

    def delete_tenant(self, connection: Connection, tenant: str) -> int:
        wide = scope_key("global", tenant=tenant, user_id=None, session_uid="")
        ranges = [_only(wide), _starting_with(f"u:{len(tenant)}:{tenant}:")]
        pairs = self._pairs(connection, ranges)
        count = self._delete(connection, self._tables.sessions.c.tenant == tenant, except_scopes=ranges)
        self._clear_scopes(connection, tenant, pairs, ranges)
        return count

    def purge(self, connection: Connection, tenant: str | None, inactive_before: int) -> int:
        c = self._tables.sessions.c
        old = c.updated_at < inactive_before
        return self._delete(connection, old if tenant is None else and_(c.tenant == tenant, old))

    def _delete(self, connection: Connection, condition: Any, *, except_scopes: Sequence[tuple[str, str]] = ()) -> int:
        sessions = self._tables.sessions
        # In the order in which everybody locks sessions.
        statement = select(*session_columns(self._tables)).where(condition).order_by(sessions.c.pk).with_for_update()
        rows = [SessionRow(*row) for row in connection.execute(statement).all()]
        for row in rows:
            self._empty(connection, row, except_scopes=except_scopes)
        for batch in batches(row.pk for row in rows):
            connection.execute(delete(sessions).where(sessions.c.pk.in_(batch)))
        return len(rows)

    def _empty(self, connection: Connection, session: SessionRow, *, except_scopes: Sequence[tuple[str, str]]) -> None:
        """Delete what a session has, and have blocks forget it, other than in scopes that are erased as a whole."""
        cursors = self._tables.cursors
        pairs = connection.execute(select(cursors.c.scope_key, cursors.c.block).where(cursors.c.session_pk == session.pk)).all()
        own = scope_key("session", tenant=session.tenant, user_id=session.user_id, session_uid=session.uid)
        # What was written to its scope by hand has no cursor.
        states = self._tables.states.c
        by_hand = connection.execute(select(states.scope_key, states.block).where(states.scope_key == own)).all()
        every = {(pair.scope_key, pair.block) for pair in (*pairs, *by_hand)}
        rest = [pair for pair in sorted(every) if not any(low <= pair[0] < end for low, end in except_scopes)]
        self._order(connection, session, rest, None)
        for table in (self._tables.messages, self._tables.flushes, cursors, self._tables.parked):
            connection.execute(delete(table).where(table.c.session_pk == session.pk))
        for table in (self._tables.records, self._tables.states):
            connection.execute(delete(table).where(table.c.scope_key == own))
        self._states.forget_records(connection, session.uid, None)

    def _keep_shared(self, connection: Connection, session: SessionRow, uid: str) -> None:
        """Take records that came from no message, such as documents, over into the scope of the session to come."""
        records = self._tables.records
        old, new = (
            scope_key("session", tenant=session.tenant, user_id=session.user_id, session_uid=each)
            for each in (session.uid, uid)
        )
        shared = and_(records.c.scope_key == old, records.c.session_uid.is_(None))
        for row in connection.execute(select(records.c.block).where(shared).distinct()).all():
            state = self._states.touch(connection, new, row.block)
            moved = update(records).where(shared, records.c.block == row.block)
            connection.execute(moved.values(scope_key=new, version=state.version))
            # What the block keeps of them outside of the database is under the old scope, and is erased with it.
            self._order(connection, session._replace(uid=uid), [(new, row.block)], ())

    # -- whole scopes ----------------------------------------------------------------------------------------

    def _pairs(self, connection: Connection, ranges: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """All (scope, block) pairs known in ranges of scope keys."""
        found: set[tuple[str, str]] = set()
        for table in (self._tables.cursors, self._tables.states, self._tables.records):
            for low, end in ranges:
                statement = select(table.c.scope_key, table.c.block).where(table.c.scope_key >= low, table.c.scope_key < end)
                found.update((row.scope_key, row.block) for row in connection.execute(statement.distinct()).all())
        return sorted(found)

    def _clear_scopes(
        self, connection: Connection, tenant: str, pairs: Sequence[tuple[str, str]], ranges: Sequence[tuple[str, str]]
    ) -> None:
        leases, erasures = self._tables.leases, self._tables.erasures
        for low, end in ranges:
            for table in (self._tables.records, self._tables.states, erasures):
                # Smaller orders that were queued earlier are contained in the one that follows.
                connection.execute(delete(table).where(table.c.scope_key >= low, table.c.scope_key < end))
            self._leases.revoke(connection, and_(leases.c.scope_key >= low, leases.c.scope_key < end))
        whole = {"tenant": tenant, "session_id": None, "session_uid": None, "seqs": None}
        self._queue(connection, [{**whole, "scope_key": scope, "block": block} for scope, block in pairs])


def _only(key: str) -> tuple[str, str]:
    """The range that holds that key alone: no key has a NUL, so nothing comes before the end."""
    return key, key + "\x01"


def _starting_with(prefix: str) -> tuple[str, str]:
    end = after_prefix(prefix)
    assert end is not None
    return prefix, end
