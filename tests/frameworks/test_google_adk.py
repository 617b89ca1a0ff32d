"""Agents of Google's Agent Development Kit on one memory, with a model that follows a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import scenario
from elsewhere import talk_elsewhere
from google.adk.agents import LlmAgent
from google.adk.agents.run_config import RunConfig, StreamingMode  # type: ignore[attr-defined]
from google.adk.apps import App
from google.adk.apps.app import ResumabilityConfig
from google.adk.artifacts import InMemoryArtifactService
from google.adk.events import Event, EventActions
from google.adk.models.base_llm import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService
from google.adk.tools import FunctionTool, LongRunningFunctionTool, load_artifacts
from google.adk.tools.agent_tool import AgentTool
from google.genai import types
from hypothesis import given
from hypothesis import strategies as st
from strategies import COUNTER, MAYBE, NAMES, OBJECTS, TEXTS, characters, size_of_medium

from memory_engine import ChatMessage, Memory, MemoryEngine
from memory_engine.integrations.google_adk import MemoryPlugin, from_event, to_content, to_event
from memory_engine.integrations.google_adk_events import tell
from memory_engine.messages import decode, encode
from memory_engine.tokens import TokenCounter

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
    return "".join(part.text or "" for event in events[-1:] if event.content for part in event.content.parts)


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
        for turns in scenario.AT_ONCE:
            answers = await asyncio.gather(*[run(runner, scenario.user_text(turn), "at once") for turn in turns])
            assert answers == [f"Answer to {turn}, with tools." for turn in turns]
        assert script.problems == []
        await scenario.check_at_once(memory)


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


# -- results that come later --------------------------------------------------------------------------------------


def spoken(contents: Sequence[types.Content]) -> list[str]:
    """What is sent: texts, `call id` and `id: response`."""
    found = []
    for part in [part for content in contents for part in content.parts or []]:
        if part.function_call:
            found.append(f"call {part.function_call.id}")
        elif part.function_response:
            found.append(f"{part.function_response.id}: {part.function_response.response}")
        else:
            found.append(part.text or "medium")
    return found


class RecordingLlm(BaseLlm):
    """A model that answers by a function of what it is sent; `sent` keeps it."""

    reply: Callable[[list[str]], list[types.Part]]
    sent: list[list[str]]

    async def generate_content_async(self, llm_request: LlmRequest, stream: bool = False) -> AsyncGenerator[LlmResponse, None]:
        self.sent.append(spoken(llm_request.contents))
        yield LlmResponse(content=types.Content(role="model", parts=self.reply(self.sent[-1])))


def recording(reply: Callable[[list[str]], list[types.Part]]) -> RecordingLlm:
    return RecordingLlm(model="scripted", reply=reply, sent=[])


def says(text: str) -> list[types.Part]:
    return [types.Part(text=text)]


def calls(*calls: tuple[str, str, dict[str, Any]]) -> list[types.Part]:
    return [types.Part(function_call=types.FunctionCall(id=each, name=name, args=args)) for each, name, args in calls]


def runner_of(memory: Any, agent: Any, **settings: Any) -> Runner:
    resumable = settings.pop("resumability_config", None)
    app = App(name="app", root_agent=agent, plugins=[MemoryPlugin(memory)], resumability_config=resumable)
    return Runner(app=app, session_service=InMemorySessionService(), auto_create_session=True, **settings)


async def answer_call(runner: Runner, call_id: str, name: str, response: dict[str, Any], **settings: Any) -> None:
    part = types.Part(function_response=types.FunctionResponse(id=call_id, name=name, response=response))
    said = types.Content(role="user", parts=[part])
    async for _ in runner.run_async(user_id="ada", session_id="conversation", new_message=said, **settings):
        pass


async def results_in(memory: Memory) -> list[str]:
    return [block.content for m in await memory.get_all() for block in m.blocks if block.type == "tool_result"]


@pytest.mark.filterwarnings("ignore:.*EXPERIMENTAL")
@pytest.mark.parametrize("is_between", [False, True])
@pytest.mark.parametrize("is_resumable", [False, True])
async def test_a_tool_that_the_user_has_to_confirm(is_resumable: bool, is_between: bool) -> None:
    def pay(amount: int) -> dict[str, Any]:
        """Pay."""
        return {"paid": amount}

    def reply(sent: list[str]) -> list[types.Part]:
        return (
            calls(("c-1", "pay", {"amount": 5}), ("c-2", "add", {"first": 1, "second": 2}))
            if sent[-1] == "Pay."
            else says("Yes.")
        )

    model = recording(reply)
    agent = LlmAgent(name="assistant", model=model, tools=[FunctionTool(pay, require_confirmation=True), scenario.add])
    async with Memory.from_defaults("confirm") as memory:
        runner = runner_of(memory, agent, resumability_config=ResumabilityConfig(is_resumable=is_resumable))
        events = [
            event
            async for event in runner.run_async(
                user_id="ada", session_id="conversation", new_message=types.Content(role="user", parts=says("Pay."))
            )
        ]
        [asked] = [call.id for event in events for call in event.get_function_calls() if call.name.startswith("adk_")]
        if is_between:
            await run(runner, "Something else.")
        again = {"invocation_id": events[0].invocation_id} if is_resumable and not is_between else {}
        await answer_call(runner, asked, "adk_request_confirmation", {"confirmed": True}, **again)
        paid = ["Pay.", "call c-1", "call c-2"]
        assert model.sent[-1][-5:-2] == paid
        assert set(model.sent[-1][-2:]) == {"c-1: {'paid': 5}", "c-2: {'result': 'The sum is 3.'}"}
        await run(runner, "And now?")
        assert [text for text in model.sent[-1] if text.startswith("c-1: ")] == ["c-1: {'paid': 5}"]
        assert model.sent[-1][-1] == "And now?"
        assert sorted(await results_in(memory)) == ["The sum is 3.", '{"paid": 5}']


@pytest.mark.parametrize("is_between", [False, True])
async def test_a_tool_that_takes_long(is_between: bool) -> None:
    def approve(amount: int) -> dict[str, Any]:
        """Ask for approval."""
        return {"status": "pending"}

    def reply(sent: list[str]) -> list[types.Part]:
        asks = calls(("c-1", "approve", {"amount": 5}), ("c-2", "add", {"first": 1, "second": 2}))
        return asks if sent[-1] == "Expense." else says("Yes.")

    model = recording(reply)
    tools = [LongRunningFunctionTool(func=approve), scenario.add]
    async with Memory.from_defaults("long") as memory:
        runner = runner_of(memory, LlmAgent(name="assistant", model=model, tools=tools))
        await run(runner, "Expense.")
        assert model.sent[-1][-2:] == ["c-1: {'status': 'pending'}", "c-2: {'result': 'The sum is 3.'}"]
        if is_between:
            await run(runner, "Is it there?")
            assert "c-1: {'status': 'pending'}" in model.sent[-1]
        await answer_call(runner, "c-1", "approve", {"status": "approved"})
        assert model.sent[-1][-5:-2] == ["Expense.", "call c-1", "call c-2"]
        assert set(model.sent[-1][-2:]) == {"c-1: {'status': 'approved'}", "c-2: {'result': 'The sum is 3.'}"}
        await run(runner, "And now?")
        assert [text for text in model.sent[-1] if text.startswith("c-1: ")] == ["c-1: {'status': 'approved'}"]
        assert "c-2: {'result': 'The sum is 3.'}" in model.sent[-1]
        assert sorted(await results_in(memory)) == ["The sum is 3.", '{"status": "approved"}']


def test_an_id_that_a_model_uses_again_is_another_call() -> None:
    def event(number: int, part: types.Part) -> Event:
        return Event(id=str(number), invocation_id="run", author="a", content=types.Content(parts=[part]))

    def result(text: str) -> types.Part:
        return types.Part(function_response=types.FunctionResponse(id="c-1", name="add", response={"result": text}))

    [called] = calls(("c-1", "add", {}))
    parts = [called, result("preliminary"), result("last"), called, result("another")]
    told = tell([event(number, part) for number, part in enumerate(parts)])
    assert [item.event.id if item.event else item.stale for item in told] == ["0", ("1",), "2", "3", "4"]


# -- what a request holds beside the session's events ---------------------------------------------------------------


def most_sent(memory: Memory, model: RecordingLlm) -> int:
    return max(memory.count_tokens([ChatMessage(role="user", content=text) for text in sent]) for sent in model.sent)


async def test_instructions_in_contents_stay_before_what_the_user_says() -> None:
    def reply(sent: list[str]) -> list[types.Part]:
        return calls((f"c-{len(model.sent)}", "weather", {"town": "Graz"})) if "Question" in sent[-1] else says("Yes.")

    model = recording(reply)
    agent = LlmAgent(
        name="assistant", model=model, static_instruction="You are a clerk.", instruction="It is 42.", tools=[weather]
    )
    async with Memory.from_defaults("instructed", token_limit=800) as memory:
        runner = runner_of(memory, agent)
        for turn in range(9):
            await run(runner, f"Question {turn}. {scenario.FILLER}")
            first, second = model.sent[-2:]
            assert "It is 42." in first[-2] and first[-1].startswith(f"Question {turn}.")
            assert second[-4] == first[-1] and second[-3].startswith("call") and "It is 42." in second[-1]
            assert sum("It is 42." in text for text in first) == sum("It is 42." in text for text in second) == 1
        assert most_sent(memory, model) <= 800


async def test_artifacts_have_room_in_the_budget() -> None:
    def reply(sent: list[str]) -> list[types.Part]:
        asks = calls(("c-1", "load_artifacts", {"artifact_names": ["report"]}))
        return asks if sent[-1] == "Read it." else says(scenario.FILLER)

    async def save(text: str) -> None:
        where = {"app_name": "app", "user_id": "ada", "session_id": "conversation", "filename": "report"}
        await artifacts.save_artifact(**where, artifact=types.Part(text=text))

    model = recording(reply)
    artifacts = InMemoryArtifactService()
    async with Memory.from_defaults("artifacts", token_limit=800) as memory:
        agent = LlmAgent(name="assistant", model=model, tools=[load_artifacts])
        runner = runner_of(memory, agent, artifact_service=artifacts)
        await save(f"Figures. {scenario.FILLER * 8}")
        for turn in range(9):
            await run(runner, f"Question {turn}. {scenario.FILLER}")
        await run(runner, "Read it.")
        asked, called, result, label, shown = model.sent[-1][-5:]
        assert (asked, called, result[:4], label[:8], shown[:8]) == ("Read it.", "call c-1", "c-1:", "Artifact", "Figures.")
        assert most_sent(memory, model) <= 800
        await run(runner, "And now?")
        assert not any("Figures." in text for text in model.sent[-1])
        await save(scenario.FILLER * 80)
        with pytest.raises(RuntimeError, match="beside memory"):
            await run(runner, "Read it.")


async def test_an_agent_without_contents_gets_none() -> None:
    model = recording(lambda sent: says("Yes."))
    async with Memory.from_defaults("none") as memory:
        runner = runner_of(memory, LlmAgent(name="assistant", model=model, include_contents="none"))
        await run(runner, "One?")
        await run(runner, "Two?")
        assert model.sent == [["One?"], ["Two?"]]
        assert [m.content for m in await memory.get_all()] == ["One?", "Yes.", "Two?", "Yes."]


@pytest.mark.filterwarnings("ignore:The `plugins` argument is deprecated")
async def test_an_agent_as_a_tool_has_no_part_in_the_conversation() -> None:
    def reply(sent: list[str]) -> list[types.Part]:
        return calls((f"c-{len(sent)}", "helper", {"request": "Compute."})) if sent[-1].endswith("?") else says("Done.")

    helper = LlmAgent(name="helper", description="It helps.", model=recording(lambda sent: says("It is 7.")))
    model = recording(reply)
    agent = LlmAgent(name="assistant", model=model, tools=[AgentTool(agent=helper)])
    async with MemoryEngine() as engine:
        runner = runner_of(lambda session: engine.session(session.id), agent)
        # One task, one session after the other: a tool of one does not hide the other.
        for session in ("one", "two", "one"):
            await run(runner, "What is it?", session)
        assert sorted([info.session_id for info in await engine.list_sessions()]) == ["one", "two"]
        assert [m.role for m in await engine.session("two").get_all()] == ["user", "assistant", "tool", "assistant"]
        assert helper.model.sent == [["Compute."]] * 3
        assert model.sent[-2][:4] == ["What is it?", "call c-1", "c-1: {'result': 'It is 7.'}", "Done."]


async def test_what_is_rewound_is_deleted_when_the_next_run_begins() -> None:
    model = recording(lambda sent: says("Yes."))
    async with Memory.from_defaults("rewound") as memory:
        runner = runner_of(memory, LlmAgent(name="assistant", model=model))
        runs = []
        for text in ("I am Bob.", "Wrong.", "Wrong too."):
            said = types.Content(role="user", parts=says(text))
            events = [e async for e in runner.run_async(user_id="ada", session_id="conversation", new_message=said)]
            runs.append(events[0].invocation_id)
        await runner.rewind_async(user_id="ada", session_id="conversation", rewind_before_invocation_id=runs[1])
        await run(runner, "And now?")
        assert model.sent[-1] == ["I am Bob.", "Yes.", "And now?"]
        await run(runner, "And then?")
        assert [m.content for m in await memory.get_all()] == ["I am Bob.", "Yes.", "And now?", "Yes.", "And then?", "Yes."]


# -- every event that the kit has -------------------------------------------------------------------------------

signature = st.none() | st.binary(max_size=6)
media_types = st.sampled_from(["image/png", "audio/wav", "video/mp4", "application/pdf", "odd type, really"])
thought = {"thought_signature": signature, "part_metadata": st.none() | OBJECTS}
response_media = st.builds(
    types.FunctionResponsePart,
    inline_data=st.none()
    | st.builds(types.FunctionResponseBlob, data=st.none() | st.binary(max_size=9), mime_type=media_types, display_name=MAYBE),
    file_data=st.none() | st.builds(types.FunctionResponseFileData, file_uri=MAYBE, mime_type=media_types),
)
parts = st.one_of(
    st.builds(types.Part, text=TEXTS, thought=st.none() | st.booleans(), **thought),
    st.builds(
        types.Part,
        function_call=st.builds(types.FunctionCall, id=MAYBE, name=MAYBE, args=st.none() | OBJECTS),
        **thought,
    ),
    st.builds(
        types.Part,
        function_response=st.builds(
            types.FunctionResponse,
            id=MAYBE,
            name=MAYBE,
            response=st.none() | OBJECTS,
            parts=st.none() | st.lists(response_media, max_size=2),
        ),
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


def read_by_a_model(part: dict[str, Any]) -> int:
    """What the kit sends of a part, counted without our format."""
    extras = characters(part.get("thought_signature")) + characters(part.get("part_metadata"))
    answer = part.get("function_response") or {}
    said = [part.get("text"), part.get("function_call"), part.get("executable_code"), part.get("code_execution_result")]
    said += [answer.get(key) for key in ("id", "name", "response")]
    return extras + sum(map(characters, said)) + sum(map(size_of, [part, *(answer.get("parts") or ())]))


def size_of(part: dict[str, Any]) -> int:
    """That of a medium; what has lost its data costs nothing."""
    media = part.get("inline_data") or part.get("file_data") or {}
    return size_of_medium(media.get("mime_type")) if "data" in media or "file_uri" in media else 0


@given(events)
def test_all_that_is_sent_is_counted(theirs: Event) -> None:
    ours = from_event(theirs)
    source = json.loads(theirs.model_dump_json(exclude_none=True)).get("content") or {}
    sent = source.get("parts") or []
    # Results that are no step of ours are counted as text, media and all.
    whole = [rest.get("whole") for rest, _ in ours.metadata["google_adk"]["content"]["parts"]] if sent else []
    sizes = [characters(part) if is_whole else read_by_a_model(part) for part, is_whole in zip(sent, whole, strict=True)]
    assert COUNTER.message(ours) >= sum(sizes)


def test_media_in_the_results_of_tools() -> None:
    def result(call_id: str, count: int) -> types.Part:
        blobs = [types.FunctionResponseBlob(mime_type="image/png", data=bytes([at])) for at in range(count)]
        parts = [types.FunctionResponsePart(inline_data=blob) for blob in blobs]
        answer = types.FunctionResponse(id=call_id, name="look", response={"result": "see"}, parts=parts)
        return types.Part(function_response=answer)

    theirs = Event(author="model", content=types.Content(role="user", parts=[result("c-1", 2), result("c-2", 1)]))
    ours = from_event(theirs)
    assert [block.type for block in ours.blocks] == ["tool_result", "image", "image", "tool_result", "image"]
    assert TokenCounter().message(ours) > 3 * 1024
    # A view may leave out one of the results.
    alone = to_content(ours.model_copy(update={"blocks": ours.blocks[1:], "partial": True}))
    assert theirs.content is not None
    assert alone.parts == list(theirs.content.parts or [])[1:]
