"""The vector store contract for vector stores of LlamaIndex."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.vector_stores import SimpleVectorStore

from memory_engine import MemoryEngine
from memory_engine.blocks import VectorMemoryBlock
from memory_engine.blocks.vector.llama_index import LlamaIndexVectorStore
from memory_engine.blocks.vector.store import Scope
from memory_engine.errors import ConfigurationError
from memory_engine.testing import VectorStoreContract
from memory_engine.testing.vector_store_contract import OpenScope, ask, said


def blocks() -> list[Any]:
    return [VectorMemoryBlock(name=name, scope="user") for name in ("recall", "notes")]


class TestLlamaIndex(VectorStoreContract):
    @pytest.fixture
    def outside(self) -> SimpleVectorStore:
        return SimpleVectorStore()

    @pytest.fixture
    def store(self, outside: SimpleVectorStore) -> LlamaIndexVectorStore:
        return LlamaIndexVectorStore(outside)

    @pytest.fixture
    async def open_scope(self, tmp_path: Path) -> AsyncIterator[OpenScope]:
        async with MemoryEngine(async_database_uri=f"sqlite+aiosqlite:///{tmp_path}/m.db", memory_blocks=blocks()) as engine:

            @asynccontextmanager
            async def opened(tenant: str, key: str, block: str) -> AsyncIterator[Scope]:
                async with engine.session(f"of {key}", user_id=key, tenant=tenant).block(block) as bound:
                    assert isinstance(bound, VectorMemoryBlock)
                    yield bound._scope()

            def open_scope(tenant: str = "acme", key: str = "one", block: str = "recall") -> AbstractAsyncContextManager[Scope]:
                return opened(tenant, key, block)

            yield open_scope

    async def test_nothing_is_left_outside(
        self, store: LlamaIndexVectorStore, outside: SimpleVectorStore, open_scope: OpenScope
    ) -> None:
        async with open_scope() as scope:
            entries = [said(seq, "a cat", [1.0, 0.0]) for seq in range(4)]
            entries += [said(4, "a dog", [1.0, 0.0], last_seq=6), said(0, "other", [0.0, 1.0], session="s2")]
            await store.add(scope, entries)
            assert len(outside.data.embedding_dict) == 6
            assert "cat" not in str(outside.to_dict())
            await store.remove(scope, "s1", [0, 5])
            assert len(outside.data.embedding_dict) == 4
            await store.remove(scope, "s1", None)
            assert len(outside.data.embedding_dict) == 1
            await store.remove(scope, None, None)
            assert outside.data.embedding_dict == {}
            assert (await store.search(scope, ask("other", [0.0, 1.0]), limit=9)).total == 0


async def test_recall_with_a_store_and_embeddings_of_llama_index(tmp_path: Path) -> None:
    outside = SimpleVectorStore()
    recall = VectorMemoryBlock(name="recall", vector_store=LlamaIndexVectorStore(outside), embed_model=MockEmbedding(4))
    async with MemoryEngine(async_database_uri=f"sqlite+aiosqlite:///{tmp_path}/m.db", memory_blocks=[recall]) as engine:
        memory = engine.session("bees")
        await memory.put({"role": "user", "content": "Olga keeps bees on the roof of the town hall."})
        await memory.flush(final=True)
        await memory.drain()
        assert len(outside.data.embedding_dict) == 1
        await memory.put({"role": "user", "content": "Who keeps bees?"})
        assert "roof of the town hall" in (await memory.get())[0].content
        await memory.reset()
        await memory.drain()
        assert outside.data.embedding_dict == {}, "what was erased is erased outside, too"


def test_anything_else_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        LlamaIndexVectorStore("store")
