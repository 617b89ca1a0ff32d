"""Nothing leaks (P7): one definition serves many sessions, users and tenants, and nothing crosses over between them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from chaos_blocks import PATIENCE, InFields, InRecords, Outside, Recorder, Shelf, small_engine, words
from chaos_database import BOTH, BOTH_IN_SOAK, Database, audit, rows
from pydantic import Field

from memory_engine import BaseMemoryBlock, ChatMessage, Memory, TextBlock
from memory_engine.errors import SessionOwnerError
from memory_engine.messages import without_memory

pytestmark = pytest.mark.asyncio

SCOPES = ("session", "user", "global")


def definitions() -> list[Recorder]:
    """Each way to keep state in each scope; outside they all share one store."""
    shelf = Shelf()
    blocks: list[Recorder] = []
    for scope in SCOPES:
        blocks.append(InFields(name=f"fields_of_{scope}", scope=scope, priority=1))
        blocks.append(InRecords(name=f"records_of_{scope}", scope=scope, priority=1))
        blocks.append(Outside(name=f"outside_of_{scope}", scope=scope, priority=1, shelf=shelf))
    return blocks


def marker(tenant: str, session: str, number: int) -> str:
    """A word that no other session says, and none is a part of another."""
    return f"={tenant}~{session}~{number}x"


async def talk(memory: Memory, count: int) -> None:
    """Say a few marked words, reading in between."""
    for number in range(count):
        said = marker(memory.tenant, memory.session_id, number)
        await memory.put(ChatMessage(role="user", content=f"I say {said} and some more words so that it is flushed"))
        await memory.put(ChatMessage(role="assistant", content="as you like it"))
        if number % 3 == 1:
            await memory.get(said)


def said_in(memory: Memory, text: str) -> bool:
    """Whether a text comes from that session."""
    return f"{marker(memory.tenant, memory.session_id, 0)[:-2]}" in text


async def check(memory: Memory, everyone: Sequence[Memory]) -> None:
    """What each block knows here comes from the sessions it may know, from all of them, and from no other."""
    for scope in SCOPES:
        allowed = [
            other
            for other in everyone
            if other.tenant == memory.tenant
            and (scope == "global" or other.user_id == memory.user_id)
            and (scope != "session" or other.session_id == memory.session_id)
        ]
        for kind in ("fields", "records", "outside"):
            block = await memory.block(f"{kind}_of_{scope}")
            lines = [line for call in await block.absorbed() for line in call]
            user_lines = [line for line in lines if "I say" in line]
            for line in user_lines:
                assert any(said_in(other, line) for other in allowed), f"{block.name} of {memory!r} knows {line!r}"
            for other in allowed:
                assert any(said_in(other, line) for line in user_lines), f"{block.name} of {memory!r} lacks {other!r}"
            assert len(lines) == len(set(lines)), f"{block.name} of {memory!r} repeats itself"


@pytest.mark.parametrize("database_kind", BOTH_IN_SOAK, indirect=True)
async def test_one_definition_serves_a_hundred_sessions_of_ten_users(database: Database, soak: bool) -> None:
    """Session-, user- and tenant-wide blocks, in fields, in records and outside; two tenants with the same ids."""
    sessions, users, count = (100, 10, 12) if soak else (10, 3, 6)
    blocks = definitions()
    before = [block.model_dump() for block in blocks]
    async with small_engine(database, blocks) as engine:
        everyone = [
            engine.session(f"s{number}", user_id=f"u{number % users}", tenant=tenant)
            for number in range(sessions)
            for tenant in ("", "acme")
        ]
        random.Random(1).shuffle(everyone)
        await asyncio.gather(*(talk(memory, count) for memory in everyone))
        for memory in everyone:
            await memory.flush()
        await engine.drain(PATIENCE * 5)
        audit(database)
        for memory in everyone:
            await check(memory, everyone)
            text = "\n".join(message.content for message in (await memory.get())[1:])
            for other in everyone:
                assert other is memory or not said_in(other, text), f"history of {memory!r} shows {other!r}"
        assert [block.model_dump() for block in blocks] == before, "a definition was changed"


@pytest.mark.parametrize("database_kind", BOTH_IN_SOAK, indirect=True)
async def test_what_is_shown_comes_from_the_scopes_it_may_come_from(database: Database) -> None:
    """The finished messages, with sections, say nothing of another user or session."""
    async with small_engine(database, definitions(), token_limit=3_000, chat_history_token_ratio=0.05) as engine:
        mine = [engine.session(f"m{n}", user_id="me") for n in range(2)]
        theirs = [engine.session(f"t{n}", user_id="they") for n in range(2)]
        for memory in (*mine, *theirs):
            await talk(memory, 8)
        await engine.drain(PATIENCE)
        for memory in (*mine, *theirs):
            shown = (await memory.get("anything"))[0].blocks[-1]
            assert isinstance(shown, TextBlock) and shown.origin == "memory"
            sections = {name: shown.text.split(f"<{name}>")[-1].split(f"</{name}>")[0] for name in names(shown.text)}
            for name, text in sections.items():
                scope = name.rsplit("_", 1)[1]
                for other in (*mine, *theirs):
                    may = scope == "global" or other.user_id == memory.user_id
                    may = may and (scope != "session" or other is memory)
                    assert may or not said_in(other, text), f"{name} of {memory!r} shows {other!r}"


def names(text: str) -> list[str]:
    """The sections in a rendered text."""
    return [block.name for block in definitions() if f"<{block.name}>" in text]


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
async def test_ids_that_look_alike_are_different(database: Database, soak: bool) -> None:
    """Ids are compared exactly, and no two of them add up to the same key."""
    like = ["a", "A", "a ", " a", "a:b", "a%", "a_", "á", "a\u0301", "１", "1", "1:a", "b:c", "a'--", '"a"', "a\\", "s:0::1:a"]
    pairs = [(tenant, user) for tenant in ("", *like) for user in like]
    chosen = random.Random(3).sample(pairs, 40 if soak else 8)
    chosen += [("a", "b:c"), ("a:b", "c"), ("", "1:a"), ("1", "a")]
    async with small_engine(database, definitions()) as engine:
        everyone = [engine.session(user, user_id=user, tenant=tenant) for tenant, user in dict.fromkeys(chosen)]
        for memory in everyone:
            await memory.put({"role": "user", "content": f"I say {marker(memory.tenant, memory.session_id, 0)}"})
            await memory.flush(final=True)
        await engine.drain(PATIENCE * 2)
        assert rows(database, "SELECT COUNT(*) FROM memory_sessions") == [(len(everyone),)]
        for memory in everyone:
            for scope in ("session", "user"):
                for kind in ("fields", "records", "outside"):
                    calls = await (await memory.block(f"{kind}_of_{scope}")).absorbed()
                    said = [line.rsplit("I say ", 1)[1] for call in calls for line in call]
                    assert said == [marker(memory.tenant, memory.session_id, 0)]


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
async def test_a_session_opens_for_its_own_user_only(database: Database) -> None:
    """Also with a handle that was there before, and for every way to touch it."""
    async with small_engine(database, [InFields(priority=1)]) as engine:
        await engine.session("s", user_id="ada").put({"role": "user", "content": "secret"})
        for user in ("bob", None, "Ada"):
            other = engine.session("s", user_id=user)
            for touch in (
                other.get,
                other.get_all,
                other.flush,
                other.drain,
                other.pop,
                other.reset,
                other.redeliver,
                lambda other=other: other.put({"role": "user", "content": "I am not Ada"}),
                lambda other=other: other.set([]),
                lambda other=other: other.delete(["x"]),
                lambda other=other: other.rewind("x"),
                lambda other=other: _bound(other, "InFields"),
            ):
                with pytest.raises(SessionOwnerError):
                    await touch()
        assert [m.content for m in await engine.session("s", user_id="ada").get_all()] == ["secret"]


async def _bound(memory: Memory, name: str) -> object:
    return await memory.block(name)


# -- no memory of memory -----------------------------------------------------------------------------------------


class Says(BaseMemoryBlock[str]):
    """Always has something to say, and keeps what it is told."""

    heard: list[str] = []

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return f"REMEMBERED {self.name}"

    async def _aput(self, messages: list[ChatMessage]) -> None:
        self.heard = [*self.heard, *(message.model_dump_json() for message in messages)]


class Items(Says):
    """Says it as content blocks."""

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> Any:
        return [TextBlock(text="REMEMBERED item", tag="fact", value=1.0), TextBlock(text="REMEMBERED too")]


class Messages(Says):
    """Says it as messages."""

    length: int = Field(default=1, exclude=True)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> Any:
        return [
            ChatMessage(role="user", content="REMEMBERED question"),
            ChatMessage(role="assistant", content="REMEMBERED answer"),
        ]


def conversation() -> list[ChatMessage]:
    """A system message, an old turn, and a current turn with a long tool result."""
    call = {"type": "tool_call", "id": "call", "name": "look", "arguments": {}}
    return [
        ChatMessage(role="system", content="be kind"),
        ChatMessage(role="user", content="first question"),
        ChatMessage(role="assistant", content="first answer"),
        ChatMessage(role="user", content="second question"),
        ChatMessage(role="assistant", content=[call]),
        ChatMessage(role="tool", tool_call_id="call", content="found " + "stone " * 120),
        ChatMessage(role="assistant", content="second answer"),
    ]


def told(message: ChatMessage) -> str:
    """All of a message, to search in."""
    return message.model_dump_json()


@pytest.mark.parametrize("insert_method", ["system", "user", "split"])
@pytest.mark.parametrize("kind", [Says, Items, Messages])
@pytest.mark.parametrize("how", ["put", "put one by one", "set"])
@pytest.mark.parametrize("system", [True, False])
async def test_feeding_a_context_back_adds_no_memory_of_memory(
    database: Path, insert_method: str, kind: type[Says], how: str, system: bool
) -> None:
    """What memory inserted is recognised, a shortened copy stands for the stored message, and blocks hear none of it."""
    blocks: list[Any] = [
        kind(name="asks", priority=0),
        kind(name="stays", priority=0, depends_on_query=False),
    ]
    engine = small_engine(database, blocks, token_limit=600, insert_method=insert_method, max_tool_result_tokens=40)
    async with engine:
        memory = engine.session("s")
        stored = await memory.put_messages(conversation()[0 if system else 1 :])
        context = (await memory.context("a query that is not kept")).messages
        assert any("REMEMBERED" in told(message) for message in context)
        assert any(message.partial for message in context), "nothing was shortened: the test says nothing"
        for _ in range(3):
            if how == "put":
                await memory.put_messages(context)
            elif how == "put one by one":
                for message in context:
                    await memory.put(message)
            else:
                await memory.set(context)
            assert await memory.get_all() == stored
            again = (await memory.context("a query that is not kept")).messages
            assert again == context
        await memory.flush(final=True)
        await memory.drain(PATIENCE)
        for name in ("asks", "stays"):
            heard = (await memory.block(name)).heard
            assert len(heard) == len([m for m in stored if m.role != "system"])
            assert not any("REMEMBERED" in line or "left out" in line for line in heard)
        assert not [data for (data,) in rows(database, "SELECT data FROM memory_messages") if "REMEMBERED" in data]


@pytest.mark.parametrize("insert_method", ["system", "user", "split"])
async def test_an_agent_that_always_feeds_back_whole_contexts_grows_no_memory(database: Path, insert_method: str) -> None:
    """As agents do that hold the list themselves: get, answer, set the whole list, over flushes."""
    async with small_engine(database, [Says(name="asks"), Messages(name="old")], insert_method=insert_method) as engine:
        memory = engine.session("s")
        for turn in range(40):
            await memory.put({"role": "user", "content": f"question {turn} with a good number of words to say"})
            context = await memory.get(f"question {turn}")
            assert sum(words(message.content) + 4 for message in context) <= 300
            answer = ChatMessage(role="assistant", content=f"answer {turn} with as many words as the question had")
            await memory.put_messages([*context, answer])
        everything = [message.content for message in await memory.get_all()]
        expected = []
        for turn in range(40):
            expected.append(f"question {turn} with a good number of words to say")
            expected.append(f"answer {turn} with as many words as the question had")
        assert everything == expected
        await memory.flush(final=True)
        await memory.drain(PATIENCE)
        heard = (await memory.block("asks")).heard
        assert len(heard) == 80 and not any("REMEMBERED" in line for line in heard)


async def test_what_one_memory_inserted_another_does_not_keep(database: Path, tmp_path: Path) -> None:
    """A context handed to another agent's memory, or to another engine, leaves what was inserted behind."""
    async with (
        small_engine(database, [Says(name="asks")], insert_method="user") as engine,
        small_engine(tmp_path / "other.db", [Says(name="asks")]) as other,
    ):
        await engine.session("s").put({"role": "user", "content": "hello"})
        context = await engine.session("s").get()
        for memory in (engine.session("t"), other.session("s")):
            await memory.put_messages(context)
            assert [message.content for message in await memory.get_all()] == ["hello"]


async def test_marks_survive_json(database: Path) -> None:
    """A context that was sent through JSON, as between processes, is still recognised."""
    async with small_engine(database, [Says(name="asks"), Messages(name="old")], insert_method="user") as engine:
        memory = engine.session("s")
        stored = await memory.put_messages(conversation()[:3])
        context = [ChatMessage.model_validate_json(message.model_dump_json()) for message in await memory.get()]
        await memory.put_messages(context)
        assert await memory.get_all() == stored
        assert all(without_memory(m) is None or "REMEMBERED" not in told(without_memory(m)) for m in context)  # type: ignore[arg-type]
