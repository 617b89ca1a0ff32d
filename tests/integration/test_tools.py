"""Memory as tools: what a model may do with it, and what it may not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from memory_engine import BaseMemoryBlock, ChatMessage, Memory, MemoryEngine
from memory_engine.blocks import FactExtractionMemoryBlock, VectorMemoryBlock
from memory_engine.testing import ScriptedLLM
from memory_engine.tools import Tool

NOTHING = '{"operations": []}'


def facts(**options: Any) -> FactExtractionMemoryBlock:
    return FactExtractionMemoryBlock(name="facts", llm=ScriptedLLM(otherwise=NOTHING), **options)


def recall(**options: Any) -> VectorMemoryBlock:
    return VectorMemoryBlock(name="recall", **options)


@asynccontextmanager
async def opened(folder: Path, *blocks: BaseMemoryBlock[Any]) -> AsyncIterator[MemoryEngine]:
    uri = f"sqlite+aiosqlite:///{folder / 'tools.db'}"
    async with MemoryEngine(async_database_uri=uri, token_limit=2_000, memory_blocks=blocks) as engine:
        yield engine


def tools_of(memory: Memory) -> dict[str, Tool]:
    return {tool.name: tool for tool in memory.as_tools()}


async def tell(memory: Memory, *texts: str) -> None:
    await memory.put_messages([ChatMessage(role="user", content=text) for text in texts])
    await memory.flush(final=True)
    await memory.drain(30)


def ids(found: str) -> list[str]:
    return [line[1:].partition("]")[0] for line in found.splitlines()]


async def test_what_is_remembered_is_a_fact_that_get_shows(tmp_path: Path) -> None:
    async with opened(tmp_path, facts()) as engine:
        memory = engine.session("one")
        tools = tools_of(memory)
        assert list(tools) == ["remember", "search_memory", "forget"]
        assert await tools["remember"](text="Ada is allergic to hazelnuts.") == "Remembered as f1."
        assert "allergic to hazelnuts" in (await memory.get())[0].content
        found = await tools["search_memory"](query="hazelnut allergy")
        assert found == "[f1] Ada is allergic to hazelnuts."
        assert await tools["forget"](id="f1") == "Forgot f1."
        assert await tools["search_memory"](query="hazelnut allergy") == "Nothing was found."
        assert await memory.get() == []


@pytest.mark.parametrize("erase", [False, True])
async def test_what_is_forgotten_is_history_or_erased(tmp_path: Path, erase: bool) -> None:
    async with opened(tmp_path, facts()) as engine:
        memory = engine.session("one")
        tools = {tool.name: tool for tool in memory.as_tools(erase=erase)}
        await tools["remember"](text="Ada is allergic to hazelnuts.")
        await tools["forget"](id="f1")
        block: Any = await memory.block("facts")
        assert (await block.facts(), len(await block.history())) == ([], 0 if erase else 1)


async def test_a_model_deletes_neither_instructions_nor_what_it_is_answering(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        memory = engine.session("one")
        await memory.put_messages(
            [
                ChatMessage(id="rules", role="system", content="Be kind."),
                ChatMessage(id="pinned", role="user", content="I am Ada.", metadata={"pinned": True}),
                ChatMessage(id="old", role="user", content="I like owls."),
                ChatMessage(id="answer", role="assistant", content="So do I."),
            ]
        )
        await memory.flush(final=True)
        await memory.put(ChatMessage(id="request", role="user", content="Forget about the owls."))
        tools = tools_of(memory)
        for message_id in ("rules", "pinned", "request"):
            assert (await tools["forget"](id=f"m:{message_id}")).startswith("Error: nothing has the id")
        assert set(ids(await tools["search_memory"](query="owls kind Ada"))) == {"m:old", "m:pinned"}
        assert await tools["forget"](id="m:old") == "Forgot m:old and what was derived from it."
        assert [message.id for message in await memory.get_all()] == ["rules", "pinned", "answer", "request"]


async def test_a_search_gives_as_many_results_as_it_was_asked_for(tmp_path: Path) -> None:
    async with opened(tmp_path, facts()) as engine:
        memory = engine.session("one")
        tools = tools_of(memory)
        for number in range(6):
            await tools["remember"](text=f"Owl number {number} hoots.")
        await tell(memory, *(f"I saw owl {number}." for number in range(6)))
        for limit, kinds in ((1, "f"), (2, "fm"), (5, "fffmm"), (20, "ffffffmmmmmm")):
            found = ids(await tools["search_memory"](query="owl", limit=limit))
            assert "".join(one[0] for one in found) == kinds


async def test_a_profile_is_found(tmp_path: Path) -> None:
    class Person(BaseModel):
        name: str
        city: str = ""

    llm = ScriptedLLM([json.dumps({"profile": {"name": {"value": "Adelheid", "messages": [1]}}})])
    async with opened(tmp_path, FactExtractionMemoryBlock(name="profile", llm=llm, schema=Person)) as engine:
        memory = engine.session("one")
        await tell(memory, "I am Adelheid.")
        assert "[-] name: Adelheid" in (await tools_of(memory)["search_memory"](query="What is her name?")).replace('"', "")


async def test_searching_messages_reads_the_newest_only(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        memory = engine.session("one")
        texts = ["The owl is old.", *(f"number {n}" for n in range(2_000)), "The fox is new."]
        await memory.put_messages([{"role": "user", "content": text} for text in texts])
        await memory.flush(final=True)
        search = tools_of(memory)["search_memory"]
        assert "fox" in await search(query="Where is the fox?")
        assert await search(query="Where is the owl?") == "Nothing was found."


async def test_without_facts_it_is_a_document(tmp_path: Path) -> None:
    async with opened(tmp_path, recall()) as engine:
        memory = engine.session("one")
        tools = tools_of(memory)
        told = await tools["remember"](text="The spare key lies under the blue flowerpot.")
        assert told.startswith("Remembered as d:")
        (found,) = ids(await tools["search_memory"](query="Where is the spare key?"))
        assert f"Remembered as {found}." == told
        assert await tools["forget"](id=found) == f"Forgot {found}."
        assert await tools["search_memory"](query="Where is the spare key?") == "Nothing was found."


async def test_messages_are_found_and_can_be_forgotten(tmp_path: Path) -> None:
    async with opened(tmp_path, facts(), recall()) as engine:
        memory = engine.session("one")
        await tell(memory, "My cat is called Pixel.", "I work in a bakery.")
        tools = tools_of(memory)
        found = await tools["search_memory"](query="What is the cat called?", limit=1)
        assert "user: My cat is called Pixel." in found
        (message,) = ids(found)
        assert message == f"m:{(await memory.get_all())[0].id}"
        assert await tools["forget"](id=message) == f"Forgot {message} and what was derived from it."
        assert [one.content for one in await memory.get_all()] == ["I work in a bakery."]
        assert "Pixel" not in await tools["search_memory"](query="What is the cat called?")


async def test_without_recall_facts_and_messages_are_searched_by_words(tmp_path: Path) -> None:
    async with opened(tmp_path) as engine:
        memory = engine.session("one")
        await tell(memory, "My cat is called Pixel.", "I work in a bakery.")
        tools = tools_of(memory)
        assert list(tools) == ["search_memory", "forget"], "nothing here can remember a text"
        found = await tools["search_memory"](query="Which cats do I have?")
        assert "My cat is called Pixel." in found and "bakery" not in found
        assert (await tools["forget"](id=ids(found)[0])).startswith("Forgot m:")
        assert len(await memory.get_all()) == 1


async def test_facts_of_several_blocks_are_told_apart(tmp_path: Path) -> None:
    mine = FactExtractionMemoryBlock(name="mine", llm=ScriptedLLM(otherwise=NOTHING))
    ours = FactExtractionMemoryBlock(name="ours", llm=ScriptedLLM(otherwise=NOTHING), scope="user")
    async with opened(tmp_path, mine, ours) as engine:
        memory = engine.session("one", user_id="ada")
        tools = tools_of(memory)
        assert await tools["remember"](text="Ada likes apples.") == "Remembered as mine:f1."
        async with memory.block("ours") as block:
            await block.remember("Ada likes bananas.")
        assert await tools["search_memory"](query="bananas") == "[ours:f1] Ada likes bananas."
        assert (await tools["forget"](id="f1")).startswith("Error: nothing has the id")
        assert await tools["forget"](id="ours:f1") == "Forgot ours:f1."
        assert "apples" in await tools["search_memory"](query="What fruit does Ada like: apples, bananas?")


async def test_a_profile_takes_no_sentences(tmp_path: Path) -> None:
    class Profile(BaseModel):
        age: int = 0

    profile = FactExtractionMemoryBlock(name="profile", llm=ScriptedLLM(otherwise='{"profile": {}}'), schema=Profile)
    async with opened(tmp_path, profile, facts()) as engine:
        assert await tools_of(engine.session("one"))["remember"](text="Ada lives in Turin.") == "Remembered as f1."
    async with opened(tmp_path, profile) as engine:
        assert "remember" not in tools_of(engine.session("two"))


async def test_a_model_is_told_how_long_a_fact_may_be(tmp_path: Path) -> None:
    async with opened(tmp_path, facts()) as engine:
        told = await tools_of(engine.session("one"))["remember"](text="x" * 600)
        assert told.startswith("Error: ") and "500 are allowed" in told


async def test_a_read_only_view_can_only_search(tmp_path: Path) -> None:
    async with opened(tmp_path, facts()) as engine:
        memory = engine.session("one")
        await tools_of(memory)["remember"](text="Ada lives in Turin.")
        tools = tools_of(memory.read_only())
        assert list(tools) == ["search_memory"]
        assert "Turin" in await tools["search_memory"](query="Where does Ada live?")


@pytest.mark.parametrize("scope", ["session", "user"])
async def test_a_model_cannot_reach_another_memory(scope: Any, tmp_path: Path) -> None:
    async with opened(tmp_path, facts(scope=scope), recall(scope=scope)) as engine:
        ada, bob = engine.session("a", user_id="ada"), engine.session("b", user_id="bob")
        await tools_of(ada)["remember"](text="Ada's number is 5551.")
        await tell(ada, "My door code is 4711.")
        mine, theirs = tools_of(ada), tools_of(bob)
        for query in ("What is Ada's number?", "door code"):
            assert await theirs["search_memory"](query=query) == "Nothing was found."
            for found in ids(await mine["search_memory"](query=query)):
                assert (await theirs["forget"](id=found)).startswith("Error: nothing has the id")
        for name in ("user_id", "session_id", "scope", "tenant"):
            told = await theirs["search_memory"].call({"query": "number", name: "ada"})
            assert told.startswith(f"Error: there is no argument {name!r}")
        assert "5551" in await mine["search_memory"](query="Ada's number")


async def test_what_another_session_said_is_shown_but_not_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path, recall(scope="user")) as engine:
        first, second = engine.session("a", user_id="ada"), engine.session("b", user_id="ada")
        await tell(first, "My cat is called Pixel.")
        await tell(second, "Hello again.")
        found = await tools_of(second)["search_memory"](query="What is the cat called?")
        assert found.startswith("[-] ") and "Pixel" in found


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("remember", {}, "the argument 'text' is missing"),
        ("remember", {"text": "  "}, "text is a text that is not blank"),
        ("remember", {"text": 5}, "text is a text that is not blank"),
        ("remember", {"text": "x" * 5_000}, "5,000 characters"),
        ("remember", "{broken", "the arguments are no JSON"),
        ("remember", "[1]", "the arguments are a JSON object"),
        ("remember", None, "the argument 'text' is missing"),
        ("search_memory", {"query": "x", "limit": "many"}, "limit is a whole number"),
        ("search_memory", {"query": "x", "limit": 1e400}, "limit is a whole number"),
        ("search_memory", {"query": "x", "limit": True}, "limit is a whole number"),
        ("forget", {"id": "f99"}, "nothing has the id 'f99'"),
        ("forget", {"id": "d:none"}, "nothing has the id 'd:none'"),
        ("forget", {"id": "m:none"}, "nothing has the id 'm:none'"),
        ("forget", {"id": "m:"}, "nothing has the id 'm:'"),
    ],
)
async def test_errors_come_back_as_text(name: str, arguments: Any, says: str, tmp_path: Path) -> None:
    async with opened(tmp_path, facts(), recall()) as engine:
        told = await tools_of(engine.session("one"))[name].call(arguments)
        assert told.startswith("Error: ") and says in told


async def test_a_failure_inside_tells_the_model_nothing_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(BaseMemoryBlock[str]):
        async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
            return ""

        async def _aput(self, messages: list[ChatMessage]) -> None:
            pass

        async def remember(self, text: str) -> Any:
            raise RuntimeError("password=hunter2")

        async def forget_fact(self, fact: str, *, erase: bool = False) -> bool:
            return False

        async def facts(self) -> Sequence[Any]:
            return []

    async with opened(tmp_path, Broken(name="broken")) as engine:
        told = await tools_of(engine.session("one"))["remember"](text="Hello.")
        assert told == "Error: the memory failed; this was not done."
        assert "hunter2" in caplog.text


@pytest.mark.parametrize("limit", [3, "3", 3.0])
async def test_numbers_may_be_written_as_models_write_them(limit: Any, tmp_path: Path) -> None:
    async with opened(tmp_path, recall()) as engine:
        memory = engine.session("one")
        await tell(memory, *(f"The cat saw mouse number {n}." for n in range(9)))
        found = await tools_of(memory)["search_memory"].call(json.dumps({"query": "cat mouse", "limit": limit}))
        assert len(found.splitlines()) == 3


def test_the_forms_of_providers() -> None:
    memory = Memory.from_defaults("one", memory_blocks=[facts()])
    tool = tools_of(memory)["search_memory"]
    assert tool.parameters["additionalProperties"] is False and tool.parameters["required"] == ["query"]
    assert tool.to_openai() == {
        "type": "function",
        "function": {"name": "search_memory", "description": tool.description, "parameters": tool.parameters},
    }
    assert tool.to_anthropic() == {
        "name": "search_memory",
        "description": tool.description,
        "input_schema": tool.parameters,
    }
