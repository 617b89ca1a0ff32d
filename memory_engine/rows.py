"""Messages to stored rows and back: encoded and counted before any transaction, decoded only when shown."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from memory_engine.messages import ChatMessage, decode, encode
from memory_engine.store import Draft, MessageRow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_RANDOM = 10
"""Random bytes of a message id."""


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970 UTC, exact."""
    return (moment - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    """The aware UTC datetime of `microseconds`."""
    return _EPOCH + value * _MICROSECOND


def drafts_of(messages: Sequence[ChatMessage], tokens: Sequence[int], now: datetime) -> list[Draft]:
    """Messages ready to be inserted; those without id or time get one."""
    each = zip(messages, tokens, new_ids(len(messages)), strict=True)
    return [_draft_of(message, count, now, new_id) for message, count, new_id in each]


def new_ids(count: int) -> list[str]:
    """Fresh message ids. Ids made later sort later, which keeps the index that holds them compact."""
    # Asked for at once: while the system answers, another thread may take over for milliseconds.
    stamp, random = f"{time.time_ns() // 1_000_000:012x}", os.urandom(_RANDOM * count).hex()
    return [stamp + random[start : start + 2 * _RANDOM] for start in range(0, len(random), 2 * _RANDOM)]


def _draft_of(message: ChatMessage, tokens: int, now: datetime, new_id: str) -> Draft:
    role, given = message.role, message.id
    created = microseconds(message.created_at or now)
    calls = tuple([call.id for call in message.tool_calls]) if role == "assistant" else ()
    results = message.tool_results if role == "tool" else ()
    # By position: every put makes one, and names cost as much as the rest of it.
    return Draft(
        given or new_id,
        role,
        tokens,
        encode(message),
        created,
        message.pinned,
        calls,
        results,
        given is not None,
        message.partial,
    )


def message_of(row: MessageRow) -> ChatMessage:
    """The stored message."""
    return decode(row.data, id=row.message_id, created_at=moment(row.created_at))
