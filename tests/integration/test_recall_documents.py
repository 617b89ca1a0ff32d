"""Documents outlive the reset of a session in both stores, and nothing of them outlives its scope."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import AsyncQdrantClient

from memory_engine import Memory, MemoryEngine
from memory_engine.blocks import QdrantVectorStore, VectorMemoryBlock
from memory_engine.blocks.vector.storing import StoringBlock

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


@pytest.mark.parametrize("spoken", [False, True])
@pytest.mark.parametrize("outside", [False, True])
async def test_a_reset_takes_no_document_away(tmp_path: Path, client: AsyncQdrantClient, outside: bool, spoken: bool) -> None:
    async with open_engine(tmp_path, client if outside else None) as engine:
        memory = engine.session("one")
        await add(memory)
        if spoken:
            await say(memory, "My cousin Olga breeds falcons in Graz.")
        for _ in range(2):
            await memory.reset()
            await memory.drain()
            context = await memory.context("When was the library of Alexandria founded?")
            assert "Museion" in context.messages[0].content, "without anything being written"
            assert context.receipt.source("recall").notes == ()
        block: Any = await memory.block("recall")
        await block.add_documents("The depot closes at six on zebra day.", {"id": "depot"})
        await say(memory, "Let us talk about bread and butter.")
        assert "Museion" in await recalled(memory, "When was the library of Alexandria founded?")
        assert "closes at six" in await recalled(memory, "When does the depot close on zebra day?")
        assert "Olga" not in await recalled(memory, "Who breeds falcons in Graz?")
        assert (await memory.context("depot")).receipt.source("recall").notes == ()
        if outside:
            assert (await client.count("memory")).count == 3, "nothing of the scopes before is left"
        await engine.delete_session("one")
        await engine.drain()
    if outside:
        assert (await client.count("memory")).count == 0


async def test_documents_that_wait_to_be_stored_again_are_missed(
    tmp_path: Path, client: AsyncQdrantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, go_on = StoringBlock._begin, asyncio.Event()

    async def begin_later(block: StoringBlock) -> None:
        await go_on.wait()
        await begin(block)

    async with open_engine(tmp_path, client) as engine:
        memory = engine.session("one")
        await add(memory)
        monkeypatch.setattr(StoringBlock, "_begin", begin_later)
        await memory.reset()
        context = await memory.context("When was the library of Alexandria founded?")
        assert "wait to be stored again" in context.receipt.source("recall").notes[0]
        go_on.set()
        await memory.drain()
        context = await memory.context("When was the library of Alexandria founded?")
        assert "Museion" in context.messages[0].content
        assert context.receipt.source("recall").notes == ()
