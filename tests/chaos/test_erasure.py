"""What was erased is gone and stays gone (P7): also with deliveries under way, old handles and cached windows."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

import pytest
from chaos_blocks import PATIENCE, InFields, InRecords, Outside, Recorder, Shelf, heads, small_engine
from chaos_database import (
    BOTH,
    BOTH_IN_SOAK,
    Database,
    audit,
    execute,
    flushed,
    leaks,
    raw_leaks,
    rows,
    tables,
)

from memory_engine import ChatMessage, Memory, MemoryEngine

pytestmark = pytest.mark.asyncio

SCOPES = ("session", "user", "global")


def definitions(shelf: Shelf, *, slow: float = 0.0, entered: Callable[[], object] | None = None) -> list[Recorder]:
    """Each way to keep state in each scope; outside they all share one store."""
    blocks: list[Recorder] = []
    for scope in SCOPES:
        common = {"scope": scope, "priority": 1, "slow": slow, "entered": entered}
        blocks.append(InFields(name=f"fields_of_{scope}", **common))
        blocks.append(InRecords(name=f"records_of_{scope}", **common))
        blocks.append(Outside(name=f"outside_of_{scope}", shelf=shelf, **common))
    return blocks


class Marks:
    """Words that are said once and never repeated, so that wherever one is found it was kept."""

    def __init__(self) -> None:
        self.count = 0
        self.erased: list[str] = []

    def new(self) -> str:
        self.count += 1
        return f"mark{self.count:06d}z"


async def say(memory: Memory, marks: Marks, count: int) -> list[tuple[str, str]]:
    """Put marked messages of both roles; their ids and marks."""
    said = []
    for number in range(count):
        mark = marks.new()
        role = ("user", "assistant")[number % 2]
        stored = await memory.put(ChatMessage(role=role, content=f"this is {mark} with a few words more, as one says"))
        assert stored is not None and stored.id is not None
        said.append((stored.id, mark))
    return said


class Scene:
    """A session with messages, half of them flushed, that is erased while blocks are absorbing it."""

    def __init__(self, engine: MemoryEngine, seed: int) -> None:
        self.engine, self.seed = engine, seed
        self.random = random.Random(seed)
        self.name, self.user = f"s{seed}", f"u{seed % 3}"
        self.memory = engine.session(self.name, user_id=self.user)
        self.said: list[tuple[str, str]] = []

    async def erase(self, how: str) -> list[str]:
        """Erase something in that way; the marks that must be gone then."""
        ids, marks = [i for i, _ in self.said], [mark for _, mark in self.said]
        if how == "reset":
            await self.memory.reset()
        elif how == "delete_session":
            assert await self.engine.delete_session(self.name)
        elif how == "delete":
            chosen = self.random.sample(range(len(ids)), 5)
            assert await self.memory.delete([ids[n] for n in chosen]) == 5
            marks = [marks[n] for n in chosen]
        elif how == "rewind":
            place = self.random.randrange(len(ids))
            assert await self.memory.rewind(ids[place]) == len(ids) - place
            marks = marks[place:]
        elif how == "pop":
            count = self.random.randint(1, 4)
            popped = [await self.memory.pop() for _ in range(count)]
            assert [m.id for m in popped if m is not None] == ids[-count:][::-1]
            marks = marks[-count:]
        else:
            assert how == "delete_user"
            sessions = await self.engine.list_sessions(user_id=self.user, limit=1000)
            assert await self.engine.delete_user(self.user) == len(sessions)
        return marks


WAYS = ("reset", "delete", "rewind", "pop", "delete_session", "delete_user")


async def known(memory: Memory) -> str:
    """All that blocks, history and contexts say in this scope."""
    texts = [f"get_all: {message.content}" for message in await memory.get_all()]
    for message in await memory.get("what do you know?"):
        texts += [f"get: {line}" for line in message.content.splitlines()]
    for scope in SCOPES:
        for kind in ("fields", "records", "outside"):
            block = await memory.block(f"{kind}_of_{scope}")
            texts += [f"{block.name}: {line}" for call in await block.absorbed() for line in call]
    return "\n".join(texts)


def assert_unknown(text: str, marks: Sequence[str], what: str) -> None:
    found = [line for line in text.splitlines() if any(mark in line for mark in marks)]
    assert not found, f"{what} still says: " + "; ".join(found[:5])


@pytest.mark.parametrize("database_kind", BOTH_IN_SOAK, indirect=True)
async def test_erasing_while_blocks_absorb_leaves_nothing(database: Database, soak: bool) -> None:
    """100 times with `--soak`: rows, blocks, contexts, old handles, an outside store, the bytes of the file."""
    shelf = Shelf()
    marks = Marks()
    alive: dict[str, list[tuple[str, str]]] = {}
    entered = asyncio.Event()
    async with (
        small_engine(
            database, definitions(shelf, slow=0.03, entered=entered.set), token_limit=1000, token_flush_size=60
        ) as engine,
        small_engine(database, definitions(shelf, slow=0.03), token_limit=1000, token_flush_size=60) as second,
    ):
        for seed in range(102 if soak else 3):
            how = WAYS[seed % len(WAYS)]
            what = f"seed {seed}, {how}"
            scene = Scene(engine, seed)
            old, far = engine.session(scene.name, user_id=scene.user), second.session(scene.name, user_id=scene.user)
            scene.said = await say(scene.memory, marks, 16)
            for handle in (old, far):
                assert scene.said[-1][1] in await known(handle), what
            entered.clear()
            await scene.memory.flush()
            await asyncio.wait_for(entered.wait(), PATIENCE)
            await asyncio.sleep(scene.random.random() * 0.03)
            if how == "delete_user":
                for name in [name for name in alive if int(name[1:]) % 3 == seed % 3]:
                    marks.erased += [mark for _, mark in alive.pop(name)]
            gone = await scene.erase(how)
            marks.erased += gone
            for handle in (scene.memory, old, far):
                assert_unknown(await known(handle), gone, f"{what}: a handle, at once,")
            assert not {t: m for t, m in leaks(database, gone).items() if "messages" in t or "records" in t}, what
            await engine.drain(PATIENCE)
            await second.drain(PATIENCE)
            await check(database, shelf, marks, what)
            for handle in (scene.memory, old, far):
                assert_unknown(await known(handle), gone, f"{what}: a handle, later,")
            again = engine.session(scene.name, user_id=scene.user)
            fresh = await say(again, marks, 4)
            await again.flush()
            await engine.drain(PATIENCE)
            for handle in (scene.memory, old, far, again):
                text = await known(handle)
                assert_unknown(text, gone, f"{what}: a handle on the reused id")
                assert all(mark in text for _, mark in fresh), what
            alive[scene.name] = [pair for pair in scene.said if pair[1] not in gone] + fresh
        await remaining_is_absorbed_once(engine, database, alive)
    assert rows(database, "SELECT * FROM memory_block_leases") == []
    assert raw_leaks(database, marks.erased) == {}, "in the bytes of the closed database"


async def check(database: Database, shelf: Shelf, marks: Marks, what: str) -> None:
    """No erased mark in any table, nor outside."""
    audit(database)
    assert leaks(database, marks.erased) == {}, what
    assert_unknown(str(shelf), marks.erased, f"{what}: the outside store")


async def remaining_is_absorbed_once(engine: MemoryEngine, database: Database, alive: dict[str, list[tuple[str, str]]]) -> None:
    """Erasing some messages costs no block any of the others."""
    for name, said in alive.items():
        memory = engine.session(name, user_id=f"u{int(name[1:]) % 3}")
        assert [message.id for message in await memory.get_all()] == [message_id for message_id, _ in said]
        expected = sorted(flushed(database, name))
        for scope in SCOPES:
            for kind in ("fields", "records", "outside"):
                calls = await (await memory.block(f"{kind}_of_{scope}")).absorbed()
                mine = [line for call in calls for line in heads(call) if line.startswith(f"{name}/")]
                assert sorted(mine) == expected, f"{kind}_of_{scope} of {name}"


async def test_the_bytes_of_an_open_database_keep_nothing_that_was_erased(database: Database) -> None:
    """Neither free pages nor the write-ahead log, while the engine stays open."""
    marks = Marks()
    async with small_engine(database, definitions(Shelf()), token_limit=1000) as engine:
        for seed, how in enumerate(WAYS):
            scene = Scene(engine, seed)
            scene.said = await say(scene.memory, marks, 16)
            await scene.memory.flush()
            await engine.drain(PATIENCE)
            await scene.memory.get()
            gone = await scene.erase(how)
            await engine.drain(PATIENCE)
            assert raw_leaks(database, gone) == {}, how


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
async def test_erasing_before_and_after_a_restart(database: Database) -> None:
    """Work that was pending for an erased session is not resumed for the one that follows it."""
    marks = Marks()
    shelf = Shelf()
    engine = small_engine(database, definitions(shelf, slow=5.0))
    memory = engine.session("s", user_id="u")
    said = await say(memory, marks, 12)
    await memory.flush()
    await asyncio.sleep(0.02)
    await engine.aclose(timeout=0.001)
    gone = [mark for _, mark in said]
    async with small_engine(database, definitions(shelf)) as engine:
        memory = engine.session("s", user_id="u")
        await memory.reset()
        fresh = await say(memory, marks, 12)
        await memory.flush(final=True)
        await memory.drain(PATIENCE)
        text = await known(memory)
        assert_unknown(text, gone, "the new session")
        assert all(mark in text for _, mark in fresh)
        assert leaks(database, gone) == {}
        assert_unknown(str(shelf), gone, "the outside store")


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
@pytest.mark.parametrize("ended", ["killed", "cancelled"])
async def test_what_a_delivery_wrote_outside_before_it_was_cut_off_is_forgotten(database: Database, ended: str) -> None:
    """It was never committed, so that only the outside store knows of it; whatever happens before it is repeated."""
    marks, shelf, options = Marks(), Shelf(), {"token_limit": 1000, "token_flush_size": 500}
    stuck = Outside(name="outside", priority=1, shelf=shelf, linger=60.0)
    async with small_engine(database, [stuck], **options) as engine:
        memory = engine.session("s", user_id="u")
        said = await say(memory, marks, 8)
        await memory.flush()
        async with asyncio.timeout(PATIENCE):
            while said[5][1] not in str(shelf):
                await asyncio.sleep(0.001)
        leases = rows(database, "SELECT * FROM memory_block_leases")
        await engine.aclose(timeout=0.001)
    if ended == "killed":
        # What a process leaves that was killed some time ago: a lease that nobody gave back.
        execute(database, "INSERT INTO memory_block_leases VALUES (?, ?, ?, ?, ?, 0.0)", *leases[0][:5])
    async with small_engine(database, [], **options) as tool:  # it has no blocks, so that it repeats nothing
        await tool.session("s", user_id="u").delete([message_id for message_id, _ in said[1:6]])
    async with small_engine(database, [Outside(name="outside", priority=1, shelf=shelf)], **options) as engine:
        await engine.drain(PATIENCE)
        assert_unknown(str(shelf), [mark for _, mark in said[1:6]], "the outside store")
        assert said[0][1] in str(shelf)


async def _reset(memory: Memory, engine: MemoryEngine) -> None:
    await memory.reset()


async def _delete_session(memory: Memory, engine: MemoryEngine) -> None:
    await engine.delete_session(memory.session_id)


async def _delete_user(memory: Memory, engine: MemoryEngine) -> None:
    await engine.delete_user(memory.user_id or "")


async def _delete_tenant(memory: Memory, engine: MemoryEngine) -> None:
    await engine.delete_tenant(memory.tenant)


async def _purge(memory: Memory, engine: MemoryEngine) -> None:
    await asyncio.sleep(0.002)
    await engine.purge(inactive_for=0.0)


async def _rewind(memory: Memory, engine: MemoryEngine) -> None:
    first = (await memory.get_all())[0].id
    assert first is not None
    await memory.rewind(first)


WHOLE: list[Callable[[Memory, MemoryEngine], Awaitable[None]]] = [
    _reset,
    _delete_session,
    _delete_user,
    _delete_tenant,
    _purge,
    _rewind,
]


@pytest.mark.parametrize("database_kind", BOTH_IN_SOAK, indirect=True)
@pytest.mark.parametrize("erase", WHOLE, ids=lambda erase: erase.__name__[1:])
async def test_caches_of_another_engine_do_not_outlive_what_they_cached(
    database: Database, erase: Callable[[Memory, MemoryEngine], Awaitable[None]], soak: bool
) -> None:
    """The same session anew, with as many messages and deliveries as before, so that every counter is the same again."""
    marks = Marks()
    shelf = Shelf()
    async with small_engine(database, definitions(shelf)) as engine, small_engine(database, definitions(shelf)) as second:
        gone: list[str] = []
        for round_ in range(3 if soak else 2):
            memory, far = engine.session("s", user_id="u"), second.session("s", user_id="u")
            said = await say(memory, marks, 12)
            await memory.flush()
            await engine.drain(PATIENCE)
            for handle in (memory, far):
                text = await known(handle)
                assert_unknown(text, gone, f"round {round_}")
                assert all(mark in text for _, mark in said), f"round {round_}"
            await erase(memory, engine)
            await engine.drain(PATIENCE)
            gone += [mark for _, mark in said]
            for handle in (memory, far):
                assert_unknown(await known(handle), gone, f"round {round_}, after erasing")
        audit(database)
        assert leaks(database, gone) == {}


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
@pytest.mark.parametrize("how", ["delete_session", "delete_user", "delete_tenant"])
async def test_deleting_leaves_rows_of_others_only(database: Database, how: str) -> None:
    """Counted in every table: what a deletion leaves is what would be there had the deleted never been."""
    marks = Marks()
    async with small_engine(database, definitions(Shelf())) as engine:
        stays = engine.session("stays", user_id="v", tenant="kept")
        said = await say(stays, marks, 12)
        await stays.flush()
        await engine.drain(PATIENCE)
        before = counts(database)
        goes = engine.session("goes", user_id="u", tenant="gone")
        await say(goes, marks, 12)
        await goes.flush()
        await engine.drain(PATIENCE)
        assert counts(database) != before
        if how == "delete_session":
            await engine.delete_session("goes", tenant="gone")
        elif how == "delete_user":
            await engine.delete_user("u", tenant="gone")
        else:
            await engine.delete_tenant("gone")
        await engine.drain(PATIENCE)
        after = counts(database)
        # Versions of wider scopes stay, so that caches know that something went; they hold nothing of it.
        wider = {"delete_session": 6, "delete_user": 3, "delete_tenant": 0}[how]
        assert after.pop("memory_block_states") <= before.pop("memory_block_states") + wider
        assert after == before
        text = await known(stays)
        assert all(mark in text for _, mark in said)


def counts(database: Database) -> dict[str, int]:
    """How many rows each table has, but for the leases: one is given back a moment after its work is done."""
    return {
        table: rows(database, f'SELECT COUNT(*) FROM "{table}"')[0][0]
        for table in tables(database)
        if table != "memory_block_leases"
    }
