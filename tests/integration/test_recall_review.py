"""Recall as agents use it that know nothing of its insides: no query, huge messages, other work on the event loop."""

from __future__ import annotations

import asyncio
import time

import pytest

from memory_engine import Memory
from memory_engine.blocks import VectorMemoryBlock

_TALK = (
    ("user", "The printer in the office shows a strange error about magenta toner and refuses every job from my laptop."),
    (
        "assistant",
        "Please open the front cover, take out the magenta cartridge, shake it gently, and clean the copper contacts.",
    ),
    ("user", "That helped, thanks! Now the scanner does not send to the shared folder; credentials were rotated yesterday."),
    ("assistant", "Then the stored password of the scanner profile must be renewed in its web interface under destinations."),
)


@pytest.mark.parametrize("before", [0, 2, 4])
async def test_without_a_query_the_talk_before_the_question_does_not_hide_it(before: int) -> None:
    blocks = [VectorMemoryBlock(name="recall", priority=1)]
    async with Memory.from_defaults("talk", token_limit=600, memory_blocks=blocks) as memory:
        await memory.put({"role": "user", "content": "My sister Olga keeps bees on the roof of the town hall in Graz."})
        await memory.put({"role": "assistant", "content": "That is a fine place for bees."})
        for number in range(100):
            await memory.put({"role": "user", "content": f"Parcel {number} has left the depot at the river."})
            await memory.put({"role": "assistant", "content": "Noted, I will tell the driver about the road."})
        await memory.flush(final=True)
        for role, content in _TALK[:before]:
            await memory.put({"role": role, "content": content})
        await memory.put({"role": "user", "content": "By the way, who keeps bees, and where?"})
        await memory.drain()
        assert "town hall in Graz" in "\n".join(message.content for message in await memory.get())


@pytest.mark.parametrize("text", ["x" * 300_000, "汉字测试内容" * 10_000, "word " * 40_000], ids=["no spaces", "han", "words"])
async def test_a_huge_message_is_absorbed_in_time_and_comes_back_exactly(text: str) -> None:
    blocks = [VectorMemoryBlock(name="recall", priority=1)]
    async with Memory.from_defaults("huge", token_limit=4_000, memory_blocks=blocks) as memory:
        await memory.put({"role": "user", "content": text})
        await memory.flush(final=True)
        longest, done = 0.0, asyncio.create_task(memory.drain(30))
        while not done.done():
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before)
        await done
        # Far above what it should be, far below what splitting a text without spaces in one piece takes.
        assert longest < 2.0
        block = await memory.block("recall")
        context = block.context
        items = await block._store.items(block._scope(), context.session_uid, 0, 2**31)
        assert "".join(item.text for item in items) == text
        assert all(item.tokens <= block.item_tokens for item in items)
