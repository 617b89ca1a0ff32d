"""Agents of Google's Agent Development Kit on one memory, with a model that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import scenario
from elsewhere import talk_elsewhere
from google.adk.agents import LlmAgent
from google.adk.agents.run_config import RunConfig, StreamingMode  # type: ignore[attr-defined]
from google.adk.apps import App
from google.adk.events import Event, EventActions
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st
from strategies import MAYBE, NAMES, OBJECTS, TEXTS

from memory_engine import ChatMessage
from memory_engine.integrations.google_adk import MemoryPlugin, from_event, to_content, to_event
from memory_engine.messages import decode, encode

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
            types.Part(function_call=types.FunctionCall(id=call.id, name=call.name, args=call.arguments))
            for call in reply.calls
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


async def talk(uri: str, turns: range) -> scenario.Script:
    """These turns of the conversation."""
    script = scenario.Script()
    async with scenario.engine_at(uri) as engine:
        runner = runner_with(answering(script), lambda session: engine.session(session.id))
        for turn in turns:
            await run(runner, scenario.user_text(turn))
            await engine.session("conversation").drain()
    return script


async def test_thirty_turns_through_flushes_and_another_process(tmp_path: Path) -> None:
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    first = await talk(uri, range(scenario.RESTART))
    second = await talk_elsewhere(talk, uri, range(scenario.RESTART, scenario.TURNS))
    assert first.problems == [] and second.problems == [] and second.recalled
    async with scenario.engine_at(uri) as engine:
        await scenario.check_history(engine.session("conversation"))


async def test_streaming_stores_what_was_said_once() -> None:
    script = scenario.Script()
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("stream")
        runner = runner_with(answering(script), memory)
        for turn in range(3):
            await run(runner, scenario.user_text(turn), run_config=RunConfig(streaming_mode=StreamingMode.SSE))
        assert script.problems == []
        await scenario.check_history(memory, turns=3)


async def test_three_runs_at_once() -> None:
    script = scenario.Script()
    arrived = asyncio.Barrier(3)

    async def answer(sent: list[ChatMessage]) -> scenario.Reply:
        # Every step of the three runs happens between steps of the others.
        await arrived.wait()
        return script.reply_to(sent)

    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("at once")
        runner = runner_with(answer, memory)
        for start in range(0, 27, 9):
            turns = [start + 2, start + 5, start + 8]
            answers = await asyncio.gather(*[run(runner, scenario.user_text(turn), "at once") for turn in turns])
            assert answers == [f"Answer to {turn}, with tools." for turn in turns]
        stored = await memory.get_all()
        assert script.problems == []
        turns = [start + at for start in range(0, 27, 9) for at in (2, 5, 8)]
        assert sorted(m.content for m in stored if m.role == "user") == sorted(map(scenario.user_text, turns))
        assert sorted(c.id for m in stored for c in m.tool_calls) == sorted(r for m in stored for r in m.tool_results)
        assert len([c for m in stored for c in m.tool_calls]) == 18
        assert len([m for m in stored if m.content.startswith("Answer")]) == 9
        assert await memory.get_all(archived=True)


async def test_a_run_that_fails_is_taken_up_again_by_its_invocation() -> None:
    script = scenario.Script()
    failing = {"model": 0, "tool": False}

    async def answer(sent: list[ChatMessage]) -> scenario.Reply:
        failing["model"] -= 1
        if failing["model"] == 0:
            raise RuntimeError("the model is broken")
        return script.reply_to(sent)

    def weather(town: str) -> str:
        """The weather in a town."""
        if failing.pop("tool", False):
            raise RuntimeError("the tool is broken")
        return scenario.weather(town)

    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("failing")
        runner = runner_with(answer, memory, (weather, scenario.add))
        for turn in range(6):
            # Its first request to the model fails, or the second, when a tool has done its work, or a tool, or nothing.
            failing.update(model={3: 0, 4: 2, 5: 0}.get(turn, 1), tool=turn == 5)
            if turn != 3:
                with pytest.raises(RuntimeError, match="broken"):
                    await run(runner, scenario.user_text(turn))
                session = await runner.session_service.get_session(app_name="app", user_id="ada", session_id="conversation")
                again = runner.run_async(
                    user_id="ada", session_id="conversation", invocation_id=session.events[-1].invocation_id
                )
                events = [event async for event in again]
                answered = "".join(part.text or "" for part in events[-1].content.parts)
            else:
                answered = await run(runner, scenario.user_text(turn))
            assert answered.startswith(f"Answer to {turn}")
        stored = await memory.get_all()
        assert script.problems == []
        assert [m.content for m in stored if m.role == "user"] == [scenario.user_text(turn) for turn in range(6)]
        assert len([m for m in stored if m.content.startswith("Answer")]) == 6
        assert len({m.id for m in stored}) == len(stored)


# -- every event that the kit has -------------------------------------------------------------------------------

signature = st.none() | st.binary(max_size=6)
media_types = st.sampled_from(["image/png", "audio/wav", "video/mp4", "application/pdf", "odd type, really"])
thought = {"thought_signature": signature, "part_metadata": st.none() | OBJECTS}
parts = st.one_of(
    st.builds(types.Part, text=TEXTS, thought=st.none() | st.booleans(), **thought),
    st.builds(
        types.Part,
        function_call=st.builds(types.FunctionCall, id=MAYBE, name=MAYBE, args=st.none() | OBJECTS),
        **thought,
    ),
    st.builds(
        types.Part, function_response=st.builds(types.FunctionResponse, id=MAYBE, name=MAYBE, response=st.none() | OBJECTS)
    ),
    st.builds(
        types.Part,
        inline_data=st.builds(types.Blob, data=st.none() | st.binary(max_size=9), mime_type=media_types, display_name=MAYBE),
    ),
    st.builds(types.Part, file_data=st.builds(types.FileData, file_uri=MAYBE, mime_type=media_types, display_name=MAYBE)),
    st.builds(
        types.Part,
        executable_code=st.builds(types.ExecutableCode, code=TEXTS, language=st.just(types.Language.PYTHON)),
    ),
    st.builds(
        types.Part,
        code_execution_result=st.builds(types.CodeExecutionResult, output=TEXTS, outcome=st.just(types.Outcome.OUTCOME_OK)),
    ),
    st.builds(types.Part),
)
events = st.builds(
    Event,
    id=NAMES,
    author=st.sampled_from(["user", "assistant", "critic"]),
    invocation_id=NAMES,
    branch=MAYBE,
    timestamp=st.floats(0, 4e9),
    content=st.none()
    | st.builds(types.Content, role=st.sampled_from([None, "user", "model"]), parts=st.none() | st.lists(parts, max_size=4)),
    partial=st.none() | st.booleans(),
    turn_complete=st.none() | st.booleans(),
    error_code=MAYBE,
    error_message=st.none() | TEXTS,
    custom_metadata=st.none() | OBJECTS,
    usage_metadata=st.none() | st.builds(types.GenerateContentResponseUsageMetadata, prompt_token_count=st.integers(0, 99)),
    grounding_metadata=st.none() | st.builds(types.GroundingMetadata, web_search_queries=st.lists(TEXTS, max_size=2)),
    finish_reason=st.sampled_from([None, types.FinishReason.STOP]),
    long_running_tool_ids=st.none() | st.sets(NAMES, max_size=2),
    actions=st.builds(EventActions, state_delta=OBJECTS, skip_summarization=st.none() | st.booleans(), transfer_to_agent=MAYBE),
)


@given(events)
def test_round_trip_of_every_event(theirs: Event) -> None:
    ours = from_event(theirs)
    again = to_event(decode(encode(ours), id=ours.id, created_at=None))
    assert again == theirs
    if theirs.content is not None:
        assert to_content(ours) == theirs.content
