"""PURE: what is looked for: the texts of a query, and their words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memory_engine import ChatMessage
from memory_engine.blocks.vector.words import Words

Query = Sequence[tuple[str, float]]
"""Texts, the most important first, each with its weight."""

_PROBE_WORDS = 48
"""Words of a query that are looked for: of a longer text those at its beginning and at its end, where questions stand."""


def query_of(asked: Iterable[ChatMessage] | None, messages: Sequence[ChatMessage], window: int) -> Query:
    """What was asked, else the last `window` messages of user and assistant."""
    if asked is not None:
        text = "\n".join(filter(None, (message.content.strip() for message in asked)))
        return [(text, 1.0)] if text else []
    talk = [m.content for m in messages if m.role in ("user", "assistant") and m.content.strip() and not m.tool_calls]
    latest = talk[-window:][::-1]
    # The newest user message is what is being answered; what led to it says what it is about.
    users = [m.content for m in messages if m.role == "user" and m.content.strip()]
    if users and users[-1] in latest:
        latest.remove(users[-1])
        latest.insert(0, users[-1])
    return [(text, 0.5**place) for place, text in enumerate(latest)]


def probe_words(query: Query, words: Words) -> dict[str, float]:
    """The words that are looked for, each with the weight of the first text it is in."""
    found: dict[str, float] = {}
    for text, weight in query:
        new = [word for word in words.content(text) if word not in found]
        room = _PROBE_WORDS - len(found)
        if len(new) > room:
            new = new[: room - room // 2] + new[len(new) - room // 2 :]
        found.update(dict.fromkeys(new, weight))
    return found
