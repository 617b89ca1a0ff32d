"""A vector store that is down, lost, restored or of another model never fails the agent (P6), and can be rebuilt."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chaos_blocks import PATIENCE
from chaos_database import audit
from chaos_recall import KINDS, Shop, SlowEmbedder, recall_engine, recalling, shop
from qdrant_client import models

from memory_engine import ChatMessage, Memory, MemoryEngine
from memory_engine.blocks.vector.block import VectorMemoryBlock
from memory_engine.errors import BlockError
from memory_engine.receipt import SourceReceipt

pytestmark = pytest.mark.asyncio

BLOCK = "of_session"
TOPICS = ("tea", "rain", "stone", "light", "river", "iron", "glass", "snow", "bread", "wine")


def one_block(where: Shop, embedder: Any = None, **options: Any) -> list[VectorMemoryBlock]:
    """A single block for recall, of a session."""
    return recalling(where, embedder or SlowEmbedder(), ("session",), **options)


async def say(memory: Memory, topics: Sequence[str] = TOPICS) -> None:
    """Put a message on each topic and let go of them all."""
    for number, topic in enumerate(topics):
        role = ("user", "assistant")[number % 2]
        assert await memory.put(ChatMessage(role=role, content=f"something about the {topic}")) is not None
    await memory.flush(final=True)


async def shown(memory: Memory, topic: str) -> tuple[str, SourceReceipt]:
    """What is recalled on a topic, and the account of it."""
    context = await memory.context(f"{topic}?")
    text = "\n".join(message.content for message in context.messages)
    section = text.split(f"<{BLOCK}>")[1].split(f"</{BLOCK}>")[0] if f"<{BLOCK}>" in text else ""
    return section, context.receipt.source(BLOCK)


async def recalls_everything(memory: Memory, topics: Sequence[str] = TOPICS) -> None:
    """Each topic is found, and nothing is amiss."""
    for topic in topics:
        section, source = await shown(memory, topic)
        assert f"about the {topic}" in section, topic
        assert source.notes == () and source.error is None and source.lag == 0


async def topics_in(where: Shop) -> Counter[str]:
    """What the store holds, past all filters."""
    return Counter(one.text.split()[-1] for one in await where.stored())


async def bound(memory: Memory) -> VectorMemoryBlock:
    """The block of this session."""
    block = await memory.block(BLOCK)
    assert isinstance(block, VectorMemoryBlock)
    return block


async def rebuilt_while_serving(engine: MemoryEngine, memory: Memory) -> list[str]:
    """Rebuild, reading all the time; the sections that were shown meanwhile. No read fails."""
    sections: list[str] = []
    finished = asyncio.Event()

    async def read() -> None:
        while not finished.is_set():
            section, source = await shown(memory, "tea")
            assert source.error is None, source
            sections.append(section)

    reading = asyncio.create_task(read())
    await (await bound(memory)).rebuild()
    await engine.drain(PATIENCE)
    finished.set()
    await reading
    return sections


# -- down --------------------------------------------------------------------------------------------------------


async def test_a_qdrant_that_is_down_costs_its_section_and_nothing_else(database: Path) -> None:
    """`put` works, `get` says what it leaves out, deliveries wait without being given up, and resume by themselves."""
    async with shop("qdrant", database) as where, recall_engine(database, one_block(where)) as engine:
        assert where.client is not None
        memory = engine.session("s")
        await say(memory, TOPICS[:4])
        await engine.drain(PATIENCE)
        where.client.down = {"*"}
        await say(memory, TOPICS[4:])
        async with asyncio.timeout(PATIENCE):
            # Far more often than a block may fail by its own fault before a chunk is parked.
            while where.client.refused < 40:
                await asyncio.sleep(0.01)
        context = await memory.context("the river?")
        source = context.receipt.source(BLOCK)
        assert source.given == 0 and source.error is not None and "Qdrant is not available" in source.error
        assert source.lag == 6 and context.receipt.parked == ()
        # What was not absorbed stays in sight.
        assert "about the river" in "\n".join(message.content for message in context.messages)
        assert (await engine.pending()).any
        where.client.down = set()
        async with asyncio.timeout(PATIENCE):
            while (await engine.pending()).any:
                await asyncio.sleep(0.01)
        await recalls_everything(memory)
        assert await topics_in(where) == Counter(TOPICS)
        audit(database)


async def test_an_engine_that_starts_while_qdrant_is_down_delivers_when_it_comes(database: Path) -> None:
    """Not even the collection exists."""
    async with shop("qdrant", database) as where:
        assert where.client is not None
        where.client.down = {"*"}
        engine = recall_engine(database, one_block(where))
        memory = engine.session("s")
        await say(memory)
        section, source = await shown(memory, "tea")
        assert section == "" and source.error is not None
        await engine.aclose(timeout=0.01)  # it would wait for deliveries
        async with recall_engine(database, one_block(where)) as engine:
            memory = engine.session("s")
            assert "something about the wine" in (await memory.get_all())[-1].content
            where.client.down = set()
            await engine.drain(PATIENCE)
            await recalls_everything(memory)
            assert await topics_in(where) == Counter(TOPICS)


async def test_an_embedder_that_is_down_leaves_the_words_to_search_with(database: Path) -> None:
    """What is stored goes on being found, what comes waits."""

    class Fickle(SlowEmbedder):
        down = False

        async def __call__(self, texts: Sequence[str]) -> list[list[float]]:
            if self.down:
                raise ConnectionError("no embeddings today")
            return await super().__call__(texts)

    embedder = Fickle()
    async with shop("qdrant", database) as where, recall_engine(database, one_block(where, embedder)) as engine:
        memory = engine.session("s")
        await say(memory, TOPICS[:5])
        await engine.drain(PATIENCE)
        embedder.down = True
        await say(memory, TOPICS[5:])
        section, source = await shown(memory, "rain")
        assert "about the rain" in section and source.given and source.lag == 5
        assert "words alone" in source.notes[0]
        embedder.down = False
        await engine.drain(PATIENCE)
        await recalls_everything(memory)


# -- lost and restored -------------------------------------------------------------------------------------------


async def test_a_collection_that_was_deleted_is_noticed_and_rebuilt_while_serving(database: Path) -> None:
    """The receipt says what is missing and what to do."""
    async with shop("qdrant", database) as where, recall_engine(database, one_block(where)) as engine:
        assert where.client is not None
        memory = engine.session("s")
        await say(memory)
        await engine.drain(PATIENCE)
        await where.client.client.delete_collection(where.collection)
        section, source = await shown(memory, "tea")
        assert section == "" and source.error is None
        assert source.notes == ("the vector store holds 0 of 10 items; call rebuild() on the bound block",)
        await rebuilt_while_serving(engine, memory)
        await recalls_everything(memory)
        assert await topics_in(where) == Counter(TOPICS)


async def test_a_collection_restored_from_an_old_backup_is_noticed_and_rebuilt_while_serving(database: Path) -> None:
    """What the backup holds is shown all the while; what was erased since the backup does not stay."""
    async with shop("qdrant", database) as where, recall_engine(database, one_block(where)) as engine:
        assert where.client is not None
        client = where.client.client
        memory = engine.session("s")
        await say(memory, TOPICS[:5])
        await engine.drain(PATIENCE)
        points, _ = await client.scroll(where.collection, limit=1000, with_payload=True, with_vectors=True)
        await say(memory, TOPICS[5:])
        erased = next(message for message in await memory.get_all() if "rain" in message.content)
        await memory.delete([erased.id])
        await engine.drain(PATIENCE)
        everything = models.FilterSelector(filter=models.Filter())
        await client.delete(where.collection, points_selector=everything)
        backup = [models.PointStruct(id=point.id, vector=point.vector, payload=point.payload) for point in points]
        await client.upsert(where.collection, points=backup)
        section, source = await shown(memory, "tea")
        assert "about the tea" in section
        assert source.notes == ("the vector store holds 5 of 9 items; call rebuild() on the bound block",)
        sections = await rebuilt_while_serving(engine, memory)
        assert all("about the tea" in section for section in sections) and sections
        remaining = [topic for topic in TOPICS if topic != "rain"]
        await recalls_everything(memory, remaining)
        assert await topics_in(where) == Counter(remaining)


async def test_a_loss_goes_on_being_noticed_after_something_was_erased(database: Path) -> None:
    """Erasing from a store that has lost items does not make it whole."""
    async with shop("qdrant", database) as where, recall_engine(database, one_block(where)) as engine:
        assert where.client is not None
        memory = engine.session("s")
        await say(memory)
        await engine.drain(PATIENCE)
        await where.client.client.delete_collection(where.collection)
        messages = await memory.get_all()
        await memory.delete([messages[0].id, messages[5].id])
        await engine.drain(PATIENCE)
        _, source = await shown(memory, "rain")
        # Some are back: those that had been embedded with an erased message before them.
        assert "of 8 items; call rebuild()" in source.notes[0]
        await (await bound(memory)).rebuild()
        await engine.drain(PATIENCE)
        remaining = [topic for number, topic in enumerate(TOPICS) if number not in {0, 5}]
        await recalls_everything(memory, remaining)


async def test_items_that_were_lost_from_the_database_are_noticed_and_rebuilt(database: Path) -> None:
    """The default store: rows went by a way of their own, with the messages still there."""
    async with shop("records", database) as where:
        async with recall_engine(database, one_block(where)) as engine:
            await say(engine.session("s"))
            await engine.drain(PATIENCE)
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("DELETE FROM memory_block_records WHERE seq >= 5")
        async with recall_engine(database, one_block(where)) as engine:
            memory = engine.session("s")
            section, source = await shown(memory, "tea")
            assert "about the tea" in section
            assert source.notes == ("the vector store holds 5 of 10 items; call rebuild() on the bound block",)
            sections = await rebuilt_while_serving(engine, memory)
            assert all("about the tea" in section for section in sections) and sections
            await recalls_everything(memory)
            assert await topics_in(where) == Counter(TOPICS)


@pytest.mark.parametrize("kind", KINDS)
async def test_documents_and_messages_come_back_with_a_rebuild(database: Path, kind: str) -> None:
    """Also when nothing was lost: nothing is doubled."""
    async with shop(kind, database) as where, recall_engine(database, one_block(where)) as engine:
        memory = engine.session("s")
        await say(memory)
        await engine.drain(PATIENCE)
        await (await bound(memory)).add_documents(["the manual of the lighthouse"], {"id": "manual"})
        if where.client is not None:
            await where.client.client.delete_collection(where.collection)
        for _ in range(2):
            await (await bound(memory)).rebuild()
            await engine.drain(PATIENCE)
            section, source = await shown(memory, "lighthouse")
            assert "the manual of the lighthouse" in section and source.notes == ()
            await recalls_everything(memory)
            assert (await bound(memory)).stored_items == 11


# -- another model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [32, 48])
@pytest.mark.parametrize("kind", KINDS)
async def test_another_model_is_noticed_and_words_serve_until_the_rebuild_has_come_by(
    database: Path, kind: str, dimensions: int
) -> None:
    """Vectors of two models are never compared, whether they have one dimension or not. Qdrant gets another collection then."""
    async with shop(kind, database) as where:
        async with recall_engine(database, one_block(where)) as engine:
            await say(engine.session("s"), TOPICS[:5])
            await engine.drain(PATIENCE)
        other = SlowEmbedder(slow=0.02, dimensions=dimensions, identity="other")
        fits = kind == "records" or dimensions == 32
        async with recall_engine(database, one_block(where, other)) as engine:
            memory = engine.session("s")
            # New messages are taken in by their words; nothing fails.
            await say(memory, TOPICS[5:])
            await engine.drain(PATIENCE)
            for topic in TOPICS:
                section, source = await shown(memory, topic)
                assert f"about the {topic}" in section and source.error is None
                assert "items were embedded by fake, not by other" in source.notes[0]
            if fits:
                sections = await rebuilt_while_serving(engine, memory)
                assert sections and all("about the tea" in section for section in sections)
            else:
                with pytest.raises(BlockError, match=r"have 48 dimensions.* have 32\. .*another `collection`.*rebuild"):
                    await (await bound(memory)).rebuild()
                # Nothing was changed.
                assert "about the tea" in (await shown(memory, "tea"))[0]
                assert await topics_in(where) == Counter(TOPICS)
        if not fits:
            async with recall_engine(database, one_block(replace(where, collection="another"), other)) as engine:
                await rebuilt_while_serving(engine, engine.session("s"))
                await where.client.client.delete_collection("memory")
        now = where if fits else replace(where, collection="another")
        async with recall_engine(database, one_block(now, other)) as engine:
            memory = engine.session("s")
            await recalls_everything(memory)
            assert await topics_in(where) == Counter(TOPICS)
            block = await bound(memory)
            assert block.stored_model == "other"
            hits = await block.search("something about the tea")
            assert len(hits) > 5 and all(hit.dense is not None and hit.dense > 0 for hit in hits)


async def test_an_embedder_for_a_collection_of_words_alone_is_refused_with_what_to_do(database: Path) -> None:
    """Deliveries are parked in sight; with a new collection everything comes back."""
    async with shop("qdrant", database) as where:
        words_alone = recalling(where, None, ("session",))
        async with recall_engine(database, words_alone) as engine:
            await say(engine.session("s"), TOPICS[:5])
            await engine.drain(PATIENCE)
        async with recall_engine(database, one_block(where)) as engine:
            memory = engine.session("s")
            await say(memory, TOPICS[5:])
            async with asyncio.timeout(PATIENCE):
                while not (await memory.context()).receipt.parked:
                    await asyncio.sleep(0.01)
            parked = (await memory.context()).receipt.parked
            assert "made without vectors" in parked[0].error and "another `collection`" in parked[0].error
            assert "about the tea" in (await shown(memory, "tea"))[0]
        async with recall_engine(database, one_block(replace(where, collection="another"))) as engine:
            memory = engine.session("s")
            await rebuilt_while_serving(engine, memory)
            await recalls_everything(memory)


async def test_a_foreign_collection_is_refused_with_what_to_do(database: Path) -> None:
    """Nothing is written to it."""
    async with shop("qdrant", database) as where:
        assert where.client is not None
        client = where.client.client
        await client.create_collection("memory", vectors_config=models.VectorParams(size=4, distance=models.Distance.DOT))
        async with recall_engine(database, one_block(where)) as engine:
            memory = engine.session("s")
            await say(memory)
            async with asyncio.timeout(PATIENCE):
                while not (await memory.context()).receipt.parked:
                    await asyncio.sleep(0.01)
            _, source = await shown(memory, "tea")
            assert source.error is not None and "was not made by QdrantVectorStore" in source.error
        assert (await client.count("memory")).count == 0
