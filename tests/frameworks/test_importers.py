"""Histories that the real libraries wrote, brought over: in order, once, verified, and without a trace in the source."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis.asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from memory_engine import BaseMemoryBlock, ChatMessage, Memory, MemoryEngine
from memory_engine.__main__ import main
from memory_engine.importers.langchain_file import elements
from memory_engine.importers.report import Progress
from memory_engine.importers.source import as_moment
from memory_engine.messages import ToolResultBlock

with warnings.catch_warnings():
    # langchain_community announces its end on import.
    warnings.simplefilter("ignore", DeprecationWarning)
    from langchain_community.chat_message_histories import (
        FileChatMessageHistory,
        RedisChatMessageHistory,
        SQLChatMessageHistory,
    )

from agents import SQLiteSession
from agents.extensions.memory import SQLAlchemySession
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from llama_index.core.base.llms.types import ChatMessage as LlamaMessage
from llama_index.core.base.llms.types import ImageBlock, TextBlock, ThinkingBlock, ToolCallBlock
from llama_index.core.storage.chat_store import SimpleChatStore
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore

LONG = 120
"""Messages of the longest session: more than two of `pages`, and not a whole number of them."""

Kind = str
Check = tuple[str, str, tuple[str, ...], tuple[str, ...]]
"""Of a message: role, text, the ids it calls, the ids it answers."""


def turn(number: int) -> list[Check]:
    """What is said in a turn, in every library: a question, two calls, their results, an answer."""
    first, second = f"call-{number}-a", f"call-{number}-b"
    return [
        ("user", f"Question {number}: 天気は? 🌦", (), ()),
        ("assistant", "", (first, second), ()),
        ("tool", f"sunny in {number}", (), (first,)),
        ("tool", f"rain in {number}", (), (second,)),
        ("assistant", f"Answer {number}.", (), ()),
    ]


def conversation(messages: int) -> list[Check]:
    """So many messages of such turns; whole ones."""
    return [check for number in range(messages // 5) for check in turn(number)]


SESSIONS = {"long": conversation(LONG), "user:用 户/%?#": conversation(5), "short": conversation(10)}


def langchain(check: Check) -> BaseMessage:
    role, content, calls, answers = check
    if role == "user":
        return HumanMessage(content)
    if role == "tool":
        return ToolMessage(content, tool_call_id=answers[0], artifact={"raw": [1, 2]})
    made = [{"name": "weather", "args": {"town": call}, "id": call} for call in calls]
    return AIMessage(content, tool_calls=made, usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3})


def llama(check: Check) -> LlamaMessage:
    role, content, calls, answers = check
    kwargs = {"tool_call_id": answers[0], "name": "weather"} if answers else {}
    made = [ToolCallBlock(tool_call_id=call, tool_name="weather", tool_kwargs={"town": call}) for call in calls]
    return LlamaMessage(role=role, blocks=made or [TextBlock(text=content)], additional_kwargs=kwargs)


def openai_items(check: Check) -> list[Any]:
    role, content, calls, answers = check
    if answers:
        return [{"type": "function_call_output", "call_id": answers[0], "output": content}]
    if not calls:
        return [{"role": role, "content": content}]
    return [
        {"type": "function_call", "call_id": call, "name": "weather", "arguments": json.dumps({"town": call})} for call in calls
    ]


# -- sources made by the real libraries ----------------------------------------------------------------------


class Made:
    """A source: how to name it on the command line, what it must become, and what of it must not change."""

    def __init__(self, kind: Kind, uri: str, expected: dict[str, list[Check]], state: Callable[[], object]) -> None:
        self.kind, self.uri, self.expected, self.state = kind, uri, expected, state


def bytes_of(path: Path) -> Callable[[], object]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return lambda: [(file.name, hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_mtime_ns) for file in files]


def make_langchain_sql(folder: Path) -> Made:
    path = folder / "chat history.db"
    # The turns of all sessions in turns, as applications write them.
    histories = {name: SQLChatMessageHistory(name, connection=f"sqlite:///{path}") for name in SESSIONS}
    for start in range(0, LONG, 40):
        for name, checks in SESSIONS.items():
            if checks[start : start + 40]:
                histories[name].add_messages([langchain(check) for check in checks[start : start + 40]])
    for history in histories.values():
        history.session_maker.remove()
        history.engine.dispose()
    return Made("langchain-sql", f"sqlite:///{path}", SESSIONS, bytes_of(path))


def make_langchain_file(folder: Path) -> Made:
    expected = {"short": SESSIONS["short"], "empty": [], "five": SESSIONS["long"][:5]}
    (folder / "files").mkdir()
    for name, checks in expected.items():
        history = FileChatMessageHistory(str(folder / "files" / f"{name}.json"), encoding="utf-8")
        history.add_messages([langchain(check) for check in checks])
    return Made("langchain-file", str(folder / "files"), expected, bytes_of(folder / "files"))


async def llama_store(path: Path) -> SQLAlchemyChatStore:
    uri = f"sqlite+aiosqlite:///{path}"
    return SQLAlchemyChatStore(table_name="llama_index_memory", async_database_uri=uri)


def make_llama_index(folder: Path) -> Made:
    path = folder / "llama.db"

    async def write() -> None:
        store = await llama_store(path)
        for start in range(0, LONG, 40):
            for name, checks in SESSIONS.items():
                if checks[start : start + 40]:
                    await store.add_messages(name, [llama(check) for check in checks[start : start + 40]])
        await store.archive_oldest_messages("long", 60)
        await store._async_engine.dispose()

    asyncio.run(write())
    return Made("llama-index", f"sqlite+aiosqlite:///{path}", SESSIONS, bytes_of(path))


def persist(store: SimpleChatStore, path: Path) -> None:
    """As `store.persist` does, which fails with pydantic 2.14: "'index_key' is expected to be an integer"."""
    dumped = {key: [message.model_dump(mode="json") for message in messages] for key, messages in store.store.items()}
    path.write_text(json.dumps({"store": dumped, "class_name": store.class_name()}))


def make_llama_json(folder: Path) -> Made:
    store = SimpleChatStore()
    for name, checks in SESSIONS.items():
        store.set_messages(name, [llama(check) for check in checks])
    persist(store, folder / "store.json")
    return Made("llama-index", str(folder / "store.json"), SESSIONS, bytes_of(folder / "store.json"))


def make_openai_sqlite(folder: Path) -> Made:
    path = folder / "agents.db"

    async def write() -> None:
        for name, checks in SESSIONS.items():
            session = SQLiteSession(name, path)
            await session.add_items([item for check in checks for item in openai_items(check)])
            session.close()

    asyncio.run(write())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Made("openai-sessions", str(path), SESSIONS, bytes_of(path))


def make_openai_sqlalchemy(folder: Path) -> Made:
    path = folder / "agents2.db"

    async def write() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        for name, checks in SESSIONS.items():
            session = SQLAlchemySession(name, engine=engine, create_tables=True)
            await session.add_items([item for check in checks for item in openai_items(check)])
        await engine.dispose()

    asyncio.run(write())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Made("openai-sessions", f"sqlite:///{path}", SESSIONS, bytes_of(path))


class RecordingRedis(fakeredis.FakeAsyncRedis):
    """A client that remembers what it was told to do."""

    commands: list[str] = []

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        self.commands.append(args[0])
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


@pytest.fixture
def redis_server(monkeypatch: pytest.MonkeyPatch) -> fakeredis.FakeServer:
    """A server for LangChain's own class and for us."""
    server = fakeredis.FakeServer()

    def client(redis_url: str, **options: Any) -> fakeredis.FakeRedis:
        return fakeredis.FakeRedis(server=server)

    monkeypatch.setattr("langchain_community.chat_message_histories.redis.get_client", client)
    monkeypatch.setattr(RecordingRedis, "commands", [])
    monkeypatch.setattr(redis.asyncio.Redis, "from_url", lambda url: RecordingRedis(server=server))
    return server


def make_redis(server: fakeredis.FakeServer) -> Made:
    for name, checks in SESSIONS.items():
        history = RedisChatMessageHistory(name, url="redis://unused", ttl=3600)
        history.add_messages([langchain(check) for check in checks])
    other = fakeredis.FakeRedis(server=server)
    other.lpush("another:list", "x")
    other.set("message_store:text", "no list")
    state = {key: other.dump(key) for key in other.keys()}  # noqa: SIM118
    return Made("langchain-redis", "redis://unused", SESSIONS, lambda: {key: other.dump(key) for key in state})


MAKERS = {
    "langchain-sql": make_langchain_sql,
    "langchain-file": make_langchain_file,
    "llama-index": make_llama_index,
    "llama-json": make_llama_json,
    "openai-sqlite": make_openai_sqlite,
    "openai-sqlalchemy": make_openai_sqlalchemy,
}


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Path], Made]:
    """Makes a source in a folder: the first time by its library, then as a copy."""
    folders: dict[str, tuple[Path, Made]] = {}

    def make(name: str, folder: Path) -> Made:
        if name not in folders:
            place = tmp_path_factory.mktemp(name)
            folders[name] = place, MAKERS[name](place)
        place, made = folders[name]
        shutil.copytree(place, folder, dirs_exist_ok=True)
        uri = made.uri.replace(str(place), str(folder))
        return Made(made.kind, uri, made.expected, bytes_of(Path(re.sub("^sqlite.*:///", "", uri))))

    return make


Maker = Callable[[str, Path], Made]


@pytest.fixture(autouse=True)
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is read and written in pages; here in small ones."""
    for name in ("run._BATCH", "compare._PAGE", "sql._PAGE", "langchain_redis._PAGE", "langchain_file._PAGE"):
        monkeypatch.setattr(f"memory_engine.importers.{name}", 50)


@pytest.fixture(params=[*MAKERS, "langchain-redis"])
def made(request: pytest.FixtureRequest, tmp_path: Path, redis_server: fakeredis.FakeServer, made_once: Maker) -> Made:
    """A source of each kind."""
    if request.param == "langchain-redis":
        return make_redis(redis_server)
    return made_once(request.param, tmp_path)


@pytest.fixture
def ours(tmp_path: Path) -> str:
    """The address of a database of ours that does not exist yet."""
    return f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"


def run(made: Made, *arguments: str) -> int:
    return main(["import", "--from", made.kind, made.uri, *arguments])


def stored(uri: str, session: str, *, user_id: str | None = None, tenant: str = "") -> list[ChatMessage]:
    async def read() -> list[ChatMessage]:
        async with Memory.from_defaults(session, async_database_uri=uri, user_id=user_id, tenant=tenant) as memory:
            return await memory.get_all()

    return asyncio.run(read())


def check_of(message: ChatMessage) -> Check:
    content = "\n".join([message.content, *(b.content for b in message.blocks if isinstance(b, ToolResultBlock))]).strip("\n")
    return message.role, content, tuple(call.id for call in message.tool_calls), message.tool_results


def assert_there(uri: str, made: Made) -> None:
    for name, checks in made.expected.items():
        messages = stored(uri, name)
        assert [check_of(message) for message in messages] == checks
        assert len({message.id for message in messages}) == len(messages)


# -- every source --------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_come_and_writes_nothing(made: Made, ours: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = made.state()
    assert run(made, "--to", ours) == 0
    shown = capsys.readouterr().out
    total = sum(map(len, made.expected.values()))
    assert f"{len(made.expected)} sessions, {total} messages, 0 that cannot be brought over" in shown
    assert "This was a dry run" in shown and "sha256: " in shown
    assert not Path(ours.removeprefix("sqlite+aiosqlite:///")).exists()
    assert made.state() == before


def test_histories_come_over_whole_and_only_once(made: Made, ours: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = made.state()
    assert run(made, "--to", ours, "--apply") == 0
    assert_there(ours, made)
    first = {name: [message.id for message in stored(ours, name)] for name in made.expected}
    digest = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("sha256"))
    assert run(made, "--to", ours, "--apply") == 0
    shown = capsys.readouterr().out
    filled = sum(bool(checks) for checks in made.expected.values())
    assert f"{filled} of {filled} sessions verified" in shown and f"{filled} sessions were there already" in shown
    assert digest in shown
    assert {name: [message.id for message in stored(ours, name)] for name in made.expected} == first
    assert made.state() == before


def test_what_was_interrupted_goes_on(made: Made, ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Memory.put_messages, []

    async def failing(self: Memory, messages: Sequence[Any]) -> list[ChatMessage]:
        calls.append(len(messages))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return await real(self, messages)

    monkeypatch.setattr(Memory, "put_messages", failing)
    assert run(made, "--to", ours, "--apply") == 130
    monkeypatch.setattr(Memory, "put_messages", real)
    assert sum(len(stored(ours, name)) for name in made.expected) == calls[0] > 0
    assert run(made, "--to", ours, "--apply") == 0
    assert_there(ours, made)


def test_what_was_killed_goes_on(tmp_path: Path, made_once: Maker, ours: str) -> None:
    made = made_once("langchain-sql", tmp_path)
    code = f"""
import os, signal
from memory_engine import Memory
from memory_engine.__main__ import main
import memory_engine.importers.run as run
run._BATCH, real, calls = 50, Memory.put_messages, []

async def put_messages(self, messages):
    calls.append(await real(self, messages))
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

Memory.put_messages = put_messages
main(["import", "--from", {made.kind!r}, {made.uri!r}, "--to", {ours!r}, "--apply"])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == -9
    assert len(stored(ours, "long")) == 100
    assert run(made, "--to", ours, "--apply") == 0
    assert_there(ours, made)


def test_what_comes_later_is_added(made: Made, ours: str, tmp_path: Path) -> None:
    if made.kind != "langchain-sql":
        assert run(made, "--to", ours, "--apply", "--only", "short") == 0
        assert [check_of(message) for message in stored(ours, "short")] == made.expected["short"]
        assert stored(ours, "long") == []
        return
    assert run(made, "--to", ours, "--apply") == 0
    history = SQLChatMessageHistory("short", connection=made.uri)
    history.add_messages([langchain(check) for check in turn(2)])
    history.session_maker.remove()
    history.engine.dispose()
    assert run(made, "--to", ours, "--apply") == 0
    assert [check_of(message) for message in stored(ours, "short")] == conversation(15)


# -- what each library is peculiar about ---------------------------------------------------------------------


def test_times_are_those_of_the_source(tmp_path: Path, made_once: Maker, ours: str) -> None:
    made = made_once("llama-index", tmp_path)
    with closing(sqlite3.connect(tmp_path / "llama.db")) as connection:
        stamps = [
            row[0] for row in connection.execute("SELECT timestamp FROM llama_index_memory WHERE key = 'short' ORDER BY id")
        ]
    assert run(made, "--to", ours, "--apply") == 0
    start = datetime(1970, 1, 1, tzinfo=UTC)
    assert [m.created_at for m in stored(ours, "short")] == [start + timedelta(microseconds=stamp // 1000) for stamp in stamps]

    made = made_once("openai-sqlite", tmp_path)
    with closing(sqlite3.connect(tmp_path / "agents.db")) as connection:
        connection.execute("UPDATE agent_messages SET created_at = '2024-02-03 04:05:06'")
        connection.commit()
    assert run(made, "--to", ours, "--apply", "--session-prefix", "agents/") == 0
    assert {m.created_at for m in stored(ours, "agents/short")} == {datetime(2024, 2, 3, 4, 5, 6, tzinfo=UTC)}


def test_llama_index_is_read_in_its_own_order_and_by_status(
    tmp_path: Path, made_once: Maker, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = made_once("llama-index", tmp_path)
    with closing(sqlite3.connect(tmp_path / "llama.db")) as connection:
        # Another host's clock was behind: LlamaIndex shows its messages first.
        connection.execute("UPDATE llama_index_memory SET timestamp = 5 WHERE key = 'short' AND id % 2 = 0")
        connection.commit()

    async def theirs() -> list[str]:
        store = await llama_store(tmp_path / "llama.db")
        found = await store.get_messages("short", status=None)
        await store._async_engine.dispose()
        return [message.content or "" for message in found]

    assert run(made, "--to", ours, "--apply") == 0
    assert [message.content for message in stored(ours, "short")] == asyncio.run(theirs()) != [c[1] for c in SESSIONS["short"]]
    assert f"{LONG - 60 + 15} active, 60 archived" in capsys.readouterr().out
    assert run(made, "--to", ours, "--apply", "--status", "archived", "--session-prefix", "old/") == 0
    assert [check_of(m) for m in stored(ours, "old/long")] == SESSIONS["long"][:60]


def test_redis_is_only_asked_to_list(redis_server: fakeredis.FakeServer, ours: str) -> None:
    assert run(make_redis(redis_server), "--to", ours, "--apply") == 0
    assert set(RecordingRedis.commands) == {"SCAN", "LRANGE"}


async def make_mem0(path: Path) -> None:
    """As mem0 2.2 writes it: the table of messages with one time for each call, and the events of memories."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT, new_memory TEXT, event TEXT, "
            "created_at DATETIME, updated_at DATETIME, is_deleted INTEGER, actor_id TEXT, role TEXT)"
        )
        connection.execute(
            "CREATE TABLE messages (id TEXT PRIMARY KEY, session_scope TEXT, role TEXT, content TEXT, name TEXT, "
            "created_at DATETIME)"
        )
        for place, (role, content) in enumerate([("user", "I live in Paris."), ("assistant", "Nice."), ("user", "Bye.")]):
            row = (
                f"{9 - place:02}",
                "agent_id=guide&user_id=ada%26co",
                role,
                content,
                None,
                "2026-01-02T03:04:05.000006+00:00",
            )
            connection.execute("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)", row)
        events = [
            ("e9", "m1", None, "Lives in Paris", "ADD", "2026-01-01T00:00:00-08:00", None, 0, None, "user"),
            ("e8", "m2", None, "Likes tea", "ADD", "2026-01-02T00:00:00-08:00", None, 0, "ada", "user"),
            ("e7", "m1", "Lives in Paris", "Lives in Rome", "UPDATE", "2026-01-01T00:00:00-08:00",
             "2026-01-03T00:00:00-08:00", 0, None, "user"),
            ("e6", "m3", None, "A secret", "ADD", "2026-01-04T00:00:00-08:00", None, 0, None, "user"),
            ("e5", "m3", "A secret", None, "DELETE", "2026-01-05T00:00:00-08:00", None, 1, None, "user"),
        ]  # fmt: skip
        connection.executemany("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", events)
        connection.commit()


def test_mem0_gives_its_messages_and_if_asked_its_memories(
    tmp_path: Path, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.db"
    asyncio.run(make_mem0(path))
    made = Made("mem0-history", str(path), {}, bytes_of(path))
    before = made.state()
    scope = "agent_id=guide&user_id=ada%26co"
    assert run(made, "--to", ours, "--apply", "--user-id", "{user_id}") == 0
    # A third one was deleted there.
    assert "2 memories are left out" in capsys.readouterr().out
    messages = stored(ours, scope, user_id="ada&co")
    assert [message.content for message in messages] == ["I live in Paris.", "Nice.", "Bye."]
    assert messages[0].created_at == datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)

    assert run(made, "--to", ours, "--apply", "--only", "facts", "--memories", "facts", "--user-id", "ada") == 0
    facts = stored(ours, "facts", user_id="ada")
    # What was deleted there does not come back here.
    assert [fact.content for fact in facts] == ["Lives in Paris", "Likes tea", "Lives in Rome"]
    assert facts[2].created_at == datetime(2026, 1, 3, 8, tzinfo=UTC)
    assert facts[1].metadata["mem0"] == {"memory_id": "m2", "event": "ADD", "actor_id": "ada", "role": "user"}
    assert made.state() == before


def test_langchain_keeps_what_has_no_field_here(tmp_path: Path, ours: str) -> None:
    path = tmp_path / "one.json"
    history = FileChatMessageHistory(str(path), encoding="utf-8")
    history.add_messages(
        [
            SystemMessage("Be brief."),
            HumanMessage([{"type": "text", "text": "Look"},
                          {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]),
            AIMessage([{"type": "thinking", "thinking": "Hm", "signature": "s"}, {"type": "text", "text": "I see."}],
                      id="run-1"),
            AIMessage("", additional_kwargs={"function_call": {"name": "look", "arguments": "{}"}}),
            ToolMessage("it broke", tool_call_id="", status="error"),
        ]
    )  # fmt: skip
    assert main(["import", "--from", "langchain-file", str(path), "--to", ours, "--apply", "--unpin-system"]) == 0
    system, user, thought, call, result = stored(ours, "one")
    assert system.role == "system" and not system.pinned
    assert [block.type for block in user.blocks] == ["text", "image"] and user.blocks[1].data == "aGk="
    assert [block.type for block in thought.blocks] == ["thinking", "text"] and thought.blocks[0].signature == "s"
    assert thought.metadata["langchain"]["id"] == "run-1"
    assert call.tool_calls[0].name == "look"
    assert result.tool_results == (call.tool_calls[0].id,) and result.blocks[0].is_error


def test_llama_index_keeps_what_has_no_field_here(tmp_path: Path, ours: str) -> None:
    store = SimpleChatStore()
    messages = [
        LlamaMessage(role="user", blocks=[TextBlock(text="Look"), ImageBlock(image=b"hi", image_mimetype="image/png")]),
        LlamaMessage(
            role="model",
            blocks=[ThinkingBlock(content="Hm", additional_information={"signature": "s"}), TextBlock(text="I see.")],
            additional_kwargs={"usage": 3},
        ),
        LlamaMessage(
            role="assistant",
            content="",
            additional_kwargs={"tool_calls": [{"id": "c1", "function": {"name": "look", "arguments": '{"a": 1}'}}]},
        ),
        LlamaMessage(role="tool", content="done", additional_kwargs={"tool_call_id": "c1"}),
    ]
    store.set_messages("one", messages)
    persist(store, tmp_path / "store.json")
    assert main(["import", "--from", "llama-index", str(tmp_path / "store.json"), "--to", ours, "--apply"]) == 0
    user, thought, call, result = stored(ours, "one")
    assert [block.type for block in user.blocks] == ["text", "image"] and user.blocks[1].data == "aGk="
    assert thought.role == "assistant" and thought.blocks[0].signature == "s"
    assert thought.metadata["llama_index"]["additional_kwargs"] == {"usage": 3}
    assert call.tool_calls[0].arguments == '{"a": 1}'
    assert result.tool_results == ("c1",)


def test_openai_items_of_other_kinds(tmp_path: Path, ours: str) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Look"},
                                     {"type": "input_image", "image_url": "https://x.test/a.png"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm"}], "encrypted_content": "e"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I see.", "annotations": [{"type": "url_citation", "url": "u"}]}]},
        {"type": "custom_tool_call", "call_id": "c1", "name": "sql", "input": "SELECT 1"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "1"}]},
        {"type": "image_generation_call", "id": "ig_1", "result": None, "status": "failed"},
    ]  # fmt: skip

    async def write() -> None:
        session = SQLiteSession("one", tmp_path / "a.db")
        await session.add_items(items)
        session.close()

    asyncio.run(write())
    assert main(["import", "--from", "openai-sessions", str(tmp_path / "a.db"), "--to", ours, "--apply"]) == 0
    user, said, result, last = stored(ours, "one")
    assert user.content == "Look" and user.blocks[1].url == "https://x.test/a.png"
    # What one response said, looked up and called is one message.
    assert [call.name for call in said.tool_calls] == ["sql"] and "I see." in said.content
    assert check_of(result) == ("tool", "1", (), ("c1",)) and last.role == "assistant"


# -- when something is wrong ---------------------------------------------------------------------------------


def damaged(folder: Path, made_once: Maker) -> Made:
    made = made_once("langchain-sql", folder)
    with closing(sqlite3.connect(folder / "chat history.db")) as connection:
        broken = "SELECT id FROM message_store WHERE session_id = 'short' LIMIT 1 OFFSET 3"
        connection.execute(f'UPDATE message_store SET message = \'{{"type": "ai"\' WHERE id IN ({broken})')
        connection.execute('INSERT INTO message_store (session_id, message) VALUES (\'short\', \'{"type": "x", "data": {}}\')')
        connection.commit()
    return made


def test_what_cannot_be_brought_over_is_named_first(
    tmp_path: Path, made_once: Maker, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = damaged(tmp_path, made_once)
    assert run(made, "--to", ours, "--apply") == 1
    shown = capsys.readouterr().out
    assert "it is no JSON" in shown and "its type 'x' is none of LangChain's" in shown
    # Of a session with gaps nothing is written, the others come over.
    assert "are left out" in shown and stored(ours, "short") == []
    assert [check_of(message) for message in stored(ours, "long")] == SESSIONS["long"]
    assert run(made, "--to", ours, "--apply", "--skip") == 0
    left = stored(ours, "short")
    assert 0 < len(left) < 10 and [check_of(m) for m in left] == [
        c for c in SESSIONS["short"] if c in [check_of(m) for m in left]
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("DELETE FROM memory_messages WHERE seq = 3", "it is not there"),
        ("UPDATE memory_messages SET data = replace(data, 'sunny', 'foggy') WHERE seq = 2", "other content"),
        ("UPDATE memory_messages SET seq = seq + 100 WHERE seq = 4", "not in its place"),
    ],
)
def test_a_difference_fails_the_verification(
    tmp_path: Path,
    made_once: Maker,
    ours: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    told: str,
) -> None:
    made = made_once("langchain-sql", tmp_path)
    real = MemoryEngine.session
    touched = []

    def tampering(self: MemoryEngine, session_id: str, **options: Any) -> Memory:
        memory = real(self, session_id, **options)
        put = memory.put_messages

        async def put_then_change(messages: Sequence[Any]) -> list[ChatMessage]:
            done = await put(messages)
            with closing(sqlite3.connect(tmp_path / "memory.db")) as connection:
                touched.append(connection.execute(change).rowcount)
                connection.commit()
            return done

        monkeypatch.setattr(memory, "put_messages", put_then_change)
        return memory

    monkeypatch.setattr(MemoryEngine, "session", tampering)
    assert run(made, "--to", ours, "--apply", "--only", "short") == 1
    shown = capsys.readouterr().out
    assert touched == [1] and "different" in shown and told in shown


def test_a_source_that_was_changed_is_not_mixed_in(
    tmp_path: Path, made_once: Maker, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = made_once("langchain-sql", tmp_path)
    assert run(made, "--to", ours, "--apply") == 0
    before = stored(ours, "short")
    with closing(sqlite3.connect(tmp_path / "chat history.db")) as connection:
        connection.execute("UPDATE message_store SET message = replace(message, 'sunny', 'foggy') WHERE session_id = 'short'")
        connection.commit()
    assert run(made, "--to", ours, "--apply") == 1
    assert "the source was changed" in capsys.readouterr().out
    assert stored(ours, "short") == before


def test_a_session_that_is_in_use_is_left_alone(
    tmp_path: Path, made_once: Maker, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = made_once("langchain-sql", tmp_path)

    async def say(content: str) -> None:
        async with Memory.from_defaults("short", async_database_uri=ours) as memory:
            await memory.put({"role": "user", "content": content})

    asyncio.run(say("I am new here."))
    assert run(made, "--to", ours, "--apply") == 1
    assert "--append" in capsys.readouterr().out
    assert [message.content for message in stored(ours, "short")] == ["I am new here."]
    assert [check_of(m) for m in stored(ours, "long")] == SESSIONS["long"]
    assert run(made, "--to", ours, "--apply", "--append") == 0
    # Going on here after an import is nothing that a repetition complains of.
    asyncio.run(say("And I stay."))
    assert run(made, "--to", ours, "--apply") == 0
    assert len(stored(ours, "short")) == 12


def test_users_and_tenants(tmp_path: Path, made_once: Maker, ours: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = made_once("langchain-sql", tmp_path)
    into = ("--to", ours, "--apply", "--tenant", "t", "--user-id", "u-{name}")
    assert run(made, *into, "--session-pattern", "user:(?P<name>.+)") == 1
    assert "does not match --session-pattern" in capsys.readouterr().out
    only = ("--only", "user:用 户/%?#")
    assert run(made, *into, "--session-pattern", "user:(?P<name>.+)", *only) == 0
    assert len(stored(ours, "user:用 户/%?#", user_id="u-用 户/%?#", tenant="t")) == 5
    assert stored(ours, "user:用 户/%?#") == []
    # It is somebody else's now.
    assert run(made, "--to", ours, "--apply", "--tenant", "t", "--user-id", "x", *only) == 1
    assert "belongs to another user" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--from", "langchain-sql", "{tmp}/none.db"], "There is no file"),
        (["--from", "langchain-sql", "{tmp}/text.json"], "cannot be read"),
        (["--from", "langchain-sql", "{tmp}/empty.db"], "no table 'message_store'"),
        (["--from", "langchain-file", "{tmp}/none"], "There is no file"),
        (["--from", "llama-index", "{tmp}/text.json"], "cannot be read"),
        (["--from", "llama-index", "{tmp}/empty.db", "--encoding", "x"], "has no use for --encoding"),
        (["--from", "mem0-history", "{tmp}/empty.db"], "no table 'history'"),
        (["--from", "langchain-redis", "{tmp}/empty.db"], "redis://"),
        (["--from", "langchain-sql", "sqlite:///{tmp}/empty.db", "--apply"], "--apply needs --to"),
        (["--from", "langchain-sql", "{tmp}/empty.db", "--session-pattern", "("], "no regular expression"),
    ],
)
def test_wrong_sources_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    (tmp_path / "text.json").write_text("this is no database, and no JSON either " * 50)
    sqlite3.connect(tmp_path / "empty.db").close()
    assert main(["import", *[argument.replace("{tmp}", str(tmp_path)) for argument in arguments]]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("end", ["", ',{"type"', "x", ',{"type": "human", "data": {"content": "b"}}'])
def test_a_cut_off_file_gives_what_is_before_the_cut(tmp_path: Path, ours: str, end: str) -> None:
    path = tmp_path / "cut.json"
    path.write_text('[{"type": "human", "data": {"content": "a"}}' + end)
    assert main(["import", "--from", "langchain-file", str(path), "--to", ours, "--apply"]) == 1
    assert main(["import", "--from", "langchain-file", str(path), "--to", ours, "--apply", "--skip"]) == 0
    assert [message.content for message in stored(ours, "cut")] == (["a", "b"] if "b" in end else ["a"])


@pytest.mark.parametrize("size", [1, 65_530, 65_536, 300_000])
def test_a_list_is_read_piece_by_piece(size: int) -> None:
    values = [{"content": "ü" * size, "place": place} for place in range(5)]
    for layout in ({}, {"indent": 2}, {"separators": (",", ":")}):
        assert list(elements(StringIO(json.dumps(values, **layout)))) == values


# -- what is learnt of it, and what it costs -----------------------------------------------------------------


class Heard(BaseMemoryBlock[str]):
    """Counts what it is given."""

    name: str = "heard"
    messages: list[str] = []

    async def _aget(self, messages: Sequence[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return f"{len(self.messages)} messages"

    async def _aput(self, messages: Sequence[ChatMessage]) -> None:
        self.messages = [*self.messages, *[message.content for message in messages]]


@pytest.mark.parametrize("arguments", [(), ("--flush",)])
def test_blocks_that_come_later_learn_from_it(tmp_path: Path, made_once: Maker, ours: str, arguments: tuple[str, ...]) -> None:
    made = made_once("langchain-sql", tmp_path)
    assert run(made, "--to", ours, "--apply", "--token-limit", "1000", *arguments) == 0

    async def learn() -> None:
        settings = {"token_limit": 1000, "memory_blocks": [Heard()]}
        async with Memory.from_defaults("long", async_database_uri=ours, **settings) as memory:
            await memory.drain(60)
            archived = [message.content for message in await memory.get_all(archived=True)]
            assert (await memory.block("heard")).messages == archived
            assert len(archived) == LONG if arguments else LONG / 2 < len(archived) < LONG
            # What was not archived is what an agent goes on with.
            assert (len(await memory.get("And now?")) > 1) == (not arguments)

    asyncio.run(learn())


def test_nothing_of_the_other_libraries_is_imported(tmp_path: Path, made_once: Maker, ours: str) -> None:
    made = made_once("langchain-sql", tmp_path)
    code = (
        "import sys; from memory_engine.__main__ import main; "
        f"status = main(['import', '--from', {made.kind!r}, {made.uri!r}, '--to', {ours!r}, '--apply']); "
        "found = [name for name in sys.modules if name.split('.')[0] in "
        "('langchain', 'langchain_core', 'langchain_community', 'llama_index', 'agents', 'openai', 'mem0', 'redis')]; "
        "sys.exit(status or len(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "sessions verified" in done.stdout


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_on_a_terminal_and_told_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr("memory_engine.importers.report.time.monotonic", lambda: next(clock))
    for stream in (Terminal(), StringIO()):
        with Progress("importing", 40, stream=stream) as progress:
            for _ in range(4):
                progress.step(10)
        shown = stream.getvalue()
        assert "20 of 40 messages, 50%" in shown
        assert ("\r" in shown) == stream.isatty()


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("2026-01-02 03:04:05", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)),
        ("2026-01-02T03:04:05.5+01:00", datetime(2026, 1, 2, 2, 4, 5, 500_000, tzinfo=UTC)),
        (1_700_000_000, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        (1_700_000_000_000, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        (1_700_000_000_000_000_999, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("yesterday", None),
        (None, None),
        (True, None),
    ],
)
def test_times_in_any_form(value: object, moment: datetime | None) -> None:
    assert as_moment(value) == moment


async def test_a_postgresql_source_is_read_in_a_read_only_transaction(postgres_uri: str, tmp_path: Path) -> None:
    engine = create_async_engine(postgres_uri)
    async with engine.begin() as connection:
        await connection.execute(text("SET TIME ZONE 'Asia/Tokyo'"))
        await connection.execute(
            text(
                "CREATE TABLE agent_messages "
                "(id SERIAL PRIMARY KEY, session_id VARCHAR, message_data TEXT, created_at TIMESTAMP)"
            )
        )
        for check in conversation(20):
            for item in openai_items(check):
                row = {"data": json.dumps(item), "time": datetime(2026, 1, 2, 3, 4, 5)}
                await connection.execute(
                    text("INSERT INTO agent_messages (session_id, message_data, created_at) VALUES ('s', :data, :time)"), row
                )
    ours = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    address = engine.url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    assert await asyncio.to_thread(main, ["import", "--from", "openai-sessions", address, "--to", ours, "--apply"]) == 0
    messages = await asyncio.to_thread(stored, ours, "s")
    assert [check_of(message) for message in messages] == conversation(20)

    from memory_engine.importers.sql import SqlRows

    rows = SqlRows(address, "agent_messages")
    connection = await rows._connected()
    with pytest.raises(Exception, match="read-only transaction"):
        await connection.execute(text("DELETE FROM agent_messages"))
    await rows.aclose()
    await engine.dispose()


def test_a_sqlite_source_cannot_be_written(tmp_path: Path, made_once: Maker) -> None:
    made = made_once("langchain-sql", tmp_path)

    async def write() -> None:
        from memory_engine.importers.sql import SqlRows

        rows = SqlRows(made.uri, "message_store")
        connection = await rows._connected()
        with pytest.raises(Exception, match="readonly database"):
            await connection.execute(text("DELETE FROM message_store"))
        await rows.aclose()

    asyncio.run(write())


def numbers_in(folder: Path, count: int) -> Iterator[tuple[str, str]]:
    row = json.dumps({"type": "human", "data": {"content": "x" * 200 + "%d", "type": "human"}})
    path = folder / "many.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE message_store (id INTEGER PRIMARY KEY, session_id TEXT, message TEXT)")
        rows = ((f"s{number % 3}", row % number) for number in range(count))
        connection.executemany("INSERT INTO message_store (session_id, message) VALUES (?, ?)", rows)
        connection.commit()
    yield "langchain-sql", str(path)
    path = folder / "many.json"
    with path.open("w") as file:
        file.write("[")
        for number in range(count):
            file.write((", " if number else "") + row % number)
        file.write("]")
    yield "langchain-file", str(path)


def peak_of(arguments: list[str]) -> int:
    """The most memory, in kB, that a process of its own takes for an import."""
    code = (
        "import sys; from memory_engine.__main__ import main; status = main(sys.argv[1:]); "
        "lines = open('/proc/self/status').read().splitlines(); "
        "print(status, next(line.split()[1] for line in lines if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code, "import", *arguments], capture_output=True, text=True, timeout=550)
    status, peak = map(int, done.stdout.splitlines()[-1].split())
    assert status == 0, done.stdout + done.stderr
    return peak


@pytest.mark.soak
@pytest.mark.timeout(1_800)
def test_memory_does_not_grow_with_the_history(tmp_path: Path) -> None:
    peaks: dict[str, list[int]] = {"langchain-sql": [], "langchain-file": []}
    for count in (2_000, 100_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for kind, path in numbers_in(folder, count):
            uri = f"sqlite+aiosqlite:///{folder / kind}-ours.db"
            started = time.monotonic()
            peaks[kind].append(peak_of(["--from", kind, path, "--to", uri, "--apply"]))
            print(kind, count, peaks[kind][-1], f"{time.monotonic() - started:.1f} s")
    for few, many in peaks.values():
        assert many - few < 60_000, "100,000 messages are 30 MB of JSON, and several times that as objects"
