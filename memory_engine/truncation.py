"""PURE: how a section's content gets cheaper when its block has no better idea."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TypeVar

from memory_engine.escaping import escape
from memory_engine.messages import ChatMessage, ContentBlock, TextBlock, ThinkingBlock, ToolCallBlock, ToolResultBlock

Count = Callable[[str], int]
C = TypeVar("C", bound="str | list[ContentBlock] | list[ChatMessage]")

_PIECE = re.compile(r"\s*\S+")
_MESSAGE_OVERHEAD = 4
_LONGEST = 100_000
"""Characters of a text without words or lines that are looked at; a section of so many is never wanted."""


def truncate(content: C, tokens: int, count: Count) -> C | None:
    """`content` without its least valuable parts, cheaper by at least `tokens`; None when nothing would be left."""
    if isinstance(content, str):
        # Tokens to free are counted on the section as rendered.
        rendered: Count = lambda text: count(escape(text))  # noqa: E731
        return cut_text(content, rendered(content) - tokens, rendered) or None  # type: ignore[return-value]
    if not isinstance(content, list) or not content:
        return None
    if isinstance(content[0], ChatMessage):
        return _drop_oldest(content, tokens, count) or None  # type: ignore[return-value,arg-type]
    return _drop_least_valuable(content, tokens, count) or None  # type: ignore[return-value,arg-type]


def cut_text(text: str, limit: int, count: Count) -> str:
    """A beginning of `text` of at most `limit` tokens; maybe "".

    It ends at a line when whole lines use at least half of the limit, else at a word, and where there are no words (as in
    Chinese) or none that fits, at a character.
    """
    if limit <= 0:
        return ""
    if count(text) <= limit:
        return text
    best, most = "", 0
    for pieces in (text.splitlines(keepends=True), _PIECE.findall(text), list(text[:_LONGEST])):
        cut = _longest(pieces, limit, count).rstrip()
        tokens = count(cut) if cut else 0
        if tokens > most:
            best, most = cut, tokens
        if 2 * most >= limit:
            break
    return best


def _longest(pieces: list[str], limit: int, count: Count) -> str:
    low, high = 0, len(pieces)
    while low < high:
        middle = (low + high + 1) // 2
        if count("".join(pieces[:middle]).rstrip()) <= limit:
            low = middle
        else:
            high = middle - 1
    return "".join(pieces[:low])


def _drop_least_valuable(items: list[ContentBlock], tokens: int, count: Count) -> list[ContentBlock]:
    # Without a value an item counts as least valuable; among equals the last one goes first.
    order = sorted(range(len(items)), key=lambda i: (items[i].value is not None, items[i].value or 0.0, -i))
    kept = set(range(len(items)))
    saved = 0
    for index in order:
        if saved >= tokens:
            break
        kept.discard(index)
        saved += _cost(items[index], count)
    return [item for index, item in enumerate(items) if index in kept]


def _cost(item: ContentBlock, count: Count) -> int:
    # Media cost an estimate that only the caller knows: dropping one is taken to save nothing, so that text goes too.
    if not isinstance(item, TextBlock):
        return 0
    # With what the renderer puts around it: tokens to free are counted on the section as rendered.
    text = escape(item.text, (item.tag,) if item.tag else ())
    return count(f"<{item.tag}>{text}</{item.tag}>\n" if item.tag else f"{text}\n")


def _drop_oldest(messages: list[ChatMessage], tokens: int, count: Count) -> list[ChatMessage]:
    saved = 0
    for index, message in enumerate(messages):
        if saved >= tokens:
            return messages[index:]
        saved += _MESSAGE_OVERHEAD + sum(count(text) for block in message.blocks for text in _texts(block))
    return []


def _texts(block: ContentBlock) -> tuple[str, ...]:
    if isinstance(block, TextBlock | ThinkingBlock):
        return (block.text,)
    if isinstance(block, ToolResultBlock):
        return (block.content,)
    if isinstance(block, ToolCallBlock):
        arguments = block.arguments
        return (block.name, arguments if isinstance(arguments, str) else json.dumps(arguments))
    return ()
