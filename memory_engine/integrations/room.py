"""Room in the budget for what a request to a model holds beside memory's view. No framework is needed here."""

from __future__ import annotations

from collections.abc import Sequence

from memory_engine.errors import BudgetExceededError
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage

__all__ = ["make_room"]


def make_room(memory: Memory, view: Sequence[ChatMessage], beside: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The view without so many of its oldest steps that it fits the budget together with the messages `beside` it.

    What is pinned, the newest request and the newest step stay.

    :raises BudgetExceededError: what stays does not fit.
    """
    over = memory.count_tokens([*view, *beside]) - memory.budget
    if over <= 0:
        return list(view)
    steps = _steps(view)
    at = _oldest(steps)
    # A turn that has lost its beginning goes to its end.
    while over > 0 or (at < _request(steps) and steps[at][0].role != "user"):
        if at == len(steps) - 1:
            tokens = (("what the request holds beside memory", memory.count_tokens(beside)),)
            raise BudgetExceededError(budget=memory.budget, needed=over + memory.budget, contributors=tokens)
        over -= memory.count_tokens(steps.pop(at))
        at = _oldest(steps)
    return [message for step in steps for message in step]


def _steps(view: Sequence[ChatMessage]) -> list[list[ChatMessage]]:
    """Calls and their results are one step, so is each other message."""
    steps: list[list[ChatMessage]] = []
    waiting: set[str] = set()
    for message in view:
        if steps and (waiting or message.role == "tool"):
            steps[-1].append(message)
        else:
            steps.append([message])
        waiting = (waiting | {call.id for call in message.tool_calls}) - set(message.tool_results)
    return steps


def _oldest(steps: Sequence[Sequence[ChatMessage]]) -> int:
    """The place of the oldest step that may go; that of the newest step if none may."""
    request = _request(steps)
    may_go = (at for at, step in enumerate(steps[:-1]) if at != request and not step[0].pinned)
    return next(may_go, len(steps) - 1)


def _request(steps: Sequence[Sequence[ChatMessage]]) -> int:
    return max((at for at, step in enumerate(steps) if step[0].role == "user"), default=-1)
