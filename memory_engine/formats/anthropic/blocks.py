"""Our content blocks as those of Anthropic's API."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Sequence
from typing import cast

from memory_engine.content import AnyBlock
from memory_engine.formats.kept import Fields, split_uri, thaw
from memory_engine.messages import (
    DocumentBlock,
    ImageBlock,
    MediaBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
)

KEY = "anthropic"
"""What of a message has no place in ours is kept under this name in its metadata."""

_IMAGES = {"/9j/": "image/jpeg", "iVBORw": "image/png", "R0lGOD": "image/gif", "UklGR": "image/webp"}
"""How the base64 text of an image of each kind begins."""


def dump_plain(role: str, blocks: Sequence[AnyBlock]) -> list[Fields]:
    """Content blocks for blocks of ours that need nothing that was kept."""
    if role != "tool":
        return [dumped for block in blocks for dumped in _dump_block(block, role)]
    results = [_dump_result(block) for block in blocks if isinstance(block, ToolResultBlock)]
    parts = [part for block in blocks for part in _dump_block(block, role) if not is_empty(part)]
    if results and parts:
        text = results[-1].get("content")
        results[-1]["content"] = [*([{"type": "text", "text": text}] if text else []), *parts]
    return results


def _dump_block(block: AnyBlock, role: str) -> list[Fields]:
    if isinstance(block, TextBlock):
        return [{"type": "text", "text": block.text}]
    if isinstance(block, ToolCallBlock):
        return [{"type": "tool_use", "id": valid_id(block.id), "name": block.name, "input": _input_of(block)}]
    if isinstance(block, ThinkingBlock):
        return [_dump_thinking(block, block.signature)] if block.signature and role == "assistant" else []
    if isinstance(block, ToolResultBlock) or role == "assistant":
        return []  # results are dumped by themselves; what the assistant said has no place for media
    return [_dump_media(block)]


def _dump_thinking(block: ThinkingBlock, signature: str) -> Fields:
    if block.redacted:
        return {"type": "redacted_thinking", "data": signature}
    return {"type": "thinking", "thinking": block.text, "signature": signature}


def _dump_result(block: ToolResultBlock) -> Fields:
    result: Fields = {"type": "tool_result", "tool_use_id": valid_id(block.tool_call_id)}
    if block.content or block.is_error:
        result["content"] = block.content or "(no message)"  # an error without a text is refused
    return result | ({"is_error": True} if block.is_error else {})


def _dump_media(block: MediaBlock) -> Fields:
    url, data, mime_type = block.url, block.data, block.mime_type
    if url is not None and (uri := split_uri(url))[1] is not None:
        url, (mime_type, data) = None, uri
    source: Fields | None = None
    if isinstance(block, ImageBlock | DocumentBlock) and url is not None:
        source = {"type": "url", "url": url}
    elif isinstance(block, ImageBlock) and data is not None:
        begins = next((kind for begin, kind in _IMAGES.items() if data.startswith(begin)), "image/png")
        known = mime_type if mime_type in _IMAGES.values() else begins
        source = {"type": "base64", "media_type": known, "data": data}
    elif isinstance(block, DocumentBlock):
        source = _document_source(block.file_id, data, mime_type)
    if source is None:
        return {"type": "text", "text": f"[{getattr(block, 'title', None) or block.type}]"}
    title = {"title": block.title} if isinstance(block, DocumentBlock) and block.title else {}
    return {"type": "image" if isinstance(block, ImageBlock) else "document", "source": source, **title}


def _document_source(file_id: str | None, data: str | None, mime_type: str | None) -> Fields | None:
    if data is None:
        return {"type": "file", "file_id": file_id}
    if mime_type == "application/pdf" or data.startswith("JVBERi"):
        return {"type": "base64", "media_type": "application/pdf", "data": data}
    if mime_type is not None and mime_type.startswith("text/"):
        try:
            return {"type": "text", "media_type": "text/plain", "data": base64.b64decode(data).decode()}
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _input_of(call: ToolCallBlock) -> Fields:
    """The arguments as the object that the API wants; text that is none is handed over under a name of its own."""
    if isinstance(call.arguments, str):
        try:
            value = json.loads(call.arguments or "{}")
        except ValueError:
            value = None
        return value if isinstance(value, dict) else {"arguments": call.arguments}
    return cast(Fields, thaw(call.arguments))


def valid_id(call_id: str) -> str:
    """The id, or one made of it when it has characters that the API does not take; the same for a call and its result."""
    if re.fullmatch(r"[a-zA-Z0-9_-]+", call_id):
        return call_id
    return f"call_{hashlib.sha256(call_id.encode()).hexdigest()[:24]}"


def is_empty(block: Fields) -> bool:
    """Whether it is a text that says nothing, which the API refuses."""
    return block.get("type") == "text" and not str(block.get("text", "")).strip()
