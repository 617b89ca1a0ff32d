"""The databases of these tests, and a look into them past all of the engine's code."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

Database = Path | str
"""A file of SQLite, or the address of a PostgreSQL database."""

BOTH = ("sqlite", "postgresql")
BOTH_IN_SOAK = ("sqlite", pytest.param("postgresql", marks=pytest.mark.soak))
"""Kinds of databases: `@pytest.mark.parametrize("database_kind", BOTH, indirect=True)`."""


def uri_of(database: Database) -> str:
    """What an engine is given."""
    return database if isinstance(database, str) else f"sqlite+aiosqlite:///{database}"


def database_of(text: str) -> Database:
    """What a program was given as an argument."""
    return text if "://" in text else Path(text)


def in_thread(work: Callable[[], T]) -> T:
    """Run in a thread of its own, where another event loop may run; ours waits."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def rows(database: Database, query: str, *values: object) -> list[tuple[Any, ...]]:
    """What the database says; parameters are written `?`."""
    if isinstance(database, Path):
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return connection.execute(query, values).fetchall()
    return in_thread(lambda: asyncio.run(_rows(database, query, values)))


def execute(database: Database, statement: str, *values: object) -> None:
    """Change something behind the engine's back; nothing that waits for others, who may be waiting for us."""
    if isinstance(database, Path):
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute(statement, values)
    else:
        in_thread(lambda: asyncio.run(_rows(database, statement, values)))


async def _rows(uri: str, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
    import asyncpg

    parts = query.split("?")
    numbers = count(1)
    numbered = parts[0] + "".join(f"${next(numbers)}{part}" for part in parts[1:])
    connection = await asyncpg.connect(uri.replace("postgresql+asyncpg", "postgresql", 1))
    try:
        return [tuple(row) for row in await connection.fetch(numbered, *values)]
    finally:
        await connection.close()


def tables(database: Database) -> list[str]:
    """The names of all tables of ours."""
    if isinstance(database, Path):
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'memory_%'"
    else:
        query = "SELECT tablename FROM pg_tables WHERE tablename LIKE 'memory\\_%'"
    return [name for (name,) in rows(database, query)]


def flushed(database: Database, session: str, tenant: str = "") -> list[str]:
    """The lines that blocks must have written down about a session, in order."""
    found = rows(
        database,
        "SELECT m.seq, m.message_id FROM memory_messages m JOIN memory_sessions s ON s.pk = m.session_pk "
        "WHERE s.session_id = ? AND s.tenant = ? AND m.seq < s.horizon "
        "AND m.role NOT IN ('system', 'developer') ORDER BY m.seq",
        session,
        tenant,
    )
    return [f"{session}/{seq}/{message_id}" for seq, message_id in found]


def audit(database: Database) -> None:
    """Assert that the sums, horizons, cursors and owners in the database agree with each other."""
    for pk, uid, next_seq, horizon, active, turns_ in rows(
        database, "SELECT pk, uid, next_seq, horizon, active_tokens, active_turns FROM memory_sessions"
    ):
        stored = rows(database, "SELECT seq, role, pinned, tokens FROM memory_messages WHERE session_pk = ?", pk)
        assert active == sum(t for seq, _, pinned, t in stored if seq >= horizon and not pinned), f"active_tokens of {uid}"
        assert turns_ == sum(role == "user" for seq, role, pinned, _ in stored if seq >= horizon and not pinned), (
            f"active_turns of {uid}"
        )
        assert next_seq > max((seq for seq, *_ in stored), default=-1)
        assert 0 <= horizon <= next_seq
        ends = [end for (end,) in rows(database, "SELECT end_seq FROM memory_flushes WHERE session_pk = ?", pk)]
        assert max(ends, default=0) <= horizon
        for block, cursor, target in rows(
            database, "SELECT block, cursor, target FROM memory_block_cursors WHERE session_pk = ?", pk
        ):
            assert 0 <= cursor <= target <= horizon, f"cursor of {block} in {uid}"
    for table in ("messages", "flushes", "block_cursors", "parked"):
        lost = f"SELECT COUNT(*) FROM memory_{table} WHERE session_pk NOT IN (SELECT pk FROM memory_sessions)"
        assert rows(database, lost) == [(0,)], f"{table} without a session"
    uids = {uid for (uid,) in rows(database, "SELECT uid FROM memory_sessions")}
    for table in ("block_states", "block_records"):
        for (key,) in rows(database, f"SELECT DISTINCT scope_key FROM memory_{table} WHERE scope_key LIKE 's:%'"):
            assert key.rsplit(":", 1)[1] in uids, f"{table} of the erased session {key}"


def leaks(database: Database, markers: Sequence[str]) -> dict[str, list[str]]:
    """Which of the markers are still in which tables."""
    found: dict[str, list[str]] = {}
    for table in tables(database):
        text = "\n".join(map(repr, rows(database, f'SELECT * FROM "{table}"')))
        if seen := [marker for marker in markers if marker in text]:
            found[table] = seen
    return found


def raw_leaks(database: Database, markers: Sequence[str]) -> dict[str, list[str]]:
    """Which of the markers are still in the bytes of the file, its log, or anything beside it; what PostgreSQL keeps is its."""
    if isinstance(database, str):
        return {}
    found: dict[str, list[str]] = {}
    for path in sorted(database.parent.glob(database.name + "*")):
        content = path.read_bytes()
        if seen := [marker for marker in markers if marker.encode() in content]:
            found[path.name] = seen
    return found
