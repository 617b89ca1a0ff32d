"""Blocks that write down what they absorbed, conversations made from a seed, programs to kill, a look at the raw file."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def small_engine(database: Path, blocks: Sequence[Recorder], **options: Any) -> MemoryEngine:
    """An engine that flushes often."""
    settings: dict[str, Any] = {"token_limit": 300, "token_flush_size": 40, "limits": QUICK, "tokenizer_fn": words}
    settings |= {"async_database_uri": f"sqlite+aiosqlite:///{database}", "memory_blocks": blocks}
    return MemoryEngine(**(settings | options))


# -- programs ----------------------------------------------------------------------------------------------------


class Program:
    """A program with a plan of acts; it is started again and again and goes on behind what was acknowledged.

    `kind` says what `chaos_child.py` does, `more` are further arguments for it, `patience` how late it is ended at most.
    """

    def __init__(
        self, database: Path, seed: int, kind: str = "act", *more: str, count: int = ACTS, patience: float = 0.3
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


# -- the raw file ------------------------------------------------------------------------------------------------


def rows(database: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    """What the file says, past all of the engine's code."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(query, values).fetchall()


def flushed(database: Path, session: str, tenant: str = "") -> list[str]:
    """The lines that blocks must have written down about a session, in order."""
    found = rows(
        database,
        "SELECT m.seq, m.message_id FROM memory_messages m JOIN memory_sessions s ON s.pk = m.session_pk "
        "WHERE s.session_id = ? AND s.tenant = ? AND m.seq < s.horizon "
        "AND m.role NOT IN ('system', 'developer') ORDER BY m.seq",
        session,
        tenant,
    )
    return [f"{session}/{seq}/{message_id}" for seq, message_id in found]


def heads(lines: Sequence[str]) -> list[str]:
    """Lines without the text of the message."""
    return ["/".join(line.split("/", 3)[:3]) for line in lines]


def of_session(calls: Sequence[Sequence[str]], session: str) -> list[list[str]]:
    """The calls that came from one session, without the texts."""
    return [heads(call) for call in calls if call and call[0].startswith(f"{session}/")]


def audit(database: Path) -> None:
    """Assert that the sums, horizons, cursors and owners in the file agree with each other."""
    for pk, uid, next_seq, horizon, active, turns_ in rows(
        database, "SELECT pk, uid, next_seq, horizon, active_tokens, active_turns FROM memory_sessions"
    ):
        stored = rows(database, "SELECT seq, role, pinned, tokens FROM memory_messages WHERE session_pk = ?", pk)
        assert active == sum(t for seq, _, pinned, t in stored if seq >= horizon and not pinned), f"active_tokens of {uid}"
        assert turns_ == sum(role == "user" for seq, role, pinned, _ in stored if seq >= horizon and not pinned), (
            f"active_turns of {uid}"
        )
        assert next_seq > max((seq for seq, *_ in stored), default=-1)
        assert 0 <= horizon <= next_seq
        ends = [end for (end,) in rows(database, "SELECT end_seq FROM memory_flushes WHERE session_pk = ?", pk)]
        assert max(ends, default=0) <= horizon
        for block, cursor, target in rows(
            database, "SELECT block, cursor, target FROM memory_block_cursors WHERE session_pk = ?", pk
        ):
            assert 0 <= cursor <= target <= horizon, f"cursor of {block} in {uid}"
    for table in ("messages", "flushes", "block_cursors", "parked"):
        lost = f"SELECT COUNT(*) FROM memory_{table} WHERE session_pk NOT IN (SELECT pk FROM memory_sessions)"
        assert rows(database, lost) == [(0,)], f"{table} without a session"
    uids = {uid for (uid,) in rows(database, "SELECT uid FROM memory_sessions")}
    for table in ("block_states", "block_records"):
        for (key,) in rows(database, f"SELECT DISTINCT scope_key FROM memory_{table} WHERE scope_key LIKE 's:%'"):
            assert key.rsplit(":", 1)[1] in uids, f"{table} of the erased session {key}"


def leaks(database: Path, markers: Sequence[str]) -> dict[str, list[str]]:
    """Which of the markers are still in which tables."""
    found: dict[str, list[str]] = {}
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            text = "\n".join(map(repr, connection.execute(f'SELECT * FROM "{table}"')))
            if seen := [marker for marker in markers if marker in text]:
                found[table] = seen
    return found


def raw_leaks(database: Path, markers: Sequence[str]) -> dict[str, list[str]]:
    """Which of the markers are still in the bytes of the file, its log, or anything beside it."""
    found: dict[str, list[str]] = {}
    for path in sorted(database.parent.glob(database.name + "*")):
        content = path.read_bytes()
        if seen := [marker for marker in markers if marker.encode() in content]:
            found[path.name] = seen
    return found
