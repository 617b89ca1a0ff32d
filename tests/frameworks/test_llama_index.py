"""LlamaIndex: its agents, workflows and chat engines with our memory, and its messages and blocks in ours."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from elsewhere import talk_elsewhere
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms import types as li
from llama_index.core.base.llms.types import ChatMessage as Theirs
from llama_index.core.chat_engine import CondensePlusContextChatEngine, SimpleChatEngine
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.memory import BaseMemoryBlock as TheirBlock
from llama_index.core.memory import FactExtractionMemoryBlock, StaticMemoryBlock, VectorMemoryBlock
from llama_index.core.memory import Memory as TheirMemory
from llama_index.core.memory.memory import InsertMethod
from llama_index.core.prompts import RichPromptTemplate
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.workflow import Context
from pydantic import PrivateAttr
from scenario import (
    CODE_WORD,
    FILLER,
    RESERVED,
    RESTART,
    TOKEN_LIMIT,
    TURNS,
    CodeWordBlock,
    Reply,
    Script,
    add,
    check_history,
    engine_at,
    problems_of,
    user_text,
    weather,
)

from memory_engine import ChatMessage, MemoryEngine
from memory_engine.errors import (
    BlockDefinitionError,
    ClosedError,
    ConfigurationError,
    InvalidMessageError,
    ReadOnlyError,
    WrongEventLoopError,
)
from memory_engine.integrations.llama_index import (
    LlamaIndexBlock,
    LlamaIndexMemory,
    Memory,
    engines,
    from_llama_index,
    register_engine,
    to_llama_index,
)
from memory_engine.tokens import TokenCounter

pytestmark = [
    # LlamaIndex's own.
    pytest.mark.filterwarnings("ignore:.*asyncio.iscoroutinefunction.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
]

Model = Callable[[Sequence[Theirs]], Theirs]


def user(text: str) -> Theirs:
    return Theirs(role="user", content=text)


def assistant(text: str) -> Theirs:
    return Theirs(role="assistant", content=text)


def calling(*calls: tuple[str, str, dict[str, Any]]) -> Theirs:
    blocks = [li.ToolCallBlock(tool_call_id=call_id, tool_name=name, tool_kwargs=kwargs) for call_id, name, kwargs in calls]
    return Theirs(role="assistant", blocks=blocks)


def result(call_id: str, text: str) -> Theirs:
    return Theirs(role="tool", content=text, additional_kwargs={"tool_call_id": call_id})


def llm_of(model: Model) -> MockFunctionCallingLLM:
    """LlamaIndex's own test model, which answers by this function."""
    return MockFunctionCallingLLM(response_generator=lambda messages, **_: model(messages), is_chat_model=True)


def as_reply(reply: Reply) -> Theirs:
    return calling(*((call.id, call.name, call.arguments) for call in reply.calls)) if reply.calls else assistant(reply.text)


def agent_of(model: Model, **options: Any) -> FunctionAgent:
    return FunctionAgent(tools=[weather, add], llm=llm_of(model), system_prompt="You help travellers.", **options)


def scripted(script: Script) -> FunctionAgent:
    return agent_of(lambda messages: as_reply(script.reply_to(from_llama_index(messages))))


def texts(messages: Sequence[Theirs]) -> list[str | None]:
    return [message.content for message in messages]


async def failing(work: Any) -> None:
    with pytest.raises(RuntimeError, match="the model is away"):
        await work


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/memory.db"


@pytest.fixture
async def engine(uri: str) -> AsyncIterator[MemoryEngine]:
    async with engine_at(uri) as engine:
        yield engine


@pytest.fixture
async def memory(engine: MemoryEngine) -> LlamaIndexMemory:
    return LlamaIndexMemory.from_memory(engine.session("chat"))


# -- conversations ---------------------------------------------------------------------------------------------------


async def talk(uri: str, turns: range, state: str) -> Script:
    """Some turns of the scenario, each a run of its own that continues the context of the one before, kept in that file."""
    script = Script()
    agent = scripted(script)
    path = Path(state)
    async with engine_at(uri) as engine:
        register_engine("travel", engine)
        ctx = Context.from_dict(agent, json.loads(path.read_text())) if path.exists() else Context(agent)
        first: dict[str, Any] = {} if path.exists() else {"memory": LlamaIndexMemory(session_id="trip", engine="travel")}
        for turn in turns:
            handler = agent.run(user_text(turn), ctx=ctx, **first)
            await handler
            ctx, first = handler.ctx, {}
        await engine.drain()
        path.write_text(json.dumps(ctx.to_dict()))
    return script


async def test_thirty_turns_through_flushes_and_another_process(uri: str, tmp_path: Path) -> None:
    state = str(tmp_path / "state.json")
    first = await talk(uri, range(RESTART), state)
    second = await talk_elsewhere(talk, uri, range(RESTART, TURNS), state=state)
    assert first.problems == [] and second.problems == [] and second.recalled
    async with engine_at(uri) as engine:
        await check_history(engine.session("trip"))


async def test_the_scenario_with_a_memory_of_from_defaults(uri: str) -> None:
    script = Script()
    agent = scripted(script)
    answer: Any = None
    arguments: dict[str, Any] = {
        "token_limit": TOKEN_LIMIT,
        "reserved_tokens": RESERVED,
        "token_flush_size": 150,
        "memory_blocks": [CodeWordBlock()],
        "async_database_uri": uri,
    }
    for turns in (range(RESTART), range(RESTART, TURNS)):
        async with Memory.from_defaults("trip", **arguments) as memory:
            for turn in turns:
                answer = await agent.run(user_text(turn), memory=memory)
    assert str(answer) == f"It is {CODE_WORD}."
    assert script.problems == []
    async with engine_at(uri) as engine:
        await check_history(engine.session("trip"))


async def test_a_react_agent_remembers(memory: LlamaIndexMemory) -> None:
    seen: list[list[Theirs]] = []

    def model(messages: Sequence[Theirs]) -> Theirs:
        seen.append(list(messages))
        if "Observation:" not in str(messages[-1].content):
            return assistant('Thought: I need a tool.\nAction: add\nAction Input: {"first": 1, "second": 2}')
        return assistant("Thought: I know.\nAnswer: Three.")

    agent = ReActAgent(tools=[add], llm=llm_of(model))
    assert str(await agent.run("One and two?", memory=memory)) == "Three."
    assert str(await agent.run("Again?", memory=memory)) == "Three."
    assert "One and two?" in texts(seen[-1])
    stored = await memory.aget_all()
    assert [message.role.value for message in stored] == ["user", "assistant", "user", "assistant"]
    assert "Observation: The sum is 3." in str(stored[1].content)


async def test_a_handoff_keeps_the_calls_of_both_agents(memory: LlamaIndexMemory) -> None:
    def reception(messages: Sequence[Theirs]) -> Theirs:
        return calling(("call-h", "handoff", {"to_agent": "forecaster", "reason": "weather"}))

    def forecaster(messages: Sequence[Theirs]) -> Theirs:
        assert problems_of(from_llama_index(messages), TOKEN_LIMIT) == []
        if not any(message.additional_kwargs.get("tool_call_id") == "call-w" for message in messages):
            return calling(("call-w", "weather", {"town": "Graz"}))
        return assistant("It is sunny.")

    one = FunctionAgent(name="reception", description="", llm=llm_of(reception), can_handoff_to=["forecaster"])
    two = FunctionAgent(name="forecaster", description="", llm=llm_of(forecaster), tools=[weather])
    workflow = AgentWorkflow(agents=[one, two], root_agent="reception")
    assert str(await workflow.run("The weather in Graz?", memory=memory)) == "It is sunny."
    roles = [message.role.value for message in await memory.aget_all()]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert await memory.aget() == await memory.aget_all()


class Shelf(BaseRetriever):
    """Always finds the same."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text="Graz lies on the Mur."), score=1.0)]


async def test_chat_engines_remember(engine: MemoryEngine) -> None:
    model = llm_of(lambda messages: assistant(f"I see {len(messages)}."))
    simple = SimpleChatEngine.from_defaults(memory=LlamaIndexMemory.from_memory(engine.session("simple")), llm=model)
    assert str(await simple.achat("Hello?")) == "I see 1."
    assert str(await simple.achat("And now?")) == "I see 3."
    streamed = await simple.astream_chat("Slowly?")
    assert [part async for part in streamed.async_response_gen()] == ["I see 5."]
    with pytest.raises(WrongEventLoopError, match=r"await memory\.areset"):
        simple.reset()
    remembering = LlamaIndexMemory.from_memory(engine.session("context"))
    chat = CondensePlusContextChatEngine.from_defaults(Shelf(), llm=model, memory=remembering)
    await chat.achat("Where is Graz?")
    await chat.achat("On which river?")
    assert [message.role.value for message in await remembering.aget_all()] == ["user", "assistant", "user", "assistant"]


def test_a_chat_engine_without_an_event_loop(uri: str) -> None:
    memory = Memory.from_defaults("sync", async_database_uri=uri)
    chat = SimpleChatEngine.from_defaults(memory=memory, llm=llm_of(lambda messages: assistant(f"I see {len(messages)}.")))
    assert str(chat.chat("Hello?")) == "I see 1."
    streamed = chat.stream_chat("And now?")
    assert "".join(streamed.response_gen) == "I see 3."
    assert texts(chat.chat_history) == ["Hello?", "I see 1.", "And now?", "I see 3."]
    chat.reset()
    assert chat.chat_history == []
    asyncio.run(memory.aclose())


async def test_an_agent_without_memory_argument_gets_it_from_its_context(engine: MemoryEngine) -> None:
    memory = LlamaIndexMemory.from_memory(engine.session("empty"))
    assert memory, "an empty memory that is not true is replaced by LlamaIndex's own"
    agent = agent_of(lambda messages: assistant(f"I see {len(messages)}."))
    handler = agent.run("One?", memory=memory)
    await handler
    ctx = Context.from_dict(agent, json.loads(json.dumps(handler.ctx.to_dict())))
    assert str(await agent.run("Two?", ctx=ctx)) == "I see 4."
    assert texts(await memory.aget_all()) == ["One?", "I see 2.", "Two?", "I see 4."]


# -- failures and concurrency ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_tool", [False, True])
async def test_a_run_whose_model_fails_can_be_retried(memory: LlamaIndexMemory, after_tool: bool) -> None:
    away = True

    def model(messages: Sequence[Theirs]) -> Theirs:
        assert problems_of(from_llama_index(messages), TOKEN_LIMIT) == []
        if after_tool and messages[-1].role != "tool":
            return calling(("call-1", "add", {"first": 1, "second": 2}))
        if away:
            raise RuntimeError("the model is away")
        return assistant("Here I am.")

    agent = agent_of(model)
    await failing(agent.run("Are you there?", memory=memory))
    assert texts(await memory.aget()) == ["Are you there?"]
    await failing(agent.run("Are you there?", memory=memory))
    away = False
    assert str(await agent.run("Are you there?", memory=memory)) == "Here I am."
    roles = [message.role.value for message in await memory.aget_all()]
    assert roles == (["user", "assistant", "tool", "assistant"] if after_tool else ["user", "assistant"])
    await agent.run("Are you there?", memory=memory)
    assert texts(await memory.aget_all()).count("Are you there?") == 2, "an answered question may be asked again"


async def test_another_question_after_a_failure_is_no_retry(memory: LlamaIndexMemory) -> None:
    def model(messages: Sequence[Theirs]) -> Theirs:
        if messages[-1].content == "One?":
            raise RuntimeError("the model is away")
        return assistant("Yes.")

    await failing(agent_of(model).run("One?", memory=memory))
    await agent_of(model).run("Two?", memory=memory)
    assert texts(await memory.aget_all()) == ["One?", "Two?", "Yes."]


async def test_the_same_text_put_by_hand_is_two_messages(memory: LlamaIndexMemory) -> None:
    message = user("again")
    await memory.aput(message)
    await memory.aput(message)
    assert texts(await memory.aget_all()) == ["again", "again"]


async def test_a_tool_that_raises_is_an_answer(memory: LlamaIndexMemory) -> None:
    def broken() -> str:
        raise ValueError("out of order")

    def model(messages: Sequence[Theirs]) -> Theirs:
        if messages[-1].role == "tool":
            return assistant("It does not work.")
        return calling(("call-1", "broken", {}), ("call-2", "add", {"first": 1, "second": 1}))

    agent = FunctionAgent(tools=[broken, add], llm=llm_of(model))
    assert str(await agent.run("Try.", memory=memory)) == "It does not work."
    stored = from_llama_index(await memory.aget_all())
    assert [message.role for message in stored] == ["user", "assistant", "tool", "tool", "assistant"]
    assert "out of order" in stored[2].content
    assert problems_of(stored, TOKEN_LIMIT) == []


async def test_the_same_text_while_its_run_goes_on_is_no_retry(memory: LlamaIndexMemory) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        entered.set()
        await leave.wait()
        return "late"

    def model(messages: Sequence[Theirs]) -> Theirs:
        if messages[-1].role == "tool":
            return assistant("Slow.")
        return assistant("Quick.") if entered.is_set() else calling(("call-1", "slow", {}))

    agent = FunctionAgent(tools=[slow], llm=llm_of(model))
    first = agent.run("Well?", memory=memory)
    await entered.wait()
    assert str(await agent.run("Well?", memory=memory)) == "Quick."
    leave.set()
    assert str(await first) == "Slow."
    assert [text for text in texts(await memory.aget_all()) if text] == ["Well?", "Well?", "Quick.", "late", "Slow."]


async def test_three_runs_at_once_on_one_session(engine: MemoryEngine) -> None:
    def model(messages: Sequence[Theirs]) -> Theirs:
        assert problems_of(from_llama_index(messages), TOKEN_LIMIT) == []
        if messages[-1].role == "tool":
            return assistant("Done.")
        return calling(("call-1", "add", {"first": 1, "second": 1}))

    memories = [LlamaIndexMemory.from_memory(engine.session("busy")) for _ in range(3)]
    await asyncio.gather(*(agent_of(model).run("The same text?", memory=memory) for memory in memories))
    stored = from_llama_index(await memories[0].aget_all())
    assert [message.content for message in stored if message.role == "user"] == ["The same text?"] * 3
    assert sum(len(message.tool_calls) for message in stored) == sum(len(message.tool_results) for message in stored) == 3
    assert [message.content for message in stored if message.role == "assistant" and not message.tool_calls] == ["Done."] * 3
    assert len(await memories[0].aget()) == 12


# -- what a memory of theirs promises --------------------------------------------------------------------------------

SCRIPT = """
import asyncio

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import BaseMemoryBlock, InsertMethod, StaticMemoryBlock
from llama_index.core.memory import Memory


class MentionCounter(BaseMemoryBlock[str]):
    name: str = "mentions"
    mentions: int = 0

    async def _aget(self, messages=None, **block_kwargs):
        return f"{self.mentions} mentions."

    async def _aput(self, messages):
        self.mentions += sum("Logan" in (message.content or "") for message in messages)


def run(llm, uri, wait):
    memory = Memory.from_defaults(
        session_id="script",
        token_limit=400,
        chat_history_token_ratio=0.5,
        token_flush_size=50,
        memory_blocks=[StaticMemoryBlock(name="rules", static_content="Be brief."), MentionCounter()],
        insert_method=InsertMethod.SYSTEM,
        async_database_uri=uri,
        tokenizer_fn=str.split,
    )
    memory.put(ChatMessage(role="user", content="My name is Logan."))
    memory.put_messages([ChatMessage(role="assistant", content="Hello Logan."), ChatMessage(role="user", content="Bye.")])
    seen = [memory.get(), memory.get_all()]

    async def chat():
        agent = FunctionAgent(llm=llm, tools=[])
        seen.append(str(await agent.run("Who am I?", memory=memory)))
        for number in range(14):
            await memory.aput(ChatMessage(role="user", content=f"Logan {number} " + "word " * 20))
            await memory.aput(ChatMessage(role="assistant", content="Noted."))
        await wait(memory)
        shown = await memory.aget(input="Who?")
        seen.append([shown[0].role, "Be brief." in shown[0].content, " mentions." in shown[0].content, shown[-1]])
        seen.append([message.content for message in await memory.aget_all()])

    asyncio.run(chat())
    memory.set([ChatMessage(role="user", content="Fresh.")])
    seen.append(memory.get()[-1])
    memory.reset()
    seen.append(memory.get_all())
    return memory, seen
"""


def test_one_import_line_is_all_that_changes(tmp_path: Path) -> None:
    line = "from llama_index.core.memory import Memory\n"
    ours = "from memory_engine.integrations.llama_index import Memory\n"
    assert SCRIPT.count(line) == 1
    outcomes = []
    for number, source in enumerate((SCRIPT, SCRIPT.replace(line, ours))):
        module: dict[str, Any] = {"__name__": f"script_{number}"}
        exec(compile(source, "script", "exec"), module)
        llm = llm_of(lambda messages: assistant(f"I see {len(messages)}, and you are Logan."))
        # Theirs has delivered when `put` returns.
        wait = LlamaIndexMemory.adrain if number else TheirMemory.aget
        memory, seen = module["run"](llm, f"sqlite+aiosqlite:///{tmp_path}/{number}.db", wait)
        assert isinstance(memory, (TheirMemory, LlamaIndexMemory)[number])
        outcomes.append(seen)
        # Theirs cannot be closed; only what it is made of.
        asyncio.run(memory.aclose() if number else memory.sql_store._async_engine.dispose())
    # Theirs sets the archive too, and its template has other white space; the rest is the same to the letter.
    theirs, mine = outcomes
    assert [re.sub(r"\s+", " ", str(item)) for item in mine] == [re.sub(r"\s+", " ", str(item)) for item in theirs]


async def test_what_get_returns_may_be_changed(memory: LlamaIndexMemory) -> None:
    await memory.aput(Theirs(role="user", content="hi", additional_kwargs={"tags": ["a"]}))
    first = await memory.aget()
    first[0].blocks[0].text = "changed"
    first[0].additional_kwargs["tags"].append("b")
    first.clear()
    assert await memory.aget() == [Theirs(role="user", content="hi", additional_kwargs={"tags": ["a"]})]
    agent = FunctionAgent(llm=llm_of(lambda messages: assistant(str(messages[-1].content))), initial_state={"mood": "good"})
    assert "mood" in str(await agent.run("How are you?", memory=memory))
    assert "mood" not in str(texts(await memory.aget())[1])


async def test_what_get_returned_is_not_stored_again(engine: MemoryEngine) -> None:
    handle = engine.session("again")
    memory = LlamaIndexMemory.from_memory(handle)
    for turn in range(8):
        await memory.aput_messages([user(user_text(turn)), assistant("Noted. " + FILLER)])
    await handle.drain()
    before = await handle.get_all()
    shown = await memory.aget()
    assert CODE_WORD in str(shown[0].content)
    assert len(shown) - 1 < len(before)
    await memory.aput_messages(shown)
    await memory.aset(shown)
    assert await handle.get_all() == before
    # Also when somebody wrote into a message that memory was inserted in.
    shown[0].blocks.append(li.TextBlock(text="And this."))
    await memory.aput(shown[0])
    assert (await handle.get_all())[-1].content == "And this."


async def test_set_replaces_only_what_is_new(engine: MemoryEngine) -> None:
    handle = engine.session("set")
    memory = LlamaIndexMemory.from_memory(handle)
    for turn in range(8):
        await memory.aput_messages([user(user_text(turn)), assistant("Noted. " + FILLER)])
    await handle.drain()
    stored = await handle.get_all()
    archived = await handle.get_all(archived=True)
    assert archived
    everything = [Theirs.model_validate_json(message.model_dump_json()) for message in await memory.aget_all()]
    # All of it, the active part, and a part that begins in the archive: known by what they say.
    for known in (everything, everything[len(archived) :], everything[len(archived) - 2 :]):
        await memory.aset(known)
        assert await handle.get_all() == stored
    await memory.aset([*everything[:-1], assistant("Something else.")])
    changed = await handle.get_all()
    assert changed[:-1] == stored[:-1]
    assert changed[-1].content == "Something else."
    await memory.aset([user("A new beginning.")])
    assert texts(await memory.aget_all()) == [*[message.content for message in archived], "A new beginning."]
    assert CODE_WORD in str((await memory.aget())[0].content), "what blocks know stays"


async def test_a_run_with_a_chat_history_keeps_the_archive(engine: MemoryEngine) -> None:
    handle = engine.session("history")
    memory = LlamaIndexMemory.from_memory(handle)
    await memory.aput_messages([user("Long ago."), assistant("Yes.")])
    await handle.flush(final=True)
    await handle.drain()
    agent = agent_of(lambda messages: assistant(f"I see {len(messages)}."))
    await agent.run("Now?", chat_history=[user("Before."), assistant("Hm.")], memory=memory)
    expected = ["Long ago.", "Yes.", "Before.", "Hm.", "Now?", "I see 4."]
    assert texts(await memory.aget_all()) == expected
    # A history that memory returned, and no new message: the way to repeat an answer.
    await handle.pop()
    await agent.run(chat_history=await memory.aget(), memory=memory)
    assert texts(await memory.aget_all()) == expected


async def test_statuses(memory: LlamaIndexMemory) -> None:
    await memory.aput_messages([user("old"), assistant("yes")])
    await memory.handle.flush(final=True)
    await memory.handle.drain()
    await memory.aput(user("new"))
    assert texts(await memory.aget_all(status="archived")) == ["old", "yes"]
    assert texts(await memory.aget_all(status="active")) == ["new"]
    await memory.areset(status="archived")
    assert texts(await memory.aget_all()) == ["new"]
    await memory.areset(status="active")
    assert await memory.aget_all() == []
    await memory.aput(user("newer"))
    await memory.areset()
    assert await memory.aget_all() == []
    with pytest.raises(ConfigurationError, match="status"):
        await memory.aget_all(status="lost")


async def test_a_query_in_each_form(engine: MemoryEngine) -> None:
    asked: list[Any] = []

    class Listening(CodeWordBlock):
        name: str = "listening"

        async def _aget(self, messages: Any = None, **block_kwargs: Any) -> str:
            asked.append(([message.content for message in self.context.query or ()], block_kwargs))
            return ""

    async with MemoryEngine(memory_blocks=[Listening()]) as listening:
        memory = LlamaIndexMemory.from_memory(listening.session("query"))
        await memory.aput(user("hi"))
        await memory.aget("text")
        await memory.aget(input=user("message"), colour="red", initial_token_count=7)
        await memory.aget(messages=[user("one"), user("two")])
    assert asked == [(["text"], {}), (["message"], {"colour": "red"}), (["one", "two"], {})]


async def test_a_read_only_view_stays_one(engine: MemoryEngine) -> None:
    view = LlamaIndexMemory.from_memory(engine.session("view").read_only())
    again = LlamaIndexMemory.from_dict(view.to_dict())
    for memory in (view, again):
        with pytest.raises(ReadOnlyError):
            await memory.aput(user("no"))


# -- engines ---------------------------------------------------------------------------------------------------------


async def test_a_serialized_memory_opens_its_database_again(uri: str) -> None:
    memory = Memory.from_defaults("trip", async_database_uri=uri, token_limit=900, user_id="ada", tenant="acme")
    await memory.aput(user("hi"))
    data = json.loads(json.dumps(memory.to_dict()))
    await memory.aclose()
    again = LlamaIndexMemory.from_dict(data)
    assert again == memory
    assert texts(await again.aget()) == ["hi"]
    assert (again.handle.token_limit, again.handle.user_id, again.handle.tenant) == (900, "ada", "acme")
    await again.aclose()


@pytest.mark.parametrize(
    "address",
    ["postgresql+asyncpg://ada:hidden@db.example/memory", "postgresql+asyncpg://db.example/memory?password=hidden"],
)
async def test_no_secret_is_written_down(address: str) -> None:
    pytest.importorskip("asyncpg")
    memory = Memory.from_defaults("trip", async_database_uri=address)
    assert "hidden" not in json.dumps(memory.to_dict()) + repr(memory)
    assert "db.example" in memory.engine
    same = Memory.from_defaults("other", async_database_uri=address)
    assert same.engine == memory.engine
    for one in (memory, same):
        await one.aclose()
    with pytest.raises(ConfigurationError, match="register_engine"):
        await LlamaIndexMemory.from_dict(memory.to_dict()).aget()


async def test_what_json_cannot_carry_is_asked_for(uri: str) -> None:
    arguments: dict[str, Any] = {"async_database_uri": uri, "memory_blocks": [CodeWordBlock()], "tokenizer_fn": str.split}
    memory = Memory.from_defaults("trip", **arguments)
    await memory.aput(user("hi"))
    data = memory.to_dict()
    await memory.aclose()
    with pytest.raises(ConfigurationError, match="memory_blocks, tokenizer_fn, which no JSON can carry"):
        await LlamaIndexMemory.from_dict(data).aget()
    # Another session with the same arguments registers the engine for all.
    other = Memory.from_defaults("another trip", **arguments)
    assert texts(await LlamaIndexMemory.from_dict(data).aget()) == ["hi"]
    await other.aclose()


async def test_memories_share_an_engine_until_the_last_is_closed(uri: str) -> None:
    one, two = (Memory.from_defaults(name, async_database_uri=uri) for name in ("one", "two"))
    other = Memory.from_defaults("one", async_database_uri=uri, token_limit=500)
    assert one.engine == two.engine != other.engine
    await one.aput(user("hi"))
    await one.aclose()
    await one.aclose()
    await two.aput(user("there"))
    assert texts(await other.aget_all()) == ["hi"]
    await two.aclose()
    await other.aclose()
    assert engines.find(two.engine) is None
    apart = [Memory.from_defaults("same") for _ in range(2)]
    await apart[0].aput(user("hi"))
    assert await apart[1].aget() == [], "without a database each is one of its own"
    for memory in apart:
        await memory.aclose()


async def test_an_engine_of_the_application_is_never_closed_by_a_memory(uri: str) -> None:
    async with MemoryEngine(async_database_uri=uri) as engine:
        register_engine("mine", engine)
        async with LlamaIndexMemory(session_id="a", engine="mine") as memory:
            await memory.aput(user("hi"))
        assert engine.connected
    with pytest.raises(ClosedError):
        await LlamaIndexMemory(session_id="a", engine="mine").aget()
    async with MemoryEngine(async_database_uri=uri) as engine:
        register_engine("mine", engine)
        assert texts(await memory.aget()) == ["hi"]
    with pytest.raises(ConfigurationError, match="No engine is registered"):
        await LlamaIndexMemory(session_id="a", engine="nobody's").aget()
    with pytest.raises(ConfigurationError):
        register_engine("mine", "engine")


async def test_sync_methods_and_event_loops(engine: MemoryEngine, uri: str) -> None:
    memory = LlamaIndexMemory.from_memory(engine.session("loops"))
    for work in (memory.get, memory.get_all, memory.reset, lambda: memory.put(user("no")), lambda: memory.set([])):
        with pytest.raises(WrongEventLoopError, match=r"await memory\.a"):
            work()
    # A sync tool runs in a thread, where there is none.
    await asyncio.to_thread(memory.put, user("hi"))
    assert texts(await asyncio.to_thread(memory.get)) == ["hi"]
    unused = MemoryEngine(async_database_uri=uri)
    idle = LlamaIndexMemory.from_memory(unused.session("idle"))
    with pytest.raises(WrongEventLoopError, match="is not running"):
        await asyncio.to_thread(idle.get)


def test_one_memory_in_one_event_loop_after_the_other() -> None:
    memory = Memory.from_defaults("loops", chat_history=[user("zero")])
    memory.put(user("one"))
    asyncio.run(memory.aput(user("two")))
    asyncio.run(memory.aput(user("three")))
    assert texts(memory.get()) == ["zero", "one", "two", "three"]
    asyncio.run(memory.aclose())


def test_arguments_without_a_counterpart_are_refused() -> None:
    for wrong in ({"chat_store": object()}, {"db_schema": "other"}, {"no_such_argument": 1}, {"insert_method": "nowhere"}):
        with pytest.raises((ConfigurationError, TypeError)):
            Memory.from_defaults(**wrong)


async def test_a_template_of_theirs_renders_the_sections(uri: str) -> None:
    template = RichPromptTemplate("{% for name, blocks in memory_blocks %}{{ name }}={{ blocks[0].text }};{% endfor %}")
    blocks = [StaticMemoryBlock(name="rules", static_content="Be brief.")]
    async with Memory.from_defaults(
        "t", async_database_uri=uri, memory_blocks=blocks, memory_blocks_template=template, insert_method=InsertMethod.USER
    ) as memory:
        await memory.aput(user("hi"))
        assert "rules=Be brief.;" in str((await memory.aget())[0].content)


# -- messages --------------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
DICT = st.dictionaries(TEXT, JSON, max_size=3)
ID = st.none() | TEXT | st.sampled_from(["call-1", "call-2"])
SOURCE = st.fixed_dictionaries(
    {}, optional={"url": st.sampled_from(["https://a.example/b.png", "data:image/png;base64,QUJD"]), "path": st.just(__file__)}
)


def media(kind: Any, payload: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    options = {payload: st.binary(max_size=20) | st.none(), **fields}
    return st.builds(lambda source, rest: kind(**source, **rest), SOURCE, st.fixed_dictionaries({}, optional=options))


TEXTS = st.builds(li.TextBlock, text=TEXT)
IMAGES = media(li.ImageBlock, "image", image_mimetype=st.sampled_from(["image/png", "no type"]), detail=TEXT)
DOCUMENTS = media(li.DocumentBlock, "data", title=TEXT, document_mimetype=TEXT)
CALLS = st.builds(li.ToolCallBlock, tool_call_id=ID, tool_name=TEXT, tool_kwargs=DICT | TEXT)
BLOCKS = st.lists(
    TEXTS
    | IMAGES
    | DOCUMENTS
    | CALLS
    | media(li.AudioBlock, "audio", format=TEXT)
    | media(li.VideoBlock, "video", video_mimetype=TEXT, detail=TEXT, fps=st.integers(0, 60))
    | st.builds(
        li.ThinkingBlock, content=st.none() | TEXT, num_tokens=st.none() | st.integers(0, 9), additional_information=DICT
    )
    | st.builds(li.ThinkingBlock, content=TEXT, additional_information=st.fixed_dictionaries({"signature": TEXT}))
    | st.builds(li.CachePoint, cache_control=st.builds(li.CacheControl, type=TEXT))
    | st.builds(li.CitableBlock, title=TEXT, source=TEXT, content=st.lists(TEXTS | IMAGES | DOCUMENTS, max_size=3))
    | st.builds(
        li.CitationBlock,
        title=TEXT,
        source=TEXT,
        cited_content=TEXTS | IMAGES,
        additional_location_info=st.dictionaries(TEXT, st.integers(0, 9), max_size=2),
    ),
    max_size=4,
)
OLD_CALLS = st.lists(
    st.fixed_dictionaries(
        {"id": ID, "type": st.just("function"), "function": st.fixed_dictionaries({"name": TEXT, "arguments": TEXT})}
    )
    | DICT,
    max_size=3,
)
KWARGS = st.fixed_dictionaries(
    {}, optional={"tool_call_id": ID, "name": ID, "tool_calls": OLD_CALLS, "function_call": DICT, "more": JSON}
)
MESSAGES = st.lists(
    st.builds(Theirs, role=st.sampled_from(li.MessageRole), blocks=BLOCKS, additional_kwargs=KWARGS), min_size=1, max_size=3
)


def dumped(messages: list[Theirs]) -> Any:
    return [json.loads(message.model_dump_json()) for message in messages]


def test_messages_come_back_as_they_were(soak: bool) -> None:
    @settings(max_examples=3_000 if soak else 60)
    @given(MESSAGES)
    def check(messages: list[Theirs]) -> None:
        before = dumped(messages)
        mine = from_llama_index(messages)
        # As from the database, not the same objects.
        stored = [ChatMessage.model_validate_json(message.model_dump_json()) for message in mine]
        back = to_llama_index(stored)
        assert back == messages
        assert dumped(back) == dumped(messages) == before

    check()


FIXED = {name for kind in (Theirs, *li.__dict__.values()) if hasattr(kind, "model_fields") for name in kind.model_fields}
UNCOUNTED = {"block_type", "role", "image", "audio", "video", "data", "url", "path"}
"""What every message has, and media, which have a price of their own."""


def said(value: Any) -> list[str]:
    """Every text in the JSON of a message of theirs, with the keys that are not of their classes."""
    if isinstance(value, dict):
        inner = [text for key, item in value.items() if key not in UNCOUNTED for text in said(item)]
        return [key for key in value if key not in FIXED] + inner
    if isinstance(value, list):
        return [text for item in value for text in said(item)]
    return [] if value is None else [str(value)]


def cost(messages: Sequence[Theirs]) -> int:
    """Their tokens, without asking us what is in them."""
    return sum(TokenCounter().text(text) for message in messages for text in said(json.loads(message.model_dump_json())))


def test_all_that_is_handed_out_is_counted(soak: bool) -> None:
    @settings(max_examples=3_000 if soak else 60)
    @given(MESSAGES)
    def check(messages: list[Theirs]) -> None:
        for mine in from_llama_index(messages):
            assert cost(to_llama_index([mine])) <= TokenCounter().message(mine) + 12

    check()


LONG = st.integers(0, 40).map(lambda number: "word " * number)
LONG_BLOCKS = st.one_of(
    st.builds(
        li.CitableBlock, title=LONG, source=LONG, content=st.lists(st.builds(li.DocumentBlock, url=st.just("u"), title=LONG))
    ),
    st.builds(li.CitationBlock, title=LONG, source=LONG, cited_content=TEXTS, additional_location_info=st.just({"page": 1})),
    st.builds(
        li.ThinkingBlock, content=LONG, additional_information=st.fixed_dictionaries({"encrypted": LONG, "signature": LONG})
    ),
    st.builds(li.ImageBlock, url=st.just("https://a.example/b.png"), detail=LONG),
    st.builds(li.ToolCallBlock, tool_call_id=st.just(""), tool_name=st.just("look"), tool_kwargs=LONG),
)
LONG_MESSAGES = st.lists(
    st.builds(
        Theirs,
        role=st.sampled_from(["user", "assistant"]),
        blocks=st.lists(LONG_BLOCKS, max_size=2),
        additional_kwargs=st.fixed_dictionaries(
            {},
            optional={
                "more": LONG,
                "tool_calls": st.builds(
                    lambda text: [
                        {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": text}, "index": text}
                    ],
                    LONG,
                ),
            },
        ),
    ),
    min_size=8,
    max_size=16,
)


def test_the_budget_holds_for_what_a_provider_is_sent(soak: bool) -> None:
    @settings(max_examples=500 if soak else 15)
    @given(LONG_MESSAGES)
    def check(messages: list[Theirs]) -> None:
        memory = Memory.from_defaults(token_limit=300, image_token_size_estimate=10, document_token_size_estimate=10)
        memory.put_messages([*messages, user("And now?")])
        shown = memory.get()
        assert shown[-1].content == "And now?"
        assert cost(shown) <= 300 + 4 * len(shown)
        asyncio.run(memory.aclose())

    check()


def test_blocks_say_what_theirs_said() -> None:
    picture = li.ImageBlock(image=b"\x89PNG\r\n\x1a\n", detail="high")
    message = Theirs(
        role="assistant",
        blocks=[
            li.ThinkingBlock(content="Hm.", additional_information={"signature": "sig"}),
            li.TextBlock(text="Look."),
            li.CitableBlock(title="Paper", source="shelf", content="Bees dance."),
            li.ToolCallBlock(tool_call_id="call-1", tool_name="look", tool_kwargs={"at": "bees"}),
            picture,
        ],
    )
    (mine,) = from_llama_index([message])
    assert mine.content == "Look.\nBees dance."
    assert [block.type for block in mine.blocks] == ["thinking", "text", "text", "tool_call", "image"]
    assert mine.blocks[0].signature == "sig"
    assert mine.blocks[4].mime_type == "image/png"
    assert mine.tool_calls[0].arguments == {"at": "bees"}


def test_calls_without_ids_are_joined_to_their_results() -> None:
    no_ids = [
        Theirs(role="assistant", blocks=[li.ToolCallBlock(tool_name="a"), li.ToolCallBlock(tool_name="b")]),
        Theirs(role="tool", content="1", additional_kwargs={"tool_call_id": ""}),
        Theirs(role="tool", content="2"),
    ]
    mine = from_llama_index(no_ids)
    assert [call.id for call in mine[0].tool_calls] == [result_id for message in mine[1:] for result_id in message.tool_results]
    assert to_llama_index(mine) == no_ids
    old = [
        Theirs(role="assistant", additional_kwargs={"function_call": {"name": "a", "arguments": "{}"}}),
        Theirs(role="function", content="1", additional_kwargs={"name": "a"}),
    ]
    mine = from_llama_index(old)
    assert mine[0].tool_calls[0].id == mine[1].tool_results[0]
    assert to_llama_index(mine) == old


def test_calls_that_a_view_left_out_are_not_handed_out() -> None:
    body = {"name": "add", "arguments": "{}"}
    calls = [{"id": call_id, "type": "function", "function": body} for call_id in ("call-1", "call-2")]
    for message in (
        Theirs(role="assistant", content="x", additional_kwargs={"tool_calls": calls}),
        Theirs(
            role="assistant", blocks=[li.TextBlock(text="x"), *calling(("call-1", "add", {}), ("call-2", "add", {})).blocks]
        ),
        Theirs(
            role="assistant",
            blocks=[
                li.TextBlock(text="x"),
                *calling(("call-1", "add", {}), ("call-2", "add", {})).blocks,
                li.TextBlock(text="y"),
            ],
            additional_kwargs={"tool_calls": calls, "more": 1},
        ),
    ):
        (mine,) = from_llama_index([message])
        left = [block for block in mine.blocks if getattr(block, "id", None) != "call-1"]
        (back,) = to_llama_index([mine.model_copy(update={"blocks": left, "partial": True})])
        dumped = back.model_dump_json()
        assert "call-1" not in dumped
        assert "call-2" in dumped
        (back,) = to_llama_index([mine.model_copy(update={"blocks": [left[0]], "partial": True})])
        assert "call-" not in back.model_dump_json()
        assert back.content == "x"


async def test_a_shortened_result_is_handed_out_short_and_stays_whole(engine: MemoryEngine) -> None:
    handle = engine.session("long")
    memory = LlamaIndexMemory.from_memory(handle)
    long = result("call-1", "word " * 2_000)
    long.additional_kwargs["more"] = 1
    await memory.aput_messages([user("Go."), calling(("call-1", "look", {})), long])
    shown = await memory.aget()
    assert "tokens left out" in str(shown[-1].content)
    assert shown[-1].additional_kwargs == {"tool_call_id": "call-1", "more": 1}
    assert problems_of(from_llama_index(shown), TOKEN_LIMIT - RESERVED) == []
    await memory.aset(shown)
    assert (await memory.aget_all())[-1] == long


def test_messages_of_others_are_handed_out() -> None:
    mine = [
        ChatMessage(
            role="user", blocks=[{"type": "document", "file_id": "file-1"}, {"type": "audio", "url": "https://a.example/b"}]
        ),
        ChatMessage(
            role="assistant",
            blocks=[
                {"type": "thinking", "text": "", "signature": "s", "redacted": True},
                {"type": "tool_call", "id": "c1", "name": "a", "arguments": "{}"},
                {"type": "tool_call", "id": "c2", "name": "b"},
            ],
        ),
        ChatMessage(
            role="tool",
            blocks=[
                {"type": "tool_result", "tool_call_id": "c1", "content": "1"},
                {"type": "tool_result", "tool_call_id": "c2", "content": "2"},
                {"type": "image", "data": b"abc", "mime_type": "image/png"},
            ],
        ),
        ChatMessage(role="user", content="hi", name="Ada"),
    ]
    out = to_llama_index(mine)
    assert [message.role.value for message in out] == ["user", "assistant", "tool", "tool", "user"]
    assert [message.additional_kwargs for message in out[2:]] == [
        {"tool_call_id": "c1"},
        {"tool_call_id": "c2"},
        {"name": "Ada"},
    ]
    assert out[3].blocks[1].resolve_image().read() == b"abc"
    assert problems_of(from_llama_index(out), TOKEN_LIMIT * 10) == []
    for message in out:
        assert Theirs.model_validate_json(message.model_dump_json()).role == message.role


def test_what_cannot_be_kept_is_refused() -> None:
    for bad in (
        Theirs(role="user", content="x", additional_kwargs={"f": object()}),
        Theirs(role="user", content="x", additional_kwargs={"f": float("nan")}),
        Theirs.model_construct(role="user", blocks=[li.TextBlock.model_construct(text="\ud800")], additional_kwargs={}),
    ):
        with pytest.raises(InvalidMessageError):
            from_llama_index([bad])


# -- blocks ----------------------------------------------------------------------------------------------------------


class Client:
    """What no JSON can carry."""

    calls = 0


class Counter(TheirBlock[str]):
    """As a user of LlamaIndex writes one."""

    name: str = "my counter"
    priority: int = 1
    mentions: int = 0
    last: list[str] = []
    client: Any = None
    _private: dict[str, int] = PrivateAttr(default_factory=dict)

    async def _aget(self, messages: Any = None, **block_kwargs: Any) -> str:
        assert len(block_kwargs["session_id"]) == 32, "an id of the scope"
        return f"{self.mentions} mentions, last {self.last}."

    async def _aput(self, messages: list[Theirs]) -> None:
        self.client.calls += 1
        for message in messages:
            if "Logan" in str(message.content):
                self.mentions += 1
                self.last.append(str(message.content))
        self.last = self.last[-2:]


async def absorbed(memory: LlamaIndexMemory, *words: str) -> str:
    """What memory says when these were flushed."""
    await memory.aput_messages([user(word) for word in words])
    await memory.handle.flush(final=True)
    await memory.handle.drain()
    await memory.aput(user("And?"))
    return str((await memory.aget())[0].content)


async def test_a_block_of_theirs_keeps_its_state(uri: str) -> None:
    definition = Counter(client=Client())
    for expected in ("2 mentions, last ['Logan 1', 'Logan 2']", "4 mentions, last ['Logan 1', 'Logan 2']"):
        async with engine_at(uri, memory_blocks=[LlamaIndexBlock(definition)]) as engine:
            one, two = (LlamaIndexMemory.from_memory(engine.session(name)) for name in ("one", "two"))
            assert expected in await absorbed(one, "Logan 1", "Logan 2", "Lena")
            assert "0 mentions" in await absorbed(two, "nobody")
            assert (await one.handle.block("my_counter")).state.keys() == {"mentions", "last"}
    assert (definition.mentions, definition.last) == (0, [])
    assert definition.client.calls > 0


async def test_a_private_attribute_that_changes_is_no_silent_loss(uri: str) -> None:
    class Secretive(Counter):
        async def _aput(self, messages: list[Theirs]) -> None:
            self._private["seen"] = 1

    async with engine_at(uri, memory_blocks=[LlamaIndexBlock(Secretive())]) as engine:
        memory = LlamaIndexMemory.from_memory(engine.session("one"))
        await memory.aput(user("hi"))
        await memory.handle.flush(final=True)
        with suppress(TimeoutError):
            await memory.handle.drain(0.3)
        receipt = (await memory.handle.context()).receipt
        assert "_private" in str(receipt.sources)


async def test_their_own_blocks(uri: str) -> None:
    store = SimpleVectorStore()
    facts = FactExtractionMemoryBlock(llm=llm_of(lambda messages: assistant("<facts><fact>Ada likes tea</fact></facts>")))
    vectors = VectorMemoryBlock(vector_store=_with_text(store), embed_model=MockEmbedding(4))
    blocks: list[Any] = [
        StaticMemoryBlock(
            name="rules", static_content=[li.TextBlock(text="Be brief."), li.ImageBlock(url="https://a.example/b.png")]
        ),
        facts,
        vectors,
    ]
    async with Memory.from_defaults(
        "one", async_database_uri=uri, memory_blocks=blocks, token_limit=4_000, delivery="inline"
    ) as memory:
        await memory.aput_messages([user("I am Ada and like tea."), assistant("Fine.")])
        assert await memory.aflush(final=True) > 0
        await memory.adrain()
        await memory.aput(user("What do I like?"))
        shown = await memory.aget()
        assert "Be brief." in str(shown[0].content)
        assert "<fact>Ada likes tea</fact>" in str(shown[0].content)
        assert "I am Ada and like tea." in str(shown[0].content)
        assert [block.block_type for block in shown[-1].blocks].count("image") == 1
    assert facts.facts == []
    assert vectors.query_kwargs == {}, "the filter of the first session must not stay for the next"


def _with_text(store: SimpleVectorStore) -> Any:
    """A store that keeps texts, as the one of LlamaIndex for tests does not."""
    from llama_index.core.vector_stores.types import VectorStoreQueryResult

    class Keeping(SimpleVectorStore):
        stores_text: bool = True
        nodes: dict[str, Any] = {}

        async def async_add(self, nodes: Any, **kwargs: Any) -> list[str]:
            self.nodes.update({node.node_id: node for node in nodes})
            return self.add(nodes, **kwargs)

        async def aquery(self, query: Any, **kwargs: Any) -> VectorStoreQueryResult:
            found = self.query(query, **kwargs)
            found.nodes = [self.nodes[one] for one in found.ids or []]
            return found

    return Keeping(data=store.data)


async def test_truncation_is_theirs_where_they_wrote_one(uri: str) -> None:
    class Short(Counter):
        async def _aget(self, messages: Any = None, **block_kwargs: Any) -> str:
            return FILLER * 20

        async def atruncate(self, content: str, tokens_to_truncate: int) -> str | None:
            return "Cut by its author."

    class Long(Short):
        atruncate = TheirBlock.atruncate

    for block, expected in ((Short(), "Cut by its author."), (Long(), "There is more to tell")):
        async with engine_at(uri, memory_blocks=[LlamaIndexBlock(block)], token_limit=500) as engine:
            memory = LlamaIndexMemory.from_memory(engine.session("one"))
            await memory.aput(user("hi"))
            assert expected in str((await memory.aget())[0].content)


async def test_a_block_of_theirs_that_gives_messages(uri: str) -> None:
    class Examples(Counter):
        async def _aget(self, messages: Any = None, **block_kwargs: Any) -> Any:
            assert [type(message) for message in messages] == [Theirs]
            return [user("An example?"), assistant("An answer.")]

    async with engine_at(uri, memory_blocks=[LlamaIndexBlock(Examples(), name="examples")]) as engine:
        memory = LlamaIndexMemory.from_memory(engine.session("one"))
        await memory.aput(user("hi"))
        assert texts(await memory.aget()) == ["An example?", "An answer.", "hi"]
    with pytest.raises(BlockDefinitionError):
        LlamaIndexBlock("block")
