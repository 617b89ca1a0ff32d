"""Documents outlive the reset of a session in both stores, and nothing of them outlives its scope."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import AsyncQdrantClient

from memory_engine import Memory, MemoryEngine
from memory_engine.blocks import QdrantVectorStore, VectorMemoryBlock

LIBRARY = "The library of Alexandria was founded in the third century before our era, next to the Museion."


@pytest.fixture
async def client() -> AsyncIterator[AsyncQdrantClient]:
    client = AsyncQdrantClient(":memory:")
    yield client
    await client.close()


def open_engine(folder: Path, client: AsyncQdrantClient | None) -> MemoryEngine:
    store = None if client is None else QdrantVectorStore(client)
    return MemoryEngine(
        async_database_uri=f"sqlite+aiosqlite:///{folder / 'memory.db'}",
        memory_blocks=[VectorMemoryBlock(name="recall", vector_store=store)],
    )


async def recalled(memory: Memory, question: str) -> str:
    return "\n".join(message.content for message in await memory.get(question))


async def say(memory: Memory, text: str) -> None:
    await memory.put({"role": "user", "content": text})
    await memory.flush(final=True)
    await memory.drain()


async def add(memory: Memory) -> None:
    block: Any = await memory.block("recall")
    await block.add_documents([LIBRARY], {"id": "library"})


@pytest.mark.parametrize("outside", [False, True])
async def test_documents_outlive_the_reset_of_a_session(tmp_path: Path, client: AsyncQdrantClient, outside: bool) -> None:
    async with open_engine(tmp_path, client if outside else None) as engine:
        memory = engine.session("one")
        await say(memory, "My cousin Olga breeds falcons in Graz.")
        await add(memory)
        assert "Museion" in await recalled(memory, "When was the library of Alexandria founded?")
        await memory.reset()
        await say(memory, "Let us talk about bread and butter.")
        assert "Museion" in await recalled(memory, "When was the library of Alexandria founded?")
        assert "Olga" not in await recalled(memory, "Who breeds falcons in Graz?")


async def test_documents_in_the_database_are_there_at_once_after_a_reset(tmp_path: Path) -> None:
    async with open_engine(tmp_path, None) as engine:
        memory = engine.session("one")
        await add(memory)
        await memory.reset()
        assert "Museion" in await recalled(memory, "When was the library of Alexandria founded?")


async def test_nothing_of_a_deleted_session_stays_in_a_collection(tmp_path: Path, client: AsyncQdrantClient) -> None:
    async with open_engine(tmp_path, client) as engine:
        memory = engine.session("one")
        await say(memory, "My cousin Olga breeds falcons in Graz.")
        await add(memory)
        await memory.reset()
        await say(memory, "Let us talk about bread and butter.")
        await engine.delete_session("one")
        await engine.drain()
    assert (await client.count("memory")).count == 0
