"""The parts of a content that LangChain wrote, as our content blocks with a layout beside them: pure, on JSON alone.

It is the layout of `memory_engine.integrations.langchain`, which needs LangChain: of each part the value that a block says is
taken out, and the rest of it (its frame) kept with the path to where the value was. So parts go out as they came.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from memory_engine.content import AudioBlock, ContentBlock, DocumentBlock, ImageBlock, TextBlock, ThinkingBlock, VideoBlock
from memory_engine.messages import invalid_message

Fields = dict[str, Any]

_MEDIA: dict[str, type[ImageBlock | AudioBlock | VideoBlock | DocumentBlock]] = {
    "image": ImageBlock,
    "image_url": ImageBlock,
    "input_image": ImageBlock,
    "audio": AudioBlock,
    "audio_url": AudioBlock,
    "input_audio": AudioBlock,
    "video": VideoBlock,
    "video_url": VideoBlock,
    "document": DocumentBlock,
    "file": DocumentBlock,
    "input_file": DocumentBlock,
    "media": DocumentBlock,
}
_SOURCES = (
    ("url", "url"),
    ("base64", "data"),
    ("data", "data"),
    ("file_id", "file_id"),
    ("image_url.url", "url"),
    ("image_url", "url"),
    ("audio_url.url", "url"),
    ("audio_url", "url"),
    ("video_url.url", "url"),
    ("video_url", "url"),
    ("input_audio.data", "data"),
    ("source.url", "url"),
    ("source.data", "data"),
    ("source.file_id", "file_id"),
    ("file.file_url", "url"),
    ("file.file_data", "data"),
    ("file.file_id", "file_id"),
    ("file_url", "url"),
    ("file_data", "data"),
)
"""Where the forms of media parts have their source, and which field of a block it is."""
_REASONING = {"reasoning": "reasoning", "thinking": "thinking", "redacted_thinking": "data"}
_CALLS = ("tool_call", "tool_use", "function_call", "custom_tool_call")
_DATA_URI = re.compile(r"data:([!-+\--~]{1,255});base64,([\x00-\x7f]*)")


def blocks_of(parts: Sequence[str | Fields], calls: Mapping[str, str]) -> tuple[list[ContentBlock], list[Any]]:
    """Blocks, and the layout with an entry for each part. `calls` are the message's calls: LangChain's ids to ours.

    The parts may be changed.

    :raises InvalidMessageError: a part cannot be stored.
    """
    blocks: list[ContentBlock] = []
    layout: list[Any] = []
    for part in parts:
        try:
            block, entry = _block_of(part, calls)
        except ValidationError as error:
            raise invalid_message(error) from error
        layout.append(entry)
        if block is not None:
            blocks.append(block)
    return blocks, layout


def _block_of(part: str | Fields, calls: Mapping[str, str]) -> tuple[ContentBlock | None, Any]:
    if isinstance(part, str):
        return TextBlock(text=part), "string"
    if part.keys() == {"type", "text"} and part["type"] == "text" and isinstance(part["text"], str):
        return TextBlock(text=part["text"]), "text"
    kind = part.get("type")
    kind = kind if isinstance(kind, str) else ""
    call = calls.get(str(part.get("call_id") or part.get("id"))) if kind in _CALLS else None
    if call is not None:
        # It repeats a call, which goes out once more only where the call does.
        return None, {"call": call, "frame": part}
    if kind in _REASONING:
        return _reasoning(part, _REASONING[kind])
    return (_media(part, _MEDIA[kind]) if kind in _MEDIA else None) or _text(part)


def _text(part: Fields) -> tuple[ContentBlock, Fields]:
    if isinstance(part.get("text"), str):
        return TextBlock(text=part.pop("text")), {"frame": part, "path": ["text"]}
    return TextBlock(text=json.dumps(part, ensure_ascii=False)), {"json": True}


def _reasoning(part: Fields, key: str) -> tuple[ContentBlock, Fields]:
    if not isinstance(part.get(key), str):
        return ThinkingBlock(text=json.dumps(part, ensure_ascii=False)), {"json": True}
    value = part.pop(key)
    if key == "data":
        return ThinkingBlock(text="", signature=value, redacted=True), {"frame": part, "path": [key]}
    signature = part.pop("signature") if isinstance(part.get("signature"), str) else None
    return ThinkingBlock(text=value, signature=signature), {"frame": part, "path": [key]}


def _media(part: Fields, kind: type[Any]) -> tuple[ContentBlock, Fields] | None:
    for place, field in _SOURCES:
        path = place.split(".")
        holder = part if len(path) == 1 else part.get(path[0])
        value = holder.get(path[-1]) if isinstance(holder, dict) else None
        if not isinstance(holder, dict) or not isinstance(value, str) or not value:
            continue
        if field == "data" and holder.get("type") == "text":
            continue
        entry: Fields = {"frame": part, "path": path}
        source: Fields = {field: value}
        if uri := _DATA_URI.fullmatch(value):
            source, entry["uri"] = {"mime_type": uri[1], "data": uri[2]}, True
        try:
            block: ContentBlock = (DocumentBlock if field == "file_id" else kind)(**source)
        except ValidationError:
            continue
        del holder[path[-1]]
        return block, entry
    return None
