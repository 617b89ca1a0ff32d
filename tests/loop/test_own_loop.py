"""An agent's own loop with `memory.turn`: what it shows, what it commits and when, failures and repetitions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from scenario import RESTART, TURNS, Script, add, check_history, engine_at, problems_of, user_text, weather

from memory_engine import ChatMessage, Memory, MemoryEngine
from memory_engine.errors import (
    BudgetExceededError,
    ConfigurationError,
    InvalidMessageError,
    ReadOnlyError,
    StoreBusyError,
)
from memory_engine.messages import ToolCallBlock
from memory_engine.tokens import TokenCounter

pytestmark = pytest.mark.asyncio


def uri(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path / 'memory.db'}"


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[Memory]:
    async with MemoryEngine(async_database_uri=uri(tmp_path), token_limit=2_000) as engine:
        yield engine.session("chat")


def calling(*names: str) -> ChatMessage:
    return ChatMessage(role="assistant", blocks=[ToolCallBlock(id=name, name="look", arguments={}) for name in names])


def result(name: str, text: str = "done") -> ChatMessage:
    return ChatMessage(role="tool", tool_call_id=name, content=text)


async def said(memory: Memory) -> list[str]:
    return [f"{m.role}: {m.content or [call.id for call in m.tool_calls]}" for m in await memory.get_all()]


async def run_agent(memory: Memory, script: Script, text: str) -> str:
    """An agent's loop as the README shows it, with the scripted model."""
    tools: dict[str, Callable[..., str]] = {"weather": weather, "add": add}
    async with memory.turn(text) as turn:
        while True:
            reply = script.reply_to(turn.messages)
            calls = [ToolCallBlock(id=call.id, name=call.name, arguments=call.arguments) for call in reply.calls]
            await turn.add(
                ChatMessage(role="assistant", blocks=[*([] if calls else [{"type": "text", "text": reply.text}]), *calls])
            )
            if not calls:
                break
            for call in reply.calls:
                await turn.add({"role": "tool", "tool_call_id": call.id, "content": tools[call.name](**call.arguments)})
    return turn.answer.content if turn.answer else ""


async def test_thirty_turns_past_flushes_and_a_restart(tmp_path: Path) -> None:
    script = Script()
    for turns in (range(RESTART), range(RESTART, TURNS)):
        async with engine_at(uri(tmp_path)) as engine:
            memory = engine.session("chat", user_id="ada")
            answer = ""
            for turn in turns:
                answer = await run_agent(memory, script, user_text(turn))
                await memory.drain(30)
            if turns.stop == TURNS:
                assert answer == "It is heliotrope-seven."
                await check_history(memory)
                assert (await engine.stats()).pending == 0
    assert script.problems == [] and script.seen > TURNS


async def test_the_request_is_stored_at_once_and_the_rest_at_the_end(memory: Memory) -> None:
    async with memory.turn("Look!") as turn:
        assert await said(memory) == ["user: Look!"]
        assert [m.content for m in turn.messages] == ["Look!"]
        await turn.add(calling("a", "b"))
        assert [m.role for m in turn.messages] == ["user"], "a model is never shown a call without its results"
        await turn.add(result("b"))
        await turn.add(result("a"))
        assert [m.role for m in turn.messages] == ["user", "assistant", "tool", "tool"]
        assert [m.tool_call_id for m in turn.messages[2:]] == ["a", "b"], "results stand in the order of their calls"
        shown = turn.messages
        await turn.add({"role": "assistant", "content": "I have looked."})
        assert await said(memory) == ["user: Look!"]
    assert await said(memory) == [
        "user: Look!",
        "assistant: ['a', 'b']",
        "tool: done",
        "tool: done",
        "assistant: I have looked.",
    ]
    assert turn.answer is not None and turn.answer.content == "I have looked."
    assert (await memory.get())[:4] == shown, "what was shown is what is stored, so that a provider's cache goes on"


async def fail_in_turn(memory: Memory) -> None:
    async with memory.turn("Look!") as turn:
        await turn.add(calling("a"))
        await turn.add(result("a"))
        raise RuntimeError("the model is away")


async def test_a_turn_that_fails_keeps_the_request_once_and_is_repeated(memory: Memory) -> None:
    await memory.put_messages([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await fail_in_turn(memory)
        assert await said(memory) == ["user: Hi", "assistant: Hello", "user: Look!"]
    async with memory.turn("Look!") as turn:
        assert problems_of(turn.messages, 2_000) == []
        await turn.finish("I have looked.")
        assert await said(memory) == ["user: Hi", "assistant: Hello", "user: Look!", "assistant: I have looked."]
    async with memory.turn("Look!") as turn:
        await turn.finish("Again.")
    assert (await said(memory))[3:] == ["assistant: I have looked.", "user: Look!", "assistant: Again."]


async def test_a_turn_that_is_cancelled_is_as_one_that_failed(memory: Memory) -> None:
    reached = asyncio.Event()

    async def run() -> None:
        async with memory.turn("Look!") as turn:
            await turn.add(calling("a"))
            reached.set()
            await asyncio.sleep(3_600)

    task = asyncio.create_task(run())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await said(memory) == ["user: Look!"]
    async with memory.turn("Look!") as turn:
        await turn.finish("Yes.")
    assert await said(memory) == ["user: Look!", "assistant: Yes."]


async def test_requests_with_ids_are_repeated_by_them(memory: Memory) -> None:
    request = ChatMessage(role="user", content="Look!", id="request-1")
    async with memory.turn(request) as turn:
        await turn.finish("Yes.")
    async with memory.turn(request.model_copy(update={"id": "request-2"})) as turn:
        await turn.finish("Yes again.")
    async with memory.turn(request) as turn:
        pass
    assert await said(memory) == ["user: Look!", "assistant: Yes.", "user: Look!", "assistant: Yes again."]


async def test_three_runs_at_once_lose_and_double_nothing(memory: Memory) -> None:
    async def run(name: str) -> None:
        async with memory.turn(f"{name}?") as turn:
            for step in range(3):
                assert problems_of(turn.messages, 2_000) == []
                await turn.add(calling(f"{name}{step}"))
                await asyncio.sleep(0)
                await turn.add(result(f"{name}{step}"))
            await turn.add({"role": "assistant", "content": f"{name}!"})

    await asyncio.gather(*(run(name) for name in "abc"))
    found = await said(memory)
    assert sorted(found[:3]) == ["user: a?", "user: b?", "user: c?"]
    assert len(found) == 3 * 8 and all(found.count(f"assistant: {name}!") == 1 for name in "abc")
    assert problems_of([*(await memory.get()), ChatMessage(role="user", content="and?")], 2_000) == []


async def test_steps_stay_within_the_budget(memory: Memory) -> None:
    """Results that are too long are shortened, the oldest steps left out; the request stays."""
    count = TokenCounter()
    async with memory.turn("Read it all.") as turn:
        for step in range(20):
            await turn.add(calling(f"{step}"))
            await turn.add(result(f"{step}", "word " * 3_000))
            messages = turn.messages
            assert sum(map(count.message, messages)) <= 2_000
            assert messages[0].content == "Read it all." and problems_of(messages, 2_000) == []
            assert messages[-1].tool_results == (f"{step}",)
        assert turn.messages[-1].partial and turn.context.receipt.left_out
        await turn.add({"role": "assistant", "content": "Done."})
    stored = await memory.get_all()
    assert [m.content for m in stored if m.role == "tool"] == ["word " * 3_000] * 20, "what is stored is whole"


async def test_what_cannot_fit_is_said_and_nothing_is_stored(memory: Memory) -> None:
    async def call_at_length() -> None:
        async with memory.turn("Look!") as turn:
            arguments = {"text": "word " * 3_000}
            await turn.add(ChatMessage(role="assistant", blocks=[ToolCallBlock(id="a", name="look", arguments=arguments)]))
            await turn.add(result("a"))

    with pytest.raises(BudgetExceededError):
        await call_at_length()
    assert await said(memory) == ["user: Look!"]


async def test_objects_of_sdks_are_taken(memory: Memory) -> None:
    class Message:
        def model_dump(self, **_: Any) -> dict[str, Any]:
            call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
            return {"role": "assistant", "content": None, "tool_calls": [call]}

    async with memory.turn("Look!") as turn:
        added = await turn.add(Message())  # type: ignore[arg-type]
        assert [call.id for call in added.tool_calls] == ["a"]
        await turn.add({"role": "tool", "tool_call_id": "a", "content": "done"})
        assert [message["role"] for message in turn.to_openai()] == ["user", "assistant", "tool"]
        system, messages = turn.to_anthropic(cache=["request"])
        assert system == [] and [message["role"] for message in messages] == ["user", "assistant", "user"]
        assert messages[-1]["content"][0]["cache_control"] == {"type": "ephemeral"}


async def test_a_read_only_memory_is_asked_and_not_written(memory: Memory) -> None:
    await memory.put({"role": "user", "content": "Hi"})
    with pytest.raises(ReadOnlyError):
        async with memory.read_only().turn("Look!"):
            pass
    async with memory.read_only(on_write="ignore").turn("Look!") as turn:
        assert [m.content for m in turn.messages] == ["Hi", "Look!"]
        await turn.finish("Yes.")
    assert await said(memory) == ["user: Hi"]


async def test_a_turn_reads_its_own_request_last_whatever_others_say(tmp_path: Path) -> None:
    async with MemoryEngine(async_database_uri=uri(tmp_path), token_limit=300) as engine:
        memory = engine.session("chat")
        async with memory.turn("Mine.") as mine:
            await mine.add(calling("a"))
            await mine.add(result("a"))
            for number in range(12):
                async with memory.turn(f"Other {number}. {'More of it. ' * 5}") as other:
                    assert other.messages[-1].id == other.request.id
                    await other.finish("Yes. " * 5)
            await mine.add(calling("b"))
            await mine.add(result("b"))
            shown = mine.messages
            assert problems_of(shown, 300) == []
            assert [m.id for m in shown[-5:]] == [mine.request.id, *(step.id for step in mine.steps)]
            assert shown[0].content.startswith("Other"), "what room is left is for the others"


async def fail_together(memory: Memory, texts: list[str]) -> None:
    together = asyncio.Barrier(len(texts))

    async def one(text: str) -> None:
        async with memory.turn(text):
            await together.wait()
            raise RuntimeError("the model is away")

    results = await asyncio.gather(*map(one, texts), return_exceptions=True)
    assert all(isinstance(each, RuntimeError) for each in results)


async def test_turns_at_once_that_fail_are_repeated_without_a_second_request(memory: Memory) -> None:
    texts = ["One?", "Two?", "Three?"]
    await fail_together(memory, texts)
    await memory.put_messages([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])
    for text in texts:
        async with memory.turn(text) as turn:
            assert turn.messages[-1].content == text
            await turn.finish(f"Yes, {text}")
    stored = await said(memory)
    assert [stored.count(f"user: {text}") for text in texts] == [1, 1, 1]
    for text in texts:  # answered now: who asks again asks anew
        async with memory.turn(text) as turn:
            await turn.finish("Yes.")
    assert [(await said(memory)).count(f"user: {text}") for text in texts] == [2, 2, 2]


async def test_the_same_request_twice_at_once_is_two_requests(memory: Memory) -> None:
    together = asyncio.Barrier(3)

    async def one(number: int) -> None:
        async with memory.turn("Next, please.") as turn:
            await together.wait()
            await turn.finish(f"Number {number}.")

    await asyncio.gather(*map(one, range(3)))
    stored = await said(memory)
    assert stored.count("user: Next, please.") == 3 and len(stored) == 6


async def test_cancelled_while_it_commits_a_turn_leaves_its_request_alone(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = asyncio.Event()
    put = Memory.put_messages

    async def slowly(self: Memory, messages: Any) -> list[ChatMessage]:
        stored = await put(self, messages)
        committed.set()
        await asyncio.sleep(0.02)
        return stored

    async def answer() -> None:
        async with memory.turn("Look!") as turn:
            await turn.finish("I have looked.")

    with monkeypatch.context() as patch:
        patch.setattr(Memory, "put_messages", slowly)
        task = asyncio.create_task(answer())
        await committed.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await said(memory) == ["user: Look!"]
    await answer()
    assert await said(memory) == ["user: Look!", "assistant: I have looked."]


async def test_a_commit_that_fails_may_be_repeated(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(self: Memory, messages: Any) -> list[ChatMessage]:
        raise StoreBusyError("busy")

    async with memory.turn("Look!") as turn:
        with monkeypatch.context() as patch:
            patch.setattr(Memory, "put_messages", refuses)
            with pytest.raises(StoreBusyError):
                await turn.finish("I have looked.")
        await turn.finish()
    assert await said(memory) == ["user: Look!", "assistant: I have looked."]


async def test_a_request_with_an_id_is_answered_once(memory: Memory) -> None:
    request = ChatMessage(role="user", id="req-1", content="Look!")
    async with memory.turn(request) as turn:
        assert turn.answer is None
        await turn.add(calling("a"))
        await turn.add(result("a"))
        await turn.finish("I have looked.")
    before = await memory.get_all()
    async with memory.turn(request) as again:
        assert again.answer is not None and again.answer.content == "I have looked."
        assert list(again.steps) == before[1:] and again.messages == before
        await again.finish("I have looked twice.")
    assert await memory.get_all() == before


async def test_adapters_are_told_what_they_need(memory: Memory) -> None:
    sent: list[Any] = [{"role": "user", "content": "Hi"}, ChatMessage(role="assistant", content="Hello")]
    assert memory.count_tokens(sent) == 2 * (4 + 1) == sum(memory.count_tokens([message]) for message in sent)
    assert memory.count_tokens([]) == 0
    with pytest.raises(InvalidMessageError):
        memory.count_tokens(["Hi"])
    assert memory.engine.loop is None or memory.engine.loop is asyncio.get_running_loop()
    await memory.put_messages(sent)
    assert memory.engine.loop is asyncio.get_running_loop()
    receipt = (await memory.context()).receipt
    assert receipt.tokens == memory.count_tokens(await memory.get())
    assert not memory.engine.closed
    await memory.engine.aclose()
    assert memory.engine.closed


async def test_misuse_is_refused(memory: Memory) -> None:
    with pytest.raises(InvalidMessageError, match="what the user says"):
        memory.turn({"role": "assistant", "content": "x"})
    turn = memory.turn("Look!")
    with pytest.raises(ConfigurationError, match="inside"):
        _ = turn.messages
    with pytest.raises(ConfigurationError, match="inside"):
        await turn.add({"role": "assistant", "content": "x"})
    async with turn:
        with pytest.raises(InvalidMessageError):
            await turn.add("text")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="once"):
        async with turn:
            pass
    with pytest.raises(ConfigurationError, match="before `finish`"):
        await turn.finish("late")
