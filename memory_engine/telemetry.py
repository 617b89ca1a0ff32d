"""OpenTelemetry spans and metrics, when its API is installed (extra `otel`); otherwise every call here does nothing.

Metrics: `memory_engine.put.messages`, `memory_engine.put.duration`, `memory_engine.get.duration`,
`memory_engine.get.tokens` (by source), `memory_engine.flush.tokens`, `memory_engine.deliveries` (by block and outcome),
`memory_engine.delivery.duration`, `memory_engine.block.failures`, `memory_engine.block.lag`,
`memory_engine.model.calls` and `memory_engine.model.tokens` (by block; by outcome, by direction). Over all sessions of the
database, by block, reported every few seconds by whoever delivers: `memory_engine.lag.sessions`, `memory_engine.lag.messages`,
`memory_engine.lag.parked` and `memory_engine.lag.erasures`. Durations in seconds. No text of a conversation and no id of a
user is ever reported; of an error only its type (`error.type`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memory_engine.receipt import Receipt
    from memory_engine.store import BlockLag
    from memory_engine.usage import Usage

_NAME = "memory_engine"
_NO_SPAN = nullcontext()


class Telemetry:
    """Counts nothing: what is used when OpenTelemetry is not installed."""

    counts_lags = False
    """Whether `lagging` is worth the count."""

    def span(self, name: str, **attributes: str | int | float) -> AbstractContextManager[None]:
        """A span around the body."""
        return _NO_SPAN

    def put(self, messages: int, seconds: float) -> None:
        """Messages were committed."""

    def got(self, receipt: Receipt) -> None:
        """A context was put together."""

    def flushed(self, tokens: int) -> None:
        """Messages left the short-term FIFO."""

    def delivered(self, block: str, seconds: float, outcome: str) -> None:
        """A delivery ended: "done", "overtaken" (by an erasure or another owner), "failed" or "parked"."""

    def used(self, block: str, usage: Usage) -> None:
        """A block called its model."""

    def lagging(self, lags: Iterable[BlockLag]) -> None:
        """How far blocks are behind, over all sessions of the database."""


class OpenTelemetry(Telemetry):
    """Reports to whatever provider the application has set up."""

    def __init__(self) -> None:
        from opentelemetry import metrics, trace
        from opentelemetry.environment_variables import OTEL_PYTHON_TRACER_PROVIDER

        meter = metrics.get_meter(_NAME)
        self._tracer = trace.get_tracer(_NAME)
        self._trace, self._by_environment = trace, OTEL_PYTHON_TRACER_PROVIDER in os.environ
        self._failed = trace.StatusCode.ERROR
        self._put_messages = meter.create_counter(f"{_NAME}.put.messages", unit="{message}")
        self._put_duration = meter.create_histogram(f"{_NAME}.put.duration", unit="s")
        self._get_duration = meter.create_histogram(f"{_NAME}.get.duration", unit="s")
        self._get_tokens = meter.create_histogram(f"{_NAME}.get.tokens", unit="{token}")
        self._flush_tokens = meter.create_counter(f"{_NAME}.flush.tokens", unit="{token}")
        self._deliveries = meter.create_counter(f"{_NAME}.deliveries", unit="{delivery}")
        self._delivery_duration = meter.create_histogram(f"{_NAME}.delivery.duration", unit="s")
        self._block_failures = meter.create_counter(f"{_NAME}.block.failures", unit="{failure}")
        self._model_calls = meter.create_counter(f"{_NAME}.model.calls", unit="{call}")
        self._model_tokens = meter.create_counter(f"{_NAME}.model.tokens", unit="{token}")
        self._lag = meter.create_gauge(f"{_NAME}.block.lag", unit="{message}")
        units = {"sessions": "{session}", "messages": "{message}", "parked": "{chunk}", "erasures": "{erasure}"}
        self._lags = {name: meter.create_gauge(f"{_NAME}.lag.{name}", unit=unit) for name, unit in units.items()}
        # Without an SDK nobody can listen.
        self.counts_lags = find_spec("opentelemetry.sdk") is not None

    def span(self, name: str, **attributes: str | int | float) -> AbstractContextManager[None]:
        if self._nobody_listens():
            # A span that goes nowhere would cost a put a tenth of its time.
            return _NO_SPAN
        return self._span(name, attributes)

    def _nobody_listens(self) -> bool:
        trace = self._trace
        if not self._by_environment and hasattr(trace, "_TRACER_PROVIDER"):
            return trace._TRACER_PROVIDER is None  # what the public way says, without its look at the environment
        return isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)

    @contextmanager
    def _span(self, name: str, attributes: Mapping[str, str | int | float]) -> Iterator[None]:
        # An error's text may hold text of the conversation, or a user's id: only its type is told.
        with self._tracer.start_as_current_span(
            name, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(self._failed)
                raise

    def put(self, messages: int, seconds: float) -> None:
        self._put_messages.add(messages)
        self._put_duration.record(seconds)

    def got(self, receipt: Receipt) -> None:
        self._get_duration.record(receipt.latency)
        for source in receipt.sources:
            attributes: dict[str, Any] = {"source": source.name, "kind": source.kind}
            self._get_tokens.record(source.given, attributes)
            if source.kind != "section":
                continue
            self._lag.set(source.lag, {"block": source.name})
            if source.error and source.outcome.startswith("left out"):
                self._block_failures.add(1, {"block": source.name})

    def flushed(self, tokens: int) -> None:
        self._flush_tokens.add(tokens)

    def delivered(self, block: str, seconds: float, outcome: str) -> None:
        self._deliveries.add(1, {"block": block, "outcome": outcome})
        if outcome == "done":
            self._delivery_duration.record(seconds, {"block": block})

    def used(self, block: str, usage: Usage) -> None:
        self._model_calls.add(usage.calls - usage.failed, {"block": block, "outcome": "done"})
        self._model_calls.add(usage.failed, {"block": block, "outcome": "failed"})
        self._model_tokens.add(usage.input_tokens, {"block": block, "direction": "input"})
        self._model_tokens.add(usage.output_tokens, {"block": block, "direction": "output"})

    def lagging(self, lags: Iterable[BlockLag]) -> None:
        for lag in lags:
            for name, gauge in self._lags.items():
                gauge.set(getattr(lag, name), {"block": lag.block})


def telemetry() -> Telemetry:
    """OpenTelemetry if its API can be imported, else the silent one."""
    return OpenTelemetry() if find_spec("opentelemetry") and find_spec("opentelemetry.metrics") else Telemetry()
