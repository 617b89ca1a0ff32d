"""The run itself: put every utterance, pause at the moments, start again on the same file."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from memory_engine import ChatMessage, Context, Memory, MemoryEngine
from memory_engine.blocks import StaticMemoryBlock
from memory_engine.demo.drawing import Screen
from memory_engine.demo.mission_log import MissionLog
from memory_engine.demo.recall import recall, summary
from memory_engine.demo.report import Check, Totals, draw_checks, draw_moment, draw_totals, mission_time
from memory_engine.demo.transcript import MISSION, Moment, batches, load, moments
from memory_engine.demo.understanding import scripted, told, understand
from memory_engine.tokens import TokenCounter

SESSION = "apollo-13"
_EVERY = 15
"""Between the moments a context is taken after so many puts, to see that the budget holds everywhere."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a process finds in the file; equal in two processes means that nothing was lost."""

    messages: int
    transcript: str
    log: dict[str, Any]
    context: str
    context_messages: int
    context_tokens: int


def open_engine(path: Path, token_limit: int) -> MemoryEngine:
    """An engine on that file, with a block that never changes and one that a user wrote."""
    return MemoryEngine(
        # Not an f-string: the path may hold characters that mean something in a URI.
        async_database_uri=URL.create("sqlite+aiosqlite", database=str(path)).render_as_string(),
        token_limit=token_limit,
        memory_blocks=[StaticMemoryBlock(name="mission", static_content=MISSION, priority=0), MissionLog()],
    )


async def play(screen: Screen, path: Path, *, token_limit: int, limit: int | None, llm: Any = None) -> bool:
    """The whole demo, with `llm` (None: a script) for what is understood; False when something that has to hold does not."""
    totals = Totals()
    started = time.perf_counter()
    messages = load(limit)
    pauses = moments(len(messages))
    totals.tokens_seen = sum(await TokenCounter().count_messages(messages))
    title = f"Apollo 13 in {token_limit:,} tokens"
    screen.rule(title, f"{len(messages):,} utterances, {totals.tokens_seen:,} tokens")
    screen.line()
    async with open_engine(path, token_limit) as engine:
        memory = engine.session(SESSION)
        totals.setup = time.perf_counter() - started
        await _put_all(screen, memory, messages, pauses, totals)
        before = await _look(memory, pauses[-1].question)
    begun = time.perf_counter()
    found = await _other_process(path, token_limit, pauses[-1].question)
    totals.second_start = time.perf_counter() - begun
    checks = _compare(before, Seen(**found["seen"]), found["final"], Counter(message.name for message in messages))
    draw_checks(screen, "A second start: another process opens the same file", f"{totals.second_start:.1f} s", checks)
    answers = await recall(screen, path, SESSION, token_limit=token_limit, messages=messages)
    totals.recalled, totals.recalling = summary(answers), answers.absorbing + sum(answers.seconds)
    understood = await understand(screen, messages, llm or scripted())
    totals.understood, totals.understanding = told(understood), understood.seconds
    totals.contexts += answers.asked + understood.contexts
    totals.over_budget += answers.over_budget + understood.over_budget
    totals.file_size = await asyncio.to_thread(os.path.getsize, path)
    draw_totals(screen, totals)
    return all(check.holds for check in checks) and totals.over_budget == 0


async def _put_all(
    screen: Screen, memory: Memory, messages: Sequence[ChatMessage], pauses: Sequence[Moment], totals: Totals
) -> None:
    waiting = {pause.index + 1: pause for pause in pauses}
    started = time.perf_counter()
    for number, batch in enumerate(batches(messages, waiting)):
        begun = time.perf_counter()
        await memory.put_messages(batch)
        totals.puts.append(time.perf_counter() - begun)
        totals.messages += len(batch)
        done = totals.messages
        if done in waiting:
            draw_moment(screen, waiting[done], await _pause(memory, waiting[done], totals), done, len(messages))
        elif number % _EVERY == 0:
            totals.noted(await memory.context(batch[-1].content))
        screen.progress(done, len(messages), mission_time(batch), _pace(done, started, totals))
    screen.clear()
    totals.playing = time.perf_counter() - started - totals.waiting


async def _pause(memory: Memory, moment: Moment, totals: Totals) -> Context:
    begun = time.perf_counter()
    # The mission took six days, the demo takes seconds: here the blocks get the time that they had then.
    await memory.drain()
    totals.waiting += time.perf_counter() - begun
    context = await memory.context(moment.question)
    totals.noted(context)
    return context


def _pace(done: int, started: float, totals: Totals) -> str:
    rate = done / max(time.perf_counter() - started - totals.waiting, 1e-9)
    return f"{done:>6,} put, {rate:,.0f}/s, context {totals.tokens_kept:,}"


# -- the second start ----------------------------------------------------------------------------------------


async def second_start(path: Path, token_limit: int, question: str) -> dict[str, Any]:
    """What a new process finds, and the log after the session was ended: then it has absorbed every message."""
    async with open_engine(path, token_limit) as engine:
        memory = engine.session(SESSION)
        seen = await _look(memory, question)
        await memory.flush(final=True)
        await memory.drain()
        return {"seen": asdict(seen), "final": await _log(memory)}


async def _look(memory: Memory, question: str) -> Seen:
    await memory.drain()
    stored = await memory.get_all()
    context = await memory.context(question)
    return Seen(
        messages=len(stored),
        transcript=_digest(stored),
        log=await _log(memory),
        context=_digest(context.messages),
        context_messages=len(context.messages),
        context_tokens=context.receipt.tokens,
    )


async def _log(memory: Memory) -> dict[str, Any]:
    block = await memory.block("mission_log")
    return block.model_dump(mode="json")


def _digest(messages: Sequence[ChatMessage]) -> str:
    """A digest of everything that a message says, with its id and time."""
    return hashlib.sha256("\n".join(message.model_dump_json() for message in messages).encode()).hexdigest()


async def _other_process(path: Path, token_limit: int, question: str) -> dict[str, Any]:
    """What `second_start` returns, run by a process of its own; raises `RuntimeError` when that fails."""
    arguments = ["-m", "memory_engine.demo", "--token-limit", str(token_limit), "--second-start", str(path), question]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the second process ended with code {process.returncode}")
    found: dict[str, Any] = json.loads(output)
    return found


def _compare(before: Seen, after: Seen, final: dict[str, Any], spoken: Counter[str | None]) -> list[Check]:
    total, log = sum(spoken.values()), after.log
    same_messages = after.messages == total and after.transcript == before.transcript
    same_log, same_context, exact = log == before.log, after.context == before.context, final["spoken"] == spoken
    counted = f"{after.messages:,} of {total:,} stored"
    absorbed = f"{log['absorbed']:,} utterances absorbed, {len(log['words'])} words, {len(log['phases'])} phases"
    shown = f"{after.context_messages:,} messages, {after.context_tokens:,} tokens"
    ended = f"the last {final['absorbed'] - log['absorbed']:,} absorbed too: {final['absorbed']:,} in the log, "
    return [
        Check("messages", f"{counted}, {'all the same' if same_messages else 'NOT the same'}", same_messages),
        Check("mission log", f"{absorbed}, {'all the same' if same_log else 'NOT the same'}", same_log),
        Check("context", f"{shown}, {'the same to the last character' if same_context else 'NOT the same'}", same_context),
        Check("session ended", ended + ("each exactly once" if exact else "NOT each exactly once"), exact),
    ]
