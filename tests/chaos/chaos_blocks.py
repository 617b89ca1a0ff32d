"""Blocks that write down what they absorbed, conversations made from a seed, programs to kill."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos_database import Database, uri_of
from pydantic import Field

from memory_engine import BaseMemoryBlock, ChatMessage, MemoryEngine
from memory_engine.settings import Limits

QUICK = Limits(lease=0.3, first_retry=0.01, last_retry=0.05, poll=0.05)
CHILD = Path(__file__).with_name("chaos_child.py")
ACTS = 250
PATIENCE = 60.0
"""Seconds after which a drain that does not end fails the test instead of hanging it."""


def words(text: str) -> int:
    """The tokenizer of these tests: quick, and the same in every process."""
    return len(text.split())


# -- blocks ------------------------------------------------------------------------------------------------------


class _Slow(BaseMemoryBlock[str]):
    """Takes up to `slow` seconds for each delivery; `entered` is told when one is under way."""

    slow: float = Field(default=0.0, exclude=True)
    entered: Callable[[], object] | None = Field(default=None, exclude=True)

    async def _take(self, messages: Sequence[ChatMessage]) -> list[str]:
        """What to write down of a delivery, one line for each message."""
        if self.entered is not None:
            self.entered()
        if self.slow:
            await asyncio.sleep(random.random() * self.slow)
        session = self.context.session_id
        return [f"{session}/{seq}/{m.id}/{m.content}" for seq, m in zip(self.context.seqs, messages, strict=True)]


class InFields(_Slow):
    """Keeps what it absorbed in its fields, call by call."""

    calls: list[list[str]] = []

    async def _aput(self, messages: list[ChatMessage]) -> None:
        half = [*self.calls, []]
        self.calls = half  # a state that must never be seen: half of a delivery
        half[-1] = await self._take(messages)
        self.calls = half

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return "\n".join(line for call in self.calls for line in call)

    async def absorbed(self) -> list[list[str]]:
        """The lines of each call."""
        return self.calls


class InRecords(_Slow):
    """Keeps what it absorbed in records, one for each message, under keys that count them."""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        count = await self.records.count()
        lines = await self._take(messages)
        for offset, (seq, line) in enumerate(zip(self.context.seqs, lines, strict=True)):
            self.records.put(f"{count + offset:08d}", [self.context.delivery_id, line], seq=seq)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return "\n".join(line for call in await self.absorbed() for line in call)

    async def absorbed(self) -> list[list[str]]:
        """The lines of each call."""
        calls: dict[str, list[str]] = {}
        for record in await self.records.list():
            delivery, line = record.data
            calls.setdefault(delivery, []).append(line)
        return list(calls.values())


class Shelf:
    """A store outside of the database: lines by scope, session and seq. No dict itself, pydantic would copy that."""

    def __init__(self) -> None:
        self.lines: dict[tuple[str, str, int], str] = {}

    def __str__(self) -> str:
        return "\n".join(self.lines.values())


class Outside(_Slow):
    """Keeps what it absorbed in a store outside of the database, under stable ids, as a vector database would be."""

    shelf: Shelf = Field(default_factory=Shelf, exclude=True)
    linger: float = Field(default=0.0, exclude=True)
    """Seconds that a call goes on after everything is written."""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        for seq, line in zip(self.context.seqs, await self._take(messages), strict=True):
            self.shelf.lines[self.context.scope_key, self.context.session_uid, seq] = line
            await asyncio.sleep(0)
        if self.linger:
            await asyncio.sleep(self.linger)

    async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        for scope, uid, seq in list(self.shelf.lines):
            mine = scope == self.context.scope_key and session_uid in (None, uid)
            if mine and (seqs is None or seq in seqs):
                del self.shelf.lines[scope, uid, seq]

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        lines = await self.absorbed()
        return "\n".join(line for call in lines for line in call)

    async def absorbed(self) -> list[list[str]]:
        """All lines of this scope that are not being erased, as one call."""
        context = self.context
        return [
            [
                line
                for (scope, uid, seq), line in sorted(self.shelf.lines.items(), key=lambda item: item[0])
                if scope == context.scope_key and not any(erased.covers(uid, seq) for erased in context.erasing)
            ]
        ]


Recorder = InFields | InRecords | Outside


def recorders(*, slow: float = 0.0, entered: Callable[[], object] | None = None) -> list[Recorder]:
    """One block for each way to keep state, and one for each scope; they never need a user's section to be whole."""
    return [
        InFields(name="in_fields", priority=1, slow=slow, entered=entered),
        InRecords(name="in_records", priority=2, slow=slow, entered=entered),
        InFields(name="of_user", scope="user", priority=3, slow=slow, entered=entered),
    ]


# -- conversations -----------------------------------------------------------------------------------------------


def speech(random_: random.Random, least: int = 3, most: int = 25) -> str:
    """Some words."""
    return " ".join(
        random_.choice(("tea", "rain", "stone", "light", "river", "iron")) for _ in range(random_.randint(least, most))
    )


def turns(random_: random.Random, prefix: str) -> Iterator[list[ChatMessage]]:
    """Turns of a conversation without end, with steps of tools and now and then a system message; ids count up."""
    number = 0

    def said(**fields: Any) -> ChatMessage:
        nonlocal number
        number += 1
        return ChatMessage(id=f"{prefix}{number:05d}", **fields)

    while True:
        turn = []
        if random_.random() < 0.05:
            turn.append(said(role="system", content="rule " + speech(random_, 1, 3)))
        turn.append(said(role="user", content=speech(random_)))
        for step in range(random_.choice((0, 0, 1, 3))):
            calls = [f"{prefix}call{number}-{step}-{n}" for n in range(random_.randint(1, 2))]
            asked = [
                {"type": "tool_call", "id": call, "name": "look", "arguments": {"at": speech(random_, 1, 3)}} for call in calls
            ]
            turn.append(said(role="assistant", content=asked))
            turn += [said(role="tool", tool_call_id=call, content=speech(random_)) for call in calls]
        turn.append(said(role="assistant", content=speech(random_)))
        yield turn


@dataclass(frozen=True)
class Act:
    """Something a program does with one of its sessions: put these messages, or flush."""

    session: str
    messages: tuple[ChatMessage, ...] = ()


def acts(seed: int, count: int, sessions: Sequence[str] = ("a", "b")) -> list[Act]:
    """What a program with this seed does: puts of one or a few messages, in several sessions, and seldom a flush."""
    random_ = random.Random(seed)
    streams = {session: turns(random_, f"{session}-") for session in sessions}
    waiting: dict[str, list[ChatMessage]] = {session: [] for session in sessions}
    made: list[Act] = []
    while len(made) < count:
        session = random_.choice(sessions)
        if random_.random() < 0.02:
            made.append(Act(session))
            continue
        ahead = waiting[session]
        size = 1 if random_.random() < 0.8 else random_.randint(2, 4)
        while len(ahead) < size:
            ahead += next(streams[session])
        made.append(Act(session, tuple(ahead[:size])))
        del ahead[:size]
    return made


def small_engine(database: Database, blocks: Sequence[Recorder], **options: Any) -> MemoryEngine:
    """An engine that flushes often."""
    settings: dict[str, Any] = {"token_limit": 300, "token_flush_size": 40, "limits": QUICK, "tokenizer_fn": words}
    settings |= {"async_database_uri": uri_of(database), "memory_blocks": blocks}
    return MemoryEngine(**(settings | options))


# -- programs ----------------------------------------------------------------------------------------------------


class Program:
    """A program with a plan of acts; it is started again and again and goes on behind what was acknowledged.

    `kind` says what `chaos_child.py` does, `more` are further arguments for it, `patience` how late it is ended at most.
    """

    def __init__(
        self, database: Database, seed: int, kind: str = "act", *more: str, count: int = ACTS, patience: float = 0.3
    ) -> None:
        self.database, self.seed, self.done, self.count = database, seed, 0, count
        self.kind, self.more, self.patience = kind, more, patience
        self.random = random.Random(seed)

    def run_and_end(self, how: signal.Signals) -> None:
        """Start it, end it at a random moment with that signal, and take in what it acknowledged until then."""
        numbers = [str(number) for number in (self.seed, self.count, self.done)]
        arguments = [sys.executable, str(CHILD), self.kind, str(self.database), *numbers, *self.more]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            try:
                assert process.stdout.readline() == "ready\n", process.stderr.read()
                # Now and then so early that it dies while it opens the database or resumes deliveries.
                time.sleep(self.random.choice((0.1, 0.3, 1.0)) * self.patience * self.random.random())
            finally:
                process.send_signal(how)
            said, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == -how, errors
        for line in said.splitlines(keepends=True):
            # The last line may be torn: then the act is not acknowledged, and is done again.
            if line.startswith("done ") and line.endswith("\n"):
                self.done = int(line.split()[1]) + 1

    @property
    def acknowledged(self) -> list[Act]:
        return acts(self.seed, self.count)[: self.done]


async def carry_out(engine: MemoryEngine, todo: list[Act]) -> None:
    """Do the acts here, undisturbed."""
    for act in todo:
        memory = engine.session(act.session, user_id="ada")
        if act.messages:
            await memory.put_messages(act.messages)
        else:
            await memory.flush()


# -- what was written down -----------------------------------------------------------------------------------------


def heads(lines: Sequence[str]) -> list[str]:
    """Lines without the text of the message."""
    return ["/".join(line.split("/", 3)[:3]) for line in lines]


def of_session(calls: Sequence[Sequence[str]], session: str) -> list[list[str]]:
    """The calls that came from one session, without the texts."""
    return [heads(call) for call in calls if call and call[0].startswith(f"{session}/")]
