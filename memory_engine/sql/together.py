"""Puts of many sessions in a few statements, for a database where each statement is a round trip.

Only what every put does is done together: sessions that are known, ids of our own, nothing pinned that reaches back. Whatever
is not so simple, or fails, is done alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ARRAY, BigInteger, Connection, bindparam, case, func, select, update

from memory_engine.sql.conversation import Conversation, is_of, sums_of
from memory_engine.sql.errors import OutcomeUnknown
from memory_engine.sql.flushing import Flushing, is_over
from memory_engine.sql.reading import session_columns
from memory_engine.sql.tables import Tables
from memory_engine.store import AppendResult, Draft, FlushPolicy, SessionRow, SessionSpec

log = logging.getLogger("memory_engine.sql")

_GROUPS = 4
"""So many transactions of puts at once; whoever comes then waits for the next and goes with all that wait."""
_MOST = 128
_SUMS = ("pk", "number", "turn", "active", "turns", "pinned", "now")


@dataclass(frozen=True, slots=True, eq=False)
class Append:
    """What one put appends to its session."""

    spec: SessionSpec
    drafts: Sequence[Draft]
    policy: FlushPolicy
    now: int
    known: SessionRow | None

    @property
    def is_simple(self) -> bool:
        """Whether it needs nothing but the session's next numbers."""
        known = self.known
        return (
            known is not None
            and is_of(known, self.spec)
            and known.tokenizer == self.spec.tokenizer
            and len({draft.message_id for draft in self.drafts}) == len(self.drafts) > 0
            and not any(draft.given_id or (draft.pinned and draft.role == "assistant") for draft in self.drafts)
        )


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

    def append(self, connection: Connection, appends: Sequence[Append]) -> list[AppendResult]:
        """Append to several sessions, each once.

        :raises NotTogetherError: one of them is gone, was reset, or is counted by another tokenizer.
        """
        by_pk = {append.known.pk: append for append in appends if append.known is not None}
        found = {row.pk: row for row in connection.execute(self._lock, {"p_pk": list(by_pk)}).all()}
        for pk, append in by_pk.items():
            row, known = found.get(pk), append.known
            if row is None or known is None or (row.uid, row.tokenizer) != (known.uid, append.spec.tokenizer):
                raise NotTogetherError
        sums = [{"pk": pk, "now": append.now, **sums_of(append.drafts)._asdict()} for pk, append in by_pk.items()]
        rows = connection.execute(self._grow, {f"p_{name}": [each[name] for each in sums] for name in _SUMS}).all()
        grown = {session.pk: session for session in (SessionRow(*row) for row in rows)}
        inserted = self._conversation.insert_many(
            connection, [(pk, grown[pk].next_seq - len(append.drafts), append.drafts) for pk, append in by_pk.items()]
        )
        results = []
        for (pk, append), new in zip(by_pk.items(), inserted, strict=True):
            session, flush = grown[pk], None
            if is_over(session, append.policy):
                session, flush = self._flushing.as_needed(connection, session, append.spec, append.policy)
            results.append(AppendResult(session, new, new, flush))
        return results


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
