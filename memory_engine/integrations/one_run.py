"""What the model of one run may read, while other runs write to the same session. No framework is needed here."""

from __future__ import annotations

from collections.abc import Sequence

from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage

__all__ = ["context_of_run"]


async def context_of_run(memory: Memory, own: Sequence[ChatMessage], query: str | None = None) -> list[ChatMessage]:
    """The messages of `memory.context_of_run(own, query)`.

    :raises BudgetExceededError: what may never be cut does not fit.
    """
    return (await memory.context_of_run(own, query)).messages
