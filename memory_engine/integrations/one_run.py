"""What the model of one run may read, while other runs write to the same session. No framework is needed here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memory_engine.errors import BudgetExceededError
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage
from memory_engine.reading import Query

__all__ = ["context_of_run"]


async def context_of_run(
    memory: Memory, own: Sequence[ChatMessage], query: Query = None, /, **block_kwargs: Any
) -> list[ChatMessage]:
    """What `memory.get(query, **block_kwargs)` returns, with the messages of this run behind all others: `own`, all of them
    stored, in order.

    A run that answers one request must not be shown another's request last, only because that came in meanwhile. Its own
    request and its newest step are there even when newer turns of others pushed them out of the FIFO; others make room.

    :raises BudgetExceededError: what may never be cut does not fit.
    """
    context = await memory.context(query, **block_kwargs)
    ids = {message.id for message in own}
    shown = {message.id: message for message in context.messages if message.id in ids}
    needed = {message.id for message in _needed(own)}
    mine = [shown.get(message.id, message) for message in own if message.id in shown or message.id in needed]
    others = [message for message in context.messages if message.id not in ids]
    if mine:
        _drop_before_user(others)
    if not needed <= shown.keys():
        _fit(memory, others, mine, context.receipt.budget)
    return [*others, *mine]


def _needed(own: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The request that the run answers, and the newest step if it is complete."""
    replies = [at for at, message in enumerate(own) if message.role == "assistant"]
    if not replies:
        return list(own)
    request, newest = own[: replies[0]], own[replies[-1] :]
    answered = {result for message in newest for result in message.tool_results}
    is_complete = all(call.id in answered for call in newest[0].tool_calls)
    return [*request, *newest] if is_complete else list(request)


def _fit(memory: Memory, others: list[ChatMessage], mine: Sequence[ChatMessage], budget: int) -> None:
    """Drop the oldest turns of others until all of it is within the budget."""
    while (tokens := memory.count_tokens([*others, *mine])) > budget:
        start = _first_turn(others)
        if start == len(others):
            raise BudgetExceededError(budget=budget, needed=tokens, contributors=(("messages of this run", tokens),))
        del others[start]
        _drop_before_user(others)


def _drop_before_user(messages: list[ChatMessage]) -> None:
    """Remove what stands between the leading system messages and the first user message: its turn has lost its beginning."""
    start = _first_turn(messages)
    while start < len(messages) and messages[start].role != "user":
        del messages[start]


def _first_turn(messages: Sequence[ChatMessage]) -> int:
    kept = (at for at, message in enumerate(messages) if message.role not in ("system", "developer"))
    return next(kept, len(messages))
