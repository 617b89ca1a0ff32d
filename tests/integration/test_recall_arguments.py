"""What may be asked of a bound block for recall, what its hits can be used for, and what is refused with a hint."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import AsyncQdrantClient

from memory_engine import ChatMessage, MemoryEngine
from memory_engine.blocks import QdrantVectorStore, VectorMemoryBlock


@pytest.fixture(params=["records", "qdrant"])
async def block(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[VectorMemoryBlock]:
    """A bound block that knows a message and two documents."""
    client = AsyncQdrantClient(":memory:")
    definition = VectorMemoryBlock(vector_store=QdrantVectorStore(client) if request.param == "qdrant" else None)
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    async with MemoryEngine(async_database_uri=uri, memory_blocks=[definition]) as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "The zebra crossed the river at dawn."})
        await memory.flush(final=True)
        await memory.drain()
        bound = await memory.block("RetrievedMessages")
        assert isinstance(bound, VectorMemoryBlock)
        await bound.add_documents(
            ["The zebra lives at the depot.", "Zebra feed is kept in the barn."], [{"id": "kb"}, {"id": "b"}]
        )
        yield bound
    await client.close()


async def test_hits_can_be_copied_and_written_down(block: VectorMemoryBlock) -> None:
    hits = await block.search("zebra")
    assert len(hits) == 3
    for hit in hits:
        assert copy.deepcopy(hit) == hit
        assert pickle.loads(pickle.dumps(hit)) == hit
        told = dataclasses.asdict(hit)
        assert told["item"]["metadata"] == dict(hit.item.metadata)
        assert json.loads(json.dumps(told, default=str))["item"]["text"] == hit.item.text


async def test_one_document_is_removed_by_its_id(block: VectorMemoryBlock) -> None:
    assert await block.remove_documents("kb") == 1
    assert {hit.item.document for hit in await block.search("zebra")} == {None, "b"}


@pytest.mark.parametrize(
    "query",
    [
        "zebra",
        ChatMessage(role="user", content="zebra"),
        {"role": "user", "content": "zebra"},
        ["zebra"],
        [ChatMessage(role="user", content="zebra"), "at the depot"],
    ],
)
async def test_search_takes_what_get_takes(block: VectorMemoryBlock, query: Any) -> None:
    assert len(await block.search(query)) == 3
    assert len(await block.search(query, limit=1)) == 1


@pytest.mark.parametrize("query", [None, 7, b"zebra", [7], {"content": 7}])
async def test_what_is_no_question_is_refused(block: VectorMemoryBlock, query: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - messages have their own words
        await block.search(query)


@pytest.mark.parametrize("limit", [-1, 1.5, None, True])
async def test_what_is_no_number_of_hits_is_refused(block: VectorMemoryBlock, limit: Any) -> None:
    with pytest.raises(ValueError, match="limit is a number of hits"):
        await block.search("zebra", limit=limit)
    assert await block.search("zebra", limit=0) == []
