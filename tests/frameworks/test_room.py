"""Room for what a request holds beside memory's view."""

from __future__ import annotations

import pytest
import scenario

from memory_engine import ChatMessage, Memory, ToolCallBlock
from memory_engine.errors import BudgetExceededError
from memory_engine.integrations.room import make_room


def conversation() -> list[ChatMessage]:
    said = [ChatMessage(role="system", content="Be brief.")]
    for turn in range(4):
        said += [
            ChatMessage(role="user", content=f"Question {turn}. {scenario.FILLER}"),
            ChatMessage(role="assistant", blocks=[ToolCallBlock(id=f"c-{turn}", name="add", arguments={"first": turn})]),
            ChatMessage(role="tool", tool_call_id=f"c-{turn}", content=scenario.FILLER),
        ]
    return said


def texts(messages: list[ChatMessage]) -> list[str]:
    return [message.content[:10] for message in messages if message.role != "tool" and message.content]


async def test_the_oldest_turns_go_and_what_is_pinned_stays() -> None:
    said = conversation()
    async with Memory.from_defaults("room", token_limit=1_000, reserved_tokens=200) as memory:
        assert memory.budget == 800
        assert make_room(memory, said, []) == said
        for size in range(1, 9):
            beside = [ChatMessage(role="user", content=scenario.FILLER * size)]
            view = make_room(memory, said, beside)
            assert memory.count_tokens([*view, *beside]) <= memory.budget
            assert scenario.problems_of(view, memory.budget) == []
            assert texts(view)[0] == "Be brief." and texts(view)[-1] == "Question 3" and view[-1] == said[-1]


async def test_what_cannot_fit_is_an_error() -> None:
    async with Memory.from_defaults("room", token_limit=1_000) as memory:
        beside = [ChatMessage(role="user", content=scenario.FILLER * 60)]
        for view in (conversation(), []):
            with pytest.raises(BudgetExceededError, match="beside memory"):
                make_room(memory, view, beside)
