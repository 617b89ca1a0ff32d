"""Where a source is: its address opened for reading only, and never the place that an import writes to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, InvalidRequestError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from memory_engine.errors import ConfigurationError, MissingExtraError
from memory_engine.sql.tables import make_tables

_WAL = 2
"""What a SQLite file says of itself at this place when it keeps a write-ahead log."""
_BESIDE = ("", "-wal", "-shm", "-journal")
"""What SQLite adds to a file's name for those that it writes beside it."""


def read_only_engine(uri: str) -> AsyncEngine:
    """An engine for the source; nothing is opened yet.

    :raises ConfigurationError: it is no address, there is no such file, or no driver for such a database.
    :raises MissingExtraError: its driver is not installed.
    """
    url = read_only_url(uri)
    try:
        engine = create_async_engine(url, poolclass=NullPool)
    except ImportError as error:
        raise MissingExtraError(
            f"The driver of {url.drivername} is not installed: {error}. Install one that is asynchronous, and name it in the "
            "address, such as mysql+aiomysql://."
        ) from error
    except (ArgumentError, InvalidRequestError, NoSuchModuleError, TypeError, ValueError) as error:
        raise ConfigurationError(f"The source needs a driver that is asynchronous, such as mysql+aiomysql: {error}") from error
    return engine


def read_only_url(uri: str) -> URL:
    """The address under which a database is opened for reading: a path, or an address of any driver.

    :raises ConfigurationError: it is no address, or there is no such file.
    :raises MissingExtraError: it is PostgreSQL, and its driver is not installed.
    """
    url = parsed(uri)
    if _is_postgresql(url):
        if find_spec("asyncpg") is None:
            raise MissingExtraError("PostgreSQL needs the driver asyncpg; pip install 'memory-engine-blocks[postgres]'.")
        return url.set(drivername="postgresql+asyncpg")
    if not _is_sqlite(url):
        return url
    path = sqlite_path(url)
    if not path.is_file():
        raise ConfigurationError(f"There is no file {str(path)!r}.")
    return URL.create("sqlite+aiosqlite", database=path.resolve().as_uri(), query=_mode(path.resolve()) | {"uri": "true"})


def parsed(uri: str) -> URL:
    """The address; a path is that of a SQLite file.

    :raises ConfigurationError: it is none.
    """
    if uri.startswith("postgres://"):
        # The short name that many hosts give, and SQLAlchemy does not take.
        uri = f"postgresql{uri.removeprefix('postgres')}"
    try:
        return make_url(uri) if "://" in uri else URL.create("sqlite", database=uri)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(
            f"An address is a path or looks like sqlite:///chat.db; this one is neither: {_hidden(uri)}"
        ) from error


def sqlite_path(url: URL) -> Path:
    """The file of a SQLite address, in any of its forms."""
    database = url.database or ""
    if not database.startswith("file:"):
        return Path(database)
    plain = unquote(database.removeprefix("file:").partition("?")[0].partition("#")[0])
    # file:///path and file://localhost/path have an authority before the path.
    return Path("/" + plain[2:].partition("/")[2] if plain.startswith("//") else plain)


def check_apart(source: str, to: str, *, tables: Iterable[str], table_prefix: str) -> None:
    """See to it that nothing of the source is written to. `tables` are those that it is read from, if it has any.

    Another table of the same PostgreSQL database is left alone, so it may be the source. A SQLite file is written as a whole.

    :raises ConfigurationError: the target is the source, or would write beside it.
    """
    target = parsed(to) if "://" in to else None
    if target is None:
        return  # The engine refuses it, by name.
    if _is_postgresql(target):
        _check_tables(source, tables, table_prefix)
    elif _is_sqlite(target):
        path = sqlite_path(target)
        for file in _files(source):
            if any(_same(_named(file, end), _named(path, other)) for end in _BESIDE for other in _BESIDE if "" in (end, other)):
                raise ConfigurationError(
                    f"--to is the source: {str(file)!r} would be written to. Give it a file of its own, such as "
                    "sqlite+aiosqlite:///memory.db."
                )


def _check_tables(source: str, tables: Iterable[str], table_prefix: str) -> None:
    if "://" not in source or not _is_postgresql(parsed(source)):
        return
    # Whether two addresses are one server cannot be told: it may have several names, and stand behind others.
    if both := sorted(make_tables(table_prefix).names.intersection(tables)):
        raise ConfigurationError(
            f"The source's table {both[0]!r} has the name of one of ours: if both are in one database, it would be written to. "
            "Give another --table-prefix."
        )


def _files(source: str) -> list[Path]:
    """The files that a source is read from."""
    if "://" in source:
        return [sqlite_path(parsed(source))] if source.startswith("sqlite") else []
    path = Path(source)
    return sorted(path.glob("*.json")) if path.is_dir() else [path]


def _named(path: Path, end: str) -> Path:
    """The file itself, or one that SQLite keeps beside it: beside the real one, if it is a link."""
    return Path(f"{path.resolve()}{end}") if end else path


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return one.resolve() == other.resolve()


def _is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


def _is_postgresql(url: URL) -> bool:
    return url.get_backend_name() == "postgresql"


def _hidden(uri: str) -> str:
    """The address without what may be a password."""
    return repr(uri.partition("://")[0][:40] + "://..." if "://" in uri else uri[:80])


def _mode(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        header = file.read(20)
    logged = len(header) == 20 and header[18] == _WAL
    log = path.with_name(path.name + "-wal")
    if logged and not log.exists() and not os.access(path.parent, os.W_OK):
        # SQLite would have to make a log's index beside it; without a log nobody is writing, and none is needed.
        return {"immutable": "1"}
    return {"mode": "ro"}
