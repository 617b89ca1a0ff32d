"""What is particular to SQLite: files, processes, locks, damage, and the plans of the hot queries."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.ext.asyncio import create_async_engine

from memory_engine.__main__ import main
from memory_engine.errors import (
    ClosedError,
    ConfigurationError,
    MessageConflictError,
    SchemaVersionError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    StoreUnreadableError,
)
from memory_engine.sql import SqlStore
from memory_engine.sql.schema import upgrade
from memory_engine.sql.tables import SCHEMA_VERSION
from memory_engine.store import BlockTarget, Draft, FlushPolicy, RecordRow, SessionSpec, StateChange

ROOMY = FlushPolicy(threshold=10**9, flush_size=1000)
SPEC = SessionSpec("t", "s", "u", "tok")
PROJECT = Path(__file__).parents[2]

APPEND_MANY = """
import asyncio, sys
from memory_engine.sql import SqlStore
from memory_engine.store import Draft, FlushPolicy, SessionSpec

async def run(path, writer, count):
    store = SqlStore(f"sqlite+aiosqlite:///{path}")
    await store.connect()
    known = None
    for n in range(count):
        draft = Draft(f"{writer}-{n}", "user", 10, "{}", 1)
        policy = FlushPolicy(10**9, 1000)
        result = await store.append(SessionSpec("t", "s", "u", "tok"), [draft], policy, now=1, known=known)
        known = result.session
    await store.aclose()

asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def draft(name: str, role: str = "user", tokens: int = 10, data: str = "{}") -> Draft:
    return Draft(name, role, tokens, data, 1)


def uri(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memory.db"


@asynccontextmanager
async def opened(location: str | None, **options: Any) -> AsyncIterator[SqlStore]:
    store = SqlStore(location, **options)
    try:
        await store.connect()
        yield store
    finally:
        await store.aclose()


async def stored(store: SqlStore) -> list[str]:
    session = (await store.snapshot(SPEC)).session
    return [row.message_id for row in await store.all_rows(session)] if session else []


def run_processes(path: Path, count: int, each: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-W", "error", "-c", APPEND_MANY, str(path)]
    running = [subprocess.Popen([*command, f"p{n}", str(each)], env=environment) for n in range(count)]
    assert [process.wait(timeout=120) for process in running] == [0] * count


def check_order(names: list[str], writers: list[str], each: int) -> None:
    for writer in writers:
        assert [name for name in names if name.startswith(f"{writer}-")] == [f"{writer}-{n}" for n in range(each)]
    assert len(names) == len(writers) * each


# -- many writers --------------------------------------------------------------------------------------------


async def test_first_use_by_four_processes(path: Path, scale: int) -> None:
    for attempt in range(scale):
        fresh = path.with_name(f"first-{attempt}.db")
        await asyncio.to_thread(run_processes, fresh, 4, 1)
        async with opened(uri(fresh)) as store:
            assert sorted(await stored(store)) == [f"p{n}-0" for n in range(4)]


async def test_four_processes_keep_order_and_lose_nothing(path: Path) -> None:
    await asyncio.to_thread(run_processes, path, 4, 100)
    async with opened(uri(path)) as store:
        check_order(await stored(store), [f"p{n}" for n in range(4)], 100)
        session = (await store.snapshot(SPEC)).session
        assert session is not None
        assert [row.seq for row in await store.all_rows(session)] == list(range(400))
        assert (session.active_tokens, session.active_turns) == (4000, 400)


async def test_eight_tasks_keep_order_and_lose_nothing(path: Path) -> None:
    async with opened(uri(path)) as one, opened(uri(path)) as two:

        async def write(store: SqlStore, writer: str) -> None:
            known = None
            for n in range(100):
                known = (await store.append(SPEC, [draft(f"{writer}-{n}")], ROOMY, now=1, known=known)).session

        await asyncio.gather(*(write((one, two)[n % 2], f"w{n}") for n in range(8)))
        check_order(await stored(one), [f"w{n}" for n in range(8)], 100)


# -- cancellation --------------------------------------------------------------------------------------------


async def test_cancelled_appends_happen_wholly_or_not_at_all(path: Path) -> None:
    async with opened(uri(path)) as store:
        await store.append(SPEC, [draft("first")], ROOMY, now=1)
        for steps in range(60):
            batch = [draft(f"{steps}-a"), draft(f"{steps}-b")]
            task = asyncio.create_task(store.append(SPEC, batch, ROOMY, now=1))
            for _ in range(steps):
                await asyncio.sleep(0)
            if steps % 3 == 0:
                await asyncio.sleep(0.0001 * steps)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert (await store.append(SPEC, [draft(f"after-{steps}")], ROOMY, now=1)).session.next_seq > 0
        names = await stored(store)
        for steps in range(60):
            pair = [name for name in names if name.startswith(f"{steps}-")]
            assert pair in ([], [f"{steps}-a", f"{steps}-b"])
            assert f"after-{steps}" in names
        assert sum(name.endswith("-a") for name in names) > 10
        session = (await store.snapshot(SPEC)).session
        assert session is not None
        assert session.next_seq == len(names)
        assert session.active_tokens == 10 * len(names)


async def test_who_is_cancelled_in_the_queue_writes_nothing(path: Path) -> None:
    async with opened(uri(path)) as store:
        tasks = [asyncio.create_task(store.append(SPEC, [draft(f"m{n}")], ROOMY, now=1)) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[5:]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await stored(store) == [f"m{n}" for n in range(5)]


async def test_cancelled_reads_leave_connections_usable(path: Path) -> None:
    async with opened(uri(path)) as store:
        session = (await store.append(SPEC, [draft(f"m{n}") for n in range(50)], ROOMY, now=1)).session
        for steps in range(40):
            tasks = [asyncio.create_task(store.visible_rows(session)) for _ in range(6)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert len(await store.visible_rows(session)) == 50


async def test_closing_waits_for_what_runs(path: Path) -> None:
    store = SqlStore(uri(path))
    await store.connect()
    task = asyncio.create_task(store.append(SPEC, [draft("m")], ROOMY, now=1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await store.aclose()
    await task
    with pytest.raises(ClosedError):
        await store.append(SPEC, [draft("late")], ROOMY, now=1)
    async with opened(uri(path)) as again:
        assert await stored(again) == ["m"]


# -- files ---------------------------------------------------------------------------------------------------


async def test_files_are_private(path: Path) -> None:
    before = os.umask(0)
    try:
        async with opened(uri(path)) as store:
            await store.append(SPEC, [draft("m")], ROOMY, now=1)
            files = sorted(path.parent.iterdir())
            assert [file.name for file in files] == ["memory.db", "memory.db-shm", "memory.db-wal"]
            assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * 3
    finally:
        os.umask(before)


async def test_the_mode_of_an_existing_file_is_its_owners(path: Path) -> None:
    path.touch(0o640)
    path.chmod(0o640)
    async with opened(uri(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


async def test_ways_to_name_a_database(tmp_path: Path) -> None:
    for number, location in enumerate(
        (
            f"sqlite:///{tmp_path}/plain.db",
            f"sqlite+aiosqlite:///file:{tmp_path}/query.db?uri=true&mode=rwc",
            f"sqlite+aiosqlite:///file:{tmp_path}/a%20b.db?uri=true",
            "sqlite+aiosqlite:///:memory:",
            "sqlite+aiosqlite://",
        )
    ):
        async with opened(location) as store:
            await store.append(SPEC, [draft(f"m{number}")], ROOMY, now=1)
            assert await stored(store) == [f"m{number}"]
    assert stat.S_IMODE((tmp_path / "query.db").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "plain.db").stat().st_mode) == 0o600


async def test_a_shared_memory_database(tmp_path: Path) -> None:
    location = "sqlite+aiosqlite:///file:shared?mode=memory&cache=shared&uri=true"
    async with opened(location) as one, opened(location) as two:
        await one.append(SPEC, [draft("m")], ROOMY, now=1)
        assert await stored(two) == ["m"]


async def test_stores_in_memory_are_apart() -> None:
    async with opened(None) as one, opened(None) as two:
        await one.append(SPEC, [draft("one")], ROOMY, now=1)
        assert await stored(two) == []
        await asyncio.gather(*(one.append(SPEC, [draft(f"m{n}")], ROOMY, now=1) for n in range(20)))
        assert len(await stored(one)) == 21


def test_wrong_arguments_are_refused(path: Path) -> None:
    for location in ("nonsense", "mysql://localhost/x", "sqlite+pysqlcipher:///x", "postgresql+nothing://x/y"):
        with pytest.raises(ConfigurationError):
            SqlStore(location)
    for options in ({"table_prefix": "a-b"}, {"table_prefix": ""}, {"sqlite_synchronous": "x"}, {"busy_timeout": -1.0}):
        with pytest.raises(ConfigurationError):
            SqlStore(uri(path), **options)
    assert not path.exists()


async def test_a_primary_key_is_never_used_again(path: Path) -> None:
    async with opened(uri(path)) as store:
        first = (await store.append(SPEC, [draft("m")], ROOMY, now=1)).session
        assert await store.delete_session("t", "s")
    async with opened(uri(path)) as store:
        assert (await store.append(SPEC, [draft("m")], ROOMY, now=1)).session.pk > first.pk


async def test_two_prefixes_in_one_database(path: Path) -> None:
    async with opened(uri(path), table_prefix="a_") as one, opened(uri(path), table_prefix="b_") as two:
        await one.append(SPEC, [draft("m")], ROOMY, now=1)
        assert await stored(two) == []


# -- what can be wrong with a database -----------------------------------------------------------------------


def change_schema(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


async def refused(location: str, **options: Any) -> StoreError:
    store = SqlStore(location, **options)
    with pytest.raises(StoreError) as caught:
        await store.connect()
    await store.aclose()
    return caught.value


async def test_newer_and_older_schemas_are_refused(path: Path) -> None:
    async with opened(uri(path)):
        pass
    change_schema(path, f"UPDATE memory_schema SET version = {SCHEMA_VERSION + 1}")
    newer = await refused(uri(path))
    assert isinstance(newer, SchemaVersionError) and "update `memory-engine-blocks`" in str(newer)
    change_schema(path, f"UPDATE memory_schema SET version = {SCHEMA_VERSION - 1}")
    older = await refused(uri(path))
    assert isinstance(older, SchemaVersionError) and "python -m memory_engine upgrade" in str(older)


async def test_foreign_tables_are_refused(path: Path) -> None:
    for statement in ("CREATE TABLE memory_sessions (x)", "CREATE TABLE memory_schema (x)"):
        path.unlink(missing_ok=True)
        change_schema(path, statement)
        assert isinstance(await refused(uri(path)), StoreUnreadableError)
    path.unlink()
    async with opened(uri(path)):
        pass
    change_schema(path, "DROP TABLE memory_parked")
    assert "memory_parked" in str(await refused(uri(path)))


async def test_tables_of_others_do_not_matter(path: Path) -> None:
    change_schema(path, "CREATE TABLE customers (x)")
    async with opened(uri(path)) as store:
        await store.append(SPEC, [draft("m")], ROOMY, now=1)


async def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.db"
    garbage.write_bytes(b"this is not a database" * 100)
    error = await refused(uri(garbage))
    assert isinstance(error, StoreUnreadableError) and isinstance(error.__cause__, sqlite3.DatabaseError)
    assert isinstance(await refused(uri(tmp_path / "nowhere" / "memory.db")), StoreUnreadableError)
    assert isinstance(await refused(uri(tmp_path)), StoreUnreadableError)
    readonly = await refused(f"sqlite+aiosqlite:///file:{tmp_path}/none.db?mode=ro&uri=true")
    assert isinstance(readonly, StoreUnreadableError)


async def test_a_damaged_page_is_reported(path: Path) -> None:
    async with opened(uri(path)) as store:
        session = (await store.append(SPEC, [draft(f"m{n}", data="x" * 500) for n in range(200)], ROOMY, now=1)).session
    content = bytearray(path.read_bytes())
    for page in range(20, len(content) // 4096):
        content[page * 4096 : page * 4096 + 200] = b"\xff" * 200
    path.write_bytes(content)
    store = SqlStore(uri(path))
    try:
        with pytest.raises(StoreUnreadableError):
            await store.all_rows(session)
    finally:
        await store.aclose()


async def test_a_locked_database(path: Path) -> None:
    async with opened(uri(path), busy_timeout=0.05) as store:
        await store.append(SPEC, [draft("m0")], ROOMY, now=1)
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusyError) as caught:
            await store.append(SPEC, [draft("m1")], ROOMY, now=1)
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert await stored(store) == ["m0"]
        blocker.execute("ROLLBACK")
        blocker.close()
        await store.append(SPEC, [draft("m2")], ROOMY, now=1)
        assert await stored(store) == ["m0", "m2"]


async def test_a_full_disk(path: Path) -> None:
    async with opened(uri(path)):
        pass
    engine = create_async_engine(uri(path))
    limit = [200]

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA max_page_count = {limit[0]}")
        cursor.close()

    async with opened(None, async_engine=engine) as store:
        done = 0

        async def fill() -> None:
            nonlocal done
            while True:
                await store.append(SPEC, [draft(f"m{done}", data="x" * 20_000)], ROOMY, now=1)
                done += 1

        with pytest.raises(StoreFullError):
            await fill()
        assert done > 10
        assert await stored(store) == [f"m{n}" for n in range(done)]
        await store.append(SPEC, [draft("small")], ROOMY, now=1)
        session = (await store.snapshot(SPEC)).session
        assert session is not None and session.next_seq == done + 1
    await engine.dispose()


async def test_a_given_engine_stays_open_and_in_order(path: Path) -> None:
    engine = create_async_engine(uri(path))
    async with opened(None, async_engine=engine) as store:
        await store.append(SPEC, [draft("m")], ROOMY, now=1)
        async with engine.begin() as connection:
            await connection.exec_driver_sql("CREATE TABLE mine (x)")
    async with engine.connect() as connection:
        await connection.exec_driver_sql("INSERT INTO mine VALUES (1)")
        await connection.rollback()
        assert (await connection.exec_driver_sql("SELECT count(*) FROM mine")).scalar() == 0
    await engine.dispose()


async def test_an_engine_whose_listeners_begin_transactions(path: Path) -> None:
    engine = create_async_engine(uri(path))

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    async with opened(None, async_engine=engine) as store:
        for n in range(3):
            await store.append(SPEC, [draft(f"m{n}")], ROOMY, now=1)
        assert await stored(store) == ["m0", "m1", "m2"]
        async with engine.begin() as connection:
            await connection.exec_driver_sql("CREATE TABLE mine (x)")
    await engine.dispose()


# -- upgrading -----------------------------------------------------------------------------------------------


def test_the_upgrade_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upgrade", uri(path)]) == 0
    assert main(["upgrade", uri(path)]) == 0
    assert "already" in capsys.readouterr().out
    change_schema(path, f"UPDATE memory_schema SET version = {SCHEMA_VERSION + 1}")
    assert main(["upgrade", uri(path)]) == 1
    assert "error: " in capsys.readouterr().err
    assert main(["upgrade", uri(path.parent / "nowhere" / "x.db")]) == 1
    with pytest.raises(SystemExit):
        main([])


async def test_upgrades_run_in_order_in_one_transaction(path: Path) -> None:
    async with opened(uri(path)) as store:
        pass
    change_schema(path, f"UPDATE memory_schema SET version = {SCHEMA_VERSION - 2}")
    steps: list[int] = []

    def step(number: int) -> Any:
        def run(connection: Connection, tables: Any) -> None:
            steps.append(number)
            connection.exec_driver_sql(f"CREATE TABLE step{number} (x)")

        return run

    upgrades = {number: step(number + 100) for number in range(SCHEMA_VERSION - 2, SCHEMA_VERSION)}
    store = SqlStore(uri(path))
    with pytest.raises(SchemaVersionError):
        await store._connections.write(upgrade, store._tables, {SCHEMA_VERSION - 2: upgrades[SCHEMA_VERSION - 2]})
    assert await store._connections.write(upgrade, store._tables, upgrades) == (SCHEMA_VERSION - 2, SCHEMA_VERSION)
    assert steps == [SCHEMA_VERSION + 98, SCHEMA_VERSION + 98, SCHEMA_VERSION + 99]
    await store.connect()
    await store.aclose()


# -- plans ---------------------------------------------------------------------------------------------------


async def plan(store: SqlStore, statement: Any) -> str:
    """What SQLite would do, one line for each step."""
    compiled = statement.compile(dialect=sqlite.dialect(paramstyle="named"))
    lists = compiled.literal_execute_params | compiled.post_compile_params
    given = {one.key: 1 if one.value is None else one.value for one in compiled.binds.values() if one not in lists}
    given |= {one.key: one.value or ["a", "b"] for one in compiled.post_compile_params}
    state = compiled.construct_expanded_state(given)

    def explain(connection: Connection) -> str:
        raw = connection.connection.cursor()
        raw.execute(f"EXPLAIN QUERY PLAN {state.statement}", state.parameters)
        lines = [row[3] for row in raw.fetchall()]
        raw.close()
        return "\n".join(lines)

    return await store._connections.read(explain)


def check_plan(text: str, *expected: str) -> None:
    for words in expected:
        assert words in text, text
    scans = [line for line in text.splitlines() if line.startswith("SCAN")]
    assert set(scans) <= {"SCAN CONSTANT ROW", "SCAN one"}, text


@pytest.fixture
async def seeded(path: Path) -> AsyncIterator[SqlStore]:
    blocks = tuple(BlockTarget(name, scope) for name, scope in (("a", "session"), ("b", "global")))
    async with opened(uri(path)) as store:
        for n in range(30):
            spec = replace(SPEC, session_id=f"s{n}", blocks=blocks)
            await store.append(spec, [draft(f"m{i}") for i in range(40)], FlushPolicy(100, 100), now=1)
        lease = await store.lease("g:1:t", "b", seconds=60)
        assert lease is not None
        records = tuple(RecordRow(f"k{n}", "{}") for n in range(200))
        await store.commit_change(lease, StateChange(put=records), session=None)
        await store._connections.write(lambda connection: connection.exec_driver_sql("ANALYZE") and None)
        yield store


async def test_plans_of_the_conversation(seeded: SqlStore) -> None:
    conversation, reading, flushing = seeded._conversation, seeded._reading, seeded._flushing
    check_plan(await plan(seeded, conversation._grow), "SEARCH memory_sessions USING INTEGER PRIMARY KEY")
    check_plan(await plan(seeded, reading._session), "USING INDEX memory_sessions_id (tenant=? AND session_id=?)")
    check_plan(await plan(seeded, reading._snapshot), "memory_sessions_id", "block_states", "memory_parked_session")
    visible = await plan(seeded, reading._visible)
    check_plan(visible, "(session_pk=? AND seq>? AND seq<?)", "(session_pk=? AND seq=?)", "memory_messages_pinned")
    assert "TEMP B-TREE" not in visible
    check_plan(await plan(seeded, reading._newest), "(session_pk=? AND seq>? AND seq<?)")
    check_plan(await plan(seeded, flushing._light), "(session_pk=? AND seq>? AND seq<?)")
    check_plan(await plan(seeded, conversation._pinned), "memory_messages_pinned")
    check_plan(await plan(seeded, conversation._sums), "(session_pk=? AND seq>?)")
    check_plan(await plan(seeded, conversation._by_id), "memory_messages_id (session_pk=? AND message_id=?)")


async def test_plans_of_listing_and_records(seeded: SqlStore) -> None:
    options: dict[str, Any] = {"prefix": "s", "user_id": None, "inactive_before": None, "limit": 10, "after": "s1"}
    listing = seeded._reading.listing_statement
    check_plan(await plan(seeded, listing("t", **options)), "memory_sessions_id (tenant=? AND session_id>?")
    by_user = await plan(seeded, listing("t", **options | {"user_id": "u"}))
    check_plan(by_user, "memory_sessions_")
    for text in (await plan(seeded, listing("t", **options)), by_user):
        assert "TEMP B-TREE" not in text
    records = seeded._states._read_records
    check_plan(
        await plan(seeded, records(frozenset({"prefix", "prefix_end"}))), "(scope_key=? AND block=? AND key>? AND key<?)"
    )
    check_plan(await plan(seeded, records(frozenset({"changed_since"}))), "memory_block_records_version")
    check_plan(await plan(seeded, records(frozenset({"after_key", "limit"}))), "(scope_key=? AND block=? AND key>?)")


async def test_a_known_session_is_appended_to_by_two_statements(path: Path) -> None:
    async with opened(uri(path)) as store:
        known = (await store.append(SPEC, [draft("first")], ROOMY, now=1)).session
        seen: list[str] = []

        def note(statement: str) -> None:
            seen.append(statement.split(maxsplit=1)[0])

        def listen(connection: Connection) -> None:
            raw: Any = connection.connection.dbapi_connection
            raw.set_trace_callback(note)

        await store._connections.write(listen)
        seen.clear()
        await store.append(SPEC, [draft("a"), draft("b")], ROOMY, now=1, known=known)
        assert seen == ["BEGIN", "UPDATE", "INSERT", "INSERT", "COMMIT"]
        await store._connections.read(listen)
        seen.clear()
        await store.snapshot(SPEC)
        await store.snapshot(replace(SPEC, blocks=(BlockTarget("a", "session"),)))
        assert seen == ["SELECT", "SELECT"]


async def test_an_engine_of_the_users_sees_every_statement(path: Path) -> None:
    """Whoever listens to their own engine (to log or to measure) hears what this package does with it."""
    engine, seen = create_async_engine(uri(path)), list[str]()

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        seen.append(statement.split(maxsplit=1)[0])

    store = SqlStore(async_engine=engine)
    known = (await store.append(SPEC, [draft("first")], ROOMY, now=1)).session
    seen.clear()
    await store.append(SPEC, [draft("a"), draft("b")], ROOMY, now=1, known=known)
    assert seen == ["UPDATE", "INSERT"]
    await store.aclose()
    await engine.dispose()


async def test_changes_that_wait_are_committed_together(path: Path) -> None:
    """In the order in which they were asked for; one that is refused leaves nothing, and the others go on."""
    async with opened(uri(path)) as store:
        await store.append(SPEC, [draft("taken")._replace(given_id=True)], ROOMY, now=1)
        seen: list[str] = []

        def listen(connection: Connection) -> None:
            raw: Any = connection.connection.dbapi_connection
            raw.set_trace_callback(lambda statement: seen.append(statement.split(maxsplit=1)[0]))

        await store._connections.write(listen)
        seen.clear()
        specs = [replace(SPEC, session_id=f"s{n % 4}") for n in range(40)]
        drafts = [draft(f"m{n}") for n in range(40)]
        drafts[17] = draft("taken")._replace(data='"other"', given_id=True)
        specs[17] = SPEC
        outcomes = await asyncio.gather(
            *(store.append(spec, [one], ROOMY, now=1) for spec, one in zip(specs, drafts, strict=True)), return_exceptions=True
        )
        assert seen.count("COMMIT") <= 4, "the first alone, the others together"
        assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, BaseException)] == [17]
        assert isinstance(outcomes[17], MessageConflictError)
        for number in range(4):
            session = (await store.snapshot(replace(SPEC, session_id=f"s{number}"))).session
            assert session is not None
            rows = await store.all_rows(session)
            assert [row.message_id for row in rows] == [f"m{n}" for n in range(40) if n % 4 == number and n != 17]
        seen.clear()
        await store.append(SPEC, [draft("alone")], ROOMY, now=1)
        assert "SAVEPOINT" not in seen and seen.count("BEGIN") == 1
