"""What the engine promises about its own cost, as ratios of medians within one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from benchmarks.bare import Bare
from benchmarks.bare_postgres import ONE_ROW, RawPostgres
from benchmarks.contenders import Llama, Ours
from benchmarks.databases import Kind
from benchmarks.timing import Key, Summary

FULL_WINDOW = 1_000
"""From this many messages on the FIFO is full."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """`value` was measured; it should be at most (or, with `at_least`, not less than) `limit`; `aim` is the hope."""

    name: str
    value: float | None
    limit: float
    at_least: bool = False
    aim: float | None = None

    @property
    def passed(self) -> bool | None:
        """None when it could not be measured."""
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        aim = f", aim {self.aim:g}" if self.aim is not None else ""
        verdict = {True: "PASS", False: "FAIL", None: "----"}[self.passed]
        value = "not measured" if self.value is None else f"{self.value:.2f}"
        return f"{verdict}  {self.name}: {value} ({sign} {self.limit:g}{aim})"


def ratios_of(summaries: Mapping[Key, Summary], database: Kind) -> list[Ratio]:
    """All ratios on that database; those whose sizes or systems were not measured have no value."""
    sizes = sorted({key.size for key in summaries})
    if database == "postgresql":
        return [*_against_asyncpg(summaries, sizes), *_against_one_row(summaries, sizes), *_flat(summaries)]
    return [*_against_core(summaries, sizes), _against_length(summaries), *_against_llama(summaries)]


def _against_core(summaries: Mapping[Key, Summary], sizes: list[int]) -> Iterator[Ratio]:
    for size in sizes:
        value = _quotient(summaries, Key(Ours.name, "put", size), Key(Bare.name, "put", size))
        yield Ratio(f"put / the same statements through SQLAlchemy Core, {size:,} messages", value, 2.0)
    for size in sizes:
        if size < FULL_WINDOW:
            continue
        for what, operation in (("ChatMessage", "get"), ("json.loads", "get, json.loads")):
            value = _quotient(summaries, Key(Ours.name, "get", size), Key(Bare.name, operation, size))
            yield Ratio(f"get after a put / reading and decoding the window ({what}), {size:,} messages", value, 1.0)


def _against_length(summaries: Mapping[Key, Summary]) -> Ratio:
    value = _quotient(summaries, Key(Ours.name, "put", 100_000), Key(Ours.name, "put", 100))
    return Ratio("put at 100,000 messages / put at 100 messages", value, 1.3)


def _against_llama(summaries: Mapping[Key, Summary]) -> Iterator[Ratio]:
    for system in (Llama.name, f"{Llama.name}, WAL"):
        for operation in ("put", "get"):
            value = _quotient(summaries, Key(system, operation, 1_000), Key(Ours.name, operation, 1_000))
            yield Ratio(f"{operation} of {system} / {operation}, 1,000 messages", value, 8.0, at_least=True, aim=12.0)


def _against_asyncpg(summaries: Mapping[Key, Summary], sizes: list[int]) -> Iterator[Ratio]:
    for size in sizes:
        value = _quotient(summaries, Key(Ours.name, "put", size), Key(RawPostgres.name, "put", size))
        yield Ratio(f"put / the same statements in one transaction through raw asyncpg, {size:,} messages", value, 2.0)


def _against_one_row(summaries: Mapping[Key, Summary], sizes: list[int]) -> Iterator[Ratio]:
    for size in sizes:
        value = _quotient(summaries, Key(Ours.name, "get, unchanged", size), Key(Bare.name, ONE_ROW, size))
        yield Ratio(f"get, unchanged / one-row select through bare SQLAlchemy, {size:,} messages", value, 2.5)


def _flat(summaries: Mapping[Key, Summary]) -> Iterator[Ratio]:
    """Above a full window; a commit that waits for the disk varies more than one that does not."""
    for operation in ("put", "get, unchanged"):
        value = _quotient(summaries, Key(Ours.name, operation, 100_000), Key(Ours.name, operation, FULL_WINDOW))
        yield Ratio(f"{operation} at 100,000 messages / at {FULL_WINDOW:,} messages", value, 1.5)


def _quotient(summaries: Mapping[Key, Summary], above: Key, below: Key) -> float | None:
    if above not in summaries or below not in summaries:
        return None
    return summaries[above].median_ms / summaries[below].median_ms
