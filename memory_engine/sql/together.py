"""Puts of many sessions in a few statements.

Only what every put does is done together: sessions that are known, ids of our own, nothing pinned that reaches back. Whatever
is not so simple, or fails, is done alone.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Connection, Text, bindparam, case, func, select, update

from memory_engine.sql.conversation import Append, Conversation, Sums, sums_of
from memory_engine.sql.errors import OutcomeUnknown
from memory_engine.sql.flushing import Flushing, is_over
from memory_engine.sql.prepared import Prepared
from memory_engine.sql.reading import session_columns
from memory_engine.sql.tables import Tables
from memory_engine.store import AppendResult, SessionRow

log = logging.getLogger("memory_engine.sql")

_GROUPS = 4
"""So many transactions of puts at once; whoever comes then waits for the next and goes with all that wait."""
_MOST = 128
_SUMS = ("pk", "now", *Sums._fields)
_GROWING = ("next_seq", "turn_seq", "active_tokens", "active_turns", "pinned_tokens", "updated_at", "version")
_growing = attrgetter(*_GROWING)


class NotTogetherError(Exception):
    """A session is not as it was known; nothing was written."""


class Together:
    """The statements over sessions of several puts."""

    def __init__(self, tables: Tables, conversation: Conversation, flushing: Flushing) -> None:
        self._conversation, self._flushing = conversation, flushing
        sessions = tables.sessions
        pks = bindparam("p_pk", type_=ARRAY(BigInteger))
        # In one order everywhere, so that two groups of the same sessions do not wait for each other.
        self._lock = (
            select(sessions.c.pk, sessions.c.uid, sessions.c.tokenizer)
            .where(sessions.c.pk == func.any(pks))
            .order_by(sessions.c.pk)
            .with_for_update()
        )
        lists = [func.unnest(bindparam(f"p_{name}", type_=ARRAY(BigInteger))).label(name) for name in _SUMS]
        given = select(*lists).subquery("given").c
        self._grow = (
            update(sessions)
            # Said twice, for the planner: it takes the index for a list, and might read a small table for a join.
            .where(sessions.c.pk == given.pk, sessions.c.pk == func.any(pks))
            .values(
                next_seq=sessions.c.next_seq + given.number,
                turn_seq=case((given.turn < 0, sessions.c.turn_seq), else_=sessions.c.next_seq + given.turn),
                active_tokens=sessions.c.active_tokens + given.active,
                active_turns=sessions.c.active_turns + given.turns,
                pinned_tokens=sessions.c.pinned_tokens + given.pinned,
                messages=sessions.c.messages + given.number,
                updated_at=given.now,
                version=sessions.c.version + 1,
            )
            .returning(*session_columns(tables))
        )
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
        """Append to several sessions, each once, on PostgreSQL.

        :raises NotTogetherError: one of them is gone, was reset, or is counted by another tokenizer.
        """
        by_pk = {append.known.pk: append for append in appends if append.known is not None}
        found = {row.pk: row for row in connection.execute(self._lock, {"p_pk": list(by_pk)}).all()}
        for pk, append in by_pk.items():
            row, known = found.get(pk), append.known
            if row is None or known is None or (row.uid, row.tokenizer) != (known.uid, append.spec.tokenizer):
                raise NotTogetherError
        sums = [(pk, append.now, *sums_of(append.drafts)) for pk, append in by_pk.items()]
        given = {f"p_{name}": list(values) for name, values in zip(_SUMS, zip(*sums, strict=True), strict=True)}
        rows = connection.execute(self._grow, given).all()
        grown = {session.pk: session for session in map(SessionRow._make, rows)}
        return self._insert(connection, [(append, grown[pk]) for pk, append in by_pk.items()])

    def append_serially(self, connection: Connection, appends: Sequence[Append]) -> list[AppendResult]:
        """Append to sessions, in this order, where nobody else writes until the transaction ends: on SQLite."""
        results: list[AppendResult] = []
        left = list(appends)
        while left:
            # A session that grows twice does so one after the other.
            first = _without_repetition(left)
            results += self._append_serially(connection, first)
            del left[: len(first)]
        return results

    def _append_serially(self, connection: Connection, appends: Sequence[Append]) -> list[AppendResult]:
        pks = [append.known.pk for append in appends if append.known is not None]
        found = {pk: (uid, version) for pk, uid, version in self._versions.all(connection, (json.dumps(pks),))}
        grown: list[tuple[Append, SessionRow]] = []
        for append in appends:
            known = append.known
            # As it was seen, to the last column: what becomes of it need not be asked for.
            if append.is_simple and known is not None and found.get(known.pk) == (known.uid, known.version):
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


class Gathering:
    """Lets puts that come while others are written be written together.

    `together` writes several, `alone` one, `again` one that may be written already. A lone put is written alone and at once.
    """

    def __init__(
        self,
        together: Callable[[Sequence[Append]], Awaitable[Sequence[AppendResult]]],
        alone: Callable[[Append], Awaitable[AppendResult]],
        again: Callable[[Append], Awaitable[AppendResult]],
    ) -> None:
        self._together, self._alone, self._again = together, alone, again
        self._waiting: dict[Append, asyncio.Future[AppendResult]] = {}
        self._running = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def append(self, append: Append) -> AppendResult:
        """Write one, perhaps together with others that are asked for meanwhile."""
        if self._running < _GROUPS:
            self._running += 1
            try:
                return await self._alone(append)
            finally:
                self._next()
        done = self._waiting[append] = asyncio.get_running_loop().create_future()
        result: AppendResult = await done
        return result

    def _next(self) -> None:
        """Somebody is through: those who wait go next, each session once."""
        group: dict[Append, asyncio.Future[AppendResult]] = {}
        sessions: set[int] = set()
        for append, done in list(self._waiting.items()):
            pk = -1 if append.known is None else append.known.pk
            if done.cancelled():
                # Whoever was cancelled in the queue does not want it any more.
                del self._waiting[append]
            elif pk not in sessions and len(group) < _MOST:
                sessions.add(pk)
                group[append] = self._waiting.pop(append)
        if not group:
            self._running -= 1
            return
        task = asyncio.create_task(self._write(group))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, group: dict[Append, asyncio.Future[AppendResult]]) -> None:
        try:
            write = self._alone
            if len(group) > 1:
                try:
                    results = await self._together(list(group))
                except OutcomeUnknown:
                    write = self._again
                except Exception as error:  # noqa: BLE001 - whose fault it is shows when each is alone
                    log.debug("%d puts could not be written together: %s", len(group), error)
                else:
                    for done, result in zip(group.values(), results, strict=True):
                        if not done.done():
                            done.set_result(result)
                    return
            await asyncio.gather(*(_write_one(write, append, done) for append, done in group.items()))
        finally:
            for done in group.values():
                done.cancel()  # of what was not written; the others are done
            self._next()


async def _write_one(
    write: Callable[[Append], Awaitable[AppendResult]], append: Append, done: asyncio.Future[AppendResult]
) -> None:
    try:
        result = await write(append)
    except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
        if not done.done():
            done.set_exception(error)
    else:
        if not done.done():
            done.set_result(result)
