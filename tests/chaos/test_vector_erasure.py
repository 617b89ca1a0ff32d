"""What was erased leaves the vector stores too (P7), also with deliveries under way and when Qdrant is down meanwhile."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from chaos_blocks import PATIENCE
from chaos_database import audit, rows
from chaos_recall import KINDS, SCOPES, Shop, SlowEmbedder, recall_engine, recalling, shop

from memory_engine import ChatMessage, Memory, MemoryEngine

pytestmark = pytest.mark.asyncio

WAYS = ("delete", "rewind", "reset", "delete_session", "delete_user", "delete_tenant")
TIMES = ("when all is stored", "while it is embedded")


class Talk:
    """A session of marked messages; no mark is said twice."""

    def __init__(self, engine: MemoryEngine, name: str, user: str = "ada", tenant: str = "acme") -> None:
        self.memory = engine.session(name, user_id=user, tenant=tenant)
        self.said: dict[str, str] = {}
        self.count = 0

    async def go_on(self, count: int = 10) -> None:
        """Put some more messages."""
        for number in range(self.count, self.count + count):
            mark = f"{self.memory.tenant}{self.memory.session_id}mark{number:03d}z"
            role = ("user", "assistant")[number % 2]
            stored = await self.memory.put(ChatMessage(role=role, content=f"{mark} is what was said of the tea and the rain"))
            assert stored is not None and stored.id is not None
            self.said[stored.id] = mark
        self.count += count


async def erase(engine: MemoryEngine, talk: Talk, how: str, random_: random.Random) -> list[str]:
    """Erase something of a talk in that way; the marks that must be gone then."""
    memory, ids = talk.memory, list(talk.said)
    gone = ids
    if how == "delete":
        gone = random_.sample(ids, 4)
        assert await memory.delete(gone) == 4
    elif how == "rewind":
        gone = ids[random_.randrange(1, len(ids)) :]
        await memory.rewind(gone[0])
    elif how == "reset":
        await memory.reset()
    elif how == "delete_session":
        assert await engine.delete_session(memory.session_id, tenant=memory.tenant)
    elif how == "delete_user":
        assert await engine.delete_user("ada", tenant=memory.tenant) == 1
    else:
        assert await engine.delete_tenant(memory.tenant) == 1
    return [talk.said.pop(message_id) for message_id in gone]


async def assert_unknown(memory: Memory, marks: Sequence[str], what: str) -> None:
    """No context, however it is asked for, shows one of the marks; a search finds none."""
    for query in (marks[0], "what was said of the tea and the rain?"):
        shown = "\n".join(message.content for message in await memory.get(query) if message.content != query)
        assert not [mark for mark in marks if mark in shown], f"{what}: it is shown"


async def left(where: Shop, marks: Sequence[str]) -> list[str]:
    """Which marks the store still holds, past all filters."""
    everything = "\n".join(one.text for one in await where.stored())
    return [mark for mark in marks if mark in everything]


async def holds_exactly(where: Shop, talks: Sequence[Talk], what: str) -> None:
    """In each block one item for each message that remains, and nothing else at all."""
    found = Counter((one.block, one.text.split()[0]) for one in await where.stored())
    expected = Counter((f"of_{scope}", mark) for talk in talks for scope in SCOPES for mark in talk.said.values())
    assert found == expected, f"{what}: {found - expected} is too much, {expected - found} is missing"


async def nothing_is_missed(talk: Talk, what: str) -> None:
    """No block believes that its store has lost something."""
    receipt = (await talk.memory.context("the tea")).receipt
    for scope in SCOPES:
        source = receipt.source(f"of_{scope}")
        assert source.notes == () and source.error is None, f"{what}: {source}"


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", KINDS)
async def test_what_was_erased_is_in_no_store(database: Path, kind: str, how: str, when: str, scale: int) -> None:
    """Counted in the store itself: one item is left for each message that is left."""
    entered = asyncio.Event()
    for seed in range(scale):
        random_ = random.Random(seed)
        path = database.with_name(f"{seed}.db")
        embedder = SlowEmbedder(slow=0.02, entered=entered.set)
        async with shop(kind, path) as where, recall_engine(path, recalling(where, embedder)) as engine:
            talk, other = Talk(engine, "s"), Talk(engine, "t", "bob", "others")
            for one in (talk, other):
                await one.go_on()
            entered.clear()
            await other.memory.flush(final=True)
            await talk.memory.flush(final=True)
            if when == TIMES[0]:
                await engine.drain(PATIENCE)
                await holds_exactly(where, [talk, other], "before")
            else:
                await asyncio.wait_for(entered.wait(), PATIENCE)
                await asyncio.sleep(random_.random() * 0.04)
            gone = await erase(engine, talk, how, random_)
            await assert_unknown(talk.memory, gone, f"seed {seed}, at once")
            await engine.drain(PATIENCE)
            audit(path)
            await holds_exactly(where, [talk, other], f"seed {seed}")
            await assert_unknown(talk.memory, gone, f"seed {seed}, later")
            again = Talk(engine, "s")
            again.said, again.count = talk.said, talk.count
            for one in (again, other):
                await one.go_on(4)
                await one.memory.flush(final=True)
            await engine.drain(PATIENCE)
            assert await left(where, gone) == [], f"seed {seed}, after more was said"
            await nothing_is_missed(again, f"seed {seed}")
            await nothing_is_missed(other, f"seed {seed}, of others")


@pytest.mark.parametrize("down", ["*", "delete"])
@pytest.mark.parametrize("how", WAYS)
async def test_what_was_erased_while_qdrant_was_down_goes_when_it_is_back(
    database: Path, how: str, down: str, scale: int
) -> None:
    """Nothing of it is shown meanwhile, also when Qdrant only refuses to delete and still finds it."""
    for seed in range(scale):
        random_ = random.Random(seed)
        path = database.with_name(f"{seed}.db")
        async with shop("qdrant", path) as where, recall_engine(path, recalling(where, SlowEmbedder())) as engine:
            assert where.client is not None
            talk, other = Talk(engine, "s"), Talk(engine, "t", "bob", "others")
            for one in (talk, other):
                await one.go_on()
                await one.memory.flush(final=True)
            await engine.drain(PATIENCE)
            where.client.down = {down}
            gone = await erase(engine, talk, how, random_)
            await asyncio.sleep(0.05)
            await assert_unknown(talk.memory, gone, f"seed {seed}, down")
            assert where.client.refused, "it was not asked to delete"
            assert await left(where, gone) == gone or set(await left(where, gone)) == set(gone)
            assert (await engine.pending()).any
            where.client.down = set()
            await assert_unknown(talk.memory, gone, f"seed {seed}, just back")
            await engine.drain(PATIENCE)
            audit(path)
            await holds_exactly(where, [talk, other], f"seed {seed}")
            await nothing_is_missed(other, f"seed {seed}")
            if talk.said:
                await nothing_is_missed(talk, f"seed {seed}")
            assert rows(path, "SELECT COUNT(*) FROM memory_erasures") == [(0,)]


async def test_a_delivery_to_a_qdrant_that_went_down_half_way_leaves_nothing_of_what_is_erased_meanwhile(
    database: Path,
) -> None:
    """Some points of it were written, none was committed."""
    async with shop("qdrant", database) as where, recall_engine(database, recalling(where, SlowEmbedder())) as engine:
        assert where.client is not None
        store = where.store
        talk, other = Talk(engine, "s"), Talk(engine, "t", "bob", "others")
        for one in (other, talk):
            await one.go_on()
            await one.memory.flush(final=True)
            if one is other:
                await engine.drain(PATIENCE)
        async with asyncio.timeout(PATIENCE):
            while not await left(where, list(talk.said.values())):
                await asyncio.sleep(0)
        where.client.down = {"*"}
        assert store is not None
        await talk.memory.reset()
        gone = list(talk.said.values())
        talk.said = {}
        await assert_unknown(talk.memory, gone, "down")
        where.client.down = set()
        await engine.drain(PATIENCE)
        await holds_exactly(where, [other], "up again")


@pytest.mark.parametrize("kind", KINDS)
async def test_an_erasure_that_is_repeated_is_not_taken_for_a_loss(database: Path, kind: str) -> None:
    """The items went, the embedder was down when those behind them were to be embedded anew; then all is repeated."""

    class Fickle(SlowEmbedder):
        down = False

        async def __call__(self, texts: Sequence[str]) -> list[list[float]]:
            if self.down:
                raise ConnectionError("no embeddings today")
            return await super().__call__(texts)

    embedder = Fickle()
    async with shop(kind, database) as where, recall_engine(database, recalling(where, embedder)) as engine:
        talk = Talk(engine, "s")
        await talk.go_on()
        await talk.memory.flush(final=True)
        await engine.drain(PATIENCE)
        embedder.down = True
        erased = list(talk.said)[2:4]
        await talk.memory.delete(erased)
        gone = [talk.said.pop(message_id) for message_id in erased]
        await asyncio.sleep(0.05)
        await assert_unknown(talk.memory, gone, "while the embedder is down")
        embedder.down = False
        await engine.drain(PATIENCE)
        await holds_exactly(where, [talk], "at the end")
        await nothing_is_missed(talk, "at the end")
        for scope in SCOPES:
            assert (await talk.memory.block(f"of_{scope}")).stored_items == len(talk.said)
