"""What a source of histories is, and what all sources share."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from pydantic import ValidationError

from memory_engine.errors import InvalidMessageError
from memory_engine.formats.kept import thaw
from memory_engine.frozen import freeze_json
from memory_engine.messages import ChatMessage, invalid_message

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = ((10**11, 10**6), (10**14, 10**3), (10**17, 1))
"""What an integer time below the first number is multiplied with, to be microseconds: seconds, milliseconds, microseconds."""


@dataclass(frozen=True, slots=True)
class SourceSession:
    """A conversation in a source. `fields` may be used in `--user-id`, such as the `user_id` that mem0 notes."""

    name: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """A message of a source under the name of its row, or why it cannot be one."""

    row: str
    message: ChatMessage | None = None
    problem: str = ""
    created_at: datetime | None = None


def read_item(row: str, read: Callable[[], ChatMessage], created_at: datetime | None = None) -> Item:
    """The item of a row: its message, or why it cannot be one. What nobody thought of is one row's problem as well."""
    try:
        return Item(row, read(), created_at=created_at)
    except InvalidMessageError as error:
        return Item(row, problem=str(error))
    except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
        return Item(row, problem=f"it has a form that is not known: {type(error).__name__}: {error}")


class Source(Protocol):
    """Where histories come from. It is only read, however often, and gives the same items in the same order each time."""

    kind: str
    """As `--from` names it; part of the messages' ids."""
    order: str
    """By what the messages are put in order, and why: a sentence for the report."""
    tables: tuple[str, ...]
    """The tables of a database that it is read from."""

    async def sessions(self) -> list[SourceSession]:
        """The conversations, in a fixed order.

        :raises ConfigurationError: this is no such source.
        """

    def read(self, session: SourceSession) -> AsyncIterator[Item]:
        """The messages of one conversation in order, not all at once in memory."""

    async def notes(self) -> list[str]:
        """What the user should know of this source: what is left out, and how to bring it over all the same."""

    async def aclose(self) -> None:
        """Close what was opened."""


def as_json(text: object) -> Any:
    """The value of a JSON text, or a value that was read already; the caller may change it.

    :raises InvalidMessageError: it is no JSON, or none that can be stored.
    """
    try:
        value = json.loads(text) if isinstance(text, str | bytes) else text
    except (ValueError, RecursionError) as error:
        raise InvalidMessageError(f"it is no JSON: {error}") from error
    try:
        return thaw(freeze_json(value))
    except ValueError as error:
        raise InvalidMessageError(f"it cannot be stored: {error}") from error


def as_object(value: object, what: str = "it") -> Mapping[str, Any]:
    """The value, which has to be a JSON object.

    :raises InvalidMessageError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise InvalidMessageError(f"{what} is no JSON object but {type(value).__name__}")
    return value


def as_message(fields: Mapping[str, Any]) -> ChatMessage:
    """The message of these fields; those that are None are left out.

    :raises InvalidMessageError: they are no valid message.
    """
    try:
        return ChatMessage.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        raise invalid_message(error) from error


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that say something: neither None nor False nor empty."""
    return {
        name: value for name, value in values.items() if value is not None and value is not False and value not in ("", [], {})
    }


def as_moment(value: object) -> datetime | None:
    """The time that a source noted, in UTC: a datetime, an ISO text (without an offset it is UTC), or a number since 1970.

    Numbers are seconds, milliseconds, microseconds or nanoseconds, by their size. None when it is no time.
    """
    if isinstance(value, str):
        with suppress(ValueError):
            value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        with suppress(OverflowError):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**20:
        return None
    for limit, factor in _UNITS:
        if value < limit:
            return _EPOCH + timedelta(microseconds=int(value * factor))
    return _EPOCH + timedelta(microseconds=int(value) // 1000)
