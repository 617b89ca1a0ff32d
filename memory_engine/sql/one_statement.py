"""Puts as one statement, on PostgreSQL, where each statement is a round trip: of one session or of several.

The statement is a transaction by itself. It writes for the sessions that are still what they were known to be, that nobody
has locked, whose FIFO has room and that have no message of a given id yet, and says which; for all others a put takes its usual
way. That one is rare: a flush comes with every fiftieth put.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.dialects import postgresql

from memory_engine.sql.conversation import MESSAGE_COLUMNS, Append, row_of, sums_of, values_of
from memory_engine.sql.reading import session_columns
from memory_engine.sql.tables import Tables
from memory_engine.store import AppendResult, SessionRow

_GIVEN = {
    "pk": "bigint",
    "uid": "text",
    "tokenizer": "text",
    "now": "bigint",
    "threshold": "bigint",
    "most_turns": "bigint",
    "number": "bigint",
    "turn": "bigint",
    "active": "bigint",
    "turns": "bigint",
    "pinned": "bigint",
    "named": "boolean",
}
"""What is given for each session, as arrays."""
_MOST = 2**63 - 1
_KINDS = ("bigint", "bigint", "text", "text", "smallint", "bigint", "text", "bigint", "text", "text")
"""The types of the columns of a message; its place, counted back from the session's next number, stands for its number."""


class PutStatement:
    """The statement over one set of tables, and what goes in and out of it."""

    def __init__(self, tables: Tables) -> None:
        self._text = _statement(tables)

    def call(self, appends: Sequence[Append]) -> tuple[str, list[list[Any]]]:
        """The text and its parameters for puts of as many sessions."""
        sessions, messages = [], []
        for append in appends:
            known, policy = append.known, append.policy
            assert known is not None
            limits = (min(policy.threshold, _MOST), None if policy.max_turns is None else min(policy.max_turns, _MOST))
            named = any(draft.given_id for draft in append.drafts)
            sums = sums_of(append.drafts)
            sessions.append((known.pk, known.uid, append.spec.tokenizer, append.now, *limits, *sums, named))
            first = -len(append.drafts)
            messages += [values_of(known.pk, first + place, draft) for place, draft in enumerate(append.drafts)]
        lists = [list(values) for rows in (sessions, messages) for values in zip(*rows, strict=True)]
        return self._text, lists

    @staticmethod
    def results(appends: Sequence[Append], rows: Sequence[Sequence[Any]]) -> list[AppendResult | None]:
        """What was written for each put; None for those for which nothing was."""
        grown = {session.pk: session for session in (SessionRow(*row) for row in rows)}
        results: list[AppendResult | None] = []
        for append in appends:
            session = grown.get(append.known.pk) if append.known is not None else None
            if session is None:
                results.append(None)
                continue
            first = session.next_seq - len(append.drafts)
            new = tuple([row_of(first + place, draft) for place, draft in enumerate(append.drafts)])
            results.append(AppendResult(session, new, new))
        return results


def _statement(tables: Tables) -> str:
    names = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call]
    sessions_table, messages_table = names.format_table(tables.sessions), names.format_table(tables.messages)
    given = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(_GIVEN.values(), start=1))
    new = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(_KINDS, start=len(_GIVEN) + 1))
    columns = ", ".join(f"old.{column.name}" for column in session_columns(tables))
    # Locked sessions are left to wait by themselves: nobody else waits with them, and nobody is waited for in a circle.
    # The key is compared with the list too, for the planner: it might read a small table for a join.
    return f"""
        WITH given AS (SELECT * FROM unnest({given}) AS given({", ".join(_GIVEN)})),
        new AS (SELECT * FROM unnest({new}) AS new({", ".join(MESSAGE_COLUMNS)})),
        locked AS (SELECT pk FROM {sessions_table} WHERE pk = ANY($1::bigint[]) ORDER BY pk FOR UPDATE SKIP LOCKED),
        grown AS (
            UPDATE {sessions_table} AS old SET
                next_seq = old.next_seq + given.number,
                turn_seq = CASE WHEN given.turn < 0 THEN old.turn_seq ELSE old.next_seq + given.turn END,
                active_tokens = old.active_tokens + given.active,
                active_turns = old.active_turns + given.turns,
                pinned_tokens = old.pinned_tokens + given.pinned,
                messages = old.messages + given.number,
                updated_at = given.now,
                version = old.version + 1
            FROM given JOIN locked ON locked.pk = given.pk
            WHERE old.pk = given.pk AND old.pk = ANY($1::bigint[])
                AND old.uid = given.uid AND old.tokenizer = given.tokenizer
                AND old.active_tokens + given.active <= given.threshold
                AND (given.most_turns IS NULL OR old.active_turns + given.turns <= given.most_turns)
                AND NOT (given.named AND EXISTS (
                    SELECT 1 FROM new JOIN {messages_table} AS stored
                    ON stored.session_pk = new.session_pk AND stored.message_id = new.message_id
                    WHERE new.session_pk = given.pk AND stored.session_pk = given.pk
                ))
            RETURNING {columns}
        ),
        added AS (
            INSERT INTO {messages_table} ({", ".join(MESSAGE_COLUMNS)})
            SELECT new.session_pk, grown.next_seq + new.seq, {", ".join(f"new.{name}" for name in MESSAGE_COLUMNS[2:])}
            FROM new JOIN grown ON grown.pk = new.session_pk
        )
        SELECT * FROM grown
    """
