"""Puts of many sessions in a few statements, on SQLite.

Only what every put does is done together: sessions that are as they were seen, ids of our own, nothing pinned that reaches
back. Whatever is not so simple is done alone, in the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from operator import attrgetter

from sqlalchemy import Connection, Text, bindparam, func, select, update

from memory_engine.sql.conversation import Append, Conversation, sums_of
from memory_engine.sql.flushing import Flushing, is_over
from memory_engine.sql.prepared import Prepared
from memory_engine.sql.tables import Tables
from memory_engine.store import AppendResult, SessionRow

_GROWING = ("next_seq", "turn_seq", "active_tokens", "active_turns", "pinned_tokens", "updated_at", "version")
_growing = attrgetter(*_GROWING)


class Together:
    """The statements over sessions of several puts."""

    def __init__(self, tables: Tables, conversation: Conversation, flushing: Flushing) -> None:
        self._conversation, self._flushing = conversation, flushing
        sessions = tables.sessions
        listed = func.json_each(bindparam("p_pks", type_=Text())).table_valued("value").c.value
        self._versions = Prepared(
            select(sessions.c.pk, sessions.c.uid, sessions.c.version).where(sessions.c.pk.in_(select(listed))), ["p_pks"]
        )
        self._replace = Prepared(
            update(sessions)
            .where(sessions.c.pk == bindparam("p_pk"))
            .values(
                messages=sessions.c.messages + bindparam("p_number"), **{name: bindparam(f"p_{name}") for name in _GROWING}
            ),
            [f"p_{name}" for name in ("pk", "number", *_GROWING)],
        )

    def append(self, connection: Connection, appends: Sequence[Append]) -> list[AppendResult]:
        """Append to sessions in this order; nobody else writes until the transaction ends."""
        results: list[AppendResult] = []
        left = list(appends)
        while left:
            # A session that grows twice does so one after the other.
            first = _without_repetition(left)
            results += self._append_each_once(connection, first)
            del left[: len(first)]
        return results

    def _append_each_once(self, connection: Connection, appends: Sequence[Append]) -> list[AppendResult]:
        pks = [append.known.pk for append in appends if append.known is not None]
        found = {pk: (uid, version) for pk, uid, version in self._versions.all(connection, (json.dumps(pks),))}
        grown: list[tuple[Append, SessionRow]] = []
        for append in appends:
            known = append.known
            # As it was seen, to the last column: what becomes of it need not be asked for.
            as_seen = known is not None and found.get(known.pk) == (known.uid, known.version)
            if known is not None and as_seen and append.is_simple and not any(draft.given_id for draft in append.drafts):
                grown.append((append, _grown(known, append)))
        if len(grown) < 2:
            return [self._conversation.append(connection, append) for append in appends]
        rows = [(session.pk, len(append.drafts), *_growing(session)) for append, session in grown]
        self._replace.run(connection, rows)
        done = dict(zip((append for append, _ in grown), self._insert(connection, grown), strict=True))
        return [done.get(append) or self._conversation.append(connection, append) for append in appends]

    def _insert(self, connection: Connection, grown: Sequence[tuple[Append, SessionRow]]) -> list[AppendResult]:
        """The messages of sessions whose sums have grown for them; what does not fit then leaves the FIFO."""
        each = [(session.pk, session.next_seq - len(append.drafts), append.drafts) for append, session in grown]
        results = []
        for (append, session), new in zip(grown, self._conversation.insert_many(connection, each), strict=True):
            result = AppendResult(session, new, new)
            if is_over(session, append.policy):
                moved, flush = self._flushing.as_needed(connection, session, append.spec, append.policy)
                result = AppendResult(moved, new, new, flush)
            results.append(result)
        return results


def _without_repetition(appends: Sequence[Append]) -> Sequence[Append]:
    """The first of them up to where a session comes again."""
    seen: set[tuple[str, str]] = set()
    for place, append in enumerate(appends):
        name = (append.spec.tenant, append.spec.session_id)
        if name in seen:
            return appends[:place]
        seen.add(name)
    return appends


def _grown(known: SessionRow, append: Append) -> SessionRow:
    number, turn, active, turns, pinned = sums_of(append.drafts)
    return known._replace(
        next_seq=known.next_seq + number,
        turn_seq=known.turn_seq if turn < 0 else known.next_seq + turn,
        active_tokens=known.active_tokens + active,
        active_turns=known.active_turns + turns,
        pinned_tokens=known.pinned_tokens + pinned,
        updated_at=append.now,
        version=known.version + 1,
    )
