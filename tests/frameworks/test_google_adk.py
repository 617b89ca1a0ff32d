"""Agents of Google's Agent Development Kit on one memory, with a model that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import scenario
from google.adk.agents import LlmAgent
from google.adk.apps import App
from google.adk.events import Event
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService
from google.genai import types

from memory_engine import ChatMessage, Memory
from memory_engine.integrations.google_adk import MemoryPlugin, from_event, to_content, to_event

Answer = Callable[[list[ChatMessage]], Awaitable[scenario.Reply]]


class ScriptedLlm(BaseLlm):
    """A model that answers by a function."""

    answer: Answer

    async def generate_content_async(self, llm_request: LlmRequest, stream: bool = False) -> AsyncGenerator[LlmResponse, None]:
        system = llm_request.config.system_instruction
        sent = [ChatMessage(role="system", content=str(system))] if system else []
        sent += [from_event(Event(author="", content=content)) for content in llm_request.contents]
        reply = await self.answer(sent)
        parts = [
            types.Part(function_call=types.FunctionCall(id=call.id, name=call.name, args=call.arguments)) for call in reply.calls
        ]
        if stream and reply.text:
            for word in reply.text.split():
                yield LlmResponse(partial=True, content=types.Content(role="model", parts=[types.Part(text=word)]))
        yield LlmResponse(content=types.Content(role="model", parts=parts or [types.Part(text=reply.text)]))


def answering(script: scenario.Script) -> Answer:
    async def answer(sent: list[ChatMessage]) -> scenario.Reply:
        return script.reply_to(sent)

    return answer


def weather(town: str) -> str:
    """The weather in a town."""
    return scenario.weather(town)


def runner_with(answer: Answer, memory: Any, tools: Sequence[Any] = (weather, scenario.add)) -> Runner:
    model = ScriptedLlm(model="scripted", answer=answer)
    agent = LlmAgent(name="assistant", model=model, instruction="You are brief.", tools=list(tools))
    app = App(name="app", root_agent=agent, plugins=[MemoryPlugin(memory)])
    return Runner(app=app, session_service=InMemorySessionService(), auto_create_session=True)


async def run(runner: Runner, text: str, session: str = "conversation", **settings: Any) -> str:
    said = types.Content(role="user", parts=[types.Part(text=text)])
    events = [e async for e in runner.run_async(user_id="ada", session_id=session, new_message=said, **settings)]
    return "".join(part.text or "" for part in events[-1].content.parts)


async def test_conversation(tmp_path: Path) -> None:
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    for turns in (range(scenario.RESTART), range(scenario.RESTART, scenario.TURNS)):
        script = scenario.Script()
        async with scenario.engine_at(uri) as engine:
            memory = engine.session("conversation")
            runner = runner_with(answering(script), lambda session, engine=engine: engine.session(session.id))
            for turn in turns:
                answer = await run(runner, scenario.user_text(turn))
                await memory.drain()
            assert script.problems == []
            if turns[-1] == scenario.TURNS - 1:
                assert scenario.CODE_WORD in answer
                await scenario.check_history(memory)
