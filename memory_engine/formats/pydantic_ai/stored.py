"""Which parts of pydantic-ai's messages are stored already.

The framework merges requests that follow one another, and with that loses what they were: runs, metadata, groups. So prompts
and results are known by what the parts themselves say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pydantic_ai import messages as ai

from memory_engine.formats.pydantic_ai.writing import MARK, to_model_messages
from memory_engine.messages import ChatMessage

_Key = tuple[object, ...]


class KnownParts:
    """The parts of requests that stored messages hold."""

    def __init__(self, stored: Iterable[ChatMessage]) -> None:
        self._known: dict[_Key, list[tuple[Any, ChatMessage]]] = {}
        for message in stored:
            if message.role != "assistant":
                for part in (part for each in to_model_messages([message]) for part in each.parts):
                    self._known.setdefault(_key(part), []).append((part, message))

    def stored_as(self, part: Any) -> ChatMessage | None:
        """The message that a part is stored in."""
        found = self._known.get(_key(part), ())
        return next((message for known, message in found if _is_within(known, part)), None)

    def without_known(self, messages: Sequence[ai.ModelMessage]) -> list[ai.ModelMessage]:
        """The messages without requests, or parts of requests, that are stored or come from memory itself."""
        left: list[ai.ModelMessage] = []
        for message in messages:
            if isinstance(message, ai.ModelRequest) and message.parts:
                parts = [part for part in message.parts if not is_inserted(part) and self.stored_as(part) is None]
                left += [message] if len(parts) == len(message.parts) else [replace(message, parts=parts)] if parts else []
            elif MARK not in (message.metadata or {}):
                left.append(message)
        return left


def is_inserted(part: object) -> bool:
    """Whether memory made that part of its sections."""
    return isinstance(part, ai.SystemPromptPart) and part.dynamic_ref == MARK


def _key(part: Any) -> _Key:
    return part.part_kind, getattr(part, "tool_call_id", None), getattr(part, "timestamp", None)


def _is_within(known: Any, part: Any) -> bool:
    """Whether that is the same part: memory may have shortened results, and put its sections before what was said."""
    if getattr(part, "tool_call_id", None) is not None:
        return True
    kept, given = _items(known), _items(part)
    if isinstance(part, ai.SystemPromptPart):
        return str(known.content) in part.content
    return given[len(given) - len(kept) :] == kept


def _items(part: Any) -> list[Any]:
    content = getattr(part, "content", None)
    return list(content) if isinstance(content, (list, tuple)) else [content]
