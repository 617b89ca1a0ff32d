"""Errors of drivers, as the errors of this package, and what they say about a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from memory_engine.errors import (
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    StoreUnreadableError,
)

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
# A file that may not grow, for a quota or a limit; and a full disk where the file that readers share has no room.
_SQLITE_FULL = frozenset({sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_IOERR_SHMSIZE})


# By SQLSTATE, whole or its class: https://www.postgresql.org/docs/current/errcodes-appendix.html
_POSTGRESQL = {
    "08": StoreUnavailableError,
    "57P": StoreUnavailableError,
    "53300": StoreUnavailableError,
    "40001": StoreBusyError,
    "40P01": StoreBusyError,
    "55P03": StoreBusyError,
    "57014": StoreBusyError,
    "53100": StoreFullError,
    "28": StoreUnreadableError,
    "3D000": StoreUnreadableError,
    "42501": StoreUnreadableError,
    "25006": StoreUnreadableError,
    "XX001": StoreUnreadableError,
    "XX002": StoreUnreadableError,
}
_CONFLICTS = frozenset({"40001", "40P01"})
"""The database rolled the transaction back, so that others could go on."""


class OutcomeUnknown(StoreUnavailableError):
    """Internal: the connection was lost while a transaction was being committed."""

    def __init__(self) -> None:
        super().__init__(
            "The connection to the database was lost while a change was being committed: it may have happened or not. "
            "Look before you repeat it; messages with an id of their own can be put again safely."
        )


@contextmanager
def translated() -> Iterator[None]:
    """Errors of SQLAlchemy and of the driver leave as children of `StoreError`, with the driver's error as cause."""
    try:
        yield
    except StoreError:
        raise
    except (SQLAlchemyError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        raise store_error(cause) from cause
    except Exception as error:
        if not (_sqlstate(error) is not None or _is_of_asyncpg(error) or isinstance(error, OSError) or is_lost(error)):
            raise
        raise store_error(error) from error


def is_lost(error: BaseException) -> bool:
    """Whether the connection, or the server behind it, is gone."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or (error.orig is not None and is_lost(error.orig))
    state = _sqlstate(error)
    if state is not None:
        return _by_sqlstate(state) is StoreUnavailableError
    if isinstance(error, OSError | EOFError):
        return True
    # Of a connection that is closed or was cut off in the middle of something: asyncpg's, and SQLAlchemy's of them.
    name = type(error).__name__
    return name == "InternalClientError" or (name == "InterfaceError" and "clos" in str(error))


def is_conflict(error: BaseException) -> bool:
    """Whether the transaction was rolled back for the sake of another one; it may just be run again."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return is_conflict(error.orig)
    return _sqlstate(error) in _CONFLICTS


def _is_of_asyncpg(error: BaseException) -> bool:
    return any(base.__module__.partition(".")[0] == "asyncpg" for base in type(error).__mro__)


def _sqlstate(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None


def _by_sqlstate(state: str) -> type[StoreError]:
    return next((_POSTGRESQL[state[:length]] for length in (5, 3, 2) if state[:length] in _POSTGRESQL), StoreError)


def store_error(cause: BaseException) -> StoreError:
    """Our error for one of a driver; its message starts with what to do and ends with what the driver said."""
    code = getattr(cause, "sqlite_errorcode", None)
    # The low byte is the primary code; SQLite packs the details above it.
    state = _sqlstate(cause)
    if isinstance(code, int):
        kind = StoreFullError if code in _SQLITE_FULL else _SQLITE.get(code & 0xFF, StoreError)
    elif state is not None:
        kind = _by_sqlstate(state)
    else:
        kind = StoreUnavailableError if is_lost(cause) else StoreError
    return kind(f"{kind()} ({type(cause).__name__}: {cause})")
