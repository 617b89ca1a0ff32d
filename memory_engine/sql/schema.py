"""Creating, checking and upgrading the tables. `connect` creates and checks; upgrading is always asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from zlib import crc32

from sqlalchemy import Connection, func, insert, inspect, select, update
from sqlalchemy.exc import DatabaseError

from memory_engine.errors import SchemaVersionError, StoreUnreadableError
from memory_engine.sql.connections import Connections, open_connections
from memory_engine.sql.tables import SCHEMA_VERSION, Tables, make_tables

Upgrade = Callable[[Connection, Tables], None]

UPGRADES: Mapping[int, Upgrade] = {}
"""The step that leads from a version to the next one, by the version it starts from."""


def read_version(connection: Connection, tables: Tables) -> int | None:
    """The version of the stored schema; None when the database has none of our tables.

    :raises StoreUnreadableError: tables of our names are there, but they are not ours.
    """
    found = tables.names.intersection(inspect(connection).get_table_names())
    if not found:
        return None
    if tables.schema.name not in found:
        raise StoreUnreadableError(_foreign(found))
    try:
        versions = connection.execute(select(tables.schema.c.version)).scalars().all()
    except DatabaseError as error:
        if "no such column" not in str(error.orig) and "does not exist" not in str(error.orig):
            raise
        raise StoreUnreadableError(_foreign(found)) from error
    if len(versions) != 1 or not isinstance(versions[0], int):
        raise StoreUnreadableError(_foreign(found))
    if versions[0] == SCHEMA_VERSION and found != tables.names:
        missing = ", ".join(sorted(tables.names - found))
        raise StoreUnreadableError(f"Tables are missing from the database: {missing}. Restore it from a backup.")
    return versions[0]


def _foreign(found: frozenset[str]) -> str:
    names = ", ".join(sorted(found))
    return f"The database has tables of our names that are not ours ({names}); use another table_prefix or database."


def create(connection: Connection, tables: Tables) -> None:
    """Create everything, unless another process did so meanwhile."""
    _alone(connection, tables)
    if read_version(connection, tables) is None:
        tables.metadata.create_all(connection, checkfirst=False)
        connection.execute(insert(tables.schema).values(version=SCHEMA_VERSION))


def _alone(connection: Connection, tables: Tables) -> None:
    """Keep other processes from creating or upgrading these tables to the end of the transaction, as SQLite does by itself."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(crc32(f"memory_engine {tables.schema.name}".encode()))))


def check_version(version: int) -> None:
    """Refuse any version but this code's; raises `SchemaVersionError` with what to do."""
    if version < SCHEMA_VERSION:
        raise SchemaVersionError(
            f"The database has schema version {version}, this package needs {SCHEMA_VERSION}; "
            "make a backup, then run `python -m memory_engine upgrade URI`."
        )
    if version > SCHEMA_VERSION:
        raise SchemaVersionError(
            f"The database has schema version {version}, this package knows versions up to {SCHEMA_VERSION}; "
            "update `memory-engine-blocks`."
        )


async def ensure_schema(connections: Connections, tables: Tables) -> None:
    """Create the tables if there are none, and check their version."""
    version = await connections.read_together(read_version, tables)
    if version is None:
        await connections.write(create, tables)
        version = await connections.read_together(read_version, tables)
    check_version(version or 0)


def upgrade(connection: Connection, tables: Tables, upgrades: Mapping[int, Upgrade] = UPGRADES) -> tuple[int, int]:
    """Bring the tables to this code's version, creating them if there are none; returns the versions before and after."""
    _alone(connection, tables)
    before = read_version(connection, tables)
    if before is None:
        create(connection, tables)
        return 0, SCHEMA_VERSION
    if before > SCHEMA_VERSION:
        check_version(before)
    for version in range(before, SCHEMA_VERSION):
        if version not in upgrades:
            raise SchemaVersionError(f"There is no upgrade from schema version {version}; restore a newer backup.")
        upgrades[version](connection, tables)
        connection.execute(update(tables.schema).values(version=version + 1))
    return before, SCHEMA_VERSION


async def upgrade_database(uri: str, *, table_prefix: str = "memory_") -> tuple[int, int]:
    """Upgrade the database at `uri` in one transaction; returns the versions before and after."""
    connections = open_connections(uri, async_engine=None, synchronous="FULL", busy_timeout=30.0)
    try:
        return await connections.write(upgrade, make_tables(table_prefix))
    finally:
        await connections.aclose()
