"""Latency of `put` and `get` against the length of the history, beside what one would use instead, in one run.

    python benchmarks/overhead.py [--quick] [--sizes 10,100,1000,10000,100000] [--repeat 200] [--blocks]
                                  [--database sqlite|postgresql [--uri postgresql://...]] [--alone] [--json PATH]

How to read what it prints is in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, get_args

if __package__ in (None, ""):  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bare import Bare, Limit, Raw, Template, templates_of
from benchmarks.bare_postgres import BarePostgres, RawPostgres
from benchmarks.contenders import Contender, Conversation, Llama, OpenAI, Ours, Unavailable
from benchmarks.databases import Databases, Kind, databases_of
from benchmarks.environment import environment
from benchmarks.ratios import Ratio, ratios_of
from benchmarks.sqlalchemy_contenders import LangChain, OpenAISqlAlchemy
from benchmarks.timing import Key, Summary, Timings, collector_off, table

_PACKAGES = (
    "sqlalchemy",
    "aiosqlite",
    "asyncpg",
    "pydantic",
    "tiktoken",
    "llama-index-core",
    "openai-agents",
    "langchain-community",
)

SIZES = (10, 100, 1_000, 10_000, 100_000)
GROWTH = 10
"""A session grows by at most a tenth of its size (or 5 messages); small sizes therefore use many sessions."""
RESTART_EVERY = 10
WARM_UP = 3
SECONDS = 200
"""Measuring ends after this time even if rounds are missing: a busy machine must not make a run endless."""
WINDOW_MESSAGES = 305
"""About what 21,000 tokens hold; for systems that count messages instead."""

Maker = tuple[str, Callable[[], Contender]]


@dataclass(slots=True)
class Field:
    """One system on one database at one size, with its sessions and how long each of them is by now."""

    size: int
    contender: Contender
    lengths: list[int]
    windows: dict[str, int] = field(default_factory=dict)

    def session(self, number: int) -> str:
        return f"chat-{number:04d}"


@dataclass(slots=True)
class Outcome:
    """What a run found: the series, the systems as they stand at the end, and notes."""

    summaries: dict[Key, Summary] = field(default_factory=dict)
    fields: list[Field] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ratios: list[Ratio] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    sizes: tuple[int, ...]
    repeat: int
    blocks: bool
    database: Kind = "sqlite"
    uri: str | None = None
    """A PostgreSQL server to use instead of starting one."""
    alone: bool = False
    """Without other libraries."""

    def sessions(self, size: int) -> int:
        """How many sessions keep the growth of each within a tenth of the size (or 5), warm-up included."""
        return -(-(self.repeat + WARM_UP) // max(5, size // GROWTH))


# -- set-up ------------------------------------------------------------------------------------------------------------


def contenders(plan: Plan, conversation: Conversation, templates: Sequence[Template]) -> tuple[list[Contender], list[str]]:
    """A fresh set of systems, and why some are missing."""
    own: list[Maker] = [(Ours.name, Ours)]
    others: list[Maker] = [(Llama.name, Llama)]
    if plan.database == "sqlite":
        own += [(limit.name, partial(limit, conversation, templates)) for limit in (Bare, Raw)]
        others += [(Llama.name, partial(Llama, wal=True)), (OpenAI.name, partial(OpenAI, WINDOW_MESSAGES))]
    else:
        own += [(limit.name, partial(limit, conversation, templates)) for limit in (BarePostgres, RawPostgres)]
        others += [(OpenAISqlAlchemy.name, partial(OpenAISqlAlchemy, WINDOW_MESSAGES))]
    others.append((LangChain.name, LangChain))
    if plan.blocks:
        own.append((Ours.name, partial(Ours, block=True)))
        others.append((Llama.name, partial(Llama, block=True)))
    found, missing = [], []
    for name, maker in own if plan.alone else own + others:
        try:
            found.append(maker())
        except Unavailable as error:
            missing.append(f"{name} left out: it {error}")
    return found, list(dict.fromkeys(missing))


async def set_up(
    databases: Databases, plan: Plan, size: int, systems: Sequence[Contender], conversation: Conversation
) -> list[Field]:
    """Open one database for each system, with the sessions of one size in it."""
    sessions = plan.sessions(size)
    lines = conversation.lines(size)
    filled: dict[str, str] = {}
    fields = []
    for number, contender in enumerate(systems):
        one = Field(size, contender, [size] * sessions)
        if contender.layout not in filled:
            # The original stays closed: a copy is complete only when no write-ahead log belongs to it, and nobody uses it.
            filled[contender.layout] = original = await databases.make(f"{number}-{size}-filled")
            await contender.open(original)
            for session in range(sessions):
                await contender.fill(one.session(session), lines)
            await contender.close()
            await databases.settle(original)
        await contender.open(await databases.copy(filled[contender.layout], f"{number}-{size}"))
        fields.append(one)
    return fields


# -- measuring ---------------------------------------------------------------------------------------------------------


async def warm_up(fields: Sequence[Field], conversation: Conversation) -> None:
    """Fill every cache that a running program has filled: connections, compiled statements, windows, code."""
    unmeasured = Timings()
    for one in fields:
        for session in range(len(one.lengths)):
            for operation, read in one.contender.reads.items():
                if operation != "restart":
                    await read(one.session(session))
        for number in range(WARM_UP):
            await put_once(one, unmeasured, conversation, number)
            for read in one.contender.reads.values():
                await read(one.session(number % len(one.lengths)))


async def put_once(one: Field, timings: Timings, conversation: Conversation, number: int) -> None:
    """One measured put into the session whose turn it is."""
    index = number % len(one.lengths)
    session, line = one.session(index), conversation.line(one.lengths[index])
    key = Key(one.contender.name, "put", one.size)
    await timings.take(key, partial(one.contender.put, session, line))
    one.lengths[index] += 1
    await one.contender.after_put(session, line)


async def read_once(one: Field, timings: Timings, operation: str, number: int) -> None:
    """One measured read of the session that was written last."""
    key = Key(one.contender.name, operation, one.size)
    if operation not in one.contender.reads or timings.full(key):
        return
    if operation == "restart" and number % RESTART_EVERY:
        return
    session = one.session(number % len(one.lengths))
    found: list[int] = []

    async def read() -> None:
        found.append(await one.contender.reads[operation](session))

    await timings.take(key, read)
    one.windows[operation] = found[0]


async def measure(fields: Sequence[Field], plan: Plan, timings: Timings, conversation: Conversation) -> None:
    """Operation by operation through all systems and sizes, each round beginning with another of them."""
    operations = list(dict.fromkeys(operation for one in fields for operation in one.contender.reads))
    end = time.perf_counter() + SECONDS
    with collector_off() as collect:
        for number in range(WARM_UP, WARM_UP + plan.repeat):
            if time.perf_counter() > end:
                break
            collect()
            order = [one for one in rotated(fields, number) if not timings.full(Key(one.contender.name, "put", one.size))]
            for one in order:
                await put_once(one, timings, conversation, number)
            for operation in operations:
                for one in order:
                    await read_once(one, timings, operation, number)


def rotated(fields: Sequence[Field], number: int) -> Iterator[Field]:
    start = number * 7 % len(fields)
    yield from fields[start:]
    yield from fields[:start]


async def run(plan: Plan, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    conversation, timings, found = Conversation(), Timings(), Outcome()
    async with databases_of(plan.database, plan.uri) as databases:
        found.settings = await databases.settings()
        templates = await templates_of(await databases.make("templates"), conversation)
        try:
            for size in plan.sizes:
                started = time.perf_counter()
                systems, found.notes = contenders(plan, conversation, templates)
                found.fields += await set_up(databases, plan, size, systems, conversation)
                say(f"filled {plan.sessions(size)} x {size} messages in {time.perf_counter() - started:.1f} s")
            await warm_up(found.fields, conversation)
            await databases.rest()
            started = time.perf_counter()
            await measure(found.fields, plan, timings, conversation)
            say(f"measured in {time.perf_counter() - started:.1f} s")
        finally:
            for one in found.fields:
                with suppress(Exception):
                    await one.contender.close()
    found.summaries = timings.summaries()
    found.ratios = ratios_of(found.summaries, plan.database)
    found.notes += unequal_windows(found.fields)
    if found.settings:
        found.notes.append("PostgreSQL: " + ", ".join(f"{name} {value}" for name, value in found.settings.items()))
    return found


def unequal_windows(fields: Sequence[Field]) -> list[str]:
    """Where the bare readers did not read the window that the engine showed (they should, to the message)."""
    shown = {one.size: one.windows.get("get") for one in fields if one.contender.name == Ours.name}
    return [
        f"at {one.size} messages {one.contender.name} read {one.windows.get('get')} messages, {Ours.name} {shown[one.size]}"
        for one in fields
        if isinstance(one.contender, Limit) and one.windows.get("get") != shown[one.size]
    ]


# -- reporting ---------------------------------------------------------------------------------------------------------


def report(found: Outcome) -> str:
    """The tables, the ratios, and what is missing."""
    parts = []
    systems = sorted({key.system for key in found.summaries}, key=lambda name: (not name.startswith(Ours.name), name))
    ordered = sorted(found.summaries.items(), key=lambda item: (item[0].size, systems.index(item[0].system)))
    for operation in dict.fromkeys(key.operation for key in found.summaries):
        rows = [
            [key.system, f"{key.size:,}", *(f"{value:.2f}" for value in (s.median_ms, s.p95_ms, s.cpu_ms)), str(s.samples)]
            for key, s in ordered
            if key.operation == operation
        ]
        head = [operation, "messages", "median ms", "p95 ms", "CPU ms", "samples"]
        parts.append(table(head, rows))
    parts.append("\n".join(str(ratio) for ratio in found.ratios))
    if found.notes:
        parts.append("\n".join(f"note: {note}" for note in found.notes))
    return "\n\n".join(parts)


def as_json(plan: Plan, found: Outcome) -> dict[str, Any]:
    """Everything that was measured, with what it was measured on."""
    return {
        "benchmark": "overhead",
        "database": plan.database,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": {**environment(_PACKAGES), **({"postgresql": found.settings} if found.settings else {})},
        "plan": {"sizes": plan.sizes, "repeat": plan.repeat, "blocks": plan.blocks},
        "results": [{**asdict(key), **{k: _rounded(v) for k, v in asdict(s).items()}} for key, s in found.summaries.items()],
        "windows": [
            {"system": one.contender.name, "size": one.size, "messages": one.windows.get("get")} for one in found.fields
        ],
        "ratios": [{**asdict(ratio), "passed": ratio.passed} for ratio in found.ratios],
        "notes": found.notes,
    }


def _rounded(value: float) -> float:
    return round(value, 4)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", help="lengths of history in messages, separated by commas")
    parser.add_argument("--repeat", type=int, help="measured rounds (default 200, with --quick 30)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write everything there as JSON")
    parser.add_argument("--quick", action="store_true", help="sizes 10, 100 and 1000, 30 rounds: some 15 seconds")
    parser.add_argument("--database", choices=get_args(Kind), default="sqlite", help="where everyone stores (default sqlite)")
    parser.add_argument("--uri", help="a PostgreSQL server where databases may be made (default: one is started, fsync on)")
    parser.add_argument("--alone", action="store_true", help="without other libraries: only the engine and its lower limits")
    parser.add_argument("--blocks", action="store_true", help="also measure with one static memory block")
    return parser.parse_args(given)


def plan_of(options: argparse.Namespace) -> Plan:
    sizes: tuple[int, ...] = SIZES[:3] if options.quick else SIZES
    if options.sizes:
        sizes = tuple(int(size) for size in options.sizes.split(","))
    repeat = options.repeat or (30 if options.quick else 200)
    if repeat < 1 or not sizes or min(sizes) < 1:
        raise SystemExit("sizes and repeat are whole numbers from 1 up")
    if options.uri and options.database != "postgresql":
        raise SystemExit("--uri is for --database postgresql")
    return Plan(sizes, repeat, options.blocks, options.database, options.uri, options.alone)


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(given)
    logging.basicConfig(level=logging.WARNING)
    plan = plan_of(options)
    found = asyncio.run(run(plan, lambda line: print(line, file=sys.stderr, flush=True)))
    print(report(found))
    if options.json:
        options.json.write_text(json.dumps(as_json(plan, found), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
