"""Agents of Microsoft Agent Framework on one memory, with a chat client that follows a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

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
    WorkflowBuilder,
    tool,
)
from agent_framework._types import ContentType
from elsewhere import talk_elsewhere
from hypothesis import given
from hypothesis import strategies as st
from strategies import COUNTER, JSON, MAYBE, NAMES, NUMBERS, TEXTS, characters, size_of_medium

from memory_engine import MemoryEngine
from memory_engine.integrations.agent_framework import MemoryHistoryProvider, from_message, to_message
from memory_engine.messages import decode, encode
from memory_engine.tokens import TokenCounter

Answer = Callable[[Sequence[Message]], Awaitable[Message]]


class ScriptedClient(FunctionInvocationLayer, ChatMiddlewareLayer, BaseChatClient):
    """A model that answers by a function."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    def _inner_get_response(
        self, *, messages: Sequence[Message], stream: bool, options: Mapping[str, Any], **kwargs: Any
    ) -> Any:
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


async def talk(uri: str, turns: range, stream: bool = False) -> scenario.Script:
    """These turns of the conversation."""
    script = scenario.Script()
    async with scenario.engine_at(uri) as engine:
        agent = agent_with(answering(script), engine.session)
        session = AgentSession(session_id="conversation")
        for turn in turns:
            if stream:
                await agent.run(scenario.user_text(turn), session=session, stream=True).get_final_response()
            else:
                await agent.run(scenario.user_text(turn), session=session)
            await engine.session("conversation").drain()
    return script


@pytest.mark.parametrize("stream", [False, True])
async def test_thirty_turns_through_flushes_and_another_process(tmp_path: Path, stream: bool) -> None:
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    first = await talk(uri, range(scenario.RESTART), stream)
    goes_on = talk if stream else partial(talk_elsewhere, talk)
    second = await goes_on(uri, range(scenario.RESTART, scenario.TURNS), stream=stream)
    assert first.problems == [] and second.problems == [] and second.recalled
    async with scenario.engine_at(uri) as engine:
        await scenario.check_history(engine.session("conversation"))


async def test_three_runs_at_once() -> None:
    script = scenario.Script()
    arrived = asyncio.Barrier(3)
    scripted = answering(script)

    async def answer(messages: Sequence[Message]) -> Message:
        # Every step of the three runs happens between steps of the others.
        await arrived.wait()
        return await scripted(messages)

    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("at once")
        agent = agent_with(answer, memory)
        for turns in scenario.AT_ONCE:
            session = AgentSession(session_id="at once")
            results = await asyncio.gather(*[agent.run(scenario.user_text(turn), session=session) for turn in turns])
            assert [result.text for result in results] == [f"Answer to {turn}, with tools." for turn in turns]
        assert script.problems == []
        await scenario.check_at_once(memory)


async def test_a_run_that_fails_is_taken_up_again_without_its_input() -> None:
    script = scenario.Script()
    scripted = answering(script)
    failing: list[bool] = []

    async def answer(messages: Sequence[Message]) -> Message:
        if failing and failing.pop(0):
            raise RuntimeError("the model is broken")
        return await scripted(messages)

    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("failing")
        agent = agent_with(answer, memory)
        for turn in range(6):
            session = AgentSession(session_id="failing")
            # At its first request to the model, and at the second, when a tool has done its work.
            failing[:] = [False, True] if turn % 3 else [True]
            with pytest.raises(RuntimeError, match="broken"):
                await agent.run(scenario.user_text(turn), session=session)
            result = await agent.run(session=session)
            assert result.text.startswith(f"Answer to {turn}")
        stored = await memory.get_all()
        assert script.problems == []
        assert [m.content for m in stored if m.role == "user"] == [scenario.user_text(turn) for turn in range(6)]
        assert len([m for m in stored if m.content.startswith("Answer")]) == 6
        calls = [c.id for m in stored for c in m.tool_calls]
        assert calls == list(dict.fromkeys(calls)) and len(calls) == 8


async def test_a_tool_that_fails_is_a_result() -> None:
    script = scenario.Script()

    def weather(town: str) -> str:
        raise RuntimeError("no weather today")

    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("tools")
        agent = Agent(
            client=ScriptedClient(answering(script)),
            tools=[weather, scenario.add],
            context_providers=[MemoryHistoryProvider(memory)],
            require_per_service_call_history_persistence=True,
        )
        result = await agent.run(scenario.user_text(1), session=AgentSession(session_id="tools"))
        assert result.text == "Answer to 1, with tools."
        results = [block for m in await memory.get_all() for block in m.blocks if block.type == "tool_result"]
        assert [(block.tool_call_id, block.is_error) for block in results] == [("call-1-w", True), ("call-1-a", False)]
        assert script.problems == []


async def test_a_giant_result_of_a_tool_stays_within_the_budget() -> None:
    script = scenario.Script()

    def weather(town: str) -> str:
        return "It rains. " * 5_000

    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("giant")
        agent = Agent(
            client=ScriptedClient(answering(script)),
            tools=[weather, scenario.add],
            context_providers=[MemoryHistoryProvider(memory)],
            require_per_service_call_history_persistence=True,
        )
        result = await agent.run(scenario.user_text(2), session=AgentSession(session_id="giant"))
        assert result.text == "Answer to 2, with tools."
        assert script.problems == []
        assert max(len(m.blocks[0].content) for m in await memory.get_all() if m.role == "tool") == 50_000


@pytest.mark.parametrize("is_restored", [False, True])
@pytest.mark.parametrize("is_approved", [True, False])
@pytest.mark.parametrize("per_service", [True, False])
async def test_a_tool_that_needs_approval(per_service: bool, is_approved: bool, is_restored: bool) -> None:
    sent: list[list[tuple[str, str]]] = []
    problems: list[str] = []

    @tool(approval_mode="always_require")
    def delete(file: str) -> str:
        return f"Deleted {file}."

    async def answer(messages: Sequence[Message]) -> Message:
        problems.extend(scenario.problems_of([from_message(message) for message in messages], scenario.TOKEN_LIMIT))
        sent.append([(content.type, str(content.text or content.call_id)) for m in messages for content in m.contents])
        if "Delete it" in messages[-1].text:
            return Message("assistant", [Content.from_function_call("c-1", "delete", arguments={"file": "a"})])
        return Message("assistant", ["Yes."])

    def agent() -> Agent:
        return Agent(
            client=ScriptedClient(answer),
            tools=[delete],
            context_providers=[MemoryHistoryProvider(engine.session)],
            require_per_service_call_history_persistence=per_service,
        )

    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        session = AgentSession(session_id="approval")
        first = agent()
        for turn in range(4):
            await first.run(f"Earlier {turn}. {scenario.FILLER * 2}", session=session)
        asked = await first.run(f"Delete it. {scenario.FILLER * 2}", session=session)
        requests = [c for m in asked.messages for c in m.contents if c.type == "function_approval_request"]
        if is_restored:
            await first.run(f"Something else. {scenario.FILLER}", session=session)
            session, first = AgentSession.from_dict(session.to_dict()), agent()
        result = await first.run(Message("user", [requests[0].to_function_approval_response(is_approved)]), session=session)
        assert result.text == "Yes."
        assert [kind for kind, _ in sent[-1][-3:]] == ["text", "function_call", "function_result"]
        assert sent[-1][-3][1].startswith("Delete it.")
        await first.run("Thanks.", session=session)
        assert ("function_result", "c-1") in sent[-1]
        assert problems == []
        stored = await engine.session("approval").get_all()
        [said] = [block.content for m in stored for block in m.blocks if block.type == "tool_result"]
        assert ("Deleted a." in said) == is_approved


async def test_the_call_that_waits_for_approval_has_room_in_the_budget() -> None:
    used: list[int] = []

    @tool(approval_mode="always_require")
    def write(text: str) -> str:
        return "Written."

    async def answer(messages: Sequence[Message]) -> Message:
        used.append(sum(map(TokenCounter().message, map(from_message, messages))))
        if messages[-1].text == "Write it.":
            return Message("assistant", [Content.from_function_call("c-1", "write", arguments={"text": scenario.FILLER * 3})])
        return Message("assistant", [scenario.FILLER])

    async with scenario.engine_at("sqlite+aiosqlite:///:memory:", memory_blocks=[]) as engine:
        agent = Agent(client=ScriptedClient(answer), tools=[write], context_providers=[MemoryHistoryProvider(engine.session)])
        session = AgentSession(session_id="approval")
        for turn in range(9):
            await agent.run(f"Earlier {turn}. {scenario.FILLER}", session=session)
        asked = await agent.run("Write it.", session=session)
        [request] = [c for m in asked.messages for c in m.contents if c.type == "function_approval_request"]
        await agent.run(Message("user", [request.to_function_approval_response(True)]), session=session)
        assert max(used) <= scenario.TOKEN_LIMIT - scenario.RESERVED


@pytest.mark.parametrize("per_service", [True, False])
async def test_agents_of_a_workflow_share_one_conversation(per_service: bool) -> None:
    sent: list[list[str]] = []

    def agent(name: str) -> Agent:
        async def answer(messages: Sequence[Message]) -> Message:
            sent.append([message.text for message in messages if message.text])
            if name == "first" and messages[-1].role == "user":
                return Message(
                    "assistant", [Content.from_function_call(f"c-{len(sent)}", "weather", arguments={"town": "Graz"})]
                )
            return Message("assistant", [f"{name}: {len(sent)}"])

        return Agent(
            client=ScriptedClient(answer),
            name=name,
            tools=[scenario.weather],
            context_providers=[MemoryHistoryProvider(memory)],
            require_per_service_call_history_persistence=per_service,
        )

    async with MemoryEngine() as engine:
        memory = engine.session("shared")
        for request in ("Once?", "Twice?", "Twice?"):
            first, second, third = agent("first"), agent("second"), agent("third")
            workflow = WorkflowBuilder(start_executor=first).add_edge(first, second).add_edge(second, third).build()
            await workflow.run(request)
        texts = [message.content for message in await memory.get_all() if message.content]
        expected = []
        for at, request in enumerate(("Once?", "Twice?", "Twice?")):
            expected += [request, *[f"{name}: {4 * at + place}" for place, name in enumerate(("first", "second", "third"), 2)]]
        assert texts == expected
        assert len([m for m in await memory.get_all() if m.tool_calls]) == 3
        # The last agent was shown everything once.
        assert sent[-1] == expected[:-1]


async def test_an_input_is_stored_again_only_when_it_is_new() -> None:
    async def answer(messages: Sequence[Message]) -> Message:
        if failing:
            raise RuntimeError("the model is broken")
        return Message("assistant", ["Yes."])

    async with MemoryEngine() as engine:
        memory = engine.session("repeated")
        agent = agent_with(answer, memory)
        session = AgentSession(session_id="repeated")
        failing = True
        with pytest.raises(RuntimeError, match="broken"):
            await agent.run("One?", session=session)
        failing = False
        # The same again is a repetition; after an answer it is new.
        await agent.run("One?", session=session)
        await agent.run("One?", session=session)
        assert [m.content for m in await memory.get_all()] == ["One?", "Yes.", "One?", "Yes."]
        # What was handed out is known when it comes back, in another process too.
        history = await MemoryHistoryProvider(memory).get_messages("repeated")
        await agent.run([*history, Message("user", ["Two?"])], session=session)
        assert [m.content for m in await memory.get_all()][4:] == ["Two?", "Yes."]
        await MemoryHistoryProvider(memory).save_messages("repeated", history)
        assert len(await memory.get_all()) == 6


def test_ids_that_a_message_cannot_have() -> None:
    ids = [from_message(Message("user", ["x"], message_id=given)).id for given in ("a\0b", "a\\0b", "x" * 600, "")]
    assert ids == [None, "a\\0b", "x" * 512, None]


# -- every message that the framework has ----------------------------------------------------------------------

# A property whose value is None is left out by the framework's own `to_dict`.
properties = st.dictionaries(NAMES, TEXTS | NUMBERS | st.lists(TEXTS, max_size=2), max_size=2)
arguments = st.none() | TEXTS | st.dictionaries(NAMES, TEXTS | NUMBERS, max_size=2)
extra = {"additional_properties": properties}
sources: st.SearchStrategy[Any] = st.none() | st.just([{"type": "citation", "title": "A source", "url": "https://example.com"}])
text_contents = st.builds(Content.from_text, TEXTS, annotations=sources, **extra)
media_types = st.sampled_from(["image/png", "audio/wav", "video/mp4", "application/pdf"])
medium = st.builds(Content.from_data, st.binary(max_size=9), media_types, **extra) | st.builds(
    Content.from_uri, NAMES.map(lambda name: f"https://example.com/{name}"), media_type=media_types, **extra
)
call_contents = st.builds(
    Content.from_function_call, NAMES, NAMES, arguments=arguments, informational_only=st.booleans(), **extra
)
contents = st.one_of(
    text_contents,
    medium,
    call_contents,
    st.builds(Content.from_text_reasoning, id=MAYBE, text=st.none() | TEXTS, protected_data=st.none() | TEXTS, **extra),
    st.builds(
        Content.from_function_result, NAMES, result=JSON | st.lists(text_contents | medium, min_size=1, max_size=2), **extra
    ),
    st.builds(Content.from_error, message=TEXTS, error_code=MAYBE, error_details=MAYBE, **extra),
    st.builds(Content.from_usage, st.dictionaries(st.just("input_token_count"), st.integers(0, 9)), **extra),
    st.builds(Content.from_hosted_file, NAMES, name=MAYBE, **extra),
    st.builds(Content.from_hosted_vector_store, NAMES, **extra),
    st.builds(Content.from_code_interpreter_tool_call, call_id=MAYBE, inputs=st.none() | st.lists(text_contents, max_size=2)),
    st.builds(
        Content.from_code_interpreter_tool_result, call_id=MAYBE, outputs=st.none() | st.lists(text_contents, max_size=2)
    ),
    st.builds(Content.from_mcp_server_tool_call, NAMES, NAMES, server_name=MAYBE, arguments=arguments),
    st.builds(Content.from_mcp_server_tool_result, NAMES, output=st.none() | TEXTS),
    st.builds(Content.from_function_approval_request, NAMES, call_contents),
    st.builds(Content.from_function_approval_response, st.booleans(), NAMES, call_contents),
    st.sampled_from(sorted(get_args(ContentType))).flatmap(
        lambda kind: st.builds(Content, st.just(kind), status=MAYBE, call_id=MAYBE, id=MAYBE, **extra)
    ),
)
messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool", "critic"]),
    st.lists(contents, max_size=4),
    author_name=MAYBE,
    message_id=MAYBE,
    additional_properties=properties,
)


@given(messages)
def test_round_trip_of_every_message(given: Message) -> None:
    # What the framework's own dicts do not keep (what an exception said) is not kept here.
    theirs = Message.from_dict(given.to_dict())
    ours = from_message(theirs)
    again = to_message(decode(encode(ours), id=ours.id, created_at=None))
    assert again.to_dict() == theirs.to_dict()
    assert again.contents == theirs.contents
    assert (again.role, again.author_name, again.message_id) == (theirs.role, theirs.author_name, theirs.message_id)


def read_by_a_model(content: dict[str, Any]) -> int:
    """What a client may send of a content, counted without our format."""
    kind = content["type"]
    if kind == "usage":
        return 0
    extras = characters(content.get("additional_properties")) + characters(content.get("annotations"))
    if kind in ("data", "uri") and isinstance(content.get("uri"), str):
        return extras + size_of_medium(content.get("media_type"))
    if kind == "function_result":
        items = sum(map(read_by_a_model, content.get("items") or ()))
        return extras + max(items, characters(content.get("result"))) + characters(content.get("call_id"))
    said = ("text", "protected_data") if kind in ("text", "text_reasoning") else _SAID
    return extras + sum(characters(content.get(key)) for key in said if kind not in _WITHIN)


_SAID = ("text", "call_id", "name", "arguments", "output", "message", "file_id")
_WITHIN = {"code_interpreter_tool_call", "code_interpreter_tool_result"}
"""They hold contents of their own."""


@given(messages)
def test_all_that_may_be_sent_is_counted(given: Message) -> None:
    theirs = given.to_dict()
    sent = sum(map(read_by_a_model, theirs.get("contents", ()))) + characters(theirs.get("author_name"))
    assert COUNTER.message(from_message(given)) >= sent


def test_media_in_the_results_of_tools() -> None:
    def result(call_id: str, count: int) -> Content:
        items = [Content.from_text("see"), *[Content.from_data(bytes([at]), "image/png") for at in range(count)]]
        return Content.from_function_result(call_id, result=items)

    ours = from_message(Message("tool", [result("c-1", 2), result("c-2", 1)]))
    assert [block.type for block in ours.blocks] == ["tool_result", "image", "image", "tool_result", "image"]
    assert TokenCounter().message(ours) > 3 * 1024
    # A view may leave out one of the results, or shorten it.
    alone = ours.model_copy(update={"blocks": ours.blocks[1:], "partial": True})
    assert [content.call_id for content in to_message(alone).contents] == ["c-2"]
    [shortened] = ours.blocks[3:4]
    cut = (*ours.blocks[:3], shortened.model_copy(update={"content": "s…"}), *ours.blocks[4:])
    items = to_message(ours.model_copy(update={"blocks": cut})).contents[1].items
    assert items is not None and [(item.type, item.text) for item in items] == [("text", "s…"), ("data", None)]
