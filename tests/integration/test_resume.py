"""What one process left pending, the next one delivers, in both modes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from memory_engine import BaseMemoryBlock, BlockUnavailableError, ChatMessage, Limits, Memory


class Counter(BaseMemoryBlock[str]):
    down: bool = Field(default=False, exclude=True)
    count: int = 0

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return f"{self.count} messages"

    async def _aput(self, messages: list[ChatMessage]) -> None:
        if self.down:
            raise BlockUnavailableError
        self.count += len(messages)


@pytest.mark.parametrize("delivery", ["background", "inline"])
async def test_opening_resumes_what_is_pending(delivery: str, tmp_path: Path) -> None:
    def opened(*, down: bool) -> Memory:
        return Memory.from_defaults(
            "chat",
            token_limit=200,
            memory_blocks=[Counter(down=down)],
            delivery=delivery,
            async_database_uri=f"sqlite+aiosqlite:///{tmp_path}/memory.db",
            limits=Limits(first_retry=0.001, last_retry=0.001, poll=0.02),
        )

    memory = opened(down=True)
    for number in range(30):
        await memory.put({"role": "user", "content": f"hello number {number}"})
    flushed = (await memory.context()).receipt.source("Counter").lag
    assert flushed > 0
    await memory.aclose(timeout=0.01)

    async with opened(down=False) as memory:
        if delivery == "background":
            await memory.drain(timeout=30)
        elif running := set(memory._engine._core.unawaited):
            await asyncio.wait(running)
        receipt = (await memory.context()).receipt
        assert receipt.source("Counter").lag == 0
        block = await memory.block("Counter")
        assert isinstance(block, Counter)
        assert block.count == flushed
