"""pydantic-ai's agents on one memory, with its own function and test models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import scenario
from elsewhere import talk_elsewhere
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai import Agent, ModelRetry
from pydantic_ai import messages as ai
from pydantic_ai._deferred_capabilities import LoadCapabilityCallPart, LoadCapabilityReturnPart
from pydantic_ai._tool_search import (
    NativeToolSearchCallPart,
    NativeToolSearchReturnPart,
    ToolSearchCallPart,
    ToolSearchReturnPart,
)
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, DeltaToolCalls, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RequestUsage, UsageLimits
from strategies import COUNTER, JSON, MAYBE, NAMES, OBJECTS, TEXTS, characters, size_of_medium

from memory_engine import Memory
from memory_engine.blocks import StaticMemoryBlock
from memory_engine.integrations.pydantic_ai import (
    AgentMemory,
    from_model_messages,
    load_history,
    save_messages,
    to_model_messages,
)
from memory_engine.messages import decode, encode


def reply_of(script: scenario.Script, messages: list[ModelMessage]) -> ModelResponse:
    reply = script.reply_to(from_model_messages(messages))
    calls = [ToolCallPart(call.name, call.arguments_json, call.id) for call in reply.calls]
    return ModelResponse(parts=calls or [TextPart(reply.text)])


def scripted(script: scenario.Script) -> FunctionModel:
    return FunctionModel(lambda messages, info: reply_of(script, messages))


def agent_with(script: scenario.Script, **settings: Any) -> Agent[None, str]:
    agent = Agent(scripted(script), instructions="You are brief.", **settings)
    agent.tool_plain(scenario.weather)
    agent.tool_plain(scenario.add)
    return agent


async def talk(uri: str, turns: range, by_hand: bool = False) -> scenario.Script:
    """These turns of the conversation, with the capability or with history in and out."""
    # By hand nothing is cut within a run: its messages come on top of what memory gave.
    script = scenario.Script(budget=(1 + by_hand) * scenario.TOKEN_LIMIT)
    async with scenario.engine_at(uri) as engine:
        memory = engine.session("conversation")
        agent = agent_with(script, **({} if by_hand else {"system_prompt": "You know the weather."}))
        for turn in turns:
            prompt = scenario.user_text(turn)
            if by_hand:
                result = await agent.run(prompt, message_history=await load_history(memory, prompt))
                await save_messages(memory, result.new_messages())
                await save_messages(memory, result.new_messages())
            else:
                await agent.run(prompt, capabilities=[AgentMemory(memory)])
            await memory.drain()
    return script


@pytest.mark.parametrize("by_hand", [False, True])
async def test_thirty_turns_through_flushes_and_another_process(tmp_path: Path, by_hand: bool) -> None:
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    first = await talk(uri, range(scenario.RESTART), by_hand)
    goes_on = talk if by_hand else partial(talk_elsewhere, talk)
    second = await goes_on(uri, range(scenario.RESTART, scenario.TURNS), by_hand=by_hand)
    assert first.problems == [] and second.problems == [] and second.recalled
    async with scenario.engine_at(uri) as engine:
        await scenario.check_history(engine.session("conversation"))


async def run_fails(agent: Agent[None, str], prompt: str, memory: Memory) -> None:
    with pytest.raises(RuntimeError, match="broken"):
        await agent.run(prompt, capabilities=[AgentMemory(memory)])


async def test_a_run_that_fails_is_taken_up_again_without_its_prompt() -> None:
    script = scenario.Script()
    broken = {"model": True, "tool": False}

    def reply(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if broken["model"]:
            raise RuntimeError("the model is broken")
        return reply_of(script, messages)

    def weather(town: str) -> str:
        if broken["tool"]:
            raise RuntimeError("the tool is broken")
        return scenario.weather(town)

    agent = Agent(FunctionModel(reply), tools=[weather, scenario.add])
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("failing")
        for turn in range(6):
            # The model fails, or a tool, or (in turn 3, without tools) nothing.
            broken.update(model=turn % 2 == 0, tool=turn % 2 == 1)
            if turn == 3:
                result = await agent.run(scenario.user_text(turn), capabilities=[AgentMemory(memory)])
            else:
                await run_fails(agent, scenario.user_text(turn), memory)
                broken.update(model=False, tool=False)
                result = await agent.run(message_history=await load_history(memory), capabilities=[AgentMemory(memory)])
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
        return reply_of(script, messages)

    agent = Agent(FunctionModel(reply), tools=[scenario.weather, scenario.add])
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("at once")
        for turns in scenario.AT_ONCE:
            results = await asyncio.gather(
                *[agent.run(scenario.user_text(turn), capabilities=[AgentMemory(memory)]) for turn in turns]
            )
            assert [result.output for result in results] == [f"Answer to {turn}, with tools." for turn in turns]
        assert script.problems == []
        await scenario.check_at_once(memory)


async def test_streaming_stores_what_was_said_once() -> None:
    async def answer(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str | DeltaToolCalls]:
        reply = script.reply_to(from_model_messages(messages))
        for at, call in enumerate(reply.calls):
            yield {at: DeltaToolCall(call.name, call.arguments_json, tool_call_id=call.id)}
        for word in reply.text.split(" ") if reply.text else ():
            yield f"{word} "

    script = scenario.Script()
    agent = Agent(FunctionModel(stream_function=answer), tools=[scenario.weather, scenario.add])
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("stream")
        for turn in range(6):
            async with agent.run_stream(scenario.user_text(turn), capabilities=[AgentMemory(memory)]) as run:
                assert [piece async for piece in run.stream_text(delta=True)]
        assert script.problems == []
        await scenario.check_history(memory, turns=6)


async def test_what_the_framework_asks_to_be_done_again_is_kept() -> None:
    seen: list[list[ModelMessage]] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append(messages)
        replies = [
            ToolCallPart("weather", {"town": 1}, "bad-arguments"),
            ToolCallPart("weather", {"town": "Graz"}, "tool-asks"),
            TextPart("not good"),
            TextPart("good"),
        ]
        return ModelResponse(parts=[replies[len(seen) - 1]])

    def weather(town: str) -> str:
        raise ModelRetry("Which country?")

    def check(output: str) -> str:
        if output != "good":
            raise ModelRetry("Say it better.")
        return output

    agent = Agent(FunctionModel(answer), tools=[weather], retries=3)
    agent.output_validator(check)
    async with Memory.from_defaults("again", token_limit=2_000) as memory:
        result = await agent.run("How is the weather?", capabilities=[AgentMemory(memory)])
        assert result.output == "good"
        roles = [message.role for message in await memory.get_all()]
        assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant", "developer", "assistant"]
        # What each request held is what the framework itself would have sent.
        plain = Agent(FunctionModel(answer), tools=[weather], retries=3)
        plain.output_validator(check)
        with_memory, seen[:] = list(seen), []
        await plain.run("How is the weather?")
        assert [[part_of(p) for m in sent for p in m.parts] for sent in with_memory] == [
            [part_of(p) for m in sent for p in m.parts] for sent in seen
        ]
        # Afterwards only the request that was made counts as one; the feedback leaves with its turn.
        await memory.flush()
        assert [m.role for m in await memory.get()] == ["user", *roles[1:]]


def part_of(part: Any) -> tuple[str, str]:
    """What does not depend on the run."""
    return part.part_kind, str(getattr(part, "content", None) or getattr(part, "args", None))


async def test_a_giant_result_of_a_tool_stays_within_the_budget() -> None:
    script = scenario.Script()

    def weather(town: str) -> dict[str, Any]:
        return {"town": town, "forecast": "It rains. " * 5_000}

    agent = Agent(scripted(script), tools=[weather, scenario.add])
    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("giant")
        result = await agent.run(scenario.user_text(2), capabilities=[AgentMemory(memory)])
        assert result.output == "Answer to 2, with tools."
        assert script.problems == []
        # The run itself, and what is stored, have it whole.
        returned: list[Any] = [p.content for m in result.all_messages() for p in m.parts if p.part_kind == "tool-return"]
        assert returned[0]["forecast"] == "It rains. " * 5_000
        assert [message for message in from_model_messages(result.all_messages()) if message.role == "tool"] == [
            message.model_copy(update={"created_at": None}) for message in await memory.get_all() if message.role == "tool"
        ]


async def test_a_run_of_many_steps_stays_within_the_budget() -> None:
    script = scenario.Script()
    asked = 0

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        nonlocal asked
        asked += 1
        script.problems += scenario.problems_of(from_model_messages(messages), script.budget)
        texts = [part.content for message in messages for part in message.parts if isinstance(part, UserPromptPart)]
        assert "Walk." in str(texts), "the request was forgotten"
        done = [part.content for message in messages for part in message.parts if part.part_kind == "tool-return"]
        assert asked == 1 or done[-1].startswith(f"Step {asked - 1}")
        return ModelResponse(
            parts=[TextPart("There.") if asked > 30 else ToolCallPart("walk", {"step": asked}, f"step-{asked}")]
        )

    def walk(step: int) -> str:
        return f"Step {step}. {scenario.FILLER}"

    async with scenario.engine_at("sqlite+aiosqlite:///:memory:") as engine:
        memory = engine.session("long")
        settings: dict[str, Any] = {"usage_limits": UsageLimits(request_limit=None), "capabilities": [AgentMemory(memory)]}
        result = await Agent(FunctionModel(answer), tools=[walk]).run("Walk.", **settings)
        assert result.output == "There."
        assert script.problems == []
        # Nothing is dropped from the run, nor from what is stored.
        assert len(result.new_messages()) == 62
        assert len(await memory.get_all()) == 62


@pytest.mark.parametrize("insert_method", ["system", "user", "split"])
async def test_what_memory_inserts_is_sent_and_never_stored(insert_method: str) -> None:
    seen: list[str] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append("\n".join(str(part.content) for message in messages for part in message.parts))
        return ModelResponse(parts=[TextPart("Yes.")])

    agent = Agent(FunctionModel(answer))
    blocks = [StaticMemoryBlock(name="rules", static_content="Answer briefly.")]
    async with Memory.from_defaults("inserted", memory_blocks=blocks, insert_method=insert_method) as memory:
        await agent.run("One?", capabilities=[AgentMemory(memory)])
        result = await agent.run("Two?", message_history=await load_history(memory))
        await save_messages(memory, result.new_messages())
        # Those that came out of memory are known by their ids, or by their mark.
        await save_messages(memory, await load_history(memory))
        stored = await memory.get_all()
        assert [message.content for message in stored] == ["One?", "Yes.", "Two?", "Yes."]
        assert len(seen) == 2 and all("Answer briefly." in text for text in seen)


@pytest.mark.parametrize("insert_method", ["system", "user", "split"])
@pytest.mark.parametrize("is_answered", [True, False])
@pytest.mark.parametrize("is_foreign", [True, False])
async def test_all_messages_of_a_run_are_stored_once(is_foreign: bool, is_answered: bool, insert_method: str) -> None:
    agent = Agent(TestModel(custom_output_text="Yes."))
    blocks = [StaticMemoryBlock(name="rules", static_content="Answer briefly.")]
    async with Memory.from_defaults("all", memory_blocks=blocks, insert_method=insert_method) as memory:
        await memory.put({"role": "system", "content": "Be kind."})
        first = await agent.run("One?")
        await save_messages(memory, first.new_messages())
        if is_answered:
            result = await agent.run("Two?", message_history=await load_history(memory))
        else:
            asked = {"role": "user", "content": "Two?"}
            await (memory.put(asked) if is_foreign else save_messages(memory, [ModelRequest([UserPromptPart("Two?")])]))
            result = await agent.run(message_history=await load_history(memory))
        for _ in range(2):
            await save_messages(memory, result.all_messages())
            await save_messages(memory, result.new_messages())
        # What was merged with the request before it goes on like that.
        result = await agent.run("Three?", message_history=result.all_messages())
        await save_messages(memory, result.all_messages())
        stored = [(message.role, message.content) for message in await memory.get_all()]
        talk = [
            (role, text)
            for question in ("One?", "Two?", "Three?")
            for role, text in (("user", question), ("assistant", "Yes."))
        ]
        assert stored == [("system", "Be kind."), *talk]


async def test_history_given_by_hand_that_began_elsewhere() -> None:
    sent: list[list[str]] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        sent.append([str(getattr(part, "content", "")) for message in messages for part in message.parts])
        return ModelResponse(parts=[TextPart("Yes.")])

    agent = Agent(FunctionModel(answer), system_prompt="You are brief.")
    elsewhere: list[ModelMessage] = [
        ModelRequest([ai.SystemPromptPart("You are brief."), UserPromptPart("Zero?")]),
        ModelResponse([TextPart("No.")]),
    ]
    unanswered: list[ModelMessage] = [ModelRequest([UserPromptPart("Two?")])]
    async with Memory.from_defaults("elsewhere") as memory:
        settings: dict[str, Any] = {"capabilities": [AgentMemory(memory)]}
        result = await agent.run("One?", message_history=elsewhere, **settings)
        assert sent[-1] == ["You are brief.", "Zero?", "No.", "One?"]
        await agent.run(message_history=unanswered, **settings)
        assert sent[-1][-1] == "Two?"
        # Taken up once more, with a prompt: nothing is said twice, and nothing is missing.
        await agent.run("Three?", message_history=[*result.all_messages(), ModelRequest([UserPromptPart("And?")])], **settings)
        assert sent[-1][-2:] == ["And?", "Three?"]
        texts = [message.content for message in await memory.get_all()]
        assert texts == ["Zero?", "No.", "One?", "Yes.", "Two?", "Yes.", "And?", "Three?", "Yes."]
        assert all(sent)


async def test_messages_that_others_stored() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,++//"}}
    async with Memory.from_defaults("others") as memory:
        await memory.put({"role": "system", "content": "Be kind."})
        await memory.put({"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]})
        call = {"id": "c-1", "type": "function", "function": {"name": "look", "arguments": '{"closely": true}'}}
        await memory.put({"role": "assistant", "content": None, "tool_calls": [call]})
        await memory.put({"role": "tool", "tool_call_id": "c-1", "content": "a cat"})
        await memory.put({"role": "assistant", "content": "A cat."})
        history = await load_history(memory)
        found: list[Any] = [part for message in history for part in message.parts]
        assert [part.part_kind for part in found] == ["system-prompt", "user-prompt", "tool-call", "tool-return", "text"]
        assert found[1].content[0] == "What is it?" and found[1].content[1].data == b"\xfb\xef\xff"
        assert (found[2].tool_name, found[2].args) == ("look", '{"closely": true}')
        assert (found[3].tool_name, found[3].content) == ("look", "a cat")
        before = await memory.get_all()
        result = await Agent(TestModel(custom_output_text="Yes.")).run("Sure?", message_history=history)
        await save_messages(memory, history)
        await save_messages(memory, result.new_messages())
        assert [*before, *(await memory.get_all())[-2:]] == await memory.get_all()


# -- every message that the framework has ----------------------------------------------------------------------

moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
details = st.none() | OBJECTS
media_types = st.sampled_from(["image/png", "audio/wav", "video/mp4", "application/pdf", "odd type, really"])
binary = st.builds(
    ai.BinaryContent, data=st.binary(max_size=9), media_type=media_types, vendor_metadata=details, identifier=MAYBE
)
urls = st.one_of(
    [
        st.builds(
            kind,
            url=NAMES.map(lambda name: f"https://example.com/{name}"),
            force_download=st.sampled_from([False, True, "allow-local"]),
            vendor_metadata=details,
            media_type=MAYBE,
            identifier=MAYBE,
        )
        for kind in (ai.ImageUrl, ai.AudioUrl, ai.VideoUrl, ai.DocumentUrl)
    ]
)
uploads = st.builds(ai.UploadedFile, file_id=NAMES, provider_name=st.sampled_from(["openai", "anthropic"]), media_type=MAYBE)
items = st.one_of(
    TEXTS,
    urls,
    binary,
    uploads,
    st.builds(ai.TextContent, TEXTS, metadata=JSON),
    st.builds(ai.StructuredContent, JSON, metadata=JSON, tag=st.none() | st.just("state"), description=MAYBE),
    st.builds(ai.CachePoint, ttl=st.sampled_from(["5m", "1h"])),
)
retries = st.builds(
    ai.RetryInfo, cause=st.sampled_from(["validation_error", "model_retry"]), attempt=st.none() | st.integers(0, 9)
)
contents = st.one_of(TEXTS, JSON, binary, urls, st.lists(TEXTS | JSON | binary | urls, max_size=3))
searches: st.SearchStrategy[Any] = st.builds(
    dict, discovered_tools=st.lists(st.builds(dict, name=NAMES), max_size=2), message=TEXTS
)
instruction_ids = st.builds(ai.InstructionId, st.builds(ai.ToolsetInstructionSource, id=NAMES), name=MAYBE)
request_parts = st.one_of(
    st.builds(
        ai.SystemPromptPart, TEXTS, timestamp=moments, dynamic_ref=MAYBE, scope=st.sampled_from(["conversation", "request"])
    ),
    st.builds(ai.UserPromptPart, TEXTS | st.lists(items, max_size=4), timestamp=moments),
    st.builds(
        ai.ToolReturnPart,
        NAMES,
        contents,
        NAMES,
        metadata=JSON,
        timestamp=moments,
        outcome=st.sampled_from(["success", "failed", "denied", "interrupted"]),
        retry=st.none() | retries,
    ),
    st.builds(ai.RetryFeedbackPart, TEXTS, retry=retries, timestamp=moments),
    st.builds(ai.InstructionDeltaPart, id=instruction_ids, content=st.none() | TEXTS, base_hash=MAYBE),
    st.builds(ai.ToolAvailabilityDeltaPart, tools_added=st.lists(NAMES, max_size=2), tool_call_id=MAYBE),
    st.builds(ai.CapabilityLoadDeltaPart, loaded=st.lists(NAMES, max_size=2), tool_call_id=MAYBE),
    st.builds(
        ai.InstructionBaselinePart,
        instructions=st.lists(st.builds(ai.InstructionPart, TEXTS, dynamic=st.booleans(), id=instruction_ids), max_size=2),
    ),
    st.builds(ai.CompactionPart, st.none() | TEXTS, metadata=details),
    st.builds(
        ai.ModelSettingsDeltaPart, settings=st.builds(dict, thinking=st.sampled_from(["low", "high"])), top_level=st.booleans()
    ),
    st.builds(ToolSearchReturnPart, tool_call_id=NAMES, content=searches, metadata=JSON, timestamp=moments),
    st.builds(LoadCapabilityReturnPart, NAMES, content=st.builds(dict, message=TEXTS), timestamp=moments),
    st.builds(ai.SpeechPart, speaker=st.just("user"), transcript=st.none() | TEXTS, audio=st.none() | binary),
)
calls = {"args": st.none() | TEXTS | OBJECTS, "id": MAYBE, "provider_name": MAYBE, "provider_details": details}
named = {"id": MAYBE, "provider_name": MAYBE, "provider_details": details}
queries = st.none() | TEXTS | st.builds(dict, queries=st.lists(TEXTS, max_size=2))
usages = st.builds(RequestUsage, input_tokens=st.integers(0, 99), details=st.dictionaries(NAMES, st.integers(0, 9), max_size=2))
citations = st.builds(
    ai.Citation,
    sources=st.lists(
        st.builds(ai.WebCitationSource, url=NAMES, title=MAYBE)
        | st.builds(ai.DocumentCitationSource, document_id=NAMES, title=MAYBE, excerpts=st.lists(TEXTS, max_size=2)),
        min_size=1,
        max_size=2,
    ),
    anchor=st.none()
    | st.builds(ai.ContentCitationAnchor, start=st.just(0), end=st.integers(1, 9))
    | st.builds(ai.MarkerCitationAnchor, start=st.just(0), end=st.integers(1, 9)),
)
response_parts = st.one_of(
    st.builds(ai.TextPart, TEXTS, **named, citations=st.none() | st.lists(citations, max_size=2)),
    st.builds(ai.ThinkingPart, TEXTS, signature=st.none() | TEXTS, **named),
    st.builds(ai.ToolCallPart, NAMES, tool_call_id=NAMES, **calls),
    st.builds(ai.NativeToolCallPart, NAMES, tool_call_id=NAMES, **calls),
    st.builds(ToolSearchCallPart, args=queries, tool_call_id=NAMES, **named),
    st.builds(LoadCapabilityCallPart, NAMES, args=st.none() | TEXTS | st.builds(dict, id=NAMES), **named),
    st.builds(NativeToolSearchCallPart, args=queries, tool_call_id=NAMES, **named),
    st.builds(NativeToolSearchReturnPart, tool_call_id=NAMES, content=searches, timestamp=moments, provider_name=MAYBE),
    st.builds(
        ai.NativeToolReturnPart, NAMES, contents, NAMES, timestamp=moments, provider_name=MAYBE, provider_details=details
    ),
    st.builds(ai.FilePart, binary, **named),
    st.builds(ai.CompactionPart, st.none() | TEXTS, **named, metadata=details),
    st.builds(
        ai.SpeechPart,
        speaker=st.just("assistant"),
        transcript=st.none() | TEXTS,
        audio=st.none() | binary,
        provider_details=details,
    ),
)


def with_one_call_each(parts: list[Any]) -> list[Any]:
    """No two calls of a message with one id."""
    seen: set[str] = set()
    return [
        p for p in parts if not isinstance(p, ai.ToolCallPart) or (p.tool_call_id not in seen and not seen.add(p.tool_call_id))
    ]


runs = {"run_id": MAYBE, "conversation_id": MAYBE, "metadata": details}
requests = st.builds(
    ModelRequest,
    st.lists(request_parts, max_size=4),
    timestamp=st.none() | moments,
    instructions=st.none() | TEXTS,
    state=st.sampled_from(["complete", "interrupted"]),
    **runs,
)
responses = st.builds(
    ModelResponse,
    st.lists(response_parts, max_size=4).map(with_one_call_each),
    usage=usages,
    model_name=MAYBE,
    timestamp=moments,
    provider_name=MAYBE,
    provider_url=MAYBE,
    provider_details=details,
    provider_response_id=MAYBE,
    finish_reason=st.sampled_from([None, "stop", "tool_call"]),
    state=st.sampled_from(["complete", "incomplete", "suspended", "interrupted"]),
    **runs,
)


@given(st.lists(requests | responses, max_size=4))
def test_round_trip_of_every_message(given: list[ModelMessage]) -> None:
    # What the framework's own JSON does not keep (a tuple, a class of ours) is not kept here.
    theirs = ai.ModelMessagesTypeAdapter.validate_json(ai.ModelMessagesTypeAdapter.dump_json(given))
    ours = from_model_messages(theirs)
    stored = [decode(encode(message), id=message.id, created_at=None) for message in ours]
    again = to_model_messages(stored)
    assert again == theirs
    # Equality leaves out some fields of media.
    assert ai.ModelMessagesTypeAdapter.dump_python(again) == ai.ModelMessagesTypeAdapter.dump_python(theirs)
    assert [message.id for message in from_model_messages(again)] == [message.id for message in ours]


def read_by_a_model(part: dict[str, Any]) -> int:
    """What a model may be sent of a part, counted without our format."""
    said = ("tool_name", "tool_call_id", "args", "signature", "provider_details", "transcript")
    kept = sum(characters(part.get(key)) for key in said)
    content = part.get("content")
    if part["part_kind"].startswith("builtin-"):
        return kept + characters(content)  # a provider's own, as it wrote it
    items = content if isinstance(content, list) and part["part_kind"] == "user-prompt" else [content]
    return kept + sum(map(size_of, [*items, part.get("audio")]))


def size_of(item: Any) -> int:
    if not isinstance(item, dict):
        return characters(item)
    if item.get("kind") in ("image-url", "audio-url", "video-url"):
        return size_of_medium(item["kind"].removesuffix("-url"))
    if item.get("kind") in ("binary", "document-url", "uploaded-file"):
        return size_of_medium(item.get("media_type") if item["kind"] != "document-url" else None)
    return characters(item.get("content")) if "kind" in item else characters(item)


@given(st.lists(requests | responses, max_size=3))
def test_all_that_may_be_sent_is_counted(given: list[ModelMessage]) -> None:
    theirs = json.loads(ai.ModelMessagesTypeAdapter.dump_json(given))
    parts = [part for message in theirs for part in message["parts"]]
    assert sum(map(COUNTER.message, from_model_messages(given))) >= sum(map(read_by_a_model, parts))


def test_every_type_of_part_is_generated() -> None:
    """A new version of the framework may have more of them."""
    text = Path(__file__).read_text(encoding="utf-8")
    known = [cls.__name__ for union in (ai.ModelRequestPart, ai.ModelResponsePart, ai.UserContent) for cls in _classes(union)]
    # What older versions wrote is read as the parts of today.
    known = [name for name in known if name not in ("str", "RetryPromptPart")]
    assert len(known) > 25
    assert [name for name in known if f"({name}," not in text and f"ai.{name}" not in text] == []


def _classes(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
        return
    inner = get_args(annotation)
    for each in inner[:1] if get_origin(annotation) is Annotated else inner:
        yield from _classes(each)
