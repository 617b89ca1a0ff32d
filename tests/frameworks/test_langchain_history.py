"""Histories and the memory classes of old: `RunnableWithMessageHistory`, and the names of `ConversationBufferMemory`."""

from __future__ import annotations

import asyncio
import inspect
import json
import warnings
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_agents import ScriptedModel
from langchain_classic.memory import ConversationBufferMemory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.history import RunnableWithMessageHistory
from scenario import CODE_WORD, RESTART, TURNS, Reply, Script, engine_at, user_text

from memory_engine import Memory, MemoryEngine
from memory_engine.blocks import StaticMemoryBlock
from memory_engine.errors import MessageConflictError, WrongEventLoopError
from memory_engine.integrations.langchain import ConversationMemory, MemoryChatMessageHistory, close
from memory_engine.integrations.langchain.sync import run_sync
from memory_engine.messages import ChatMessage

pytestmark = [
    pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated"),
    pytest.mark.filterwarnings("ignore:Please use the"),
    pytest.mark.filterwarnings("ignore:.*was deprecated in LangChain"),
]

GOLDEN = json.loads((Path(__file__).parents[1] / "data/langchain-golden.json").read_text())
BUFFER = [("Hi there!", "Hello! How can I help you?"), ("What's the weather like?", "It is sunny today.")]
CONFIG: RunnableConfig = {"configurable": {"session_id": "trip"}}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/memory.db"


@pytest.fixture
async def memory() -> AsyncIterator[Memory]:
    async with Memory.from_defaults("one") as memory:
        yield memory


def chain_of(model: ScriptedModel, engine: MemoryEngine, *, with_key: bool, keep: bool = False) -> Any:
    """A chain with a history; without a key for it the history and the question are one list."""
    kept: dict[str, MemoryChatMessageHistory] = {}

    def history(session_id: str) -> MemoryChatMessageHistory:
        made = MemoryChatMessageHistory(engine.session(session_id))
        return kept.setdefault(session_id, made) if keep else made

    if not with_key:
        return RunnableWithMessageHistory(model, history)
    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{question}")])
    return RunnableWithMessageHistory(prompt | model, history, input_messages_key="question", history_messages_key="history")


def asked(text: str, *, with_key: bool) -> Any:
    return {"question": text} if with_key else [HumanMessage(text)]


def echo(sent: Sequence[ChatMessage]) -> Reply:
    return Reply(f"Answer to {sent[-1].content}")


# -- RunnableWithMessageHistory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_key", [False, pytest.param(True, marks=pytest.mark.soak)])
async def test_thirty_turns_with_a_history(with_key: bool, uri: str) -> None:
    script = Script()

    def answer(sent: Sequence[ChatMessage]) -> Reply:
        reply = script.reply_to(sent)
        return reply if not reply.calls else Reply("An answer without tools.")

    prompts = []
    for turns in (range(RESTART), range(RESTART, TURNS)):
        async with engine_at(uri) as engine:
            model = ScriptedModel(reply_to=answer)
            chain = chain_of(model, engine, with_key=with_key)
            for turn in turns:
                await chain.ainvoke(asked(user_text(turn), with_key=with_key), CONFIG)
            prompts += model.prompts
    assert script.problems == []
    assert CODE_WORD in str(prompts[-1][0].content) and isinstance(prompts[-1][0], SystemMessage)
    async with engine_at(uri) as engine:
        stored = await engine.session("trip").get_all()
        assert [m.content for m in stored if m.role == "user"] == [user_text(turn) for turn in range(TURNS)]
        assert [m.role for m in stored] == ["user", "assistant"] * TURNS
        assert stored[-1].content == f"It is {CODE_WORD}."
        assert not any("<memory>" in message.content for message in stored)
        assert len(await engine.session("trip").get_all(archived=True)) > 20


@pytest.mark.parametrize("with_key", [True, False])
@pytest.mark.parametrize("keep", [True, False])
async def test_three_runs_at_once_lose_nothing(with_key: bool, keep: bool, uri: str) -> None:
    async with engine_at(uri) as engine:
        chain = chain_of(ScriptedModel(reply_to=echo), engine, with_key=with_key, keep=keep)
        await chain.ainvoke(asked("first", with_key=with_key), CONFIG)
        for round_ in range(3):
            runs = [chain.ainvoke(asked(f"{round_}.{n}", with_key=with_key), CONFIG) for n in range(3)]
            await asyncio.gather(*runs)
        stored = await engine.session("trip").get_all()
        users = [message.content for message in stored if message.role == "user"]
        assert users[0] == "first" and sorted(users[1:]) == [f"{a}.{b}" for a in range(3) for b in range(3)]
        answers = [message.content for message in stored if message.role == "assistant"]
        assert answers == [f"Answer to {text}" for text in users]  # each beside its question


@pytest.mark.parametrize("with_key", [True, False])
async def test_a_run_that_fails_stores_nothing_and_may_be_repeated(with_key: bool, uri: str) -> None:
    async with engine_at(uri) as engine:
        chain = chain_of(ScriptedModel(reply_to=echo, fail_at={2}), engine, with_key=with_key)
        await chain.ainvoke(asked("one", with_key=with_key), CONFIG)
        with pytest.raises(ConnectionError):
            await chain.ainvoke(asked("two", with_key=with_key), CONFIG)
        assert len(await engine.session("trip").get_all()) == 2
        await chain.ainvoke(asked("two", with_key=with_key), CONFIG)
        texts = [message.content for message in await engine.session("trip").get_all()]
        assert texts == ["one", "Answer to one", "two", "Answer to two"]


@pytest.mark.parametrize("with_key", [True, False])
def test_with_a_history_from_synchronous_code(with_key: bool, uri: str) -> None:
    engine = engine_at(uri)
    try:
        chain = chain_of(ScriptedModel(reply_to=echo), engine, with_key=with_key)
        for text in ("one", "two"):
            chain.invoke(asked(text, with_key=with_key), CONFIG)
        history = MemoryChatMessageHistory(engine.session("trip"))
        assert [message.content for message in history.messages] == ["one", "Answer to one", "two", "Answer to two"]
    finally:
        close(engine)


async def test_streaming_with_a_history(uri: str) -> None:
    async with engine_at(uri) as engine:
        chain = chain_of(ScriptedModel(reply_to=echo), engine, with_key=True)
        chunks = [chunk async for chunk in chain.astream(asked("one", with_key=True), CONFIG)]
        assert "".join(chunk.content for chunk in chunks) == "Answer to one"
        assert [message.content for message in await engine.session("trip").get_all()] == ["one", "Answer to one"]


# -- the history by itself ---------------------------------------------------------------------------------------


async def test_what_a_history_hands_out_is_not_stored_again() -> None:
    notes = StaticMemoryBlock(name="notes", static_content="Ada likes tea.")
    for insert_method in ("system", "user"):
        async with Memory.from_defaults("x", memory_blocks=[notes], insert_method=insert_method) as memory:
            history = MemoryChatMessageHistory(memory)
            question = HumanMessage("What do I like?")
            await history.aadd_messages([question, AIMessage("Tea.", id="a1")])
            handed_out = await history.aget_messages()
            assert any("Ada likes tea." in str(message.content) for message in handed_out)
            for other in (history, MemoryChatMessageHistory(memory)):
                await other.aadd_messages(handed_out)
            assert [message.content for message in await memory.get_all()] == ["What do I like?", "Tea."]
            # What was erased meanwhile does not come back that way.
            await memory.delete(["a1"])
            await history.aadd_messages(handed_out)
            assert len(await memory.get_all()) == 1
            # The list and its messages belong to the caller.
            handed_out.clear()
            (await history.aget_messages())[-1].content = "changed"
            assert "What do I like?" in str((await history.aget_messages())[-1].content)
            await history.aclear()
            assert await memory.get_all() == []


async def test_the_same_object_twice_is_two_messages_unless_it_has_an_id(memory: Memory) -> None:
    history = MemoryChatMessageHistory(memory)
    message, named = HumanMessage("Hi"), HumanMessage("Ho", id="h")
    for _ in range(2):
        await history.aadd_messages([message, named])
    assert [stored.content for stored in await memory.get_all()] == ["Hi", "Ho", "Hi"]
    with pytest.raises(MessageConflictError):
        await history.aadd_messages([HumanMessage("New"), HumanMessage("Other", id="h")])
    assert len(await memory.get_all()) == 3


async def test_a_message_of_others_comes_back_from_langchain_as_the_same(memory: Memory) -> None:
    await memory.put({"role": "user", "content": "Hi", "id": "u", "metadata": {"topic": "tea"}})
    await memory.put(
        ChatMessage(role="assistant", id="a", blocks=[{"type": "thinking", "text": "Hm."}, {"type": "text", "text": "Ho"}])
    )
    shown = await MemoryChatMessageHistory(memory).aget_messages()
    await MemoryChatMessageHistory(memory).aadd_messages([*shown, HumanMessage("More")])
    assert [message.content for message in await memory.get_all()] == ["Hi", "Ho", "More"]


def test_a_history_from_synchronous_code() -> None:
    history = MemoryChatMessageHistory(Memory.from_defaults("x"))
    try:
        history.add_user_message("Hi")
        history.add_ai_message(AIMessage("Ho"))
        history.add_message(HumanMessage("More"))
        assert str(history) == "Human: Hi\nAI: Ho\nHuman: More"
        history.clear()
        assert history.messages == []
    finally:
        history.close()
    with pytest.raises(Exception, match="closed"):
        _ = history.messages


async def test_a_synchronous_call_in_the_memorys_own_loop_is_a_clear_error(memory: Memory) -> None:
    history = MemoryChatMessageHistory(memory)
    await history.aadd_messages([HumanMessage("Hi")])
    with pytest.raises(WrongEventLoopError, match="asynchronous"):
        _ = history.messages
    with pytest.raises(WrongEventLoopError, match="asynchronous"):
        history.add_user_message("Ho")
    # From another thread the call runs in that loop.
    assert len(await asyncio.to_thread(lambda: history.messages)) == 1


def test_a_loop_that_has_ended_is_a_clear_error() -> None:
    memory = Memory.from_defaults("x")
    asyncio.run(_open_and_close(memory))
    with pytest.raises(WrongEventLoopError, match="new memory"):
        run_sync(memory, memory.get)


async def _open_and_close(memory: Memory) -> None:
    async with memory:
        await memory.put({"role": "user", "content": "Hi"})


# -- ConversationBufferMemory's names ----------------------------------------------------------------------------

TWELVE = (
    "abuffer",
    "abuffer_as_messages",
    "abuffer_as_str",
    "aclear",
    "aload_memory_variables",
    "asave_context",
    "buffer",
    "buffer_as_messages",
    "buffer_as_str",
    "clear",
    "load_memory_variables",
    "save_context",
)


def test_all_twelve_names_each_asynchronous_one_with_its_twin() -> None:
    for name in TWELVE:
        assert hasattr(ConversationMemory, name) and hasattr(ConversationBufferMemory, name)
    for name in (name for name in TWELVE if name.startswith("a")):
        ours, twin = getattr(ConversationMemory, name), inspect.getattr_static(ConversationMemory, name[1:])
        twin = twin.fget if isinstance(twin, property) else twin
        assert inspect.iscoroutinefunction(ours) and not inspect.iscoroutinefunction(twin)
        assert inspect.signature(ours) == inspect.signature(twin)
        # And the same form as LangChain's own.
        theirs = inspect.getattr_static(ConversationBufferMemory, name[1:])
        assert isinstance(theirs, property) == isinstance(inspect.getattr_static(ConversationMemory, name[1:]), property)
        assert list(inspect.signature(getattr(ConversationBufferMemory, name)).parameters) == list(
            inspect.signature(ours).parameters
        )


@pytest.mark.parametrize("return_messages", [False, True])
def test_each_pair_gives_what_langchain_gives(return_messages: bool) -> None:
    theirs = ConversationBufferMemory(return_messages=return_messages)
    memory = Memory.from_defaults("a25")
    ours = ConversationMemory(memory=memory, return_messages=return_messages)
    try:
        for number, (question, answer) in enumerate(_golden_turns()):
            theirs.save_context({"input": question}, {"output": answer})
            if number % 2:
                ours.save_context({"input": question}, {"output": answer})
            else:
                run_sync(memory, lambda q=question, a=answer: ours.asave_context({"input": q}, {"output": a}))  # type: ignore[misc]
        assert ours.buffer_as_str == run_sync(memory, ours.abuffer_as_str) == theirs.buffer_as_str
        assert ours.buffer_as_str == GOLDEN["buffer.BUF"]["history"]
        said = [_plain(messages) for messages in (ours.buffer_as_messages, run_sync(memory, ours.abuffer_as_messages))]
        assert said[0] == said[1] == _plain(theirs.buffer_as_messages)
        loaded = ours.load_memory_variables({})
        assert run_sync(memory, lambda: ours.aload_memory_variables({})) == loaded
        assert list(loaded) == ours.memory_variables == theirs.memory_variables
        assert _plain(loaded["history"]) == _plain(theirs.load_memory_variables({})["history"])
        assert _plain(ours.buffer) == _plain(run_sync(memory, ours.abuffer)) == _plain(theirs.buffer)
        ours.clear()
        assert len(ours.buffer) == 0
        ours.save_context({"input": "x"}, {"output": "y"})
        run_sync(memory, ours.aclear)
        assert ours.load_memory_variables({}) == {"history": [] if return_messages else ""}
    finally:
        ours.close()


def _golden_turns() -> list[tuple[str, str]]:
    lines = [line.partition(": ")[2] for line in GOLDEN["buffer.BUF"]["history"].split("\n")]
    return list(zip(lines[::2], lines[1::2], strict=True))


def _plain(value: Any) -> Any:
    """Messages without the ids that only stored ones have."""
    if not isinstance(value, list):
        return value
    return [message.model_copy(update={"id": None}) for message in value if isinstance(message, BaseMessage)]


async def test_which_key_is_meant(memory: Memory) -> None:
    ours = ConversationMemory(memory=memory)
    await ours.asave_context({"q": "Hi", "history": "2", "stop": "3"}, {"answer": "Ho"})
    assert await ours.abuffer() == "Human: Hi\nAI: Ho"
    with pytest.raises(ValueError, match=r"One output key expected.*'a'.*'b'"):
        await ours.asave_context({"q": "1"}, {"a": "2", "b": "3"})
    with pytest.raises(ValueError, match=r"One input key expected.*'p'.*'q'"):
        await ours.asave_context({"p": "1", "q": "2"}, {"a": "2"})
    with pytest.warns(UserWarning, match="'output' is stored"):
        await ours.asave_context({"q": "1"}, {"output": "2", "sources": "3"})
    named = ConversationMemory(memory=memory, memory_key="chat", input_key="p", output_key="b", human_prefix="H", ai_prefix="A")
    await named.asave_context({"p": HumanMessage("4"), "q": "5"}, {"a": "6", "b": AIMessage("7")})
    assert await named.aload_memory_variables({"p": "?"}) == {"chat": "H: Hi\nA: Ho\nH: 1\nA: 2\nH: 4\nA: 7"}
    assert named.memory_variables == ["chat"]


async def test_the_legacy_names_keep_the_budget_and_show_what_blocks_know(uri: str) -> None:
    async with engine_at(uri) as engine:
        memory = engine.session("trip")
        ours = ConversationMemory(memory=memory, return_messages=True)
        for turn in range(20):
            await ours.asave_context({"input": user_text(turn)}, {"output": f"Answer to {turn}"})
        await memory.drain()
        (system, *talk) = (await ours.aload_memory_variables({"input": "What is my code word?"}))["history"]
        assert isinstance(system, SystemMessage) and CODE_WORD in str(system.content)
        assert len(talk) < 40 and talk[-1].content == "Answer to 19"
        await ours.aclear()
        assert await ours.abuffer() == []


def test_alex_and_the_giraffes_in_a_chain() -> None:
    """Rows A26 and E02: the second prompt has the first turn; a failed call loses and doubles nothing."""
    from langchain_classic.chains import ConversationChain

    model = ScriptedModel(reply_to=echo, fail_at={3})
    memory = ConversationMemory(memory=Memory.from_defaults("alex"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chain = ConversationChain(llm=model, memory=memory)
        chain.invoke({"input": "Hi, I am Alex."})
        chain.invoke({"input": "I like giraffes."})
        assert "Human: Hi, I am Alex.\nAI: Answer to" in str(model.prompts[1][0].content)
        with pytest.raises(ConnectionError):
            chain.invoke({"input": "Who am I?"})
        chain.invoke({"input": "Who am I?"})
        users = [message.content for message in memory.buffer_as_messages if message.type == "human"]
        assert users == ["Hi, I am Alex.", "I like giraffes.", "Who am I?"]
    finally:
        memory.close()
