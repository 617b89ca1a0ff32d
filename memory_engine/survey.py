"""What may happen to each step of history in a context: the facts on which `budget.plan_context` decides. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from memory_engine.steps import ViewStep

if TYPE_CHECKING:
    from memory_engine.messages import ChatMessage

OVER_MAX_TURNS = "older than max_turns"
WITHOUT_USER_MESSAGE = "history must start at a user message"

Shorten = Callable[["ChatMessage", int], tuple["ChatMessage", int]]


class SectionCost(NamedTuple):
    """A block's section: its tokens as rendered, tags included; 0 when it is empty."""

    name: str
    priority: int
    tokens: int


@dataclass(frozen=True, slots=True)
class ContextRequest:
    """What there is to show, and the room for it. All sizes are tokens.

    `steps` are in order: pinned ones, active ones (`seq >= horizon`), the current turn's user message (`turn_seq`), and
    *lagging* ones, archived but not absorbed yet, which may use only what all others leave. `slack` is room to keep free.
    `open_from` is the first seq of an open call, which stays active. `shorten` is `view.shortener(count)`; without it
    nothing is shortened.
    """

    budget: int
    ratio: float
    steps: Sequence[ViewStep]
    horizon: int
    turn_seq: int | None
    sections: Sequence[SectionCost] = ()
    slack: int = 0
    max_turns: int | None = None
    start_on_user: bool = True
    open_from: int | None = None
    shorten: Shorten | None = None

    @property
    def share(self) -> int:
        """What history may claim for itself besides pinned messages."""
        return int(self.ratio * self.budget)


class Bundle(NamedTuple):
    """Steps (by index) that are shown together or not at all."""

    indices: tuple[int, ...]
    tokens: int


@dataclass(slots=True)
class Survey:
    """History sorted by what may happen to it; bundles are the newest first."""

    pinned: list[int] = field(default_factory=list)
    fixed: list[int] = field(default_factory=list)
    optional: list[Bundle] = field(default_factory=list)
    lagging: list[Bundle] = field(default_factory=list)
    excluded: dict[int, str] = field(default_factory=dict)
    pinned_tokens: int = 0
    fixed_tokens: int = 0
    need: int = 0

    @property
    def always(self) -> set[int]:
        return {*self.pinned, *self.fixed}

    def select(self, room: int, *, lagging: bool) -> set[int]:
        """The indices of the steps that fit, the newest first and without holes."""
        chosen = self.always
        for bundle in (*self.optional, *(self.lagging if lagging else ())):
            room -= bundle.tokens
            if room < 0:
                break
            chosen.update(bundle.indices)
        return chosen


def is_complete(request: ContextRequest) -> bool:
    """Is the request a valid history as it is, with no step to leave out for other reasons than the budget?"""
    steps = request.steps
    if request.max_turns is not None and steps:
        oldest = steps[-1].turn - request.max_turns
        if any(step.turn <= oldest and not step.pinned for step in steps):
            return False
    if not request.start_on_user:
        return True
    for step in steps:
        if step.role not in ("system", "developer"):
            return step.is_user
    return True


def is_within_share(request: ContextRequest) -> bool:
    """Does all of history fit into its share, with nothing lagging and nothing to leave out? Then no survey is needed."""
    tokens = pinned = 0
    for step in request.steps:
        tokens += step.total
        if step.pinned:
            pinned += step.total
        elif step.seqs[0] < request.horizon and _is_lagging(request, step):
            return False
    room = request.budget - request.slack - pinned
    return tokens - pinned <= min(request.share, room) and is_complete(request)


def survey_history(request: ContextRequest) -> Survey:
    """Sort all steps of a request, turn by turn from the newest."""
    survey = Survey()
    steps = request.steps
    current = _current_turn(request)
    newest = steps[-1].turn if steps else 0
    end = len(steps)
    while end > 0:
        turn = steps[end - 1].turn
        start = end - 1
        while start > 0 and steps[start - 1].turn == turn:
            start -= 1
        loose = []
        for index in range(start, end):
            if steps[index].pinned:
                survey.pinned.append(index)
                survey.pinned_tokens += steps[index].total
            else:
                loose.append(index)
        if request.max_turns is not None and turn <= newest - request.max_turns:
            survey.excluded.update(dict.fromkeys(loose, OVER_MAX_TURNS))
        else:
            _survey_turn(request, survey, loose, is_current=turn == current)
        end = start
    survey.need = survey.fixed_tokens + sum(bundle.tokens for bundle in survey.optional)
    return survey


def _current_turn(request: ContextRequest) -> int | None:
    """The turn that is being answered: the last one, unless all of it (but what is pinned) is archived."""
    steps = request.steps
    if not steps:
        return None
    for step in reversed(steps):
        if step.turn != steps[-1].turn:
            return None
        if step.seqs[0] == request.turn_seq or (step.seqs[-1] >= request.horizon and not step.pinned):
            return step.turn
    return None


def _survey_turn(request: ContextRequest, survey: Survey, loose: list[int], *, is_current: bool) -> None:
    """Sort the steps of one turn (all that are not pinned) into what is fixed, optional, lagging and excluded."""
    steps = request.steps
    if request.start_on_user and loose and steps[loose[0]].turn == 0:
        for index in loose:
            if steps[index].role not in ("system", "developer"):
                survey.excluded[index] = WITHOUT_USER_MESSAGE
        loose = [index for index in loose if index not in survey.excluded]
        is_current = False
    lagging = [index for index in loose if _is_lagging(request, steps[index])]
    active = [index for index in loose if not _is_lagging(request, steps[index])]
    head = loose[0] if loose and steps[loose[0]].is_user else None
    if head is not None and lagging and head == lagging[0] and active and (is_current or request.start_on_user):
        # Without its user message no active step of the turn could be shown.
        lagging, active = lagging[1:], [head, *active]
    if is_current:
        fixed = {index for index in (head, active[-1] if active else None) if index is not None}
        survey.fixed += sorted(fixed)
        survey.fixed_tokens += sum(steps[index].total for index in fixed)
        active = [index for index in active if index not in fixed]
    whole = request.start_on_user and not is_current
    survey.optional += _bundles(steps, active, together=whole)
    survey.lagging += _bundles(steps, lagging, together=whole and not active)


def _bundles(steps: Sequence[ViewStep], indices: list[int], *, together: bool) -> Iterable[Bundle]:
    if together and indices:
        return [Bundle(tuple(indices), sum(steps[index].total for index in indices))]
    return [Bundle((index,), steps[index].total) for index in reversed(indices)]


def _is_lagging(request: ContextRequest, step: ViewStep) -> bool:
    return step.seqs[-1] < request.horizon and step.seqs[0] != request.turn_seq
