"""Recall with an embedder that hangs or has changed, and with a Qdrant that is down: what is left goes on, and says so."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from memory_engine import Memory, MemoryEngine
from memory_engine.blocks import VectorMemoryBlock
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
