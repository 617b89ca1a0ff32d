"""pydantic-ai's agents on one memory, with its own function and test models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import scenario
from pydantic_ai import Agent
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

from memory_engine import Memory
from memory_engine.integrations.pydantic_ai import AgentMemory, from_model_messages, load_history, save_messages


def scripted(script: scenario.Script) -> FunctionModel:
    def reply(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        reply = script.reply_to(from_model_messages(messages))
        calls = [ToolCallPart(call.name, call.arguments_json, call.id) for call in reply.calls]
        return ModelResponse(parts=calls or [TextPart(reply.text)])

    return FunctionModel(reply)


def agent_with(script: scenario.Script, **settings: Any) -> Agent[None, str]:
    agent = Agent(scripted(script), instructions="You are brief.", **settings)
    agent.tool_plain(scenario.weather)
    agent.tool_plain(scenario.add)
    return agent


async def test_conversation_with_capability(tmp_path: Path) -> None:
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    for turns in (range(scenario.RESTART), range(scenario.RESTART, scenario.TURNS)):
        script = scenario.Script()
        async with scenario.engine_at(uri) as engine:
            memory = engine.session("conversation")
            agent = agent_with(script, system_prompt="You know the weather.")
            for turn in turns:
                result = await agent.run(scenario.user_text(turn), capabilities=[AgentMemory(memory)])
                await memory.drain()
            assert script.problems == []
            if turns[-1] == scenario.TURNS - 1:
                assert scenario.CODE_WORD in result.output
                await scenario.check_history(memory)


async def test_conversation_with_message_history(tmp_path: Path) -> None:
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    for turns in (range(scenario.RESTART), range(scenario.RESTART, scenario.TURNS)):
        # Within a run nothing is cut: the history of the run comes on top of what memory gave.
        script = scenario.Script(budget=2 * scenario.TOKEN_LIMIT)
        async with scenario.engine_at(uri) as engine:
            memory = engine.session("conversation")
            agent = agent_with(script)
            for turn in turns:
                prompt = scenario.user_text(turn)
                result = await agent.run(prompt, message_history=await load_history(memory, prompt))
                await save_messages(memory, result.new_messages())
                await save_messages(memory, result.new_messages())
                await memory.drain()
            assert script.problems == []
            if turns[-1] == scenario.TURNS - 1:
                assert scenario.CODE_WORD in result.output
                await scenario.check_history(memory)


async def run_fails(agent: Agent[None, str], prompt: str, memory: Memory) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        await agent.run(prompt, capabilities=[AgentMemory(memory)])


async def test_a_run_that_fails_is_taken_up_again_without_its_prompt() -> None:
    script = scenario.Script()
    broken = {"model": True, "tool": False}

    def reply(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if broken["model"]:
            raise RuntimeError("the model is broken")
        return scripted(script).function(messages, info)

    def weather(town: str) -> str:
        if broken["tool"]:
            raise RuntimeError("the tool is broken")
        return scenario.weather(town)

    agent = Agent(FunctionModel(reply), tools=[weather, scenario.add])
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("failing")
        for turn in range(6):
            broken.update(model=turn % 2 == 0, tool=turn % 2 == 1)
            if turn in (0, 1, 2, 4, 5):
                await run_fails(agent, scenario.user_text(turn), memory)
                broken.update(model=False, tool=False)
                result = await agent.run(message_history=await load_history(memory), capabilities=[AgentMemory(memory)])
            else:
                broken.update(model=False, tool=False)
                result = await agent.run(scenario.user_text(turn), capabilities=[AgentMemory(memory)])
            assert result.output.startswith(f"Answer to {turn}")
        stored = await memory.get_all()
        assert script.problems == []
        assert [m.content for m in stored if m.role == "user"] == [scenario.user_text(turn) for turn in range(6)]
        assert len([m for m in stored if m.content.startswith("Answer")]) == 6
        assert len({m.id for m in stored}) == len(stored)


async def test_three_runs_at_once() -> None:
    script = scenario.Script()
    arrived = asyncio.Barrier(3)

    async def reply(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        # Every step of the three runs happens between steps of the others.
        await arrived.wait()
        reply = script.reply_to(from_model_messages(messages))
        calls = [ToolCallPart(call.name, call.arguments_json, call.id) for call in reply.calls]
        return ModelResponse(parts=calls or [TextPart(reply.text)])

    agent = Agent(FunctionModel(reply), tools=[scenario.weather, scenario.add])
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("at once")
        for start in range(0, 27, 9):
            turns = [start + 2, start + 5, start + 8]
            results = await asyncio.gather(
                *[agent.run(scenario.user_text(turn), capabilities=[AgentMemory(memory)]) for turn in turns]
            )
            assert [result.output for result in results] == [f"Answer to {turn}, with tools." for turn in turns]
        stored = await memory.get_all()
        assert script.problems == []
        turns = [start + at for start in range(0, 27, 9) for at in (2, 5, 8)]
        assert sorted(m.content for m in stored if m.role == "user") == sorted(map(scenario.user_text, turns))
        assert sorted(c.id for m in stored for c in m.tool_calls) == sorted(r for m in stored for r in m.tool_results)
        assert len([c for m in stored for c in m.tool_calls]) == 18
        assert len([m for m in stored if m.content.startswith("Answer")]) == 9
        assert await memory.get_all(archived=True)
