"""What there is to know about items of the Responses API before they are stored, cut or shown. Pure, no I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from memory_engine.escaping import without_rendered
from memory_engine.formats.openai_responses import KEPT, call_id_of, from_openai_responses, is_output
from memory_engine.messages import ChatMessage

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

REPLACES = "replaces"
"""Where a copy says which message it stands for."""


def role_of(item: object) -> str | None:
    """The role of a message; None for any other item."""
    return cast("str | None", cast("Mapping[str, Any]", item).get("role"))


def newest(items: list[TResponseInputItem], limit: int) -> list[TResponseInputItem]:
    """The last `limit` items, without outputs whose calls are not among them."""
    tail = items[len(items) - limit :] if limit > 0 else []
    calls = {call_id_of(_plain(item)) for item in tail if not is_output(_plain(item))}
    return [item for item in tail if not is_output(_plain(item)) or call_id_of(_plain(item)) in calls]


def steps_of(items: Sequence[TResponseInputItem]) -> list[range]:
    """Where the items of one step are: a message, or what one response said and called, with the outputs of the calls."""
    starts = []
    for at, item in enumerate(items):
        before = items[at - 1] if at else None
        after_others = before is None or role_of(before) in ("user", "system", "developer") or is_output(_plain(before))
        if at == 0 or role_of(item) in ("user", "system", "developer") or (after_others and not is_output(_plain(item))):
            starts.append(at)
    return [range(start, end) for start, end in pairwise([*starts, len(items)])]


def _plain(item: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", item)


def kept_of(message: ChatMessage) -> Mapping[str, Any]:
    """What was kept of the message's items."""
    return cast("Mapping[str, Any]", message.metadata.get(KEPT) or {})


def copies_of(message: ChatMessage, items: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """The message with these of its items only, as messages that stand for it from now on."""
    copies = []
    for number, copy in enumerate(from_openai_responses(items)):
        metadata = {**message.metadata, KEPT: {**kept_of(copy), REPLACES: message.id}}
        changes = {"id": f"{message.id}:{len(items)}:{number}"[-512:], "created_at": message.created_at, "metadata": metadata}
        copies.append(copy.model_copy(update=changes))
    return copies


def _texts(item: Mapping[str, Any]) -> tuple[int, list[str]]:
    """How many parts the content has, and the texts among them."""
    content = item.get("content")
    parts = [{"text": content}] if isinstance(content, str) else content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return len(parts), [text for text in texts if isinstance(text, str)]


def fingerprint(item: Mapping[str, Any]) -> str | None:
    """Equal for messages with the same role and texts, whatever form their content has; None where there is no text."""
    parts, texts = _texts(item)
    return json.dumps([item["role"], parts, "\n".join(texts)]) if item.get("role") and texts else None


def is_rendered(item: Mapping[str, Any]) -> bool:
    """Whether all that a message says is what the built-in renderer wrote, for another object or in another process."""
    parts, texts = _texts(item)
    text = "\n".join(texts).strip()
    return len(texts) == parts and bool(item.get("role") and text) and not without_rendered(text).strip()
