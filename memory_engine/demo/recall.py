"""After the splashdown: a dozen questions about what was said days before, answered out of 357,000 tokens."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from memory_engine import ChatMessage, Context, Memory, MemoryEngine
from memory_engine.blocks import VectorMemoryBlock
from memory_engine.demo.drawing import Screen
from memory_engine.demo.report import quote, row

_QUESTIONS = (
    "a13-001", "a13-007", "a13-009", "a13-019", "a13-024", "a13-033",
    "a13-037", "a13-045", "a13-049", "a13-065", "a13-075", "a13-080",
)  # fmt: skip


@dataclass
class Answers:
    """What a round of questions adds up to; seconds, tokens."""

    absorbed: int = 0
    absorbing: float = 0.0
    asked: int = 0
    evidence: int = 0
    found: int = 0
    over_budget: int = 0
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def _every_question() -> dict[str, dict[str, Any]]:
    text = (resources.files("memory_engine.data") / "apollo13-questions.jsonl").read_text(encoding="utf-8")
    return {item["id"]: item for item in map(json.loads, text.splitlines())}


def all_questions() -> list[str]:
    """The text of every question on the mission that is shipped."""
    return [item["question"] for item in _every_question().values()]


def questions(played: int) -> list[dict[str, Any]]:
    """The questions that the demo asks whose evidence lies within the first `played` utterances."""
    every = _every_question()
    wanted = [every[key] for key in _QUESTIONS if key in every]
    return [item for item in wanted if max(item["evidence"]) < played]


async def recall(screen: Screen, path: Path, session: str, *, token_limit: int, messages: Sequence[ChatMessage]) -> Answers:
    """Add a vector block to the finished session, let it absorb everything, and ask."""
    asked = questions(len(messages))
    answers = Answers()
    engine = MemoryEngine(
        async_database_uri=URL.create("sqlite+aiosqlite", database=str(path)).render_as_string(),
        token_limit=token_limit,
        memory_blocks=[VectorMemoryBlock(name="recall")],
    )
    async with engine:
        memory = engine.session(session)
        begun = time.perf_counter()
        # A block that is new to a session starts at its first message.
        await memory.context()
        await memory.drain()
        answers.absorbing = time.perf_counter() - begun
        answers.absorbed = (await memory.block("recall")).model_dump()["stored_items"]
        screen.rule(
            f"{len(asked)} questions, days after the fact", f"{answers.absorbed:,} items absorbed in {answers.absorbing:.1f} s"
        )
        for item in asked:
            await _ask(screen, memory, item, messages, answers)
    return answers


async def _ask(screen: Screen, memory: Memory, item: dict[str, Any], messages: Sequence[ChatMessage], answers: Answers) -> None:
    begun = time.perf_counter()
    context = await memory.context(item["question"])
    answers.seconds.append(time.perf_counter() - begun)
    answers.asked += 1
    answers.evidence += len(item["evidence"])
    answers.over_budget += context.receipt.tokens > context.receipt.budget
    source = next(source for source in context.receipt.sources if source.name == "recall")
    answers.tokens.append(source.given)
    row(screen, "asked", item["question"], lines=2)
    said = _texts(context)
    for index in item["evidence"]:
        found = messages[index].content in said
        answers.found += found
        if found:
            row(screen, "recalled", *quote(messages[index]))
        else:
            row(screen, "missed", "an utterance that answers it is not among those recalled")
    # Headers begin with a bracket, tags with another.
    lines = sum(line[:1] not in ("", "[", "<") for line in said.splitlines())
    row(screen, "", (f"in {lines:,} lines of {source.given:,} tokens, {answers.seconds[-1] * 1000:.0f} ms", "dim"))
    screen.line()


def _texts(context: Context) -> str:
    return "\n".join(message.content for message in context.messages)


def summary(answers: Answers) -> str:
    """The round in a sentence."""
    if not answers.asked:
        return "none: this part of the mission has no questions"
    return (
        f"{answers.found} of {answers.evidence} answering utterances recalled for {answers.asked} questions, "
        f"{statistics.median(answers.tokens):,.0f} tokens each, median {statistics.median(answers.seconds) * 1000:.0f} ms; "
        f"found by their words alone, no model"
    )
