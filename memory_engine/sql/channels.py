"""A connection together with where its work runs.

`ThreadChannel` owns a thread: a whole transaction is one call there, so that the event loop hands over once instead of
once for each statement, and waits for nothing. `GreenletChannel` wraps a connection of a user's `AsyncEngine`, whose
driver hands over for each call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, Protocol, Self, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from memory_engine.errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Work = Callable[Concatenate[Connection, P], R]


class Channel(Protocol):
    """Runs plain functions over one connection, one after the other."""

    async def run(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of the function, or what it raised."""

    async def usable(self) -> bool:
        """Whether a connection that failed is in order again; if not, it is closed for good."""

    async def close(self) -> None:
        """Give the connection back."""


class ThreadChannel:
    """A connection of our own, used in a thread of its own."""

    def __init__(self, engine: Engine, prepare: Callable[[], None]) -> None:
        self._engine, self._prepare = engine, prepare
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="memory-engine-sql")
        self._connection: Connection | None = None

    @classmethod
    async def open(cls, engine: Engine, prepare: Callable[[], None]) -> Self:
        """Connect; `prepare` runs before."""
        channel = cls(engine, prepare)
        try:
            await channel._in_thread(channel._connect)
        except BaseException:
            channel._thread.shutdown(wait=False)
            raise
        return channel

    async def run(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        assert self._connection is not None
        return await self._in_thread(partial(work, self._connection, *args, **kwargs))

    async def usable(self) -> bool:
        if self._connection is not None and not self._connection.closed and not in_transaction(self._connection):
            return True
        await self.close()
        return False

    async def close(self) -> None:
        if self._connection is not None:
            await self._in_thread(self._connection.close)
            self._thread.shutdown(wait=False)

    def _connect(self) -> None:
        self._prepare()
        connection = self._engine.connect()
        connection.begin()  # autocommit: it only keeps SQLAlchemy from beginning one at each statement
        self._connection = connection

    async def _in_thread(self, work: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class GreenletChannel:
    """A connection borrowed from a user's engine."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, engine: AsyncEngine) -> Self:
        """Borrow a connection and put it into autocommit mode."""
        connection = await engine.connect()
        try:
            connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.run_sync(_take_over)
        except BaseException:
            await connection.close()
            raise
        return cls(connection)

    async def run(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._connection.run_sync(work, *args, **kwargs)

    async def usable(self) -> bool:
        connection = self._connection
        try:
            if not connection.closed and not connection.invalidated:
                driver = (await connection.get_raw_connection()).driver_connection
                if driver is not None and not driver.in_transaction:
                    return True
            await connection.invalidate()
            await connection.close()
        except Exception:  # noqa: BLE001 - it is thrown away whatever it says; the error that led here is the one to report
            return False
        return False

    async def close(self) -> None:
        await self._connection.close()


def immediate(connection: Connection, work: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    """Run a function in a transaction that holds the write lock from the start."""
    return _transaction(connection, "BEGIN IMMEDIATE", work, args, kwargs)


@dataclass(slots=True, eq=False)
class Several(Generic[T, R]):
    """Work on one item, `alone`, that takes fewer statements for `several` items, whose results come in their order."""

    alone: Callable[[Connection, T], R]
    several: Callable[[Connection, Sequence[T]], Sequence[R]]

    def __call__(self, connection: Connection, item: T) -> R:
        return self.alone(connection, item)


@dataclass(slots=True, eq=False)
class Job:
    """What is to be done in a transaction."""

    work: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Outcome(NamedTuple):
    """What came of it."""

    result: Any = None
    error: BaseException | None = None


def together(connection: Connection, jobs: Sequence[Job]) -> list[Outcome]:
    """Run several functions in one transaction that holds the write lock from the start, each as if it were alone.

    One that raises leaves nothing behind, and the others go on. Raises when none of them was committed.
    """
    try:
        # Without savepoints, which cost a put a tenth: what was asked for hardly ever fails.
        return _transaction(connection, "BEGIN IMMEDIATE", _all, (jobs,), {})
    except _FailedError:
        return _transaction(connection, "BEGIN IMMEDIATE", _each, (jobs,), {})


class _FailedError(Exception):
    """One of several functions raised; none of them left anything behind."""


def _all(connection: Connection, jobs: Sequence[Job]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    try:
        for work, each in groupby(jobs, key=lambda job: job.work):
            alike = list(each)
            if isinstance(work, Several) and len(alike) > 1:
                outcomes += map(Outcome, work.several(connection, [job.args[0] for job in alike]))
            else:
                outcomes += [Outcome(work(connection, *job.args, **job.kwargs)) for job in alike]
    except Exception as error:
        raise _FailedError from error
    return outcomes


def _each(connection: Connection, jobs: Sequence[Job]) -> list[Outcome]:
    outcomes = []
    for job in jobs:
        execute_raw(connection, "SAVEPOINT one")
        try:
            outcome = Outcome(job.work(connection, *job.args, **job.kwargs))
        except Exception as error:  # noqa: BLE001 - it is handed to whoever asked for the work
            # Fails itself when the database has ended the whole transaction.
            execute_raw(connection, "ROLLBACK TO one")
            outcome = Outcome(error=error)
        execute_raw(connection, "RELEASE one")
        outcomes.append(outcome)
    return outcomes


def deferred(connection: Connection, work: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    """Run a function in a transaction that sees one version of the database."""
    return _transaction(connection, "BEGIN", work, args, kwargs)


def _transaction(
    connection: Connection, begin: str, work: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> R:
    # The driver's own calls: through `exec_driver_sql` BEGIN and COMMIT cost as much as the statements between them.
    raw = _raw(connection)
    execute_raw(connection, begin)
    try:
        result = work(connection, *args, **kwargs)
        raw.commit()
    except BaseException:
        raw.rollback()
        raise
    return result


def execute_raw(connection: Connection, statement: str) -> None:
    """Run a statement by the driver itself."""
    raw = _raw(connection)
    if hasattr(raw, "run_async"):
        raw.run_async(lambda driver: _execute(driver, statement))
    else:
        raw.execute(statement).close()


def in_transaction(connection: Connection) -> bool:
    """Whether the driver has begun a transaction and not ended it."""
    raw = _raw(connection)
    return bool(getattr(raw, "driver_connection", raw).in_transaction)


def _take_over(connection: Connection) -> None:
    """From here on transactions are begun and ended by our own statements alone."""
    connection.begin()  # lets listeners that emit a BEGIN do so once, here
    if in_transaction(connection):
        _raw(connection).rollback()
    if in_transaction(connection):
        raise ConfigurationError("The engine's connections are always in a transaction; leave out autocommit=False.")


async def _execute(driver: Any, statement: str) -> None:
    done = await driver.execute(statement)
    if not isinstance(done, str):  # asyncpg answers with what it did, the others with a cursor
        await done.close()


def _raw(connection: Connection) -> Any:
    return connection.connection.dbapi_connection
