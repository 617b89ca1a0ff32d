"""What the model of one run reads while others write to the same session."""

from __future__ import annotations

import asyncio

import pytest
import scenario

from memory_engine import ChatMessage, Memory, ToolCallBlock
from memory_engine.blocks import StaticMemoryBlock
from memory_engine.errors import BudgetExceededError


async def context_of_run(memory: Memory, own: list[ChatMessage]) -> list[ChatMessage]:
    return (await memory.context_of_run(own)).messages


async def others_talk(memory: Memory, turns: int = 30) -> None:
    for turn in range(turns):
        await memory.put(ChatMessage(role="user", content=f"Other {turn}. {scenario.FILLER}"))
        await memory.put(ChatMessage(role="assistant", content=f"Reply {turn}."))


async def test_what_a_run_answers_is_there_though_others_pushed_it_out() -> None:
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("pushed")
        own = await memory.put_messages([ChatMessage(role="user", content=f"Mine. {scenario.FILLER}")])
        await others_talk(memory)
        own += await memory.put_messages(
            [
                ChatMessage(role="assistant", blocks=[ToolCallBlock(id="c-1", name="add", arguments={"first": 1})]),
                ChatMessage(role="tool", tool_call_id="c-1", content="1"),
            ]
        )
        await others_talk(memory)
        assert not {message.id for message in own} & {message.id for message in await memory.get()}
        view = await context_of_run(memory, own)
        assert [message.id for message in view[-3:]] == [message.id for message in own]
        assert len(view) > 5
        assert scenario.problems_of(view, scenario.TOKEN_LIMIT - scenario.RESERVED) == []


async def test_a_run_that_cannot_fit_is_an_error() -> None:
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("too long")
        own = await memory.put_messages([ChatMessage(role="user", content=scenario.FILLER * 40)])
        await others_talk(memory)
        with pytest.raises(BudgetExceededError, match="never be cut"):
            await context_of_run(memory, own)


def calling(call_id: str) -> ChatMessage:
    return ChatMessage(role="assistant", blocks=[ToolCallBlock(id=call_id, name="add", arguments={"first": 1})])


def result(call_id: str, text: str = "1") -> ChatMessage:
    return ChatMessage(role="tool", tool_call_id=call_id, content=text)


async def test_a_result_that_comes_late_is_shown_with_its_call_and_its_request() -> None:
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("late")
        asked = await memory.put_messages([ChatMessage(role="user", content="mine"), calling("c-1")])
        await others_talk(memory, 1)
        own = await memory.put_messages([result("c-1")])
        view = await context_of_run(memory, own)
        assert [message.id for message in view[-3:]] == [message.id for message in (*asked, *own)]
        assert len(view) == 5 and scenario.problems_of(view, scenario.TOKEN_LIMIT) == []


async def test_results_that_come_in_another_order_stay_with_their_calls() -> None:
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("parallel")
        said = [calling("a"), calling("b"), result("b"), ChatMessage(role="assistant", content="B"), result("a")]
        own = await memory.put_messages([ChatMessage(role="user", content="mine"), *said])
        view = await context_of_run(memory, own)
        assert view == await memory.get() and scenario.problems_of(view, scenario.TOKEN_LIMIT) == []
        assert [message.tool_call_id for message in view] == [None, None, "a", None, "b", None]


async def test_a_giant_result_of_a_run_that_others_pushed_out_is_shortened() -> None:
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("big")
        own = await memory.put_messages([ChatMessage(role="user", content="mine")])
        await others_talk(memory)
        own += await memory.put_messages([calling("z"), result("z", "word " * 5_000)])
        await others_talk(memory)
        view = await context_of_run(memory, own)
        assert [message.id for message in view[-3:]] == [message.id for message in own]
        assert scenario.problems_of(view, scenario.TOKEN_LIMIT - scenario.RESERVED) == []


async def test_without_a_run_it_is_what_get_returns() -> None:
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("nobody")
        await others_talk(memory)
        await memory.drain()
        assert await context_of_run(memory, []) == await memory.get()


async def test_what_has_to_be_left_out_reaches_the_blocks() -> None:
    block = StaticMemoryBlock(name="rules", static_content="rule " * 100)
    async with Memory.from_defaults(
        "room", token_limit=260, chat_history_token_ratio=0.95, memory_blocks=[block], tokenizer_fn=str.split
    ) as memory:
        for turn in range(3):
            await memory.put(ChatMessage(role="user", content=f"other {turn} " * 20))
            await memory.put(ChatMessage(role="assistant", content="yes"))
        own = await memory.put_messages([ChatMessage(role="user", content="mine " * 30)])
        assert await memory.get_all(archived=True) == []
        view = await context_of_run(memory, own)
        assert view[-1].id == own[0].id and len(view) < 8
        await memory.drain()
        while not (archived := await memory.get_all(archived=True)):
            await asyncio.sleep(0.01)
        assert own[0].id not in [message.id for message in archived]
        assert [message.id for message in await context_of_run(memory, own)] == [message.id for message in view]
