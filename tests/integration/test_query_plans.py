"""Every statement on the way of a put, a get, a claim and a listing is answered by an index, however full the tables are.

The statements are those that really run: SQLite counts the steps of its virtual machine for each, PostgreSQL writes the plan
that it used, with the rows it met, to its log (`auto_explain`).
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import aclosing, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from sqlalchemy import Engine, event

from memory_engine import BaseMemoryBlock, ChatMessage, MemoryEngine
from memory_engine.sql import SqlStore
from memory_engine.store import StateChange, WorkFilter
from memory_engine.testing.postgres import PostgresServer

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(900)]

MOST_STEPS = 5_000
"""Steps of SQLite's virtual machine for one statement; reading a row takes some 20."""
MOST_ROWS = 100
"""Rows of big tables that PostgreSQL may meet in one statement."""
BIG = ("sessions", "messages", "flushes", "block_cursors", "block_states", "block_records")
ACTIVE = 10
"""Messages of each session that have not left the FIFO."""


class Noted(BaseMemoryBlock[str]):
    """Absorbs and says nothing."""

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return ""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        """Nothing."""


BLOCKS = (Noted(name="notes"), Noted(name="person", scope="user"), Noted(name="world", scope="global"))
EVERYTHING = WorkFilter(tuple(block.name for block in BLOCKS))


class Size(NamedTuple):
    """How full the tables are."""

    sessions: int
    messages: int


@pytest.fixture(scope="module")
def size(soak: bool) -> Size:
    return Size(10_000, 1_000_000) if soak else Size(4_000, 60_000)


def filling(size: Size) -> list[str]:
    """Statements that fill the tables beside session 1, whose first two messages are copied; both databases understand them.

    A tenth of the sessions is another tenant's, ten sessions belong to each user. In every tenth session something waits for
    its own block, in every fiftieth for the user's, and in more than half of them for the tenant's, which is leased for one
    tenant. Some pairs are backing off, some chunks are parked and some messages are to be forgotten.
    """
    per = size.messages // size.sessions
    horizon, half = per - ACTIVE, (per - ACTIVE) // 2
    uid = "'000000000000000000000000' || CAST(10000000 + n AS TEXT)"
    tenant = "CASE WHEN n % 10 = 9 THEN '5:other' ELSE '0:' END"
    user = f"'user-' || CAST(n % {size.sessions // 10} AS TEXT)"
    scopes = {
        "notes": f"'s:' || {tenant} || ':32:' || {uid}",
        "person": f"'u:' || {tenant} || ':' || CAST(length({user}) AS TEXT) || ':' || {user}",
        "world": f"'g:' || {tenant}",
    }
    waiting = {"notes": "n % 10 = 0", "person": "n % 50 = 0", "world": "n % 2 = 0 OR n % 30 = 9"}

    def insert(table: str, values: Mapping[str, object], where: str = "true", most: int = size.sessions) -> str:
        numbers = f"WITH RECURSIVE numbers(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM numbers WHERE n < {most})"
        # DISTINCT: many sessions share a scope.
        chosen = ", ".join(str(value) for value in values.values())
        return f"INSERT INTO memory_{table} ({', '.join(values)}) {numbers} SELECT DISTINCT {chosen} FROM numbers WHERE {where}"

    named = {"tenant": "CASE WHEN n % 10 = 9 THEN 'other' ELSE '' END", "session_id": "'session-' || CAST(n AS TEXT)"}
    session = {
        **named,
        "pk": "n",
        "uid": uid,
        "epoch": 0,
        "user_id": user,
        "next_seq": per,
        "horizon": horizon,
        "turn_seq": per - 2 + per % 2,
        "active_tokens": 20 * ACTIVE,
        "active_turns": ACTIVE // 2,
        "pinned_tokens": 0,
        "version": 5,
        "revision": 0,
        "tokenizer": "(SELECT tokenizer FROM memory_sessions WHERE pk = 1)",
        "created_at": 0,
        "updated_at": "n",
        "metadata": "'{}'",
        "messages": per,
    }
    message = {
        "session_pk": f"2 + (n - 2) / {per}",
        "seq": f"(n - 2) % {per}",
        "message_id": "'m' || CAST(n AS TEXT)",
        "role": f"CASE WHEN (n - 2) % {per} % 2 = 0 THEN 'user' ELSE 'assistant' END",
        "pinned": 0,
        "tokens": 20,
        "data": f"(SELECT data FROM memory_messages WHERE session_pk = 1 AND seq = (n - 2) % {per} % 2)",
        "created_at": 0,
    }
    own = {"scope_key": scopes["notes"], "block": "'notes'"}
    lease = {"purpose": "'deliver'", "owner": "'somebody'"}
    # Of the pairs that wait, some are being delivered, and some were when their worker died.
    leases = {**own, **lease, "token": "'t' || CAST(n AS TEXT)", "until": "CASE WHEN n % 4 = 0 THEN 9999999999.0 ELSE 1.0 END"}
    of_tenant = {"scope_key": "'g:0:'", "block": "'world'", **lease, "token": "'t'", "until": 9999999999.0}
    failed = {**own, "session_pk": "n", "from_seq": 0, "to_seq": 2, "error": "'it failed'", "attempts": 8}
    erasure = {**own, **named, "session_uid": uid, "seqs": "'[1]'", "due_at": 1.0, "attempts": 0}
    statements = [
        insert("sessions", session),
        insert("messages", message, f"(n - 2) / {per} < {size.sessions - 1}", size.messages + 1),
        *(insert("flushes", {"session_pk": "n", "end_seq": end, "tokens": 20 * half}) for end in (half, horizon)),
        insert("block_leases", leases, most=40),
        insert("block_leases", of_tenant),
        insert("parked", {**failed, "redeliver_at": "CASE WHEN n % 2000 = 3 THEN 1.0 END"}, "n % 100 = 3"),
        insert("erasures", erasure, "n % 200 = 1"),
    ]
    for block, scope in scopes.items():
        pair = {"scope_key": scope, "block": f"'{block}'"}
        cursor = {
            **pair,
            "session_pk": "n",
            "cursor": f"CASE WHEN {waiting[block]} THEN {half} ELSE {horizon} END",
            "target": horizon,
            "start_seq": 0,
            "attempts": 0,
            "next_attempt_at": "CASE WHEN n % 40 = 0 THEN 9999999999.0 ELSE 0.0 END",
        }
        state = {**pair, "version": 7, "deleted_version": 7, "format": 1, "state": "'{}'"}
        statements += [insert("block_cursors", cursor), insert("block_states", state)]
    for key in ("one", "two", "three"):
        record = {**own, "key": f"'{key}'", "data": "'{}'", "session_uid": uid, "seq": 1, "version": 7}
        statements.append(insert("block_records", record))
    return statements


@dataclass(slots=True)
class Ran:
    """A statement that ran, and what it met."""

    statement: str
    met: int
    scanned: list[str] = field(default_factory=list)
    plan: list[str] = field(default_factory=list)


class Watched(Protocol):
    """A full database that tells what ran on it."""

    uri: str
    most: int

    def ran(self) -> list[Ran]:
        """What ran since this was asked last."""


class WatchedSqlite:
    """Counts the steps of every statement, and asks for its plan afterwards."""

    most = MOST_STEPS

    def __init__(self, path: Path) -> None:
        self._path, self.uri = path, f"sqlite+aiosqlite:///{path}"
        self._statements: list[Ran] = []

    def connected(self, connection: Any, record: object) -> None:
        """Listen to a new connection."""
        own: list[Ran] = []

        def begin(statement: str) -> None:
            own[:] = [Ran(statement, 0)]
            self._statements += own

        def step() -> int:
            if own:
                own[0].met += 1
            return 0

        connection.set_trace_callback(begin)
        connection.set_progress_handler(step, 1)

    def ran(self) -> list[Ran]:
        statements, self._statements = self._statements, []
        done = [ran for ran in statements if re.match(r"SELECT|WITH|INSERT|UPDATE|DELETE", ran.statement)]
        with closing(sqlite3.connect(self._path)) as connection:
            for ran in done:
                ran.plan = [line for *_, line in connection.execute(f"EXPLAIN QUERY PLAN {ran.statement}")]
                ran.scanned = [line for line in ran.plan if re.match(rf"SCAN \w*({'|'.join(BIG)}|others)", line)]
        return done


class WatchedPostgresql:
    """Reads the plans from the server's log."""

    most = MOST_ROWS

    def __init__(self, server: PostgresServer, database: str) -> None:
        self._log, self.uri = server.folder / "log", server.uri(database)
        self._read = 0

    def ran(self) -> list[Ran]:
        with self._log.open("rb") as log:
            log.seek(self._read)
            text = log.read().decode()
        self._read += len(text.encode())
        plans = re.findall(r"^LOG:  duration: [\d.]+ ms  plan:\n((?:\t.*\n)+)", text, re.MULTILINE)
        # The driver asks for types at first.
        return [ran for ran in (_ran(json.loads(plan)) for plan in plans) if "memory_" in ran.statement]


def _ran(plan: Mapping[str, Any]) -> Ran:
    ran = Ran(plan["Query Text"], 0)
    nodes = [plan["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", ())
        removed = sum(number for name, number in node.items() if name.startswith("Rows Removed by"))
        met = round((node["Actual Rows"] + removed) * node["Actual Loops"])
        if node.get("Relation Name", "").removeprefix("memory_") in BIG:
            ran.met += met
        ran.plan.append(f"{met} {node['Node Type']} {node.get('Index Name', node.get('Relation Name', ''))}")
        if node["Node Type"] == "Seq Scan" and node["Relation Name"].removeprefix("memory_") in BIG:
            ran.scanned.append(f"Seq Scan on {node['Relation Name']}")
    return ran


async def prepare(uri: str) -> None:
    """Make the tables, and the session whose messages are copied."""
    async with engine_at(uri) as engine:
        await engine.session("session-1", user_id="user-1").put_messages(
            [{"role": "user", "content": "What is on the list?"}, {"role": "assistant", "content": "Bread and milk."}]
        )


def engine_at(uri: str) -> MemoryEngine:
    return MemoryEngine(
        async_database_uri=uri, memory_blocks=BLOCKS, token_limit=2_000, token_flush_size=200, delivery="worker"
    )


@pytest.fixture(scope="module")
def full_sqlite(size: Size, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full file."""
    path = tmp_path_factory.mktemp("full") / "memory.db"
    asyncio.run(prepare(f"sqlite+aiosqlite:///{path}"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        for statement in filling(size):
            connection.execute(statement)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture(scope="module")
def full_postgresql(size: Size) -> Iterator[PostgresServer]:
    """A server with the full database `full`."""
    settings: dict[str, Any] = {"auto_explain.log_format": "json"}
    with PostgresServer(log_min_messages="log", log_line_prefix="", **settings) as server:
        server.execute("CREATE DATABASE full_one")
        asyncio.run(prepare(server.uri("full_one")))
        server.execute("; ".join(filling(size)), "full_one")
        server.execute(f"ALTER SEQUENCE memory_sessions_pk_seq RESTART WITH {size.sessions + 1}", "full_one")
        server.execute("VACUUM ANALYZE", "full_one")
        yield server


@pytest.fixture(scope="module", params=["sqlite", "sqlite analyzed", "postgresql", "postgresql generic"])
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A copy of a full database; with statistics or without, with plans for the parameters or for any."""
    kind, _, how = request.param.partition(" ")
    if kind == "postgresql":
        yield watched_copy(request.getfixturevalue("full_postgresql"), "force_generic_plan" if how else "auto")
        return
    path = tmp_path_factory.mktemp("watched") / "memory.db"
    shutil.copy(request.getfixturevalue("full_sqlite"), path)
    if how:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("ANALYZE")
    sqlite = WatchedSqlite(path)
    event.listen(Engine, "connect", sqlite.connected)
    yield sqlite
    event.remove(Engine, "connect", sqlite.connected)


def watched_copy(server: PostgresServer, plans: str) -> Watched:
    """A copy of the full database whose plans are written to the log."""
    name = f"full_{plans}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE full_one")
    settings = {
        "session_preload_libraries": "auto_explain",
        "auto_explain.log_min_duration": 0,
        "auto_explain.log_analyze": "on",
        "plan_cache_mode": plans,
    }
    for setting, value in settings.items():
        server.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")
    return WatchedPostgresql(server, name)


def user(session: int, size: Size) -> str:
    """Whose session it is."""
    return f"user-{session % (size.sessions // 10)}"


def check(watched: Watched, what: str, *, most: int | None = None) -> None:
    """What ran since the last check went by indexes and met no more than a few rows."""
    statements = watched.ran()
    assert statements, what
    most = watched.most if most is None else most
    print(what, len(statements), "statements, at most", max(ran.met for ran in statements))
    wrong = [ran for ran in statements if ran.scanned or ran.met > most]
    told = "\n\n".join("\n".join([f"{ran.met} {ran.scanned}", *ran.plan, ran.statement]) for ran in wrong)
    assert not wrong, f"{what}: {told}"


async def test_put(watched: Watched, size: Size) -> None:
    async with engine_at(watched.uri) as engine:
        watched.ran()
        known = engine.session("session-12", user_id=user(12, size))
        for number in range(3):
            await known.put({"role": "user", "content": f"And {number} eggs."})
        check(watched, "put")
        await known.put({"id": "mine", "role": "user", "content": "Once."})
        await known.put({"id": "mine", "role": "user", "content": "Once."})
        check(watched, "put with an id")
        await known.put({"role": "assistant", "content": "Noted.", "metadata": {"pinned": True}})
        check(watched, "put of a pinned message")
        await engine.session("new", user_id="new").put({"role": "user", "content": "Hello."})
        check(watched, "put into a new session")
        await known.put({"role": "user", "content": "eggs " * 1_500})
        check(watched, "put that flushes")
        many = [engine.session(f"session-{n}", user_id=user(n, size)) for n in range(20, 60) if n % 10 != 9]
        for number in range(2):
            await asyncio.gather(*(memory.put({"role": "user", "content": f"And {number} eggs."}) for memory in many))
        check(watched, "puts of many sessions", most=max(watched.most, 4 * len(many)))
        await known.flush(final=True)
        check(watched, "flush")
        await known.set([{"role": "user", "content": "Begin again."}])
        check(watched, "set")


async def test_get(watched: Watched, size: Size) -> None:
    async with engine_at(watched.uri) as engine:
        watched.ran()
        for number in (13, 30):  # in one of them nothing waits
            memory = engine.session(f"session-{number}", user_id=user(number, size))
            for _ in range(2):
                assert len(await memory.get("What is on the list?")) >= ACTIVE
                check(watched, "get")
            assert len(await memory.get_all(last=10)) == 10
            check(watched, "get_all")
            for block in BLOCKS:
                await memory.block(block.name)
            check(watched, "block")
        async with aclosing(SqlStore(watched.uri)) as store:
            await store.connect()
            scope = "s:0::32:00000000000000000000000010000013"
            watched.ran()
            assert len(await store.read_records(scope, "notes")) == await store.count_records(scope, "notes") == 3
            await store.read_records(scope, "notes", changed_since=7)
            await store.read_records(scope, "notes", keys=["one"])
            await store.read_records(scope, "notes", prefix="t", after_key="three", limit=2)
            assert len(await store.delivered_rows(scope, "notes", scope[-32:], from_seq=0, to_seq=4)) == 4
            assert len(await store.delivered_rows("g:0:", "world", scope[-32:], from_seq=0, to_seq=4)) == 4
            check(watched, "what blocks read")


async def test_claim(watched: Watched, size: Size) -> None:
    async with aclosing(SqlStore(watched.uri)) as store:
        await store.connect()
        watched.ran()
        assert await store.next_due(EVERYTHING) == 0
        check(watched, "next_due")
        claims = await store.claim(EVERYTHING, seconds=600.0, limit=8)
        assert len(claims) == 8
        check(watched, "claim")
        for claim in claims:
            chunk = await store.read_chunk(claim, 200)
            assert chunk is not None
            assert await store.renew(claim.lease, claim.session, seconds=600.0)
            if claim.session.pk % 20 == 0:
                await store.fail_delivery(claim, chunk, "no", retry_in=60.0, counted=True, park=True)
            else:
                assert await store.commit_delivery(claim, chunk, StateChange("{}")) is not None
            await store.release(claim.lease)
        check(watched, "deliveries")
        one = WorkFilter(EVERYTHING.blocks, "", "session-50")
        shared = WorkFilter(EVERYTHING.blocks, "", "session-60", ("u:0::7:user-60", "g:0:"))
        for work in (one, shared):
            await store.claim(work, seconds=600.0, limit=8)
            await store.next_due(work)
            check(watched, "claim for one session")
        await store.pending(one)
        await store.lags(one)
        check(watched, "what waits in one session")
        for erasure in await store.claim_erasures(EVERYTHING, seconds=600.0, limit=2):
            assert await store.commit_erasure(erasure, StateChange("{}"), rebuild=False)
            await store.release(erasure.lease)
        check(watched, "erasures")
        # What counts has to meet what it counts, and nothing else.
        waiting = 3 * size.sessions
        assert (await store.pending(EVERYTHING)).deliveries > size.sessions // 2
        assert len(await store.lags(EVERYTHING)) == 3
        check(watched, "counting all that waits", most=watched.most * waiting // 100)


async def test_listing(watched: Watched, size: Size) -> None:
    async with engine_at(watched.uri) as engine:
        watched.ran()
        assert len(await engine.list_sessions(limit=20)) == 20
        assert len(await engine.list_sessions(limit=20, after="session-5")) == 20
        assert len(await engine.list_sessions(limit=20, prefix="session-7")) == 20
        assert len(await engine.list_sessions(limit=20, tenant="other", prefix="session-")) == 20
        assert len(await engine.list_sessions(limit=20, user_id="user-14")) >= 9
        assert len(await engine.list_sessions(limit=20, inactive_for=60.0)) == 20
        check(watched, "listing")


async def test_erasing(watched: Watched, size: Size) -> None:
    async with engine_at(watched.uri) as engine:
        watched.ran()
        memory = engine.session("session-104", user_id=user(104, size))
        messages = await memory.get_all(last=6)
        await memory.pop()
        await memory.rewind(str(messages[3].id))
        await memory.delete([str(messages[1].id)])
        await memory.reset()
        assert await engine.delete_session("session-105")
        check(watched, "erasing", most=10 * watched.most)
