"""What was imported comes back through our adapter for the library that wrote it as that library itself reads it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from agents import SQLiteSession
from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import create_async_engine

from memory_engine import ChatMessage, Memory
from memory_engine.__main__ import main
from memory_engine.integrations.openai_agents import OpenAIAgentsSession


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
    {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "Hm"}, {"type": "summary_text", "text": "m"}]},
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
