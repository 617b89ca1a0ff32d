"""Blocks for recall on both vector stores, a Qdrant that fails when told to, and a look at what the stores hold."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos_blocks import QUICK, words
from chaos_database import rows

from memory_engine import MemoryEngine
from memory_engine.blocks.vector.block import VectorMemoryBlock
from memory_engine.blocks.vector.qdrant import QdrantVectorStore
from memory_engine.testing import FakeEmbedder

if TYPE_CHECKING:
    from qdrant_client import AsyncQdrantClient

KINDS = ("records", "qdrant")
SCOPES = ("session", "user", "global")
DIMENSIONS = 32


class SlowEmbedder(FakeEmbedder):
    """Takes up to `slow` seconds for each call; `entered` is told when one is under way."""

    def __init__(
        self,
        *,
        slow: float = 0.0,
        dimensions: int = DIMENSIONS,
        identity: str = "fake",
        entered: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(dimensions)
        self.slow, self.identity, self.entered = slow, identity, entered

    async def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        if self.entered is not None:
            self.entered()
        if self.slow:
            await asyncio.sleep(random.random() * self.slow)
        return await super().__call__(texts)


class Unreliable:
    """A client whose methods named in `down` ("*": all) find nobody at the other end."""

    def __init__(self, client: AsyncQdrantClient) -> None:
        self.client = client
        self.down: set[str] = set()
        self.refused = 0
        self.init_options = client.init_options

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(**arguments: Any) -> Any:
            if self.down & {"*", name}:
                self.refused += 1
                raise ConnectionError("connection refused")
            return await getattr(self.client, name)(**arguments)

        return call


@dataclass
class Shop:
    """One of the two vector stores, to be opened again and again; `client` is that of Qdrant."""

    kind: str
    database: Path
    client: Unreliable | None = None
    collection: str = "memory"

    @property
    def store(self) -> QdrantVectorStore | None:
        """What `vector_store` is given."""
        if self.client is None:
            return None
        return QdrantVectorStore(self.client, self.collection, retries=1, backoff=0.001)

    async def stored(self) -> list[Stored]:
        """Everything that is there, of whatever scope, past all filters."""
        if self.client is None:
            return _rows(self.database)
        return await _points(self.client.client)


@asynccontextmanager
async def shop(kind: str, database: Path, folder: Path | None = None) -> AsyncIterator[Shop]:
    """The store of that kind; Qdrant in `folder`, or in memory."""
    if kind == "records":
        yield Shop(kind, database)
        return
    # Here, because the processes that are killed start faster without it.
    from qdrant_client import AsyncQdrantClient

    client = AsyncQdrantClient(":memory:") if folder is None else AsyncQdrantClient(path=str(folder))
    try:
        yield Shop(kind, database, Unreliable(client))
    finally:
        await client.close()


def recalling(where: Shop, embedder: Any = None, scopes: Sequence[str] = SCOPES, **options: Any) -> list[VectorMemoryBlock]:
    """One block for each scope; they share store and embedder, and show whatever they find."""
    settings: dict[str, Any] = {"priority": 1, "floor": None, "least_score": 0.0, "vector_store": where.store}
    return [
        VectorMemoryBlock(name=f"of_{scope}", scope=scope, embed_model=embedder, **(settings | options)) for scope in scopes
    ]


def recall_engine(database: Path, blocks: Sequence[VectorMemoryBlock], **options: Any) -> MemoryEngine:
    """An engine that flushes often and has room to show what it recalls."""
    # Local Qdrant holds up the event loop, and with it the renewal of leases.
    settings: dict[str, Any] = {
        "token_limit": 2000,
        "token_flush_size": 60,
        "limits": replace(QUICK, lease=2.0),
        "tokenizer_fn": words,
    }
    settings |= {"async_database_uri": f"sqlite+aiosqlite:///{database}", "memory_blocks": blocks}
    return MemoryEngine(**(settings | options))


# -- what is there -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """An item as it lies in its store; `found_by` is what it is found by, words and vector."""

    scope: str
    block: str
    session_id: str
    session_uid: str
    seq: int
    last_seq: int
    part: int
    text: str
    found_by: object

    @property
    def timeless(self) -> tuple[object, ...]:
        """Without what differs from run to run."""
        return (self.block, self.session_id, self.seq, self.last_seq, self.part, self.text, self.found_by)


def _rows(database: Path) -> list[Stored]:
    found = rows(
        database,
        "SELECT scope_key, block, session_uid, seq, data, blob FROM memory_block_records WHERE key LIKE 'item:%'",
    )
    stored = []
    for scope, block, uid, seq, text, blob in found:
        data = json.loads(text)
        place = (data["session_id"], uid, seq, data["last_seq"], data.get("part", 0))
        stored.append(Stored(scope, block, *place, data["text"], blob))
    return stored


async def _points(client: AsyncQdrantClient) -> list[Stored]:
    stored = []
    for collection in (await client.get_collections()).collections:
        points, after = await client.scroll(collection.name, limit=100_000, with_payload=True, with_vectors=True)
        assert after is None
        for point in points:
            payload = point.payload or {}
            item = payload["item"]
            assert isinstance(point.vector, dict)
            vector: Any = point.vector["words"]
            found_by = (tuple(vector.indices), tuple(vector.values), tuple(point.vector.get("dense", ())))
            place = (
                item.get("session_id"),
                payload.get("session_uid"),
                payload.get("seq"),
                item.get("last_seq"),
                payload["part"],
            )
            stored.append(Stored(payload["scope"], payload["block"], *place, item["text"], found_by))
    return stored
