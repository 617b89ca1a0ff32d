"""The composition root: one place where store, counter, worker and settings are put together, and where they end."""

from __future__ import annotations

import asyncio
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from memory_engine.binding import Block, check_definition
from memory_engine.delivery import DeliverySettings, DeliveryWorker
from memory_engine.errors import ClosedError, ConfigurationError, DrainTimeoutError, StoreError, WrongEventLoopError
from memory_engine.frozen import freeze_json
from memory_engine.memory import Memory
from memory_engine.rows import microseconds
from memory_engine.session import Core, Session, SessionSummary, Stats, summary_of
from memory_engine.settings import (
    Clock,
    Limits,
    SystemClock,
    TokenizerFn,
    check_database,
    check_id,
    check_names,
    check_parts,
    check_seconds,
    check_sizes,
    check_timeout,
    make_settings,
)
from memory_engine.store import Pending, Store, WorkFilter
from memory_engine.telemetry import telemetry
from memory_engine.tokens import TokenCounter

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from memory_engine.render import Renderer

log = logging.getLogger("memory_engine")

N = TypeVar("N", bool, int)


class MemoryEngine:
    """What many sessions share: the database, the definitions of the blocks, and the delivery to them.

    Sync and cheap to construct; it connects on first use. Use it as an async context manager, or call `aclose()`.

        async with MemoryEngine(async_database_uri="sqlite+aiosqlite:///memory.db", memory_blocks=[...]) as engine:
            memory = engine.session("chat-1", user_id="ada")

    Sizes are tokens, durations seconds. Every argument that is wrong raises `ConfigurationError` here.
    """

    def __init__(
        self,
        *,
        token_limit: int = 30_000,
        chat_history_token_ratio: float = 0.7,
        token_flush_size: int | None = None,
        memory_blocks: Sequence[Block] = (),
        insert_method: str = "system",
        tokenizer_fn: TokenizerFn | None = None,
        async_database_uri: str | None = None,
        async_engine: AsyncEngine | None = None,
        table_prefix: str = "memory_",
        reserved_tokens: int = 0,
        delivery: str = "background",
        on_block_error: str = "skip",
        max_turns: int | None = None,
        start_on_user: bool = True,
        max_tool_result_tokens: int | None = None,
        renderer: Renderer | None = None,
        message_overhead_tokens: int = 4,
        image_token_size_estimate: int = 1024,
        audio_token_size_estimate: int = 1024,
        video_token_size_estimate: int = 2048,
        document_token_size_estimate: int = 2048,
        limits: Limits | None = None,
        sqlite_synchronous: str = "NORMAL",
        busy_timeout: float = 30.0,
        store: Store | None = None,
        clock: Clock | None = None,
        _only: WorkFilter | None = None,
    ) -> None:
        settings = make_settings(
            token_limit=token_limit,
            chat_history_token_ratio=chat_history_token_ratio,
            token_flush_size=token_flush_size,
            insert_method=insert_method,
            reserved_tokens=reserved_tokens,
            delivery=delivery,
            on_block_error=on_block_error,
            max_turns=max_turns,
            start_on_user=start_on_user,
            max_tool_result_tokens=max_tool_result_tokens,
            renderer=renderer,
            limits=limits,
        )
        check_parts(tokenizer_fn=tokenizer_fn, clock=clock, store=store)
        check_sizes(
            message_overhead_tokens=message_overhead_tokens,
            image_token_size_estimate=image_token_size_estimate,
            audio_token_size_estimate=audio_token_size_estimate,
            video_token_size_estimate=video_token_size_estimate,
            document_token_size_estimate=document_token_size_estimate,
        )
        counter = TokenCounter(
            tokenizer_fn,
            message_overhead=message_overhead_tokens,
            image=image_token_size_estimate,
            audio=audio_token_size_estimate,
            video=video_token_size_estimate,
            document=document_token_size_estimate,
        )
        definitions = _definitions(memory_blocks)
        if store is None:
            store = _sql_store(async_database_uri, async_engine, table_prefix, sqlite_synchronous, busy_timeout)
        elif async_database_uri is not None or async_engine is not None:
            raise ConfigurationError("Give one of store, async_engine and async_database_uri.")
        clock = clock or SystemClock()
        only = _only or WorkFilter(())
        work = WorkFilter(tuple(definitions), only.tenant, only.session_id, only.scopes)
        reporting = telemetry()
        worker = DeliveryWorker(
            store,
            counter,
            clock,
            DeliverySettings(definitions, settings.token_flush_size, settings.limits, work),
            reporting,
        )
        self._core = Core(store, counter, clock, settings, definitions, worker, reporting)
        self._work = work
        self._builtin_counter = tokenizer_fn is None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Lock | None = None
        self._connected = False
        self._closed = False
        self._shutting: asyncio.Task[None] | None = None

    # -- sessions --------------------------------------------------------------------------------------------

    def session(
        self, session_id: str, *, user_id: str | None = None, tenant: str = "", metadata: Mapping[str, Any] | None = None
    ) -> Memory:
        """A cheap handle on one session; the session itself begins with its first message.

        `metadata` (JSON) is noted when it begins. Opening a session under another `user_id` than its own is refused
        with `SessionOwnerError` by the first call that touches it.
        """
        check_id("session_id", session_id)
        check_id("tenant", tenant, empty=True)
        if user_id is not None:
            check_id("user_id", user_id)
        if metadata is not None and not isinstance(metadata, Mapping):
            raise ConfigurationError(f"metadata of a session is a mapping of JSON values, not {metadata!r:.80}.")
        try:
            noted = json.dumps(freeze_json({} if metadata is None else metadata))
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"metadata of a session is JSON: {error}.") from error
        session = Session(self._core, tenant=tenant, session_id=session_id, user_id=user_id, metadata=noted)
        return Memory(self, session)

    async def list_sessions(
        self,
        *,
        tenant: str = "",
        prefix: str = "",
        user_id: str | None = None,
        inactive_for: float | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[SessionSummary]:
        """Sessions of a tenant in the order of their id, `limit` a page; `after` is the last id of the page before.

        `prefix` is literal; `inactive_for` seconds selects sessions without a write since then.
        """
        check_id("tenant", tenant, empty=True)
        check_id("prefix", prefix, empty=True)
        for name, value in (("user_id", user_id), ("after", after)):
            if value is not None:
                check_id(name, value)
        check_sizes(limit=limit)
        await self._ready()
        before = None if inactive_for is None else self._ago(inactive_for)
        found = await self._core.store.list_sessions(
            tenant, prefix=prefix, user_id=user_id, inactive_before=before, limit=limit, after=after
        )
        return [summary_of(info) for info in found]

    # -- erasing ---------------------------------------------------------------------------------------------

    async def delete_session(self, session_id: str, *, tenant: str = "") -> bool:
        """Delete a session with everything derived from it. False when there is none."""
        check_id("session_id", session_id)
        check_id("tenant", tenant, empty=True)
        await self._ready()
        return await self._erasing(await self._core.store.delete_session(tenant, session_id))

    async def delete_user(self, user_id: str, *, tenant: str = "") -> int:
        """Delete all sessions of a user, and what blocks know of the user. Returns how many sessions went."""
        check_id("user_id", user_id)
        check_id("tenant", tenant, empty=True)
        await self._ready()
        return await self._erasing(await self._core.store.delete_user(tenant, user_id))

    async def delete_tenant(self, tenant: str) -> int:
        """Delete everything of a tenant. Returns how many sessions went."""
        check_id("tenant", tenant, empty=True)
        await self._ready()
        return await self._erasing(await self._core.store.delete_tenant(tenant))

    async def purge(self, *, inactive_for: float, tenant: str | None = None) -> int:
        """Delete the sessions without a write for `inactive_for` seconds, of one tenant or of all. Returns how many."""
        if tenant is not None:
            check_id("tenant", tenant, empty=True)
        await self._ready()
        return await self._erasing(await self._core.store.purge(tenant, inactive_before=self._ago(inactive_for)))

    async def _erasing(self, done: N) -> N:
        if self._core.settings.delivery != "inline":
            self._core.worker.wake()
            return done
        try:
            await self._core.worker.run_once(self._work)
        except StoreError:
            # The rows are gone; an error now would tell the caller otherwise.
            log.warning("blocks could not be told yet to forget; it stays pending", exc_info=True)
        return done

    # -- deliveries ------------------------------------------------------------------------------------------

    async def pending(self) -> Pending:
        """How many deliveries and erasures of this engine's blocks wait."""
        await self._ready()
        return await self._core.store.pending(self._work)

    async def drain(self, timeout: float | None = None) -> None:
        """Wait until every block has absorbed every flushed message of every session.

        :raises DrainTimeoutError: after `timeout` seconds; what is pending stays so.
        """
        check_timeout(timeout)
        await self._ready()
        await self._core.wait_absorbed(self._work, timeout)

    async def work(self, *, once: bool = False, stop: asyncio.Event | None = None, grace: float = 30.0) -> None:
        """Deliver what is pending for this engine's blocks, of every session of the database, until `stop` is set.

        For processes beside the agents', any number of them, on any host: `python -m memory_engine worker`. With `once` it
        returns when nothing is due any more. What runs when `stop` is set, or when this is cancelled, may end within `grace`
        seconds; what does not stays pending. A worker that dies loses nothing: another one takes over when its leases end.
        """
        worker = (await self._ready()).worker
        if once:
            await self._work_once(worker, stop or asyncio.Event(), grace)
            return
        worker.start()
        try:
            await (stop or asyncio.Event()).wait()
        finally:
            await worker.finish(grace)

    async def _work_once(self, worker: DeliveryWorker, stop: asyncio.Event, grace: float) -> None:
        stopped = asyncio.create_task(stop.wait())
        try:
            tried = 1
            while tried and not stopped.done():
                round_ = asyncio.create_task(worker.run_once(self._work))
                try:
                    await asyncio.wait({round_, stopped}, return_when=asyncio.FIRST_COMPLETED)
                    await asyncio.wait({round_}, timeout=grace if stopped.done() else None)
                finally:
                    if not round_.done():
                        round_.cancel()
                        await asyncio.wait({round_})
                tried = 0 if round_.cancelled() else round_.result()
            if self._core.telemetry.counts_lags:
                await worker.lags()
        finally:
            stopped.cancel()

    async def stats(self) -> Stats:
        """How far each block is behind, over all sessions of the database; OpenTelemetry is told, too."""
        return Stats(await (await self._ready()).worker.lags())

    # -- life ------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self._ready()
        except BaseException:
            # `__aexit__` will not be called: what was opened on the way is closed here.
            if not self._connected and self._loop is asyncio.get_running_loop():
                await self.aclose(timeout=0)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self, *, timeout: float = 30.0) -> None:
        """Let pending deliveries end (at most `timeout` seconds), then close what this engine opened. Idempotent.

        What is still pending then stays in the database, and the next start resumes it.
        """
        check_timeout(timeout)
        if self._connecting is None or (self._shutting is not None and self._shutting.done()):
            self._closed = True
            return
        self._check_loop()
        try:
            async with self._connecting:  # not while the first call is connecting
                self._closed = self._closed or not self._connected
            if not self._closed and self._core.settings.delivery == "worker":
                # What is pending is the workers'.
                await self._core.settle(timeout)
            elif not self._closed:
                await self._core.wait_absorbed(self._work, timeout)
        except DrainTimeoutError as error:
            log.warning("closing with work left for the next start: %s", error)
        finally:
            self._closed = True
            if self._shutting is None:
                self._shutting = asyncio.create_task(self._shut())
            # Shielded: closing that began is finished also for a caller who is cancelled.
            await asyncio.shield(self._shutting)

    async def _shut(self) -> None:
        await self._core.stop()
        await self._core.store.aclose()

    @property
    def connected(self) -> bool:
        """Whether the database is open: after the first use, before `aclose`."""
        return self._connected and not self._closed

    @property
    def closed(self) -> bool:
        """Whether it was closed; it is not opened again."""
        return self._closed

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it belongs to, that of its first use; None before."""
        return self._loop

    def __del__(self) -> None:
        if getattr(self, "_connected", False) and not self._closed:
            warnings.warn(f"{self!r} was not closed; use `async with` or `await aclose()`.", ResourceWarning, stacklevel=2)

    async def _ready(self) -> Core:
        """The core, connected; bound to the event loop of the first call."""
        if self._closed:
            raise ClosedError
        if self._connected:
            self._check_loop()
            return self._core
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._connecting = asyncio.Lock()
        self._check_loop()
        assert self._connecting is not None
        async with self._connecting:
            if self._closed:
                raise ClosedError
            if not self._connected:
                await asyncio.gather(self._core.store.connect(), self._prepare_counter())
                self._connected = True
                if self._core.settings.delivery == "background":
                    self._core.worker.start()
                elif self._work.blocks and self._core.settings.delivery == "inline":
                    # What an earlier process left pending gets its attempt too.
                    self._core.soon(self._core.worker.run_once(self._work), awaited=False)
        return self._core

    async def _prepare_counter(self) -> None:
        # Its ranks take a tenth of a second to load; on first use that would hold up the event loop.
        if self._builtin_counter:
            await self._core.counter.text_async("")

    def _check_loop(self) -> None:
        if self._loop is not asyncio.get_running_loop():
            raise WrongEventLoopError

    def _ago(self, seconds: float) -> int:
        # No database holds times before that of a session anyway.
        since = min(check_seconds("inactive_for", seconds), 1e12)
        return microseconds(self._core.clock.now()) - int(since * 1_000_000)


def _definitions(blocks: Sequence[Block]) -> Mapping[str, Block]:
    if isinstance(blocks, str | bytes | Mapping) or not isinstance(blocks, Sequence):
        raise ConfigurationError("memory_blocks is a list of memory blocks.")
    checked = [check_definition(block) for block in blocks]
    check_names([block.name for block in checked])
    return MappingProxyType({block.name: block for block in checked})


def _sql_store(uri: str | None, engine: AsyncEngine | None, prefix: str, synchronous: str, busy_timeout: float) -> Store:
    check_database(
        async_database_uri=uri,
        async_engine=engine,
        table_prefix=prefix,
        sqlite_synchronous=synchronous,
        busy_timeout=busy_timeout,
    )
    # On demand: importing memory_engine must not import SQLAlchemy.
    from memory_engine.sql import SqlStore

    store = SqlStore(uri, async_engine=engine, table_prefix=prefix, sqlite_synchronous=synchronous, busy_timeout=busy_timeout)
    if uri is None and engine is None:
        log.warning("no database was given: this memory is kept in RAM and ends with the process")
    return store
