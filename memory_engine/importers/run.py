"""What all imports have in common: look (a dry run), bring over, verify. A source is read once for each.

A message's id is made of its source, session and row, so the engine itself sees to it that repeating an import, or going on
with one that was interrupted, writes nothing twice.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal

from memory_engine.engine import MemoryEngine
from memory_engine.errors import ConfigurationError, SessionOwnerError
from memory_engine.importers.compare import Comparison, Digest, compare, count_own, prepared
from memory_engine.importers.source import Source, SourceSession
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage, encode
from memory_engine.settings import check_id

_BATCH = 500
_SHOWN = 20
"""So many problems of a session are kept with their reason; the others are counted."""

_OCCUPIED = (
    "the session has {} messages that the source does not have, behind which these would stand; --append does that, "
    "--session-prefix brings them into a session of their own"
)
_GAP = (
    "{}, and behind its place are messages of this source already: nothing can be put between them. Delete the session here "
    "(MemoryEngine.delete_session) and import it again"
)

State = Literal["imported", "there already", "refused", "different"]
Step = Callable[[int], None]
"""Told how many messages are done."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where messages go. `{session}` in `user_id` is the session's name in the source; a source may have more such names,
    and each named group of `session_pattern` is one.
    """

    tenant: str = ""
    user_id: str | None = None
    session_prefix: str = ""
    session_pattern: str | None = None
    only: tuple[str, ...] = ()
    unpin_system: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.session_pattern or "")
        except re.error as error:
            raise ConfigurationError(f"--session-pattern is no regular expression: {error}.") from error

    def place(self, session: SourceSession) -> tuple[str, str | None]:
        """The session's id here, and whose it is.

        :raises ConfigurationError: it cannot have such a name, or the user cannot be told.
        """
        name = check_id("the session id", self.session_prefix + session.name)
        if self.user_id is None:
            return name, None
        known = {**session.fields, "session": session.name}
        if self.session_pattern is not None:
            found = re.fullmatch(self.session_pattern, session.name)
            if found is None:
                raise ConfigurationError("its name does not match --session-pattern")
            known |= {key: value for key, value in found.groupdict().items() if value is not None}
        try:
            user = re.sub(r"\{(\w+)\}", lambda match: known[match[1]], self.user_id)
        except KeyError as error:
            raise ConfigurationError(f"--user-id names {error}, which is not known; known are {', '.join(known)}") from error
        return name, check_id("the user id", user)


@dataclass(slots=True)
class SessionPlan:
    """What one session would bring. `digest` stands for its messages with their ids, times and order."""

    source: SourceSession
    session_id: str = ""
    user_id: str | None = None
    messages: int = 0
    refused: int = 0
    untimed: int = 0
    roles: Counter[str] = field(default_factory=Counter)
    first: datetime | None = None
    last: datetime | None = None
    digest: str = ""
    problems: list[tuple[str, str]] = field(default_factory=list)
    blocked: str = ""
    """Why none of it can be brought over."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an import would bring."""

    sessions: tuple[SessionPlan, ...]
    notes: tuple[str, ...]

    @property
    def messages(self) -> int:
        return sum(session.messages for session in self.sessions)

    @property
    def refused(self) -> int:
        return sum(session.refused + bool(session.blocked) for session in self.sessions)

    @property
    def digest(self) -> str:
        """The SHA-256 of all sessions' names and digests."""
        lines = [f"{len(plan.session_id)}:{plan.session_id}{plan.digest}" for plan in self.sessions if not plan.blocked]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one session."""

    plan: SessionPlan
    state: State
    comparison: Comparison
    reason: str = ""


async def make_plan(source: Source, target: Target, *, step: Step = lambda done: None) -> Plan:
    """Read everything once and say what would be brought over; nothing is written anywhere.

    :raises ConfigurationError: this is no such source, or it has no session that was asked for.
    """
    sessions = await source.sessions()
    if missing := set(target.only) - {session.name for session in sessions}:
        raise ConfigurationError(f"The source has no session {', '.join(map(repr, sorted(missing)))}.")
    plans = [
        await _plan(source, session, target, step) for session in sessions if not target.only or session.name in target.only
    ]
    seen: dict[str, str] = {}
    for plan in plans:
        if not plan.blocked and seen.setdefault(plan.session_id, plan.source.name) != plan.source.name:
            plan.blocked = f"another session of the source would be {plan.session_id!r}, too"
    return Plan(tuple(plans), tuple(await source.notes()))


async def _plan(source: Source, session: SourceSession, target: Target, step: Step) -> SessionPlan:
    plan = SessionPlan(session)
    try:
        plan.session_id, plan.user_id = target.place(session)
    except ConfigurationError as error:
        plan.blocked = str(error)
    digest = Digest()
    async for item in source.read(session):
        if item.message is None:
            plan.refused += 1
            if len(plan.problems) < _SHOWN:
                plan.problems.append((item.row, item.problem))
            continue
        message = prepared(source, session, item, unpin=target.unpin_system)
        digest.add(message, encode(message))
        plan.messages += 1
        plan.roles[message.role] += 1
        plan.untimed += message.created_at is None
        for time in filter(None, [message.created_at]):
            plan.first, plan.last = min(plan.first or time, time), max(plan.last or time, time)
        step(1)
    plan.digest = str(digest)
    return plan


async def bring_over(
    engine: MemoryEngine,
    source: Source,
    plan: SessionPlan,
    target: Target,
    *,
    append: bool = False,
    flush: bool = False,
    step: Step = lambda done: None,
) -> Outcome:
    """Bring one session over and read it back. `append` allows that other messages stand before these.

    With `flush` everything is archived at the end: it will not be gone on with, and blocks shall learn all of it.
    """
    memory = engine.session(plan.session_id, user_id=plan.user_id, tenant=target.tenant)
    try:
        before = await compare(memory, source, plan.source, unpin=target.unpin_system, whole=False)
    except SessionOwnerError as error:
        return Outcome(plan, "refused", Comparison(plan.messages, 0), str(error))
    if refused := await _refused(memory, source, plan, before, append=append):
        return refused
    state: State = "imported" if before.difference else "there already"
    if before.difference:
        async for batch in _batches(source, plan.source, target):
            await memory.put_messages(batch)
            step(len(batch))
    else:
        step(before.found)
    if flush:
        await memory.flush(final=True)
    after = await compare(memory, source, plan.source, unpin=target.unpin_system)
    if after.difference:
        return Outcome(plan, "different", after, after.difference)
    if after.digest != plan.digest:
        return Outcome(plan, "different", after, "the source has changed since it was looked at; run the import again")
    return Outcome(plan, state, after)


async def _refused(memory: Memory, source: Source, plan: SessionPlan, before: Comparison, *, append: bool) -> Outcome | None:
    """Why nothing can be written to the session, if so."""
    found = replace(before, expected=plan.messages)
    if before.conflict:
        return Outcome(plan, "different", found, before.difference)
    if not before.difference or not before.others_after:
        return None
    if await count_own(memory, source, plan.source) > before.found:
        # As when a row was left out and repaired later: behind the others it would be out of order for good.
        return Outcome(plan, "refused", found, _GAP.format(before.difference))
    return None if append else Outcome(plan, "refused", found, _OCCUPIED.format(before.others_after))


async def _batches(source: Source, session: SourceSession, target: Target) -> AsyncIterator[list[ChatMessage]]:
    batch: list[ChatMessage] = []
    async for item in source.read(session):
        if item.message is not None:
            batch.append(prepared(source, session, item, unpin=target.unpin_system))
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
