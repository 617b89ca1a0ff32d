"""Appending messages and keeping a session's sums. Plain functions over a `Connection`; callers bring the transaction.

The hot path of `append` (session known, ids ours, nothing to flush) is one UPDATE and one INSERT.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, bindparam, case, func, insert, select, update

from memory_engine.errors import MessageConflictError
from memory_engine.sql.flushing import Flushing, is_over
from memory_engine.sql.prepared import Prepared
from memory_engine.sql.reading import Reading, check_owner, message_columns, message_row, session_columns
from memory_engine.sql.states import batches, upsert
from memory_engine.sql.tables import Tables, is_pinned
from memory_engine.store import (
    AppendResult,
    Draft,
    FlushPolicy,
    MessageRow,
    SessionRow,
    SessionSpec,
    TokenizerChanged,
)

MESSAGE_COLUMNS = ("session_pk", "seq", "message_id", "role", "pinned", "tokens", "data", "created_at", "calls", "results")


class Conversation:
    """Statements over sessions, messages and flushes of one set of tables."""

    def __init__(self, tables: Tables, reading: Reading, flushing: Flushing) -> None:
        self._tables, self._reading, self._flushing = tables, reading, flushing
        sessions, messages = tables.sessions, tables.messages
        same = (sessions.c.pk == bindparam("p_pk"), sessions.c.uid == bindparam("p_uid"))
        changing = update(sessions).returning(*session_columns(tables))
        self._grow = changing.where(*same, sessions.c.tokenizer == bindparam("p_tokenizer")).values(
            next_seq=sessions.c.next_seq + bindparam("p_number"),
            turn_seq=case(
                (bindparam("p_turn", type_=BigInteger) < 0, sessions.c.turn_seq),
                else_=sessions.c.next_seq + bindparam("p_turn"),
            ),
            active_tokens=sessions.c.active_tokens + bindparam("p_active"),
            active_turns=sessions.c.active_turns + bindparam("p_turns"),
            pinned_tokens=sessions.c.pinned_tokens + bindparam("p_pinned"),
            messages=sessions.c.messages + bindparam("p_number"),
            updated_at=bindparam("p_now"),
            version=sessions.c.version + 1,
        )
        self._grow_one = Prepared(
            self._grow, ["p_pk", "p_uid", "p_tokenizer", "p_now", *(f"p_{name}" for name in Sums._fields)]
        )
        self._insert = Prepared(insert(messages), MESSAGE_COLUMNS, inserts=True)
        of_session = messages.c.session_pk == bindparam("p_pk")
        self._by_id = select(*message_columns(tables)).where(
            of_session, messages.c.message_id.in_(bindparam("p_ids", expanding=True))
        )
        self._sums = select(
            func.coalesce(func.sum(messages.c.tokens), 0),
            func.coalesce(func.sum(case((messages.c.role == "user", 1), else_=0)), 0),
        ).where(of_session, messages.c.pinned == 0, messages.c.seq >= bindparam("p_horizon"))
        self._pinned = select(func.coalesce(func.sum(messages.c.tokens), 0)).where(of_session, is_pinned(messages))
        self._newest_turn = select(func.max(messages.c.seq)).where(
            of_session,
            messages.c.role == "user",
            (messages.c.seq >= bindparam("p_horizon")) | (messages.c.seq == bindparam("p_turn")),
        )

    # -- append ----------------------------------------------------------------------------------------------

    def append(self, connection: Connection, one: Append) -> AppendResult:
        spec, drafts, policy, now, known = one.spec, one.drafts, one.policy, one.now, one.known
        session = known if known is not None and is_of(known, spec) else None
        if session is None:
            session = self._open(connection, spec, now)
        stored: dict[str, MessageRow] = {}
        if any(draft.given_id for draft in drafts):
            session = self._verified(connection, spec, session, now)
            stored = self._stored(connection, session, drafts)
        new = _new(drafts, stored)
        if not new:
            session = self._verified(connection, spec, session, now)
            return AppendResult(session, tuple(stored[draft.message_id] for draft in drafts), ())
        new, pins_earlier = pin_turns(new)
        grown = self._add(connection, spec, session, new, now)
        if grown is None:
            session = self._open(connection, spec, now)
            grown = self._add(connection, spec, session, new, now)
            if grown is None:
                raise TokenizerChanged
        session, rows = grown
        if pins_earlier:
            # The turn began before this batch, so that the turn as of now would be the wrong one to look for.
            session = self._pin_turn(connection, session, before=rows[0].seq)
        flush = None
        if is_over(session, policy):
            session, flush = self._flushing.as_needed(connection, session, spec, policy)
        stored.update((row.message_id, row) for row in rows)
        return AppendResult(session, tuple(stored[draft.message_id] for draft in drafts), rows, flush)

    def _add(
        self, connection: Connection, spec: SessionSpec, session: SessionRow, new: Sequence[Draft], now: int
    ) -> tuple[SessionRow, tuple[MessageRow, ...]] | None:
        row = self._grow_one.first(connection, (session.pk, session.uid, spec.tokenizer, now, *sums_of(new)))
        if row is None:
            return None
        grown = SessionRow(*row)
        return grown, self.insert_rows(connection, session.pk, grown.next_seq - len(new), new)

    def _open(self, connection: Connection, spec: SessionSpec, now: int) -> SessionRow:
        """The session of that name, made if there is none."""
        session = self._reading.find(connection, spec.tenant, spec.session_id)
        if session is None:
            table = self._tables.sessions
            statement = upsert(connection, table).on_conflict_do_nothing(index_elements=[table.c.tenant, table.c.session_id])
            connection.execute(statement, _new_session(spec, now))
            session = self._reading.find(connection, spec.tenant, spec.session_id)
            assert session is not None
        check_owner(spec, session)
        if session.tokenizer != spec.tokenizer:
            raise TokenizerChanged
        return session

    def _verified(self, connection: Connection, spec: SessionSpec, session: SessionRow, now: int) -> SessionRow:
        """The session as stored now, for decisions that come before the first write."""
        found = self._reading.lock(connection, session)
        if found is None:
            return self._open(connection, spec, now)
        if found.tokenizer != spec.tokenizer:
            raise TokenizerChanged
        return found

    def _stored(self, connection: Connection, session: SessionRow, drafts: Sequence[Draft]) -> dict[str, MessageRow]:
        """Stored rows that given ids stand for; raises `MessageConflictError` for other data."""
        rows = self.by_ids(connection, session.pk, [draft.message_id for draft in drafts if draft.given_id])
        for draft in drafts:
            if draft.given_id and (row := rows.get(draft.message_id)) is not None:
                _check_same(draft, row.data)
        return rows

    def by_ids(self, connection: Connection, pk: int, ids: Sequence[str]) -> dict[str, MessageRow]:
        """Stored rows of a session by their message ids."""
        found: dict[str, MessageRow] = {}
        for batch in batches(dict.fromkeys(ids)):
            for row in connection.execute(self._by_id, {"p_pk": pk, "p_ids": batch}).all():
                found[row.message_id] = message_row(row)
        return found

    def _pin_turn(self, connection: Connection, session: SessionRow, *, before: int) -> SessionRow:
        """Pin the newest user message before a seq: an answer to it was pinned."""
        messages = self._tables.messages
        own = messages.c.session_pk == session.pk
        newest = select(func.max(messages.c.seq)).where(own, messages.c.role == "user", messages.c.seq < before)
        seq = connection.execute(newest).scalar()
        if seq is None:
            return session
        pin = update(messages).where(own, messages.c.seq == seq, messages.c.pinned == 0).values(pinned=1)
        if connection.execute(pin).rowcount == 0:
            return session
        return self.refresh(connection, session, revision=session.revision + 1)

    # -- sums, recounting, replacing ----------------------------------------------------------------------------

    def refresh(self, connection: Connection, session: SessionRow, *, added: int = 0, **values: Any) -> SessionRow:
        """Recompute the session's sums and its turn from its rows; other columns are set to `values`.

        `added` is by how many its number of messages grew; rows below the horizon are not read for it.
        """
        sessions = self._tables.sessions
        horizon = values.get("horizon", session.horizon)
        turn = values.pop("turn_seq", session.turn_seq)
        given = {"p_pk": session.pk, "p_horizon": horizon, "p_turn": -1 if turn is None else turn}
        active, turns = connection.execute(self._sums, given).one()
        sums = {
            "messages": sessions.c.messages + added,
            "active_tokens": active,
            "active_turns": turns,
            "pinned_tokens": connection.execute(self._pinned, given).scalar(),
            "turn_seq": connection.execute(self._newest_turn, given).scalar(),
            "version": session.version + 1,
        }
        statement = update(sessions).where(sessions.c.pk == session.pk).returning(*session_columns(self._tables))
        return SessionRow(*connection.execute(statement.values(**sums | values)).one())

    def recount(self, connection: Connection, session: SessionRow, tokenizer: str, tokens: Mapping[int, int]) -> bool:
        found = self._reading.lock(connection, session)
        if found is None or found.version != session.version:
            return False
        messages = self._tables.messages
        if tokens:
            one = update(messages).where(messages.c.session_pk == bindparam("p_pk"), messages.c.seq == bindparam("p_seq"))
            counts = [{"p_pk": found.pk, "p_seq": seq, "p_tokens": count} for seq, count in tokens.items()]
            connection.execute(one.values(tokens=bindparam("p_tokens")), counts)
        self.refresh(connection, found, tokenizer=tokenizer, revision=found.revision + 1)
        return True

    def open_for_replacing(self, connection: Connection, spec: SessionSpec, now: int) -> SessionRow:
        session = self._open(connection, spec, now)
        return self._verified(connection, spec, session, now)

    def insert_many(
        self, connection: Connection, appended: Sequence[tuple[int, int, Sequence[Draft]]]
    ) -> list[tuple[MessageRow, ...]]:
        """Insert into several sessions: the pk of each, the seq of its first draft, its drafts. Returns the rows of each."""
        values = [values_of(pk, first + place, draft) for pk, first, drafts in appended for place, draft in enumerate(drafts)]
        if values:
            self._insert.run(connection, values)
        return [tuple([row_of(first + place, draft) for place, draft in enumerate(drafts)]) for _, first, drafts in appended]

    def insert_rows(self, connection: Connection, pk: int, first: int, drafts: Sequence[Draft]) -> tuple[MessageRow, ...]:
        return self.insert_many(connection, [(pk, first, drafts)])[0]


@dataclass(slots=True, eq=False)
class Append:
    """What one put appends to its session; `known` is the session as it was seen last."""

    spec: SessionSpec
    drafts: Sequence[Draft]
    policy: FlushPolicy
    now: int
    known: SessionRow | None

    @property
    def is_simple(self) -> bool:
        """Whether it needs nothing but the session's next numbers."""
        known, spec, drafts = self.known, self.spec, self.drafts
        if known is None or not drafts or known.tokenizer != spec.tokenizer or not is_of(known, spec):
            return False
        for draft in drafts:
            if draft.partial or (draft.pinned and draft.role == "assistant"):
                return False
        return len(drafts) == 1 or len({draft.message_id for draft in drafts}) == len(drafts)

    @property
    def leaves_room(self) -> bool:
        """Whether nothing has to leave the FIFO for it, as far as is known."""
        known, policy = self.known, self.policy
        if known is None:
            return False
        sums = sums_of(self.drafts)
        turns = policy.max_turns is None or known.active_turns + sums.turns <= policy.max_turns
        return turns and known.active_tokens + sums.active <= policy.threshold


class Sums(NamedTuple):
    """By how much drafts make a session grow; `turn` is the place of the last user message, -1 without one."""

    number: int
    turn: int
    active: int
    turns: int
    pinned: int


def sums_of(drafts: Sequence[Draft]) -> Sums:
    """What a session's row adds up for these."""
    turn, active, turns, pinned = -1, 0, 0, 0
    for place, draft in enumerate(drafts):
        if draft.role == "user":
            turn = place
            turns += not draft.pinned
        if draft.pinned:
            pinned += draft.tokens
        else:
            active += draft.tokens
    return Sums(len(drafts), turn, active, turns, pinned)


def is_of(known: SessionRow, spec: SessionSpec) -> bool:
    """Whether the row is of the session that is meant."""
    return (known.tenant, known.session_id, known.user_id) == (spec.tenant, spec.session_id, spec.user_id)


def _check_same(draft: Draft, data: str) -> None:
    if not draft.partial and draft.data != data:
        raise MessageConflictError(
            f"A message with the id {draft.message_id!r} but other content is stored already; "
            "use a new id, or delete the stored one first."
        )


def _new(drafts: Sequence[Draft], stored: Mapping[str, MessageRow]) -> list[Draft]:
    """The drafts that stand for no stored row; one id in a batch stands for one message."""
    new: dict[str, Draft] = {}
    for draft in drafts:
        if draft.message_id in stored:
            continue
        if draft.message_id in new:
            _check_same(draft, new[draft.message_id].data)
        else:
            new[draft.message_id] = draft
    return list(new.values())


def pin_turns(drafts: list[Draft]) -> tuple[list[Draft], bool]:
    """Pin the user message before each pinned assistant message; whether one of them is not in this batch."""
    if not any(draft.pinned and draft.role == "assistant" for draft in drafts):
        return drafts, False
    result, user, earlier = list(drafts), -1, False
    for place, draft in enumerate(drafts):
        if draft.role == "user":
            user = place
        elif draft.pinned and draft.role == "assistant":
            if user < 0:
                earlier = True
            else:
                result[user] = result[user]._replace(pinned=True)
    return result, earlier


def values_of(pk: int, seq: int, draft: Draft) -> tuple[Any, ...]:
    """What is stored for a draft, by `MESSAGE_COLUMNS`."""
    message_id, role, tokens, data, created_at, pinned, calls, results, *_ = draft
    calls_text = json.dumps(calls) if calls else None
    results_text = json.dumps(results) if results else None
    return pk, seq, message_id, role, 1 if pinned else 0, tokens, data, created_at, calls_text, results_text


def row_of(seq: int, draft: Draft) -> MessageRow:
    """The row of a draft that was stored."""
    return MessageRow(seq, *draft[:8])


def new_uid() -> str:
    """A session's uid: random, never used again."""
    return secrets.token_hex(16)


def _new_session(spec: SessionSpec, now: int) -> dict[str, Any]:
    counters = (
        "epoch",
        "next_seq",
        "horizon",
        "active_tokens",
        "active_turns",
        "pinned_tokens",
        "version",
        "revision",
        "messages",
    )
    return dict.fromkeys(counters, 0) | {
        "uid": new_uid(),
        "tenant": spec.tenant,
        "user_id": spec.user_id,
        "session_id": spec.session_id,
        "turn_seq": None,
        "tokenizer": spec.tokenizer,
        "created_at": now,
        "updated_at": now,
        "metadata": spec.metadata,
    }
