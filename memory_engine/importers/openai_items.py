"""The items of OpenAI's Responses API, as the Agents SDK keeps them, as our messages.

They become what `memory_engine.formats.openai_responses` makes of them, as they would if the agent had written them here: the
items of one response are one message, and `OpenAIAgentsSession` gives them back as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from memory_engine.errors import InvalidMessageError
from memory_engine.formats.openai_responses import from_openai_responses
from memory_engine.importers.source import Item, as_json, as_object, read_item
from memory_engine.messages import ChatMessage

_LONGEST = 500
"""So many items are one message at most; a response has fewer."""


@dataclass(slots=True)
class OpenAIItemsReader:
    """Reads the items of one conversation, in order. Each call returns the messages that are complete then.

    A message has the row and the time of its first item.
    """

    _row: str = ""
    _time: datetime | None = None
    _items: list[Mapping[str, Any]] = field(default_factory=list)

    def read(self, value: object, row: str, time: datetime | None) -> list[Item]:
        """The messages that an item completes, in order; one that may belong to a response waits for the next item."""
        read: list[Mapping[str, Any]] = []
        alone = read_item(row, partial(_read, value, read), time)
        if alone.message is None or alone.message.role != "assistant":
            return [*self.end(), alone]
        complete = [] if self._items and self._belongs(read[0]) else self.end()
        if not self._items:
            self._row, self._time = row, time
        self._items += read
        return complete

    def end(self) -> list[Item]:
        """What was waiting for a next item."""
        items, row, time = self._items, self._row, self._time
        self._items = []
        try:
            messages = from_openai_responses(items)
        except InvalidMessageError as error:
            return [Item(row, problem=str(error))]
        return [Item(f"{row}+{place}" if place else row, message, created_at=time) for place, message in enumerate(messages)]

    def _belongs(self, item: Mapping[str, Any]) -> bool:
        """Whether the item is of the same response as the one before it."""
        return len(self._items) < _LONGEST and len(from_openai_responses([self._items[-1], item])) == 1


def _read(value: object, read: list[Mapping[str, Any]]) -> ChatMessage:
    """The message of an item alone; the item is put into `read`.

    :raises InvalidMessageError: it is none, or it is encrypted.
    """
    item = as_object(as_json(value))
    if "__enc__" in item:
        raise InvalidMessageError("it is encrypted; decrypt the session with its key first")
    read.append(item)
    return from_openai_responses([item])[0]
