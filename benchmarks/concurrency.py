"""Messages per second when many sessions write at once, beside what one would use instead, in one run.

    python benchmarks/concurrency.py [--sessions 64] [--puts 50] [--rounds 5] [--databases sqlite,postgresql] [--out FOLDER]
    python benchmarks/concurrency.py --sessions 1,4,16,64,256 --rounds 3 --seconds 3

Each round gives every system a fresh database, one after the other, and lets all sessions put their messages one by one, all
sessions at once. What is stored afterwards is counted. SQLite runs with synchronous=FULL, PostgreSQL with fsync on, so that a
message that was acknowledged survives a power cut everywhere. "raw" is the driver alone: one table, one INSERT and one COMMIT
for each message; "raw, together" commits whatever waits in one transaction, what the driver could do at best.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import get_args

if __package__ in (None, ""):  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.concurrency_systems import SYSTEMS, System
from benchmarks.databases import Kind, databases_of
from benchmarks.environment import environment
from benchmarks.timing import table

LEAST = 400
"""Messages that are put together at least, however few the sessions."""
_PACKAGES = ("sqlalchemy", "aiosqlite", "asyncpg", "llama-index-core", "openai-agents", "langchain-community")


@dataclass(frozen=True, slots=True)
class Round:
    """What one system did in one round."""

    database: str
    system: str
    sessions: int
    seconds: float
    acknowledged: int
    failed: int
    stored: int

    @property
    def per_second(self) -> float:
        """Messages that were acknowledged, for each second."""
        return self.acknowledged / self.seconds


def puts_of(sessions: int, puts: int) -> int:
    """How many each session puts: a few sessions more than asked for, or they would be through before anything is measured."""
    return max(puts, -(-LEAST // sessions))


async def play(make: Callable[[], System], database: str, uri: str, sessions: int, puts: int, most: float) -> Round:
    """All sessions at once, each one message after the other, for that many seconds at most."""
    system, names = make(), [f"session-{number}" for number in range(sessions)]
    await system.open(uri, names)
    for name in names:
        with suppress(Exception):
            await system.put(name, 0)  # connections, statements, sessions
    done = failed = 0
    end = time.perf_counter() + most

    async def write(name: str) -> None:
        nonlocal done, failed
        for number in range(1, puts_of(sessions, puts) + 1):
            if time.perf_counter() > end:
                return
            try:
                await system.put(name, number)
                done += 1
            except Exception:  # noqa: BLE001 - what a system refuses under load is one of the figures
                failed += 1

    started = time.perf_counter()
    await asyncio.gather(*(write(name) for name in names))
    seconds = time.perf_counter() - started
    stored = await system.stored() - sessions
    await system.close()
    return Round(database, system.name, sessions, seconds, done, failed, stored)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. A system that needs longer than `seconds` in one round is ended; what it did until then counts."""

    databases: tuple[Kind, ...]
    sessions: tuple[int, ...]
    puts: int
    rounds: int
    seconds: float


async def run(plan: Plan, say: Callable[[str], None]) -> list[Round]:
    """Every system on a fresh database in every round, each round beginning with another of them."""
    found: list[Round] = []
    async with AsyncExitStack() as stack:
        places = {kind: await stack.enter_async_context(databases_of(kind)) for kind in plan.databases}
        for number in range(plan.rounds):
            for database, sessions in product(plan.databases, plan.sessions):
                systems = SYSTEMS[database]
                for place in range(len(systems)):
                    make = systems[(place + number) % len(systems)]
                    uri = await places[database].make(f"{database}_{sessions}_{number}_{place}")
                    try:
                        found.append(await play(make, database, uri, sessions, plan.puts, plan.seconds))
                    except ImportError as error:
                        say(f"{make().name} left out: {error}")
                        continue
                    finally:
                        await places[database].remove(uri)
                    one = found[-1]
                    say(f"{database}, {sessions} sessions, {one.system}: {one.per_second:,.0f}/s, {one.failed} failed")
    return found


def report(rounds: Sequence[Round]) -> str:
    """Medians of messages per second and of their ratios to the driver alone, for each number of sessions."""
    counts = list(dict.fromkeys(one.sessions for one in rounds))
    rates, ratios = [], []
    for database, system in dict.fromkeys((one.database, one.system) for one in rounds):
        name = f"{database}: {system}"
        own = [one for one in rounds if (one.database, one.system) == (database, system)]
        lost = sum(one.acknowledged - one.stored for one in own)
        rate, ratio = [], []
        for sessions in counts:
            here = [one.per_second for one in own if one.sessions == sessions]
            raw = [one.per_second for one in rounds if (one.database, one.system, one.sessions) == (database, "raw", sessions)]
            rate.append(f"{statistics.median(here):,.0f}")
            quotients = [mine / base for mine, base in zip(here, raw, strict=False)]
            ratio.append(f"{statistics.median(quotients):.2f}" if quotients else "")
        rates.append([name, *rate, f"{sum(one.failed for one in own)}", f"{lost}"])
        ratios.append([name, *ratio])
    of_sessions = [f"{count:,}" for count in counts]
    return "\n\n".join(
        (
            table(["messages/s, by sessions", *of_sessions, "refused", "acknowledged but missing"], rates),
            table(["of raw, by sessions", *of_sessions], ratios),
        )
    )


def plan_of(given: Sequence[str] | None) -> tuple[Plan, Path | None]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", default="64", help="numbers of sessions, separated by commas")
    parser.add_argument("--puts", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="end a system that needs longer in one round")
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write concurrency.txt and concurrency.json there")
    options = parser.parse_args(given)
    databases = tuple(kind for kind in get_args(Kind) if kind in options.databases.split(","))
    sessions = tuple(int(count) for count in options.sessions.split(","))
    return Plan(databases, sessions, options.puts, options.rounds, options.seconds), options.out


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    plan, out = plan_of(given)
    logging.disable(logging.WARNING)
    done = asyncio.run(run(plan, lambda line: print(line, file=sys.stderr, flush=True)))
    text = report(done)
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "concurrency.txt").write_text(text + "\n", encoding="utf-8")
        result = {
            "benchmark": "concurrency",
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": environment(_PACKAGES),
            "plan": asdict(plan),
            "results": [asdict(one) for one in done],
        }
        (out / "concurrency.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
