"""The contract between blocks and the engine, in whole memories on SQLite: state, corrections, sections, failures."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, PrivateAttr

from memory_engine import BaseMemoryBlock, ChatMessage, ImageBlock, Limits, Memory, MemoryEngine, TextBlock
from memory_engine.errors import (
    BlockDefinitionError,
    BlockError,
    BlockResultError,
    BlockStateError,
    BlockTimeoutError,
    BudgetExceededError,
    ConfigurationError,
    DrainTimeoutError,
)
from memory_engine.tokens import TokenCounter

pytestmark = pytest.mark.asyncio

QUICK = Limits(get=0.3, delivery=5.0, first_retry=0.01, last_retry=0.03, max_attempts=2, lease=0.5, poll=0.05)
PATIENCE = 30.0


class Notes(BaseMemoryBlock[str]):
    """Keeps what it is told; `on_put` may look or wait first."""

    name: str = "notes"
    notes: list[str] = []
    edits: int = 0
    style: str = "plain"
    client: Any = Field(default=None, exclude=True)
    on_put: Any = Field(default=None, exclude=True)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return "\n".join(self.notes)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        if self.on_put is not None and inspect.isawaitable(done := self.on_put(self, messages)):
            await done
        self.notes.extend(message.content for message in messages)

    async def remember(self, note: str) -> None:
        """Add a note, alone or as part of a delivery."""
        async with self.transaction():
            self.notes.append(note)
            self.edits += 1
            self.records.put(f"edit-{self.edits}", note)


class Says(BaseMemoryBlock[Any]):
    """Its section is whatever the functions return or raise."""

    name: str = "says"
    priority: int = 1
    get: Any = Field(exclude=True)
    cut: Any = Field(default=None, exclude=True)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> Any:
        result = self.get(self, messages, **block_kwargs) if callable(self.get) else self.get
        return await result if inspect.isawaitable(result) else result

    async def _aput(self, messages: list[ChatMessage]) -> None:
        return None

    async def atruncate(self, content: Any, tokens_to_truncate: int) -> Any:
        if self.cut is None:
            return await super().atruncate(content, tokens_to_truncate)
        result = self.cut(content, tokens_to_truncate)
        return await result if inspect.isawaitable(result) else result


def says(content: Any, name: str = "says", **fields: Any) -> Says:
    return Says(name=name, get=content, **fields)


@asynccontextmanager
async def open_engine(folder: Path, *blocks: BaseMemoryBlock[Any], **settings: Any) -> AsyncIterator[MemoryEngine]:
    uri = f"sqlite+aiosqlite:///{folder / 'memory.db'}"
    engine = MemoryEngine(**{"async_database_uri": uri, "memory_blocks": blocks, "limits": QUICK, **settings})
    try:
        yield engine
    finally:
        await engine.aclose(timeout=0.1)


async def tell(memory: Memory, *texts: str) -> None:
    """Each text is a turn and a flush of its own; then wait for the blocks."""
    for text in texts:
        await memory.put({"role": "user", "content": text})
        await memory.flush(final=True)
    await memory.drain(PATIENCE)


def cost(messages: Sequence[ChatMessage]) -> int:
    counter = TokenCounter()
    return sum(counter.message(message) for message in messages)


# -- definitions -------------------------------------------------------------------------------------------------


async def test_a_live_object_in_a_plain_field_is_refused_at_construction() -> None:
    class Careless(Notes):
        lock: Any = None

    for make in (Memory.from_defaults, MemoryEngine):
        with pytest.raises(BlockDefinitionError, match=r"'lock' of block 'notes'.*exclude=True"):
            make(memory_blocks=[Careless(lock=threading.Lock())])


async def test_names_are_unique_and_known() -> None:
    with pytest.raises(ConfigurationError, match="Two memory blocks are called 'Notes'"):
        Memory.from_defaults(memory_blocks=[Notes(), Notes(name="Notes")])
    for taken in ("memory", "History"):
        with pytest.raises(ConfigurationError, match="the engine uses that name"):
            Memory.from_defaults(memory_blocks=[Notes(name=taken)])
    memory = Memory.from_defaults(memory_blocks=[Notes()])
    with pytest.raises(ConfigurationError, match="no block 'other'; its blocks are: notes"):
        memory.block("other")
    with pytest.raises(ConfigurationError, match="list of memory blocks"):
        Memory.from_defaults(memory_blocks=Notes())  # type: ignore[arg-type]


async def test_a_bound_block_is_no_definition(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Notes()) as engine:
        bound = await engine.session("one").block("notes")
        with pytest.raises(BlockDefinitionError, match="bound to a scope already"):
            MemoryEngine(memory_blocks=[bound])


async def test_user_scope_needs_a_user() -> None:
    engine = MemoryEngine(memory_blocks=[Notes(scope="user")])
    with pytest.raises(ConfigurationError, match=r"\['notes'\] have scope='user'; give the session a user_id"):
        engine.session("one")
    with pytest.raises(ConfigurationError, match="user_id"):
        Memory.from_defaults(memory_blocks=[Notes(scope="user")])
    engine.session("one", user_id="ada")


# -- state -------------------------------------------------------------------------------------------------------


async def test_one_definition_serves_many_sessions(tmp_path: Path) -> None:
    definition = Notes(notes=["given"])
    async with open_engine(tmp_path, definition) as engine:
        await asyncio.gather(*(tell(engine.session(f"s{n}"), f"a{n}", f"b{n}") for n in range(20)))
        for n in range(20):
            assert (await engine.session(f"s{n}").block("notes")).notes == ["given", f"a{n}", f"b{n}"]
    assert definition.notes == ["given"]
    assert not definition.bound


async def test_what_was_saved_once_stays_and_the_rest_follows_the_definition(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Notes(style="plain", edits=0)) as engine:
        await tell(engine.session("one"), "hello")
    async with open_engine(tmp_path, Notes(style="bold", edits=7, notes=["new default"], priority=3)) as engine:
        block = await engine.session("one").block("notes")
        assert (block.notes, block.style, block.edits, block.priority) == (["hello"], "bold", 7, 3)
        fresh = await engine.session("two").block("notes")
        assert (fresh.notes, fresh.style) == (["new default"], "bold")


async def test_clients_are_shared_by_reference(tmp_path: Path) -> None:
    client = threading.Lock()
    seen: list[Any] = []
    definition = Notes(client=client, on_put=lambda block, _: seen.append(block.client))
    async with open_engine(tmp_path, definition) as engine:
        memory = engine.session("one")
        await tell(memory, "hello")
        seen.append((await memory.block("notes")).client)
        await memory.get()
    assert all(found is client for found in seen)
    assert len(seen) == 2


@pytest.mark.parametrize("kind", ["private", "type", "live"])
async def test_state_that_cannot_be_saved_parks_the_chunk(tmp_path: Path, kind: str) -> None:
    class Careless(Notes):
        _count: int = PrivateAttr(default=0)

        async def _aput(self, messages: list[ChatMessage]) -> None:
            if any("poison" in message.content for message in messages):
                if kind == "private":
                    self._count += 1
                elif kind == "type":
                    self.edits = "many"  # type: ignore[assignment]
                else:
                    self.notes.append(threading.Lock())  # type: ignore[arg-type]
            else:
                await super()._aput(messages)

    definition = Careless()
    async with open_engine(tmp_path, definition) as engine:
        memory = engine.session("one")
        await tell(memory, "one", "poison", "two")
        assert (await memory.block("notes")).notes == ["one", "two"]
        [parked] = (await memory.context()).receipt.parked
        assert parked.attempts == 2
        wanted = {"private": "private attribute '_count'", "type": "field 'edits'", "live": "field 'notes'"}[kind]
        assert wanted in parked.error
        assert definition._count == 0


async def test_reading_cannot_change_state(tmp_path: Path) -> None:
    class Greedy(Notes):
        async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
            self.edits += 1
            self.notes.append("from _aget")
            return f"{self.edits} edits"

        async def atruncate(self, content: str, tokens_to_truncate: int) -> str | None:
            self.edits += 100
            return content[:5]

    async with open_engine(tmp_path, Greedy(priority=1, max_tokens=1)) as engine:
        memory = engine.session("one")
        await tell(memory, "hello")
        for _ in range(3):
            await memory.get()
        block = await memory.block("notes")
        assert (block.edits, block.notes) == (0, ["hello"])
        assert await block._aget() == "1 edits"


async def test_writing_records_while_reading_fails_the_section(tmp_path: Path) -> None:
    def write(block: Says, *_: Any) -> str:
        block.records.put("a")
        return "done"

    async with open_engine(tmp_path, says(write)) as engine:
        context = await engine.session("one").context()
        assert "Records can only be written" in (context.receipt.source("says").error or "")


class First(BaseMemoryBlock[str]):
    name: str = "counter"
    count: int = 0

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return f"count {self.count}"

    async def _aput(self, messages: list[ChatMessage]) -> None:
        self.count += len(messages)


class Second(BaseMemoryBlock[str]):
    state_version = 2
    name: str = "counter"
    by_role: dict[str, int] = {}

    @classmethod
    def upgrade_state(cls, state: dict[str, Any], from_version: int) -> dict[str, Any]:
        return {"by_role": {"unknown": state["count"]}}

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return repr(self.by_role)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        for message in messages:
            self.by_role[message.role] = self.by_role.get(message.role, 0) + 1


async def test_state_is_upgraded_and_newer_state_is_refused(tmp_path: Path) -> None:
    async with open_engine(tmp_path, First()) as engine:
        await tell(engine.session("one"), "a", "b")
    async with open_engine(tmp_path, Second()) as engine:
        memory = engine.session("one")
        assert (await memory.block("counter")).by_role == {"unknown": 2}
        assert "{'unknown': 2}" in (await memory.get())[0].content
        await tell(memory, "c")
    async with open_engine(tmp_path, Second()) as engine:
        assert (await engine.session("one").block("counter")).by_role == {"unknown": 2, "user": 1}
    async with open_engine(tmp_path, First(), Notes()) as engine:
        memory = engine.session("one")
        await tell(memory, "d")
        context = await memory.context()
        error = context.receipt.source("counter").error or ""
        assert "saved by its version 2, this is 1; run the newer code" in error
        assert "<notes>" in context.messages[0].content, "the other block is not affected"
        [parked] = context.receipt.parked
        assert parked.block == "counter"
        with pytest.raises(BlockStateError, match="run the newer code"):
            await memory.block("counter")
    async with open_engine(tmp_path, First(), on_block_error="raise") as engine:
        with pytest.raises(BlockStateError, match="run the newer code"):
            await engine.session("one").get()
    async with open_engine(tmp_path, Second()) as engine:
        memory = engine.session("one")
        assert await memory.redeliver() == 1
        await memory.drain(PATIENCE)
        assert (await memory.block("counter")).by_role == {"unknown": 2, "user": 2}


# -- corrections -------------------------------------------------------------------------------------------------


async def test_a_block_can_be_looked_at_and_corrected(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Notes()) as engine:
        memory = engine.session("one")
        assert (await memory.block("notes")).notes == []
        await tell(memory, "wrong", "right")
        async with memory.block("notes") as block:
            block.notes.remove("wrong")
            block.records.put("k", {"by": "hand"})
            assert (await block.records.get("k")).data == {"by": "hand"}  # type: ignore[union-attr]
        assert "wrong" not in (await memory.get())[0].content
        looked = await memory.block("notes")
        looked.notes.append("only looking")
        with pytest.raises(BlockStateError, match="can only be written"):
            looked.records.put("k")
        await tell(memory, "more")
        block = await memory.block("notes")
        assert block.notes == ["right", "more"]
        assert [record.key for record in await block.records.list()] == ["k"]
    async with open_engine(tmp_path, Notes()) as engine:
        assert (await engine.session("one").block("notes")).notes == ["right", "more"]


async def test_a_correction_of_a_session_without_messages(tmp_path: Path) -> None:
    for scope in ("session", "user", "global"):
        (tmp_path / scope).mkdir()
        async with open_engine(tmp_path / scope, Notes(scope=scope)) as engine:
            memory = engine.session("one", user_id="ada")
            async with memory.block("notes") as block:
                block.notes.append("by hand")
            assert "by hand" in (await memory.get())[0].content
            assert await memory.get_all() == []
            await tell(memory, "hello")
            assert (await memory.block("notes")).notes == ["by hand", "hello"]


async def test_a_correction_that_fails_changes_nothing(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Notes()) as engine:
        memory = engine.session("one")
        await tell(memory, "hello")
        bound = await memory.block("notes")
        with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the error is raised inside the correction
            async with bound.transaction():
                bound.notes.append("half")
                bound.records.put("half")
                raise ZeroDivisionError
        assert bound.notes == ["hello"], "the copy shows what is saved"
        assert await bound.records.count() == 0
        with pytest.raises(BlockStateError, match="field 'edits'"):
            async with memory.block("notes") as block:
                block.edits = "many"  # type: ignore[attr-defined]
        async with memory.block("notes") as block:
            assert block.notes == ["hello"]  # type: ignore[attr-defined]
            assert block.edits == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("times", [1, 5])
async def test_corrections_do_not_wait_for_a_delivery(tmp_path: Path, times: int) -> None:
    """Which may be asking a model; it follows on the state that they leave, and asks nobody a second time."""
    gate, started, asked = asyncio.Event(), asyncio.Event(), list[str]()

    async def model() -> str:
        asked.append("question")
        started.set()
        await gate.wait()
        return "answer"

    async def wait(block: Notes, messages: object) -> None:
        assert await block.context.once(model) == "answer"

    async with open_engine(tmp_path, Notes(on_put=wait)) as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "delivered"})
        await memory.flush(final=True)
        await asyncio.wait_for(started.wait(), PATIENCE)

        for number in range(times):
            async with memory.block("notes") as block:
                block.notes.append(f"corrected {number}")  # type: ignore[attr-defined]
            assert "corrected" in repr(await memory.get())
        gate.set()
        await memory.drain(PATIENCE)
        corrected = [f"corrected {number}" for number in range(times)]
        assert (await memory.block("notes")).notes == [*corrected, "delivered"]
        assert asked == ["question"]


async def test_a_delivery_is_committed_when_a_correction_has_ended(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Notes()) as engine:
        memory = engine.session("one")
        await tell(memory, "before")
        async with memory.block("notes") as block:
            block.notes.append("corrected")  # type: ignore[attr-defined]
            await memory.put({"role": "user", "content": "delivered"})
            await memory.flush(final=True)
            with pytest.raises(DrainTimeoutError):
                await memory.drain(0.3)
            assert (await memory.block("notes")).notes == ["before"]
        await memory.drain(PATIENCE)
        assert (await memory.block("notes")).notes == ["before", "corrected", "delivered"]


class Forgetful(Notes):
    """Forgets by itself; `on_forget` may wait first."""

    on_forget: Any = Field(default=None, exclude=True)

    async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        await self.on_forget()
        self.notes.remove("one")


async def test_what_is_forgotten_during_a_correction_stays_forgotten(tmp_path: Path) -> None:
    gate, started = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        started.set()
        await gate.wait()

    async with open_engine(tmp_path, Forgetful(on_forget=wait)) as engine:
        memory = engine.session("one")
        [first, _] = await memory.put_messages([{"role": "user", "content": text} for text in ("one", "two")])
        await memory.flush(final=True)
        await memory.drain(PATIENCE)
        await memory.delete([str(first.id)])
        await asyncio.wait_for(started.wait(), PATIENCE)
        async with memory.block("notes") as block:
            block.notes.append("corrected")  # type: ignore[attr-defined]
        gate.set()
        await memory.drain(PATIENCE)
        assert (await memory.block("notes")).notes == ["two", "corrected"]


async def test_a_correction_that_cannot_get_its_turn_says_so(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Notes()) as engine:
        memory = engine.session("one")
        await tell(memory, "hello")
        async with memory.block("notes"):
            with pytest.raises(BlockError, match="being changed by somebody else"):
                async with memory.block("notes"):
                    pytest.fail("the other correction holds the lease")


async def test_the_newest_messages_of_a_session(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Notes()) as engine:
        memory = engine.session("one")
        assert await memory.get_all(last=3) == []
        await memory.put_messages([{"role": "user", "content": str(n)} for n in range(10)])
        await memory.flush(final=True)
        for last, expected in ((0, []), (1, ["9"]), (3, ["7", "8", "9"]), (99, [str(n) for n in range(10)])):
            assert [message.content for message in await memory.get_all(last=last)] == expected
        for wrong in (-1, 1.5, True, "2"):
            with pytest.raises(ConfigurationError, match="how many of the newest"):
                await memory.get_all(last=wrong)  # type: ignore[arg-type]


async def test_many_corrections_add_up(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Notes(scope="user")) as one, open_engine(tmp_path, Notes(scope="user")) as two:
        memories = [engine.session(f"s{n % 3}", user_id="ada") for n in range(5) for engine in (one, two)]

        async def correct(memory: Memory, n: int) -> None:
            async with memory.block("notes") as block:
                block.edits += 1  # type: ignore[attr-defined]
                block.records.put(f"{n}")

        await asyncio.gather(*(correct(memory, n) for n, memory in enumerate(memories)))
        block = await memories[0].block("notes")
        assert block.edits == 10
        assert await block.records.count() == 10


async def test_a_method_can_hold_a_transaction_of_its_own(tmp_path: Path) -> None:
    definition = Notes(on_put=lambda block, _: block.remember("while absorbing"))
    async with open_engine(tmp_path, definition) as engine:
        memory = engine.session("one")
        await tell(memory, "hello")
        bound = await memory.block("notes")
        await bound.remember("by hand")
        async with bound.transaction():
            await bound.remember("nested")
        block = await memory.block("notes")
        assert block.notes == ["while absorbing", "hello", "by hand", "nested"]
        assert [record.data for record in await block.records.list()] == ["while absorbing", "by hand", "nested"]


async def test_a_correction_of_an_erased_session_is_refused(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Notes()) as engine:
        memory = engine.session("one")
        await tell(memory, "secret")
        old = await memory.block("notes")
        await memory.reset()
        with pytest.raises(BlockError, match="its session was erased meanwhile"):
            async with old.transaction():
                old.notes.append("secret again")
        assert (await memory.block("notes")).notes == []
        with pytest.raises(BlockError, match="its session was erased meanwhile"):  # noqa: PT012 - on leaving
            async with memory.block("notes") as block:
                await memory.reset()
                block.notes.append("secret again")  # type: ignore[attr-defined]
        assert (await memory.block("notes")).notes == []


async def test_records_tell_what_changed_and_what_was_lost(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Notes()) as engine:
        memory = engine.session("one")
        async with memory.block("notes") as block:
            for key in ("a", "b", "c"):
                block.records.put(key, key, blob=key.encode() * 1000)
        block = await memory.block("notes")
        known = block.context.state_version
        assert block.context.deleted_version <= known
        assert await block.records.list(changed_since=known) == []
        async with memory.block("notes") as block:
            block.records.put("b", "new")
        block = await memory.block("notes")
        assert [(r.key, r.data, r.blob) for r in await block.records.list(changed_since=known)] == [("b", "new", None)]
        assert block.context.deleted_version <= known
        async with memory.block("notes") as block:
            block.records.delete("a")
            block.records.delete("never there")
        block = await memory.block("notes")
        assert block.context.deleted_version > known
        assert [record.key for record in await block.records.list()] == ["b", "c"]


async def test_many_records_in_one_delivery(tmp_path: Path) -> None:
    def write(block: Notes, _: object) -> None:
        for n in range(5_000):
            block.records.put(f"{n:05d}", n)

    async with open_engine(tmp_path, Notes(on_put=write), limits=replace(QUICK, lease=30.0, get=10.0, delivery=60.0)) as engine:
        memory = engine.session("one")
        await tell(memory, "hello")
        async with memory.block("notes") as block:
            for n in range(5_000):
                block.records.delete(f"{n:05d}") if n % 2 else block.records.put(f"{n:05d}", -n)
            assert await block.records.count() == 2_500
        block = await memory.block("notes")
        assert await block.records.count() == 2_500
        assert [r.data for r in await block.records.list(limit=3)] == [0, -2, -4]
        assert sum([len(page) async for page in block.records.pages(size=1_000)]) == 2_500


# -- what a block is told when it is read ------------------------------------------------------------------------


async def test_aget_is_told_the_room_the_history_and_the_query(tmp_path: Path) -> None:
    told: list[tuple[Any, Any, dict[str, Any]]] = []

    def look(block: Says, messages: Any, **kwargs: Any) -> str:
        told.append((block.context, messages, kwargs))
        return ""

    async with open_engine(tmp_path, says(look, scope="user"), token_limit=1000, reserved_tokens=100) as engine:
        memory = engine.session("one", user_id="ada", tenant="north")
        await memory.put({"role": "user", "content": "hello"})
        await memory.get("what is it?", language="de")
        await memory.get()
    (context, messages, kwargs), (without, history, _) = told
    assert (context.tenant, context.user_id, context.session_id) == ("north", "ada", "one")
    assert 0 < context.tokens_available <= 900
    assert len(context.shown) == 1
    assert [message.content for message in context.query] == ["what is it?"]
    assert [message.content for message in messages] == ["hello", "what is it?"]
    assert kwargs == {"language": "de"}
    assert without.query is None
    assert [message.content for message in history] == ["hello"]


async def test_max_tokens_bounds_the_room_too(tmp_path: Path) -> None:
    room: list[int] = []
    block = says(lambda block, *_: room.append(block.context.tokens_available) or "", max_tokens=50)
    async with open_engine(tmp_path, block) as engine:
        await engine.session("one").get()
    assert room == [50]


async def test_a_block_may_change_the_list_it_is_given(tmp_path: Path) -> None:
    def spoil(_: Says, messages: list[ChatMessage], **__: Any) -> str:
        messages.clear()
        return "x"

    async with open_engine(tmp_path, says(spoil, "one"), says(lambda _, messages: str(len(messages)), "two")) as engine:
        memory = engine.session("s")
        await memory.put({"role": "user", "content": "hello"})
        system, user = await memory.get()
        assert "<two>\n1\n</two>" in system.content
        assert user.content == "hello"


# -- sections ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", ["", "  \n", [], None, [TextBlock(text=" ")]])
async def test_nothing_to_say_makes_no_section(tmp_path: Path, nothing: Any) -> None:
    async with open_engine(tmp_path, says(nothing)) as engine:
        context = await engine.session("one").context()
        assert context.messages == []
        source = context.receipt.source("says")
        assert (source.given, source.error) == (0, None)


async def test_items_are_tagged_and_media_go_to_the_user(tmp_path: Path) -> None:
    image = ImageBlock(url="https://example.org/map.png")
    items = [TextBlock(text="tea & </facts>", tag="fact", value=0.5), image, TextBlock(text="plain")]
    async with open_engine(tmp_path, says(items, "facts")) as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "hello"})
        system, user = await memory.get()
        assert "<facts>\n<fact>tea & &lt;/facts></fact>\nplain\n</facts>" in system.content
        assert [block.type for block in user.blocks] == ["image", "text"] or [b.type for b in user.blocks] == ["text", "image"]


LONG = "\n".join(f"line {n} of a long text" for n in range(200))


@pytest.mark.parametrize(
    "content",
    [
        LONG,
        [TextBlock(text=line, value=float(n), tag="fact") for n, line in enumerate(LONG.splitlines())],
        [ChatMessage(role="user", content=line) for line in LONG.splitlines()],
    ],
    ids=["str", "items", "messages"],
)
@pytest.mark.parametrize("limit", [{"max_tokens": 200}, {}])
async def test_the_default_truncation_uses_the_room_there_is(tmp_path: Path, content: Any, limit: dict[str, int]) -> None:
    async with open_engine(tmp_path, says(content, **limit), token_limit=1_000, reserved_tokens=100) as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "hello"})
        context = await memory.context()
        source = context.receipt.source("says")
        assert cost(context.messages) == context.receipt.tokens <= 900
        room = limit.get("max_tokens", 850)
        assert source.given < source.asked
        assert source.given >= room * 0.85, f"{source.given} of {room} tokens used"
        assert source.outcome.startswith("trimmed: ")
        text = "\n".join(message.content for message in context.messages)
        assert ("line 0 of" in text) is isinstance(content, str), "texts keep their beginning, lists the best and the newest"
        assert ("line 199 of" in text) is isinstance(content, list)


async def test_the_largest_priority_number_is_cut_first_and_zero_never(tmp_path: Path) -> None:
    blocks = [says(LONG, f"p{priority}", priority=priority) for priority in (2, 0, 3, 1)]
    whole = cost([ChatMessage(role="user", content=LONG)])
    for sections, expected in ((3.5, "p3"), (2.5, "p3 p2"), (1.6, "p3 p2 p1")):
        (tmp_path / expected).mkdir()
        limit = int(sections * whole) + 100
        async with open_engine(tmp_path / expected, *blocks, token_limit=limit) as engine:
            context = await engine.session("one").context()
            assert context.receipt.tokens <= limit
            cut = {source.name for source in context.receipt.sources if source.outcome != "whole"}
            assert {name for name in cut if name != "history"} == set(expected.split())
            assert context.receipt.source("p0").outcome == "whole"
    async with open_engine(tmp_path, *blocks, token_limit=whole // 2) as engine:
        with pytest.raises(BudgetExceededError, match="p0"):
            await engine.session("one").get()


async def test_the_least_valuable_items_go_first(tmp_path: Path) -> None:
    items = [TextBlock(text=f"fact number {n}", value=float((n * 7) % 20)) for n in range(20)]
    async with open_engine(tmp_path, says(items, max_tokens=40)) as engine:
        [system] = await engine.session("one").get()
        kept = [item for item in items if f"{item.text}\n" in f"{system.content}\n"]
        assert 3 <= len(kept) < 12
        assert sorted(item.value or 0.0 for item in kept) == [float(n) for n in range(20 - len(kept), 20)]


# -- failing blocks ----------------------------------------------------------------------------------------------


def raises(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


async def hangs(*_: Any, **__: Any) -> str:
    await asyncio.sleep(3600)
    return "never"


async def ignores_cancellation(*_: Any, **__: Any) -> str:
    end = time.monotonic() + 2
    while time.monotonic() < end:
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            continue
    return "late"


BAD: dict[str, tuple[Any, str, type[BlockError]]] = {
    "raises": (raises(ValueError("a bug")), "ValueError: a bug", BlockError),
    "stops": (raises(StopAsyncIteration()), "StopAsyncIteration", BlockError),
    "cancels itself": (raises(asyncio.CancelledError()), "cancelled itself", BlockError),
    "hangs": (hangs, "took longer than 0.3 s", BlockTimeoutError),
    "ignores cancellation": (ignores_cancellation, "took longer than 0.3 s", BlockTimeoutError),
    "a number": (5, "returned int", BlockResultError),
    "bytes": (b"text", "returned bytes", BlockResultError),
    "a dict": ({"a": 1}, "returned dict", BlockResultError),
    "strings": (["a", "b"], r"list of ['str']", BlockResultError),
    "a mix": ([TextBlock(text="a"), ChatMessage(role="user", content="b")], "['ChatMessage', 'TextBlock']", BlockResultError),
    "a surrogate": ("a\ud800", "lone surrogate", BlockResultError),
    "another class": (ChatMessage, "returned ", BlockResultError),
    "counts a number": (lambda block, *_: str(block.context.count(5)), "could not count", BlockError),
    "raises a group": (raises(ExceptionGroup("several", [ValueError("a")])), "ExceptionGroup", BlockError),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_block_that_fails_to_be_read_is_left_out(tmp_path: Path, bad: str) -> None:
    content, text, kind = BAD[bad]
    blocks = [says((lambda *_: ChatMessage) if content is ChatMessage else content), says("fine", "fine")]
    async with open_engine(tmp_path, *blocks) as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "hello"})
        context = await memory.context("query")
        system, user = context.messages
        assert "<fine>" in system.content
        assert "<says>" not in system.content
        assert user.content == "hello"
        source = context.receipt.source("says")
        assert text in (source.error or "")
        assert (source.given, source.outcome) == (0, "left out: the block failed")
        assert context.receipt.source("fine").error is None
    async with open_engine(tmp_path, *blocks, on_block_error="raise") as engine:
        with pytest.raises(kind, match="says"):
            await engine.session("one").get()


async def test_a_block_that_takes_no_block_kwargs_fails_alone(tmp_path: Path) -> None:
    async with open_engine(tmp_path, says(lambda _, messages: "x"), says(lambda *_, **__: "y", "other")) as engine:
        context = await engine.session("one").context(language="de")
        assert "language" in (context.receipt.source("says").error or "")
        assert "<other>" in context.messages[0].content


async def test_slow_blocks_are_read_at_the_same_time(tmp_path: Path) -> None:
    at_once = asyncio.Barrier(5)

    async def meet(*_: Any, **__: Any) -> str:
        await at_once.wait()
        return "met"

    async with open_engine(tmp_path, *(says(meet, f"b{n}") for n in range(5))) as engine:
        context = await engine.session("one").context()
        assert all(source.error is None for source in context.receipt.sources)


BAD_CUTS: dict[str, tuple[Any, str]] = {
    "raises": (raises(ValueError("a bug")), "ValueError: a bug"),
    "hangs": (hangs, "took longer than 0.3 s"),
    "cancels itself": (raises(asyncio.CancelledError()), "cancelled itself"),
    "lies": (lambda content, tokens: content, "did not free enough"),
    "grows": (lambda content, tokens: content + content, "did not free enough"),
    "a number": (lambda content, tokens: 5, "returned int"),
    "none": (lambda content, tokens: None, "no room for it"),
    "empty": (lambda content, tokens: "", "no room for it"),
}


@pytest.mark.parametrize("bad", BAD_CUTS)
@pytest.mark.parametrize("limit", [{"max_tokens": 100}, {}])
async def test_a_section_that_cannot_be_truncated_is_left_out(tmp_path: Path, bad: str, limit: dict[str, int]) -> None:
    cut, text = BAD_CUTS[bad]
    blocks = [says(LONG, cut=cut, **limit), says("fine", "fine", priority=0)]
    async with open_engine(tmp_path, *blocks, token_limit=600) as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "hello"})
        context = await memory.context()
        system, user = context.messages
        assert context.receipt.tokens == cost(context.messages) <= 600
        assert "<fine>" in system.content
        assert "<says>" not in system.content
        assert user.content == "hello"
        source = context.receipt.source("says")
        assert text in f"{source.outcome} {source.error}"
        assert source.given == 0


async def test_a_truncation_that_fails_can_raise(tmp_path: Path) -> None:
    block = says(LONG, cut=raises(ValueError("a bug")), max_tokens=10)
    async with open_engine(tmp_path, block, on_block_error="raise") as engine:
        with pytest.raises(BlockError, match="Block 'says' failed: ValueError: a bug") as caught:
            await engine.session("one").get()
        assert isinstance(caught.value.__cause__, ValueError)


async def test_a_truncation_that_frees_a_little_is_asked_again(tmp_path: Path) -> None:
    asked: list[int] = []

    def slowly(content: str, tokens: int) -> str:
        asked.append(tokens)
        return content[: len(content) - (1 if len(asked) == 1 else 4 * tokens + 20)]

    async with open_engine(tmp_path, says(LONG, cut=slowly, max_tokens=500)) as engine:
        context = await engine.session("one").context()
        assert context.receipt.source("says").outcome == "trimmed: max_tokens is 500"
        assert len(asked) == 2


async def test_get_does_not_wait_for_put(tmp_path: Path) -> None:
    """A block that hangs in `_aput` is read as it was before."""
    async with open_engine(tmp_path, Notes(on_put=hangs), says("fine", "fine")) as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "hello"})
        await memory.flush(final=True)
        async with asyncio.timeout(PATIENCE):
            context = await memory.context()
        assert "<fine>" in context.messages[0].content
        assert context.messages[-1].content == "hello"
