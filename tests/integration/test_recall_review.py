"""Recall as agents use it that know nothing of its insides: no query, huge messages, other work on the event loop."""

from __future__ import annotations

import asyncio
import copy
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from memory_engine import ChatMessage, Memory, MemoryEngine
from memory_engine.blocks import VectorMemoryBlock
from memory_engine.blocks.vector.query import probe_words
from memory_engine.blocks.vector.words import Words

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
        turns, done = 0, asyncio.create_task(memory.drain(60))
        while not done.done():
            await asyncio.sleep(0)
            turns += 1
        await done
        # Split on the event loop, the text would leave it a handful of turns.
        assert turns > 50
        block = await memory.block("recall")
        context = block.context
        items = await block._store.items(block._scope(), context.session_uid, 0, 2**31)
        assert "".join(item.text for item in items) == text
        assert all(item.tokens <= block.item_tokens for item in items)


async def test_any_failure_of_the_embedder_leaves_the_words(tmp_path: Path) -> None:
    failing = False

    async def embed(texts: list[str]) -> list[list[float]]:
        if failing:
            raise ValueError("unauthorised")
        return [[1.0, float(len(text))] for text in texts]

    block = VectorMemoryBlock(name="recall", embed_model=embed, floor=None)
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    async with Memory.from_defaults("one", memory_blocks=[block], async_database_uri=uri) as memory:
        await memory.put({"role": "user", "content": "Olga keeps bees on the roof."})
        await memory.flush(final=True)
        await memory.drain()
        failing = True
        context = await memory.context("Who keeps bees?")
        assert "on the roof" in context.messages[0].content
        assert "words alone" in str(context.receipt)


async def test_several_sessions_of_a_user_are_told_in_the_order_of_time(tmp_path: Path) -> None:
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    block = VectorMemoryBlock(name="recall", scope="user")
    async with MemoryEngine(async_database_uri=uri, memory_blocks=[block]) as engine:
        for day in range(6):
            memory = engine.session(f"session-{day % 2}", user_id="ada")
            at = datetime(2026, 3, 1 + day, 9, tzinfo=UTC)
            await memory.put(ChatMessage(role="user", content=f"The bees made {day} jars of honey.", created_at=at))
            await memory.flush(final=True)
        await engine.drain()
        section = (await engine.session("other", user_id="ada").get("How much honey did the bees make?"))[0].content
        assert re.findall(r"made (\d) jars", section) == list("012345")


def test_definitions_can_be_copied_and_refuse_what_cannot_work() -> None:
    copy.deepcopy(VectorMemoryBlock(name="recall"))
    for wrong in ({"format_template": "{text:d}"}, {"postprocessors": [1]}):
        with pytest.raises(ValidationError):
            VectorMemoryBlock(name="recall", **wrong)


def test_the_question_after_a_long_text_is_looked_for() -> None:
    text = " ".join(f"word{number}" for number in range(300)) + " Who keeps bees on the roof?"
    assert {"bee", "roof"} <= set(probe_words([(text, 1.0)], Words()))
