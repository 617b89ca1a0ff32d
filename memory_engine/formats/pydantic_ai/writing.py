"""Our messages become those of pydantic-ai."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from pydantic_ai import messages as ai

from memory_engine.formats.kept import digest
from memory_engine.formats.media import DEFAULT_MIME_TYPES, to_url_safe
from memory_engine.messages import ChatMessage, ContentBlock, TextBlock, ThinkingBlock, ToolCallBlock, ToolResultBlock

MARK = "memory_engine"
"""The key in a message's metadata that says that it was made of a message which did not come from pydantic-ai; of a system
prompt that memory inserted, its `dynamic_ref`."""

_Fields = dict[str, Any]


def to_model_messages(messages: Iterable[ChatMessage]) -> list[ai.ModelMessage]:
    """The messages as pydantic-ai's, new objects; those that came from there are as they were, in their groups.

    The text of a message that memory shortened, and what memory inserted, are what the blocks say.
    """
    sources: list[_Fields] = []
    names: dict[str, str] = {}
    for key, found in groupby(enumerate(messages), key=lambda item: _group(item[1]) or item[0]):
        group = [message for _, message in found]
        names |= {call.id: call.name for message in group for call in message.tool_calls}
        if isinstance(key, int):
            sources.append(_write_foreign(group[0], names))
            continue
        group.sort(key=lambda message: message.metadata["pydantic_ai"]["at"])
        parts = [part for message in group for part in _write_parts(message, names)]
        sources.append({**group[0].metadata["pydantic_ai"]["message"], "parts": parts})
    return ai.ModelMessagesTypeAdapter.validate_json(json.dumps(sources))


def _group(message: ChatMessage) -> str | None:
    layout = message.metadata.get("pydantic_ai")
    return str(layout["group"]) if isinstance(layout, Mapping) else None


def _write_parts(message: ChatMessage, names: Mapping[str, str]) -> list[_Fields]:
    blocks = [block for block in message.blocks if block.origin is None]
    calls = {call.id: call for call in message.tool_calls}
    pairs = []
    for kept, size in message.metadata["pydantic_ai"]["parts"]:
        # A view leaves out calls that were never answered.
        if kept["part_kind"] != "tool-call" or kept["tool_call_id"] in calls:
            pairs.append((kept, size))
    if sum(size for _, size in pairs) != len(blocks):
        return list(_write_foreign(message, names)["parts"])  # somebody changed it
    taken = iter(blocks)
    parts = [_write_part(dict(kept), [next(taken) for _ in range(size)]) for kept, size in pairs]
    inserted = [_write_item(block) for block in message.blocks if block.origin is not None]
    if inserted and message.role == "user":
        content = parts[0].get("content", [])
        parts[0]["content"] = [*inserted, *([content] if isinstance(content, str) else content)]
    elif inserted:
        parts += [{"part_kind": "system-prompt", "content": item, "dynamic_ref": MARK} for item in inserted]
    return parts


def _write_part(fields: _Fields, blocks: Sequence[ContentBlock]) -> _Fields:
    if fields.pop("whole", False):
        return fields
    taken = iter(blocks)
    if "items" in fields:
        return fields | {"content": [_write_kept(item, taken) for item in fields.pop("items")]}
    if fields["part_kind"] == "file":
        return fields | {"content": _write_kept(fields["content"], taken)}
    first = blocks[0] if blocks else None
    if fields["part_kind"] == "speech":
        fields |= {"transcript": _write_item(next(taken))} if isinstance(first, TextBlock) else {}
        return fields | ({"audio": _write_kept(fields["audio"], taken)} if "audio" in fields else {})
    return fields | _write_words(fields, first)


def _write_words(fields: _Fields, block: ContentBlock | None) -> _Fields:
    if isinstance(block, ToolCallBlock):
        return {} if fields.pop("no_args", False) else {"args": block.arguments}
    if isinstance(block, ThinkingBlock):
        return {"content": block.text} | ({} if block.signature is None else {"signature": block.signature})
    return _write_text(fields, block.text) if isinstance(block, TextBlock) else {}


def _write_text(fields: _Fields, text: str) -> _Fields:
    """The content whose text this is: as it came, unless its text is another by now."""
    shown = fields.pop("shown", None)
    content = fields.pop("json", None)
    if shown is not None and shown != digest(text):
        return {"content": text}
    return {"content": fields.get("content", text) if content is None else json.loads(content)}


def _write_kept(kept: Mapping[str, Any] | None, blocks: Iterator[ContentBlock]) -> Any:
    if kept is not None and kept["kind"] == "cache-point":
        return kept
    written = _write_item(next(blocks))
    if kept is None:
        return written
    return {**kept, "content": written} if isinstance(written, str) else {**written, **kept}


def _write_item(block: ContentBlock) -> Any:
    """An item of a prompt; what it would say of itself by default is left out."""
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, (ToolCallBlock, ToolResultBlock, ThinkingBlock)):
        return str(block)
    if block.data is not None:
        mime_type = block.mime_type or DEFAULT_MIME_TYPES[block.type]
        return {"kind": "binary", "data": to_url_safe(block.data), "media_type": mime_type}
    if block.url is not None:
        return {"kind": f"{block.type}-url", "url": block.url}
    # Other formats take files from OpenAI alone.
    return {"kind": "uploaded-file", "file_id": getattr(block, "file_id", None), "provider_name": "openai"}


def _write_foreign(message: ChatMessage, names: Mapping[str, str]) -> _Fields:
    """A message that did not come from pydantic-ai."""
    when = {} if message.created_at is None else {"timestamp": message.created_at.isoformat()}
    marked = {"metadata": {MARK: message.id or "section"}}
    if message.role == "assistant":
        parts = [_write_spoken(block) for block in message.blocks]
        return {"kind": "response", "parts": parts, **when, **marked}
    if message.role == "tool":
        results = [b for b in message.blocks if isinstance(b, ToolResultBlock)]
        answers = [(block.tool_call_id, block.content, block.is_error) for block in results]
        parts = [
            {"part_kind": "tool-return", "tool_name": names.get(call_id, message.name or "tool"), "tool_call_id": call_id}
            | {"content": text, "outcome": "failed" if is_error else "success"}
            | when
            for call_id, text, is_error in answers or [(str(message.tool_call_id), message.content, False)]
        ]
    elif message.role == "user":
        items = [_write_item(block) for block in message.blocks]
        content = items[0] if len(items) == 1 and isinstance(items[0], str) else items
        parts = [{"part_kind": "user-prompt", "content": content} | when]
    else:
        mark = {"dynamic_ref": MARK} if message.id is None else {}
        parts = [{"part_kind": "system-prompt", "content": message.content} | mark | when]
    return {"kind": "request", "parts": parts, **marked}


def _write_spoken(block: ContentBlock) -> _Fields:
    if isinstance(block, ToolCallBlock):
        return {"part_kind": "tool-call", "tool_call_id": block.id, "tool_name": block.name, "args": block.arguments}
    if isinstance(block, ThinkingBlock):
        return {"part_kind": "thinking", "content": block.text, "signature": block.signature}
    if isinstance(block, TextBlock):
        return {"part_kind": "text", "content": block.text}
    item = _write_item(block)
    return {"part_kind": "file", "content": item} if item["kind"] == "binary" else {"part_kind": "text", "content": str(item)}
