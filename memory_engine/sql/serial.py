"""Connections to SQLite: one that writes, and a few that read.

The work of a transaction runs in a task of its own behind a shield: a caller that is cancelled goes its way, the transaction
still ends, and its connection stays usable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from memory_engine.errors import ClosedError, ConfigurationError, StoreError
from memory_engine.sql.channels import (
    Channel,
    GreenletChannel,
    Job,
    Outcome,
    ThreadChannel,
    Work,
    deferred,
    execute_raw,
    immediate,
    together,
)
from memory_engine.sql.errors import translated
from memory_engine.sql.sqlite import in_memory, make_engine, parse_uri, prepare_file

log = logging.getLogger("memory_engine.sql")

P = ParamSpec("P")
R = TypeVar("R")

_READERS = 4
_MOST_TOGETHER = 256
"""So many changes are committed together at most: the last of them waits for all."""
_WIPE_MILLISECONDS = 100
_WIPE_PAUSES = (0.0, 0.05, 0.1, 0.2, 0.4)
"""Seconds before each attempt to empty the log; somebody may be reading in it, and writers go on meanwhile."""
_SYNCHRONOUS = ("OFF", "NORMAL", "FULL", "EXTRA")


class SerialConnections:
    """One writer, whose transactions queue up in order, and a few readers that never wait for it.

    A database in memory (`single`) has one connection for all. With an engine of the user's the connections are borrowed
    from its pool until `aclose`; its settings (journal mode, time-outs) are the user's.
    """

    def __init__(self, open_channel: Callable[[], Awaitable[Channel]], *, single: bool, owned: bool) -> None:
        self._open, self._single, self._owned = open_channel, single, owned
        self._writer: Channel | None = None
        self._readers: list[Channel] = []
        self._writing = asyncio.Lock()
        self._waiting: dict[Job, asyncio.Future[Any]] = {}
        self._writes: asyncio.Task[None] | None = None
        self._reading = asyncio.Semaphore(_READERS)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def write(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one transaction that may write; it holds the write lock from its first statement on.

        What is asked for while another transaction runs is committed together, in the order in which it was asked for.
        Nobody waits for others to come, and each has its own result or error, as if it were alone.
        """
        if self._closed:
            raise ClosedError
        job = Job(work, args, kwargs)
        done = self._waiting[job] = asyncio.get_running_loop().create_future()
        if self._writes is None:
            self._writes = asyncio.create_task(self._write_all())
            self._tasks.add(self._writes)
            self._writes.add_done_callback(self._tasks.discard)
        # A caller that is cancelled when it has begun cancels only its wait: what it asked for is done.
        result: R = await done
        return result

    async def read(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one statement that reads."""
        return await self._read(work, args, kwargs, together=False)

    async def read_together(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run several statements that read the same version of the database."""
        return await self._read(work, args, kwargs, together=True)

    async def listen(self, channel: str, wake: Callable[[], None]) -> None:
        """Nothing: one process cannot tell another by way of SQLite."""

    async def wipe(self) -> None:
        """Overwrite what is left of deleted rows in SQLite's log, unless a reader elsewhere holds on to it.

        What stays then goes with a later checkpoint, at the latest when the last connection closes.
        """
        if self._single or not self._owned:
            return
        for pause in _WIPE_PAUSES:
            await asyncio.sleep(pause)
            await self._writing.acquire()
            try:
                if await self._apart(self._read_on_writer(_truncate_log, (), {}), self._writing.release):
                    return
            except (StoreError, ClosedError):
                log.debug("the write-ahead log could not be emptied now", exc_info=True)
                return

    async def aclose(self) -> None:
        """Wait for what is running, then give back the connections."""
        self._closed = True
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        connections = [*self._readers, *([self._writer] if self._writer else [])]
        self._readers, self._writer = [], None
        for connection in connections:
            with translated():
                await connection.close()

    async def _read(self, work: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any], *, together: bool) -> R:
        if self._single:
            await self._writing.acquire()
            return await self._apart(self._read_on_writer(work, args, kwargs), self._writing.release)
        await self._reading.acquire()
        return await self._apart(self._read_on_reader(work, args, kwargs, together), self._reading.release)

    async def _apart(self, work: Coroutine[Any, Any, R], release: Callable[[], None]) -> R:
        """Run in a task that outlives a cancelled caller; `release` what the caller acquired when it ends."""
        if self._closed:
            release()
            work.close()
            raise ClosedError
        task = asyncio.create_task(work)
        self._tasks.add(task)

        def ended(task: asyncio.Task[R]) -> None:
            self._tasks.discard(task)
            release()

        task.add_done_callback(ended)
        return await asyncio.shield(task)

    async def _write_all(self) -> None:
        """Work off what waits to be written, and what comes meanwhile."""
        try:
            while self._waiting:
                async with self._writing:
                    group = dict(islice(self._waiting.items(), _MOST_TOGETHER))
                    for job in group:
                        del self._waiting[job]
                    # Who was cancelled while waiting in the queue does not want it any more.
                    await self._write_group({job: done for job, done in group.items() if not done.cancelled()})
        finally:
            self._writes = None
            for done in self._waiting.values():
                done.cancel()
            self._waiting.clear()

    async def _write_group(self, group: dict[Job, asyncio.Future[Any]]) -> None:
        if len(group) > 1:
            try:
                outcomes = await self._write(together, (list(group),), {})
            except asyncio.CancelledError:
                for done in group.values():
                    done.cancel()
                raise
            except BaseException as error:  # noqa: BLE001 - whose fault it is shows when each is alone
                log.debug("%d changes could not be committed together: %s", len(group), error)
            else:
                for done, outcome in zip(group.values(), outcomes, strict=True):
                    _settle(done, outcome)
                return
        for job, done in group.items():
            try:
                outcome = Outcome(await self._write(job.work, job.args, job.kwargs))
            except asyncio.CancelledError:
                done.cancel()
                raise
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever asked
                outcome = Outcome(error=error)
            _settle(done, outcome)

    async def _write(self, work: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        with translated():
            connection = self._writer
            if connection is None:
                connection = self._writer = await self._open()
            try:
                # A group begins and ends its own transaction.
                if work is together:
                    return await connection.run(work, *args, **kwargs)
                return await connection.run(immediate, work, args, kwargs)
            except BaseException:
                if not await connection.usable():
                    self._writer = None
                raise

    async def _read_on_writer(self, work: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        with translated():
            if self._writer is None:
                self._writer = await self._open()
            return await self._writer.run(work, *args, **kwargs)

    async def _read_on_reader(self, work: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any], together: bool) -> R:
        with translated():
            connection = self._readers.pop() if self._readers else await self._open()
            try:
                if together:
                    result = await connection.run(deferred, work, args, kwargs)
                else:
                    result = await connection.run(work, *args, **kwargs)
            except BaseException:
                if await connection.usable():
                    self._readers.append(connection)
                raise
            self._readers.append(connection)
            return result


def _settle(done: asyncio.Future[Any], outcome: Outcome) -> None:
    """Tell whoever asked what came of it."""
    if done.done():
        return  # whoever asked was cancelled
    if outcome.error is None:
        done.set_result(outcome.result)
        return
    try:
        with translated():
            raise outcome.error
    except BaseException as error:  # noqa: BLE001 - as above
        done.set_exception(error)


def _truncate_log(connection: Connection) -> bool:
    """Whether the log is empty now."""
    patience = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    execute_raw(connection, f"PRAGMA busy_timeout = {_WIPE_MILLISECONDS}")
    try:
        busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
        return not busy
    finally:
        execute_raw(connection, f"PRAGMA busy_timeout = {patience}")


def serial_connections_of(engine: AsyncEngine) -> SerialConnections:
    """Connections of a user's engine; nothing is opened yet."""
    return SerialConnections(lambda: GreenletChannel.open(engine), single=_has_one_connection(engine), owned=False)


def serial_connections(uri: str | None, *, synchronous: str, busy_timeout: float) -> SerialConnections:
    """Connections of our own to a database by its URI; nothing is opened yet.

    :raises ConfigurationError: the URI or an option is wrong.
    """
    if synchronous.upper() not in _SYNCHRONOUS:
        raise ConfigurationError(f"sqlite_synchronous is one of {', '.join(_SYNCHRONOUS)}, not {synchronous!r}.")
    url = parse_uri(uri)
    engine = make_engine(url, synchronous=synchronous.upper(), busy_timeout=busy_timeout)
    return SerialConnections(lambda: ThreadChannel.open(engine, lambda: prepare_file(url)), single=in_memory(url), owned=True)


def _has_one_connection(engine: AsyncEngine) -> bool:
    """Whether a second connection would see another database, or has to wait for the first."""
    pool = engine.sync_engine.pool
    if in_memory(engine.url):
        return True
    if isinstance(pool, QueuePool):
        return pool.size() == 1 and pool._max_overflow == 0
    return type(pool).__name__ in ("StaticPool", "SingletonThreadPool", "AssertionPool")
