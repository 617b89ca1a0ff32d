"""Memories on PostgreSQL: first use by many, lost connections, a crashing server, an engine of the user's."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine

from memory_engine import BaseMemoryBlock, ChatMessage, Limits, Memory, MemoryEngine
from memory_engine.errors import ClosedError, ConfigurationError, StoreError, StoreUnavailableError, StoreUnreadableError
from memory_engine.sql import SqlStore
from memory_engine.sql import pooled as pooled_module
from memory_engine.sql.errors import OutcomeUnknown
from memory_engine.testing.postgres import PostgresServer

pytestmark = pytest.mark.asyncio

LIMITS = Limits(get=10.0, delivery=30.0, first_retry=0.01, last_retry=0.1, lease=5.0, poll=0.1)
PATIENCE = 60.0


class Heard(BaseMemoryBlock[str]):
    """Notes every message that it absorbs."""

    name: str = "heard"
    heard: list[str] = []

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return f"{len(self.heard)} messages"

    async def _aput(self, messages: list[ChatMessage]) -> None:
        self.heard.extend(message.content for message in messages)


def engine_at(uri: str, **settings: Any) -> MemoryEngine:
    return MemoryEngine(
        **{
            "async_database_uri": uri,
            "memory_blocks": [Heard()],
            "limits": LIMITS,
            "token_flush_size": 50,
            "token_limit": 2_000,
        }
        | settings
    )


async def say(memory: Memory, who: int, numbers: range) -> None:
    for number in numbers:
        await memory.put({"role": "user" if number % 2 == 0 else "assistant", "content": f"writer {who} says {number}"})


async def everything_is_there(engine: MemoryEngine, session: str, writers: int, count: int) -> None:
    """Every message once, in the order of its writer, and absorbed once."""
    memory = engine.session(session)
    stored = [message.content for message in await memory.get_all()]
    assert len(stored) == len(set(stored)) == writers * count
    for who in range(writers):
        assert [one for one in stored if one.startswith(f"writer {who} ")] == [f"writer {who} says {n}" for n in range(count)]
    await memory.flush(final=True)
    await memory.drain(PATIENCE)
    block: Any = await memory.block("heard")
    assert block.heard == stored


async def test_the_short_name_of_hosts_and_what_cannot_be_used(postgres_uri: str) -> None:
    address = postgres_uri.removeprefix("postgresql+asyncpg")
    for name in ("postgres", "postgresql", "postgresql+asyncpg"):
        async with engine_at(name + address) as engine:
            assert (await engine.session("one").put({"role": "user", "content": name})) is not None
    with pytest.raises(ConfigurationError, match=r"PostgreSQL is reached by 'postgresql\+asyncpg"):
        engine_at("postgresql+psycopg" + address)
    with pytest.raises(ConfigurationError, match="not supported"):
        engine_at("mysql+aiomysql://localhost/x")
    with pytest.raises(StoreUnreadableError, match="no_such_database"):
        async with engine_at(postgres_uri.replace("/test_", "/no_such_database_")) as engine:
            await engine.session("one").put({"role": "user", "content": "hello"})


async def test_many_create_the_tables_at_once(own_server: PostgresServer) -> None:
    stores = [SqlStore(own_server.uri("memory")) for _ in range(12)]
    await asyncio.gather(*(store.connect() for store in stores))
    await asyncio.gather(*(store.aclose() for store in stores))
    assert own_server.execute("SELECT count(*), max(version) FROM memory_schema", "memory") == "1|1"


async def test_several_engines_write_one_session(postgres_uri: str) -> None:
    engines = [engine_at(postgres_uri) for _ in range(3)]
    await asyncio.gather(*(say(engine.session("one"), who, range(30)) for who, engine in enumerate(engines)))
    await everything_is_there(engines[0], "one", 3, 30)
    context = await engines[1].session("one").context("what was said?")
    assert context.receipt.source("heard").lag == 0 and "90 messages" in context.messages[0].content
    for engine in engines:
        await engine.aclose()


async def test_workers_hear_of_new_work_before_they_would_look(own_server: PostgresServer) -> None:
    """Also after the connection on which they listen was lost."""
    patient = Limits(get=10.0, delivery=30.0, first_retry=0.01, last_retry=0.1, lease=5.0, poll=600.0)
    uri = own_server.uri("memory")
    async with engine_at(uri, delivery="worker") as agent, engine_at(uri, limits=patient) as worker:
        memory = agent.session("one")
        assert (await worker.pending()).deliveries == 0
        listening = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        for turn in range(3):
            while await asyncio.to_thread(own_server.execute, listening) == "0":
                await asyncio.sleep(0.05)
            await memory.put({"role": "user", "content": f"turn {turn}"})
            await memory.flush(final=True)
            await memory.drain(PATIENCE)
            drop = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
            await asyncio.to_thread(own_server.execute, drop)
        assert (await memory.block("heard")).heard == ["turn 0", "turn 1", "turn 2"]  # type: ignore[attr-defined]


async def test_an_engine_of_the_users_stays_theirs(postgres_uri: str) -> None:
    theirs = create_async_engine(postgres_uri, pool_size=2, max_overflow=0)
    engine = engine_at(postgres_uri, async_database_uri=None, async_engine=theirs)
    await asyncio.gather(*(say(engine.session(f"s{n}"), 0, range(5)) for n in range(8)))
    await engine.drain(PATIENCE)
    while theirs.pool.checkedout():  # by the worker, which looks for more; nothing is kept between transactions
        await asyncio.sleep(0.01)
    await engine.aclose()
    async with theirs.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM memory_messages"))).scalar_one() == 40
    await theirs.dispose()


@pytest.mark.timeout(120)
async def test_connections_that_are_dropped_cost_nothing(own_server: PostgresServer) -> None:
    """Also in the middle of a transaction, and of its COMMIT."""
    async with engine_at(own_server.uri("memory")) as engine:
        writing = [asyncio.create_task(say(engine.session("one"), who, range(60))) for who in range(4)]
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'memory-engine'"
        dropped = 0
        while not all(task.done() for task in writing):
            await asyncio.sleep(0.05)
            dropped += (await asyncio.to_thread(own_server.execute, others)).count("t")
        await asyncio.gather(*writing)
        assert dropped > 5
        await everything_is_there(engine, "one", 4, 60)


@pytest.mark.timeout(120)
async def test_a_server_that_crashes_loses_nothing_that_was_acknowledged(own_server: PostgresServer) -> None:
    async with engine_at(own_server.uri("memory")) as engine:
        writing = [asyncio.create_task(say(engine.session("one"), who, range(60))) for who in range(4)]
        for _ in range(3):
            await asyncio.sleep(random.uniform(0.1, 0.3))
            await asyncio.to_thread(own_server.crash)
            await asyncio.to_thread(own_server.start)
        await asyncio.gather(*writing)
        await everything_is_there(engine, "one", 4, 60)


async def test_a_server_that_stays_away_is_named(own_server: PostgresServer) -> None:
    async with engine_at(own_server.uri("memory"), busy_timeout=0.5) as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "hello"})
        own_server.crash()
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            await memory.put({"role": "user", "content": "is anybody there?"})
        own_server.start()
        await memory.put({"role": "user", "content": "is anybody there?"})
        assert len(await memory.get_all()) == 2


@pytest.mark.parametrize("happened", [True, False])
async def test_a_commit_whose_outcome_is_unknown_is_repeated_safely(
    happened: bool, postgres_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is stored once, whether the first COMMIT reached the server or not; other changes say so."""
    real, lost = pooled_module.execute_raw, list[str]()

    def commit(connection: Connection, statement: str) -> None:
        if statement == "COMMIT" and lost:
            lost.pop()
            real(connection, "COMMIT" if happened else "ROLLBACK")
            raise ConnectionResetError("gone")
        real(connection, statement)

    monkeypatch.setattr(pooled_module, "execute_raw", commit)
    async with engine_at(postgres_uri, delivery="worker") as engine:  # nobody else commits
        memory = engine.session("one")
        # The first put of a session is a transaction of several statements; those that follow are one statement.
        lost.append("one")
        stored = await memory.put({"role": "user", "content": "perhaps"})
        assert stored is not None and not lost
        assert [(m.id == stored.id, m.content) for m in await memory.get_all()] == [(True, "perhaps")]
        lost.append("one")
        await memory.set([*await memory.get_all(), {"role": "assistant", "content": "set"}])
        assert [message.content for message in await memory.get_all()] == ["perhaps", "set"] and not lost
        lost.append("one")
        with pytest.raises(OutcomeUnknown, match="it may have happened or not"):
            await memory.delete([str(stored.id)])
        assert len(await memory.get_all()) == (1 if happened else 2)


async def test_who_is_cancelled_leaves_the_pool_in_order(postgres_uri: str) -> None:
    async with engine_at(postgres_uri) as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "first"})
        for steps in range(60):
            task = asyncio.create_task(memory.put({"role": "user", "content": f"{steps}"}))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.gather(*(memory.put({"role": "user", "content": f"after {n}"}) for n in range(40)))
        stored = [message.content for message in await memory.get_all()]
        assert [one for one in stored if one.startswith("after")] and len(stored) == len(set(stored))


async def test_upgrading_from_the_command_line(own_server: PostgresServer, tmp_path: Path) -> None:
    from memory_engine.__main__ import main

    uri = own_server.uri("memory")
    assert await asyncio.to_thread(main, ["upgrade", uri]) in (0, None)
    async with engine_at(uri) as engine:
        await engine.session("one").put({"role": "user", "content": "hello"})
    own_server.execute("UPDATE memory_schema SET version = 99", "memory")
    with pytest.raises(StoreError, match="schema version 99"):
        async with engine_at(uri) as engine:
            await engine.session("one").put({"role": "user", "content": "hello"})


# -- puts together ---------------------------------------------------------------------------------------------------


def counted(engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many puts each group has that is written from now on."""
    connections: Any = engine._core.store._connections  # type: ignore[attr-defined]
    sizes, real = list[int](), connections.change

    async def change(text: str, parameters: Any) -> Any:
        sizes.append(len(parameters[0]))
        return await real(text, parameters)

    monkeypatch.setattr(connections, "change", change)
    return sizes


async def test_many_sessions_are_written_together(postgres_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in its order, flushes among them; a lone put is alone."""
    async with engine_at(postgres_uri) as engine:
        memories = [engine.session(f"s{number}") for number in range(40)]
        await asyncio.gather(*(memory.put({"role": "user", "content": "writer 0 says 0"}) for memory in memories))
        sizes = counted(engine, monkeypatch)
        await memories[0].put({"role": "user", "content": "writer 0 says 1"})
        assert sizes == [1]
        await asyncio.gather(*(say(memory, 0, range(1 if number else 2, 30)) for number, memory in enumerate(memories)))
        assert max(sizes) > 5 and sum(sizes) > 300
        for memory in memories:
            await everything_is_there(engine, memory.session_id, 1, 30)
        context = await memories[3].context()
        assert sum(source.given for source in context.receipt.sources) + context.receipt.rendering == context.receipt.tokens


async def test_of_several_puts_each_has_its_own_outcome(postgres_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that was reset or deleted elsewhere, ids that conflict, a caller that goes: nobody else notices."""
    async with engine_at(postgres_uri) as engine, engine_at(postgres_uri) as other:
        memories = [engine.session(f"s{number}") for number in range(30)]
        await asyncio.gather(*(memory.put({"role": "user", "content": "first", "id": "one"}) for memory in memories))
        sizes = counted(engine, monkeypatch)
        await other.session("s7").reset()
        await other.delete_session("s8")

        async def put(number: int) -> None:
            content: dict[str, Any] = {"role": "user", "content": f"second {number}"}
            await memories[number].put(content | ({"id": "one"} if number == 9 else {}))

        tasks = [asyncio.create_task(put(number)) for number in range(30)]
        await asyncio.sleep(0)
        tasks[25].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert sizes, "some were written together"
        refused = {number: type(one).__name__ for number, one in enumerate(outcomes) if one is not None}
        assert refused == {9: "MessageConflictError", 25: "CancelledError"}
        for number, memory in enumerate(memories):
            said = [message.content for message in await memory.get_all()]
            first = [] if number in (7, 8) else ["first"]
            assert said == first + ([] if number in (9, 25) else [f"second {number}"])


@pytest.mark.parametrize("happened", [True, False])
async def test_a_group_whose_outcome_is_unknown_is_repeated_safely(
    happened: bool, postgres_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_at(postgres_uri) as engine:
        memories = [engine.session(f"s{number}") for number in range(30)]
        await asyncio.gather(*(memory.put({"role": "user", "content": "first"}) for memory in memories))
        connections: Any = engine._core.store._connections  # type: ignore[attr-defined]
        real, lose = connections.change, [True, True]

        async def change(text: str, parameters: Any) -> Any:
            # Once for a put that is alone, once for several.
            if lose and len(parameters[0]) > (len(lose) == 1):
                lose.pop()
                if happened:
                    await real(text, parameters)
                raise OutcomeUnknown
            return await real(text, parameters)

        monkeypatch.setattr(connections, "change", change)
        await asyncio.gather(*(memory.put({"role": "user", "content": "second"}) for memory in memories))
        assert not lose
        for memory in memories:
            assert [message.content for message in await memory.get_all()] == ["first", "second"]


# -- what a review found ---------------------------------------------------------------------------------------------


async def warm(engine: MemoryEngine, count: int) -> list[Memory]:
    memories = [engine.session(f"s{number}") for number in range(count)]
    await asyncio.gather(*(memory.put({"role": "user", "content": "first"}) for memory in memories))
    return memories


async def test_closing_tells_every_put_that_waits(postgres_uri: str) -> None:
    """Also those without ids of their own, which wait for a statement with others."""
    engine = engine_at(postgres_uri)
    memories = await warm(engine, 60)
    tasks = [asyncio.create_task(memory.put({"role": "user", "content": "second"})) for memory in memories]
    await asyncio.sleep(0)
    await engine.aclose()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {ChatMessage, ClosedError}
    async with engine_at(postgres_uri) as again:
        for memory, outcome in zip(memories, outcomes, strict=True):
            stored = [message.content for message in await again.session(memory.session_id).get_all()]
            assert stored == ["first", "second"][: 1 + isinstance(outcome, ChatMessage)]


async def test_a_locked_session_keeps_nobody_else_waiting(own_server: PostgresServer) -> None:
    uri = own_server.uri("memory")
    other = create_async_engine(uri)
    async with engine_at(uri) as engine:
        memories = await warm(engine, 40)
        async with other.connect() as connection:
            await connection.execute(
                text("SELECT 1 FROM memory_sessions WHERE session_id IN ('s0', 's1', 's2', 's3', 's4') FOR UPDATE")
            )
            tasks = [asyncio.create_task(memory.put({"role": "user", "content": "second"})) for memory in memories]
            await asyncio.wait_for(asyncio.gather(*tasks[5:]), PATIENCE)
            assert not any(task.done() for task in tasks[:5])
            await connection.rollback()
        await asyncio.gather(*tasks)
    await other.dispose()


async def test_puts_of_one_session_keep_their_order(postgres_uri: str) -> None:
    async with engine_at(postgres_uri, token_limit=100_000) as engine:
        [memory, *others] = await warm(engine, 10)
        for _ in range(5):
            puts = [
                memory.put({"role": "user", "content": f"{n}", "id": f"{_}-{n}" if n % 3 == 0 else None}) for n in range(12)
            ]
            await asyncio.gather(*puts, *(one.put({"role": "user", "content": "x"}) for one in others))
        assert [m.content for m in await memory.get_all()] == ["first", *[f"{n}" for _ in range(5) for n in range(12)]]
        fresh = [engine.session("fresh").put({"role": "user", "content": f"{n}"}) for n in range(8)]
        await asyncio.gather(*fresh)
        assert [m.content for m in await engine.session("fresh").get_all()] == [f"{n}" for n in range(8)]


async def test_puts_with_ids_and_with_new_handles_are_written_together(
    postgres_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_at(postgres_uri) as engine, engine_at(postgres_uri) as other:
        await warm(engine, 40)
        await other.session("s7").put({"role": "user", "content": "theirs", "id": "known"})
        sizes = counted(engine, monkeypatch)
        message = {"role": "user", "content": "theirs", "id": "known"}
        puts = [engine.session(f"s{number}").put(message) for number in range(40)]
        puts.append(engine.session("s7").put({"role": "user", "content": "again", "id": "known"}))
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        assert [type(one).__name__ for one in outcomes] == ["ChatMessage"] * 40 + ["MessageConflictError"]
        assert max(sizes) > 20
        for number in range(40):
            assert [m.content for m in await engine.session(f"s{number}").get_all()] == ["first", "theirs"]


async def test_names_and_numbers_that_sql_would_not_take_as_they_are(own_server: PostgresServer) -> None:
    async with engine_at(own_server.uri("memory"), table_prefix="Mem_Order_", max_turns=10**19, token_limit=10**19) as engine:
        for number in range(3):
            await engine.session("one").put({"role": "user", "content": f"{number}"})
        assert len(await engine.session("one").get_all()) == 3


async def test_more_first_puts_than_connections_wait_their_turn(postgres_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine_at(postgres_uri) as engine:
        await warm(engine, 1)
        connections: Any = engine._core.store._connections  # type: ignore[attr-defined]
        connections._engine.sync_engine.pool._timeout = 0.001  # a pool that refuses who has to wait
        await warm(engine, 300)


async def test_one_lost_connection_tells_of_all(own_server: PostgresServer) -> None:
    async with engine_at(own_server.uri("memory"), busy_timeout=5.0) as engine:
        memories = await warm(engine, 30)
        own_server.crash()
        own_server.start()
        connections: Any = engine._core.store._connections  # type: ignore[attr-defined]
        attempts, real = [0], connections._change

        async def change(*arguments: Any) -> Any:
            attempts[0] += 1
            return await real(*arguments)

        connections._change = change
        await memories[0].put({"role": "user", "content": "second"})
        assert attempts[0] <= 3
        assert [m.content for m in await memories[0].get_all()] == ["first", "second"]


async def test_puts_are_planned_once(postgres_uri: str) -> None:
    async with engine_at(postgres_uri) as engine:
        for number in range(3):
            await engine.session("one").put({"role": "user", "content": f"{number}"})
        connections: Any = engine._core.store._connections  # type: ignore[attr-defined]
        [(_, driver)] = connections._kept
        assert await driver.fetchval("SHOW plan_cache_mode") == "force_generic_plan"
        prepared = "SELECT statement, generic_plans, custom_plans FROM pg_prepared_statements"
        [(generic, custom)] = [plans for text, *plans in await driver.fetch(prepared) if "SKIP LOCKED" in text]
        assert (generic, custom) == (2, 0)
