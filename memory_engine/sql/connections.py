"""How work runs on a database: which connection, which transaction, and what a cancelled caller leaves behind.

All work of one transaction is one plain function over a SQLAlchemy `Connection`. SQLite has one writer (`serial`), PostgreSQL
many connections (`pooled`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine

from memory_engine.errors import ConfigurationError
from memory_engine.sql.channels import Work
from memory_engine.sql.pooled import PooledConnections
from memory_engine.sql.postgresql import make_engine, postgresql_url
from memory_engine.sql.serial import serial_connections, serial_connections_of

P = ParamSpec("P")
R = TypeVar("R")

_EXAMPLES = "'sqlite+aiosqlite:///memory.db' or 'postgresql+asyncpg://user:password@host/database'"


class Connections(Protocol):
    """Runs functions over connections. A caller that is cancelled goes its way, the transaction still ends."""

    async def write(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one transaction that may write."""

    async def read(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one statement that reads."""

    async def read_together(self, work: Work[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run several statements that read the same version of the database."""

    async def listen(self, channel: str, wake: Callable[[], None]) -> None:
        """Call `wake` whenever something is announced there, until cancelled; returns where nothing can be announced."""

    async def wipe(self) -> None:
        """Overwrite what is left of deleted rows, where that is ours to do."""

    async def aclose(self) -> None:
        """Wait for what is running, then give back the connections."""


def open_connections(
    uri: str | None, *, async_engine: AsyncEngine | None, synchronous: str, busy_timeout: float
) -> Connections:
    """Connections to a database by its URI, or of a given engine; nothing is opened yet.

    :raises ConfigurationError: the URI or an option is wrong.
    :raises MissingExtraError: the driver is not installed.
    """
    if not 0 <= busy_timeout < 1_000_000:
        raise ConfigurationError(f"busy_timeout is a number of seconds from 0 on, not {busy_timeout!r}.")
    if async_engine is not None:
        dialect = async_engine.dialect
        if dialect.name == "sqlite":
            return serial_connections_of(async_engine)
        if (dialect.name, dialect.driver) == ("postgresql", "asyncpg"):
            return PooledConnections(async_engine, owned=False, patience=busy_timeout)
        raise ConfigurationError(f"An async_engine is one of {_EXAMPLES}, not of {dialect.name}+{dialect.driver}.")
    url = _url(uri)
    if url is None or url.get_backend_name() == "sqlite":
        return serial_connections(uri, synchronous=synchronous, busy_timeout=busy_timeout)
    return PooledConnections(make_engine(postgresql_url(url)), owned=True, patience=busy_timeout)


def _url(uri: str | None) -> URL | None:
    """The parsed URI of a backend that is supported; None is a private database in memory."""
    if uri is None:
        return None
    try:
        # The short name that many hosts give, and SQLAlchemy does not take.
        url = make_url(f"postgresql{uri.removeprefix('postgres')}" if str(uri).startswith("postgres://") else uri)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"Not a database URI: {uri!r}. Write one like {_EXAMPLES}.") from error
    if backend not in ("sqlite", "postgresql"):
        raise ConfigurationError(f"{url.drivername!r} is not supported; use a URI like {_EXAMPLES}.")
    return url
