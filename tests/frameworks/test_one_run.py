"""What the model of one run reads while others write to the same session."""

from __future__ import annotations

import pytest
import scenario

from memory_engine import ChatMessage, Memory, ToolCallBlock
from memory_engine.errors import BudgetExceededError
from memory_engine.integrations.one_run import context_of_run


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
        with pytest.raises(BudgetExceededError, match="messages of this run"):
            await context_of_run(memory, own)


async def test_without_a_run_it_is_what_get_returns() -> None:
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("nobody")
        await others_talk(memory)
        assert await context_of_run(memory, []) == await memory.get()
