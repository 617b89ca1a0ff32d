"""Storing what a framework hands over more than once. No framework is needed here."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from memory_engine.errors import MessageConflictError
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage

__all__ = ["put_new"]


async def put_new(memory: Memory, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Store the messages; where one is stored already, that one stays: what came back may be a shortened view of it."""
    try:
        return await memory.put_messages(messages)
    except MessageConflictError:
        for message in messages:
            with suppress(MessageConflictError):
                await memory.put(message)
        return list(messages)
