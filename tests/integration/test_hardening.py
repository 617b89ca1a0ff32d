"""What whole memories promise at their edges: wrong arguments, careless blocks, what receipts and spans tell."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import create_engine

from memory_engine import BaseMemoryBlock, ChatMessage, Limits, Memory, MemoryEngine
from memory_engine.blocks import FactExtractionMemoryBlock, StaticMemoryBlock
from memory_engine.errors import BlockError, ConfigurationError, StoreBusyError
from memory_engine.messages import ToolCallBlock
from memory_engine.telemetry import OpenTelemetry
from memory_engine.testing import ScriptedLLM


class Panic(BaseException):
    """As libraries in Rust raise it."""


class Careless(BaseMemoryBlock[str]):
    """Raises whatever it is told to."""

    async def _aget(self, messages: Any = None, **block_kwargs: Any) -> str:
        return "here"

    async def _aput(self, messages: Any) -> None:
        return None


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("sqlite_synchronous", 5),
        ("sqlite_synchronous", None),
        ("busy_timeout", "soon"),
        ("busy_timeout", True),
        ("busy_timeout", float("nan")),
        ("table_prefix", 5),
        ("store", "memory.db"),
        ("clock", "noon"),
        ("async_engine", "sqlite://"),
        ("async_engine", create_engine("sqlite://")),
        ("tokenizer_fn", "o200k_base"),
        ("message_overhead_tokens", -5),
        ("message_overhead_tokens", "4"),
        ("image_token_size_estimate", 1.5),
        ("document_token_size_estimate", True),
    ],
)
def test_a_wrong_argument_is_refused_by_name(argument: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=argument):
        Memory.from_defaults("s", **{argument: value})


WRONG_CALLS: list[Callable[[MemoryEngine, Memory], Awaitable[object]]] = [
    lambda engine, memory: memory.delete([1]),
    lambda engine, memory: memory.delete(None),
    lambda engine, memory: memory.delete(["\ud800"]),
    lambda engine, memory: memory.rewind(None),
    lambda engine, memory: memory.redeliver("nothing"),
    lambda engine, memory: memory.drain("soon"),
    lambda engine, memory: memory.drain(-1),
    lambda engine, memory: engine.list_sessions(limit="ten"),
    lambda engine, memory: engine.list_sessions(limit=-1),
    lambda engine, memory: engine.list_sessions(prefix=5),
    lambda engine, memory: engine.list_sessions(prefix="\ud800"),
    lambda engine, memory: engine.list_sessions(inactive_for=float("inf")),
    lambda engine, memory: engine.delete_session(None),
    lambda engine, memory: engine.delete_user(None),
    lambda engine, memory: engine.delete_tenant(5),
    lambda engine, memory: engine.purge(inactive_for=float("nan")),
    lambda engine, memory: engine.drain("soon"),
    lambda engine, memory: engine.aclose(timeout="soon"),
]


@pytest.mark.parametrize("number", range(len(WRONG_CALLS)))
async def test_a_wrong_call_is_refused_and_changes_nothing(number: int) -> None:
    async with MemoryEngine() as engine:
        memory = engine.session("s")
        await memory.put(user("hi"))
        with pytest.raises(ConfigurationError):
            await WRONG_CALLS[number](engine, memory)
        assert len(await memory.get_all()) == 1


async def test_sessions_are_listed_with_aware_times() -> None:
    async with MemoryEngine() as engine:
        before = datetime.now(UTC)
        await engine.session("s", metadata={"topic": "tea"}).put(user("hi"))
        (info,) = await engine.list_sessions()
    assert before <= info.created_at <= info.updated_at <= datetime.now(UTC)
    assert (info.session_id, info.messages, info.metadata) == ("s", 1, {"topic": "tea"})


@pytest.mark.parametrize("error", [StoreBusyError(), Panic("no count")])
async def test_no_error_of_a_block_fails_get(error: BaseException) -> None:
    class Failing(Careless):
        async def _aget(self, messages: Any = None, **block_kwargs: Any) -> str:
            raise error

    async with Memory.from_defaults("s", memory_blocks=[Failing(name="failing")]) as memory:
        await memory.put(user("hi"))
        context = await memory.context()
    assert [message.content for message in context.messages] == ["hi"]
    assert type(error).__name__ in str(context.receipt.source("failing").error)


async def test_a_section_that_cannot_be_counted_is_left_out() -> None:
    def count(text: str) -> int:
        if "here" in text:
            raise ValueError("a text I do not know")
        return len(text)

    blocks = [Careless(name="uncounted"), StaticMemoryBlock(name="counted", static_content="yes")]
    async with Memory.from_defaults("s", tokenizer_fn=count, memory_blocks=blocks) as memory:
        await memory.put(user("hi"))
        receipt = (await memory.context()).receipt
    assert "a text I do not know" in str(receipt.source("uncounted").error)
    assert receipt.source("counted").given > 0


async def test_a_block_that_panics_is_tried_a_few_times_only() -> None:
    calls: list[int] = []

    class Failing(Careless):
        async def _aput(self, messages: Any) -> None:
            calls.append(len(messages))
            raise Panic("no count")

    limits = Limits(first_retry=0.01, last_retry=0.01, max_attempts=3)
    async with Memory.from_defaults("s", memory_blocks=[Failing(name="failing")], limits=limits) as memory:
        await memory.put(user("hi"))
        await memory.flush(final=True)
        await memory.drain(10)
        receipt = (await memory.context()).receipt
    assert len(calls) == 3
    assert [chunk.attempts for chunk in receipt.parked] == [3]
    assert "Panic" in receipt.parked[0].error


async def test_leaving_a_handle_waits_for_its_session_only() -> None:
    absorbed: list[str] = []

    class Slow(Careless):
        async def _aput(self, messages: Any) -> None:
            await asyncio.sleep(0.05)
            absorbed.extend(message.content for message in messages)

    async with MemoryEngine(memory_blocks=[Slow(name="slow")]) as engine:
        async with engine.session("s") as memory:
            await memory.put(user("hi"))
            await memory.flush(final=True)
        assert absorbed == ["hi"]
        await memory.put(user("again"))  # the engine is open, so the handle still works
        assert len(await memory.get_all()) == 2
    await memory.aclose()


@pytest.mark.parametrize("own", ["[… 3 tokens left out …]", f"\n[… {'9' * 4400} tokens left out …]\n"], ids=["short", "long"])
async def test_a_tool_may_say_what_looks_like_the_marker_of_a_cut(own: str) -> None:
    """Each result is cut when it comes, and the cut grows when all of them do not fit together."""
    text = f"first {own} line. {'x' * 15_000} {own} last"
    ids = ["a", "b", "c", "d"]
    calls = [ToolCallBlock(id=id_, name="look", arguments={}) for id_ in ids]
    async with Memory.from_defaults(token_limit=40_000, max_tool_result_tokens=14_000, tokenizer_fn=len) as memory:
        await memory.put_messages([user("go"), ChatMessage(role="assistant", blocks=calls)])
        await memory.put_messages([ChatMessage(role="tool", content=text, tool_call_id=id_) for id_ in ids])
        context = await memory.context()
    assert context.receipt.tokens <= 40_000 and context.receipt.shortened
    for message in context.messages[2:]:
        head, missing, tail = re.split(r"\n\[… (1?[0-9]{4}) tokens left out …\]\n", message.content)
        assert text.startswith(head) and text.endswith(tail)
        assert abs(len(text) - len(head) - len(tail) - int(missing)) < 200


async def test_a_receipt_adds_up() -> None:
    blocks = [StaticMemoryBlock(name="notes", static_content="word " * 300, priority=1)]
    async with Memory.from_defaults("s", token_limit=200, memory_blocks=blocks) as memory:
        for number in range(8):
            await memory.put(user(f"question {number}"))
        receipt = (await memory.context()).receipt
    given = sum(source.given for source in receipt.sources)
    assert receipt.rendering > 0
    assert given + receipt.rendering == receipt.tokens <= 200
    assert receipt.as_dict()["rendering"] == receipt.rendering
    assert f"{receipt.rendering} for rendering" in str(receipt)


async def test_calls_of_models_are_counted_also_when_a_delivery_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reader = InMemoryMetricReader()
    monkeypatch.setattr(metrics, "get_meter", MeterProvider([reader]).get_meter)
    answer = json.dumps({"operations": [{"op": "add", "text": "likes tea", "messages": [1]}]})
    llm = ScriptedLLM(["nonsense", "nonsense", ConnectionError("away"), answer])
    block = FactExtractionMemoryBlock(name="facts", llm=llm, llm_retries=0)
    async with Memory.from_defaults(
        "one",
        async_database_uri=f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}",
        memory_blocks=[block],
        limits=Limits(first_retry=0.01, last_retry=0.02),
    ) as memory:
        await memory.put(user("I like tea."))
        await memory.flush(final=True)
        await memory.drain(30)
        usage = (await memory.context()).receipt.source("facts").usage
    assert usage is not None and (usage.calls, usage.failed) == (4, 1)
    counted = {}
    for metric in json.loads(reader.get_metrics_data().to_json())["resource_metrics"][0]["scope_metrics"][0]["metrics"]:
        for point in metric["data"]["data_points"]:
            what = point["attributes"].get("outcome") or point["attributes"].get("direction")
            counted[metric["name"], point["attributes"].get("block"), what] = point.get("value")
    assert counted["memory_engine.model.calls", "facts", "done"] == 3
    assert counted["memory_engine.model.calls", "facts", "failed"] == 1
    assert counted["memory_engine.model.tokens", "facts", "input"] == usage.input_tokens > 0
    assert counted["memory_engine.model.tokens", "facts", "output"] == usage.output_tokens > 0
    assert counted["memory_engine.deliveries", "facts", "failed"] == 2


def gauges(reader: InMemoryMetricReader) -> dict[tuple[str, str], int]:
    """The gauges of lag as they stand, by name and block."""
    data = reader.get_metrics_data()
    found = {} if data is None else json.loads(data.to_json())["resource_metrics"][0]["scope_metrics"][0]["metrics"]
    return {
        (metric["name"].removeprefix("memory_engine.lag."), point["attributes"]["block"]): point["value"]
        for metric in found
        if metric["name"].startswith("memory_engine.lag.")
        for point in metric["data"]["data_points"]
    }


async def test_lag_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By whoever delivers, as soon as it starts, when it ends, and when it is asked; of the whole database."""
    reader = InMemoryMetricReader()
    monkeypatch.setattr(metrics, "get_meter", MeterProvider([reader]).get_meter)
    settings: dict[str, Any] = {
        "async_database_uri": f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}",
        "memory_blocks": [StaticMemoryBlock(name="fixed", static_content="x"), Refusing(name="notes")],
        "limits": Limits(first_retry=0.01, last_retry=0.02, max_attempts=1, poll=0.01),
    }
    async with MemoryEngine(**settings, delivery="worker") as agent:
        for memory in (agent.session(f"s{number}") for number in range(3)):
            await memory.put_messages([user("one"), user("two")])
            await memory.flush(final=True)
        assert gauges(reader) == {}
        stats = await agent.stats()
        assert (stats.blocks["notes"].sessions, stats.blocks["notes"].messages) == (3, 6)
        told = gauges(reader)
        assert [told[name, "notes"] for name in ("sessions", "messages", "parked", "erasures")] == [3, 6, 0, 0]
        assert told["messages", "fixed"] == 0
        # What refuses is parked, and said so at the end.
        await agent.work(once=True)
        told = gauges(reader)
        assert [told[name, "notes"] for name in ("sessions", "messages", "parked", "erasures")] == [0, 0, 3, 0]
        await agent.session("s2").put(user("three"))
        await agent.session("s2").flush(final=True)
    reader = InMemoryMetricReader()
    monkeypatch.setattr(metrics, "get_meter", MeterProvider([reader]).get_meter)
    async with MemoryEngine(**settings):
        while ("parked", "notes") not in (told := gauges(reader)):
            await asyncio.sleep(0.01)
        assert told["parked", "notes"] >= 3
    # One session knows of no other.
    reader = InMemoryMetricReader()
    monkeypatch.setattr(metrics, "get_meter", MeterProvider([reader]).get_meter)
    async with Memory.from_defaults("s0", **settings) as one:
        await one.put(user("four"))
        await one.flush(final=True)
        await one.drain(30)
    assert gauges(reader) == {}


class Refusing(BaseMemoryBlock[str]):
    """Absorbs nothing."""

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return ""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        raise ValueError("no")


def test_spans_tell_the_type_of_an_error_and_not_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry = OpenTelemetry()
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    monkeypatch.setattr(telemetry, "_nobody_listens", lambda: False)
    with pytest.raises(BlockError), telemetry.span("memory_engine.delivery", block="notes"):
        raise BlockError("the user ada said: I like tea")
    (span,) = exporter.get_finished_spans()
    assert span.attributes == {"block": "notes", "error.type": "BlockError"}
    assert not span.status.is_ok
    assert "tea" not in span.to_json()


def test_spans_are_made_as_soon_as_somebody_listens() -> None:
    """In a process of its own: a provider can be set once."""
    program = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from memory_engine.telemetry import OpenTelemetry
telemetry = OpenTelemetry()
with telemetry.span("memory_engine.put", messages=1):
    pass
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with telemetry.span("memory_engine.put", messages=2):
    pass
print([dict(span.attributes) for span in exporter.get_finished_spans()])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[{'messages': 2}]\n"
