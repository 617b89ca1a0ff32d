"""Where a benchmark's databases are: files in a temporary folder, or databases on a PostgreSQL server that writes to disk."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import make_url

from memory_engine.testing.postgres import PostgresServer

Kind = Literal["sqlite", "postgresql"]


class Databases:
    """Makes databases by name and gives their addresses, for SQLAlchemy with an asynchronous driver."""

    async def make(self, name: str) -> str:
        """A new, empty one."""
        raise NotImplementedError

    async def settle(self, uri: str) -> None:
        """Do now what the database would do by itself some time after it was filled."""

    async def copy(self, uri: str, name: str) -> str:
        """A copy of one that nobody has open."""
        raise NotImplementedError

    async def remove(self, uri: str) -> None:
        """Remove one that nobody has open."""
        raise NotImplementedError

    async def rest(self) -> None:
        """Let what was written so far be written to its end, so that it does not disturb what is measured next."""

    async def settings(self) -> dict[str, str]:
        """What decides how long a commit takes."""
        return {}


class SqliteFiles(Databases):
    """One file for each database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _uri(self, name: str) -> str:
        return f"sqlite+aiosqlite:///{self._folder / name}.db"

    async def make(self, name: str) -> str:
        return self._uri(name)

    async def copy(self, uri: str, name: str) -> str:
        await asyncio.to_thread(shutil.copyfile, sqlite_path(uri), sqlite_path(self._uri(name)))
        return self._uri(name)

    async def remove(self, uri: str) -> None:
        for ending in ("", "-wal", "-shm"):
            sqlite_path(uri + ending).unlink(missing_ok=True)


class PostgresDatabases(Databases):
    """Databases of one PostgreSQL server, whose address is that of any database there."""

    def __init__(self, uri: str) -> None:
        self._server = make_url(uri).set(drivername="postgresql+asyncpg")
        self._made: list[str] = []

    async def make(self, name: str) -> str:
        return await self._create(name, "")

    async def settle(self, uri: str) -> None:
        """What autovacuum would have done by then: without statistics, plans are a matter of luck."""
        await self._execute("VACUUM (ANALYZE)", uri)

    async def copy(self, uri: str, name: str) -> str:
        return await self._create(name, f"TEMPLATE {make_url(uri).database}")

    async def remove(self, uri: str) -> None:
        await self._execute(f"DROP DATABASE IF EXISTS {make_url(uri).database} WITH (FORCE)")
        self._made.remove(uri)

    async def rest(self) -> None:
        with suppress(_error("InsufficientPrivilegeError")):
            await self._execute("CHECKPOINT")

    async def settings(self) -> dict[str, str]:
        names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
        return {name: await self._execute(f"SHOW {name}") for name in names}

    async def drop(self) -> None:
        """Remove all that were made."""
        for uri in list(self._made):
            await self.remove(uri)

    async def _create(self, name: str, how: str) -> str:
        database = f"bench_{os.getpid()}_{name}".replace("-", "_")
        await self._execute(f"CREATE DATABASE {database} {how}")
        self._made.append(self._server.set(database=database).render_as_string(hide_password=False))
        return self._made[-1]

    async def _execute(self, statement: str, uri: str | None = None) -> str:
        """Run a statement in a session of its own; the first value that it returned."""
        import asyncpg

        connection = await asyncpg.connect(driver_address(uri or self._server.render_as_string(hide_password=False)))
        try:
            # Not as a prepared statement: those run in a transaction, where databases cannot be made.
            if not statement.startswith("SHOW"):
                await connection.execute(statement)
                return ""
            return str(await connection.fetchval(statement))
        finally:
            await connection.close()


def sqlite_path(uri: str) -> Path:
    """The file of a database by its address."""
    return Path(uri.partition(":///")[2])


def driver_address(uri: str) -> str:
    """The address of a PostgreSQL database as asyncpg itself takes it."""
    return make_url(uri).set(drivername="postgresql").render_as_string(hide_password=False)


def _error(name: str) -> Any:
    import asyncpg

    return getattr(asyncpg, name)


@asynccontextmanager
async def databases_of(kind: Kind, uri: str | None = None) -> AsyncIterator[Databases]:
    """Databases for one run; nothing of them is left.

    PostgreSQL is the server at `uri`, else one that is started here with the defaults of its makers: fsync on.
    """
    if kind == "sqlite":
        with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
            yield SqliteFiles(Path(folder))
    elif uri is None:
        with PostgresServer(fsync=True, shared_buffers="128MB") as server:
            yield PostgresDatabases(server.uri())
    else:
        databases = PostgresDatabases(uri)
        try:
            yield databases
        finally:
            await databases.drop()
