"""What is particular to PostgreSQL: its URIs and its engines."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

from sqlalchemy import URL, Connection, event, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from memory_engine.errors import ConfigurationError, MissingExtraError
from memory_engine.sql.prepared import OURS
from memory_engine.sql.tables import Tables

log = logging.getLogger("memory_engine.sql")

POOL = 16
"""Connections of one engine of ours, at most."""
_CACHE = "prepared_statement_cache_size"
_STATEMENTS = 500
"""Prepared statements that a connection keeps."""


def postgresql_url(url: URL) -> URL:
    """The URL with asyncpg as its driver.

    :raises ConfigurationError: it names another driver.
    """
    if url.drivername not in ("postgresql", "postgresql+asyncpg"):
        raise ConfigurationError(f"{url.drivername!r} is not supported; PostgreSQL is reached by 'postgresql+asyncpg://…'.")
    return url.set(drivername="postgresql+asyncpg")


def make_engine(url: URL) -> AsyncEngine:
    """An engine with a pool of its own; nothing is opened yet.

    :raises MissingExtraError: asyncpg is not installed.
    """
    if find_spec("asyncpg") is None:
        raise MissingExtraError("PostgreSQL needs the driver asyncpg; pip install 'memory-engine-blocks[postgres]'.")
    # Arguments of the URI are the user's word; ours would silently come before them.
    arguments: dict[str, Any] = {"server_settings": {"application_name": "memory-engine"}}
    if _CACHE not in url.query:
        arguments[_CACHE] = _STATEMENTS
    engine = create_async_engine(
        url,
        isolation_level="AUTOCOMMIT",
        execution_options={OURS: True},
        pool_size=POOL,
        max_overflow=0,
        pool_recycle=1_800,
        pool_use_lifo=True,  # the one used last has its statements at hand, and what is not needed for long is given up
        connect_args=arguments,
    )
    event.listen(engine.sync_engine, "connect", _plan_once)
    return engine


def _plan_once(connection: Any, _: object) -> None:
    """Planning a put takes four times as long as carrying it out, and its plan is the same whatever it is given."""
    try:
        # Not as an argument of the connection: poolers refuse arguments that they do not know.
        connection.run_async(lambda driver: driver.execute("SET plan_cache_mode = force_generic_plan"))
    except Exception as error:  # noqa: BLE001 - a database that does not know it is as right, and slower
        log.debug("statements are planned each time: %s", error)


def channel_of(tables: Tables) -> str:
    """Where new work for blocks is announced."""
    return f"{tables.schema.name}_work"


def announce(connection: Connection, tables: Tables) -> None:
    """Wake the workers of other processes when this transaction is committed; on SQLite they look by themselves."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_notify(channel_of(tables), "")))
