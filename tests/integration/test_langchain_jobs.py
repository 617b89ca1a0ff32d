"""The jobs of LangChain's memory classes, done by a memory of this engine: same dialogues, same figures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_engine import BaseMemoryBlock, ChatMessage, Memory, MemoryEngine, TextBlock
from memory_engine.blocks import StaticMemoryBlock
from memory_engine.errors import BudgetExceededError, ConfigurationError, ReadOnlyError
from memory_engine.formats.text import format_history

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "langchain-golden.json").read_text(encoding="utf-8"))


def words(text: str) -> int:
    return len(text.split())


def memory_of(**settings: Any) -> Memory:
    """A memory that counts words, as the golden figures do."""
    return Memory.from_defaults(
        "one", **{"tokenizer_fn": words, "message_overhead_tokens": 0, "token_limit": 10_000} | settings
    )


def turns(name: str) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in GOLDEN["dialogues"][name]]


# -- entity stores ---------------------------------------------------------------------------------------------------


class Keys(BaseMemoryBlock[str]):
    """A block that is nothing but its records."""

    name: str = "keys"

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return ""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        return None


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("scope", ["session", "user", "global"])
async def test_records_are_the_store_of_keys_and_values(where: str, scope: Any, tmp_path: Path) -> None:
    """One rule for every database: what was put comes back as it was, also what is empty; nothing reaches another scope."""
    name = ":memory:" if where == "memory" else str(tmp_path / "keys.db")
    uri = f"sqlite+aiosqlite:///{name}"
    async with MemoryEngine(async_database_uri=uri, memory_blocks=[Keys(scope=scope)]) as engine:
        mine = engine.session("u1", user_id="u1", tenant="u1")
        others = [engine.session(name, user_id=name, tenant=name) for name in ("u*", "u", "u11", "U1")]
        for memory in (mine, *others):
            async with memory.block("keys") as block:
                assert await block.records.get("deven") is None
                block.records.put("deven", memory.session_id)
        async with mine.block("keys") as block:
            for value in ("", "text", None, 0, {"a": [1]}):
                block.records.put("value", value)
                found = await block.records.get("value")
                assert found is not None and found.data == value
            block.records.delete("nothing")
            block.records.delete("value")
            assert await block.records.get("value") is None
            for record in await block.records.list():
                block.records.delete(record.key)
        assert await (await mine.block("keys")).records.count() == 0
        for memory in others:
            found = await (await memory.block("keys")).records.get("deven")
            assert found is not None and found.data == memory.session_id


async def test_two_memories_without_a_database_share_nothing() -> None:
    async with memory_of(memory_blocks=[Keys()]) as one, memory_of(memory_blocks=[Keys()]) as two:
        async with one.block("keys") as block:
            block.records.put("deven", "here")
        assert await (await two.block("keys")).records.count() == 0


# -- buffer ----------------------------------------------------------------------------------------------------------


async def test_buffer_keeps_everything() -> None:
    async with memory_of() as memory:
        for turn in turns("BUF"):
            await memory.put_messages(turn)
        everything = await memory.get_all()
        assert len(everything) == 4
        assert format_history(everything) == GOLDEN["buffer.BUF"]["history"]
        everything.clear()
        got = await memory.get()
        got.pop()
        assert format_history(await memory.get()) == GOLDEN["buffer.BUF"]["history"]
        assert len(await memory.get_all()) == 4


def test_other_names_and_roles_in_text() -> None:
    said = [
        ChatMessage(role="system", content="Be kind."),
        ChatMessage(role="user", content="Hi"),
        ChatMessage(role="assistant"),
    ]
    assert format_history(said, human_prefix="Ada", ai_prefix="Bot") == "System: Be kind.\nAda: Hi\nBot: "


# -- window ----------------------------------------------------------------------------------------------------------


async def test_window_shows_the_last_turns() -> None:
    async with memory_of(max_turns=2) as memory:
        for turn, expected in zip(turns("WIN"), GOLDEN["window.k2.WIN.after_each_turn"], strict=True):
            await memory.put_messages(turn)
            assert format_history(await memory.get()) == expected
        assert len(await memory.get_all()) == 8, "what the window does not show is not lost"


async def test_a_window_of_nothing() -> None:
    async with memory_of(max_turns=0) as memory:
        for turn in turns("WIN"):
            await memory.put_messages(turn)
        assert await memory.get() == []


async def test_a_window_never_tears_a_call_from_its_result() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    said = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    async with memory_of(max_turns=1) as memory:
        await memory.put_messages(said)
        shown = await memory.get()
        assert [message.role for message in shown] == ["user", "assistant", "tool", "assistant"]
        assert shown[0].content == "second"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many rows of messages were read since the last question."""
    from memory_engine.sql import reading

    count = 0
    original = reading.message_rows

    def counting(rows: Any) -> Any:
        nonlocal count
        count += len(rows)
        return original(rows)

    monkeypatch.setattr(reading, "message_rows", counting)

    def since() -> int:
        nonlocal count
        count, seen = 0, count
        return seen

    return since


async def test_a_window_reads_no_more_than_it_shows(tmp_path: Path, fetched: Callable[[], int]) -> None:
    how: dict[str, Any] = {"async_database_uri": f"sqlite+aiosqlite:///{tmp_path / 'window.db'}", "max_turns": 2}
    async with memory_of(**how) as memory:
        for number in range(250):
            await memory.put_messages(
                [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": f"a{number}"}] * 2
            )
    fetched()
    async with memory_of(**how) as memory:
        assert len(await memory.get()) == 4
        assert fetched() <= 4
        assert len(await memory.get_all()) == 1_000


# -- token buffer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [40, 60])
async def test_token_buffer_keeps_what_fits(limit: int, tmp_path: Path) -> None:
    roles = {"human": "user", "ai": "assistant"}
    expected = [(roles[role], size, start) for role, size, start in GOLDEN[f"token.{limit}.PARIS.kept"]]
    how: dict[str, Any] = {
        "async_database_uri": f"sqlite+aiosqlite:///{tmp_path / 'tokens.db'}",
        "token_limit": limit,
        "chat_history_token_ratio": 1.0,
        "token_flush_size": 1,
    }
    async with memory_of(**how) as memory:
        for turn in turns("PARIS"):
            await memory.put_messages(turn)
        first = await memory.get()
    async with memory_of(**how) as memory:
        again = await memory.get()
        assert len(await memory.get_all()) == 10
    for shown in (first, again):
        assert [
            (m.role, words(m.content), m.content[: len(start)]) for m, (_, _, start) in zip(shown, expected, strict=True)
        ] == (expected)


async def test_a_message_that_is_too_long_is_refused_by_name_not_dropped() -> None:
    async with memory_of(token_limit=20, chat_history_token_ratio=1.0, token_flush_size=1) as memory:
        for turn in turns("PARIS"):
            await memory.put_messages(turn)
        shown = await memory.get()
        assert sum(words(message.content) for message in shown) <= 20
        assert not shown or shown[0].role == "user"
        await memory.put({"role": "user", "content": "word " * 30})
        with pytest.raises(BudgetExceededError):
            await memory.get()


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.integers(0, 30)), max_size=25), st.integers(40, 120))
@settings(max_examples=30, deadline=None)
def test_a_token_buffer_never_exceeds_its_limit(said: list[tuple[str, int]], limit: int) -> None:
    async def run() -> None:
        async with memory_of(token_limit=limit, chat_history_token_ratio=1.0, token_flush_size=1) as memory:
            for role, size in said:
                await memory.put({"role": role, "content": "w " * size})
                assert sum(words(message.content) for message in await memory.get()) <= limit

    asyncio.run(run())


# -- several at once, read only, constants, custom --------------------------------------------------------------------


class Slow(BaseMemoryBlock[str]):
    """Takes until all of them were asked."""

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        await block_kwargs["together"].wait()
        if self.name == "broken":
            raise RuntimeError("no idea")
        return f"{self.name} speaks"

    async def _aput(self, messages: list[ChatMessage]) -> None:
        pass


async def test_combined_blocks_are_asked_at_once_and_one_that_fails_does_not_take_the_others_along() -> None:
    async with memory_of(memory_blocks=[Slow(name="a"), Slow(name="broken"), Slow(name="c")]) as memory:
        await memory.put({"role": "user", "content": "Hello"})
        # It opens when all three wait: one after the other they would wait for ever.
        context = await memory.context(together=asyncio.Barrier(3))
        text = "\n".join(message.content for message in context.messages)
        assert "a speaks" in text and "c speaks" in text
        assert "no idea" in (context.receipt.source("broken").error or "")


def test_blocks_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="name"):
        memory_of(memory_blocks=[Slow(name="a"), Slow(name="a")])


async def stored(memory: Memory) -> list[str]:
    return [message.content for message in await memory.get_all()]


class Counter(BaseMemoryBlock[str]):
    """Counts what was flushed."""

    seen: int = 0

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return f"{self.seen} flushed"

    async def _aput(self, messages: list[ChatMessage]) -> None:
        self.seen += len(messages)


async def test_a_read_only_view_reads_the_same_and_writes_nothing() -> None:
    async with memory_of(memory_blocks=[Counter(name="counter")]) as memory:
        for turn in turns("PARIS"):
            await memory.put_messages(turn)
        view = memory.read_only()
        assert await view.get("castles") == await memory.get("castles")
        assert await view.get_all() == await memory.get_all()
        before = await stored(memory)
        message = {"role": "user", "content": "more"}
        for write in (
            lambda: view.put(message),
            lambda: view.put_messages([message]),
            lambda: view.set([]),
            view.flush,
            view.pop,
            lambda: view.delete(["x"]),
            lambda: view.rewind("x"),
            view.reset,
            view.redeliver,
            lambda: view.read_only(on_write="ignore").put(message),
        ):
            with pytest.raises(ReadOnlyError):
                await write()
        block = await view.block("counter")
        assert block.seen == 0
        with pytest.raises(ReadOnlyError):
            async with block.transaction():
                block.seen = 99
        with pytest.raises(ReadOnlyError):
            async with view.block("counter"):
                pass
        assert await stored(memory) == before
        await view.aclose()
        await memory.put(message)


async def test_a_read_only_view_may_ignore_writes() -> None:
    async with memory_of() as memory:
        await memory.put({"role": "user", "content": "Hello"})
        view = memory.read_only(on_write="ignore")
        assert await view.put({"role": "user", "content": "more"}) is None
        assert await view.put_messages([{"role": "user", "content": "more"}]) == []
        assert await view.pop() is None
        assert await view.delete(["x"]) == await view.flush() == await view.rewind("x") == await view.redeliver() == 0
        await view.reset()
        await view.set([])
        assert await stored(memory) == ["Hello"]
        with pytest.raises(ConfigurationError, match="on_write"):
            memory.read_only(on_write="maybe")


async def test_constants_are_in_every_context() -> None:
    block = StaticMemoryBlock(name="facts", static_content="The user is called Ada.", priority=0)
    async with memory_of(token_limit=60, memory_blocks=[block]) as memory:
        for turn in turns("PARIS"):
            await memory.put_messages(turn)
        for _ in range(2):
            got = await memory.get()
            assert "The user is called Ada." in got[0].content
            got[:] = []
        await memory.reset()
        assert "The user is called Ada." in (await memory.get())[0].content


class LastUserInput(BaseMemoryBlock[str]):
    """The user's last words, absorbed or still in the history."""

    last: str = ""

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        recent = [message.content for message in messages or [] if message.role == "user"]
        return (recent[-1] if recent else self.last) or "No previous input."

    async def _aput(self, messages: list[ChatMessage]) -> None:
        for message in messages:
            if message.role == "user":
                self.last = message.content


async def test_a_class_of_ones_own(tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "async_database_uri": f"sqlite+aiosqlite:///{tmp_path / 'own.db'}",
        "memory_blocks": [LastUserInput(name="last")],
    }

    async def shown(memory: Memory) -> str:
        text = "\n".join(b.text for m in await memory.get() for b in m.blocks if isinstance(b, TextBlock))
        return text.partition("<last>\n")[2].partition("\n</last>")[0]

    async with memory_of(**how) as memory:
        assert await shown(memory) == "No previous input."
        for said in ("Hello", "How are you?", "What's up?"):
            await memory.put_messages([{"role": "user", "content": said}, {"role": "assistant", "content": "Fine."}])
        assert await shown(memory) == "What's up?"
        await memory.flush(final=True)
        await memory.drain(10)
    async with memory_of(**how) as memory:
        assert await shown(memory) == "What's up?"
        await memory.reset()
        assert await shown(memory) == "No previous input."
