"""A conversation as plain text, for prompts and logs that take one string."""

from __future__ import annotations

from collections.abc import Iterable

from memory_engine.messages import ChatMessage


def format_history(messages: Iterable[ChatMessage], *, human_prefix: str = "Human", ai_prefix: str = "AI") -> str:
    """Each message as a line "Human: ..." or "AI: ...", other roles by their name; only texts, no calls and no media."""
    who = {"user": human_prefix, "assistant": ai_prefix}
    return "\n".join(f"{who.get(message.role, message.role.capitalize())}: {message.content}" for message in messages)
