"""What each way to remember costs: tokens sent to the model per turn and in all, and how much of it a prompt cache can reuse.

    python benchmarks/cost.py [--turns 500] [--token-limit 4000] [--out FOLDER]

A turn is one user message and one answer of the Apollo 13 transcript; `get` is called once in each, with that message as the
query. Tokens are those of the returned messages. "prefix" is the share of them that stands, unchanged, at the beginning of the
turn before's as well: what providers bill at a fraction. Models that write facts and summaries are scripted (their own calls
are counted apart), recall works by words.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.environment import environment
from benchmarks.timing import table
from memory_engine import ChatMessage, Memory
from memory_engine.blocks import (
    EntityMemoryBlock,
    FactExtractionMemoryBlock,
    StaticMemoryBlock,
    SummaryMemoryBlock,
    VectorMemoryBlock,
)
from memory_engine.demo.transcript import load
from memory_engine.usage import Usage

METHODS = ("system", "user", "split")


async def summarise(messages: list[dict[str, str]]) -> str:
    """A summary of about 200 words that changes with what it is made of, as a model's would."""
    said = messages[-1]["content"].split()
    step = max(1, len(said) // 200)
    return " ".join(said[::step][:200]) + "."


async def extract(messages: list[dict[str, str]]) -> str:
    """One fact for each chunk: its first message, whatever it says."""
    text = next(line for line in messages[-1]["content"].splitlines() if line and not line.startswith("<"))
    return json.dumps({"operations": [{"op": "add", "text": text[:200], "messages": [1]}]})


async def note_down(messages: list[dict[str, str]]) -> str:
    """A note of 20 words on each of the five names that a chunk has most often."""
    said = re.findall(r'<message n="(\d+)"[^>]*>\n(.*?)\n</message>', messages[-1]["content"], re.DOTALL)
    where: dict[str, list[tuple[int, str]]] = {}
    for number, text in said:
        for name in set(_NAME.findall(text)):
            where.setdefault(name, []).append((int(number), text))
    most = sorted(where, key=lambda name: (-len(where[name]), name))[:5]
    notes = [
        {"name": name, "text": " ".join(where[name][-1][1].split()[:20]), "messages": [where[name][-1][0]]} for name in most
    ]
    return json.dumps({"entities": notes})


_NAME = re.compile(r"(?<=[a-z,] )[A-Z][a-z]{3,}\b")
"""A word with a capital that does not begin a sentence."""
CONSTANTS = (
    "The crew is Lovell, Swigert and Haise. Answer briefly, in the units that the crew uses, and say when it was said. " * 5
)

Make = Callable[[], list[Any]]
RECIPES: dict[str, tuple[dict[str, Any], Make]] = {
    "buffer: everything": ({"token_limit": 10_000_000, "chat_history_token_ratio": 1.0}, list),
    "window: the last 5 turns": ({"max_turns": 5}, list),
    "token buffer": ({"chat_history_token_ratio": 1.0}, list),
    "summary": ({"chat_history_token_ratio": 0.1}, lambda: [SummaryMemoryBlock(llm=summarise)]),
    "summary buffer": ({"chat_history_token_ratio": 0.5}, lambda: [SummaryMemoryBlock(llm=summarise)]),
    "facts": ({"chat_history_token_ratio": 0.5}, lambda: [FactExtractionMemoryBlock(llm=extract)]),
    "entities": ({"chat_history_token_ratio": 0.3}, lambda: [EntityMemoryBlock(llm=note_down)]),
    "constants": ({"chat_history_token_ratio": 0.3}, lambda: [StaticMemoryBlock(static_content=CONSTANTS, priority=0)]),
    "recall": ({"chat_history_token_ratio": 0.3}, lambda: [VectorMemoryBlock()]),
    "facts, summary and recall": (
        {"chat_history_token_ratio": 0.3},
        lambda: [FactExtractionMemoryBlock(llm=extract), SummaryMemoryBlock(llm=summarise), VectorMemoryBlock()],
    ),
}


@dataclass(frozen=True, slots=True)
class Cost:
    """One recipe with one insert method. Tokens; `prefix` is the mean share that is unchanged from the turn before, 0 to 1."""

    recipe: str
    method: str
    total: int
    last: float
    """Mean of the last tenth of the turns."""
    most: int
    prefix: float
    calls: int
    model_tokens: int


async def measure(recipe: str, method: str, said: Sequence[ChatMessage], token_limit: int) -> Cost:
    """Play the turns."""
    settings, blocks = RECIPES[recipe]
    how: dict[str, Any] = {
        "async_database_uri": "sqlite+aiosqlite:///:memory:",
        "token_limit": token_limit,
        "insert_method": method,
        "memory_blocks": blocks(),
        "delivery": "inline",
    }
    tokens: list[int] = []
    unchanged: list[float] = []
    used: list[Usage] = []
    async with Memory.from_defaults("cost", **how | settings) as memory:
        for user, answer in zip(said[::2], said[1::2], strict=True):
            await memory.put(user)
            receipt = (await memory.context(user.content)).receipt
            tokens.append(receipt.tokens)
            unchanged.append(receipt.prefix_unchanged / max(1, receipt.tokens))
            used = [source.usage for source in receipt.sources if source.usage is not None]
            await memory.put(answer)
    tail = tokens[-max(1, len(tokens) // 10) :]
    calls, model_tokens = sum(one.calls for one in used), sum(one.input_tokens + one.output_tokens for one in used)
    prefix = statistics.fmean(unchanged[1:])
    return Cost(recipe, method, sum(tokens), statistics.fmean(tail), max(tokens), prefix, calls, model_tokens)


def turns_of(count: int) -> list[ChatMessage]:
    """So many turns of the transcript, user and assistant in turn."""
    said = load(None)[: 2 * count]
    return [ChatMessage(role="assistant" if place % 2 else "user", content=one.content) for place, one in enumerate(said)]


def report(costs: Sequence[Cost], turns: int) -> str:
    head = [
        "recipe",
        "insert",
        f"tokens in {turns} turns",
        "a turn at the end",
        "most",
        "prefix unchanged",
        "model calls",
        "tokens",
    ]
    body = [
        [
            cost.recipe,
            cost.method,
            f"{cost.total:,}",
            f"{cost.last:,.0f}",
            f"{cost.most:,}",
            f"{100 * cost.prefix:.0f} %",
            f"{cost.calls}",
            f"{cost.model_tokens:,}",
        ]
        for cost in costs
    ]
    return table(head, body)


async def run(turns: int, token_limit: int, say: Callable[[str], None] = lambda line: None) -> list[Cost]:
    """Every recipe with every insert method; without blocks the method makes no difference."""
    said, costs = turns_of(turns), []
    for recipe, (_, blocks) in RECIPES.items():
        for method in METHODS if blocks() else METHODS[:1]:
            costs.append(await measure(recipe, method, said, token_limit))
            say(f"{recipe}, {method}: {costs[-1].total:,} tokens")
    return costs


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=500)
    parser.add_argument("--token-limit", type=int, default=4_000)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write cost.txt and cost.json there")
    options = parser.parse_args()
    costs = asyncio.run(run(options.turns, options.token_limit, lambda line: print(line, file=sys.stderr, flush=True)))
    text = report(costs, options.turns)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "cost.txt").write_text(text + "\n", encoding="utf-8")
        result = {"benchmark": "cost", "environment": environment(("tiktoken",)), "results": [asdict(cost) for cost in costs]}
        (options.out / "cost.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
