"""PURE: whether the history says already what an item says."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memory_engine import ChatMessage
from memory_engine.blocks.vector.store import Item

_FIRST_WORDS = 4


Test = Callable[[Item], bool]


def said_by(messages: Sequence[ChatMessage]) -> Test | None:
    """Whether one of these messages has the text of an item, whatever its white space; None: none has."""
    # By their beginnings: to normalise a whole history for each query would take milliseconds.
    beginning: dict[tuple[str, ...], list[str]] = {}
    for message in messages:
        text = message.content
        if first := _first_words(text):
            beginning.setdefault(first, []).append(text)
    if not beginning:
        return None

    def is_said(item: Item) -> bool:
        texts = beginning.get(_first_words(item.text))
        return texts is not None and any(item.text == text or item.text.split() == text.split() for text in texts)

    return is_said


def either(first: Test | None, second: Test | None) -> Test:
    """Whether one of these is true of an item."""
    if first is not None and second is not None:
        return lambda item: first(item) or second(item)
    return first or second or (lambda item: False)


def _first_words(text: str) -> tuple[str, ...]:
    return tuple(text.split(None, _FIRST_WORDS)[:_FIRST_WORDS])
