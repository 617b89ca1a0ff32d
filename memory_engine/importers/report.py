"""What an import says on the terminal: the plan, the progress, what became of each session."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import Self, TextIO

from memory_engine.importers.run import Outcome, Plan, SessionPlan

_ROLES = ("system", "developer", "user", "assistant", "tool")
_WIDTH = 30
_LINES = 40
_EVERY = 5.0
"""Seconds between lines of progress where no line can be drawn again."""


def plan_lines(plan: Plan, order: str, *, every: bool = False) -> list[str]:
    """The plan as a table of sessions, `every` one of them or the first 40, with what cannot be brought over and why."""
    lines = [f"{'session':40.40} {'messages':>8}  {'roles':44} first and last"]
    shown = plan.sessions if every else plan.sessions[:_LINES]
    for session in shown:
        lines.append(_session_line(session))
        lines += _problem_lines(session)
    if left := plan.sessions[len(shown) :]:
        lines.append(f"... and {len(left)} sessions more; --all shows them")
        lines += [line for session in left for line in _problem_lines(session)][:_LINES]
    lines.append(f"{len(plan.sessions)} sessions, {plan.messages} messages, {plan.refused} that cannot be brought over")
    lines.append(f"order: {order}")
    pinned = sum(session.roles["system"] + session.roles["developer"] for session in plan.sessions)
    if pinned:
        lines.append(f"note: {pinned} system messages stay in view for good, as any here; --unpin-system lets them leave it")
    lines += [f"note: {note}" for note in plan.notes]
    lines.append(f"sha256: {plan.digest}")
    return lines


def _session_line(session: SessionPlan) -> str:
    roles = ", ".join(f"{session.roles[role]} {role}" for role in _ROLES if session.roles[role])
    times = "" if session.first is None else f"{_short(session.first)} to {_short(session.last)}"
    if session.first is not None and session.untimed:
        times += f", {session.untimed} without"
    name = repr(session.source.name)[1:-1] if session.source.name else "(no name)"
    owner = f" of {session.user_id}" if session.user_id else ""
    return f"{name + owner:40} {session.messages:>8}  {roles:44} {times}".rstrip()


def _problem_lines(session: SessionPlan) -> list[str]:
    lines = [f"  ! none of it: {session.blocked}"] if session.blocked else []
    lines += [f"  ! row {row}: {problem:.200}" for row, problem in session.problems]
    if session.refused > len(session.problems):
        lines.append(f"  ! and {session.refused - len(session.problems)} rows more")
    return lines


def _short(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def outcome_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """What became of the sessions: those that went wrong one by one, the others together."""
    lines: list[str] = []
    for outcome in outcomes:
        if outcome.state in ("refused", "different"):
            counts = f"{outcome.comparison.found} of {outcome.comparison.expected} messages are there"
            lines.append(f"  ! {outcome.plan.session_id!r}: {outcome.state}, {counts}: {outcome.reason}")
    good = [outcome for outcome in outcomes if outcome.state in ("imported", "there already")]
    there = sum(outcome.state == "there already" for outcome in good)
    verified = sum(outcome.comparison.found for outcome in good)
    lines.append(f"{len(good)} of {len(outcomes)} sessions verified, {verified} messages; {there} sessions were there already")
    return lines


def say(*lines: str) -> None:
    """Write lines to stdout; what it cannot show is written as its code."""
    text = "".join(f"{line}\n" for line in lines)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


class Progress:
    """One line on stderr that is drawn again, or a line now and then where that is not possible."""

    def __init__(self, label: str, total: int | None, *, stream: TextIO | None = None) -> None:
        self._label, self._total, self._done = label, total, 0
        self._stream = stream or sys.stderr
        self._drawn = self._stream.isatty()
        self._next = time.monotonic() + (0 if self._drawn else _EVERY)

    def step(self, done: int) -> None:
        """So many messages more are done."""
        self._done += done
        now = time.monotonic()
        if now >= self._next:
            self._next = now + (0.1 if self._drawn else _EVERY)
            self._write(self._line())

    def _line(self) -> str:
        if not self._total:
            return f"{self._label}: {self._done} messages"
        share = min(self._done / self._total, 1.0)
        full = int(share * _WIDTH)
        return f"{self._label} {'█' * full}{'·' * (_WIDTH - full)} {self._done} of {self._total} messages, {share:.0%}"

    def _write(self, line: str) -> None:
        self._stream.write(f"\r{line}\x1b[K" if self._drawn else f"{line}\n")
        self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._drawn:
            self._write(self._line())
            self._stream.write("\n")
