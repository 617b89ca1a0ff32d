"""Agents of Microsoft Agent Framework on one memory, with a chat client that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import scenario
from agent_framework import (
    Agent,
    AgentSession,
    BaseChatClient,
    ChatMiddlewareLayer,
    ChatResponse,
    ChatResponseUpdate,
    Content,
    FunctionInvocationLayer,
    Message,
)

from memory_engine import Memory
from memory_engine.integrations.agent_framework import MemoryHistoryProvider, from_message, to_message

Answer = Callable[[Sequence[Message]], Awaitable[Message]]


class ScriptedClient(FunctionInvocationLayer, ChatMiddlewareLayer, BaseChatClient):
    """A model that answers by a function."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def _inner_get_response(self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **kwargs: Any) -> Any:
        async def whole() -> ChatResponse:
            return ChatResponse(messages=[await self.answer(messages)])

        async def updates() -> AsyncIterator[ChatResponseUpdate]:
            message = await self.answer(messages)
            for content in message.contents:
                yield ChatResponseUpdate(contents=[content], role="assistant")

        return self._build_response_stream(updates()) if stream else whole()


def answering(script: scenario.Script) -> Answer:
    async def answer(messages: Sequence[Message]) -> Message:
        reply = script.reply_to([from_message(message) for message in messages])
        calls = [Content.from_function_call(call.id, call.name, arguments=call.arguments_json) for call in reply.calls]
        return Message("assistant", calls or [reply.text])

    return answer


def agent_with(answer: Answer, memory: Any) -> Agent:
    return Agent(
        client=ScriptedClient(answer),
        instructions="You are brief.",
        tools=[scenario.weather, scenario.add],
        context_providers=[MemoryHistoryProvider(memory)],
        require_per_service_call_history_persistence=True,
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_conversation(tmp_path: Path, stream: bool) -> None:
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    for turns in (range(scenario.RESTART), range(scenario.RESTART, scenario.TURNS)):
        script = scenario.Script()
        async with scenario.engine_at(uri) as engine:
            agent = agent_with(answering(script), engine.session)
            session = AgentSession(session_id="conversation")
            memory = engine.session("conversation")
            for turn in turns:
                if stream:
                    result = await agent.run(scenario.user_text(turn), session=session, stream=True).get_final_response()
                else:
                    result = await agent.run(scenario.user_text(turn), session=session)
                await memory.drain()
            assert script.problems == []
            if turns[-1] == scenario.TURNS - 1:
                assert scenario.CODE_WORD in result.text
                await scenario.check_history(memory)
