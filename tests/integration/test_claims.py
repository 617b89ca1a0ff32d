"""Many workers claim at once on PostgreSQL: each gets what no other has, and nobody waits for another's transaction."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Connection

from memory_engine import BaseMemoryBlock, ChatMessage, Limits, MemoryEngine
from memory_engine.sql import SqlStore
from memory_engine.store import Claim, StateChange, WorkFilter

pytestmark = pytest.mark.asyncio

WORK = WorkFilter(("own", "world"))
WORKERS = 8
LONG = 600.0


class Heard(BaseMemoryBlock[str]):
    """Notes every message that it absorbs."""

    heard: list[str] = []

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return ""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        self.heard.extend(message.content for message in messages)


def engine_at(uri: str, **settings: Any) -> MemoryEngine:
    blocks = [Heard(name="own"), Heard(name="world", scope="global")]
    return MemoryEngine(async_database_uri=uri, memory_blocks=blocks, **{"delivery": "worker"} | settings)


async def fill(uri: str, sessions: int) -> None:
    """Sessions with something to deliver to both blocks."""
    async with engine_at(uri) as engine:
        for number in range(sessions):
            memory = engine.session(f"s{number}")
            await memory.put({"role": "user", "content": f"message {number}"})
            await memory.flush(final=True)


@asynccontextmanager
async def stores(uri: str, number: int) -> AsyncIterator[list[SqlStore]]:
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(aclosing(SqlStore(uri))) for _ in range(number)]
        for store in opened:
            await store.connect()
        yield opened


@asynccontextmanager
async def held(uri: str, statement: str, *arguments: Any) -> AsyncIterator[None]:
    """Somebody's open transaction, which has locked rows and does not end."""
    connection = await asyncpg.connect(uri.replace("+asyncpg", ""))
    try:
        transaction = connection.transaction()
        await transaction.start()
        assert await connection.fetch(statement, *arguments)
        yield
        await transaction.rollback()
    finally:
        await connection.close()


def pairs(claims: Sequence[Claim]) -> list[tuple[str, str]]:
    return [(claim.lease.block, claim.session.session_id) for claim in claims]


async def deliver(store: SqlStore, claims: Sequence[Claim]) -> None:
    for claim in claims:
        chunk = await store.read_chunk(claim, 1_000)
        assert chunk is not None
        assert await store.commit_delivery(claim, chunk, StateChange("{}")) is not None
        await store.release(claim.lease)


async def test_claimers_at_the_same_moment_take_different_pairs(postgres_uri: str) -> None:
    await fill(postgres_uri, 8)
    async with stores(postgres_uri, WORKERS) as claimers:
        taken: list[tuple[str, str]] = []
        alive: Counter[str] = Counter()

        async def work(store: SqlStore) -> None:
            while await store.next_due(WORK) is not None:
                claims = await store.claim(WORK, seconds=LONG, limit=3)
                taken.extend(pairs(claims))
                alive.update(claim.lease.scope_key + claim.lease.block for claim in claims)
                assert max(alive.values(), default=0) <= 1, "a pair is leased twice"
                for claim in claims:
                    await asyncio.sleep(0)
                    # Before the release: in the same moment another may claim it.
                    del alive[claim.lease.scope_key + claim.lease.block]
                    await deliver(store, [claim])

        await asyncio.gather(*map(work, claimers))
    assert sorted(taken) == sorted((block, f"s{number}") for block in WORK.blocks for number in range(8))


async def test_a_claim_of_each_at_once_leaves_nothing_over(postgres_uri: str) -> None:
    await fill(postgres_uri, WORKERS)
    own = WorkFilter(("own",))
    async with stores(postgres_uri, WORKERS) as claimers:
        claimed = await asyncio.gather(*(store.claim(own, seconds=LONG, limit=1) for store in claimers))
        assert sorted(pair for claims in claimed for pair in pairs(claims)) == [("own", f"s{n}") for n in range(WORKERS)]


@pytest.mark.parametrize(
    "statement",
    [
        # Another claimer, or a put that moves the horizon.
        "SELECT 1 FROM memory_block_cursors WHERE session_pk = 1 FOR UPDATE",
        # Whoever commits a delivery, renews a lease or gives it back.
        "SELECT 1 FROM memory_block_leases WHERE block = 'own' FOR UPDATE",
        # A put into the session.
        "SELECT 1 FROM memory_sessions WHERE pk = 1 FOR UPDATE",
    ],
    ids=["cursor", "lease", "session"],
)
async def test_nobody_waits_for_what_another_has_locked(statement: str, postgres_uri: str) -> None:
    await fill(postgres_uri, 4)
    own = WorkFilter(("own",))
    async with stores(postgres_uri, 2) as (one, other):
        # A lease that has run out: its owner died.
        assert len(await one.claim(own, seconds=0.001, limit=1)) == 1
        while await other.next_due(own) != 0:
            await asyncio.sleep(0.001)
        async with held(postgres_uri, statement):
            # This would wait for ever.
            claims = await other.claim(own, seconds=LONG, limit=10)
            expected = 4 if "memory_sessions" in statement else 3
            assert len(claims) == expected
            await deliver(other, [claim for claim in claims if claim.session.pk != 1])
        left = await other.claim(own, seconds=LONG, limit=10)
        assert len(left) == 4 - expected


async def test_a_claim_that_is_not_committed_holds_nobody_up(postgres_uri: str) -> None:
    """A tenant's pair is fed by many sessions: two claimers come to it by different rows, before it has a lease."""
    await fill(postgres_uri, 4)
    world = WorkFilter(("world",))
    async with stores(postgres_uri, 2) as (one, other):
        claimed, goes_on = asyncio.Event(), asyncio.Event()

        def claim_and_stay(connection: Connection) -> tuple[Claim, ...]:
            claims = one._deliveries.claim(connection, world, LONG, 10)
            claimed.set()
            raw: Any = connection.connection.dbapi_connection
            raw.run_async(lambda driver: goes_on.wait())
            return claims

        staying = asyncio.create_task(one._connections.write(claim_and_stay))
        await claimed.wait()
        # Each of these would wait for ever.
        assert await other.claim(world, seconds=LONG, limit=10) == ()
        assert len(await other.claim(WORK, seconds=LONG, limit=10)) == 4
        goes_on.set()
        assert len(await staying) == 1
        assert await other.claim(world, seconds=LONG, limit=10) == ()


async def test_a_claimer_that_died_is_followed(postgres_uri: str) -> None:
    """Engines deliver all of it once; what one has leased and never delivers is taken over when the lease ends."""
    await fill(postgres_uri, 12)
    limits = Limits(lease=0.5, poll=0.05)
    async with stores(postgres_uri, 1) as (dead,), AsyncExitStack() as stack:
        assert len(await dead.claim(WORK, seconds=0.5, limit=5)) == 5
        engines = [
            await stack.enter_async_context(engine_at(postgres_uri, delivery="background", limits=limits)) for _ in range(3)
        ]
        await engines[0].drain(60.0)
        for number in range(12):
            own: Any = await engines[0].session(f"s{number}").block("own")
            assert own.heard == [f"message {number}"]
        world: Any = await engines[0].session("s0").block("world")
        assert sorted(world.heard) == sorted(f"message {number}" for number in range(12))
