"""When and how far messages leave the short-term FIFO, and in which parts blocks receive them: pure, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from memory_engine.steps import Entry, Step, arrange, last_user_seq


class _Cut(NamedTuple):
    """A horizon that splits no step, and what it would archive: tokens, user messages, and whether these are whole turns.

    `gain` counts the steps beyond the last whole turn, without the current user message.
    """

    seq: int
    tokens: int
    turns: int
    whole: bool
    gain: int


def plan_flush(
    entries: Iterable[Entry],
    *,
    threshold: int,
    flush_size: int,
    active_tokens: int,
    max_turns: int | None = None,
    active_turns: int = 0,
    horizon: int,
    turn_seq: int | None = None,
) -> int | None:
    """The new horizon, or None when nothing has to leave or nothing may.

    `entries` are the rows with `seq >= horizon` in order. `active_tokens` is the sum of those that are not pinned,
    `active_turns` the number of user messages among them; `turn_seq` is the current turn's user message, wherever it is.

    - Over `threshold` tokens whole turns leave, oldest first, until at least `flush_size` tokens are gone and the rest fits.
    - Over `max_turns` alone only the surplus turns leave, so that the newest `max_turns` stay.
    - The current turn is touched only when the rest is still over the threshold: its oldest complete steps leave. Its user
      message is passed over (it stays visible through `turn_seq`) and counts as gone.
    - No step is ever split, and neither the newest step nor an open one leaves while its turn is current.
    """
    over = active_tokens > threshold
    if not over and (max_turns is None or active_turns <= max_turns):
        return None
    rows = [entry for entry in entries if entry.seq >= horizon]
    steps = arrange(rows)
    # Without a user message among the rows all of them belong to a turn that began below the horizon, or before any.
    current = max(last_user_seq(rows), horizon if turn_seq is None or turn_seq < horizon else turn_seq)
    target = flush_size if over else 0
    best: _Cut | None = None
    for cut in _cuts(steps, current):
        rest = active_tokens - cut.tokens
        fits = rest <= threshold and cut.tokens >= target
        if not cut.whole:
            if (best is None or best.whole) and active_tokens - (best.tokens if best else 0) <= threshold:
                break  # whole turns were enough
            if cut.gain == 0 and not fits:
                continue  # to pass over the user message alone gains nothing
        elif max_turns is not None and active_turns - cut.turns > max_turns:
            fits = False
        best = cut
        if fits:
            break
    return None if best is None else best.seq


def _cuts(steps: Sequence[Step], current: int) -> Iterator[_Cut]:
    """Horizons that may be taken, in order: starts of turns up to the current one, then the steps of the current one."""
    limit = _limit(steps)
    tokens = turns = gain = 0
    reach = -1
    for step in steps:
        start = step.first_seq
        if limit is not None and start > limit:
            return
        whole = start <= current and (step.is_user or start == current)
        if tokens and reach < start and (whole or start > current):
            gain = 0 if whole else gain
            yield _Cut(start, tokens, turns, whole, gain)
        tokens += 0 if step.pinned else step.tokens
        turns += step.is_user
        gain += not step.pinned and not (step.is_user and start == current)
        reach = max(reach, step.last_seq)


def _limit(steps: Sequence[Step]) -> int | None:
    """The highest horizon allowed: the start of the newest step, or of the first open one when that is earlier."""
    newest = next((step.first_seq for step in reversed(steps) if not step.hidden and not step.pinned), None)
    opened = next((step.first_seq for step in steps if step.open), None)
    return newest if opened is None or newest is None else min(newest, opened)


def plan_complete_turns(entries: Iterable[Entry], *, final: bool = False) -> int | None:
    """The horizon that archives all complete turns of the active rows, with `final` everything; None for nothing to do.

    When a late result ties the current turn to an earlier one, the earlier one stays too.
    """
    rows = tuple(entries)
    if all(entry.pinned for entry in rows):
        return None
    if final:
        return rows[-1].seq + 1
    current = last_user_seq(rows)
    best = None
    gain = False
    reach = -1
    for step in arrange(rows):
        if step.first_seq > current:
            break
        if gain and reach < step.first_seq and step.is_user:
            best = step.first_seq
        gain = gain or not step.pinned
        reach = max(reach, step.last_seq)
    return best


def plan_chunks(entries: Iterable[Entry], *, flush_size: int) -> tuple[int, ...]:
    """The ends (exclusive seqs) of the parts in which one flush is delivered; the last is behind its last entry.

    `entries` are all rows of one flush, in order. There are at most `max(1, total // flush_size)` parts of about equal
    tokens (pinned, system and developer messages weigh nothing), cut only where no step is split. No entries, no parts.
    """
    marks: list[tuple[int, int]] = []
    total = 0
    reach = -1
    for step in arrange(entries, closed=True):
        if -1 < reach < step.first_seq:
            marks.append((reach + 1, total))
        total += sum(entry.tokens for entry in step.entries if not _weightless(entry))
        reach = max(reach, step.last_seq)
    parts = max(1, total // max(1, flush_size))
    return (*_nearest(marks, total, parts), reach + 1) if reach >= 0 else ()


def _nearest(marks: Sequence[tuple[int, int]], total: int, parts: int) -> Iterator[int]:
    """For each of the inner borders of equal parts, the mark nearest to it (the earlier of two), each at most once."""
    at = 0
    for part in range(1, parts):
        ideal = total * part / parts
        while at + 1 < len(marks) and abs(marks[at + 1][1] - ideal) < abs(marks[at][1] - ideal):
            at += 1
        if at < len(marks) and 0 < marks[at][1] < total and abs(marks[at][1] - ideal) <= total / parts:
            yield marks[at][0]
            at += 1


def _weightless(entry: Entry) -> bool:
    return entry.pinned or entry.role in ("system", "developer")
