"""The outbox worker: takes pending (scope, block) pairs, lets the block absorb a chunk, commits state and cursor as one.

A delivery is `claim -> read_chunk -> _aput -> commit_delivery`. Whatever happens in between, the cursor only moves with
what the block made of the messages; a crash leaves the pair pending and its lease to run out. Nobody who changes a block by
hand waits for `_aput`, which may be asking a model: when the state is another at the end, `_aput` runs again on that one,
with the answers that it got (`BlockContext.once`).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeVar

from memory_engine.binding import Block, ScopeBinding, bind, can_forget, is_changing, kept
from memory_engine.block import BlockContext, Erased
from memory_engine.errors import BlockError, BlockTimeoutError, BlockUnavailableError, StoreError
from memory_engine.guard import EndedBefore, Interrupted, guarded
from memory_engine.rows import message_of
from memory_engine.settings import Clock, Limits
from memory_engine.store import (
    BlockLag,
    Chunk,
    Claim,
    ErasureClaim,
    Lease,
    StateChange,
    StateInUse,
    StateRow,
    Store,
    WorkFilter,
)
from memory_engine.telemetry import Telemetry
from memory_engine.tokens import TokenCounter
from memory_engine.usage import Usage

T = TypeVar("T")

log = logging.getLogger("memory_engine.delivery")

UNAVAILABLE = (BlockUnavailableError, BlockTimeoutError, TimeoutError, ConnectionError)
"""Failures of the world around a block: retried for ever, never parked."""

_LONGEST_WAIT = 3_600.0
"""Seconds that a service may ask for before it is tried again."""
_NOTHING = Usage()
_PAIRS = 4_096
_MARGIN = 0.05
"""The share of a delivery's time that is left for ending in order."""
_IN_USE = 0.02
"""Seconds until a state that is being changed by hand is looked at again."""
_MOMENT = 0.01
"""Seconds until a worker looks again, at least."""
_LOCKED = 0.1
"""The same, when what is due is locked by others, who may take their time."""
_REPORTS = 15.0
"""Seconds between two reports of how far blocks are behind: they count what waits."""
_POLITE = 3
"""How often a delivery follows a change by hand before it takes its own turn to write."""
GRACE = 5.0
"""How long, in seconds, a worker that is stopped waits for the database to record what was done."""


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """What a worker needs to know of the memory it works for."""

    definitions: Mapping[str, Block]
    flush_size: int
    limits: Limits
    work: WorkFilter


class DeliveryWorker:
    """Carries out pending deliveries and erasures, in the background (`start`) or on demand (`run_once`)."""

    def __init__(
        self, store: Store, counter: TokenCounter, clock: Clock, settings: DeliverySettings, telemetry: Telemetry
    ) -> None:
        self._store, self._counter, self._clock = store, counter, clock
        self._settings, self._telemetry = settings, telemetry
        self._woken = asyncio.Event()
        self._settled = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._erasures_first = False
        self._running: set[asyncio.Task[None]] = set()
        # Consecutive failures of outside services per pair; only the back-off depends on it, so memory is enough.
        self._unavailable: dict[tuple[str, str], int] = {}
        # What models cost in attempts that came to nothing: nothing of these is saved, so only this process can tell.
        self._failed_usage: dict[tuple[str, str], Usage] = {}
        self._reported = -math.inf

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to work in the background; what was left pending by an earlier process is resumed."""
        if self._task is None and self._settings.work.blocks:
            self._woken.set()
            self._task = asyncio.create_task(self._loop(), name="memory-engine delivery")
            self._listening = asyncio.create_task(self._listen(), name="memory-engine listening")

    def wake(self) -> None:
        """Look for work now."""
        self._woken.set()

    async def finish(self, grace: float) -> None:
        """Take nothing new, let what is running end for `grace` seconds, then stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._running:
            await asyncio.wait(set(self._running), timeout=grace)
        await self.stop()

    async def stop(self) -> None:
        """Cancel what is running; it stays pending. Idempotent."""
        tasks = [*self._running, *[task for task in (self._task, self._listening) if task is not None]]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        self._task = self._listening = None

    def failed_usage(self, scope_key: str, block: str) -> Usage:
        """What the model of a block was asked in this process for deliveries that failed."""
        return self._failed_usage.get((scope_key, block), _NOTHING)

    def _note_failed_usage(self, pair: tuple[str, str], usage: Usage) -> None:
        total = self._failed_usage.pop(pair, None) or Usage()
        total.add(usage)
        # The pairs that failed last stay.
        self._failed_usage[pair] = total
        if len(self._failed_usage) > _PAIRS:
            del self._failed_usage[next(iter(self._failed_usage))]

    async def settled(self, timeout: float) -> None:
        """Wait until a delivery ended in this process, at most `timeout` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout), self._settled:
                await self._settled.wait()

    async def _listen(self) -> None:
        """Be woken by what other processes flush, where the database can tell; polling finds it in any case."""
        try:
            await self._store.listen(self.wake)
        except StoreError as error:
            log.debug("new work is found by polling alone: %s", error)

    async def _loop(self) -> None:
        while True:
            self._woken.clear()
            try:
                found = await self._fill()
                await self._report()
                pause = await self._pause(_MOMENT if found else _LOCKED)
            except StoreError as error:  # it says itself what is to be done, and may say so for hours
                pause = self._settings.limits.poll
                log.error("the queue of deliveries could not be read, trying again in %.1f s: %s", pause, error)  # noqa: TRY400
            except Exception:  # a worker that ends would leave everything pending without a word
                log.exception("the queue of deliveries could not be read, trying again in %.1f s", self._settings.limits.poll)
                pause = self._settings.limits.poll
            if pause > 0:
                # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes together with the event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._woken.wait()

    async def _report(self) -> None:
        """Tell how far the blocks are behind, now and then. A worker of one session knows of no other."""
        due = time.monotonic() >= self._reported + _REPORTS
        if due and self._telemetry.counts_lags and self._settings.work.session_id is None:
            self._reported = time.monotonic()
            await self.lags()

    async def lags(self) -> Mapping[str, BlockLag]:
        """How far each block is behind; reported, too."""
        found = {lag.block: lag for lag in await self._store.lags(self._settings.work)}
        lags = {name: found.get(name, BlockLag(name)) for name in self._settings.definitions}
        self._telemetry.lagging(lags.values())
        return lags

    async def _pause(self, least: float) -> float:
        limits = self._settings.limits
        if len(self._running) >= limits.concurrency:
            return limits.poll
        due = await self._store.next_due(self._settings.work)
        if due is None:
            return limits.poll
        # What is due but not for us must not make us spin.
        return min(limits.poll, max(due, least))

    async def _fill(self) -> bool:
        """Start as many due deliveries and erasures as the concurrency allows; False when others have locked what is due."""
        room = self._settings.limits.concurrency - len(self._running)
        # Looking is cheaper than claiming, which writes.
        if room <= 0 or await self._store.next_due(self._settings.work) != 0:
            return True
        claims = await self._claim(self._settings.work, room)
        for work in claims:
            task = asyncio.create_task(self._carry_out(work))
            self._running.add(task)
            task.add_done_callback(self._ended)
        return bool(claims)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a delivery ended unexpectedly; it stays pending", exc_info=error)
        self._woken.set()

    async def run_once(self, work: WorkFilter) -> int:
        """One attempt at everything of `work` that is due, here and now. Returns how many pairs were tried."""
        if await self._store.next_due(work) != 0:
            return 0
        claims = await self._claim(work, self._settings.limits.concurrency)
        # What the caller is changing by hand comes when it is done: here it would wait for itself.
        later = [claim for claim in claims if is_changing(self._store, claim.lease.scope_key, claim.lease.block)]
        for claim in later:
            await _finish(self._store.release(claim.lease))
        now = [claim for claim in claims if claim not in later]
        if now:
            await asyncio.gather(*(self._carry_out(claim) for claim in now))
        return len(now)

    async def _claim(self, work: WorkFilter, room: int) -> Sequence[Claim | ErasureClaim]:
        claiming = asyncio.create_task(self._claimed(work, room))
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            # What was claimed on the way is given back, so that nobody has to wait for the leases to run out.
            await asyncio.wait({claiming})
            if not claiming.cancelled() and claiming.exception() is None:
                for claim in claiming.result():
                    await _finish(self._store.release(claim.lease))
            raise

    async def _claimed(self, work: WorkFilter, room: int) -> Sequence[Claim | ErasureClaim]:
        seconds = self._settings.limits.lease
        # In turns, so that many of one kind do not keep the other from its turn.
        self._erasures_first = not self._erasures_first
        half = -(-room // 2)
        if self._erasures_first:
            erasures = await self._store.claim_erasures(work, seconds=seconds, limit=half)
            room -= len(erasures)
            return [*erasures, *(await self._store.claim(work, seconds=seconds, limit=room) if room else ())]
        claims = await self._store.claim(work, seconds=seconds, limit=half)
        room -= len(claims)
        return [*claims, *(await self._store.claim_erasures(work, seconds=seconds, limit=room) if room else ())]

    async def _carry_out(self, work: Claim | ErasureClaim) -> None:
        try:
            if isinstance(work, Claim):
                await self._deliver_all(work)
            else:
                await self._forget(work)
        except StoreError as error:
            log.error("the database failed during a delivery to block %r; it stays pending: %s", work.lease.block, error)  # noqa: TRY400
        finally:
            # A cancelled worker gives its lease back, so that the next one need not wait for it to run out.
            await _finish(self._store.release(work.lease))
            async with self._settled:
                self._settled.notify_all()

    # -- deliveries ------------------------------------------------------------------------------------------

    async def _deliver_all(self, claim: Claim) -> None:
        lease = self._settings.limits.lease
        renewed = time.monotonic()
        while True:
            # What keeps the lease during a delivery begins anew with each: many quick ones would outlive it together.
            if time.monotonic() - renewed > lease / 3:
                if not await self._store.renew(claim.lease, claim.session, seconds=lease):
                    return
                renewed = time.monotonic()
            chunk = await self._store.read_chunk(claim, self._settings.flush_size)
            if chunk is None or not await self._deliver(claim, chunk):
                return
            claim = replace(claim, cursor=chunk.to_seq, attempts=0)
            if claim.parked_id is not None or claim.cursor >= claim.target:
                return

    async def _deliver(self, claim: Claim, chunk: Chunk) -> bool:
        """Let the block absorb one chunk; whether it did and the claim may go on."""
        name = claim.lease.block
        started = time.perf_counter()
        pair = (claim.lease.scope_key, name)
        context = self._context(claim, chunk)
        try:
            binding = await self._absorb(claim, chunk, context)
            # What the block has done counts, also when the engine closes meanwhile: its model is not called twice for it.
            done = await _to_the_end(self._commit(claim, chunk, context, binding))
        except (Interrupted, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError):
                raise
            log.info("a delivery to block %r was given up: its lease or its session is gone", name)
            return False
        except Exception as error:  # noqa: BLE001 - the boundary to code that is not ours: any failure is kept and retried
            if context.usage.calls:
                self._note_failed_usage(pair, context.usage)
            await _to_the_end(self._failed(claim, chunk, error))
            return False
        self._unavailable.pop(pair, None)
        self._telemetry.delivered(name, time.perf_counter() - started, "done" if done else "overtaken")
        return done

    async def _commit(self, claim: Claim, chunk: Chunk, context: BlockContext, binding: ScopeBinding | None) -> bool:
        change = StateChange() if binding is None else await binding.changed()
        try:
            return await self._store.commit_delivery(claim, chunk, change) is not None
        except StateInUse:
            log.debug("block %r was changed by hand during a delivery", claim.lease.block)
        async with kept(self._store, claim.lease, claim.session, self._settings.limits.lease) as lost:

            async def follow(attempt: int, writing: Lease | None) -> bool:
                nonlocal chunk, context, change
                if lost.is_set():
                    return False
                state = await self._store.read_state(claim.lease.scope_key, claim.lease.block)
                if state.version != chunk.state.version:
                    chunk = replace(chunk, state=state)
                    context = _repeated(context, state)
                    again = await self._absorb(claim, chunk, context)
                    change = StateChange() if again is None else await again.changed()
                return await self._store.commit_delivery(claim, chunk, change, writing=writing) is not None

            return await self._in_turn(claim, follow)

    async def _in_turn(self, claim: Claim | ErasureClaim, write: Callable[[int, Lease | None], Awaitable[T]]) -> T:
        """What `write` returns, which is repeated while the state is changed by hand; it is given the number of the attempt.

        Who changes a block by hand again and again would never let anybody through who does not do so too: after a few attempts
        it is given the lease to write.
        """
        for attempt in count():
            writing = await self._take_turn(claim) if attempt >= _POLITE else None
            try:
                return await write(attempt, writing)
            except StateInUse:
                await asyncio.sleep(_IN_USE)
            finally:
                if writing is not None:
                    await _finish(self._store.release(writing))
        raise AssertionError("there is always another attempt")

    async def _take_turn(self, claim: Claim | ErasureClaim) -> Lease | None:
        """The lease to write by hand, which this delivery uses to be the next; None when somebody else has it."""
        return await self._store.lease(claim.lease.scope_key, claim.lease.block, seconds=self._settings.limits.lease)

    async def _absorb(self, claim: Claim, chunk: Chunk, context: BlockContext) -> ScopeBinding | None:
        """The binding of a copy that absorbed the chunk; None if there was nothing left in it."""
        if not chunk.rows:
            return None
        definition = self._settings.definitions[claim.lease.block]
        block, binding = bind(self._store, definition, context, chunk.state, session=claim.session, writable=True)
        messages = [message_of(row) for row in chunk.rows]
        try:
            with self._telemetry.span("memory_engine.delivery", block=definition.name, messages=len(messages)):
                await self._leased(claim, block._aput(messages), f"Block {definition.name!r}: _aput")
        finally:
            # Calls are paid for also when the delivery fails in the end.
            self._used(definition.name, context)
        return binding

    def _used(self, name: str, context: BlockContext) -> None:
        if context.usage.calls:
            self._telemetry.used(name, context.usage)

    async def _leased(self, claim: Claim | ErasureClaim, work: Any, what: str) -> None:
        limits = self._settings.limits
        session = claim.session if isinstance(claim, Claim) else None
        try:
            async with kept(self._store, claim.lease, session, limits.lease) as lost:
                await guarded(work, seconds=limits.delivery, what=what, stop=lost, tell_late=True)
        except EndedBefore as late:
            # What the block has done is written down first, be it well done or not; then we are cancelled.
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()
            task.cancel()
            if late.error is not None:
                raise late.error from None

    def _context(self, claim: Claim, chunk: Chunk) -> BlockContext:
        session = claim.session
        return BlockContext(
            tenant=session.tenant,
            user_id=session.user_id,
            session_id=session.session_id,
            session_uid=session.uid,
            scope_key=claim.lease.scope_key,
            epoch=session.epoch,
            now=self._clock.now(),
            count=self._counter.text,
            seqs=tuple(row.seq for row in chunk.rows),
            delivery_id=f"{session.uid}:{claim.lease.block}:{chunk.from_seq}-{chunk.to_seq}",
            attempt=claim.attempts + 1,
            state_version=chunk.state.version,
            deleted_version=chunk.state.deleted_version,
            deadline=time.monotonic() + (1 - _MARGIN) * self._settings.limits.delivery,
            flush_size=self._settings.flush_size,
        )

    async def _failed(self, claim: Claim, chunk: Chunk, error: Exception) -> None:
        limits, name = self._settings.limits, claim.lease.block
        # A database that refuses is no fault of the block, but must not make us call its model again and again at once.
        counted = not isinstance(error, (*UNAVAILABLE, StoreError))
        park = counted and claim.attempts + 1 >= limits.max_attempts
        pair = (claim.lease.scope_key, name)
        failures = claim.attempts if counted else self._unavailable.get(pair, 0)
        if not counted:
            self._unavailable[pair] = failures + 1
        retry_in = min(limits.last_retry, limits.first_retry * 2.0 ** min(failures, 30)) * random.uniform(0.8, 1.0)
        # A service that says when it may be asked again knows better.
        retry_in = max(retry_in, min(getattr(error, "retry_after", None) or 0.0, _LONGEST_WAIT))
        text = describe(error)
        if park:
            log.error(
                "block %r refused seq %d to %d %d times, parked: %s",
                name,
                chunk.from_seq,
                chunk.to_seq - 1,
                claim.attempts + 1,
                text,
            )
        else:
            log.warning("block %r failed (%s), trying again in %.1f s", name, text, retry_in)
        self._telemetry.delivered(name, 0.0, "parked" if park else "failed")
        await self._store.fail_delivery(claim, chunk, text, retry_in=retry_in, counted=counted, park=park)

    # -- erasures --------------------------------------------------------------------------------------------

    async def _forget(self, claim: ErasureClaim) -> None:
        """Let a block forget; one that cannot is rebuilt from what remains."""
        limits = self._settings.limits
        definition = self._settings.definitions[claim.lease.block]
        if not can_forget(definition):
            try:
                await self._store.commit_erasure(claim, StateChange(), rebuild=claim.erasure.session_uid is not None)
            except StateInUse:
                log.debug("block %r is rebuilt when nobody changes it by hand any more", definition.name)
            return
        erasure = claim.erasure
        context = BlockContext(
            tenant=erasure.tenant,
            user_id=None,
            session_id="",
            session_uid=erasure.session_uid or "",
            scope_key=erasure.scope_key,
            epoch=0,
            now=self._clock.now(),
            count=self._counter.text,
            delivery_id=f"erasure:{erasure.id}",
            state_version=claim.state.version,
            deleted_version=claim.state.deleted_version,
            erasing=(Erased(erasure.session_uid, erasure.seqs),),
        )

        async def forget(attempt: int, writing: Lease | None) -> None:
            nonlocal claim, context
            if attempt:
                state = await self._store.read_state(claim.lease.scope_key, claim.lease.block)
                claim, context = replace(claim, state=state), _repeated(context, state)
            block, binding = bind(self._store, definition, context, claim.state, session=None, writable=True)
            forgetting = block._aforget(erasure.session_uid, erasure.seqs)
            await self._leased(claim, forgetting, f"Block {definition.name!r}: _aforget")
            await self._store.commit_erasure(claim, await binding.changed(), rebuild=False, writing=writing)

        try:
            await self._in_turn(claim, forget)
        except Exception as error:  # noqa: BLE001 - as for deliveries; an erasure is never given up
            log.warning("block %r could not forget yet: %s", definition.name, describe(error))
            await _to_the_end(self._store.fail_erasure(claim, describe(error), retry_in=limits.first_retry))


def _repeated(context: BlockContext, state: StateRow) -> BlockContext:
    """The context of the same delivery on another state; what outside services answered is kept, what it cost is told."""
    return replace(
        context,
        state_version=state.version,
        deleted_version=state.deleted_version,
        answers=context.answers.repeated(),
        usage=Usage(),
        notes=[],
    )


def describe(error: BaseException) -> str:
    """An error as one line for receipts and the queue."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, BlockError) and text else f"{type(error).__name__}: {text}"


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end even while being cancelled, if that takes no longer than `GRACE`."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError as cancelled:
        done, _ = await asyncio.wait({task}, timeout=GRACE)
        if not done:
            task.cancel()
        elif not task.cancelled() and task.exception() is not None:
            raise cancelled from task.exception()
        raise


async def _finish(work: Coroutine[Any, Any, None]) -> None:
    """As `_to_the_end`; the database's failures only cost the lease its early end."""
    try:
        await _to_the_end(work)
    except StoreError:
        log.debug("a lease could not be given back; it runs out by itself", exc_info=True)
