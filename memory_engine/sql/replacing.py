"""`replace_active`: the given messages become the active ones; archive and block state stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, delete, select, update

from memory_engine.errors import MessageConflictError
from memory_engine.sql.conversation import Conversation, pin_turns
from memory_engine.sql.flushing import Flushing, is_over
from memory_engine.sql.reading import message_columns, message_rows
from memory_engine.sql.states import batches
from memory_engine.sql.tables import Tables, is_pinned
from memory_engine.store import AppendResult, Draft, FlushPolicy, MessageRow, SessionRow, SessionSpec


class Replacing:
    """Statements for replacing the active messages of a session."""

    def __init__(self, tables: Tables, conversation: Conversation, flushing: Flushing) -> None:
        self._tables, self._conversation, self._flushing = tables, conversation, flushing

    def replace_active(
        self, connection: Connection, spec: SessionSpec, drafts: Sequence[Draft], policy: FlushPolicy, now: int
    ) -> AppendResult:
        conversation = self._conversation
        session = conversation.open_for_replacing(connection, spec, now)
        active = self._active(connection, session)
        stored = conversation.by_ids(connection, session.pk, [d.message_id for d in drafts if d.given_id])
        archived = {row.message_id: row for row in stored.values() if row.seq < session.horizon}
        wanted = _wanted(drafts, archived)
        prefix = _common_prefix(wanted, active)
        gone = active[prefix:]
        new, _ = pin_turns([_whole(draft, stored) for draft in wanted[prefix:]])
        self._remove(connection, session, gone)
        self._unpin(connection, session, kept=[row.seq for row in archived.values()])
        rows = conversation.insert_rows(connection, session.pk, session.next_seq, new)
        # The turn that is shown from below the horizon goes on only if its message was given.
        turn = session.turn_seq if any(row.seq == session.turn_seq for row in archived.values()) else None
        session = conversation.refresh(
            connection,
            session,
            added=len(rows) - len(gone),
            next_seq=session.next_seq + len(rows),
            turn_seq=turn,
            revision=session.revision + 1,
            updated_at=now,
        )
        flush = None
        if is_over(session, policy):
            session, flush = self._flushing.as_needed(connection, session, spec, policy)
        by_id = {row.message_id: row for row in (*archived.values(), *active[:prefix], *rows)}
        return AppendResult(session, tuple(by_id[draft.message_id] for draft in drafts), rows, flush)

    def _active(self, connection: Connection, session: SessionRow) -> list[MessageRow]:
        messages = self._tables.messages
        statement = (
            select(*message_columns(self._tables))
            .where(messages.c.session_pk == session.pk, messages.c.seq >= session.horizon)
            .order_by(messages.c.seq)
        )
        return message_rows(connection.execute(statement).all())

    def _remove(self, connection: Connection, session: SessionRow, rows: Sequence[MessageRow]) -> None:
        messages = self._tables.messages
        for batch in batches(row.seq for row in rows):
            connection.execute(delete(messages).where(messages.c.session_pk == session.pk, messages.c.seq.in_(batch)))

    def _unpin(self, connection: Connection, session: SessionRow, *, kept: Sequence[int]) -> None:
        """Archived messages that were visible only because they were pinned stay in the archive, no longer visible."""
        messages = self._tables.messages
        pinned = (messages.c.session_pk == session.pk, is_pinned(messages), messages.c.seq < session.horizon)
        seqs = set(connection.execute(select(messages.c.seq).where(*pinned)).scalars()) - set(kept)
        for batch in batches(sorted(seqs)):
            own = (messages.c.session_pk == session.pk, messages.c.seq.in_(batch))
            connection.execute(update(messages).where(*own).values(pinned=0))


def _wanted(drafts: Sequence[Draft], archived: Mapping[str, MessageRow]) -> list[Draft]:
    """The drafts that are to be active: each id once, without those that stand for archived rows."""
    wanted: dict[str, Draft] = {}
    for draft in drafts:
        row = archived.get(draft.message_id) if draft.given_id else None
        known = row.data if row is not None else wanted[draft.message_id].data if draft.message_id in wanted else draft.data
        if known != draft.data and not draft.partial:
            raise MessageConflictError(
                f"The id {draft.message_id!r} stands for other content already; "
                "use a new id, or delete the stored message first."
            )
        if row is None:
            wanted.setdefault(draft.message_id, draft)
    return list(wanted.values())


def _common_prefix(wanted: Sequence[Draft], active: Sequence[MessageRow]) -> int:
    """How many drafts stand for the active rows in the same places."""
    for place, (draft, row) in enumerate(zip(wanted, active, strict=False)):
        same = draft.given_id and draft.message_id == row.message_id and (draft.partial or draft.data == row.data)
        if not same:
            return place
    return min(len(wanted), len(active))


def _whole(draft: Draft, stored: Mapping[str, MessageRow]) -> Draft:
    """The draft, or for a shortened view copy what it stands for."""
    row = stored.get(draft.message_id)
    if not draft.partial or row is None:
        return draft
    return draft._replace(
        role=row.role,
        tokens=row.tokens,
        data=row.data,
        created_at=row.created_at,
        pinned=row.pinned,
        calls=row.calls,
        results=row.results,
        partial=False,
    )
