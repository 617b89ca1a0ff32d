"""Several runs of one session at once, agents inside of agents, and what an erased session is given by a state."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import langchain_agents
import pytest
from langchain.agents import create_agent
from langchain_agents import AGENTS, CONFIG, ScriptedModel, SplitState
from langchain_core.language_models.fake_chat_models import FakeMessagesListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from scenario import FILLER, Call, Reply, engine_at, problems_of

from memory_engine import MemoryEngine
from memory_engine.integrations.langchain import GraphMemory, MemoryChatMessageHistory, MemoryMiddleware, from_langchain
from memory_engine.messages import ChatMessage

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/memory.db"


def say(text: str, id: str | None = None) -> dict[str, Any]:
    return {"messages": [HumanMessage(text, id=id)]}


# -- several runs at once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "token_limit"),
    [
        ("middleware", 500),
        ("hooks", 500),
        ("nodes", 500),
        ("middleware", 3_000),
        pytest.param("hooks", 3_000, marks=pytest.mark.soak),
        pytest.param("nodes", 3_000, marks=pytest.mark.soak),
    ],
)
async def test_each_of_several_runs_reads_its_own_request_last(
    kind: str, token_limit: int, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four runs go through three tools side by side, while others begin and end in between."""
    asked: ContextVar[str] = ContextVar("asked")
    runs, steps = 4, 3
    barrier = asyncio.Barrier(runs)
    problems: list[str] = []

    def reply_to(sent: Sequence[ChatMessage]) -> Reply:
        question = asked.get()
        problems.extend(problems_of(sent, token_limit))
        start = max(at for at, message in enumerate(sent) if message.role == "user")
        if sent[start].content != question:
            problems.append(f"{question} is shown {sent[start].content} last")
        said = [call.id for message in sent[start:] for call in message.tool_calls]
        heard = [result for message in sent[start:] for result in message.tool_results]
        made = taken[question]
        if said != heard or said[-1:] != made[-1:] or not set(said) <= set(made):
            problems.append(f"{question} is shown {said} and {heard} of {made}")
        if any(message.content for message in sent[start + 1 :] if message.role == "assistant"):
            problems.append(f"{question} is shown an answer of another")
        if question.startswith("Other") or len(made) == steps:
            return Reply(f"Answer to {question}")
        made.append(f"{question[:5]}-{len(made)}")
        return Reply(calls=(Call(made[-1], "wait", {"for_what": question}),))

    @tool
    async def wait(for_what: str) -> str:
        """Wait for the other runs."""
        if await barrier.wait() == 0:  # one of them
            await ask(f"Other {for_what} {len(taken[for_what])} {FILLER}")
        await barrier.wait()
        return f"Waited for {for_what}."

    async def ask(question: str) -> str:
        asked.set(question)
        taken.setdefault(question, [])
        return (await agent.ainvoke(say(question), CONFIG))["messages"][-1].content  # type: ignore[no-any-return]

    taken: dict[str, list[str]] = {}
    monkeypatch.setattr(langchain_agents, "TOOLS", [wait])
    async with engine_at(uri, token_limit=token_limit, reserved_tokens=100, token_flush_size=50) as engine:
        agent = AGENTS[kind](ScriptedModel(reply_to=reply_to), engine)
        questions = [f"Run {number}?" for number in range(runs)]
        answers = await asyncio.gather(*[asyncio.create_task(ask(question)) for question in questions])
        assert problems == []
        assert answers == [f"Answer to {question}" for question in questions]
        stored = await engine.session("trip").get_all()
        assert sorted(call.id for message in stored for call in message.tool_calls) == sorted(
            call for calls in taken.values() for call in calls
        )
        assert len({message.id for message in stored}) == len(stored) == runs * (2 * steps + 2) + 2 * steps


# -- agents inside of agents -------------------------------------------------------------------------------------


def agent_of(engine: MemoryEngine, reply_to: Any, tools: Sequence[Any] = (), **settings: Any) -> Any:
    middleware = [MemoryMiddleware(engine, **settings.pop("memory", {}))]
    return create_agent(ScriptedModel(reply_to=reply_to), list(tools), middleware=middleware, **settings)


def asks(helper: str, sent: Sequence[ChatMessage]) -> Reply:
    """Hands every question to a helper, and its answer on."""
    start = max(at for at, message in enumerate(sent) if message.role == "user")
    if sent[-1].role == "tool":
        return Reply(f"They say: {sent[-1].content}")
    return Reply(calls=(Call(f"call-{len(sent)}", helper, {"question": sent[start].content}),))


def counts(sent: Sequence[ChatMessage]) -> Reply:
    """Says how often it was asked, as far as it is shown."""
    return Reply(f"You asked me {sum(message.role == 'user' for message in sent)} times.")


async def texts(engine: MemoryEngine, session_id: str, role: str) -> list[str]:
    return [message.content for message in await engine.session(session_id).get_all() if message.role == role]


@pytest.mark.parametrize("checkpointer", [False, True])
async def test_an_agent_that_a_tool_calls_has_a_session_of_its_own(checkpointer: bool, uri: str) -> None:
    saver = InMemorySaver() if checkpointer else None
    for start in (0, 2):  # the second time in what might be another process
        async with engine_at(uri) as engine:
            helper = agent_of(engine, counts, name="helper")

            @tool
            async def ask_helper(question: str) -> str:
                """Ask the helper."""
                result = await helper.ainvoke(say(f"Dear helper: {question}"))  # noqa: B023
                return str(result["messages"][-1].content)

            boss = agent_of(engine, lambda sent: asks("ask_helper", sent), [ask_helper], name="boss", checkpointer=saver)
            for turn in range(start, start + 2):
                config: RunnableConfig = {"configurable": {"thread_id": "trip"}, "recursion_limit": 20}
                result = await boss.ainvoke(say(f"{turn}?"), config)
                assert result["messages"][-1].content == f"They say: You asked me {turn + 1} times."
    async with engine_at(uri) as engine:
        memory = engine.session("trip")
        assert [message.role for message in await memory.get_all()] == ["user", "assistant", "tool", "assistant"] * 4
        assert await texts(engine, "trip", "user") == ["0?", "1?", "2?", "3?"]
        assert problems_of(await memory.get(), 1_200) == []
        assert await texts(engine, "trip|tools|helper", "user") == [f"Dear helper: {turn}?" for turn in range(4)]
        assert len(await engine.session("trip|tools|helper").get_all()) == 8


async def test_a_session_that_is_given_to_an_inner_agent_is_its_session(uri: str) -> None:
    async with engine_at(uri) as engine:
        by_thread = agent_of(engine, counts, name="one")
        by_name = agent_of(engine, counts, memory={"session_id": "desk"})
        config: RunnableConfig = {"configurable": {"thread_id": "room"}}

        @tool
        async def ask_all(question: str) -> str:
            """Ask them all."""
            for given in (None, config):
                await by_thread.ainvoke(say(question), given)
            return str((await by_name.ainvoke(say(question)))["messages"][-1].content)

        boss = agent_of(engine, lambda sent: asks("ask_all", sent), [ask_all])
        await boss.ainvoke(say("How?"), CONFIG)
        names = [session.session_id for session in await engine.list_sessions()]
        assert names == ["desk", "room", "trip", "trip|tools|one"]
        assert [len(await engine.session(name).get_all()) for name in names] == [2, 2, 4, 2]


async def test_a_thread_with_a_long_id_has_room_for_an_inner_agent(uri: str) -> None:
    async with engine_at(uri) as engine:
        helper = agent_of(engine, counts, name="helper")

        @tool
        async def ask_helper(question: str) -> str:
            """Ask the helper."""
            return str((await helper.ainvoke(say(question)))["messages"][-1].content)

        boss = agent_of(engine, lambda sent: asks("ask_helper", sent), [ask_helper])
        for turn in range(2):
            result = await boss.ainvoke(say("How?"), {"configurable": {"thread_id": "x" * 512}})
            assert result["messages"][-1].content == f"They say: You asked me {turn + 1} times."


@pytest.mark.parametrize("checkpointer", [False, True])
@pytest.mark.parametrize("called", [False, True])
async def test_an_agent_that_is_a_node_has_the_session_of_the_thread(called: bool, checkpointer: bool, uri: str) -> None:
    """Two agents of one graph go on with one conversation; a graph above knows nothing of memory."""
    saver = InMemorySaver() if checkpointer else None
    async with engine_at(uri) as engine:
        first, second = (agent_of(engine, counts, name=name) for name in ("first", "second"))

        async def call_first(state: MessagesState) -> Any:
            return await first.ainvoke({"messages": state["messages"]})

        builder = StateGraph(MessagesState)
        builder.add_node("greeter", call_first if called else first)
        builder.add_node("closer", second)
        builder.add_edge(START, "greeter")
        builder.add_edge("greeter", "closer")
        builder.add_edge("closer", END)
        graph: Any = builder.compile(checkpointer=saver)
        for turn in range(2):
            await graph.ainvoke(say(f"{turn}?"), CONFIG)
        assert [session.session_id for session in await engine.list_sessions()] == ["trip"]
        stored = await engine.session("trip").get_all()
        answers = [f"You asked me {turn} times." for turn in (1, 1, 2, 2)]
        assert [message.content for message in stored] == ["0?", *answers[:2], "1?", *answers[2:]]


async def test_a_graph_that_a_tool_calls_has_one_session_for_its_nodes(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    async with engine_at(uri) as engine:
        remember = GraphMemory(engine)

        async def answer(state: SplitState) -> dict[str, Any]:
            shown = from_langchain(state["llm_input_messages"])
            return {"messages": [AIMessage(counts(shown).text)]}

        builder = StateGraph(SplitState)
        for name, node in (("memory", remember.before_model), ("answer", answer), ("record", remember.after_model)):
            builder.add_node(name, node)
        builder.add_edge(START, "memory")
        builder.add_edge("memory", "answer")
        builder.add_edge("answer", "record")
        builder.add_edge("record", END)
        inner = builder.compile()

        @tool
        async def ask_graph(question: str) -> str:
            """Ask the graph."""
            return str((await inner.ainvoke(say(question)))["messages"][-1].content)

        boss = agent_of(engine, lambda sent: asks("ask_graph", sent), [ask_graph])
        for turn in range(2):
            result = await boss.ainvoke(say(f"{turn}?"), CONFIG)
            assert result["messages"][-1].content == f"They say: You asked me {turn + 1} times."
        assert "all agents without a name" in caplog.text
        assert len(await engine.session("trip|tools").get_all()) == 4
        assert len(await engine.session("trip").get_all()) == 8


# -- what was erased ---------------------------------------------------------------------------------------------


def answers(sent: Sequence[ChatMessage]) -> Reply:
    """Answers what is asked; a question with "town" by way of a tool, once."""
    place = max(place for place, message in enumerate(sent) if message.role == "user")
    question = sent[place].content
    if "town" in question and sent[-1].role == "user":
        return Reply(calls=(Call(f"call-{question}", "weather", {"town": question}),))
    return Reply(f"Answer to {question}")


async def said(engine: MemoryEngine) -> list[str]:
    return [message.content for message in await engine.session("trip").get_all()]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("kind", AGENTS)
async def test_what_was_erased_does_not_come_back_from_the_state(kind: str, restart: bool, uri: str) -> None:
    """The checkpoint still has it, whether the process that erased it goes on or another one does."""
    saver = InMemorySaver()
    async with engine_at(uri) as engine, engine_at(uri) as other:
        model = ScriptedModel(reply_to=answers)
        agent = AGENTS[kind](model, engine, checkpointer=saver)
        for text in ("My number is 1234, town.", "Is 1234 even?"):
            await agent.ainvoke(say(text), CONFIG)
        await engine.session("trip").reset()
        if restart:
            agent = AGENTS[kind](model, other, checkpointer=saver)
        await agent.ainvoke(say("one"), CONFIG)
        assert await said(engine) == ["one", "Answer to one"]
        assert "1234" not in str(model.prompts[-1])
        # The newest turn alone, with the question that came before it staying.
        await agent.ainvoke(say("two town", id="u2"), CONFIG)
        await engine.session("trip").rewind("u2")
        if restart:
            agent = AGENTS[kind](model, other, checkpointer=saver)
        for text in ("three town", "four"):
            await agent.ainvoke(say(text), CONFIG)
        later = ["three town", "", "Sunny in three town.", "Answer to three town", "four", "Answer to four"]
        assert await said(engine) == ["one", "Answer to one", *later]
        assert "two town" not in str(model.prompts[-1])


async def test_an_answer_that_was_erased_does_not_come_back(uri: str) -> None:
    saver = InMemorySaver()
    async with engine_at(uri) as engine:
        agent = AGENTS["middleware"](ScriptedModel(reply_to=answers), engine, checkpointer=saver)
        await agent.ainvoke(say("one"), CONFIG)
        await engine.session("trip").pop()
        agent = AGENTS["middleware"](ScriptedModel(reply_to=answers), engine, checkpointer=saver)
        await agent.ainvoke(say("two"), CONFIG)
        assert await said(engine) == ["one", "two", "Answer to two"]


async def test_a_session_in_which_something_was_erased_keeps_what_is_said_later(uri: str) -> None:
    """Also where nobody but the next `before_model` stores an answer, and a request in several messages."""
    saver = InMemorySaver()
    async with engine_at(uri) as engine:
        remember = GraphMemory(engine)

        async def answer(state: SplitState) -> dict[str, Any]:
            return {"messages": [AIMessage(answers(from_langchain(state["llm_input_messages"])).text)]}

        builder = StateGraph(SplitState)
        builder.add_node("memory", remember.before_model)
        builder.add_node("answer", answer)
        builder.add_edge(START, "memory")
        builder.add_edge("memory", "answer")
        builder.add_edge("answer", END)
        graph: Any = builder.compile(checkpointer=saver)
        await graph.ainvoke(say("zero"), CONFIG)
        await engine.session("trip").reset()
        for text in ("one", "two", "three"):
            await graph.ainvoke({"messages": [HumanMessage(f"About {text}:"), HumanMessage(text)]}, CONFIG)
        about = [[f"About {text}:", text, f"Answer to {text}"] for text in ("one", "two", "three")]
        assert await said(engine) == [*about[0], *about[1], *about[2][:2]]


async def test_a_request_that_was_erased_may_be_asked_again(uri: str) -> None:
    async with engine_at(uri) as engine:
        agent = AGENTS["middleware"](ScriptedModel(reply_to=answers), engine)
        for _ in range(3):
            await agent.ainvoke(say("one", id="u1"), CONFIG)
            assert await said(engine) == ["one", "Answer to one"]
            await engine.session("trip").reset()


# -- ids that are given again ------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointer", [False, True])
@pytest.mark.parametrize("kind", AGENTS)
async def test_a_model_that_gives_one_id_again(
    kind: str, checkpointer: bool, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each turn has its answer, unless LangGraph itself has put it in the place of the older one."""
    same = AIMessage("Yes.", id="always")
    saver = InMemorySaver() if checkpointer else None
    async with engine_at(uri) as engine:
        agent = AGENTS[kind](ScriptedModel(reply_to=lambda sent: same), engine, checkpointer=saver)
        results = [await agent.ainvoke(say(text), CONFIG) for text in ("one", "two", "three")]
        lost = kind == "nodes" or (kind == "hooks" and checkpointer)
        assert await said(engine) == (
            ["one", "Yes.", "two", "three"] if lost else ["one", "Yes.", "two", "Yes.", "three", "Yes."]
        )
        assert same.id == "always" and ("id" in caplog.text) == (lost or kind == "middleware")
        # Giving the run's messages again is no new turn.
        before = len(await said(engine))
        if not checkpointer and kind == "middleware":
            remember = GraphMemory(engine)
            for _ in range(2):
                await remember.messages_for(results[-1]["messages"], CONFIG)
            assert len(await said(engine)) == before


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")
@pytest.mark.parametrize("given", ["text", "list", "stream"])
async def test_a_history_of_a_model_that_gives_one_id_again(given: str, uri: str, caplog: pytest.LogCaptureFixture) -> None:
    same = AIMessage("Yes.")  # the first call gives it an id, for good
    async with engine_at(uri, token_limit=300, reserved_tokens=50) as engine:
        model = FakeMessagesListChatModel(responses=[same])
        chain = RunnableWithMessageHistory(model, lambda session_id: MemoryChatMessageHistory(engine.session(session_id)))
        texts = [f"{turn} {FILLER}" for turn in range(6)]
        for text in texts:
            asked = [HumanMessage(text)] if given == "list" else text
            config: RunnableConfig = {"configurable": {"session_id": "trip"}}
            if given == "stream":
                assert [chunk.content async for chunk in chain.astream(asked, config)]
            else:
                await chain.ainvoke(asked, config)
        assert await said(engine) == [content for text in texts for content in (text, "Yes.")]
        assert await engine.session("trip").get_all(archived=True)
        # Both with ids: a repetition, or the same again; it is said that nothing is stored.
        history = MemoryChatMessageHistory(engine.session("trip"))
        turn = [HumanMessage("And?", id="q"), AIMessage("So.", id="a")]
        for _ in range(2):
            await history.aadd_messages(turn)
        assert "taken to be repeated" not in caplog.text
        await history.aadd_messages([HumanMessage("What?", id="r"), AIMessage("So.", id="a")])
        assert "the answer 'a' was stored before" in caplog.text
        assert (await said(engine))[-3:] == ["And?", "So.", "What?"]
