"""Agents of LangChain 1.x and graphs of LangGraph on a memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any, TypedDict

import pytest
from elsewhere import talk_elsewhere
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_agents import (
    AGENTS,
    CONFIG,
    TOOLS,
    PlainState,
    ScriptedModel,
    go_on,
    talk,
    with_hooks,
    with_middleware,
)
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from langgraph.types import Command, interrupt
from pydantic import BaseModel
from scenario import RESTART, TURNS, Call, Reply, Script, check_history, engine_at, problems_of, user_text

from memory_engine import Memory
from memory_engine.blocks import StaticMemoryBlock
from memory_engine.errors import ConfigurationError, InvalidMessageError, WrongEventLoopError
from memory_engine.integrations.langchain import GraphMemory, MemoryMiddleware, close, sync
from memory_engine.messages import ChatMessage

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/memory.db"


def say(*texts: str, id: str | None = None) -> dict[str, Any]:
    return {"messages": [HumanMessage(text, id=id) for text in texts]}


_numbers = count(1)


def echo(sent: Sequence[ChatMessage]) -> Reply:
    """Answers what was asked last; a question with "town" by way of a tool, once."""
    place = max(place for place, message in enumerate(sent) if message.role == "user")
    question = sent[place].content.rpartition("\n")[2]
    answered = any(message.role == "tool" for message in sent[place:])
    if "town" in question and not answered:
        return Reply(calls=(Call(f"call-{next(_numbers)}", "weather", {"town": question}),))
    return Reply(f"Answer to {question}")


async def said(memory: Memory) -> list[str]:
    """What is stored, in short."""
    return [f"{m.role}: {m.content or '+'.join(call.name for call in m.tool_calls)}" for m in await memory.get_all()]


# -- the conversation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "checkpointer"),
    [
        ("middleware", True),
        ("hooks", False),
        ("nodes", True),
        pytest.param("hooks", True, marks=pytest.mark.soak),
        pytest.param("nodes", False, marks=pytest.mark.soak),
    ],
)
async def test_thirty_turns_through_flushes_and_a_restart(kind: str, checkpointer: bool, uri: str) -> None:
    # The checkpointer outlives the restart, as one with a database does.
    settings = {"checkpointer": InMemorySaver()} if checkpointer else {}
    first = await talk(kind, uri, range(RESTART), **settings)
    second = await talk(kind, uri, range(RESTART, TURNS), **settings)
    assert first.problems == [] and second.problems == []
    assert (first.seen, second.seen) == (39, 19)
    await check_whole(uri)


async def test_another_process_goes_on(uri: str) -> None:
    first = await talk("middleware", uri, range(RESTART))
    second = await talk_elsewhere(go_on, uri, range(RESTART, TURNS))
    assert second.seen == 19 and second.problems == [] and first.problems == []
    await check_whole(uri)


async def check_whole(uri: str) -> None:
    """Everything that was said is there once, most of it flushed, and the first thing said came back at the end."""
    async with engine_at(uri) as engine:
        memory = engine.session("trip")
        await check_history(memory)
        assert (await memory.get_all())[-1].content == "It is heliotrope-seven."
        flushed = await memory.get_all(archived=True)
        assert sum(message.role == "user" for message in flushed) > 20


async def test_the_model_gets_one_system_message_and_streams(uri: str) -> None:
    script = Script()
    model = ScriptedModel(reply_to=script.reply_to)
    async with engine_at(uri) as engine:
        agent = with_middleware(model, engine)
        for turn in range(12):
            updates = [update async for update in agent.astream(say(user_text(turn)), CONFIG, stream_mode="updates")]
            assert any("model" in update for update in updates)
        await engine.session("trip").drain()
        await agent.ainvoke(say(user_text(12)), CONFIG)
    assert script.problems == []
    system = [message for message in model.prompts[-1] if isinstance(message, SystemMessage)]
    assert len(system) == 1 and model.prompts[-1][0] is system[0]
    assert str(system[0].content).startswith("You are a guide.\n\n<memory>")
    assert "heliotrope-seven" in str(system[0].content)


# -- several at once, and failures -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", AGENTS)
async def test_concurrent_runs_of_one_session(kind: str, uri: str) -> None:
    sent: list[str] = []

    def reply_to(messages: Sequence[ChatMessage]) -> Reply:
        sent.extend(problems_of(messages, 1_200))
        return echo(messages)

    async with engine_at(uri) as engine:
        agents = [AGENTS[kind](ScriptedModel(reply_to=reply_to), engine) for _ in range(2)]
        texts = ["town one", "two", "town three"]
        await asyncio.gather(*(agents[n % 2].ainvoke(say(text), CONFIG) for n, text in enumerate(texts)))
        memory = engine.session("trip")
        stored = await memory.get_all()
        assert sorted(m.content for m in stored if m.role == "user") == sorted(texts)
        assert sum(m.role == "assistant" and not m.tool_calls for m in stored) == 3
        calls = sorted(call.id for m in stored for call in m.tool_calls)
        assert calls == sorted(result for m in stored for result in m.tool_results)
        assert len({m.id for m in stored}) == len(stored)
        result = await agents[0].ainvoke(say("four"), CONFIG)
        assert result["messages"][-1].content == "Answer to four"
        assert problems_of(await memory.get(), 1_200) == []
    assert sent == []


@pytest.mark.parametrize("kind", AGENTS)
async def test_a_model_that_fails_is_resumed_from_the_checkpoint(kind: str, uri: str) -> None:
    async with engine_at(uri) as engine:
        agent = AGENTS[kind](ScriptedModel(reply_to=echo, fail_at={2}), engine, checkpointer=InMemorySaver())
        with pytest.raises(ConnectionError):
            await agent.ainvoke(say("town one"), CONFIG)
        expected = ["user: town one", "assistant: weather", "tool: Sunny in town one."]
        assert await said(engine.session("trip")) == expected
        await agent.ainvoke(None, CONFIG)
        assert await said(engine.session("trip")) == [*expected, "assistant: Answer to town one"]


@pytest.mark.parametrize("kind", AGENTS)
async def test_a_model_that_fails_is_tried_again_without_a_checkpoint(kind: str, uri: str) -> None:
    async with engine_at(uri) as engine:
        agent = AGENTS[kind](ScriptedModel(reply_to=echo, fail_at={1}), engine)
        for attempt in range(2):
            if attempt == 0:
                with pytest.raises(ConnectionError):
                    await agent.ainvoke(say("town one", id="question-1"), CONFIG)
            else:
                await agent.ainvoke(say("town one", id="question-1"), CONFIG)
        stored = ["user: town one", "assistant: weather", "tool: Sunny in town one.", "assistant: Answer to town one"]
        assert await said(engine.session("trip")) == stored


async def test_a_tool_that_fails(uri: str) -> None:
    attempts = []

    @tool
    def weather(town: str) -> str:
        """The weather in a town."""
        attempts.append(town)
        if len(attempts) == 1:
            raise RuntimeError("no forecast today")
        return f"Sunny in {town}."

    async with engine_at(uri) as engine:
        model = ScriptedModel(reply_to=echo)
        agent: Any = create_agent(model, [weather], middleware=[MemoryMiddleware(engine)], checkpointer=InMemorySaver())
        with pytest.raises(RuntimeError, match="no forecast"):
            await agent.ainvoke(say("town one"), CONFIG)
        memory = engine.session("trip")
        assert await said(memory) == ["user: town one", "assistant: weather"]
        assert problems_of(await memory.get(), 1_200) == []
        await agent.ainvoke(None, CONFIG)
        assert (await said(memory))[2:] == ["tool: Sunny in town one.", "assistant: Answer to town one"]

        # Given up instead of resumed: the next question closes the call.
        attempts.clear()
        other: Any = create_agent(model, [weather], middleware=[MemoryMiddleware(engine)])
        with pytest.raises(RuntimeError):
            await other.ainvoke(say("town two"), {"configurable": {"thread_id": "other"}})
        await other.ainvoke(say("three"), {"configurable": {"thread_id": "other"}})
        memory = engine.session("other")
        assert await said(memory) == ["user: town two", "assistant: weather", "user: three", "assistant: Answer to three"]
        assert problems_of(await memory.get(), 1_200) == []


async def test_calls_with_broken_arguments_are_answered_and_stored(uri: str) -> None:
    def reply_to(sent: Sequence[ChatMessage]) -> Any:
        assert problems_of(sent, 1_200) == []
        answers = [str(message.blocks) for message in sent if message.role == "tool"]
        if answers:
            return Reply(f"It says: {answers[0]}")
        return AIMessage("", invalid_tool_calls=[{"id": "c1", "name": "weather", "args": '{"to', "error": "cut off"}])

    async with engine_at(uri) as engine:
        agent = with_middleware(ScriptedModel(reply_to=reply_to), engine, checkpointer=InMemorySaver())
        await agent.ainvoke(say("How is it?"), CONFIG)
        result = await agent.ainvoke(say("again"), CONFIG)
        assert "could not be executed" in result["messages"][-1].content
        stored = await engine.session("trip").get_all()
        assert [(call.id, call.arguments) for message in stored for call in message.tool_calls] == [("c1", '{"to')]
        assert sorted(message.role for message in stored) == ["assistant", "assistant", "tool", "user", "user"]
        assert problems_of(await engine.session("trip").get(), 1_200) == []


# -- the state: interrupts, edits, removals ----------------------------------------------------------------------


async def test_an_interrupt_and_a_person_who_corrects_the_call(uri: str) -> None:
    async with engine_at(uri) as engine:
        asks = HumanInTheLoopMiddleware(interrupt_on={"weather": True})
        agent = with_middleware(ScriptedModel(reply_to=echo), engine, middleware=[asks], checkpointer=InMemorySaver())
        result = await agent.ainvoke(say("town one"), CONFIG)
        assert result["__interrupt__"]
        edited = {"type": "edit", "edited_action": {"name": "weather", "args": {"town": "Graz"}}}
        await agent.ainvoke(Command(resume={"decisions": [edited]}), CONFIG)
        stored = await engine.session("trip").get_all()
        assert [message.role for message in stored] == ["user", "assistant", "tool", "assistant"]
        assert stored[2].content.endswith("Sunny in Graz.")  # after a note that a person replaced the call


async def test_what_is_edited_in_the_state_is_replaced(uri: str) -> None:
    saver = InMemorySaver()
    for attempt in range(2):  # the second time with a middleware that has seen nothing
        async with engine_at(uri) as engine:
            model = ScriptedModel(reply_to=echo)
            agent = with_middleware(model, engine, checkpointer=saver)
            if attempt == 0:
                await agent.ainvoke(say("I like tea.", id="u1"), CONFIG)
            text = ("I like coffee.", "I like cocoa.")[attempt]
            await agent.aupdate_state(CONFIG, {"messages": [HumanMessage(text, id="u1")]})
            await agent.ainvoke(say("And you?"), CONFIG)
            stored = await engine.session("trip").get_all()
            assert stored[0].content == text and stored[0].id == "u1"
            assert [message.role for message in stored] == ["user", "assistant"] * (2 + attempt)
            assert text in [message.content for message in model.prompts[-1]]


async def test_an_edit_of_what_has_left_the_fifo_changes_nothing(uri: str) -> None:
    saver = InMemorySaver()
    async with engine_at(uri) as engine:
        agent = with_middleware(ScriptedModel(reply_to=echo), engine, checkpointer=saver)
        await agent.ainvoke(say("I like tea.", id="u1"), CONFIG)
        memory = engine.session("trip")
        await memory.flush(final=True)
        await agent.aupdate_state(CONFIG, {"messages": [HumanMessage("I like coffee.", id="u1")]})
        await agent.ainvoke(say("And you?"), CONFIG)
        texts = [message.content for message in await memory.get_all() if message.role == "user"]
        assert texts == ["I like tea.", "And you?"]


async def test_what_is_removed_from_the_state_stays_and_what_was_erased_does_not_come_back(uri: str) -> None:
    saver = InMemorySaver()
    async with engine_at(uri) as engine:
        agent = with_middleware(ScriptedModel(reply_to=echo), engine, checkpointer=saver)
        await agent.ainvoke(say("one", id="u1"), CONFIG)
        await agent.ainvoke(say("My number is 1234.", id="u2"), CONFIG)
        await agent.ainvoke(say("three", id="u3"), CONFIG)
        await agent.aupdate_state(CONFIG, {"messages": [RemoveMessage(id="u1")]})
        await engine.session("trip").delete(["u2"])
    async with engine_at(uri) as engine:
        model = ScriptedModel(reply_to=echo)
        agent = with_middleware(model, engine, checkpointer=saver)
        await agent.ainvoke(say("four"), CONFIG)
        users = [message.content for message in await engine.session("trip").get_all() if message.role == "user"]
        assert users == ["one", "three", "four"]
        assert not any("1234" in str(message.content) and message.type == "human" for message in model.prompts[-1])


async def test_a_thread_that_is_older_than_its_memory_is_taken_over(uri: str) -> None:
    saver = InMemorySaver()
    plain: Any = create_agent(ScriptedModel(reply_to=echo), TOOLS, checkpointer=saver)
    await plain.ainvoke(say("town one"), CONFIG)
    async with engine_at(uri) as engine:
        agent = with_middleware(ScriptedModel(reply_to=echo), engine, checkpointer=saver)
        await agent.ainvoke(say("two"), CONFIG)
        assert (await said(engine.session("trip")))[:3] == ["user: town one", "assistant: weather", "tool: Sunny in town one."]
        assert len(await engine.session("trip").get_all()) == 6


async def test_two_processes_take_turns_on_a_thread(uri: str) -> None:
    saver = InMemorySaver()
    async with engine_at(uri) as one, engine_at(uri) as two:
        agents = [with_middleware(ScriptedModel(reply_to=echo), engine, checkpointer=saver) for engine in (one, two)]
        for turn in range(6):
            await agents[turn % 2].ainvoke(say(f"town {turn}"), CONFIG)
        roles = [message.role for message in await one.session("trip").get_all()]
        assert roles == ["user", "assistant", "tool", "assistant"] * 6


@pytest.mark.parametrize("insert_method", ["system", "user"])
async def test_a_state_that_holds_what_memory_showed(insert_method: str, uri: str) -> None:
    """Shortened copies and inserted sections get into such a state; memory keeps what was said, and that alone."""

    @tool
    def weather(town: str) -> str:
        """The weather in a town."""
        return f"Sunny in {town}. " * 400

    notes = StaticMemoryBlock(name="notes", static_content="Ada likes tea.")
    async with engine_at(uri, insert_method=insert_method, memory_blocks=[notes], token_limit=2_000) as engine:
        remember = GraphMemory(engine, output_key="messages")
        saver = InMemorySaver()

        def graph(model: ScriptedModel) -> Any:
            async def call_model(state: PlainState) -> dict[str, Any]:
                return {"messages": [await model.ainvoke(state["messages"])]}

            builder = StateGraph(PlainState)
            for name, node in (("memory", remember.before_model), ("model", call_model), ("tools", ToolNode([weather]))):
                builder.add_node(name, node)
            builder.add_edge(START, "memory")
            builder.add_edge("memory", "model")
            builder.add_conditional_edges("model", tools_condition, ["tools", END])
            builder.add_edge("tools", "memory")
            return builder.compile(checkpointer=saver)

        model = ScriptedModel(reply_to=echo)
        states = [(await graph(model).ainvoke(say(text, id=text), CONFIG))["messages"] for text in ("town one", "two", "three")]
        assert "tokens left out" in str(states[0]) and all("Ada likes tea." in str(state) for state in states)
        memory = engine.session("trip")
        stored = await memory.get_all()
        assert [message.role for message in stored] == ["user", "assistant", "tool", *["assistant", "user"] * 2]
        assert stored[2].content == "Sunny in town one. " * 400
        assert not any("Ada likes tea." in message.content for message in stored)
        assert [message.content for message in stored if message.role == "user"] == ["town one", "two", "three"]
        # What is erased does not come back from the state, also not in what memory was inserted into.
        await memory.delete([message.id or "" for message in stored[-4:-2]])
    async with engine_at(uri, insert_method=insert_method, memory_blocks=[notes], token_limit=2_000) as engine:
        remember = GraphMemory(engine, output_key="messages")
        await graph(model).ainvoke(say("four"), CONFIG)
        users = [message.content for message in await engine.session("trip").get_all() if message.role == "user"]
        assert users == ["town one", "three", "four"]


async def test_what_memory_handed_out_is_never_new(uri: str) -> None:
    notes = StaticMemoryBlock(name="notes", static_content="Ada likes tea.")
    for insert_method in ("system", "user"):
        async with engine_at(uri, memory_blocks=[notes], insert_method=insert_method) as engine:
            memory = engine.session(insert_method)
            await memory.put_messages([{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}])
            config: RunnableConfig = {"configurable": {"thread_id": insert_method}}
            view = await GraphMemory(engine).messages_for([], config)
            assert "Ada likes tea." in str(view[0].content)
            assert await GraphMemory(engine).messages_for(view, config) == view
            assert [message.content for message in await memory.get_all()] == ["one", "two"]
            if insert_method == "user":  # what memory was inserted into is known as a copy even when it was erased
                await memory.reset()
                await GraphMemory(engine).messages_for(view[:1], config)
                assert await memory.get_all() == []


async def test_going_back_to_an_older_checkpoint(uri: str) -> None:
    async with engine_at(uri) as engine:
        agent = with_middleware(ScriptedModel(reply_to=echo), engine, checkpointer=InMemorySaver())
        await agent.ainvoke(say("one"), CONFIG)
        fork = (await agent.aget_state(CONFIG)).config
        await agent.ainvoke(say("two", id="u2"), CONFIG)
        memory = engine.session("trip")
        await memory.rewind("u2")
        result = await agent.ainvoke(say("three"), fork)
        assert [message.content for message in await memory.get_all()] == [m.content for m in result["messages"]]
        assert (await said(memory))[2:] == ["user: three", "assistant: Answer to three"]


async def test_a_tool_that_asks_a_person(uri: str) -> None:
    @tool
    def weather(town: str) -> str:
        """The weather in a town."""
        return f"{interrupt('How is it?')} in {town}."

    async with engine_at(uri) as engine:
        middleware = [MemoryMiddleware(engine)]
        agent: Any = create_agent(ScriptedModel(reply_to=echo), [weather], middleware=middleware, checkpointer=InMemorySaver())
        assert (await agent.ainvoke(say("town one"), CONFIG))["__interrupt__"]
        await agent.ainvoke(Command(resume="Rainy"), CONFIG)
        assert await said(engine.session("trip")) == [
            "user: town one",
            "assistant: weather",
            "tool: Rainy in town one.",
            "assistant: Answer to town one",
        ]


async def test_a_structured_answer_is_stored(uri: str) -> None:
    class Forecast(BaseModel):
        """A forecast."""

        sunny: bool

    def reply_to(sent: Sequence[ChatMessage]) -> Reply:
        assert problems_of(sent, 1_200) == []
        return Reply(calls=(Call(f"call-{len(sent)}", "Forecast", {"sunny": True}),))

    async with engine_at(uri) as engine:
        agent: Any = create_agent(
            ScriptedModel(reply_to=reply_to), middleware=[MemoryMiddleware(engine)], response_format=ToolStrategy(Forecast)
        )
        for turn in range(2):
            result = await agent.ainvoke(say(f"{turn}?"), CONFIG)
            assert result["structured_response"] == Forecast(sunny=True)
        roles = [message.role for message in await engine.session("trip").get_all()]
        assert roles == ["user", "assistant", "tool"] * 2


async def test_a_state_without_ids_is_refused(uri: str) -> None:
    class Loose(TypedDict):
        messages: list[BaseMessage]

    async with engine_at(uri) as engine:
        remember = GraphMemory(engine, output_key="messages")
        builder = StateGraph(Loose)
        builder.add_node("memory", remember.before_model)
        builder.add_edge(START, "memory")
        builder.add_edge("memory", END)
        with pytest.raises(InvalidMessageError, match="add_messages"):
            await builder.compile().ainvoke(say("hi"), CONFIG)  # type: ignore[call-overload]


# -- whose session it is -----------------------------------------------------------------------------------------


async def test_threads_and_users_are_apart(uri: str) -> None:
    async with engine_at(uri) as engine:
        agent = with_middleware(ScriptedModel(reply_to=echo), engine)
        runs = [
            agent.ainvoke(say(f"I am {name}, {turn}"), {"configurable": {"thread_id": f"chat of {name}", "user_id": name}})
            for turn in range(5)
            for name in ("ada", "bob")
        ]
        await asyncio.gather(*runs)
        for name in ("ada", "bob"):
            memory = engine.session(f"chat of {name}", user_id=name)
            stored = await memory.get_all()
            assert len(stored) == 10 and all(name in message.content for message in stored)
        with pytest.raises(ConfigurationError, match="thread_id"):
            await agent.ainvoke(say("hi"))


async def test_sessions_by_a_function_and_one_memory(uri: str) -> None:
    async with engine_at(uri) as engine:
        named = MemoryMiddleware(
            engine, session_id=lambda config: f"room {config['configurable']['room']}", user_id="ada", tenant="acme"
        )
        agent: Any = create_agent(ScriptedModel(reply_to=echo), middleware=[named])
        await agent.ainvoke(say("hi"), {"configurable": {"room": 5}})
        assert await said(engine.session("room 5", user_id="ada", tenant="acme")) == ["user: hi", "assistant: Answer to hi"]

        memory = engine.session("mine")
        agent = create_agent(ScriptedModel(reply_to=echo), middleware=[MemoryMiddleware(memory)])
        await agent.ainvoke(say("hi"))
        assert len(await memory.get_all()) == 2
        with pytest.raises(ConfigurationError, match="one session"):
            MemoryMiddleware(memory, session_id="other")
        with pytest.raises(ConfigurationError, match="MemoryEngine"):
            GraphMemory("sqlite://")


async def test_messages_for_a_node_of_ones_own(uri: str) -> None:
    async with engine_at(uri) as engine:
        remember = GraphMemory(engine)
        state = [HumanMessage("one", id="1"), AIMessage("two", id="2"), HumanMessage("three", id="3")]
        for _ in range(2):
            shown = await remember.messages_for(state, CONFIG)
            assert shown == state and all(theirs is not ours for theirs, ours in zip(shown, state, strict=True))
        assert len(await engine.session("trip").get_all()) == 3


# -- from synchronous code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [with_middleware, with_hooks])
def test_invoke_without_an_event_loop(build: Any, uri: str) -> None:
    engine = engine_at(uri)
    try:
        agent = build(ScriptedModel(reply_to=echo), engine, checkpointer=InMemorySaver())
        agent.invoke(say("town one"), CONFIG)
        result = agent.invoke(say("two"), CONFIG)
        assert result["messages"][-1].content == "Answer to two"
        stored = sync.run_sync(engine, lambda: said(engine.session("trip")))
        assert stored[1:4] == ["assistant: weather", "tool: Sunny in town one.", "assistant: Answer to town one"]
        assert len(stored) == 6
    finally:
        close(engine)


async def test_invoke_inside_the_memorys_event_loop_is_a_clear_error(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "PATIENCE", 0.3)
    async with engine_at(uri) as engine:
        agent = with_middleware(ScriptedModel(reply_to=echo), engine)
        with pytest.raises(WrongEventLoopError, match="ainvoke"):
            agent.invoke(say("hi"), CONFIG)
        # In another thread it works: the memory answers in its own loop.
        result = await asyncio.to_thread(agent.invoke, say("hi"), CONFIG)
        assert result["messages"][-1].content == "Answer to hi"


async def test_nodes_in_another_thread(uri: str) -> None:
    async with engine_at(uri) as engine:
        remember = GraphMemory(engine)
        view = await asyncio.to_thread(remember.before_model.invoke, say("hi", id="1"), CONFIG)
        assert [message.content for message in view["llm_input_messages"]] == ["hi"]
        state = {"messages": [HumanMessage("hi", id="1"), AIMessage("ho", id="2"), ToolMessage("?", tool_call_id="x", id="3")]}
        await asyncio.to_thread(remember.after_model.invoke, state, CONFIG)
        assert len(await engine.session("trip").get_all()) == 3


def test_the_front_door_is_complete() -> None:
    from memory_engine.integrations import langchain

    assert all(getattr(langchain, name) for name in langchain.__all__)
    with pytest.raises(AttributeError):
        _ = langchain.nothing
