"""Connections to a database with many writers: a transaction of its own for each caller, repeated when that is safe.

A transaction that the database ended (a deadlock, a conflict of serialization) or that never reached its COMMIT before the
connection was lost did not happen, and is run again. When the connection is lost during COMMIT, nobody knows; the caller is
told by `OutcomeUnknown`, and repeats what it can recognise.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from memory_engine.errors import ClosedError
from memory_engine.sql.channels import Work, execute_raw
from memory_engine.sql.errors import OutcomeUnknown, is_conflict, is_lost, translated
from memory_engine.sql.postgresql import POOL

log = logging.getLogger("memory_engine.sql")

P = ParamSpec("P")
R = TypeVar("R")

KEPT = 2
"""So many connections are kept for puts; no more of them run at once."""
_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 1.0
_WRITING = "BEGIN ISOLATION LEVEL READ COMMITTED"
_READING = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class PooledConnections:
    """Borrows a connection from the engine's pool for each transaction. An engine that is not `owned` stays open.

    `patience` is for how many seconds a lost server is looked for again before a call fails.
    """

    def __init__(self, engine: AsyncEngine, *, owned: bool, patience: float) -> None:
        # An engine of ours has it already; said again, SQLAlchemy would set it for every connection that is borrowed.
        self._engine = engine if owned else engine.execution_options(isolation_level="AUTOCOMMIT")
        self._owned, self._patience = owned, patience
        # In a queue of ours nobody is refused for its length, as a pool does after its own time-out; one connection listens.
        self._unlimited = nullcontext()
        self._free: AbstractAsyncContextManager[Any] = asyncio.Semaphore(POOL - 1 - KEPT) if owned else self._unlimited
        self._kept: list[tuple[AsyncConnection, Any]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    async def write(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one transaction that may write.

        :raises OutcomeUnknown: the connection was lost while it was being committed.
        """
        return await self._apart(self._again(partial(self._once, _WRITING, work, args, kwargs)))

    async def change(self, text: str, parameters: Sequence[Any]) -> Sequence[Sequence[Any]]:
        """Run one statement that is a transaction by itself, by the driver where the engine is ours; the rows it returns.

        :raises OutcomeUnknown: the connection was lost while it ran.
        """
        return await self._apart(self._again(partial(self._change, text, parameters), self._unlimited))

    async def read(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one statement that reads."""
        return await self._apart(self._again(partial(self._once, None, work, args, kwargs)))

    async def read_together(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run several statements that read the same version of the database."""
        return await self._apart(self._again(partial(self._once, _READING, work, args, kwargs)))

    async def listen(self, channel: str, wake: Callable[[], None]) -> None:
        """Call `wake` whenever something is announced there, until cancelled; it takes a connection of our pool for itself."""
        while self._owned:
            try:
                await self._listen(channel, wake)
            except Exception as error:  # noqa: BLE001 - whatever it is, polling goes on meanwhile
                log.debug("new work is not announced for a while: %s", error)
            await asyncio.sleep(_LONGEST_PAUSE)

    async def _listen(self, channel: str, wake: Callable[[], None]) -> None:
        lost = asyncio.Event()
        async with self._engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            try:
                driver.add_termination_listener(lambda *_: lost.set())
                await driver.add_listener(channel, lambda *_: wake())
                wake()  # what was announced before
                await lost.wait()
            finally:
                # Nobody else gets a connection that listens.
                await connection.invalidate()

    async def wipe(self) -> None:
        """Nothing: what becomes of deleted rows is PostgreSQL's to decide."""

    async def aclose(self) -> None:
        """Wait for what is running; close the pool if it is ours."""
        self._closed = True
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        while self._kept:
            connection, _ = self._kept.pop()
            with suppress(Exception):
                await connection.close()
        if self._owned:
            with translated():
                await self._engine.dispose()

    async def _apart(self, work: Coroutine[Any, Any, R]) -> R:
        """Run in a task that outlives a cancelled caller: a transaction always ends, and its connection stays usable."""
        if self._closed:
            work.close()
            raise ClosedError
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _again(self, once: Callable[[], Awaitable[R]], free: AbstractAsyncContextManager[Any] | None = None) -> R:
        """Run a transaction until it has happened, or failed for good, or patience ends."""
        end = time.monotonic() + self._patience
        pause = _FIRST_PAUSE
        while True:
            try:
                with translated():
                    async with free or self._free:
                        return await once()
            except Exception as error:
                cause = error.__cause__ or error
                if isinstance(error, OutcomeUnknown) or not (is_lost(cause) or is_conflict(cause)):
                    raise
                if self._closed or time.monotonic() + pause > end:
                    raise
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _once(self, begin: str | None, work: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        async with self._engine.connect() as connection:
            try:
                if begin is None:
                    return await connection.run_sync(work, *args, **kwargs)
                return await connection.run_sync(_transaction, begin, work, args, kwargs)
            except BaseException as error:
                # Of a connection whose transaction could not be ended nothing is known.
                if is_lost(error) or isinstance(error, OutcomeUnknown | asyncio.CancelledError):
                    await _discard(connection, error)
                raise

    async def _change(self, text: str, parameters: Sequence[Any]) -> Sequence[Sequence[Any]]:
        if not self._owned:
            async with self._engine.connect() as connection:
                try:
                    return (await connection.exec_driver_sql(text, tuple(parameters))).all()
                except BaseException as error:
                    if is_lost(error) or isinstance(error, asyncio.CancelledError):
                        await _discard(connection, error)
                    if is_lost(error):
                        raise OutcomeUnknown from error
                    raise
        # By the driver, on a connection that is kept for this: borrowing one and SQLAlchemy's own execution take longer than
        # the server does.
        connection, driver = await self._take()
        try:
            rows = await driver.fetch(text, *parameters)
        except BaseException as error:
            if is_lost(error) or isinstance(error, asyncio.CancelledError):
                await _discard(connection, error)
            await connection.close()
            if is_lost(error):
                raise OutcomeUnknown from error
            raise
        if len(self._kept) < KEPT and not self._closed:
            self._kept.append((connection, driver))
        else:
            await connection.close()
        return cast("Sequence[Sequence[Any]]", rows)

    async def _take(self) -> tuple[AsyncConnection, Any]:
        """A connection that is kept, or a new one, with its driver's."""
        while self._kept:
            connection, driver = self._kept.pop()
            if not driver.is_closed():
                return connection, driver
            await _discard(connection, ConnectionResetError())
            await connection.close()
        connection = await self._engine.connect()
        return connection, (await connection.get_raw_connection()).driver_connection


async def _discard(connection: AsyncConnection, error: BaseException) -> None:
    """Close a connection for good."""
    if not isinstance(error, asyncio.CancelledError):
        # With one connection all of its pool are lost, as a rule. SQLAlchemy replaces them when it meets the loss itself; else
        # each of them would cost an attempt and a pause.
        with suppress(Exception):
            async with asyncio.timeout(_LONGEST_PAUSE):
                await connection.exec_driver_sql("SELECT 1")
    await connection.invalidate()


def _transaction(
    connection: Connection, begin: str, work: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> R:
    execute_raw(connection, begin)
    try:
        result = work(connection, *args, **kwargs)
    except BaseException as error:
        if not is_lost(error):
            execute_raw(connection, "ROLLBACK")
        raise
    try:
        execute_raw(connection, "COMMIT")
    except Exception as error:
        if begin == _WRITING and is_lost(error):
            raise OutcomeUnknown from error
        raise
    return result
