"""Records that come from no session: they stay when messages go and when a session is reset, and go with their scope."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memory_engine import BaseMemoryBlock, MemoryEngine


class Notebook(BaseMemoryBlock[str]):
    """Keeps a line a message, and rules that somebody wrote by hand."""

    async def _aget(self, messages: Any = None, **block_kwargs: Any) -> str:
        return ", ".join([record.data for record in await self.records.list()])

    async def _aput(self, messages: Any) -> None:
        for message, seq in zip(messages, self.context.seqs, strict=True):
            self.records.put(f"said:{seq:04d}", message.content, seq=seq)

    async def _aforget(self, session_uid: str | None, seqs: Any) -> None:
        return None


def open_engine(folder: Path, scope: Any = "session") -> MemoryEngine:
    uri = f"sqlite+aiosqlite:///{folder / 'memory.db'}"
    return MemoryEngine(async_database_uri=uri, memory_blocks=[Notebook(name="notebook", scope=scope)])


async def section(engine: MemoryEngine, **who: Any) -> str:
    context = await engine.session("one", user_id="ada", **who).context()
    return context.messages[0].content if context.messages else ""


async def write_and_say(engine: MemoryEngine) -> None:
    memory = engine.session("one", user_id="ada")
    async with memory.block("notebook") as block:
        block.records.put("rule", "be brief", shared=True)
    await memory.put({"role": "user", "content": "hello"})
    await memory.flush(final=True)
    await memory.drain()


@pytest.mark.parametrize("scope", ["session", "user", "global"])
async def test_a_reset_takes_what_was_said_and_leaves_what_is_shared(tmp_path: Path, scope: str) -> None:
    async with open_engine(tmp_path, scope) as engine:
        await write_and_say(engine)
        assert "be brief" in (before := await section(engine))
        assert "hello" in before
        await engine.session("one", user_id="ada").reset()
        assert "be brief" in (after := await section(engine))
        assert "hello" not in after
    async with open_engine(tmp_path, scope) as engine:
        assert "be brief" in await section(engine)
        await engine.drain()
        memory = engine.session("one", user_id="ada")
        await memory.put({"role": "user", "content": "again"})
        await memory.flush(final=True)
        await memory.drain()
        assert "again" in (later := await section(engine))
        assert "be brief" in later


async def test_shared_records_of_a_session_go_when_it_is_deleted(tmp_path: Path) -> None:
    async with open_engine(tmp_path) as engine:
        await write_and_say(engine)
        await engine.session("one", user_id="ada").reset()
        await engine.delete_session("one")
        await engine.drain()
        assert "be brief" not in await section(engine)
