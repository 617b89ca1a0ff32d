"""The vector store contract for each store, and what is particular to one of them."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from memory_engine import MemoryEngine
from memory_engine.block import Erased, Record, Records
from memory_engine.blocks import VectorMemoryBlock
from memory_engine.blocks.vector import records
from memory_engine.blocks.vector.qdrant import QdrantVectorStore, point_id, word_index
from memory_engine.blocks.vector.records import RecordsVectorStore
from memory_engine.blocks.vector.store import Entry, Scope
from memory_engine.errors import BlockError, BlockUnavailableError, ConfigurationError, MissingExtraError, StoreError
from memory_engine.testing import VectorStoreContract
from memory_engine.testing.vector_store_contract import OpenScope, ask, passage, said

# -- Qdrant, embedded ------------------------------------------------------------------------------------------------


class NoRecords:
    """Records of a block that keeps none."""

    async def read(self, **options: Any) -> list[Record]:
        return []

    async def count(self) -> int:
        return 0


def scope_of(tenant: str = "acme", key: str = "one", block: str = "recall", erasing: tuple[Erased, ...] = ()) -> Scope:
    return Scope(tenant, key, block, Records(NoRecords(), None, writable=True), erasing=erasing)


@asynccontextmanager
async def open_for_qdrant(tenant: str = "acme", key: str = "one", block: str = "recall") -> AsyncIterator[Scope]:
    yield scope_of(tenant, key, block)


@pytest.fixture
async def memory() -> AsyncIterator[AsyncQdrantClient]:
    client = AsyncQdrantClient(":memory:")
    yield client
    await client.close()


class TestQdrantInMemory(VectorStoreContract):
    @pytest.fixture
    def store(self, memory: AsyncQdrantClient) -> QdrantVectorStore:
        return QdrantVectorStore(memory)

    @pytest.fixture
    def open_scope(self) -> OpenScope:
        return open_for_qdrant


class TestQdrantInAFolder(VectorStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[QdrantVectorStore]:
        client = AsyncQdrantClient(path=str(tmp_path))
        yield QdrantVectorStore(client, batch_size=64)
        await client.close()

    @pytest.fixture
    def open_scope(self) -> OpenScope:
        return open_for_qdrant


async def test_what_is_in_a_folder_survives_a_restart(tmp_path: Path) -> None:
    for n in range(2):
        client = AsyncQdrantClient(path=str(tmp_path))
        store = QdrantVectorStore(client)
        assert await store.count(scope_of()) == n
        await store.add(scope_of(), [said(n, f"cat {n}", [1.0, float(n)])])
        found = await store.search(scope_of(), ask("cat"), limit=5)
        assert [item.text for item in found.items] == [f"cat {i}" for i in range(n + 1)]
        await client.close()


# -- Qdrant, calls that fail -----------------------------------------------------------------------------------------


class Double:
    """A client that writes down its calls, fails when told to, and else does what the real one does."""

    def __init__(self, client: AsyncQdrantClient, *errors: Exception, always: Exception | None = None) -> None:
        self.client = client
        self.errors = list(errors)
        self.always = always
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.init_options = client.init_options

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(**arguments: Any) -> Any:
            self.calls.append((name, arguments))
            if self.errors:
                raise self.errors.pop(0)
            if self.always is not None:
                raise self.always
            return await getattr(self.client, name)(**arguments)

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def answer(status: int, content: bytes = b"") -> UnexpectedResponse:
    return UnexpectedResponse(status, "", content, httpx.Headers())


class TooMany(Exception):
    """What newer clients raise for 429 with Retry-After."""

    retry_after_s = 0


class GrpcCode:
    def __init__(self, name: str) -> None:
        self.name = name


class GrpcFailure(Exception):
    """What grpc raises, as far as the store looks."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def code(self) -> GrpcCode:
        return GrpcCode(self.name)


PASSING = [
    answer(429),
    answer(500),
    answer(503),
    TooMany(),
    GrpcFailure("UNAVAILABLE"),
    GrpcFailure("RESOURCE_EXHAUSTED"),
    ResponseHandlingException(httpx.ConnectError("refused")),
    ResponseHandlingException(httpx.ReadTimeout("slow")),
    ConnectionResetError("reset"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
async def test_what_passes_is_tried_again(memory: AsyncQdrantClient, error: Exception) -> None:
    double = Double(memory)
    store = QdrantVectorStore(double, backoff=0.001)
    for _ in range(2):  # the second time, the collection is known
        double.errors = [error, error]
        await store.add(scope_of(), [said(0, "a cat", [1.0, 0.0])])
        assert len((await store.search(scope_of(), ask("cat"), limit=5)).items) == 1
        double.errors = [error]
        await store.remove(scope_of(), "s1", [5])
    assert await store.count(scope_of()) == 1


@pytest.mark.parametrize("error", PASSING, ids=repr)
@pytest.mark.parametrize("known", [False, True])
async def test_a_server_that_stays_down(memory: AsyncQdrantClient, error: Exception, known: bool) -> None:
    double = Double(memory)
    store = QdrantVectorStore(double, retries=2, backoff=0.001)
    if known:
        await store.add(scope_of(), [said(0, "a cat", [1.0, 0.0])])
    double.always = error
    double.calls.clear()
    with pytest.raises(BlockUnavailableError, match="not available"):
        await store.add(scope_of(), [said(1, "a dog", [1.0, 0.0])])
    assert double.names() == ["upsert" if known else "get_collection"] * 3
    with pytest.raises(BlockUnavailableError):
        await store.search(scope_of(), ask("cat", [1.0, 0.0]), limit=5)
    with pytest.raises(BlockUnavailableError):
        await store.search(scope_of(), ask(), limit=5)
    with pytest.raises(BlockUnavailableError):
        await store.count(scope_of())
    with pytest.raises(BlockUnavailableError):
        await store.items(scope_of(), "s1", 0, 5)
    with pytest.raises(BlockUnavailableError):
        await store.remove(scope_of(), "s1", None)
    with pytest.raises(BlockUnavailableError):
        await store.remove_documents(scope_of(), None)
    double.always = None
    await store.add(scope_of(), [said(1, "a dog", [1.0, 0.0])])
    assert await store.count(scope_of()) == 1 + known


async def test_a_search_does_not_wait_for_a_server_that_is_down(memory: AsyncQdrantClient) -> None:
    now = 0.0
    double = Double(memory)
    store = QdrantVectorStore(double, retries=2, backoff=0.001, clock=lambda: now)
    await store.add(scope_of(), [said(0, "a cat", [1.0, 0.0])])

    async def searched() -> int:
        """How many calls a search makes that fails."""
        double.calls.clear()
        with pytest.raises(BlockUnavailableError, match=r"Qdrant is not available .*: down"):
            await store.search(scope_of(), ask(), limit=5)
        return len(double.calls)

    double.always = ConnectionError("down")
    assert [await searched() for _ in range(3)] == [1, 0, 0], "one attempt, then none for a while"
    now += 6
    assert [await searched() for _ in range(2)] == [1, 0]
    now += 6
    double.always = None
    found = [await store.search(scope_of(), ask("cat", [1.0, 0.0]), limit=5) for _ in range(2)]
    assert [len(one.items) for one in found] == [1, 1], "it is back"

    double.always = ConnectionError("down")
    with pytest.raises(BlockUnavailableError):
        await store.add(scope_of(), [said(1, "a dog", [1.0, 0.0])])
    assert await searched() == 0, "what a delivery found out counts"
    double.always = None
    await store.add(scope_of(), [said(1, "a dog", [1.0, 0.0])])
    assert len((await store.search(scope_of(), ask("cat dog"), limit=5)).items) == 2, "and so does its success"


async def test_a_search_gives_up_a_server_that_hangs(memory: AsyncQdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_engine.blocks.vector.qdrant_calls.QUICKLY", 0.01)

    class Hanging(Double):
        def __getattr__(self, name: str) -> Callable[..., Any]:
            async def call(**arguments: Any) -> Any:
                await asyncio.Event().wait()

            return call

    store = QdrantVectorStore(Hanging(memory))
    with pytest.raises(BlockUnavailableError, match="not available"):
        await store.search(scope_of(), ask("cat"), limit=5)


async def test_a_closed_client_is_not_tried_again(tmp_path: Path) -> None:
    client = AsyncQdrantClient(path=str(tmp_path))
    store = QdrantVectorStore(client)
    await store.add(scope_of(), [said(0, "a cat")])
    await client.close()
    with pytest.raises(BlockUnavailableError, match="closed"):
        await store.count(scope_of())


@pytest.mark.parametrize("error", [answer(400, b"bad filter"), answer(403, b"forbidden"), GrpcFailure("INVALID_ARGUMENT")])
async def test_what_the_server_refuses_is_told_at_once(memory: AsyncQdrantClient, error: Exception) -> None:
    double = Double(memory, error)
    store = QdrantVectorStore(double)
    with pytest.raises(BlockError, match="refused") as caught:
        await store.add(scope_of(), [said(0, "a cat")])
    assert not isinstance(caught.value, BlockUnavailableError)
    assert double.names() == ["get_collection"]


async def test_an_error_of_ours_is_not_disguised(memory: AsyncQdrantClient) -> None:
    with pytest.raises(KeyError):
        await QdrantVectorStore(Double(memory, KeyError("bug"))).count(scope_of())


class Rest:
    """A Qdrant server, as far as the calls of a write go; the real client speaks to it."""

    def __init__(self) -> None:
        self.collection: dict[str, Any] | None = None
        self.fail: list[httpx.Response] = []
        self.paths: list[str] = []
        self.indexes: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = f"{request.method} {request.url.path}"
        self.paths.append(path)
        if self.fail:
            return self.fail.pop(0)
        if path == "GET /collections/memory":
            return self.look()
        if path == "PUT /collections/memory":
            if self.collection is not None:
                return httpx.Response(409, json={"status": {"error": "Collection `memory` already exists!"}})
            self.collection = httpx.Response(200, content=request.content).json()
            return httpx.Response(200, json={"result": True, "status": "ok", "time": 0})
        if path.endswith("/index"):
            self.indexes.append(httpx.Response(200, content=request.content).json()["field_name"])
        return httpx.Response(200, json={"result": {"operation_id": 1, "status": "completed"}, "status": "ok", "time": 0})

    def look(self) -> httpx.Response:
        if self.collection is None:
            return httpx.Response(404, json={"status": {"error": "Not found: Collection `memory` doesn't exist!"}, "time": 0})
        result = {
            "status": "green",
            "optimizer_status": "ok",
            "segments_count": 1,
            "config": {
                "params": self.collection,
                "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000},
                "optimizer_config": {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1, "default_segment_number": 0}
                | {"flush_interval_sec": 5},
            },
            "payload_schema": {name: {"data_type": "keyword", "points": 0} for name in self.indexes},
        }
        return httpx.Response(200, json={"result": result, "status": "ok", "time": 0})


@pytest.fixture
async def rest() -> AsyncIterator[tuple[Rest, AsyncQdrantClient]]:
    server = Rest()
    client = AsyncQdrantClient(url="http://qdrant", check_compatibility=False, transport=httpx.MockTransport(server))
    yield server, client
    await client.close()


async def test_a_server_gets_its_collection_and_indexes_once(rest: tuple[Rest, AsyncQdrantClient]) -> None:
    server, client = rest
    store = QdrantVectorStore(client, backoff=0.001, create={"replication_factor": 2})
    assert await store.count(scope_of()) == 0
    assert server.paths == ["GET /collections/memory"]  # readers create nothing
    server.fail = [httpx.Response(503), httpx.Response(429, headers={"Retry-After": "0"})]
    await store.add(scope_of(), [said(0, "a cat", [1.0, 0.0])])
    assert server.collection is not None
    assert server.collection["replication_factor"] == 2
    assert server.collection["vectors"] == {"dense": {"size": 2, "distance": "Cosine"}}
    assert server.collection["sparse_vectors"] == {"words": {"modifier": "idf"}}
    filtered = {"tenant", "scope", "block", "session_uid", "seq", "until", "document", "part", "kind"}
    assert sorted(server.indexes) == sorted(filtered)
    await store.add(scope_of(), [said(1, "a dog", [1.0, 0.0])])
    await QdrantVectorStore(client).add(scope_of(), [said(2, "a bird", [1.0, 0.0])])
    assert sorted(server.indexes) == sorted(filtered)


async def test_indexes_that_a_crash_left_out_are_made_later(rest: tuple[Rest, AsyncQdrantClient]) -> None:
    server, client = rest
    server.collection = {
        "vectors": {"dense": {"size": 2, "distance": "Cosine"}},
        "sparse_vectors": {"words": {"modifier": "idf"}},
    }
    server.indexes = ["tenant", "scope"]
    await QdrantVectorStore(client).add(scope_of(), [said(0, "a cat", [1.0, 0.0])])
    assert len(server.indexes) == len(set(server.indexes)) == 9


async def test_another_process_may_make_the_collection_first(rest: tuple[Rest, AsyncQdrantClient]) -> None:
    server, client = rest
    store = QdrantVectorStore(client)
    missing = server.look()
    server.collection = {"vectors": {}, "sparse_vectors": {"words": {"modifier": "idf"}}}
    server.fail = [missing]
    await store.add(scope_of(), [said(0, "a cat")])
    assert "PUT /collections/memory" in server.paths and "PUT /collections/memory/points" in server.paths


async def test_a_404_of_something_else_is_not_an_empty_store(rest: tuple[Rest, AsyncQdrantClient]) -> None:
    server, client = rest
    server.fail = [httpx.Response(404, text="<h1>Not Found</h1>")]
    with pytest.raises(BlockUnavailableError):
        await QdrantVectorStore(client).count(scope_of())


async def test_a_refused_connection_is_a_server_that_is_down() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    client = AsyncQdrantClient(url="http://qdrant", check_compatibility=False, transport=httpx.MockTransport(refuse))
    with pytest.raises(BlockUnavailableError, match="refused"):
        await QdrantVectorStore(client, retries=1, backoff=0.001).search(scope_of(), ask("cat"), limit=5)
    await client.close()


# -- Qdrant, collections ---------------------------------------------------------------------------------------------

WORDS = {"words": models.SparseVectorParams(modifier=models.Modifier.IDF)}
TWO = models.VectorParams(size=2, distance=models.Distance.COSINE)

FOREIGN: dict[str, dict[str, Any]] = {
    "unnamed": {"vectors_config": TWO},
    "without words": {"vectors_config": {"dense": TWO}},
    "without idf": {"vectors_config": {"dense": TWO}, "sparse_vectors_config": {"words": models.SparseVectorParams()}},
    "other names": {"vectors_config": {"text": TWO}, "sparse_vectors_config": WORDS},
    "other distance": {
        "vectors_config": {"dense": models.VectorParams(size=2, distance=models.Distance.EUCLID)},
        "sparse_vectors_config": WORDS,
    },
    "multivector": {
        "vectors_config": {
            "dense": models.VectorParams(
                size=2,
                distance=models.Distance.COSINE,
                multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
            )
        },
        "sparse_vectors_config": WORDS,
    },
}


@pytest.mark.parametrize("config", FOREIGN.values(), ids=FOREIGN)
async def test_a_foreign_collection_is_refused(memory: AsyncQdrantClient, config: dict[str, Any]) -> None:
    await memory.create_collection("memory", **config)
    store = QdrantVectorStore(memory)
    with pytest.raises(BlockError, match="was not made by QdrantVectorStore"):
        await store.add(scope_of(), [said(0, "a cat", [1.0, 0.0])])
    with pytest.raises(BlockError, match="was not made by QdrantVectorStore"):
        await store.search(scope_of(), ask("cat"), limit=5)
    with pytest.raises(BlockError, match="was not made by QdrantVectorStore"):
        await store.count(scope_of())
    with pytest.raises(BlockError, match="was not made by QdrantVectorStore"):
        await store.remove(scope_of(), None, None)
    assert (await memory.count("memory")).count == 0


async def test_a_collection_of_words_takes_no_vectors(memory: AsyncQdrantClient) -> None:
    store = QdrantVectorStore(memory)
    await store.add(scope_of(), [said(0, "a cat")])
    with pytest.raises(BlockError, match="made without vectors"):
        await store.add(scope_of(), [said(1, "a dog", [1.0, 0.0])])
    found = await store.search(scope_of(), ask("cat", [1.0, 0.0]), limit=5)
    assert [item.text for item in found.items] == ["a cat"] and found.dense is None


async def test_a_collection_with_vectors_takes_words_alone(memory: AsyncQdrantClient) -> None:
    store = QdrantVectorStore(memory)
    await store.add(scope_of(), [said(0, "a cat", [1.0, 0.0]), said(1, "no cat")])
    found = await store.search(scope_of(), ask("cat", [1.0, 0.0]), limit=5)
    assert found.dense is not None
    assert found.dense.tolist() == pytest.approx([1.0, 0.0])


async def test_a_collection_that_is_deleted_counts_nothing_and_is_made_again(memory: AsyncQdrantClient) -> None:
    store = QdrantVectorStore(memory)
    await store.add(scope_of(), [said(0, "a cat", [1.0, 0.0])])
    await memory.delete_collection("memory")
    assert await store.count(scope_of()) == 0
    await store.add(scope_of(), [said(0, "a cat", [1.0, 0.0])])
    await memory.delete_collection("memory")
    assert len((await store.search(scope_of(), ask("cat", [1.0, 0.0]), limit=5)).items) == 0
    await store.add(scope_of(), [said(0, "a cat", [1.0, 0.0, 0.0])])  # another model may come with a new collection
    await memory.delete_collection("memory")
    await store.remove(scope_of(), "s1", None)
    await store.add(scope_of(), [said(0, "a cat")])
    await memory.delete_collection("memory")
    await store.add(scope_of(), [said(0, "a cat")])
    assert await store.count(scope_of()) == 1


async def test_two_collections_and_other_names(memory: AsyncQdrantClient) -> None:
    words = QdrantVectorStore(memory, "words-only")
    both = QdrantVectorStore(memory, "both", dense_name="d", sparse_name="s")
    await words.add(scope_of(), [said(0, "a cat")])
    await both.add(scope_of(), [said(0, "a cat", [1.0, 0.0]), said(1, "a dog", [0.0, 1.0])])
    assert [await store.count(scope_of()) for store in (words, both)] == [1, 2]


@pytest.mark.parametrize("vector", [[math.nan, 1.0], [math.inf, 1.0]])
async def test_a_vector_of_no_numbers_is_refused(memory: AsyncQdrantClient, vector: list[float]) -> None:
    store = QdrantVectorStore(memory)
    await store.add(scope_of(), [said(0, "a cat", [1.0, 0.0])])
    with pytest.raises(BlockError, match="NaN"):
        await store.add(scope_of(), [said(1, "a dog", vector)])
    with pytest.raises(BlockError, match="NaN"):
        await store.search(scope_of(), ask(vector=vector), limit=5)


async def test_metadata_that_is_not_json_is_refused(memory: AsyncQdrantClient) -> None:
    with pytest.raises(BlockError, match="JSON"):
        await QdrantVectorStore(memory).add(scope_of(), [said(0, "a cat", metadata={"set": {1}})])


def test_the_client_is_checked() -> None:
    sync = QdrantClient(":memory:")
    for wrong in (None, "http://localhost:6333", sync):
        with pytest.raises(ConfigurationError, match="AsyncQdrantClient"):
            QdrantVectorStore(wrong)
    sync.close()


async def test_the_numbers_are_checked(memory: AsyncQdrantClient) -> None:
    for wrong in ({"batch_size": 0}, {"retries": -1}, {"neighbours_of": -1}, {"backoff": -1.0}):
        with pytest.raises(ConfigurationError):
            QdrantVectorStore(memory, **wrong)


# -- Qdrant, whose points --------------------------------------------------------------------------------------------


def filters_in(value: Any) -> Iterator[models.Filter]:
    """The outermost filters of an argument."""
    if isinstance(value, models.Filter):
        yield value
    elif isinstance(value, models.FilterSelector):
        yield value.filter
    elif isinstance(value, models.Prefetch):
        yield value.filter or models.Filter()
    elif isinstance(value, list):
        for one in value:
            yield from filters_in(one)


async def test_every_call_is_bound_to_the_scope(memory: AsyncQdrantClient) -> None:
    double = Double(memory)
    store = QdrantVectorStore(double)
    scope = scope_of(erasing=(Erased("gone", None), Erased("s1", (7,))))
    await store.add(scope, [said(0, "a cat", [1.0, 0.0]), passage("doc", 0, "cat paper", [0.0, 1.0])])
    await store.search(scope, ask("cat", [1.0, 0.0]), limit=5)
    await store.search(scope, ask("cat"), limit=5)
    await store.remove(scope, "s1", [0, 5])
    await store.remove(scope, "s1", None)
    await store.remove_documents(scope, ["doc"])
    await store.remove_documents(scope, None)
    await store.remove(scope, None, None)
    await store.items(scope, "s1", 0, 5)
    await store.count(scope)
    assert {"query_points", "scroll", "delete", "count", "upsert"} < set(double.names())
    mine = {"tenant": "acme", "scope": "one", "block": "recall"}
    for name, arguments in double.calls:
        if name in {"get_collection", "create_collection"}:
            continue
        if name == "upsert":
            assert all(point.payload.items() >= mine.items() for point in arguments["points"])
            continue
        found = [one for value in arguments.values() for one in filters_in(value)]
        assert len(found) == len(arguments.get("prefetch", [None]))
        for one in found:
            required = {
                part.key: part.match.value
                for part in one.must
                if isinstance(part, models.FieldCondition) and isinstance(part.match, models.MatchValue)
            }
            assert required.items() >= mine.items()


async def test_a_search_is_one_query_and_one_call_for_neighbours(memory: AsyncQdrantClient) -> None:
    double = Double(memory)
    store = QdrantVectorStore(double)
    await store.add(scope_of(), [said(n, f"cat {n}", [1.0, n / 10]) for n in range(10)])
    double.calls.clear()
    await store.search(scope_of(), ask("cat", [1.0, 0.0]), limit=3)
    assert sorted(double.names()) == ["count", "query_points", "scroll"]
    query = next(arguments for name, arguments in double.calls if name == "query_points")
    assert [(one.using, one.limit) for one in query["prefetch"]] == [("dense", 3), ("words", 3)]


async def test_a_server_that_ignores_filters_shows_nothing_of_others(memory: AsyncQdrantClient) -> None:
    class Careless(Double):
        def __getattr__(self, name: str) -> Callable[..., Any]:
            real = super().__getattr__(name)

            async def call(**arguments: Any) -> Any:
                for one in arguments.get("prefetch", []):
                    one.filter = None
                if "scroll_filter" in arguments:
                    arguments["scroll_filter"] = None
                return await real(**arguments)

            return call

    store = QdrantVectorStore(Careless(memory))
    await store.add(scope_of(), [said(0, "my cat", [1.0, 0.0])])
    await store.add(scope_of(tenant="globex"), [said(0, "your cat", [1.0, 0.0])])
    found = await store.search(scope_of(), ask("cat", [1.0, 0.0]), limit=5)
    assert [item.text for item in found.items] == ["my cat"]


def test_ids_are_the_same_in_every_process() -> None:
    code = (
        "from memory_engine.blocks.vector.qdrant import point_id, word_index\n"
        "from memory_engine.blocks.vector.store import Scope\n"
        "print(point_id(Scope('acme', 'one', 'recall', None), 'ключ:1'), word_index('東京'))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    expected = f"{point_id(scope_of(), 'ключ:1')} {word_index('東京')}\n"
    assert told == [expected, expected]
    # A new version of this package must find what older ones stored.
    assert expected == "ffcc2827-c11d-5858-912a-8cfd536364c7 1472039964\n"
    different = [scope_of(tenant="x"), scope_of(key="x"), scope_of(block="x"), scope_of(tenant="acme\x00", key="one")]
    assert len({point_id(scope, "k") for scope in (*different, scope_of())}) == 5


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, memory_engine.blocks, memory_engine.blocks.vector.qdrant\n"
        "print({'qdrant_client', 'numpy', 'grpc', 'httpx'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout == "set()\n"


def test_without_qdrant_client_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(MissingExtraError, match=r"pip install memory-engine-blocks\[qdrant\]"):
        QdrantVectorStore(object())


# -- Qdrant, answers -------------------------------------------------------------------------------------------------


async def test_counts_are_exact_for_any_length(memory: AsyncQdrantClient) -> None:
    # They are computed from the stored weights, which have the precision of 32 bits.
    cases = [(1, 1), (1, 5000), (37, 40), (400, 400), (400, 100_000), (5000, 5000)]
    entries = [
        Entry(
            said(10 * n, f"{count} of {length}").item,
            {"cat": count, "other": length - count} if length > count else {"cat": count},
        )
        for n, (count, length) in enumerate(cases)
    ]
    store = QdrantVectorStore(memory)
    await store.add(scope_of(), entries)
    found = await store.search(scope_of(), ask("cat"), limit=10)
    assert found.counts[:, 0].tolist() == [count for count, _ in cases]
    assert found.lengths.tolist() == [length for _, length in cases]


async def test_beyond_the_limit_frequencies_are_estimated(memory: AsyncQdrantClient) -> None:
    store = QdrantVectorStore(memory)
    frequent = [said(10 * n, f"the cat number{n}") for n in range(400)]
    rare = [said(5000 + 10 * n, f"the zebra number{n}") for n in range(3)]
    await store.add(scope_of(), [*frequent, *rare])
    found = await store.search(scope_of(), ask("cat zebra unheard"), limit=20)
    cat, zebra, unheard = found.frequency.tolist()
    assert found.total == 403
    assert 200 <= cat <= 403 and 3 <= zebra <= 15 and unheard == 0


async def test_what_is_being_erased_takes_no_place_of_the_limit(memory: AsyncQdrantClient) -> None:
    store = QdrantVectorStore(memory)
    await store.add(scope_of(), [said(10 * n, "cat cat", session="gone") for n in range(50)])
    await store.add(scope_of(), [said(0, "one cat in a long sentence")])
    found = await store.search(scope_of(erasing=(Erased("gone", None),)), ask("cat"), limit=3)
    assert [item.text for item in found.items] == ["one cat in a long sentence"]


async def test_sessions_come_in_the_order_they_began_and_documents_last(memory: AsyncQdrantClient) -> None:
    store = QdrantVectorStore(memory)
    late = [said(1000 + n, f"cat late {n}", session="a") for n in range(2)]
    early = [said(n, f"cat early {n}", session="b") for n in range(2)]
    await store.add(scope_of(), [passage("doc", 0, "cat paper"), *late, *early])
    found = await store.search(scope_of(), ask("cat"), limit=10)
    assert [item.text for item in found.items] == ["cat early 0", "cat early 1", "cat late 0", "cat late 1", "cat paper"]


async def test_words_on_one_place_are_added(memory: AsyncQdrantClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memory_engine.blocks.vector.qdrant_points.word_index", lambda word: 7)
    store = QdrantVectorStore(memory)
    await store.add(scope_of(), [said(0, "cat dog")])
    found = await store.search(scope_of(), ask("fish bird"), limit=10)
    assert found.counts.tolist() == [[2, 2]]
    assert found.frequency.tolist() == [1, 1]


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_of_nothing(memory: AsyncQdrantClient, limit: int) -> None:
    store = QdrantVectorStore(memory)
    await store.add(scope_of(), [said(0, "a cat")])
    found = await store.search(scope_of(), ask("cat"), limit=limit)
    assert (list(found.items), found.total) == ([], 1)


# -- records, in the database of the memory --------------------------------------------------------------------------


@asynccontextmanager
async def engine_on(path: Path) -> AsyncIterator[MemoryEngine]:
    blocks = [VectorMemoryBlock(name=name, scope="user") for name in ("recall", "notes")]
    async with MemoryEngine(async_database_uri=f"sqlite+aiosqlite:///{path / 'memory.db'}", memory_blocks=blocks) as engine:
        yield engine


@asynccontextmanager
async def open_records(
    engine: MemoryEngine, tenant: str = "acme", key: str = "one", block: str = "recall"
) -> AsyncIterator[Scope]:
    async with engine.session(f"of {key}", user_id=key, tenant=tenant).block(block) as bound:
        assert isinstance(bound, VectorMemoryBlock)
        yield bound._scope()


class TestRecords(VectorStoreContract):
    @pytest.fixture
    def store(self) -> RecordsVectorStore:
        return RecordsVectorStore()

    @pytest.fixture
    async def open_scope(self, tmp_path: Path) -> AsyncIterator[OpenScope]:
        async with engine_on(tmp_path) as engine:

            def opened(tenant: str = "acme", key: str = "one", block: str = "recall") -> AbstractAsyncContextManager[Scope]:
                return open_records(engine, tenant, key, block)

            yield opened


class TestRecordsWithoutACache(TestRecords):
    @pytest.fixture
    def store(self) -> RecordsVectorStore:
        return RecordsVectorStore(cache_bytes=0)


async def texts_in(store: RecordsVectorStore, scope: Scope, query: str) -> list[str]:
    found = await store.search(scope, ask(query), limit=10)
    return [item.text for item, row in zip(found.items, found.counts.tolist(), strict=True) if any(row)]


async def test_what_a_transaction_wrote_is_seen_by_it_alone(tmp_path: Path) -> None:
    store = RecordsVectorStore()
    async with engine_on(tmp_path) as engine:
        async with open_records(engine) as scope:
            await store.add(scope, [said(0, "a cat")])
            assert await texts_in(store, scope, "cat") == ["a cat"]
        with suppress(KeyError):
            async with open_records(engine) as scope:
                await store.add(scope, [said(1, "another cat")])
                await store.remove(scope, "s1", [0])
                assert await texts_in(store, scope, "cat") == ["another cat"]
                assert await store.count(scope) == 1
                raise KeyError
        async with open_records(engine) as scope:
            assert await texts_in(store, scope, "cat") == ["a cat"]


async def test_a_transaction_that_is_undone_leaves_nothing_in_an_empty_scope(tmp_path: Path) -> None:
    store = RecordsVectorStore()
    async with engine_on(tmp_path) as engine:
        with suppress(KeyError):
            async with open_records(engine) as scope:
                await store.add(scope, [said(0, "a cat")])
                assert await texts_in(store, scope, "cat") == ["a cat"]
                raise KeyError
        async with open_records(engine) as scope:
            assert await texts_in(store, scope, "cat") == []


async def test_the_beginning_of_an_id_is_another_document(tmp_path: Path) -> None:
    store = RecordsVectorStore()
    async with engine_on(tmp_path) as engine:
        async with open_records(engine) as scope:
            await store.add(scope, [passage(name, 0, f"cat {name}") for name in ("a", "a:b", "a%", "a_", "ab")])
        async with open_records(engine) as scope:
            assert await store.remove_documents(scope, ["a", "a"]) == 1
        async with open_records(engine) as scope:
            assert await store.count(scope) == 4
            assert await store.remove_documents(scope, ["a:b", "a%"]) == 2


async def test_two_databases_with_the_same_users_are_apart(tmp_path: Path) -> None:
    store = RecordsVectorStore()
    for name in ("north", "south"):
        (tmp_path / name).mkdir()
    async with engine_on(tmp_path / "north") as north, engine_on(tmp_path / "south") as south:
        async with open_records(north) as scope:
            await store.add(scope, [said(0, "a cat")])
        for engine, expected in ((north, ["a cat"]), (south, [])):
            async with open_records(engine) as scope:
                assert await texts_in(store, scope, "cat") == expected


async def test_the_caches_of_scopes_stay_below_their_limit(tmp_path: Path) -> None:
    store = RecordsVectorStore(cache_bytes=20_000)
    async with engine_on(tmp_path) as engine:
        for key in "abcdef":
            async with open_records(engine, key=key) as scope:
                await store.add(scope, [said(n, f"cat {n} of {key}", [1.0, float(n)]) for n in range(12)])
        for key in "abcdefabc":
            async with open_records(engine, key=key) as scope:
                assert len(await texts_in(store, scope, f"of {key}")) == 12
                [cache] = store._caches.values()
                assert sum(index.bytes for index in cache._indexes.values()) <= 20_000
                assert 1 <= len(cache._indexes) < 6


async def test_a_scope_is_read_once_for_all_who_ask_and_also_when_they_cannot_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, pages, go_on = RecordsVectorStore(), 0, asyncio.Event()
    original = records._pages

    async def slow(scope: Scope, changed_since: int | None = None) -> AsyncIterator[list[Record]]:
        nonlocal pages
        async for page in original(scope, changed_since):
            pages += 1
            await go_on.wait()
            yield page

    monkeypatch.setattr(records, "_pages", slow)
    async with engine_on(tmp_path) as engine:
        async with open_records(engine) as scope:
            await store.add(scope, [said(n, f"cat {n}") for n in range(12)])
        async with open_records(engine) as scope:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(store.search(scope, ask("cat"), limit=5), 0.02)
            asking = [asyncio.create_task(store.search(scope, ask("cat"), limit=5)) for _ in range(5)]
            await asyncio.sleep(0.02)
            go_on.set()
            assert [found.total for found in await asyncio.gather(*asking)] == [12] * 5
            assert pages == 1


async def test_a_scope_that_could_not_be_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, original, failures = RecordsVectorStore(), records._pages, [StoreError("busy")]

    async def failing(scope: Scope, changed_since: int | None = None) -> AsyncIterator[list[Record]]:
        if failures:
            raise failures.pop()
        async for page in original(scope, changed_since):
            yield page

    monkeypatch.setattr(records, "_pages", failing)
    async with engine_on(tmp_path) as engine:
        async with open_records(engine) as scope:
            await store.add(scope, [said(n, f"cat {n}") for n in range(12)])
        async with open_records(engine) as scope:
            with pytest.raises(StoreError, match="busy"):
                await store.search(scope, ask("cat"), limit=5)
            assert (await store.search(scope, ask("cat"), limit=5)).total == 12


async def test_an_item_of_a_newer_format_says_so(tmp_path: Path) -> None:
    store = RecordsVectorStore()
    async with engine_on(tmp_path) as engine:
        async with open_records(engine) as scope:
            scope.records.put("item:s1:0:0", {"text": "a cat", "role": "user", "tokens": 2}, blob=b"\xff\0\0\0\0", seq=0)
        async with open_records(engine) as scope:
            with pytest.raises(BlockError, match="newer version"):
                await store.search(scope, ask("cat"), limit=5)
