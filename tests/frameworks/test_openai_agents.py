"""OpenAI's Agents SDK on our memory: the shared conversation, failures, concurrency, and every type of item exactly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Required, Union, get_args, get_origin

import pytest
import scenario
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrailTripwireTriggered,
    OutputGuardrailTripwireTriggered,
    RunConfig,
    Runner,
    RunState,
    function_tool,
    input_guardrail,
    output_guardrail,
    set_tracing_disabled,
)
from agents.memory import Session, SessionSettings
from agents.testing import ModelCall, ModelStep, ScriptedModel
from elsewhere import talk_elsewhere
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseFunctionWebSearch,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
)
from openai.types.responses.response_function_web_search import ActionSearch
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from openai.types.responses.response_reasoning_item import Summary
from typing_extensions import get_type_hints, is_typeddict

from memory_engine import BaseMemoryBlock, ChatMessage, Memory, MemoryEngine
from memory_engine.blocks import StaticMemoryBlock, VectorMemoryBlock
from memory_engine.errors import ConfigurationError, InvalidMessageError
from memory_engine.formats.openai_responses import call_id_of, from_openai_responses, is_output, to_openai_responses
from memory_engine.integrations.openai_agents import OpenAIAgentsSession
from memory_engine.messages import TextBlock, ToolCallBlock, ToolResultBlock, decode, encode
from memory_engine.tokens import TokenCounter

set_tracing_disabled(True)
pytestmark = pytest.mark.timeout(120)

Item = dict[str, Any]


# -- a scripted model --------------------------------------------------------------------------------------------


def said(text: str, id: str = "msg_1") -> ResponseOutputMessage:
    part = ResponseOutputText(type="output_text", text=text, annotations=[])
    return ResponseOutputMessage(id=id, type="message", role="assistant", status="completed", content=[part])


def call(name: str, arguments: Mapping[str, Any], call_id: str) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        type="function_call", name=name, arguments=json.dumps(arguments), call_id=call_id, id=f"fc_{call_id}"
    )


def reasoning(id: str) -> ResponseReasoningItem:
    summary = [Summary(type="summary_text", text="Thinking about it.")]
    return ResponseReasoningItem(id=id, type="reasoning", summary=summary, encrypted_content="gAAAA" + id)


def seen(items: Iterable[Any]) -> list[ChatMessage]:
    """What a model is sent, one message for each item, read without the code under test."""
    messages = []
    for item in items:
        if item.get("type") == "function_call":
            block = ToolCallBlock(id=item["call_id"], name=item["name"], arguments=item["arguments"])
            messages.append(ChatMessage(role="assistant", blocks=[block]))
        elif item.get("type") == "function_call_output":
            result = ToolResultBlock(tool_call_id=item["call_id"], content=str(item["output"]))
            messages.append(ChatMessage(role="tool", blocks=[result]))
        elif item.get("type") == "reasoning":
            continue
        else:
            content = item["content"]
            text = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
            messages.append(ChatMessage(role=item["role"], content=text))
    return messages


def scripted(script: scenario.Script) -> ScriptedModel:
    def respond(call_made: ModelCall) -> Sequence[Any]:
        sent = seen(call_made.input if isinstance(call_made.input, list) else [{"role": "user", "content": call_made.input}])
        if call_made.system_instructions:
            sent.insert(0, ChatMessage(role="system", content=call_made.system_instructions))
        reply = script.reply_to(sent)
        calls = [call(c.name, c.arguments, c.id) for c in reply.calls]
        # A reasoning item before every answer: it may never be without what follows it.
        return [reasoning(f"rs_{script.seen}"), *(calls or [said(reply.text, f"msg_{script.seen}")])]

    return ScriptedModel([ModelStep.respond(respond)] * 200)


@function_tool
def weather(town: str) -> str:
    return scenario.weather(town)


@function_tool
def add(first: int, second: int) -> str:
    return scenario.add(first, second)


@function_tool(failure_error_function=None)
def broken() -> str:
    raise RuntimeError("the tool is broken")


@function_tool(needs_approval=True)
def launch() -> str:
    return "launched"


def agent_with(model: Any, *tools: Any, **settings_: Any) -> Agent[Any]:
    return Agent("assistant", instructions="Be brief.", model=model, tools=list(tools), **settings_)


async def ask(agent: Agent[Any], input: Any, session: Any, *, streamed: bool = False, **more: Any) -> Any:
    if not streamed:
        return await Runner.run(agent, input, session=session, **more)
    result = Runner.run_streamed(agent, input, session=session, **more)
    async for _ in result.stream_events():
        pass
    return result


@pytest.fixture
async def memory(tmp_path: Path) -> AsyncIterator[Memory]:
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    async with Memory.from_defaults("chat", token_limit=30_000, async_database_uri=uri) as memory:
        yield memory


def session_on(memory: Memory, **settings_: Any) -> Any:
    return OpenAIAgentsSession(memory, **settings_)


async def stored_items(memory: Memory) -> list[Item]:
    return to_openai_responses(await memory.get_all())


def texts(items: Iterable[Item], role: str) -> list[str]:
    return [message.content for message in seen(items) if message.role == role]


# -- the conversation --------------------------------------------------------------------------------------------


async def talk(uri: str, turns: range, streamed: bool) -> scenario.Script:
    """These turns of the shared conversation, in an engine and with objects of the SDK of their own."""
    script = scenario.Script()
    async with scenario.engine_at(uri) as engine:
        session = session_on(engine.session("chat"))
        agent = agent_with(scripted(script), weather, add)
        config = session.run_config() if streamed else RunConfig()
        for turn in turns:
            await ask(agent, scenario.user_text(turn), session, streamed=streamed, run_config=config)
            await session.memory.drain(timeout=20)
    return script


@pytest.mark.parametrize("streamed", [False, True])
async def test_thirty_turns_through_flushes_and_another_process(tmp_path: Path, streamed: bool) -> None:
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    first = await talk(uri, range(scenario.RESTART), streamed)
    goes_on = talk if streamed else partial(talk_elsewhere, talk)
    second = await goes_on(uri, range(scenario.RESTART, scenario.TURNS), streamed=streamed)
    assert first.problems == [] and second.problems == [] and second.recalled
    async with scenario.engine_at(uri) as engine:
        session = engine.session("chat")
        await scenario.check_history(session)
        assert scenario.CODE_WORD in (await session.get_all(archived=True))[0].content  # what answered came through the block


# -- concurrency and failures ------------------------------------------------------------------------------------


async def test_three_runs_at_once(memory: Memory) -> None:
    session = session_on(memory)

    async def one(number: int) -> None:
        calls = [call("weather", {"town": f"{number}"}, f"c{number}"), call("add", {"first": 1, "second": 2}, f"d{number}")]
        model = ScriptedModel([calls, [said(f"Answer {number}.")]])
        await ask(agent_with(model, weather, add), f"Question {number}.", session, streamed=number == 1)

    await asyncio.gather(*map(one, range(3)))
    items = await stored_items(memory)
    assert sorted(texts(items, "user")) == [f"Question {number}." for number in range(3)]
    assert sorted(text for text in texts(items, "assistant") if text) == [f"Answer {number}." for number in range(3)]
    assert len([item for item in items if item.get("type") == "function_call"]) == 6
    shown = await session.get_items()
    assert scenario.problems_of(seen(shown), 30_000) == []
    assert len(shown) == len(items) == 18
    # And the next run is sent all of it.
    model = ScriptedModel([[said("Fine.")]])
    await ask(agent_with(model), "And now?", session)
    assert len(model.last_call.input) == 19


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("failing", ["model", "model after tools", "tool"])
async def test_a_run_that_failed_is_gone_on_with(memory: Memory, failing: str, streamed: bool) -> None:
    session = session_on(memory)
    await ask(agent_with(ScriptedModel([[said("Hello.")]])), "Hi.", session)
    calls = [reasoning("rs_1"), call("weather", {"town": "Rome"}, "c1")]
    failures: dict[str, list[Any]] = {
        "model": [RuntimeError("no connection")],
        "model after tools": [calls, RuntimeError("no connection")],
        "tool": [[*calls, call("broken", {}, "c2")]],
    }
    with pytest.raises(Exception, match=r"no connection|broken"):
        await ask(agent_with(ScriptedModel(failures[failing]), weather, broken), "How warm is it?", session, streamed=streamed)
    assert scenario.problems_of(seen(await session.get_items()), 30_000) == []
    model = ScriptedModel([[said("Warm.")]])
    await ask(agent_with(model, weather, broken), [], session, streamed=streamed)
    assert scenario.problems_of(seen(model.last_call.input), 30_000) == []
    assert texts(model.last_call.input, "user") == ["Hi.", "How warm is it?"]
    items = await stored_items(memory)
    assert texts(items, "user") == ["Hi.", "How warm is it?"]
    assert texts(items, "assistant")[-1] == "Warm."
    outputs = [item["call_id"] for item in items if is_output(item)]
    assert outputs == ([] if failing == "model" else ["c1"])


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_same_input_again_after_a_failure_is_one_message(memory: Memory, streamed: bool) -> None:
    session = session_on(memory)
    steps: list[Any] = [RuntimeError("no connection"), [said("Warm.")], [said("Still warm.")]]
    model = ScriptedModel()
    for step in steps:
        model = ScriptedModel([step])
        try:
            await ask(agent_with(model), "How warm?", session, streamed=streamed, run_config=session.run_config())
        except RuntimeError:
            continue
    # The third was asked after an answer: that is a question of its own.
    assert texts(await stored_items(memory), "user") == ["How warm?", "How warm?"]
    assert texts(model.last_call.input, "user") == ["How warm?", "How warm?"]


async def test_the_same_input_twice_at_once_is_two_requests(memory: Memory) -> None:
    together = asyncio.Barrier(3)

    async def respond_slowly(call_made: Any) -> list[Any]:
        await together.wait()
        return [said("Yes.", f"msg_{id(call_made)}")]

    async def one() -> Any:
        session = session_on(memory)
        agent = agent_with(ScriptedModel([ModelStep.respond(respond_slowly)]))
        return await ask(agent, "Next, please.", session, run_config=session.run_config())

    await asyncio.gather(*(one() for _ in range(3)))
    assert texts(await stored_items(memory), "user") == ["Next, please."] * 3


async def test_with_the_run_config_a_long_run_stays_within_the_budget(tmp_path: Path) -> None:
    script = scenario.Script(budget=scenario.TOKEN_LIMIT - scenario.RESERVED)
    asked = 0

    def respond(call_made: Any) -> list[Any]:
        nonlocal asked
        asked += 1
        sent = seen(call_made.input)
        script.problems += scenario.problems_of(sent, script.budget)
        assert any("Walk." in message.content for message in sent), "the request was forgotten"
        return [said("There.", "msg_end")] if asked > 30 else [call("walk", {"step": asked}, f"step-{asked}")]

    @function_tool
    def walk(step: int) -> str:
        return f"Step {step}. {scenario.FILLER}"

    async with scenario.engine_at(f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}") as engine:
        session = session_on(engine.session("long"))
        agent = agent_with(ScriptedModel([ModelStep.respond(respond)] * 31), walk)
        result = await ask(agent, "Walk.", session, run_config=session.run_config(), max_turns=40)
        assert result.final_output == "There." and script.problems == []
        assert len(await stored_items(session.memory)) == 62, "nothing is dropped from what is stored"


@pytest.mark.parametrize("streamed", [False, True])
async def test_guardrails(memory: Memory, streamed: bool) -> None:
    @input_guardrail
    async def no_secrets(context: Any, agent: Any, input: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered="secret" in json.dumps(input[-1]))

    @output_guardrail
    async def no_swearing(context: Any, agent: Any, output: Any) -> GuardrailFunctionOutput:
        return GuardrailFunctionOutput(output_info=None, tripwire_triggered="damn" in output)

    session = session_on(memory)

    def guarded(*steps: Any) -> Agent[Any]:
        return agent_with(ScriptedModel(steps), input_guardrails=[no_secrets], output_guardrails=[no_swearing])

    await ask(guarded([said("Hello.")]), [{"role": "user", "content": "Hi."}], session, streamed=streamed)
    with pytest.raises(InputGuardrailTripwireTriggered):
        await ask(guarded([said("No.")]), [{"role": "user", "content": "A secret."}], session, streamed=streamed)
    with pytest.raises(OutputGuardrailTripwireTriggered):
        await ask(guarded([said("damn")]), [{"role": "user", "content": "Swear."}], session, streamed=streamed)
    agent = guarded([said("Yes.")])
    await ask(agent, [{"role": "user", "content": "Are you there?"}], session, streamed=streamed)
    users = ["Hi.", "A secret.", "Swear.", "Are you there?"]
    assert texts(await stored_items(memory), "user") == users
    assert texts(agent.model.last_call.input, "user") == users
    assert "damn" not in texts(await stored_items(memory), "assistant")


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_that_waits_for_approval(memory: Memory, streamed: bool) -> None:
    session = session_on(memory)
    agent = agent_with(ScriptedModel([[reasoning("rs_1"), call("launch", {}, "c1")], [said("Launched.")]]), launch)
    result = await ask(agent, "Launch it.", session, streamed=streamed)
    # Stored, but not shown as long as nobody answered.
    assert texts(await session.get_items(), "user") == ["Launch it."]
    assert len(await session.get_items()) == 1
    state: Any = await RunState.from_json(agent, result.to_state().to_json())
    state.approve(state.get_interruptions()[0])
    result = await ask(agent, state, session, streamed=streamed)
    assert result.final_output == "Launched."
    kinds = [item.get("type") or item["role"] for item in await session.get_items()]
    assert kinds == ["user", "reasoning", "function_call", "function_call_output", "message"]
    assert await session.get_items() == await stored_items(memory)


async def test_an_append_that_failed_is_made_up_for(memory: Memory) -> None:
    class Flaky(OpenAIAgentsSession):
        fail = False

        async def add_items(self, items: Any) -> None:
            if self.fail:
                self.fail = False
                raise OSError("the disk is gone")
            await super().add_items(items)

    session = Flaky(memory)
    agent = agent_with(ScriptedModel([[call("launch", {}, "c1")], [said("Launched.")]]), launch)
    state = (await ask(agent, "Launch it.", session)).to_state()
    state.approve(state.get_interruptions()[0])
    session.fail = True
    with pytest.raises(OSError, match="disk"):
        await ask(agent, state, session)
    result = await ask(agent, state, session)
    assert result.final_output == "Launched."
    kinds = [item.get("type") or item["role"] for item in await stored_items(memory)]
    assert kinds == ["user", "function_call", "function_call_output", "message"]


async def test_handoffs_and_hosted_tools(memory: Memory) -> None:
    session = session_on(memory)
    search = ResponseFunctionWebSearch(
        id="ws_1", type="web_search_call", status="completed", action=ActionSearch(type="search", query="weather in Rome")
    )
    expert = Agent("expert", model=ScriptedModel([[reasoning("rs_2"), search, said("Sunny.", "msg_2")]]))
    front = agent_with(ScriptedModel([[call("transfer_to_expert", {}, "h1")]]), handoffs=[expert])
    result = await ask(front, "Ask the expert.", session)
    assert result.last_agent is expert
    items = await session.get_items()
    assert items == [{"role": "user", "content": "Ask the expert."}, *[item.to_input_item() for item in result.new_items]]
    assert {"reasoning", "web_search_call", "function_call", "function_call_output"} <= {str(i.get("type")) for i in items}


# -- what is read ------------------------------------------------------------------------------------------------


async def test_session_is_one(memory: Memory) -> None:
    session = session_on(memory)
    is_session: bool = isinstance(session, Session)
    assert is_session
    assert session.session_id == "chat"
    assert await session.get_items() == []
    assert await session.pop_item() is None
    await session.add_items([])
    await session.add_items([{"role": "user", "content": "Hi."}])
    await session.clear_session()
    assert await session.get_items() == []
    with pytest.raises(InvalidMessageError, match="set"):
        await session.add_items([{"role": "user", "content": {1, 2}}])
    with pytest.raises(InvalidMessageError, match="str"):
        await session.add_items(["Hi."])


async def test_limit(memory: Memory) -> None:
    session = session_on(memory)
    items: list[Any] = [
        {"role": "user", "content": "One?"},
        *({"type": "function_call", "call_id": c, "name": "f", "arguments": "{}"} for c in ("a", "b")),
        *({"type": "function_call_output", "call_id": c, "output": c} for c in ("a", "b")),
        {"role": "assistant", "content": "One."},
    ]
    await session.add_items(items)
    assert await session.get_items() == items
    assert [await session.get_items(limit) for limit in (0, 1, 2, 6, 99)] == [[], items[5:], items[5:], items, items]
    assert await session.get_items(3) == items[5:]
    assert await session.get_items(4) == [items[2], *items[4:]]  # without the output of the call beyond
    limited = session_on(memory, session_settings=SessionSettings(limit=1))
    assert await limited.get_items() == items[5:]


async def test_sections_and_limits_of_the_session() -> None:
    block = StaticMemoryBlock(name="rules", static_content="Be brief.")
    async with Memory.from_defaults("chat", memory_blocks=[block]) as memory:
        session = session_on(memory, session_settings=SessionSettings(limit=2))
        items: list[Any] = [{"role": role, "content": f"{n}"} for n in range(4) for role in ("user", "assistant")]
        await session.add_items(items)
        section, *rest = await session.get_items()
        assert section["role"] == "system" and "Be brief." in section["content"]
        assert rest == items[-1:]
        assert await session.get_items(1) == items[-1:]
        assert (await session.get_items(99))[1:] == items


@pytest.mark.parametrize("method", ["system", "user", "split"])
async def test_sections_are_not_stored_when_they_come_back(method: str) -> None:
    block = StaticMemoryBlock(name="rules", static_content="Be brief.")
    async with Memory.from_defaults("chat", memory_blocks=[block], insert_method=method) as memory:
        session = session_on(memory)
        said_by_user: Any = {"role": "user", "content": "Hi."}
        system: Any = {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "You are a poet."}]}
        await session.add_items([system, said_by_user])
        shown = await session.get_items()
        assert len(shown) == 3
        assert system in shown and said_by_user in shown
        (section,) = [item for item in shown if item not in (system, said_by_user)]
        wrapped: Any = {
            "type": "message",
            "role": section["role"],
            "content": [{"type": "input_text", "text": section["content"]}],
        }
        await session.add_items([section, wrapped, {"role": "user", "content": "Again."}])
        assert await stored_items(memory) == [system, said_by_user, {"role": "user", "content": "Again."}]

        # The SDK gives back what a callback put together.
        async def everything_again(history: list[Any], new: list[Any]) -> list[Any]:
            return [*history, *(await session.get_items())[:1], *new]

        config = RunConfig(session_input_callback=everything_again if method == "user" else session.recall_input)
        await ask(agent_with(ScriptedModel([[said("Yes.")]])), "Once more.", session, run_config=config)
        assert "Be brief." not in json.dumps(await stored_items(memory))


class Remembering(BaseMemoryBlock[list[ChatMessage]]):
    """Brings back what was said as messages."""

    name: str = "said"

    async def _aget(self, messages: Sequence[ChatMessage] | None = None, **block_kwargs: Any) -> list[ChatMessage]:
        return [ChatMessage(role="user", content="Yes."), ChatMessage(role="assistant", content="Fine.")]

    async def _aput(self, messages: Sequence[ChatMessage]) -> None:
        pass


async def test_sections_are_known_in_another_process_too() -> None:
    blocks = [StaticMemoryBlock(name="rules", static_content="Answer briefly.")]
    async with Memory.from_defaults("s", memory_blocks=blocks) as memory:
        await session_on(memory).add_items([{"role": "user", "content": "Hi"}])
        items = json.loads(json.dumps(await session_on(memory).get_items()))
        assert len(items) == 2 and "Answer briefly." in str(items[0])
        other = session_on(memory)
        await other.add_items([items[0], {"role": "user", "content": "Hi again"}])
        assert [message.content for message in await memory.get_all()] == ["Hi", "Hi again"]


async def test_compacted_history_stays_in_view(memory: Memory) -> None:
    session = session_on(memory)
    compacted = {"type": "compaction", "id": "cmp_1", "encrypted_content": "abc"}
    await session.add_items([compacted])
    assert await session.get_items() == [compacted]
    await session.add_items([{"role": "user", "content": "next"}, {"role": "assistant", "content": "hi"}])
    assert (await session.get_items())[0] == compacted and len(await session.get_items()) == 3


async def test_what_nobody_can_read_is_refused(memory: Memory) -> None:
    with pytest.raises(ConfigurationError, match="EncryptedSession"):
        await session_on(memory).add_items([{"__enc__": 1, "v": 1, "kid": "k", "payload": "x"}])
    assert await memory.get_all() == []


async def test_what_is_said_again_is_stored_again() -> None:
    """Also when memory has just brought back a message that says the same."""
    async with Memory.from_defaults("chat", memory_blocks=[Remembering()]) as memory:
        session = session_on(memory)
        for _ in range(2):
            model = ScriptedModel([[said("Fine.")]])
            await ask(agent_with(model), "Yes.", session, run_config=session.run_config())
            assert texts(model.last_call.input, "user")[0] == "Yes."
        assert [message.content for message in await memory.get_all()] == ["Yes.", "Fine."] * 2


async def test_new_input_is_the_query() -> None:
    recall = VectorMemoryBlock(name="recall", priority=1)
    async with Memory.from_defaults("chat", token_limit=700, memory_blocks=[recall]) as memory:
        session = session_on(memory)
        await session.add_items(
            [{"role": "user", "content": "My sister Olga keeps bees on the roof of the town hall in Graz."}]
        )
        for number in range(60):
            await session.add_items([{"role": "user", "content": f"Parcel {number} has left the depot."}])
            await session.add_items([{"role": "assistant", "content": "Noted."}])
        await memory.drain()
        model = ScriptedModel([[said("Olga.")]])
        await ask(agent_with(model), "Who keeps bees, and where?", session, run_config=session.run_config())
        assert "town hall in Graz" in model.last_call.input[0]["content"]
        assert sum(map(TokenCounter().message, seen(model.last_call.input[:-1]))) <= 700
        assert texts(await stored_items(memory), "user")[-1] == "Who keeps bees, and where?"
        assert len(await memory.get_all()) == 123


async def test_shortened_texts_come_from_the_blocks() -> None:
    async with Memory.from_defaults("chat", token_limit=300) as memory:
        session = session_on(memory)
        hosted = {
            "type": "mcp_call",
            "id": "mcp_1",
            "name": "read",
            "server_label": "s",
            "arguments": "{}",
            "output": "word " * 900,
        }
        message = {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "long " * 900, "annotations": []}],
        }
        await session.add_items([{"role": "user", "content": "Read it."}, hosted, message])
        shown = await session.get_items()
        assert [item.get("type") for item in shown] == [None, "mcp_call", "message"]
        assert "tokens left out" in shown[1]["output"] and "tokens left out" in shown[2]["content"][0]["text"]
        assert {**shown[1], "output": ""} == {**hosted, "output": ""}
        assert TokenCounter().text(json.dumps(shown)) <= 400
        assert (await stored_items(memory))[1:] == [hosted, message]
        assert await session.pop_item() == message
        assert await session.pop_item() == hosted


# -- exactness ---------------------------------------------------------------------------------------------------

_words = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(
    [
        "data:image/png;base64,AAAA",
        "data:text/plain;base64,data:",
        "data:",
        "a text that is long enough to be cut in it",
        "x" * 210,
    ]
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | _words, lambda inner: st.lists(inner, max_size=2), max_leaves=4
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:  # noqa: PLR0911
    """JSON values of a type of the SDK's parameters."""
    origin_of: Any = get_origin
    origin = origin_of(hint)
    arguments = get_args(hint)
    if is_typeddict(hint):
        # What is required is known only after the annotations, which are texts there, were evaluated.
        marked = get_type_hints(hint, include_extras=True)
        fields = {key: values_of(value) for key, value in get_type_hints(hint).items()}
        required = {key: fields.pop(key) for key in list(fields) if origin_of(marked[key]) is Required}
        return st.fixed_dictionaries(required, optional=fields)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, UnionType):
        return st.one_of([values_of(argument) for argument in arguments])
    if origin is dict:
        return st.dictionaries(_words, values_of(arguments[1]), max_size=2)
    if hint is str:
        return _words
    simple = {int: st.integers(), float: st.floats(allow_nan=False, allow_infinity=False), bool: st.booleans()}
    if hint in simple:
        return simple[hint]
    if hint is type(None):
        return st.none()
    if arguments:
        return st.lists(values_of(arguments[0]), max_size=2)
    return _json


TYPES = get_args(ResponseInputItemParam)
typed_items = st.sampled_from(TYPES).flatmap(values_of)
future_items = st.dictionaries(_words, _json, max_size=4).flatmap(
    lambda item: st.sampled_from([{}, {"type": "hologram_call"}, {"type": "reasoning"}, {"role": "critic"}]).map(
        lambda d: {**item, **d}
    )
)
ids = st.sampled_from(["c1", "c2", "c3"])
pairs = st.sampled_from(["function_call", "custom_tool_call", "shell_call"]).flatmap(
    lambda kind: st.builds(
        lambda c, text: [
            {"type": kind, "call_id": c, "name": "f", "arguments": text, "input": text},
            {"type": f"{kind}_output", "call_id": c, "output": text},
        ],
        ids,
        _words,
    )
)
all_items = st.lists(typed_items.map(lambda i: [i]) | future_items.map(lambda i: [i]) | pairs, max_size=6).map(
    lambda groups: [item for group in groups for item in group]
)


def test_every_type_of_item_is_generated() -> None:
    assert len(TYPES) > 30
    assert {"EasyInputMessageParam", "ResponseReasoningItemParam", "McpCall"} <= {kind.__name__ for kind in TYPES}


@given(items=all_items)
def test_items_are_kept_exactly(items: list[Item]) -> None:
    messages = from_openai_responses(items)
    restored = [decode(encode(message), id=None, created_at=None) for message in messages]
    assert to_openai_responses(restored) == items
    for message in messages:
        assert [call_id_of(i) for i in to_openai_responses([message]) if is_output(i)] == list(message.tool_results)


async def test_items_are_popped_exactly(soak: bool) -> None:
    async with MemoryEngine(token_limit=100_000) as engine:
        numbers = iter(range(10_000_000))
        loop = asyncio.get_running_loop()

        async def check(items: list[Item], other: list[Item]) -> None:
            session = session_on(engine.session(f"s{next(numbers)}"))
            await session.add_items(items)
            popped = await session.pop_item()
            assert popped == (items[-1] if items else None)
            await session.add_items(other)
            for expected in reversed([*items[:-1], *other]):
                assert await session.pop_item() == expected
            assert await session.pop_item() is None
            assert await session.get_items() == []

        @settings(max_examples=500 if soak else 25)
        @given(items=all_items, other=all_items)
        def run(items: list[Item], other: list[Item]) -> None:
            asyncio.run_coroutine_threadsafe(check(items, other), loop).result()

        await asyncio.to_thread(run)


async def test_a_pop_that_was_interrupted(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    session = session_on(memory)
    items = [{"type": "hologram_call", "id": f"{number}"} for number in range(3)]
    await session.add_items(items)
    assert len(await memory.get_all()) == 1
    with monkeypatch.context() as patch:

        async def lost(ids: Any) -> int:
            raise OSError("the connection is lost")

        patch.setattr(memory, "delete", lost)
        with pytest.raises(OSError, match="connection"):
            await session.pop_item()
    # The next one ends it: nothing is there twice.
    assert [await session.pop_item() for _ in range(3)] == [items[1], items[0], None]
    assert await memory.get_all() == []


turns = st.builds(
    lambda user, answers: [{"role": "user", "content": user}, *(item for answer in answers for item in answer)],
    st.text(st.characters(codec="ascii"), max_size=200),
    st.lists(
        st.integers(1, 3).map(
            lambda n: [
                {"type": "reasoning", "id": "rs", "summary": [{"type": "summary_text", "text": "So."}]},
                *({"type": "function_call", "call_id": f"{c}", "name": "f", "arguments": "{}"} for c in range(n)),
                *({"type": "function_call_output", "call_id": f"{c}", "output": "word " * 20} for c in range(n)),
            ]
        )
        | st.text(max_size=80).map(lambda text: [{"role": "assistant", "content": text}]),
        max_size=4,
    ),
)


async def test_what_is_read_fits_and_is_whole(soak: bool) -> None:
    """Counted item by item, each as a message of its own; whatever the limit."""
    block = StaticMemoryBlock(name="rules", static_content="Be brief.", priority=1)
    async with MemoryEngine(token_limit=400, token_flush_size=60, memory_blocks=[block]) as engine:
        numbers = iter(range(10_000_000))
        loop = asyncio.get_running_loop()

        async def check(said_: list[list[Item]], limit: int) -> None:
            session = session_on(engine.session(f"s{next(numbers)}"))
            everything: list[Item] = []
            for turn in said_:
                await session.add_items(turn)
                everything += turn
                shown = await session.get_items()
                assert shown[0]["role"] == "system"
                assert sum(map(TokenCounter().message, _each(shown))) <= 400
                assert scenario.problems_of(seen(shown), 400) == []
                assert all(item in everything or "left out" in str(item) for item in shown[1:])
                for at, item in enumerate(shown):
                    assert item.get("type") != "reasoning" or shown[at + 1].get("type") == "function_call"
                tail = await session.get_items(limit)
                assert len(tail) <= limit
                assert not any(
                    is_output(i) and call_id_of(i) not in {call_id_of(c) for c in tail if not is_output(c)} for i in tail
                )

        @settings(max_examples=300 if soak else 15)
        @given(said_=st.lists(turns, min_size=1, max_size=8), limit=st.integers(0, 12))
        def run(said_: list[list[Item]], limit: int) -> None:
            asyncio.run_coroutine_threadsafe(check(said_, limit), loop).result()

        await asyncio.to_thread(run)


def _each(items: Iterable[Item]) -> list[ChatMessage]:
    return [message for item in items for message in from_openai_responses([item])]


def test_messages_that_were_no_items() -> None:
    """What an application put itself is read by the SDK, too."""
    messages = [
        ChatMessage(role="user", content="Look."),
        ChatMessage.from_openai(
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
        ),
        ChatMessage.from_openai(
            {
                "role": "assistant",
                "content": "Wait.",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            }
        ),
        ChatMessage.from_openai({"role": "tool", "tool_call_id": "c1", "content": "Done."}),
        ChatMessage(role="system", blocks=[TextBlock(text="Facts.", origin="memory")]),
    ]
    assert to_openai_responses(messages) == [
        {"role": "user", "content": "Look."},
        {"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}]},
        {"role": "assistant", "content": "Wait."},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "Done."},
        {"role": "system", "content": "Facts."},
    ]


def test_pictures_are_counted_as_pictures() -> None:
    picture = "QUJD" * 50_000
    items: list[Item] = [
        {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": picture},
        {
            "type": "computer_call_output",
            "call_id": "c",
            "output": {"type": "computer_screenshot", "image_url": f"data:image/png;base64,{picture}"},
        },
    ]
    for item in items:
        (message,) = from_openai_responses([item])
        assert 1_024 <= TokenCounter().message(message) < 1_200
        assert to_openai_responses([message]) == [item]
        assert len(encode(message)) < 1.01 * len(picture) + 1_000  # kept once
