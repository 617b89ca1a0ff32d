"""The use cases of one session: plans of the pure modules carried out on the store. Reading a context is `reading.py`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

from memory_engine.binding import Block, bind, can_forget, is_changing
from memory_engine.block import BlockContext, Erased
from memory_engine.delivery import DeliveryWorker
from memory_engine.errors import BlockStateError, ConfigurationError, DrainTimeoutError, MessageNotFoundError, StoreError
from memory_engine.messages import ChatMessage, coerce, stored_as, without_memory
from memory_engine.rows import drafts_of, message_of, microseconds, moment
from memory_engine.settings import Clock, Settings
from memory_engine.store import (
    AppendResult,
    BlockLag,
    BlockTarget,
    Draft,
    Flush,
    FlushPolicy,
    SessionInfo,
    SessionRow,
    SessionSpec,
    Store,
    TokenizerChanged,
    WorkFilter,
    scope_key,
)
from memory_engine.telemetry import Telemetry
from memory_engine.tokens import TokenCounter
from memory_engine.window import KnownSessions, RecentlyShown, StateCache, Windows

log = logging.getLogger("memory_engine.session")

_MANY = 100
"""So many messages of one put are encoded off the event loop."""

R = TypeVar("R")
MessageLike = ChatMessage | Mapping[str, Any]


@dataclass(slots=True)
class Core:
    """What all sessions of an engine share."""

    store: Store
    counter: TokenCounter
    clock: Clock
    settings: Settings
    definitions: Mapping[str, Block]
    worker: DeliveryWorker
    telemetry: Telemetry
    windows: Windows = field(default_factory=Windows)
    states: StateCache = field(default_factory=StateCache)
    known: KnownSessions = field(default_factory=KnownSessions)
    shown: RecentlyShown = field(default_factory=RecentlyShown)
    background: set[asyncio.Task[Any]] = field(default_factory=set)
    unawaited: set[asyncio.Task[Any]] = field(default_factory=set)
    policy: FlushPolicy = field(init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.policy = FlushPolicy(settings.history_share, settings.token_flush_size, settings.max_turns)

    def spec(self, tenant: str, session_id: str, user_id: str | None, metadata: str) -> SessionSpec:
        targets = tuple(BlockTarget(d.name, d.scope, d.start, d.accept_short_term_memory) for d in self.definitions.values())
        return SessionSpec(tenant, session_id, user_id, self.counter.identity, targets, metadata)

    def soon(self, work: Coroutine[Any, Any, Any], *, awaited: bool = True) -> None:
        """Run something in the background; its failure is logged. `settle` waits for it if it is `awaited`."""
        task = asyncio.create_task(work)
        (self.background if awaited else self.unawaited).add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self.background.discard(task)
        self.unawaited.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("background work failed: %s", error)

    async def settle(self, timeout: float | None = None) -> None:
        """Wait for the background work that was begun until now, at most `timeout` seconds."""
        if self.background:
            await asyncio.wait(set(self.background), timeout=timeout)

    async def stop(self) -> None:
        """End what runs in the background; what is not done stays pending in the database."""
        tasks = {*self.background, *self.unawaited}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.worker.stop()

    async def wait_absorbed(self, work: WorkFilter, timeout: float | None) -> None:
        """Until nothing of `work` is pending; raises `DrainTimeoutError` after `timeout` seconds."""
        for block in work.blocks if timeout is None else ():
            if is_changing(self.store, None, block):
                raise BlockStateError(
                    f"drain() inside `async with memory.block({block!r})` would wait for itself; drain when the block is left, "
                    "or give a timeout."
                )
        end = None if timeout is None else time.monotonic() + timeout
        await self.settle(timeout)
        # What waits is counted only for the error: counting a long queue again and again takes longer than its deliveries.
        while (due := await self.store.next_due(work)) is not None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                pending = await self.store.pending(work)
                raise DrainTimeoutError(f"{pending.deliveries} deliveries and {pending.erasures} erasures were still pending.")
            await self._wait_for_work(work, due, left)

    async def _wait_for_work(self, work: WorkFilter, due: float, left: float | None) -> None:
        pause = min(max(due, 0.005), 0.25)
        if left is not None:
            pause = min(pause, max(left, 0.001))
        if self.settings.delivery == "inline":
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    if not await self.worker.run_once(work):
                        await asyncio.sleep(pause)
            return
        self.worker.wake()
        # With delivery="worker" others settle it, and only the database tells.
        await self.worker.settled(pause)


class Session:
    """One session of one engine. Handles share nothing but the `Core`; all state is in the database."""

    def __init__(self, core: Core, *, tenant: str, session_id: str, user_id: str | None, metadata: str) -> None:
        if user_id is None:
            personal = [d.name for d in core.definitions.values() if d.scope == "user"]
            if personal:
                raise ConfigurationError(f"The blocks {personal} have scope='user'; give the session a user_id.")
        self.core = core
        self.identity = (tenant, session_id, user_id, metadata)
        self._spec: SessionSpec | None = None
        self.known: SessionRow | None = core.known.get((tenant, session_id))

    @property
    def spec(self) -> SessionSpec:
        # Made on first use: the tokenizer's identity costs a load of its ranks.
        if self._spec is None:
            self._spec = self.core.spec(*self.identity)
        return self._spec

    @property
    def work(self) -> WorkFilter:
        """The pending work of this session's blocks."""
        return WorkFilter(tuple(self.core.definitions), self.spec.tenant, self.spec.session_id)

    # -- writing ---------------------------------------------------------------------------------------------

    async def put(self, messages: Sequence[MessageLike]) -> list[ChatMessage]:
        """Commit messages; returns them as stored."""
        started = time.perf_counter()
        with self.core.telemetry.span("memory_engine.put", messages=len(messages)):
            given, drafts = await self._drafts(messages)
            if not drafts:
                return []
            try:
                result = await self._append(drafts)
            except TokenizerChanged:
                result = await self._retrying(lambda: self._append(drafts))
        stored = self._stored(given, drafts, result)
        self.core.windows.appended(result, stored)
        self.core.telemetry.put(len(drafts), time.perf_counter() - started)
        await self._after(result.flush)
        return stored

    async def set(self, messages: Sequence[MessageLike]) -> None:
        """Make these the active messages."""
        _, drafts = await self._drafts(messages)
        result = await self._retrying(
            lambda: self.core.store.replace_active(self.spec, drafts, self.core.policy, now=self._now())
        )
        self.known = result.session
        await self._after(result.flush)

    async def flush(self, *, final: bool) -> int:
        """Archive the complete turns, with `final` all; returns how many tokens left the FIFO."""
        session = await self._current()
        if session is None:
            return 0
        flush = await self.core.store.flush(session, self.spec, self.core.policy, final=final)
        await self._after(flush)
        return flush.tokens if flush else 0

    async def advance(self, session: SessionRow, horizon: int) -> None:
        """Archive active messages that a view had to leave out, unless the session changed meanwhile."""
        await self._after(await self.core.store.advance_horizon(session, self.spec, horizon))

    async def delete(self, ids: Sequence[str]) -> int:
        session = await self._current()
        if session is None or not ids:
            return 0
        removed = await self.core.store.delete_messages(session, self.spec, list(ids))
        await self._erased(session.uid)
        return removed

    async def rewind(self, message_id: str) -> int:
        session = await self._current()
        if session is None:
            raise MessageNotFoundError(f"There is no message {message_id!r}: the session is empty.")
        removed = await self.core.store.rewind(session, self.spec, message_id)
        await self._erased(session.uid)
        return removed

    async def pop(self) -> ChatMessage | None:
        session = await self._current()
        row = await self.core.store.pop(session, self.spec) if session else None
        if session is None or row is None:
            return None
        await self._erased(session.uid)
        return message_of(row)

    async def reset(self) -> None:
        session = await self._current()
        if session is not None:
            self.known = await self.core.store.reset(session, self.spec)
            await self._erased(session.uid)

    async def redeliver(self, block: str | None) -> int:
        session = await self._current()
        count = await self.core.store.redeliver(session, block) if session else 0
        if count:
            await self._deliver()
        return count

    async def drain(self, timeout: float | None) -> None:
        session = await self._current()
        if session is not None and self.spec.receivers:
            await self.core.store.ensure_cursors(session, self.spec)
        await self.core.wait_absorbed(self.work, timeout)

    # -- reading ---------------------------------------------------------------------------------------------

    def definition(self, name: str) -> Block:
        """The block of that name; raises `ConfigurationError`."""
        definitions = self.core.definitions
        if not isinstance(name, str) or name not in definitions:
            known = ", ".join(sorted(definitions)) or "none"
            raise ConfigurationError(f"This memory has no block {name!r:.80}; its blocks are: {known}.")
        return definitions[name]

    async def get_all(self, last: int | None, *, archived: bool = False) -> list[ChatMessage]:
        session = await self._current()
        if session is None or last == 0:
            return []
        before = session.horizon if archived else None
        rows = await self.core.store.all_rows(session, before_seq=before, limit=last, newest=last is not None)
        if len(rows) > _MANY:
            return await asyncio.to_thread(lambda: [message_of(row) for row in rows])
        return [message_of(row) for row in rows]

    async def epoch(self) -> int:
        session = await self._current()
        return session.epoch if session else 0

    async def archived(self, message_id: str) -> ChatMessage | None:
        """The message of that id, if there is one that left the FIFO."""
        session = await self._current()
        row = None if session is None else await self.core.store.row_by_id(session, message_id)
        return None if row is None or session is None or row.seq >= session.horizon else message_of(row)

    async def bound(self, definition: Block, *, read_only: bool = False) -> Block:
        """A copy of the block with what is saved in this session's scope."""
        session = await self._current()
        if session is None and definition.scope == "session":
            # State of a session needs the session's uid: create it.
            session = (await self._retrying(lambda: self._append([]))).session
        context = self.context_of(definition, session)
        # Erasures first: when none is waiting, what is read after that is free of what was erased.
        waiting = await self.core.store.pending_erasures(context.scope_key, definition.name)
        saved = await self.core.store.read_state(context.scope_key, definition.name)
        context = replace(context, state_version=saved.version, deleted_version=saved.deleted_version)
        context = replace(context, erasing=tuple(Erased(e.session_uid, e.seqs) for e in waiting))
        lease = self.core.settings.limits.lease
        # A block that cannot forget by itself waits to be rebuilt; until then it must not show what was erased.
        blank = bool(waiting) and not can_forget(definition)
        block, binding = bind(
            self.core.store,
            definition,
            context,
            saved,
            session=session,
            writable=False,
            lease=lease,
            blank=blank,
            wake=self.core.worker.wake,
        )
        binding.read_only = read_only
        return block

    def context_of(self, definition: Block, session: SessionRow | None) -> BlockContext:
        """Where a copy of the block bound to this session stands."""
        spec = self.spec
        uid = session.uid if session else ""
        return BlockContext(
            tenant=spec.tenant,
            user_id=spec.user_id,
            session_id=spec.session_id,
            session_uid=uid,
            scope_key=scope_key(definition.scope, tenant=spec.tenant, user_id=spec.user_id, session_uid=uid),
            epoch=session.epoch if session else 0,
            now=self.core.clock.now(),
            count=self.core.counter.text,
        )

    # -- helpers ---------------------------------------------------------------------------------------------

    async def _drafts(self, messages: Sequence[MessageLike]) -> tuple[list[ChatMessage], list[Draft]]:
        given = [kept for message in messages if (kept := without_memory(coerce(message))) is not None]
        tokens = await self.core.counter.count_messages(given)
        now = self.core.clock.now()
        if len(given) > _MANY:
            return given, await asyncio.to_thread(drafts_of, given, tokens, now)
        return given, drafts_of(given, tokens, now)

    async def _append(self, drafts: Sequence[Draft]) -> AppendResult:
        result = await self.core.store.append(self.spec, drafts, self.core.policy, now=self._now(), known=self.known)
        self.known = result.session
        self.core.known.note(result.session)
        return result

    def _stored(self, given: Sequence[ChatMessage], drafts: Sequence[Draft], result: AppendResult) -> list[ChatMessage]:
        if len(drafts) == 1 and result.appended and not drafts[0].partial:
            (row,) = result.rows
            return [stored_as(given[0], row.message_id, moment(row.created_at))]
        appended = {row.seq for row in result.appended}
        stored: list[ChatMessage] = []
        for message, draft, row in zip(given, drafts, result.rows, strict=True):
            if row.seq in appended and not draft.partial:
                stored.append(stored_as(message, row.message_id, moment(row.created_at)))
            else:
                stored.append(message_of(row))
        return stored

    async def _retrying(self, write: Any) -> Any:
        """Run a write; when another tokenizer counted the session, recount and run it again."""
        while True:
            try:
                return await write()
            except TokenizerChanged:
                self.known = None
                await self.recount()

    async def recount(self) -> SessionRow | None:
        """Count the active messages with this memory's tokenizer; the session as it is then."""
        while True:
            session = (await self.core.store.snapshot(self.spec)).session
            if session is None or session.tokenizer == self.spec.tokenizer:
                return session
            rows = await self.core.store.visible_rows(session)
            counts = await self.core.counter.count_messages([message_of(row) for row in rows])
            tokens = {row.seq: count for row, count in zip(rows, counts, strict=True)}
            if await self.core.store.recount(session, self.spec.tokenizer, tokens):
                self.core.windows.forget(session.uid)

    async def _current(self) -> SessionRow | None:
        await self.core.settle()
        snapshot = await self.core.store.snapshot(replace(self.spec, blocks=()), known=self.known)
        self.known = snapshot.session
        if self.known is not None and self.known.tokenizer != self.spec.tokenizer:
            self.known = await self.recount()
        return self.known

    async def _after(self, flush: Flush | None) -> None:
        if flush is None:
            return
        self.core.telemetry.flushed(flush.tokens)
        log.debug("seq %d to %d left the FIFO (%d tokens)", flush.start_seq, flush.end_seq - 1, flush.tokens)
        await self._deliver()

    async def _erased(self, uid: str) -> None:
        self.core.windows.forget(uid)
        self.known = None
        await self._deliver()

    async def _deliver(self) -> None:
        if self.core.settings.delivery != "inline":
            self.core.worker.wake()
            return
        if self.core.unawaited:
            # The attempt at what an earlier process left may hold a pair that we need, and knows nothing of our flush.
            await asyncio.wait(set(self.core.unawaited), timeout=self.core.settings.limits.delivery)
        try:
            await self.core.worker.run_once(self.work)
        except StoreError:
            # What brought us here is committed; an error now would tell the caller otherwise.
            log.warning("a delivery could not begin; it stays pending", exc_info=True)

    def _now(self) -> int:
        return microseconds(self.core.clock.now())


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """A line of `MemoryEngine.list_sessions`; `messages` counts all that are stored, archived ones too."""

    tenant: str
    session_id: str
    user_id: str | None
    messages: int
    created_at: datetime
    updated_at: datetime
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stats:
    """How far each block is behind, by its name: `sessions`, `messages` (at most), `parked` chunks, `erasures` to do."""

    blocks: Mapping[str, BlockLag]

    @property
    def pending(self) -> int:
        """How many messages wait for a block, at most, each counted once for every block."""
        return sum(lag.messages for lag in self.blocks.values())


def summary_of(info: SessionInfo) -> SessionSummary:
    """The summary of a stored line."""
    times = moment(info.created_at), moment(info.updated_at)
    return SessionSummary(info.tenant, info.session_id, info.user_id, info.messages, *times, dict(info.metadata))


class BoundBlock:
    """What `memory.block(name)` returns: awaited, the block bound to this scope, to look at; entered, to correct it."""

    def __init__(self, ready: Callable[[], Awaitable[object]], session: Session, name: str, *, read_only: bool = False) -> None:
        self._ready, self._session, self._definition, self._read_only = ready, session, session.definition(name), read_only
        self._transaction: AbstractAsyncContextManager[None] | None = None

    def __await__(self) -> Generator[Any, None, Block]:
        return self._bind().__await__()

    async def _bind(self) -> Block:
        await self._ready()
        return await self._session.bound(self._definition, read_only=self._read_only)

    async def __aenter__(self) -> Block:
        block = await self._bind()
        self._transaction = block.transaction()
        await self._transaction.__aenter__()
        return block

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        assert self._transaction is not None
        return await self._transaction.__aexit__(kind, error, trace)
