"""What was imported comes back through our adapter for the library that wrote it as that library itself reads it."""

from __future__ import annotations

import asyncio
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from agents import SQLiteSession
from agents.extensions.memory import SQLAlchemySession
from langchain_core.messages import AIMessage, BaseMessage, FunctionMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages import ChatMessage as LangChainChatMessage
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.base.llms.types import ChatMessage as LlamaMessage
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from sqlalchemy.ext.asyncio import create_async_engine

from memory_engine import ChatMessage, Memory
from memory_engine.__main__ import main
from memory_engine.integrations.langchain import to_langchain
from memory_engine.integrations.llama_index import to_llama_index
from memory_engine.integrations.openai_agents import OpenAIAgentsSession

with warnings.catch_warnings():
    # langchain_community announces its end on import.
    warnings.simplefilter("ignore", DeprecationWarning)
    from langchain_community.chat_message_histories import FileChatMessageHistory, SQLChatMessageHistory


@pytest.fixture
def ours(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"


def bring(kind: str, source: object, ours: str) -> None:
    assert main(["import", "--from", kind, str(source), "--to", ours, "--apply"]) == 0


def stored(ours: str, session: str) -> list[ChatMessage]:
    async def read() -> list[ChatMessage]:
        async with Memory.from_defaults(session, async_database_uri=ours) as memory:
            return await memory.get_all()

    return asyncio.run(read())


# -- the Agents SDK ------------------------------------------------------------------------------------------

ITEMS: list[Any] = [
    {"role": "user", "content": "Hello ü"},
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "secret"},
    {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": '{"a":1}', "status": "completed"},
    {"type": "function_call", "id": "fc_2", "call_id": "d", "name": "f", "arguments": '{"a": 2}', "status": "completed"},
    {"type": "function_call_output", "call_id": "c", "output": "first"},
    {"type": "function_call_output", "call_id": "d", "output": "second"},
    {"type": "reasoning", "id": "rs_2",
     "summary": [{"type": "summary_text", "text": "Hm"}, {"type": "summary_text", "text": "so"}]},
    {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
    {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
     "content": [{"type": "output_text", "text": "ok", "annotations": [{"type": "url_citation", "url": "u"}], "logprobs": []},
                 {"type": "refusal", "refusal": "no"}]},
    {"role": "user", "content": [{"type": "input_text", "text": "Look"},
                                 {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "high"}]},
    {"type": "custom_tool_call", "id": "ct_1", "call_id": "e", "name": "sql", "input": "SELECT 1"},
    {"type": "custom_tool_call_output", "call_id": "e", "output": [{"type": "input_text", "text": "1"}]},
    {"type": "computer_call", "id": "cc_1", "call_id": "g", "status": "completed", "action": {"type": "click", "x": 1, "y": 2},
     "pending_safety_checks": []},
    {"type": "computer_call_output", "call_id": "g",
     "output": {"type": "computer_screenshot", "image_url": "data:image/png;base64,aGk="}},
    {"type": "image_generation_call", "id": "ig_1", "result": "aGk=", "status": "completed"},
    {"type": "something_new", "id": "sn_1", "payload": {"deep": [1, None, True]}},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Bye."},
]  # fmt: skip


@pytest.mark.parametrize("class_name", ["SQLiteSession", "SQLAlchemySession"])
def test_items_of_the_agents_sdk_come_back(tmp_path: Path, ours: str, class_name: str) -> None:
    path = tmp_path / "agents.db"

    async def write() -> list[Any]:
        if class_name == "SQLiteSession":
            session = SQLiteSession("s", path)
            await session.add_items(ITEMS)
            found = await session.get_items()
            session.close()
            return list(found)
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        other = SQLAlchemySession("s", engine=engine, create_tables=True)
        await other.add_items(ITEMS)
        found = await other.get_items()
        await engine.dispose()
        return list(found)

    async def read() -> list[Any]:
        async with Memory.from_defaults("s", async_database_uri=ours) as memory:
            return list(await OpenAIAgentsSession(memory).get_items())

    theirs = asyncio.run(write())
    bring("openai-sessions", path, ours)
    assert asyncio.run(read()) == theirs == ITEMS


def test_an_imported_session_is_what_the_adapter_would_have_stored(tmp_path: Path, ours: str) -> None:
    async def write() -> list[ChatMessage]:
        session = SQLiteSession("s", tmp_path / "agents.db")
        await session.add_items(ITEMS)
        session.close()
        async with Memory.from_defaults("s") as memory:
            await OpenAIAgentsSession(memory).add_items(ITEMS)
            return await memory.get_all()

    native = asyncio.run(write())
    bring("openai-sessions", tmp_path / "agents.db", ours)
    imported = [message.model_copy(update={"id": None, "created_at": None}) for message in stored(ours, "s")]
    assert imported == [message.model_copy(update={"id": None, "created_at": None}) for message in native]
    assert json.dumps([message.model_dump(mode="json") for message in imported])


# -- LangChain -----------------------------------------------------------------------------------------------

MESSAGES: list[BaseMessage] = [
    SystemMessage("s", id="1", additional_kwargs={"__openai_role__": "developer"}),
    HumanMessage([{"type": "text", "text": "a"}, "b",
                  {"type": "image_url", "image_url": {"url": "http://x/y", "detail": "low"}},
                  {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                  {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                  {"type": "file", "file": {"file_data": "data:application/pdf;base64,aGk=", "filename": "f"}},
                  {"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}},
                  {"type": "text", "text": "c", "cache_control": {"type": "ephemeral"}}],
                 additional_kwargs={"k": 1}, id="2", name="ada"),
    AIMessage([{"type": "reasoning", "reasoning": "r", "extras": {"signature": "sg"}},
               {"type": "thinking", "thinking": "t", "signature": "s2"},
               {"type": "thinking", "thinking": "t", "signature": ["s3"]}, {"type": "redacted_thinking", "data": "d"},
               {"type": "reasoning", "summary": [{"text": "x"}], "encrypted_content": "e"},
               {"type": "text", "text": "t", "annotations": [{"a": 1}]},
               {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
               {"type": "server_tool_call", "id": "w", "args": {"q": [1]}}],
              tool_calls=[{"id": "c", "name": "f", "args": {"a": 1}}, {"id": "c", "name": "", "args": {}}],
              invalid_tool_calls=[{"id": None, "name": None, "args": '{"a', "error": "cut off"}],
              usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3,
                              "input_token_details": {"cache_read": 1}},
              response_metadata={"model": 1, "none": None}, id="3"),
    ToolMessage("broken", tool_call_id="c", artifact={"z": [1]}, status="error", id="4"),
    ToolMessage([{"type": "text", "text": "x"}], tool_call_id="i" * 600, status="error", id="5"),
    AIMessage("", additional_kwargs={"tool_calls": [
        {"id": "d", "type": "function", "function": {"name": "f", "arguments": '{"town": "Graz"}'}},
        {"id": "e", "type": "function", "function": {"name": "f", "arguments": "{"}}]}),
    ToolMessage("", tool_call_id="d"),
    AIMessage("", additional_kwargs={"function_call": {"name": "look", "arguments": "{}", "x": 1}}),
    FunctionMessage(name="look", content="seen"),
    LangChainChatMessage(role="pirate", content="Arr"),
    LangChainChatMessage(role="assistant", content=[], name="n" * 600),
    AIMessage("ok", id="9", example=True, more={"a": [1]}),
]  # fmt: skip


def without_new_ids(messages: list[BaseMessage], like: list[BaseMessage]) -> list[BaseMessage]:
    """A message without an id gets that of memory, by which it is known again when it comes back."""
    assert all(message.id for message in messages)
    return [back if theirs.id else back.model_copy(update={"id": None}) for back, theirs in zip(messages, like, strict=True)]


@pytest.mark.parametrize("kind", ["langchain-sql", "langchain-file"])
def test_messages_of_langchain_come_back(tmp_path: Path, ours: str, kind: str) -> None:
    if kind == "langchain-sql":
        table = SQLChatMessageHistory("s", connection=f"sqlite:///{tmp_path / 's.db'}")
        table.add_messages(MESSAGES)
        theirs = table.get_messages()
        table.session_maker.remove()
        table.engine.dispose()
        bring(kind, tmp_path / "s.db", ours)
    else:
        file = FileChatMessageHistory(str(tmp_path / "s.json"))
        file.add_messages(MESSAGES)
        theirs = file.messages
        bring(kind, tmp_path / "s.json", ours)
    back = to_langchain(stored(ours, "s"))
    assert without_new_ids(back, theirs) == theirs
    assert [type(message) for message in back] == [type(message) for message in theirs]


# -- LlamaIndex ----------------------------------------------------------------------------------------------


def llama_messages(folder: Path) -> list[LlamaMessage]:
    (folder / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    function = {"id": "k1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    return [
        LlamaMessage(role="system", content="Be brief."),
        LlamaMessage(
            role="user",
            blocks=[
                TextBlock(text="a"),
                ImageBlock(url="http://x/y", detail="low"),
                ImageBlock(image=b"hi", image_mimetype="image/png"),
                ImageBlock(path=folder / "a.png"),
                AudioBlock(audio=b"hi", format="wav"),
                VideoBlock(url="http://x/v.mp4", fps=2),
                DocumentBlock(data=b"hi", title="t"),
                DocumentBlock(path=str(folder / "a.png")),
                DocumentBlock(url="http://x/d.pdf"),
                CachePoint(cache_control=CacheControl(type="ephemeral")),
                CitableBlock(title="t", source="s", content=[TextBlock(text="cited"), DocumentBlock(url="http://x/d.pdf")]),
            ],
            additional_kwargs={"k": 1},
        ),
        LlamaMessage(
            role="assistant",
            blocks=[
                ThinkingBlock(content="t", num_tokens=3, additional_information={"signature": "s", "x": 1}),
                ThinkingBlock(additional_information={"signature": "s"}),
                ThinkingBlock(content="only this"),
                CitationBlock(cited_content=TextBlock(text="c"), source="s", title="t", additional_location_info={"page": 1}),
                ToolCallBlock(tool_call_id="c", tool_name="f", tool_kwargs={"a": 1}),
                ToolCallBlock(tool_call_id=None, tool_name="f", tool_kwargs="{broken"),
            ],
            additional_kwargs={"prompt_tokens": 5},
        ),
        LlamaMessage(role="tool", content="r", additional_kwargs={"tool_call_id": "c", "name": "f"}),
        LlamaMessage(role="tool", content="r", additional_kwargs={"name": "f"}),
        LlamaMessage(role="assistant", content="", additional_kwargs={"tool_calls": [function]}),
        LlamaMessage(role="function", content="seen", additional_kwargs={"tool_call_id": "k1"}),
        LlamaMessage(
            role="assistant",
            blocks=[ToolCallBlock(tool_call_id="k1", tool_name="look", tool_kwargs={"a": 1})],
            additional_kwargs={"tool_calls": [function]},
        ),
        LlamaMessage(role="tool", blocks=[], additional_kwargs={"tool_call_id": "k1"}),
        LlamaMessage(role="assistant", additional_kwargs={"function_call": {"name": "look", "arguments": "{}"}}),
        LlamaMessage(role="tool", content="x"),
        LlamaMessage(role="user", blocks=[ToolCallBlock(tool_name="nobody", tool_kwargs={})]),
        LlamaMessage(role="model", content="ok"),
    ]


def test_messages_of_llama_index_come_back(tmp_path: Path, ours: str) -> None:
    path = tmp_path / "llama.db"

    async def write() -> list[LlamaMessage]:
        store = SQLAlchemyChatStore(table_name="llama_index_memory", async_database_uri=f"sqlite+aiosqlite:///{path}")
        await store.add_messages("s", llama_messages(tmp_path))
        found = await store.get_messages("s")
        await store._async_engine.dispose()
        return found

    theirs = asyncio.run(write())
    bring("llama-index", path, ours)
    back = to_llama_index(stored(ours, "s"))
    assert [message.model_dump() for message in back] == [message.model_dump() for message in theirs]
    assert back == theirs
