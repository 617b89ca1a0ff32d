"""The queue of deliveries and erasures. Plain functions over a `Connection`; callers bring the transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
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
from memory_engine.sql.states import Leases, States, batches
from memory_engine.sql.tables import WIDE, Tables, epoch_seconds, erases, is_of_scope, is_one_of, is_wide, wide_key
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


class _Part(NamedTuple):
    """Some rows of a queue: of one `pair` (scope key, block), of few pairs of the block `wide`, or of many pairs."""

    name: str
    where: list[Any]
    wide: str | None = None
    pair: tuple[str, str] | None = None

    def every(self, table: Any) -> list[Any]:
        """The conditions that all rows of the part meet, and no others."""
        if self.pair is not None:
            column, key = _key_of(table, self.pair[0])
            return [*self.where, column == key]
        return self.where if self.wide is None else [*self.where, is_wide(table)]


class Deliveries:
    """Statements over cursors, leases, parked chunks and erasures."""

    def __init__(self, tables: Tables, reading: Reading, flushing: Flushing, states: States, leases: Leases) -> None:
        self._tables, self._reading, self._flushing = tables, reading, flushing
        self._states, self._leases = states, leases
        pk = tables.sessions.c.pk
        self._sessions = select(*session_columns(tables)).where(pk.in_(bindparam("p_pks", expanding=True)))
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
        return max(0.0, min(found["free"] + found["lease"], default=0.0))

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
            table = queue.table
            until = (
                select(func.max(leases.c.until))
                .where(*self._in_the_way(table, (table.c.scope_key, table.c.block)))
                .scalar_subquery()
            )
            free = case((until > queue.due, until), else_=queue.due)
            counted = select(literal(queue.kind).label("kind"), func.count(), func.min(free) - epoch_seconds())
            counted = counted.select_from(table)
            parts += [counted.where(queue.waiting, *part.every(table)) for part in self._parts(table, work)]
        return union_all(*parts)

    def _next_due_statement(self, work: WorkFilter) -> Any:
        """What `next_due` needs to know, from the first row of each queue, however many wait in it."""
        leases = self._tables.leases
        parts = []
        for queue in self._queues():
            for part in self._parts(queue.table, work):
                exists = select(queue.due.label("due")).where(queue.waiting, *part.every(queue.table)).limit(1)
                free = self._first(queue, part, [queue.due.label("due")]).limit(1)
                for kind, rows in (("any", exists.subquery()), ("free", free.subquery())):
                    parts.append(select(literal(kind).label("kind"), rows.c.due - epoch_seconds()))
        alive = (leases.c.block.in_(work.blocks), leases.c.until > epoch_seconds())
        parts.append(select(literal("lease").label("kind"), func.min(leases.c.until) - epoch_seconds()).where(*alive))
        return union_all(*parts)

    def _first(self, queue: _Queue, part: _Part, columns: Sequence[Any]) -> Select[Any]:
        """The free rows of a part, in the order in which they are due; of one that is wide, the first of each pair."""
        table = queue.table
        rows = select(*columns).where(queue.waiting, *part.where).order_by(queue.due, queue.order)
        if part.pair is not None:
            # While the pair is leased, nothing is equal to its key: none of its rows is looked at, which may be many.
            column, key = _key_of(table, part.pair[0])
            return rows.where(column == case((self._free(table, part.pair), literal(key))))
        if part.wide is None:
            return rows.where(self._free(table, (table.c.scope_key, table.c.block)))
        # All sessions of a tenant feed one pair: of each pair that is free, only the first row is looked at.
        others, later = table.alias("others"), table.alias("later")
        begin = select(func.min(wide_key(others)).label("key")).where(*_waiting_wide(others, part.wide))
        pairs = begin.cte(f"{part.name}_pairs", recursive=True)
        following = select(func.min(wide_key(later))).where(*_waiting_wide(later, part.wide), wide_key(later) > pairs.c.key)
        pairs = pairs.union_all(select(following.correlate(pairs).scalar_subquery()).where(pairs.c.key.is_not(None)))
        first = select(others.c.session_pk).where(*_waiting_wide(others, part.wide), wide_key(others) == pairs.c.key)
        first = first.order_by(others.c.next_attempt_at, others.c.session_pk).limit(1).correlate(pairs)
        free = self._free(table, (literal(WIDE) + pairs.c.key, literal(part.wide)))
        firsts = select(first.scalar_subquery()).where(pairs.c.key.is_not(None), free)
        return rows.where(is_one_of(queue.order, firsts.scalar_subquery()))

    def _in_the_way(self, table: Any, pair: tuple[Any, Any]) -> list[Any]:
        """The leases that keep the rows of a pair (scope key, block) from being claimed.

        Erasures come after whoever writes by hand: an outside store may have got something from them that is to be erased.
        """
        leases = self._tables.leases
        same_pair = [leases.c.scope_key == pair[0], leases.c.block == pair[1]]
        return same_pair if table is self._tables.erasures else [*same_pair, leases.c.purpose == "deliver"]

    def _free(self, table: Any, pair: tuple[Any, Any]) -> Any:
        leases = self._tables.leases
        alive = select(leases.c.token).where(*self._in_the_way(table, pair), leases.c.until > epoch_seconds())
        return ~alive.correlate_except(leases).exists()

    def _parts(self, table: Any, work: WorkFilter) -> list[_Part]:
        """The conditions of a filter, in parts without a common row, each of which an index answers in the order of its due."""
        if work.session_id is None:
            mine = [] if work.tenant is None else [self._of_session(table, work)]
            parts = []
            for number, block in enumerate(work.blocks):
                here = [table.c.block == block, *mine]
                if table is not self._tables.cursors:
                    parts.append(_Part(f"part_{number}", here))
                    continue
                parts.append(_Part(f"part_{number}", [*here, ~is_wide(table)]))
                parts.append(_Part(f"wide_{number}", here, wide=block))
            return parts
        own = self._of_session(table, work)
        parts = [_Part("own", [table.c.block.in_(work.blocks), own])]
        others = self._of_others(table, own)
        for number, pair in enumerate(product(work.scopes, work.blocks)):
            scope, block = pair
            here = [table.c.block == block, others]
            if table is self._tables.cursors and scope.startswith(WIDE):
                here.append(is_wide(table))
            parts.append(_Part(f"shared_{number}", here, pair=pair))
        return parts

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
                union_all(
                    *(
                        select(table.c.block, *columns).where(*where, *part.every(table)).group_by(table.c.block)
                        for part in parts
                    )
                ),
            )
            for place, table, columns, where in counted
            if (parts := self._parts(table, work))
        ]

    # -- claiming --------------------------------------------------------------------------------------------

    def claim(self, connection: Connection, work: WorkFilter, seconds: float, limit: int) -> tuple[Claim, ...]:
        if not work.blocks:
            return ()
        found: dict[int, SessionRow] = {}
        claims: list[Claim] = []

        def known(rows: Sequence[Any]) -> list[Any]:
            # Their rows are locked, so that nobody resets or deletes a session meanwhile.
            wanted = {row.session_pk for row in rows} - found.keys()
            for batch in batches(wanted):
                sessions = (SessionRow(*row) for row in connection.execute(self._sessions, {"p_pks": batch}).all())
                found.update((session.pk, session) for session in sessions)
            return [row for row in rows if row.session_pk in found]

        def claimed(row: Any, lease: Lease) -> Claim:
            parked_id = row.place if row.parked else None
            return Claim(lease, found[row.session_pk], row.cursor, row.target, row.attempts, parked_id)

        for statement in (self.parked_statement(work), self.cursor_statement(work)):
            if len(claims) < limit:
                claims += self._take(connection, statement, seconds, limit - len(claims), claimed, known)
        return tuple(claims)

    def claim_erasures(self, connection: Connection, work: WorkFilter, seconds: float, limit: int) -> tuple[ErasureClaim, ...]:
        if not work.blocks:
            return ()

        def claimed(row: Any, lease: Lease) -> ErasureClaim:
            return ErasureClaim(lease, _erasure(row), self._states.read(connection, row.scope_key, row.block))

        return tuple(self._take(connection, self.erasure_statement(work), seconds, limit, claimed))

    def _take(
        self,
        connection: Connection,
        due: Any,
        seconds: float,
        limit: int,
        claimed: Callable[[Any, Lease], T],
        known: Callable[[Sequence[Any]], Sequence[Any]] = lambda rows: rows,
    ) -> list[T]:
        """Lease the pairs of due rows, each once. Repeated, because one pair may fill a whole page of rows.

        Where there are several writers, each passes by the rows and leases that another one has locked. Who gets fewer than
        there are looks again; nobody waits.
        """
        taken: list[T] = []
        passed: list[tuple[str, str]] = []
        while (room := limit - len(taken)) > 0:
            rows: dict[tuple[str, str], Any] = {}
            for row in known(connection.execute(due, {"p_limit": room, "p_passed": passed}).all()):
                rows.setdefault((row.scope_key, row.block), row)
            if not rows:
                break
            leases = self._leases.take_free(connection, list(rows), seconds)
            taken += [claimed(rows[lease.scope_key, lease.block], lease) for lease in leases]
            passed += rows.keys() - {(lease.scope_key, lease.block) for lease in leases}
        return taken

    def _cursor_statement(self, work: WorkFilter) -> Select[Any]:
        """Due cursors of free pairs, those that wait longest first."""
        c = self._tables.cursors.c
        columns = (c.session_pk, c.scope_key, c.block, c.cursor, c.target, c.attempts, literal(0).label("parked"))
        return self._due(self._queues()[0], work, columns)

    def _parked_statement(self, work: WorkFilter) -> Select[Any]:
        """Parked chunks that are to be delivered again."""
        c = self._tables.parked.c
        seqs = (c.from_seq.label("cursor"), c.to_seq.label("target"))
        columns = (c.session_pk, c.scope_key, c.block, *seqs, c.attempts, literal(1).label("parked"))
        return self._due(self._queues()[1], work, columns)

    def _erasure_statement(self, work: WorkFilter) -> Select[Any]:
        """Due erasures of free pairs, in the order they were given."""
        return self._due(self._queues()[2], work, tuple(self._tables.erasures.c))

    def _due(self, queue: _Queue, work: WorkFilter, columns: Sequence[Any]) -> Select[Any]:
        """The first rows of a queue that are due and free. Each part of the filter is read to the limit, not to its end."""
        table, limit = queue.table, bindparam("p_limit", type_=Integer)
        passed = tuple_(table.c.scope_key, table.c.block).not_in(bindparam("p_passed", expanding=True))
        columns = (*columns, queue.due.label("due"), queue.order.label("place"))
        parts = [
            self._first(queue, part, columns)
            .where(queue.due <= epoch_seconds(), passed)
            .limit(limit)
            .with_for_update(of=table, skip_locked=True)
            .subquery(part.name)
            for part in self._parts(table, work)
        ]
        due = union_all(*(select(part) for part in parts)).subquery("due") if len(parts) > 1 else parts[0]
        return select(due).order_by(due.c.due, due.c.place).limit(limit)

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
            is_of_scope(cursors, claim.lease.scope_key),
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
            .where(sessions.c.uid == erasure.session_uid, is_of_scope(cursors, erasure.scope_key))
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


def _key_of(table: Any, scope: str) -> tuple[Any, str]:
    """The column by which the rows of a scope are found, and what it is equal to."""
    is_cursor = "next_attempt_at" in table.c
    return (wide_key(table), scope.removeprefix(WIDE)) if is_cursor and scope.startswith(WIDE) else (table.c.scope_key, scope)


def _waiting_wide(cursors: Any, block: str) -> tuple[Any, ...]:
    return (cursors.c.block == block, cursors.c.cursor < cursors.c.target, is_wide(cursors))


def _erasure(row: Any) -> Erasure:
    seqs = None if row.seqs is None else tuple(json.loads(row.seqs))
    return Erasure(row.id, row.tenant, row.block, row.scope_key, row.session_uid, seqs)
