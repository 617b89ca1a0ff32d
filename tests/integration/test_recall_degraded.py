"""Recall with an embedder that hangs or has changed, and with a Qdrant that is down: what is left goes on, and says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import AsyncQdrantClient

from memory_engine import Memory, MemoryEngine
from memory_engine.blocks import QdrantVectorStore, VectorMemoryBlock
from memory_engine.blocks.embedders import CachedEmbedder
from memory_engine.testing import FakeEmbedder

FACT = "My sister Wilhelmina is allergic to hazelnuts, so please no praline at the party."
QUESTION = "Is anybody allergic to hazelnuts?"


def engine_of(folder: Path, block: VectorMemoryBlock, **options: Any) -> MemoryEngine:
    return MemoryEngine(async_database_uri=f"sqlite+aiosqlite:///{folder / 'memory.db'}", memory_blocks=[block], **options)


async def tell(memory: Memory, *texts: str) -> None:
    await memory.put_messages([{"role": "user", "content": text} for text in texts])
    await memory.flush(final=True)
    await memory.drain(60)


class Hanging(FakeEmbedder):
    """Answers nothing any more once it hangs."""

    hangs = False

    async def __call__(self, texts: Any) -> list[list[float]]:
        if self.hangs:
            await asyncio.Event().wait()
        return await super().__call__(texts)


async def test_an_embedder_that_hangs_leaves_the_words_with_default_settings(tmp_path: Path) -> None:
    embedder = Hanging()
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=embedder)) as engine:
        memory = engine.session("one")
        await tell(memory, FACT)
        embedder.hangs = True
        context = await memory.context(QUESTION)
        source = context.receipt.source("RetrievedMessages")
        assert source.error is None
        assert "too slow" in source.notes[0]
        assert FACT in context.messages[0].content


@pytest.fixture(params=["records", "qdrant"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[QdrantVectorStore | None]:
    client = AsyncQdrantClient(":memory:")
    yield QdrantVectorStore(client) if request.param == "qdrant" else None
    await client.close()


async def test_another_dimension_under_the_same_identity_leaves_the_words(
    tmp_path: Path, store: QdrantVectorStore | None
) -> None:
    def block(dimensions: int, identity: str = "model") -> VectorMemoryBlock:
        return VectorMemoryBlock(
            embed_model=CachedEmbedder(FakeEmbedder(dimensions), identity=identity), vector_store=store, floor=None
        )

    async with engine_of(tmp_path, block(16)) as engine:
        await tell(engine.session("one"), FACT)
    async with engine_of(tmp_path, block(24)) as engine:
        memory = engine.session("one")
        await tell(memory, "My cousin Olga breeds falcons in Graz.")
        bound: Any = await memory.block("RetrievedMessages")
        await bound.add_documents("The falconry opens at nine.")
        context = await memory.context("Who breeds falcons, and who is allergic to hazelnuts?")
        source = context.receipt.source("RetrievedMessages")
        assert context.receipt.parked == ()
        assert source.error is None and source.lag == 0
        assert len(source.notes) == 1 and "words alone" in source.notes[0] and "rebuild()" in source.notes[0]
        assert FACT in context.messages[0].content and "Olga breeds falcons" in context.messages[0].content
        assert (await bound.search("When does the falconry open?"))[0].item.kind == "document"


async def test_a_model_that_changes_its_dimension_as_it_runs_leaves_the_words(tmp_path: Path) -> None:
    embedder = FakeEmbedder(16)
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=embedder, floor=None)) as engine:
        memory = engine.session("one")
        await tell(memory, FACT)
        embedder.dimensions = 24
        await tell(memory, "My cousin Olga breeds falcons in Graz.")
        context = await memory.context("Who breeds falcons in Graz?")
        source = context.receipt.source("RetrievedMessages")
        assert context.receipt.parked == () and source.error is None and source.lag == 0
        assert "words alone" in source.notes[0]
        assert "Olga breeds falcons" in context.messages[0].content
