"""The hours around the accident, understood: facts and a summary that grow while the agent never waits for them.

By default a script plays the model; `--llm-url` asks a real one, behind any OpenAI-compatible endpoint.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from memory_engine import ChatMessage, Memory, MemoryEngine
from memory_engine.blocks import FactExtractionMemoryBlock, SummaryMemoryBlock
from memory_engine.demo.drawing import Screen
from memory_engine.demo.report import mission_time, row

_BEFORE, _PART, _STOPS = 60, 300, 4
_ACCIDENT = "we've had a problem"
_LIMIT, _FLUSH = 3_000, 600
_SUMMARY_TOKENS = 160
_NEWEST = 3

_MESSAGE = re.compile(r'<message n="(\d+)"([^>]*)>\n(.*?)\n</message>', re.DOTALL)
_NAME = re.compile(r'name="([^"]*)"')
_KNOWN = re.compile(r'<fact id="(f\d+)"[^>]*>\n?(.*?)\n?</fact>', re.DOTALL)
_SUBJECTS = {
    "the oxygen": r"\bO2\b|oxygen|cryo",
    "the electricity": r"\bbus\b|undervolt|volt|amp|batter|fuel cell",
    "the lunar module": r"\bLM\b|Aquarius",
    "the attitude": r"gimbal|thruster|\bjets?\b|\bRCS\b",
    "what is seen outside": r"vent|outside|window|particle",
    "the computer": r"restart|computer|\bP\d\d\b",
}


def scripted() -> Any:
    """A model that needs none: it knows a few subjects by their words, and quotes."""

    async def reply(messages: Sequence[dict[str, str]]) -> str:
        instructions, data = messages[0]["content"], messages[-1]["content"]
        said = [(int(n), _name(about), " ".join(text.split())) for n, about, text in _MESSAGE.findall(data)]
        return _facts(data, said) if '"operations"' in instructions else _summary(data, said)

    return reply


def _name(about: str) -> str:
    found = _NAME.search(about)
    return found[1] if found else "somebody"


def _facts(data: str, said: Sequence[tuple[int, str, str]]) -> str:
    known = {text.partition(":")[0].strip(): fact for fact, text in _KNOWN.findall(data)}
    operations: list[dict[str, Any]] = []
    for subject, words in _SUBJECTS.items():
        about = [(n, who, text) for n, who, text in said if re.search(words, text, re.IGNORECASE) and len(text) > 30]
        if not about:
            continue
        number, who, text = max(about, key=lambda one: (sum(char.isdigit() for char in one[2]), one[0]))
        change: dict[str, Any] = {"op": "add", "text": f"About {subject}: {who} said “{text[:110]}”", "messages": [number]}
        if f"About {subject}" in known:
            change |= {"op": "update", "fact": known[f"About {subject}"]}
        operations.append(change)
    return json.dumps({"operations": operations})


def _summary(data: str, said: Sequence[tuple[int, str, str]]) -> str:
    before = data.partition("<summary_so_far>")[2].partition("</summary_so_far>")[0].strip()
    kept = [] if before.startswith("(") else before.split(". ")[-4:]
    longest = sorted(sorted(said, key=lambda one: -len(one[2]))[:2])
    return (
        ". ".join([*(part.rstrip(".") for part in kept), *(f"{who}: {text[:90].rstrip('.')}" for _, who, text in longest)])
        + "."
    )


@dataclass
class Understood:
    """What the part of the mission came to."""

    utterances: int = 0
    facts: int = 0
    corrected: int = 0
    summary_tokens: int = 0
    calls: int = 0
    contexts: int = 0
    over_budget: int = 0
    seconds: float = 0.0
    put_seconds: list[float] = field(default_factory=list)


async def understand(screen: Screen, messages: Sequence[ChatMessage], llm: Any) -> Understood:
    """Put the utterances around the accident, and show facts and summary at some points."""
    start = next((place for place, one in enumerate(messages) if _ACCIDENT in one.content), 0)
    part = messages[max(0, start - _BEFORE) :][:_PART]
    understood, begun = Understood(utterances=len(part)), time.perf_counter()
    engine = MemoryEngine(
        async_database_uri="sqlite+aiosqlite:///:memory:",
        token_limit=_LIMIT,
        token_flush_size=_FLUSH,
        chat_history_token_ratio=0.4,
        memory_blocks=[
            FactExtractionMemoryBlock(name="facts", llm=llm, max_facts=12),
            SummaryMemoryBlock(name="summary", llm=llm, max_summary_tokens=_SUMMARY_TOKENS),
        ],
    )
    screen.rule(f"{len(part)} utterances understood", "facts and a summary, while nobody waits")
    stops = [len(part) * number // _STOPS for number in range(_STOPS + 1)]
    async with engine:
        memory = engine.session("accident")
        for first, last in pairwise(stops):
            for message in part[first:last]:
                now = time.perf_counter()
                await memory.put(message)
                understood.put_seconds.append(time.perf_counter() - now)
            if part[first:last]:
                await _show(screen, memory, part[first:last], understood, final=last == len(part))
    understood.seconds = time.perf_counter() - begun
    return understood


async def _show(screen: Screen, memory: Memory, put: Sequence[ChatMessage], understood: Understood, *, final: bool) -> None:
    if final:
        await memory.flush(final=True)
    await memory.drain()
    context = await memory.context("What has happened?")
    understood.contexts += 1
    understood.over_budget += context.receipt.tokens > context.receipt.budget
    facts: Any = await memory.block("facts")
    summary: Any = await memory.block("summary")
    current, history = await facts.facts(), await facts.history()
    understood.facts, understood.corrected = len(current), len(history) - len(current)
    understood.summary_tokens = context.receipt.source("summary").given
    understood.calls = facts.model_calls + summary.model_calls
    row(screen, mission_time(put), f"{len(current)} facts, {understood.corrected} earlier ones corrected")
    for fact in current[-_NEWEST:]:
        row(screen, fact.id, fact.text, lines=2)
    row(screen, "summary", summary.summary or "nothing was flushed yet", lines=4)
    row(screen, "", (f"{context.receipt.tokens:,} of {context.receipt.budget:,} tokens, {understood.calls} model calls", "dim"))
    screen.line()


def told(understood: Understood) -> str:
    """The part in a sentence."""
    slowest = 1000 * max(understood.put_seconds, default=0.0)
    return (
        f"{understood.facts} facts ({understood.corrected} corrected) and {understood.summary_tokens} tokens of summary from "
        f"{understood.utterances} utterances, {understood.calls} model calls; the slowest put took {slowest:.0f} ms"
    )
