"""What a context shows, decided without I/O; and, from `flush`, what leaves the FIFO.

The order of decisions, and nothing else, lives here:

1. Fixed: pinned messages, sections of priority 0, the current turn's user message and its newest step.
2. History may claim its share (`ratio` of the budget), sections the rest, and each what the other does not need.
3. Over it, sections are cut, from the largest priority number down (1 is the most important that may be cut).
4. Then the oldest history is left out: older turns wholly, of the current turn its oldest steps.
5. Then tool results and assistant texts of what is fixed are shortened, the largest first.
6. Then `BudgetExceededError`.

Counts of sections and messages need not add up after rendering, so the caller counts the finished messages and plans again
with the excess as `slack`; see `render` for the loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from memory_engine.errors import BudgetExceededError
from memory_engine.flush import plan_chunks, plan_complete_turns, plan_flush
from memory_engine.steps import Entry, Step, ViewStep, arrange
from memory_engine.survey import (
    OVER_MAX_TURNS,
    WITHOUT_USER_MESSAGE,
    ContextRequest,
    SectionCost,
    Shorten,
    Survey,
    is_complete,
    is_within_share,
    survey_history,
)

if TYPE_CHECKING:
    from memory_engine.messages import ChatMessage

__all__ = [
    "OVER_BUDGET",
    "OVER_MAX_TURNS",
    "OVER_SECTION_ROOM",
    "WITHOUT_USER_MESSAGE",
    "ContextPlan",
    "ContextRequest",
    "Entry",
    "LeftOut",
    "SectionCost",
    "SectionCut",
    "Shorten",
    "Step",
    "ViewStep",
    "arrange",
    "history_floor",
    "plan_chunks",
    "plan_complete_turns",
    "plan_context",
    "plan_flush",
    "section_room",
]

OVER_SECTION_ROOM = "over the room for sections"
OVER_BUDGET = "over the budget"

_FLOOR = 32
"""Tokens below which messages are shortened only instead of an error: marker, overhead and ids need about as much."""


class SectionCut(NamedTuple):
    """Ask the block to give up at least `tokens` of its section."""

    name: str
    tokens: int
    reason: str


class LeftOut(NamedTuple):
    """History that is not shown: the messages' seqs, their tokens, why."""

    seqs: tuple[int, ...]
    tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class ContextPlan:
    """What to show. With `cuts` nothing is decided yet: truncate these sections, then plan again with the new costs.

    `tokens` counts the steps and sections. `flush_to` is a horizon for active steps that were left out, so that nothing is
    both invisible and unabsorbed. `shortened` are the seqs of steps whose messages were shortened further here.
    """

    steps: tuple[ViewStep, ...] = ()
    cuts: tuple[SectionCut, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    flush_to: int | None = None
    shortened: tuple[int, ...] = ()
    tokens: int = 0


def plan_context(request: ContextRequest) -> ContextPlan:
    """The plan for a request: deterministic, without side effects.

    :raises BudgetExceededError: what may never be cut does not fit; the error names the largest contributors.
    """
    sections = sum([section.tokens for section in request.sections])
    everything = sum([step.total for step in request.steps])
    if sections + everything + request.slack <= request.budget and is_complete(request):
        return ContextPlan(tuple(request.steps), tokens=sections + everything)
    survey = survey_history(request)
    cuts = _section_cuts(request, sections - _section_room(request, survey))
    if cuts:
        return ContextPlan(cuts=cuts)
    room = request.budget - request.slack - sections - survey.pinned_tokens - survey.fixed_tokens
    steps, shortened = request.steps, tuple[int, ...]()
    if room >= 0:
        chosen = survey.select(room, lagging=True)
    else:
        chosen = survey.always
        steps, shortened = _shorten(request, sorted(chosen), -room, sections)
    left_out = _left_out(request, survey, chosen)
    shown = tuple([steps[index] for index in sorted(chosen)])
    tokens = sections + sum(step.total for step in shown)
    return ContextPlan(shown, (), left_out, _flush_to(request, chosen) if left_out else None, shortened, tokens)


def section_room(request: ContextRequest) -> int:
    """The tokens that all sections together may use, whatever `request.sections` says."""
    if is_within_share(request):
        return max(0, request.budget - request.slack - sum([step.total for step in request.steps]))
    return max(0, _section_room(request, survey_history(request)))


def history_floor(request: ContextRequest) -> tuple[int, ...]:
    """The seqs that history will show even if sections use all of `section_room`; blocks need not repeat these.

    Only sections of priority 0 that are larger than that room could still push some of them out.
    """
    if is_within_share(request):
        return tuple(sorted([seq for step in request.steps for seq in step.seqs]))
    survey = survey_history(request)
    room = request.budget - request.slack - survey.pinned_tokens - max(0, _section_room(request, survey))
    chosen = survey.select(room - survey.fixed_tokens, lagging=False)
    _drop_leading(request, chosen)
    return tuple(sorted(seq for index in chosen for seq in request.steps[index].seqs))


# -- deciding ----------------------------------------------------------------------------------------------------


def _section_room(request: ContextRequest, survey: Survey) -> int:
    history = max(min(survey.need, request.share), survey.fixed_tokens)
    return request.budget - request.slack - survey.pinned_tokens - history


def _section_cuts(request: ContextRequest, excess: int) -> tuple[SectionCut, ...]:
    """Take `excess` tokens from sections, from the largest priority number down, of equal ones the last first."""
    cuts = []
    for _, section in sorted(enumerate(request.sections), key=lambda pair: (-pair[1].priority, -pair[0])):
        if excess <= 0:
            break
        if section.priority > 0 and section.tokens > 0:
            cut = min(section.tokens, excess)
            cuts.append(SectionCut(section.name, cut, OVER_SECTION_ROOM))
            excess -= cut
    return tuple(cuts)


def _shorten(
    request: ContextRequest, chosen: list[int], excess: int, sections: int
) -> tuple[Sequence[ViewStep], tuple[int, ...]]:
    """The steps with tool results and assistant texts of the chosen ones cut by `excess` tokens, the largest first."""
    steps = list(request.steps)
    candidates = {
        (index, at): steps[index].tokens[at]
        for index in chosen
        for at, message in enumerate(steps[index].messages)
        if message.role in ("assistant", "tool") and request.shorten is not None
    }
    shortened: set[int] = set()
    floor = _FLOOR
    while excess > 0:
        level = _level(candidates.values(), excess, floor)
        over = [place for place, tokens in candidates.items() if tokens > level]
        if not over and floor:
            floor = 0
            continue
        if not over or request.shorten is None:
            raise _exceeded(request, chosen, steps, excess, sections)
        for index, at in over:
            before = candidates[index, at]
            message, tokens = request.shorten(steps[index].messages[at], level)
            if tokens < before:
                steps[index] = _with_message(steps[index], at, message, tokens)
                shortened.update(steps[index].seqs)
                excess -= before - tokens
            if tokens > level:
                del candidates[index, at]  # it cannot get smaller
            else:
                candidates[index, at] = tokens
    return steps, tuple(sorted(shortened))


def _level(tokens: Iterable[int], excess: int, floor: int) -> int:
    """The greatest limit for each of the messages that saves `excess` tokens in all, but not below `floor`."""
    amounts = sorted(tokens, reverse=True)
    taken = 0
    for number, amount in enumerate(amounts, start=1):
        taken += amount
        level = (taken - excess) // number
        if number == len(amounts) or level >= amounts[number]:
            return max(level, floor)
    return floor


def _with_message(step: ViewStep, at: int, message: ChatMessage, tokens: int) -> ViewStep:
    costs = (*step.tokens[:at], tokens, *step.tokens[at + 1 :])
    return step._replace(messages=(*step.messages[:at], message, *step.messages[at + 1 :]), tokens=costs, total=sum(costs))


def _exceeded(
    request: ContextRequest, chosen: list[int], steps: Sequence[ViewStep], excess: int, sections: int
) -> BudgetExceededError:
    contributors = [(f"section {section.name!r}", section.tokens) for section in request.sections if section.tokens]
    for index in chosen:
        step = steps[index]
        what = "pinned " if step.pinned else ""
        contributors += [
            (f"{what}{message.role} message, seq {step.seqs[0]}", tokens)
            for message, tokens in zip(step.messages, step.tokens, strict=True)
        ]
    if request.slack:
        contributors.append(("what rendering adds", request.slack))
    contributors.sort(key=lambda item: -item[1])
    return BudgetExceededError(budget=request.budget, needed=request.budget + excess, contributors=tuple(contributors))


def _left_out(request: ContextRequest, survey: Survey, chosen: set[int]) -> tuple[LeftOut, ...]:
    """An account of the steps that are not chosen; takes those from the chosen that may not come first."""
    reasons = survey.excluded | dict.fromkeys(_drop_leading(request, chosen), WITHOUT_USER_MESSAGE)
    missing: dict[str, list[ViewStep]] = {}
    for index, step in enumerate(request.steps):
        if index not in chosen:
            missing.setdefault(reasons.get(index, OVER_BUDGET), []).append(step)
    return tuple(
        LeftOut(tuple(sorted(seq for step in steps for seq in step.seqs)), sum(step.total for step in steps), reason)
        for reason, steps in missing.items()
    )


def _drop_leading(request: ContextRequest, chosen: set[int]) -> list[int]:
    """Remove from the chosen steps those that would stand between the leading system messages and a user message."""
    dropped: list[int] = []
    if request.start_on_user:
        for index in sorted(chosen):
            step = request.steps[index]
            if step.is_user:
                break
            if step.role not in ("system", "developer"):
                dropped.append(index)
        chosen.difference_update(dropped)
    return dropped


def _flush_to(request: ContextRequest, chosen: set[int]) -> int | None:
    """The horizon behind the active steps that were left out, before any that is shown, open, or the newest."""
    active = [(i, step) for i, step in enumerate(request.steps) if step.seqs[-1] >= request.horizon and not step.pinned]
    if not active:
        return None
    limit = active[-1][1].seqs[0]
    if request.open_from is not None:
        limit = min(limit, request.open_from)
    best = None
    reach = -1
    gain = False
    for index, step in active:
        first = step.seqs[0]
        if first > limit:
            break
        if gain and reach < first:
            best, gain = first, False
        if index in chosen and first != request.turn_seq:
            break
        gain = gain or index not in chosen
        reach = max(reach, step.seqs[-1])
    return best
