"""The queue of deliveries and erasures. Plain functions over a `Connection`; callers bring the transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    Connection,
    Integer,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)

from memory_engine.budget import plan_chunks
from memory_engine.sql.flushing import Flushing
from memory_engine.sql.postgresql import announce
from memory_engine.sql.reading import Reading, message_columns, message_rows, session_columns
from memory_engine.sql.states import Leases, States
from memory_engine.sql.tables import Tables, epoch_seconds, erases
from memory_engine.store import (
    BlockLag,
    Chunk,
    Claim,
    Erasure,
    ErasureClaim,
    Lease,
    MessageRow,
    Pending,
    SessionRow,
    StateChange,
    StateRow,
    WorkFilter,
    scope_key,
)

T = TypeVar("T")


class _Queue(NamedTuple):
    """Rows of a table that wait, in the order of `due`, then of `order`."""

    kind: str
    table: Any
    due: Any
    order: Any
    waiting: Any


class Deliveries:
    """Statements over cursors, leases, parked chunks and erasures."""

    def __init__(self, tables: Tables, reading: Reading, flushing: Flushing, states: States, leases: Leases) -> None:
        self._tables, self._reading, self._flushing = tables, reading, flushing
        self._states, self._leases = states, leases
        # Workers ask with one filter again and again; building a statement takes longer than running it.
        self.pending_statement = lru_cache(maxsize=256)(self._pending_statement)
        self.next_due_statement = lru_cache(maxsize=256)(self._next_due_statement)
        self.lag_statements = lru_cache(maxsize=256)(self._lag_statements)
        self.cursor_statement = lru_cache(maxsize=256)(self._cursor_statement)
        self.parked_statement = lru_cache(maxsize=256)(self._parked_statement)
        self.erasure_statement = lru_cache(maxsize=256)(self._erasure_statement)

    # -- what waits ------------------------------------------------------------------------------------------

    def pending(self, connection: Connection, work: WorkFilter) -> Pending:
        if not work.blocks:
            return Pending()
        deliveries = erasures = 0
        nexts: list[float] = []
        for kind, count, due in connection.execute(self.pending_statement(work)).all():
            if kind == "erasure":
                erasures += count
            else:
                deliveries += count
            if count:
                nexts.append(max(0.0, due))
        return Pending(deliveries, erasures, min(nexts, default=None))

    def next_due(self, connection: Connection, work: WorkFilter) -> float | None:
        if not work.blocks:
            return None
        found: dict[str, list[float]] = {"free": [], "any": [], "lease": []}
        for kind, due in connection.execute(self.next_due_statement(work)).all():
            if due is not None:
                found[kind].append(due)
        if not found["any"]:
            return None
        # What is leased is waited for as long as the lease may last; whoever ends it earlier looks again.
        return max(0.0, min(found["free"] + found["lease"], default=min(found["any"])))

    def _queues(self) -> tuple[_Queue, ...]:
        cursors, parked, erasures = self._tables.cursors, self._tables.parked, self._tables.erasures
        return (
            _Queue("cursor", cursors, cursors.c.next_attempt_at, cursors.c.session_pk, cursors.c.cursor < cursors.c.target),
            _Queue("parked", parked, parked.c.redeliver_at, parked.c.id, parked.c.redeliver_at.is_not(None)),
            _Queue("erasure", erasures, erasures.c.due_at, erasures.c.id, true()),
        )

    def _pending_statement(self, work: WorkFilter) -> Any:
        """For each kind of work: how many, and in how many seconds the first may be tried."""
        leases = self._tables.leases
        parts = []
        for queue in self._queues():
            until = select(func.max(leases.c.until)).where(*self._in_the_way(queue.table)).scalar_subquery()
            free = case((until > queue.due, until), else_=queue.due)
            columns = (literal(queue.kind).label("kind"), func.count(), func.min(free) - epoch_seconds())
            parts += [
                select(*columns).select_from(queue.table).where(queue.waiting, *part) for part in self._parts(queue.table, work)
            ]
        return union_all(*parts)

    def _next_due_statement(self, work: WorkFilter) -> Any:
        """What `next_due` needs to know, from the first row of each queue, however many wait in it."""
        leases = self._tables.leases
        parts = []
        for queue in self._queues():
            first = select(queue.due.label("due")).order_by(queue.due).limit(1)
            for part in self._parts(queue.table, work):
                every = first.where(queue.waiting, *part)
                for kind, rows in (("any", every), ("free", every.where(self._free(queue.table)))):
                    found = rows.subquery()
                    parts.append(select(literal(kind).label("kind"), found.c.due - epoch_seconds()))
        alive = (leases.c.block.in_(work.blocks), leases.c.until > epoch_seconds())
        parts.append(select(literal("lease").label("kind"), func.min(leases.c.until) - epoch_seconds()).where(*alive))
        return union_all(*parts)

    def _in_the_way(self, table: Any) -> list[Any]:
        """The leases that keep a row from being claimed.

        Erasures come after whoever writes by hand: an outside store may have got something from them that is to be erased.
        """
        leases = self._tables.leases
        same_pair = [leases.c.scope_key == table.c.scope_key, leases.c.block == table.c.block]
        return same_pair if table is self._tables.erasures else [*same_pair, leases.c.purpose == "deliver"]

    def _parts(self, table: Any, work: WorkFilter) -> list[list[Any]]:
        """The conditions of a filter, in parts without a common row, each of which an index answers in the order of its due."""
        blocks = [[table.c.block == block] for block in work.blocks]
        if work.tenant is None and work.session_id is None:
            return blocks
        mine = self._of_session(table, work)
        if work.session_id is None:
            return [[*block, mine] for block in blocks]
        named = table.c.block.in_(work.blocks)
        if not work.scopes:
            return [[named, mine]]
        return [[named, mine], [named, table.c.scope_key.in_(work.scopes), self._of_others(table, mine)]]

    def _of_session(self, table: Any, work: WorkFilter) -> Any:
        """The condition that a row belongs to the tenant and session of a filter."""
        erasures, sessions = self._tables.erasures, self._tables.sessions
        columns = erasures.c if table is erasures else sessions.c
        wanted = ((columns.tenant, work.tenant), (columns.session_id, work.session_id))
        here = [column == value for column, value in wanted if value is not None]
        return and_(*here) if table is erasures else table.c.session_pk.in_(select(sessions.c.pk).where(*here))

    def _of_others(self, table: Any, mine: Any) -> Any:
        # The session of an erasure may be NULL, of which nothing is true.
        return or_(table.c.session_id.is_(None), not_(mine)) if table is self._tables.erasures else not_(mine)

    def lags(self, connection: Connection, work: WorkFilter) -> tuple[BlockLag, ...]:
        found = {block: [0, 0, 0, 0] for block in work.blocks}
        if not work.blocks:
            return ()
        for place, statement in self.lag_statements(work):
            for block, *counts in connection.execute(statement).all():
                for number, count in enumerate(counts):
                    found[block][place + number] += int(count)
        return tuple([BlockLag(block, *values) for block, values in found.items() if any(values)])

    def _lag_statements(self, work: WorkFilter) -> list[tuple[int, Any]]:
        """Statements over what waits, each with the place in a `BlockLag` of the first number that it counts."""
        cursors, parked, erasures = self._tables.cursors, self._tables.parked, self._tables.erasures
        behind = func.sum(cursors.c.target - cursors.c.cursor)
        counted: tuple[tuple[int, Any, list[Any], list[Any]], ...] = (
            (0, cursors, [func.count(), behind], [cursors.c.cursor < cursors.c.target]),
            (2, parked, [func.count()], []),
            (3, erasures, [func.count()], []),
        )
        return [
            (
                place,
                union_all(*(select(table.c.block, *columns).where(*where, *part).group_by(table.c.block) for part in parts)),
            )
            for place, table, columns, where in counted
            if (parts := self._parts(table, work))
        ]

    # -- claiming --------------------------------------------------------------------------------------------

    def claim(self, connection: Connection, work: WorkFilter, seconds: float, limit: int) -> tuple[Claim, ...]:
        if not work.blocks:
            return ()
        claims = self._take(connection, self.parked_statement(work), seconds, limit, _parked_claim)
        if len(claims) < limit:
            claims += self._take(connection, self.cursor_statement(work), seconds, limit - len(claims), _cursor_claim)
        return tuple(claims)

    def claim_erasures(self, connection: Connection, work: WorkFilter, seconds: float, limit: int) -> tuple[ErasureClaim, ...]:
        if not work.blocks:
            return ()

        def claimed(row: Any, lease: Lease) -> ErasureClaim:
            return ErasureClaim(lease, _erasure(row), self._states.read(connection, row.scope_key, row.block))

        return tuple(self._take(connection, self.erasure_statement(work), seconds, limit, claimed))

    def _take(
        self, connection: Connection, due: Any, seconds: float, limit: int, claimed: Callable[[Any, Lease], T]
    ) -> list[T]:
        """Lease the pairs of due rows, each once. Repeated, because one pair may fill a whole page of rows.

        Where there are several writers, each passes by the rows and leases that another one has locked. Who gets fewer than
        there are looks again; nobody waits.
        """
        taken: list[T] = []
        passed: list[tuple[str, str]] = []
        while (room := limit - len(taken)) > 0:
            rows: dict[tuple[str, str], Any] = {}
            for row in connection.execute(due, {"p_limit": room, "p_passed": passed}).all():
                rows.setdefault((row.scope_key, row.block), row)
            if not rows:
                break
            leases = self._leases.take_free(connection, list(rows), seconds)
            taken += [claimed(rows[lease.scope_key, lease.block], lease) for lease in leases]
            passed += rows.keys() - {(lease.scope_key, lease.block) for lease in leases}
        return taken

    def _free(self, table: Any) -> Any:
        leases = self._tables.leases
        return ~select(leases.c.token).where(*self._in_the_way(table), leases.c.until > epoch_seconds()).exists()

    def _cursor_statement(self, work: WorkFilter) -> Select[Any]:
        """Due cursors of free pairs, those that wait longest first."""
        cursors = self._tables.cursors
        columns = (cursors.c.session_pk, cursors.c.scope_key, cursors.c.block, cursors.c.cursor, cursors.c.target)
        return self._with_session(self._due(self._queues()[0], work, (*columns, cursors.c.attempts)))

    def _parked_statement(self, work: WorkFilter) -> Select[Any]:
        """Parked chunks that are to be delivered again."""
        parked = self._tables.parked
        columns = (
            parked.c.session_pk,
            parked.c.scope_key,
            parked.c.block,
            parked.c.from_seq.label("cursor"),
            parked.c.to_seq.label("target"),
            parked.c.attempts,
            parked.c.id.label("parked_id"),
        )
        return self._with_session(self._due(self._queues()[1], work, columns))

    def _erasure_statement(self, work: WorkFilter) -> Select[Any]:
        """Due erasures of free pairs, in the order they were given."""
        return self._due(self._queues()[2], work, tuple(self._tables.erasures.c))

    def _due(self, queue: _Queue, work: WorkFilter, columns: Sequence[Any]) -> Select[Any]:
        """The first rows of a queue that are due and free. Each part of the filter is read to the limit, not to its end."""
        table, limit = queue.table, bindparam("p_limit", type_=Integer)
        passed = tuple_(table.c.scope_key, table.c.block).not_in(bindparam("p_passed", expanding=True))
        first = (
            select(*columns, queue.due.label("due"), queue.order.label("place"))
            .where(queue.waiting, queue.due <= epoch_seconds(), self._free(table), passed)
            .order_by(queue.due, queue.order)
            .limit(limit)
            .with_for_update(of=table, skip_locked=True)
        )
        parts = [first.where(*part).subquery(f"part_{number}") for number, part in enumerate(self._parts(table, work))]
        due = union_all(*(select(part) for part in parts)).subquery("due") if len(parts) > 1 else parts[0]
        return select(due).order_by(due.c.due, due.c.place).limit(limit)

    def _with_session(self, statement: Select[Any]) -> Select[Any]:
        sessions, due = self._tables.sessions, statement.subquery("first")
        own = (column.label(f"session_{column.name}") for column in session_columns(self._tables))
        joined = select(*own, *due.c).join_from(due, sessions, sessions.c.pk == due.c.session_pk)
        return joined.order_by(due.c.due, due.c.place)

    # -- delivering ------------------------------------------------------------------------------------------

    def read_chunk(self, connection: Connection, claim: Claim, flush_size: int) -> Chunk | None:
        if not self._leases.held(connection, claim.lease, claim.session, lock=False):
            return None
        start, end = claim.cursor, claim.target
        if claim.parked_id is None:
            end = self._part_end(connection, claim, flush_size)
        rows = self._rows(connection, claim.session.pk, start, end)
        return Chunk(start, end, rows, self._states.read(connection, claim.lease.scope_key, claim.lease.block))

    def _part_end(self, connection: Connection, claim: Claim, flush_size: int) -> int:
        """The end of the part, of the flush at the cursor, in which the cursor lies."""
        flushes = self._tables.flushes
        own = flushes.c.session_pk == claim.session.pk
        end = connection.execute(select(func.min(flushes.c.end_seq)).where(own, flushes.c.end_seq > claim.cursor)).scalar()
        before = connection.execute(select(func.max(flushes.c.end_seq)).where(own, flushes.c.end_seq <= claim.cursor)).scalar()
        end = claim.target if end is None else min(end, claim.target)
        rows = self._flushing.light_rows(connection, claim.session.pk, before or 0, end)
        for part_end in plan_chunks(rows, flush_size=flush_size)[:-1]:
            if part_end > claim.cursor:
                return min(part_end, end)
        return end

    def _rows(self, connection: Connection, pk: int, start: int, end: int) -> tuple[MessageRow, ...]:
        messages = self._tables.messages
        statement = (
            select(*message_columns(self._tables))
            .where(messages.c.session_pk == pk, messages.c.seq >= start, messages.c.seq < end)
            .where(messages.c.role.not_in(("system", "developer")))
            .order_by(messages.c.seq)
        )
        return tuple(message_rows(connection.execute(statement).all()))

    def commit_delivery(
        self, connection: Connection, claim: Claim, chunk: Chunk, change: StateChange, writing: Lease | None
    ) -> StateRow | None:
        if not self._leases.held(connection, claim.lease, claim.session) or not self._done(connection, claim, chunk):
            return None
        version = chunk.state.version
        return self._states.commit(connection, self._leases, claim.lease, change, version=version, writing=writing)

    def _done(self, connection: Connection, claim: Claim, chunk: Chunk) -> bool:
        """Take a delivered chunk off the queue; False when it is not on it any more."""
        cursors, parked = self._tables.cursors, self._tables.parked
        if claim.parked_id is not None:
            return connection.execute(delete(parked).where(parked.c.id == claim.parked_id)).rowcount == 1
        here = self._cursor_at(claim, chunk.from_seq)
        # Behind those that were served longer ago, or never.
        clean = {"attempts": 0, "next_attempt_at": epoch_seconds(), "last_error": None}
        return connection.execute(update(cursors).where(here).values(cursor=chunk.to_seq, **clean)).rowcount == 1

    def _cursor_at(self, claim: Claim, seq: int) -> Any:
        cursors = self._tables.cursors
        return and_(
            cursors.c.session_pk == claim.session.pk,
            cursors.c.block == claim.lease.block,
            cursors.c.scope_key == claim.lease.scope_key,
            cursors.c.cursor == seq,
        )

    def fail_delivery(
        self,
        connection: Connection,
        claim: Claim,
        chunk: Chunk | None,
        error: str,
        *,
        retry_in: float,
        counted: bool,
        park: bool,
    ) -> None:
        if self._leases.held(connection, claim.lease, claim.session):
            if claim.parked_id is not None:
                self._fail_parked(connection, claim.parked_id, error, retry_in, counted, park)
            elif park and chunk is not None:
                self._park(connection, claim, chunk, error)
            else:
                self._postpone(connection, claim, error, retry_in, counted)
        self._leases.release(connection, claim.lease)

    def _fail_parked(
        self, connection: Connection, parked_id: int, error: str, retry_in: float, counted: bool, park: bool
    ) -> None:
        parked = self._tables.parked
        again = None if park else epoch_seconds() + retry_in
        values = {"attempts": parked.c.attempts + int(counted), "redeliver_at": again, "error": error}
        connection.execute(update(parked).where(parked.c.id == parked_id).values(values))

    def _park(self, connection: Connection, claim: Claim, chunk: Chunk, error: str) -> None:
        if not self._done(connection, claim, chunk):
            return
        values = {
            "session_pk": claim.session.pk,
            "block": claim.lease.block,
            "scope_key": claim.lease.scope_key,
            "from_seq": chunk.from_seq,
            "to_seq": chunk.to_seq,
            "error": error,
            "attempts": claim.attempts + 1,
            "redeliver_at": None,
        }
        connection.execute(insert(self._tables.parked), values)

    def _postpone(self, connection: Connection, claim: Claim, error: str, retry_in: float, counted: bool) -> None:
        cursors = self._tables.cursors
        values = {
            "attempts": cursors.c.attempts + int(counted),
            "next_attempt_at": epoch_seconds() + retry_in,
            "last_error": error,
        }
        connection.execute(update(cursors).where(self._cursor_at(claim, claim.cursor)).values(values))

    def redeliver(self, connection: Connection, session: SessionRow, block: str | None) -> int:
        if self._reading.lock(connection, session) is None:
            return 0
        parked = self._tables.parked
        waiting = and_(parked.c.session_pk == session.pk, parked.c.redeliver_at.is_(None))
        condition = waiting if block is None else and_(waiting, parked.c.block == block)
        values = {"redeliver_at": epoch_seconds(), "attempts": 0}
        announce(connection, self._tables)
        return connection.execute(update(parked).where(condition).values(values)).rowcount

    # -- erasures --------------------------------------------------------------------------------------------

    def commit_erasure(
        self, connection: Connection, claim: ErasureClaim, change: StateChange, *, rebuild: bool, writing: Lease | None
    ) -> bool:
        if not self._leases.held(connection, claim.lease):
            return False
        erasures, erasure = self._tables.erasures, claim.erasure
        if connection.execute(delete(erasures).where(erasures.c.id == erasure.id)).rowcount == 0:
            return False
        if self._gone(connection, erasure):
            return True
        if not rebuild:
            version = claim.state.version
            self._states.commit(connection, self._leases, claim.lease, change, version=version, writing=writing)
        elif self._committed(connection, erasure):
            with self._leases.writing(connection, claim.lease, writing):
                self._rebuild(connection, erasure.scope_key, erasure.block)
        return True

    def _gone(self, connection: Connection, erasure: Erasure) -> bool:
        """Whether the scope was that of a session which is no more; nothing may be written to it then."""
        uid = erasure.session_uid
        if uid is None or erasure.scope_key != scope_key("session", tenant=erasure.tenant, user_id=None, session_uid=uid):
            return False
        sessions = self._tables.sessions
        return connection.execute(select(sessions.c.pk).where(sessions.c.uid == uid)).first() is None

    def _committed(self, connection: Connection, erasure: Erasure) -> bool:
        """Whether the block's fields or records may hold something of what was erased."""
        if not erasure.seqs:
            return erasure.seqs is None
        cursors, sessions = self._tables.cursors, self._tables.sessions
        statement = (
            select(cursors.c.cursor)
            .join_from(cursors, sessions, sessions.c.pk == cursors.c.session_pk)
            .where(sessions.c.uid == erasure.session_uid, cursors.c.scope_key == erasure.scope_key)
            .where(cursors.c.block == erasure.block, cursors.c.cursor > min(erasure.seqs))
        )
        return connection.execute(statement).first() is not None

    def _rebuild(self, connection: Connection, scope: str, block: str) -> None:
        """Drop what a block knows in a scope, and have it absorb again what is left of the scope's sessions."""
        self._states.clear(connection, scope, block)
        erasures = self._tables.erasures
        # What else was to be forgotten is gone with the rest.
        connection.execute(delete(erasures).where(erasures.c.scope_key == scope, erasures.c.block == block))
        self._states.absorb_again(connection, scope, block)

    def fail_erasure(self, connection: Connection, claim: ErasureClaim, error: str, retry_in: float) -> None:
        erasures = self._tables.erasures
        if self._leases.held(connection, claim.lease):
            values = {"attempts": erasures.c.attempts + 1, "due_at": epoch_seconds() + retry_in, "last_error": error}
            connection.execute(update(erasures).where(erasures.c.id == claim.erasure.id).values(values))
        self._leases.release(connection, claim.lease)

    def pending_erasures(self, connection: Connection, scope: str, block: str) -> tuple[Erasure, ...]:
        erasures = self._tables.erasures
        here = (erasures.c.scope_key == scope, erasures.c.block == block, erases(self._tables))
        statement = select(erasures).where(*here).order_by(erasures.c.id)
        return tuple(_erasure(row) for row in connection.execute(statement).all())


def _cursor_claim(row: Any, lease: Lease) -> Claim:
    return Claim(lease, SessionRow(*row[:18]), row.cursor, row.target, row.attempts)


def _parked_claim(row: Any, lease: Lease) -> Claim:
    return Claim(lease, SessionRow(*row[:18]), row.cursor, row.target, row.attempts, row.parked_id)


def _erasure(row: Any) -> Erasure:
    seqs = None if row.seqs is None else tuple(json.loads(row.seqs))
    return Erasure(row.id, row.tenant, row.block, row.scope_key, row.session_uid, seqs)
