"""What is particular to SQLite: its URIs, its files, its settings, and connections with a thread of their own."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from urllib.parse import unquote

from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from memory_engine.errors import ConfigurationError, StoreUnreadableError
from memory_engine.sql.prepared import OURS

_RETRY_SECONDS = 0.05


def parse_uri(uri: str | None) -> URL:
    """The URL of a database; None is a private one in memory."""
    if uri is None:
        return make_url("sqlite+aiosqlite://")
    try:
        url = make_url(uri)
        if url.drivername == "sqlite":
            url = url.set(drivername="sqlite+aiosqlite")
        url.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise ConfigurationError(f"Not a database URI: {uri!r}. Write one like 'sqlite+aiosqlite:///memory.db'.") from error
    if url.drivername != "sqlite+aiosqlite":
        raise ConfigurationError(f"{url.drivername!r} is not supported; use a URI like 'sqlite+aiosqlite:///memory.db'.")
    return url


def in_memory(url: URL) -> bool:
    """Whether a SQLite URL names a database in memory, shared between connections or not."""
    database = url.database or ""
    return database in ("", ":memory:") or database.startswith("file::memory:") or url.query.get("mode") == "memory"


def database_path(url: URL) -> Path | None:
    """The file of a SQLite database that connecting would create; None when it creates none."""
    database = url.database or ""
    if in_memory(url) or url.query.get("mode") in ("ro", "rw") or "immutable" in url.query:
        return None
    if database.startswith("file:"):
        plain = unquote(database.removeprefix("file:").partition("?")[0])
        # file:///path and file://localhost/path have an authority before the path.
        return Path("/" + plain[2:].partition("/")[2] if plain.startswith("//") else plain)
    return Path(database)


def prepare_file(url: URL) -> None:
    """Create the file with mode 0600 before SQLite would with a wider one; its -wal and -shm take over the mode."""
    path = database_path(url)
    if path is None:
        return
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise StoreUnreadableError(f"The database file {str(path)!r} cannot be created: {error.strerror}.") from error


def make_engine(url: URL, *, synchronous: str, busy_timeout: float) -> Engine:
    """An engine for threads of our own, whose connections are in autocommit mode and set up; nothing is opened yet."""
    engine = create_engine(
        url.set(drivername="sqlite"),
        isolation_level="AUTOCOMMIT",
        poolclass=NullPool,
        execution_options={OURS: True},
        connect_args={"timeout": busy_timeout, "check_same_thread": False},
    )
    statements = (
        f"PRAGMA busy_timeout = {round(busy_timeout * 1000)}",
        f"PRAGMA synchronous = {synchronous}",
        "PRAGMA foreign_keys = OFF",
        # What is deleted is overwritten: erased messages must not stay readable in the file.
        "PRAGMA secure_delete = ON",
        "PRAGMA temp_store = MEMORY",
        "PRAGMA cache_size = -8000",
    )

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, record: object) -> None:
        for statement in statements:
            connection.execute(statement).close()
        _write_ahead(connection, busy_timeout)

    return engine


def _write_ahead(connection: sqlite3.Connection, busy_timeout: float) -> None:
    end = time.monotonic() + busy_timeout
    while True:
        # While another process switches to WAL, SQLite answers "locked" at once, without waiting for busy_timeout.
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
            return
        except sqlite3.OperationalError as error:
            busy = getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() >= end:
                raise
            time.sleep(_RETRY_SECONDS)
