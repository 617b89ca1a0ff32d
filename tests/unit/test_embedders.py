"""Whatever turns texts into vectors becomes one thing: checked, cached, off the event loop, with errors that say what to do."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_service import Service, package_class, serving

from memory_engine import BlockUnavailableError
from memory_engine.blocks import embedders
from memory_engine.blocks.embedders import (
    CachedEmbedder,
    Embedder,
    EmbeddingCache,
    FastEmbedEmbedder,
    LangChainEmbedder,
    LlamaIndexEmbedder,
    OpenAICompatibleEmbedder,
    SentenceTransformersEmbedder,
    WordLlamaEmbedder,
    as_embedder,
)
from memory_engine.blocks.embedders.cache import OVERHEAD, cache_key
from memory_engine.blocks.embedders.protocol import unit_rows
from memory_engine.blocks.services import failures, http
from memory_engine.errors import BlockError, BlockResultError, ConfigurationError, MissingExtraError

ROOT = Path(__file__).resolve().parents[2]


class Counting:
    """An async embedder that remembers what it was asked, and may be held."""

    identity = "counting"

    def __init__(self, *, held: bool = False) -> None:
        self.asked: list[list[str]] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        if not held:
            self.gate.set()

    async def __call__(self, texts: list[str]) -> list[list[float]]:
        self.asked.append(list(texts))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [[float(len(text)), 1.0] for text in texts]

    async def until_asked(self, times: int = 1) -> None:
        for _ in range(1000):
            if len(self.asked) >= times:
                return
            await asyncio.sleep(0)
        raise AssertionError(f"asked {len(self.asked)} times, not {times}")


def returns(value: Any) -> Callable[[list[str]], Any]:
    async def embed(texts: list[str]) -> Any:
        return value

    return embed


def raises(error: BaseException) -> Callable[[list[str]], Any]:
    async def embed(texts: list[str]) -> Any:
        raise error

    return embed


def cosine(one: Any, other: Any) -> float:
    return float(np.dot(one, other))


# -- importing ---------------------------------------------------------------------------------------------------


def test_importing_loads_no_model_and_no_numpy() -> None:
    heavy = ["numpy", "wordllama", "httpx", "fastembed", "sentence_transformers", "openai", "torch"]
    names = list(embedders.__all__)
    program = (
        "import sys, memory_engine.blocks.embedders as e\n"
        f"found = [getattr(e, name) for name in {names!r}]\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_all_names_are_there_and_no_others() -> None:
    assert set(embedders.__all__) <= set(dir(embedders))
    assert all([getattr(embedders, name).__name__ == name for name in embedders.__all__])
    with pytest.raises(AttributeError, match="NoSuchEmbedder"):
        embedders.NoSuchEmbedder  # noqa: B018


@pytest.mark.parametrize(
    ("module", "construct", "command"),
    [
        ("wordllama", WordLlamaEmbedder, 'pip install "memory-engine-blocks[local-embed]"'),
        ("fastembed", FastEmbedEmbedder, 'pip install "fastembed"'),
        ("sentence_transformers", SentenceTransformersEmbedder, 'pip install "sentence-transformers"'),
        ("httpx", lambda: OpenAICompatibleEmbedder("m"), 'pip install "httpx"'),
        ("numpy", lambda: as_embedder(Counting()), 'pip install "numpy"'),
    ],
)
def test_a_missing_package_is_named_with_its_command(
    module: str, construct: Callable[[], Any], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError) as caught:
        construct()
    assert command in str(caught.value)


async def test_a_package_that_does_not_load_is_named_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastembed", ModuleType("fastembed"))
    embedder = FastEmbedEmbedder()
    monkeypatch.setitem(sys.modules, "fastembed", None)
    with pytest.raises(MissingExtraError, match="fastembed"):
        await as_embedder(embedder).embed(["a"])


# -- what is taken -----------------------------------------------------------------------------------------------


async def test_an_async_function_is_an_embedder() -> None:
    async def embed(texts: list[str]) -> list[list[float]]:
        return [[3.0, 4.0] for _ in texts]

    assert isinstance(embed, Embedder)
    embedder = as_embedder(embed)
    vectors = await embedder.embed(["a", "b"])
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]] * 2
    assert (await embedder.embed_query("a")).tolist() == vectors[0].tolist()
    assert (await embedder(["a"])).shape == (1, 2)
    assert embedder.dimension == 2
    assert "embed" in embedder.identity


def test_a_cached_embedder_stays_itself() -> None:
    embedder = as_embedder(Counting())
    assert as_embedder(embedder) is embedder
    assert repr(embedder) == "CachedEmbedder('counting')"


@pytest.mark.parametrize("value", [None, "text-embedding-3-small", 7, object(), Counting, WordLlamaEmbedder])
def test_anything_else_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="embed_model"):
        as_embedder(value)


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "8"])
def test_a_wrong_batch_size_is_refused(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="batch_size"):
        CachedEmbedder(Counting(), batch_size=size)


async def test_a_sync_function_runs_in_one_other_thread() -> None:
    threads: list[threading.Thread] = []
    running = 0

    def embed(texts: list[str]) -> list[list[float]]:
        nonlocal running
        running += 1
        assert running == 1
        threads.append(threading.current_thread())
        running -= 1
        return [[1.0, float(len(text))] for text in texts]

    embedder = CachedEmbedder(partial(embed), batch_size=1)
    results = await asyncio.gather(*[embedder.embed([f"{n}", f"{n} {n}"]) for n in range(20)])
    assert all([rows.shape == (2, 2) for rows in results])
    assert len(set(threads)) == 1 and threads[0] is not threading.current_thread()
    assert "embed" in embedder.identity


async def test_a_sync_function_may_hand_back_an_awaitable_or_a_generator() -> None:
    model = Counting()
    assert (await CachedEmbedder(lambda texts: model([*texts])).embed(["ab"])).shape == (1, 2)
    assert (await as_embedder(lambda texts: ([1.0, 2.0] for _ in texts)).embed(["ab", "c"])).shape == (2, 2)


async def test_a_sync_function_that_stops_iteration_does_not_hang() -> None:
    def embed(texts: list[str]) -> Any:
        return next(iter(()))

    with pytest.raises(BlockError, match="StopIteration"):
        await as_embedder(embed).embed(["a"])


async def test_no_texts_are_no_call() -> None:
    model = Counting()
    embedder = as_embedder(model)
    assert (await embedder.embed([])).shape == (0, 0)
    await embedder.embed(["a"])
    assert (await embedder.embed([])).shape == (0, 2)
    assert model.asked == [["a"]]


async def test_half_a_character_does_not_reach_the_model() -> None:
    model = Counting()
    await as_embedder(model).embed(["a\ud83d", "b\ud83d\ude00"])
    assert model.asked == [["a\ufffd", "b\U0001f600"]]


async def test_a_model_may_embed_questions_otherwise() -> None:
    class Asymmetric(Counting):
        async def embed_query(self, text: str) -> list[float]:
            self.asked.append(["?" + text])
            return [0.0, 2.0]

    model = Asymmetric()
    embedder = as_embedder(model)
    for _ in range(2):
        assert (await embedder.embed_query("abc")).tolist() == [0.0, 1.0]
        assert (await embedder.embed(["abc"]))[0].tolist() != [0.0, 1.0]
    assert model.asked == [["?abc"], ["abc"]]


# -- what comes back is checked ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([[1.0]], "for 2 texts it returned 1"),
        ([[1.0]] * 3, "for 2 texts it returned 3"),
        ([[1.0], [1.0, 2.0]], "no table of numbers"),
        ([[1.0], [math.nan]], "NaN"),
        ([[1.0], [math.inf]], "infinite"),
        ([["1"], ["2"]], "type"),
        ([[None], [1.0]], "type"),
        ([[True], [False]], "type bool"),
        ([1.0, 2.0], "shape"),
        ([[], []], "shape"),
        (None, "NoneType"),
        ({"a": 1, "b": 2}, "dict"),
        (np.zeros((2, 2, 2)), "shape"),
    ],
)
async def test_a_wrong_result_is_named_and_not_kept(value: Any, says: str) -> None:
    embedder = CachedEmbedder(returns(value), identity="wrong-model")
    with pytest.raises(BlockResultError, match="wrong-model") as caught:
        await embedder.embed(["a", "b"])
    assert says in str(caught.value)
    assert len(embedder.cache) == 0


async def test_another_dimension_later_is_refused() -> None:
    async def embed(texts: list[str]) -> list[list[float]]:
        return [[1.0] * len(text) for text in texts]

    embedder = as_embedder(embed)
    await embedder.embed(["abc"])
    with pytest.raises(BlockResultError, match="before they had 3"):
        await embedder.embed(["abcd"])


async def test_large_lists_are_converted_elsewhere() -> None:
    rows = await as_embedder(returns([[1.0] * 2000] * 40)).embed([str(n) for n in range(40)])
    assert rows.shape == (40, 2000)


@given(st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1, max_size=5))
def test_vectors_have_unit_length_or_are_zero(rows: list[list[float]]) -> None:
    made = unit_rows(rows, len(rows), "model")
    for row, given_row in zip(made, rows, strict=True):
        expected = 1.0 if any(given_row) else 0.0
        assert float(np.linalg.norm(row.astype(np.float64))) == pytest.approx(expected, abs=1e-6)


def test_whole_numbers_are_vectors_too() -> None:
    assert unit_rows(np.array([[3, 4]], dtype=np.int8), 1, "model").tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]


# -- errors ------------------------------------------------------------------------------------------------------


class RateLimitError(Exception):
    pass


class APIStatusError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status_code = status


def wrapped(error: Exception) -> Exception:
    outer = RuntimeError("gave up")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("refused"),
        TimeoutError(),
        RateLimitError("slow down"),
        APIStatusError(429),
        APIStatusError(503),
        httpx.ConnectTimeout("late"),
        httpx.RemoteProtocolError("gone"),
        wrapped(ConnectionResetError()),
    ],
    ids=repr,
)
async def test_a_service_that_is_not_there_is_waited_for(error: Exception) -> None:
    with pytest.raises(BlockUnavailableError) as caught:
        await as_embedder(raises(error)).embed(["a"])
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [ValueError("bad"), APIStatusError(401), APIStatusError(501), FileNotFoundError("model")], ids=repr
)
async def test_any_other_failure_is_one_of_the_block(error: Exception) -> None:
    with pytest.raises(BlockError) as caught:
        await as_embedder(raises(error)).embed(["a"])
    assert not isinstance(caught.value, BlockUnavailableError)
    assert caught.value.__cause__ is error


async def test_errors_of_ours_stay_what_they_are() -> None:
    error = BlockUnavailableError("later")
    with pytest.raises(BlockUnavailableError) as caught:
        await as_embedder(raises(error)).embed(["a"])
    assert caught.value is error


async def test_an_embedder_that_cancels_itself_does_not_cancel_the_caller() -> None:
    with pytest.raises(BlockError, match="cancelled itself"):
        await as_embedder(raises(asyncio.CancelledError())).embed(["a"])


# -- batches, cache, sharing -------------------------------------------------------------------------------------


async def test_texts_go_in_batches_and_each_once() -> None:
    model = Counting()
    embedder = CachedEmbedder(model, batch_size=3)
    texts = [f"text {n}" for n in range(7)]
    rows = await embedder.embed([*texts, *texts])
    assert [len(batch) for batch in model.asked] == [3, 3, 1]
    assert [text for batch in model.asked for text in batch] == texts
    assert rows.shape == (14, 2)
    assert np.array_equal(rows[:7], rows[7:])
    await embedder.embed([*reversed(texts), "new"])
    assert model.asked[3:] == [["new"]]


async def test_a_model_may_say_its_batch_size() -> None:
    model = Counting()
    model.batch_size = 2
    await as_embedder(model).embed(["a", "b", "c"])
    assert [len(batch) for batch in model.asked] == [2, 1]


async def test_rows_are_in_the_order_of_the_texts() -> None:
    async def embed(texts: list[str]) -> list[list[float]]:
        return [[1.0, float(int(text))] for text in texts]

    embedder = CachedEmbedder(embed, batch_size=4)
    await embedder.embed(["5", "2", "9"])
    rows = await embedder.embed([str(n) for n in range(12)])
    assert [round(float(row[1] / row[0])) for row in rows] == list(range(12))


async def test_what_a_caller_does_with_a_result_does_not_change_the_cache() -> None:
    embedder = as_embedder(Counting())
    first = await embedder.embed_query("abc")
    kept = first.tolist()
    first[:] = 0
    rows = await embedder.embed(["abc"])
    rows[:] = 7
    assert (await embedder.embed_query("abc")).tolist() == kept


def test_the_cache_holds_what_was_used_last() -> None:
    vector = np.ones(4, dtype=np.float32)
    cache = EmbeddingCache(max_bytes=3 * (vector.nbytes + OVERHEAD))
    for name in (b"a", b"b", b"c"):
        cache.put(name, vector)
    assert cache.get(b"a") is not None
    cache.put(b"d", vector)
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    cache.put(b"d", vector)
    assert len(cache) == 3 and cache.size == 3 * (vector.nbytes + OVERHEAD)
    cache.clear()
    assert len(cache) == cache.size == 0


def test_a_row_in_the_cache_does_not_hold_its_batch() -> None:
    cache = EmbeddingCache()
    cache.put(b"a", np.ones((1000, 4), dtype=np.float32)[3])
    kept = cache.get(b"a")
    assert kept is not None and kept.base is None and not kept.flags.writeable


@pytest.mark.parametrize("size", [-1, True, 1.5, None])
def test_a_wrong_size_of_the_cache_is_refused(size: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_bytes"):
        EmbeddingCache(size)


async def test_a_cache_of_no_size_keeps_nothing_and_answers_all() -> None:
    model = Counting()
    embedder = CachedEmbedder(model, cache=EmbeddingCache(0), batch_size=2)
    assert (await embedder.embed(["a", "b", "c"])).shape == (3, 2)
    assert len(embedder.cache) == 0
    await embedder.embed(["a"])
    assert len(model.asked) == 3


async def test_one_cache_serves_two_models_without_mixing_them() -> None:
    cache = EmbeddingCache()
    one = CachedEmbedder(returns([[1.0, 0.0]]), identity="one", cache=cache)
    other = CachedEmbedder(returns([[0.0, 1.0, 0.0]]), identity="other", cache=cache)
    assert (await one.embed(["a"])).tolist() == [[1.0, 0.0]]
    assert (await other.embed(["a"])).tolist() == [[0.0, 1.0, 0.0]]
    assert cache_key("ab", "c") != cache_key("a", "bc")


async def test_callers_at_the_same_time_share_a_call() -> None:
    model = Counting(held=True)
    embedder = as_embedder(model)
    callers = [asyncio.create_task(embedder.embed(["a", "b"])) for _ in range(5)]
    callers.append(asyncio.create_task(embedder.embed(["b", "c"])))
    await model.until_asked(2)
    model.gate.set()
    results = await asyncio.gather(*callers)
    assert model.asked == [["a", "b"], ["c"]]
    assert np.array_equal(results[0][1], results[5][0])


async def test_a_cancelled_caller_does_not_cancel_the_others() -> None:
    model = Counting(held=True)
    embedder = as_embedder(model)
    first = asyncio.create_task(embedder.embed(["a"]))
    await model.until_asked()
    second = asyncio.create_task(embedder.embed(["a"]))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    model.gate.set()
    assert (await second).shape == (1, 2)
    assert model.asked == [["a"]] and model.cancelled == 0


async def test_a_call_that_is_joined_beside_another_is_not_given_up_in_between() -> None:
    model = Counting(held=True)
    embedder = as_embedder(model)
    first = asyncio.create_task(embedder.embed(["a"]))
    await model.until_asked()
    second = asyncio.create_task(embedder.embed(["b", "a"]))
    await model.until_asked(2)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    model.gate.set()
    assert (await second).shape == (2, 2)
    assert model.asked == [["a"], ["b"]] and model.cancelled == 0


async def test_a_call_that_nobody_waits_for_is_cancelled_and_the_next_caller_starts_anew() -> None:
    model = Counting(held=True)
    embedder = as_embedder(model)
    first = asyncio.create_task(embedder.embed(["a"]))
    await model.until_asked()
    first.cancel()
    second = asyncio.create_task(embedder.embed(["a"]))
    with pytest.raises(asyncio.CancelledError):
        await first
    await model.until_asked(2)
    model.gate.set()
    assert (await second).shape == (1, 2)
    assert model.cancelled == 1


async def test_a_failure_reaches_all_who_wait_and_is_not_kept() -> None:
    model = Counting(held=True)
    failing = True

    async def embed(texts: list[str]) -> list[list[float]]:
        rows = await model(texts)
        if failing:
            raise ConnectionError("down")
        return rows

    embedder = as_embedder(embed)
    callers = [asyncio.create_task(embedder.embed(["a"])) for _ in range(3)]
    await model.until_asked()
    model.gate.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(result) for result in results] == [BlockUnavailableError] * 3
    assert len(model.asked) == 1
    failing = False
    assert (await embedder.embed(["a"])).shape == (1, 2)


async def test_batches_before_a_failure_are_kept() -> None:
    model = Counting()

    async def embed(texts: list[str]) -> list[list[float]]:
        if "bad" in texts and len(model.asked) < 2:
            model.asked.append(["failed"])
            raise ConnectionError("down")
        return await model(texts)

    embedder = CachedEmbedder(embed, batch_size=2)
    with pytest.raises(BlockUnavailableError):
        await embedder.embed(["a", "b", "bad"])
    await embedder.embed(["a", "b", "bad"])
    assert model.asked == [["a", "b"], ["failed"], ["bad"]]


def test_an_embedder_outlives_an_event_loop_that_left_a_call_behind() -> None:
    embedder = as_embedder(lambda texts: [[1.0, 2.0] for _ in texts])
    held = Counting

    async def abandoned() -> None:
        model = held(held=True)
        cached = CachedEmbedder(model, cache=embedder.cache, identity=embedder.identity)
        task = asyncio.create_task(cached.embed(["a"]))
        await model.until_asked()
        assert not task.done()

    async def normal() -> None:
        assert (await embedder.embed(["a"])).shape == (1, 2)

    asyncio.run(abandoned())
    asyncio.run(normal())
    asyncio.run(normal())


# -- wordllama, for real -----------------------------------------------------------------------------------------


async def test_wordllama_knows_what_words_mean() -> None:
    embedder = as_embedder(WordLlamaEmbedder())
    rows = await embedder.embed(
        ["My dog chased the cat.", "A puppy ran after a kitten.", "The bank raised its interest rates."]
    )
    assert rows.shape == (3, 256)
    assert cosine(rows[0], rows[1]) > cosine(rows[0], rows[2])
    assert embedder.identity == "wordllama-l2_supercat-256"


async def test_wordllama_embeds_a_text_the_same_among_any_others() -> None:
    texts = ["", " ", "one", "x" * 30_000, "two words", "漢字かな交じり文", "🙂", "\x00"]
    rows = await as_embedder(WordLlamaEmbedder()).embed(texts)
    for text, row in zip(texts, rows, strict=True):
        alone = await as_embedder(WordLlamaEmbedder()).embed([text])
        assert np.allclose(alone[0], row, atol=1e-5)
    assert not rows[0].any()


async def test_wordllama_is_loaded_once_and_works_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from memory_engine.blocks.embedders import wordllama as module

    monkeypatch.setattr(module, "_models", {})
    package = sys.modules["wordllama"]
    loaded: list[threading.Thread] = []
    load = package.WordLlama.load

    def counted(*arguments: Any, **settings: Any) -> Any:
        assert settings["disable_download"] is True
        loaded.append(threading.current_thread())
        return load(*arguments, **settings)

    monkeypatch.setattr(package.WordLlama, "load", counted)
    made = [WordLlamaEmbedder(dimensions=64) for _ in range(4)]
    results = await asyncio.gather(*[as_embedder(one).embed(["hello"]) for one in made])
    assert [rows.shape for rows in results] == [(1, 64)] * 4
    assert len(loaded) == 1 and loaded[0] is not threading.current_thread()
    given_model = as_embedder(module.shared_model(64))
    assert np.allclose(await given_model.embed(["hello"]), results[0])
    assert given_model.identity.startswith("wordllama-custom")


async def test_wordllama_without_texts() -> None:
    assert (await WordLlamaEmbedder()([])).shape == (0, 256)


@pytest.mark.parametrize("dimensions", [0, 100, 512, None])
def test_wordllama_has_the_dimensions_of_its_weights(dimensions: Any) -> None:
    with pytest.raises(ConfigurationError, match="256"):
        WordLlamaEmbedder(dimensions=dimensions)


# -- a service ---------------------------------------------------------------------------------------------------


class Embedding(Service):
    """Answers as an endpoint for embeddings."""

    def answer(self, body: dict[str, Any]) -> bytes:
        size = body.get("dimensions", 3)
        rows = [
            {"object": "embedding", "index": index, "embedding": [float(len(text)), *[1.0] * (size - 1)]}
            for index, text in enumerate(body["input"])
        ]
        return json.dumps({"object": "list", "data": rows[::-1], "model": body["model"]}).encode()


@pytest.fixture
async def service() -> AsyncIterator[Embedding]:
    async with serving(Embedding()) as running:
        yield running


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have waited before repeating a request."""
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr(http, "pause", pause)
    return waited


async def test_a_service_is_asked_as_openai_is(service: Embedding) -> None:
    async with OpenAICompatibleEmbedder(
        "small", base_url=service.url + "/", api_key="secret", dimensions=5, headers={"X-Team": "memory"}
    ) as model:
        rows = await as_embedder(model).embed(["a", "bbb", ""])
        assert rows.shape == (3, 5)
        assert rows[0][0] < rows[1][0]
        assert "secret" not in repr(model) + model.identity
        assert model.identity == "openai-compatible:small:5"
    assert service.requests == [
        {
            "request": "POST /v1/embeddings HTTP/1.1",
            "model": "small",
            "input": ["a", "bbb", " "],
            "encoding_format": "float",
            "dimensions": 5,
        }
    ]
    assert service.headers[0]["authorization"] == "Bearer secret"
    assert service.headers[0]["x-team"] == "memory"


async def test_prefixes_mark_questions_and_texts(service: Embedding) -> None:
    async with OpenAICompatibleEmbedder(
        "e5", base_url=service.url, document_prefix="passage: ", query_prefix="query: "
    ) as model:
        embedder = as_embedder(model)
        await embedder.embed(["a"])
        await embedder.embed_query("a")
        assert model.identity == "openai-compatible:e5:passage: :query: "
    assert [request["input"] for request in service.requests] == [["passage: a"], ["query: a"]]
    assert "authorization" not in service.headers[0]


async def test_large_answers_are_complete(service: Embedding) -> None:
    async with OpenAICompatibleEmbedder("large", base_url=service.url, dimensions=3000) as model:
        assert (await as_embedder(model).embed([str(n) for n in range(30)])).shape == (30, 3000)


@pytest.mark.parametrize("refusal", [429, 500, 503])
async def test_a_refusal_is_repeated_after_the_time_that_was_asked_for(
    refusal: int, service: Embedding, pauses: list[float]
) -> None:
    service.plan = [(refusal, {"Retry-After": "7"}, b"{}"), (refusal, {"Retry-After": "0.5"}, b"{}")]
    async with OpenAICompatibleEmbedder("m", base_url=service.url) as model:
        assert (await as_embedder(model).embed(["a"])).shape == (1, 3)
    assert pauses == [7.0, 0.5]
    assert len(service.requests) == 3


async def test_a_service_that_stays_down_is_unavailable(service: Embedding, pauses: list[float]) -> None:
    service.plan = [(500, {}, b"overloaded")] * 3
    async with OpenAICompatibleEmbedder("m", base_url=service.url, retries=2) as model:
        with pytest.raises(BlockUnavailableError, match="500: overloaded"):
            await as_embedder(model).embed(["a"])
    assert len(service.requests) == 3
    assert len(pauses) == 2 and 0 < pauses[0] <= 0.5 and pauses[1] <= 1.0


async def test_a_long_wait_is_left_to_the_engine(service: Embedding, pauses: list[float]) -> None:
    service.plan = [(429, {"Retry-After": "3600"}, b"{}")]
    async with OpenAICompatibleEmbedder("m", base_url=service.url) as model:
        with pytest.raises(BlockUnavailableError, match="429"):
            await as_embedder(model).embed(["a"])
    assert len(service.requests) == 1 and pauses == []


async def test_a_broken_connection_is_repeated(service: Embedding, pauses: list[float]) -> None:
    service.plan = [None]
    async with OpenAICompatibleEmbedder("m", base_url=service.url) as model:
        assert (await as_embedder(model).embed(["a"])).shape == (1, 3)
    assert len(service.requests) == 2 and len(pauses) == 1


async def test_nobody_there_is_unavailable(pauses: list[float]) -> None:
    async with serving(Embedding()) as gone:
        url = gone.url
    async with OpenAICompatibleEmbedder("m", base_url=url, retries=1) as model:
        with pytest.raises(BlockUnavailableError, match="does not answer"):
            await as_embedder(model).embed(["a"])
    assert len(pauses) == 1


@pytest.mark.parametrize("status", [301, 400, 401, 404, 501])
async def test_other_refusals_are_not_repeated(status: int, service: Embedding, pauses: list[float]) -> None:
    service.plan = [(status, {}, b'{"error": "no such model"}')]
    async with OpenAICompatibleEmbedder("m", base_url=service.url, api_key="secret") as model:
        with pytest.raises(BlockError, match="no such model") as caught:
            await as_embedder(model).embed(["a"])
    assert not isinstance(caught.value, BlockUnavailableError)
    assert "secret" not in str(caught.value)
    assert len(service.requests) == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<html>hello</html>", "<html>hello"),
        (b"\xff\xfe", "did not answer"),
        (b"[]", "did not answer"),
        (b'{"error": "x"}', "did not answer"),
        (b'{"data": {}}', "no list"),
        (b'{"data": [1, 2]}', "no list"),
        (b'{"data": [{"index": 0}, {"index": 1}]}', "no list"),
        (b'{"data": [{"index": 0, "embedding": [1]}]}', "1 vectors for 2 texts"),
        (b'{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": "x"}]}', "vector of finite numbers"),
        (b'{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]}', "vector of finite numbers"),
    ],
)
async def test_a_wrong_answer_is_named(body: bytes, says: str, service: Embedding) -> None:
    service.plan = [(200, {}, body)]
    async with OpenAICompatibleEmbedder("m", base_url=service.url) as model:
        with pytest.raises(BlockResultError) as caught:
            await as_embedder(model).embed(["a", "b"])
    assert says in str(caught.value)


async def test_vectors_without_numbers_are_in_the_order_of_the_texts(service: Embedding) -> None:
    service.plan = [(200, {}, b'{"data": [{"embedding": [1, 0]}, {"embedding": [0, 1]}]}')]
    async with OpenAICompatibleEmbedder("m", base_url=service.url) as model:
        assert (await as_embedder(model).embed(["a", "b"])).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_one_embedder_serves_several_event_loops() -> None:
    model = OpenAICompatibleEmbedder("m", base_url="http://127.0.0.1:1/v1")

    async def once() -> None:
        async with serving(Embedding()) as running:
            model._service.url = running.url + "/embeddings"
            assert await model(["a"]) == [[1.0, 1.0, 1.0]]
            await model.aclose()
            await model.aclose()

    asyncio.run(once())
    asyncio.run(once())


async def test_a_client_of_openai_may_be_given() -> None:
    asked: list[dict[str, Any]] = []

    async def create(**body: Any) -> Any:
        asked.append(body)
        rows = [SimpleNamespace(index=index, embedding=[float(index), 1.0]) for index in range(len(body["input"]))]
        return SimpleNamespace(data=rows[::-1])

    client = SimpleNamespace(embeddings=SimpleNamespace(create=create))
    rows = await as_embedder(OpenAICompatibleEmbedder("m", client=client)).embed(["a", "b"])
    assert rows[0].tolist() == [0.0, 1.0]
    assert asked == [{"model": "m", "input": ["a", "b"], "encoding_format": "float"}]


@pytest.mark.parametrize("settings", [{"base_url": "localhost:11434"}, {"retries": -1}, {"retries": 1.5}, {"retries": True}])
def test_wrong_settings_of_a_service_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        OpenAICompatibleEmbedder("m", **settings)


def test_times_to_wait() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)
    seconds = failures.retry_after({"retry-after": later})
    assert seconds is not None and 80_000 < seconds <= 86_400
    assert failures.retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 -0000"}) == 0
    assert failures.retry_after({"retry-after": "-5"}) == 0
    for unknown in ({}, {"retry-after": "soon"}, {"retry-after": "inf"}, {"retry-after": "nan"}):
        assert failures.retry_after(unknown) is None


# -- packages by doubles -----------------------------------------------------------------------------------------


class Threads:
    """What a double was asked, and where."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.threads: set[threading.Thread] = set()

    def note(self, name: str, what: Any) -> None:
        self.calls.append((name, what))
        self.threads.add(threading.current_thread())

    @property
    def elsewhere(self) -> bool:
        return bool(self.threads) and threading.current_thread() not in self.threads


async def test_embeddings_of_llama_index_are_recognised() -> None:
    log = Threads()

    def batch(self: Any, texts: list[str]) -> list[list[float]]:
        log.note("texts", texts)
        return [[1.0, 0.0] for _ in texts]

    def query(self: Any, text: str) -> list[float]:
        log.note("query", text)
        return [0.0, 1.0]

    async def abatch(self: Any, texts: list[str]) -> list[list[float]]:
        return [[1.0, 1.0] for _ in texts]

    async def aquery(self: Any, text: str) -> list[float]:
        return [0.0, 2.0]

    made = package_class(
        "llama_index.core.base.embeddings.base",
        "MyEmbedding",
        model_name="bge",
        get_text_embedding_batch=batch,
        get_query_embedding=query,
        aget_text_embedding_batch=abatch,
        aget_query_embedding=aquery,
    )()
    embedder = as_embedder(made)
    assert embedder.identity == "llama-index:MyEmbedding:bge"
    assert (await embedder.embed(["a", "b"])).tolist() == [[1.0, 0.0]] * 2
    assert (await embedder.embed_query("a")).tolist() == [0.0, 1.0]
    assert log.calls == [("texts", ["a", "b"]), ("query", "a")]
    assert log.elsewhere
    asynchronous = LlamaIndexEmbedder(made, asynchronous=True)
    assert await asynchronous(["a"]) == [[1.0, 1.0]]
    assert await asynchronous.embed_query("a") == [0.0, 2.0]
    assert len(log.calls) == 2


def langchain_members(log: Threads) -> dict[str, Any]:
    def documents(self: Any, texts: list[str]) -> list[list[float]]:
        log.note("documents", texts)
        return [[1.0, 0.0] for _ in texts]

    def query(self: Any, text: str) -> list[float]:
        log.note("query", text)
        return [0.0, 1.0]

    return {"embed_documents": documents, "embed_query": query}


async def test_embeddings_of_langchain_are_recognised() -> None:
    log = Threads()

    async def inherited(self: Any, texts: Any) -> Any:
        raise AssertionError("the sync methods run in a thread of their own")

    members = {**langchain_members(log), "aembed_documents": inherited, "aembed_query": inherited}
    made = package_class("langchain_core.embeddings.embeddings", "MyEmbeddings", model="m", dimensions=2, **members)()
    embedder = as_embedder(made)
    assert embedder.identity == "langchain:MyEmbeddings:m:2"
    assert (await embedder.embed(["a"])).tolist() == [[1.0, 0.0]]
    assert (await embedder.embed_query("a")).tolist() == [0.0, 1.0]
    assert log.calls == [("documents", ["a"]), ("query", "a")]
    assert log.elsewhere


async def test_async_methods_of_langchain_classes_are_used() -> None:
    log = Threads()

    async def documents(self: Any, texts: list[str]) -> list[list[float]]:
        return [[1.0, 1.0] for _ in texts]

    async def query(self: Any, text: str) -> list[float]:
        return [0.0, 2.0]

    members = {**langchain_members(log), "aembed_documents": documents, "aembed_query": query}
    embedder = as_embedder(package_class("langchain_openai.embeddings.base", "OpenAIEmbeddings", **members)())
    assert embedder.identity == "langchain:OpenAIEmbeddings:unknown"
    assert (await embedder.embed_query("a")).tolist() == [0.0, 1.0]
    assert (await embedder.embed(["a"])).shape == (1, 2)
    assert log.calls == []


@pytest.mark.parametrize("adapter", [LlamaIndexEmbedder, LangChainEmbedder])
def test_adapters_refuse_what_they_cannot_wrap(adapter: Any) -> None:
    with pytest.raises(ConfigurationError, match=adapter.__name__):
        adapter(Counting())


async def test_fastembed_marks_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Threads()

    class TextEmbedding:
        __module__ = "fastembed.text.text_embedding"

        def __init__(self, **options: Any) -> None:
            log.note("load", options)
            self.model_name = options["model_name"]

        def passage_embed(self, texts: list[str]) -> Any:
            for text in texts:
                log.note("passage", text)
                yield np.array([1.0, 0.0])

        def query_embed(self, query: str) -> Any:
            log.note("query", query)
            yield np.array([0.0, 1.0])

    package = ModuleType("fastembed")
    package.TextEmbedding = TextEmbedding  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastembed", package)
    embedder = as_embedder(FastEmbedEmbedder("e5", cache_dir="models", providers=["CPU"]))
    assert log.calls == []
    assert (await embedder.embed(["a", "b"])).tolist() == [[1.0, 0.0]] * 2
    assert (await embedder.embed_query("a")).tolist() == [0.0, 1.0]
    assert log.calls == [
        ("load", {"model_name": "e5", "cache_dir": "models", "threads": None, "providers": ["CPU"]}),
        ("passage", "a"),
        ("passage", "b"),
        ("query", "a"),
    ]
    assert log.elsewhere
    given_model = as_embedder(TextEmbedding(model_name="e5"))
    assert given_model.identity == embedder.identity == "fastembed:e5"
    assert (await given_model.embed(["a"])).shape == (1, 2)


@pytest.mark.parametrize("version", [4, 5])
async def test_sentence_transformers_use_the_prompts_of_the_model(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Threads()

    class SentenceTransformer:
        __module__ = "sentence_transformers.SentenceTransformer"
        prompts = {"query": "query: "}
        truncate_dim = None

        def __init__(self, name: str, **options: Any) -> None:
            log.note("load", (name, options))

        def __call__(self, features: Any) -> Any:
            raise AssertionError("a torch module can be called, but not with texts")

        def encode(self, texts: list[str], prompt_name: str | None = None, **options: Any) -> Any:
            assert options == {"batch_size": 32, "show_progress_bar": False, "convert_to_numpy": True}
            log.note(f"encode {prompt_name}", texts)
            return np.ones((len(texts), 2))

    if version == 5:
        SentenceTransformer.encode_query = partial(SentenceTransformer.encode, None, prompt_name="query")
        SentenceTransformer.encode_document = partial(SentenceTransformer.encode, None, prompt_name="document")
    package = ModuleType("sentence_transformers")
    package.SentenceTransformer = SentenceTransformer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", package)
    embedder = as_embedder(SentenceTransformersEmbedder("e5", device="cpu", truncate_dim=2))
    assert log.calls == []
    assert (await embedder.embed(["a"])).shape == (1, 2)
    assert (await embedder.embed_query("a")).shape == (2,)
    document = "encode None" if version == 4 else "encode document"
    assert log.calls == [("load", ("e5", {"device": "cpu", "truncate_dim": 2})), (document, ["a"]), ("encode query", ["a"])]
    assert log.elsewhere
    assert embedder.identity == "sentence-transformers:e5:2"
    given_model = as_embedder(SentenceTransformer("e5"))
    assert given_model.identity == "sentence-transformers:SentenceTransformer"
    assert (await given_model.embed(["a"])).shape == (1, 2)


async def test_langchain_methods_without_its_base_class_are_enough() -> None:
    log = Threads()
    embedder = as_embedder(type("Mine", (), langchain_members(log))())
    assert (await embedder.embed(["a"])).shape == (1, 2)
    assert embedder.identity == "langchain:Mine:unknown"


def test_names_of_embedders_without_one() -> None:
    class Model:
        model_name = "nice"

        def __call__(self, texts: list[str]) -> list[list[float]]:
            return []

    assert as_embedder(Model()).identity.endswith("Model:nice")
    assert as_embedder(partial(cosine, 1)).identity.endswith("test_embedders.cosine")
    assert CachedEmbedder(Model(), identity="mine").identity == "mine"


def test_a_function_whose_name_says_nothing_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    def load(model: str) -> Any:
        async def embed_with_a_model(texts: list[str]) -> list[list[float]]:
            return [[float(len(model)), 1.0] for _ in texts]

        return embed_with_a_model

    first, second = as_embedder(load("a")), as_embedder(load("b"))
    assert first.identity == second.identity
    [warning] = [record for record in caplog.records if "embed_with_a_model" in record.getMessage()]
    assert 'CachedEmbedder(function, identity="...")' in warning.getMessage()
    caplog.clear()
    assert CachedEmbedder(load("c"), identity="model c").identity == "model c"
    assert not caplog.records
