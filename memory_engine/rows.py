"""Messages to stored rows and back: encoded and counted before any transaction, decoded only when shown."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta

from memory_engine.messages import ChatMessage, decode, encode
from memory_engine.store import Draft, MessageRow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970 UTC, exact."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    """The aware UTC datetime of `microseconds`."""
    return _EPOCH + value * _MICROSECOND


def new_id() -> str:
    """A fresh message id. Ids made later sort later, which keeps the index that holds them compact."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"


def draft_of(message: ChatMessage, tokens: int, now: datetime) -> Draft:
    """A message ready to be inserted; it gets an id and a time if it has none."""
    return Draft(
        message_id=message.id or new_id(),
        role=message.role,
        tokens=tokens,
        data=encode(message),
        created_at=microseconds(message.created_at or now),
        pinned=message.pinned,
        calls=tuple(call.id for call in message.tool_calls),
        results=message.tool_results,
        given_id=message.id is not None,
        partial=message.partial,
    )


def message_of(row: MessageRow) -> ChatMessage:
    """The stored message."""
    return decode(row.data, id=row.message_id, created_at=moment(row.created_at))
