"""Errors of drivers, as the errors of this package."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from memory_engine.errors import StoreBusyError, StoreError, StoreFullError, StoreUnreadableError

_SQLITE = {
    sqlite3.SQLITE_BUSY: StoreBusyError,
    sqlite3.SQLITE_LOCKED: StoreBusyError,
    sqlite3.SQLITE_FULL: StoreFullError,
    sqlite3.SQLITE_PERM: StoreUnreadableError,
    sqlite3.SQLITE_READONLY: StoreUnreadableError,
    sqlite3.SQLITE_CORRUPT: StoreUnreadableError,
    sqlite3.SQLITE_CANTOPEN: StoreUnreadableError,
    sqlite3.SQLITE_AUTH: StoreUnreadableError,
    sqlite3.SQLITE_NOTADB: StoreUnreadableError,
}


@contextmanager
def translated() -> Iterator[None]:
    """Errors of SQLAlchemy and of the driver leave as children of `StoreError`, with the driver's error as cause."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        raise store_error(cause) from cause


def store_error(cause: BaseException) -> StoreError:
    """Our error for one of a driver; its message starts with what to do and ends with what the driver said."""
    code = getattr(cause, "sqlite_errorcode", None)
    # The low byte is the primary code; SQLite packs the details above it.
    kind = _SQLITE.get(code & 0xFF, StoreError) if isinstance(code, int) else StoreError
    return kind(f"{kind()} ({type(cause).__name__}: {cause})")
