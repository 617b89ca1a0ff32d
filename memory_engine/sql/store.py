"""`SqlStore`: the `Store` protocol on a SQL database. Each method says which transaction its work needs; nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from memory_engine.errors import ConfigurationError, StoreError, StoreUnavailableError
from memory_engine.sql.channels import P, R, Several, Work
from memory_engine.sql.connections import open_connections
from memory_engine.sql.conversation import Append, Conversation
from memory_engine.sql.deliveries import Deliveries
from memory_engine.sql.erasing import Erasing
from memory_engine.sql.errors import OutcomeUnknown
from memory_engine.sql.flushing import Flushing
from memory_engine.sql.gathering import Gathering
from memory_engine.sql.one_statement import PutStatement
from memory_engine.sql.pooled import PooledConnections
from memory_engine.sql.postgresql import channel_of
from memory_engine.sql.reading import MOST_SEQ, Reading
from memory_engine.sql.replacing import Replacing
from memory_engine.sql.schema import ensure_schema
from memory_engine.sql.states import BATCH, Leases, States
from memory_engine.sql.tables import Tables, make_tables
from memory_engine.sql.together import Together
from memory_engine.store import (
    AppendResult,
    BlockLag,
    Chunk,
    Claim,
    Draft,
    Erasure,
    ErasureClaim,
    Flush,
    FlushPolicy,
    Lease,
    MessageRow,
    Pending,
    RecordRow,
    SessionInfo,
    SessionRow,
    SessionSpec,
    Snapshot,
    StateChange,
    StateRow,
    WorkFilter,
)

log = logging.getLogger("memory_engine.sql")

_AGAIN = 5
"""How often a change is repeated whose outcome is not known."""


class _Parts(NamedTuple):
    """All statements over one set of tables."""

    tables: Tables
    leases: Leases
    states: States
    reading: Reading
    flushing: Flushing
    conversation: Conversation
    replacing: Replacing
    erasing: Erasing
    deliveries: Deliveries
    together: Together
    put_statement: PutStatement


@lru_cache(maxsize=16)
def _parts(prefix: str) -> _Parts:
    # Building the statements takes longer than opening a database, and they hold no state.
    tables = make_tables(prefix)
    leases, states, reading = Leases(tables), States(tables), Reading(tables)
    flushing = Flushing(tables, reading)
    conversation = Conversation(tables, reading, flushing)
    replacing = Replacing(tables, conversation, flushing)
    erasing = Erasing(tables, reading, conversation, states, leases)
    deliveries = Deliveries(tables, reading, flushing, states, leases)
    together = Together(tables, conversation, flushing)
    put = PutStatement(tables)
    return _Parts(tables, leases, states, reading, flushing, conversation, replacing, erasing, deliveries, together, put)


class SqlStore:
    """A store on SQLite or PostgreSQL: at `uri` (None: private, in memory), or through an `async_engine`, its owner's.

    `busy_timeout` is for how many seconds another writer on SQLite, or a PostgreSQL server that is away, is waited for; on
    SQLite it and `sqlite_synchronous` apply to `uri` only. Nothing is opened before `connect`, or the first call.

    :raises ConfigurationError: an argument is wrong.
    """

    def __init__(
        self,
        uri: str | None = None,
        *,
        async_engine: AsyncEngine | None = None,
        table_prefix: str = "memory_",
        sqlite_synchronous: str = "NORMAL",
        busy_timeout: float = 30.0,
    ) -> None:
        if uri is not None and async_engine is not None:
            raise ConfigurationError("Give either a database URI or an async_engine, not both.")
        parts = _parts(table_prefix)
        self._tables, self._states, self._leases = parts.tables, parts.states, parts.leases
        self._reading, self._flushing, self._conversation = parts.reading, parts.flushing, parts.conversation
        self._replacing, self._erasing, self._deliveries = parts.replacing, parts.erasing, parts.deliveries
        self._together, self._put_statement = parts.together, parts.put_statement
        self._connections = open_connections(
            uri, async_engine=async_engine, synchronous=sqlite_synchronous, busy_timeout=busy_timeout
        )
        # SQLite's one writer commits together whatever waits for it.
        many = isinstance(self._connections, PooledConnections)
        self._gathering = Gathering(self._append_together, self._append, self._append_again) if many else None
        self._append_work = Several(self._conversation.append, self._together.append)
        self._connecting = asyncio.Lock()
        self._connected = False

    # -- life ------------------------------------------------------------------------------------------------

    async def connect(self) -> None:
        async with self._connecting:
            if not self._connected:
                await ensure_schema(self._connections, self._tables)
                self._connected = True

    async def aclose(self) -> None:
        await self._connections.aclose()

    async def _write(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if not self._connected:
            await self.connect()
        return await self._connections.write(work, *args, **kwargs)

    async def _write_again(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Write what may have been written already, and is recognised if it was."""
        for _ in range(_AGAIN - 1):
            try:
                return await self._write(work, *args, **kwargs)
            except OutcomeUnknown:
                continue
        return await self._write(work, *args, **kwargs)

    async def _erase(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        result = await self._write(work, *args, **kwargs)
        await self._connections.wipe()
        return result

    async def _read(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if not self._connected:
            await self.connect()
        return await self._connections.read(work, *args, **kwargs)

    async def _read_together(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if not self._connected:
            await self.connect()
        return await self._connections.read_together(work, *args, **kwargs)

    # -- conversation ----------------------------------------------------------------------------------------

    async def append(
        self, spec: SessionSpec, drafts: Sequence[Draft], policy: FlushPolicy, *, now: int, known: SessionRow | None = None
    ) -> AppendResult:
        append = Append(spec, drafts, policy, now, known)
        if self._gathering is not None:
            return await self._gathering.append(append)
        return await self._append(append)

    async def _append(self, one: Append) -> AppendResult:
        try:
            return await self._write(self._append_work, one)
        except OutcomeUnknown:
            return await self._append_again(one)

    async def _append_again(self, one: Append) -> AppendResult:
        again = Append(one.spec, _recognisable(one.drafts), one.policy, one.now, None)
        return await self._write_again(self._conversation.append, again)

    async def _append_together(self, appends: Sequence[Append]) -> Sequence[AppendResult | None]:
        if not self._connected:
            await self.connect()
        assert isinstance(self._connections, PooledConnections)
        text, parameters = self._put_statement.call(appends)
        try:
            rows = await self._connections.change(text, parameters)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            # An id was stored by somebody else in the same moment, or one of many is wrong: alone, each learns its own.
            log.debug("puts are written one by one: %s", error)
            return [None] * len(appends)
        return self._put_statement.results(appends, rows)

    async def snapshot(self, spec: SessionSpec, *, known: SessionRow | None = None) -> Snapshot:
        return await self._read(self._reading.snapshot, spec)

    async def visible_rows(self, session: SessionRow, *, after_seq: int = -1) -> tuple[MessageRow, ...]:
        return await self._read(self._reading.visible, session, after_seq)

    async def archived_rows(self, session: SessionRow, *, from_seq: int, max_tokens: int) -> tuple[MessageRow, ...]:
        return await self._read_together(self._reading.archived, session, from_seq, max_tokens)

    async def all_rows(
        self,
        session: SessionRow,
        *,
        after_seq: int = -1,
        before_seq: int | None = None,
        limit: int | None = None,
        newest: bool = False,
    ) -> tuple[MessageRow, ...]:
        before = MOST_SEQ if before_seq is None else before_seq
        return await self._read(self._reading.all, session, after_seq, before, limit, newest)

    async def row_by_id(self, session: SessionRow, message_id: str) -> MessageRow | None:
        return (await self._read(self._conversation.by_ids, session.pk, [message_id])).get(message_id)

    async def delivered_rows(
        self, scope_key: str, block: str, session_uid: str, *, from_seq: int, to_seq: int
    ) -> tuple[MessageRow, ...]:
        return await self._read(self._reading.delivered, scope_key, block, session_uid, from_seq, to_seq)

    async def recount(self, session: SessionRow, tokenizer: str, tokens: Mapping[int, int]) -> bool:
        return await self._write(self._conversation.recount, session, tokenizer, tokens)

    async def replace_active(
        self, spec: SessionSpec, drafts: Sequence[Draft], policy: FlushPolicy, *, now: int
    ) -> AppendResult:
        try:
            return await self._write(self._replacing.replace_active, spec, drafts, policy, now)
        except OutcomeUnknown:
            return await self._write_again(self._replacing.replace_active, spec, _recognisable(drafts), policy, now)

    async def flush(self, session: SessionRow, spec: SessionSpec, policy: FlushPolicy, *, final: bool) -> Flush | None:
        return await self._write(self._flushing.flush, session, spec, final)

    async def advance_horizon(self, session: SessionRow, spec: SessionSpec, horizon: int) -> Flush | None:
        return await self._write(self._flushing.advance, session, spec, horizon)

    # -- erasing ---------------------------------------------------------------------------------------------

    async def delete_messages(self, session: SessionRow, spec: SessionSpec, message_ids: Sequence[str]) -> int:
        return await self._erase(self._erasing.delete_messages, session, message_ids)

    async def rewind(self, session: SessionRow, spec: SessionSpec, message_id: str) -> int:
        return await self._erase(self._erasing.rewind, session, message_id)

    async def pop(self, session: SessionRow, spec: SessionSpec) -> MessageRow | None:
        return await self._erase(self._erasing.pop, session)

    async def reset(self, session: SessionRow, spec: SessionSpec) -> SessionRow:
        return await self._erase(self._erasing.reset, session)

    async def delete_session(self, tenant: str, session_id: str) -> bool:
        return await self._erase(self._erasing.delete_session, tenant, session_id)

    async def delete_user(self, tenant: str, user_id: str) -> int:
        return await self._erase(self._erasing.delete_user, tenant, user_id)

    async def delete_tenant(self, tenant: str) -> int:
        return await self._erase(self._erasing.delete_tenant, tenant)

    async def purge(self, tenant: str | None, *, inactive_before: int) -> int:
        return await self._erase(self._erasing.purge, tenant, inactive_before)

    async def list_sessions(
        self,
        tenant: str,
        *,
        prefix: str = "",
        user_id: str | None = None,
        inactive_before: int | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> tuple[SessionInfo, ...]:
        page = await self._read(
            self._reading.listing,
            tenant,
            prefix=prefix,
            user_id=user_id,
            inactive_before=inactive_before,
            limit=limit,
            after=after,
        )
        return tuple(page)

    # -- deliveries ------------------------------------------------------------------------------------------

    async def ensure_cursors(self, session: SessionRow, spec: SessionSpec) -> None:
        if await self._read(self._flushing.cursors_missing, session, spec):
            await self._write(self._flushing.ensure_cursors, session, spec)

    async def claim(self, work: WorkFilter, *, seconds: float, limit: int) -> tuple[Claim, ...]:
        return await self._write(self._deliveries.claim, work, seconds, limit)

    async def read_chunk(self, claim: Claim, flush_size: int) -> Chunk | None:
        return await self._read_together(self._deliveries.read_chunk, claim, flush_size)

    async def renew(self, lease: Lease, session: SessionRow | None, *, seconds: float) -> bool:
        return await self._write(self._leases.renew, lease, session, seconds)

    async def commit_delivery(
        self, claim: Claim, chunk: Chunk, change: StateChange, *, writing: Lease | None = None
    ) -> StateRow | None:
        return await self._write(self._deliveries.commit_delivery, claim, chunk, change, writing)

    async def fail_delivery(
        self, claim: Claim, chunk: Chunk | None, error: str, *, retry_in: float, counted: bool, park: bool
    ) -> None:
        work = self._deliveries.fail_delivery
        await self._write(work, claim, chunk, error, retry_in=retry_in, counted=counted, park=park)

    async def release(self, lease: Lease) -> None:
        await self._write(self._leases.release, lease)

    async def pending(self, work: WorkFilter) -> Pending:
        return await self._read(self._deliveries.pending, work)

    async def next_due(self, work: WorkFilter) -> float | None:
        return await self._read(self._deliveries.next_due, work)

    async def listen(self, wake: Callable[[], None]) -> None:
        if not self._connected:
            await self.connect()
        await self._connections.listen(channel_of(self._tables), wake)

    async def lags(self, work: WorkFilter) -> tuple[BlockLag, ...]:
        return await self._read_together(self._deliveries.lags, work)

    async def redeliver(self, session: SessionRow, block: str | None = None) -> int:
        return await self._write(self._deliveries.redeliver, session, block)

    async def claim_erasures(self, work: WorkFilter, *, seconds: float, limit: int) -> tuple[ErasureClaim, ...]:
        return await self._write(self._deliveries.claim_erasures, work, seconds, limit)

    async def commit_erasure(
        self, claim: ErasureClaim, change: StateChange, *, rebuild: bool, writing: Lease | None = None
    ) -> bool:
        return await self._erase(self._deliveries.commit_erasure, claim, change, rebuild=rebuild, writing=writing)

    async def fail_erasure(self, claim: ErasureClaim, error: str, *, retry_in: float) -> None:
        await self._write(self._deliveries.fail_erasure, claim, error, retry_in)

    # -- block state -----------------------------------------------------------------------------------------

    async def lease(self, scope_key: str, block: str, *, seconds: float) -> Lease | None:
        return await self._write(self._leases.take, scope_key, block, seconds, "write")

    async def commit_change(self, lease: Lease, change: StateChange, *, session: SessionRow | None) -> StateRow | None:
        return await self._write(self._states.commit_change, self._leases, lease, change, session)

    async def read_state(self, scope_key: str, block: str) -> StateRow:
        return await self._read(self._states.read, scope_key, block)

    async def read_records(
        self,
        scope_key: str,
        block: str,
        *,
        keys: Sequence[str] | None = None,
        prefix: str = "",
        changed_since: int | None = None,
        after_key: str | None = None,
        limit: int | None = None,
    ) -> tuple[RecordRow, ...]:
        # Many keys take more than one statement.
        read = self._read if keys is None or len(keys) <= BATCH else self._read_together
        rows = await read(
            self._states.records,
            scope_key,
            block,
            keys=keys,
            prefix=prefix,
            changed_since=changed_since,
            after_key=after_key,
            limit=limit,
        )
        return tuple(rows)

    async def count_records(self, scope_key: str, block: str) -> int:
        return await self._read(self._states.count, scope_key, block)

    async def pending_erasures(self, scope_key: str, block: str) -> tuple[Erasure, ...]:
        return await self._read(self._deliveries.pending_erasures, scope_key, block)


def _recognisable(drafts: Sequence[Draft]) -> list[Draft]:
    """Drafts that a repeated change finds stored: nobody else uses an id that we gave."""
    return [draft._replace(given_id=True) for draft in drafts]
