"""Measuring awaitables side by side: samples, their summaries, and tables of them."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Key:
    """What a series of samples is of: one operation of one system at one length of history (messages)."""

    system: str
    operation: str
    size: int


@dataclass(slots=True)
class Series:
    """Samples of one operation in seconds: by the wall clock, and of CPU time over all threads of the process."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def spent(self) -> float:
        return math.fsum(self.wall)

    def summary(self) -> Summary:
        ordered = sorted(self.wall)
        p95 = ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)]
        return Summary(
            samples=len(ordered),
            median_ms=1000 * statistics.median(ordered),
            p95_ms=1000 * p95,
            min_ms=1000 * ordered[0],
            cpu_ms=1000 * statistics.median(self.cpu),
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """A series in milliseconds: median, 95th percentile and minimum by the wall clock, median CPU time."""

    samples: int
    median_ms: float
    p95_ms: float
    min_ms: float
    cpu_ms: float


class Timings:
    """All series of a run. A series whose samples took `cap` seconds together (and are at least `enough`) is full."""

    def __init__(self, *, cap: float = 6.0, enough: int = 5) -> None:
        self._series: dict[Key, Series] = {}
        self._cap, self._enough = cap, enough

    def full(self, key: Key) -> bool:
        """Whether more samples of a slow operation would only make the run longer."""
        series = self._series.get(key)
        return series is not None and len(series.wall) >= self._enough and series.spent >= self._cap

    async def take(self, key: Key, operation: Callable[[], Awaitable[object]]) -> None:
        """Run the operation once and note what it took."""
        cpu, wall = time.process_time(), time.perf_counter()
        await operation()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        series = self._series.setdefault(key, Series())
        series.wall.append(wall)
        series.cpu.append(cpu)

    def summaries(self) -> dict[Key, Summary]:
        return {key: series.summary() for key, series in self._series.items()}


@contextmanager
def collector_off() -> Iterator[Callable[[], None]]:
    """Keep the garbage collector out of the samples; yields a function that collects between them."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield lambda: void(gc.collect())
    finally:
        gc.enable()
        gc.unfreeze()


def void(_: object) -> None:
    """Drop a result."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text columns; the first is aligned left, all others right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join((first, *others)).rstrip()

    return "\n".join((line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)))
