"""The parts of a message's content as content blocks, and back: pure.

A part is a text, or a dict of one of many forms (LangChain's standard blocks of v0 and v1, OpenAI's, Anthropic's, ...). What
the part says becomes the block: its text, its media, its reasoning. All the rest is its *frame*, kept in a layout beside the
blocks, with the path to where that value was. So a block that was shortened or replaced goes back into the frame of its
part. A part with no such value becomes the text of its JSON, which costs in tokens what it costs a model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from memory_engine.errors import InvalidMessageError
from memory_engine.integrations.langchain.calls import thaw
from memory_engine.messages import (
    AudioBlock,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    MediaBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    VideoBlock,
    freeze_json,
    invalid_message,
)

Json = dict[str, Any]
Layout = Sequence[Any]

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
_SOURCES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("url",), "url"),
    (("base64",), "data"),
    (("data",), "data"),
    (("file_id",), "file_id"),
    (("image_url", "url"), "url"),
    (("image_url",), "url"),
    (("audio_url", "url"), "url"),
    (("audio_url",), "url"),
    (("video_url", "url"), "url"),
    (("video_url",), "url"),
    (("input_audio", "data"), "data"),
    (("source", "url"), "url"),
    (("source", "data"), "data"),
    (("source", "file_id"), "file_id"),
    (("file", "file_url"), "url"),
    (("file", "file_data"), "data"),
    (("file", "file_id"), "file_id"),
    (("file_url",), "url"),
    (("file_data",), "data"),
)
"""Where the forms of media parts have their source, and of what kind it is."""
_REASONING = {"reasoning": "reasoning", "thinking": "thinking", "redacted_thinking": "data"}
_CALLS = ("tool_call", "tool_use", "function_call", "custom_tool_call")
_PLAIN, _STRING = "text", "string"
"""Parts that need no frame: `{"type": "text", "text": ...}`, and a str."""
_MIME_TYPES = {"image": "image/png", "audio": "audio/wav", "video": "video/mp4"}
_DATA_URI = re.compile(r"data:([!-+\--~]{1,255});base64,([\x00-\x7f]*)")


def blocks_of(parts: Sequence[Any], calls: Mapping[str, str]) -> tuple[list[ContentBlock], list[Any]]:
    """Blocks, and the layout with one entry for each part. `calls` are the message's calls: theirs ids to ours.

    :raises InvalidMessageError: a part cannot be kept exactly; the error names it.
    """
    blocks: list[ContentBlock] = []
    layout: list[Any] = []
    for index, part in enumerate(parts):
        try:
            block, entry = _block_of(part, calls)
        except ValidationError as error:
            raise invalid_message(error) from error
        except ValueError as error:
            raise InvalidMessageError(f"content[{index}] cannot be kept: {error}.") from error
        layout.append(entry)
        if block is not None:
            blocks.append(block)
    return blocks, layout


def parts_of(blocks: Sequence[ContentBlock], layout: Layout) -> tuple[list[Any], list[int]]:
    """The parts for the blocks of a message, and the places of those that memory inserted.

    Parts that repeat a tool call come only with their call, which a view may have left out.
    """
    kept = {block.id for block in blocks if isinstance(block, ToolCallBlock)}
    entries = iter(layout)
    parts: list[Any] = []
    inserted: list[int] = []
    for block in blocks:
        if isinstance(block, (ToolCallBlock, ToolResultBlock)):
            continue
        if block.origin is not None:
            inserted.append(len(parts))
            parts.append(part_of(block))
            continue
        entry = _next_entry(entries, kept, parts)
        part = part_of(block) if entry is None else _part_in(block, entry)
        if part is not None:
            parts.append(part)
    _next_entry(entries, kept, parts)
    return parts, inserted


def part_of(block: ContentBlock) -> Json | None:
    """A standard part for a block that did not come from LangChain; reasoning of others is left out."""
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    if isinstance(block, ImageBlock | AudioBlock | VideoBlock | DocumentBlock):
        return _standard_media(block)
    return None


# -- in ----------------------------------------------------------------------------------------------------------


def _block_of(part: Any, calls: Mapping[str, str]) -> tuple[ContentBlock | None, Any]:
    if isinstance(part, str):
        return TextBlock(text=part), _STRING
    if set(part) == {"type", "text"} and part["type"] == "text" and isinstance(part["text"], str):
        return TextBlock(text=part["text"]), _PLAIN
    frame: Json = thaw(freeze_json(part))
    kind = frame.get("type") if isinstance(frame.get("type"), str) else None
    call = calls.get(str(frame.get("call_id") or frame.get("id"))) if kind in _CALLS else None
    if call is not None:
        return None, {"call": call, "frame": frame}
    if kind in _REASONING:
        return _reasoning(frame, _REASONING[kind])
    return (_media(frame, _MEDIA[kind]) if kind in _MEDIA else None) or _text(frame)


def _text(frame: Json) -> tuple[ContentBlock, Json]:
    if isinstance(frame.get("text"), str):
        return TextBlock(text=frame.pop("text")), {"frame": frame, "path": ["text"]}
    return TextBlock(text=json.dumps(frame, ensure_ascii=False)), {"json": True}


def _reasoning(frame: Json, key: str) -> tuple[ContentBlock, Json]:
    if not isinstance(frame.get(key), str):
        return ThinkingBlock(text=json.dumps(frame, ensure_ascii=False)), {"json": True}
    value = frame.pop(key)
    if key == "data":
        return ThinkingBlock(text="", signature=value, redacted=True), {"frame": frame, "path": [key]}
    signature = frame.pop("signature") if isinstance(frame.get("signature"), str) else None
    return ThinkingBlock(text=value, signature=signature), {"frame": frame, "path": [key]}


def _media(frame: Json, kind: type[Any]) -> tuple[ContentBlock, Json] | None:
    for path, field in _SOURCES:
        holder: Any = frame
        for key in path[:-1]:
            holder = holder.get(key) if isinstance(holder, dict) else None
        value = holder.get(path[-1]) if isinstance(holder, dict) else None
        if not isinstance(value, str) or not value or (field == "data" and holder.get("type") == "text"):
            continue
        entry: Json = {"frame": frame, "path": list(path)}
        source: Json = {field: value}
        if uri := _DATA_URI.fullmatch(value):
            source, entry["uri"] = {"mime_type": uri[1], "data": uri[2]}, True
        try:
            block: ContentBlock = (DocumentBlock if field == "file_id" else kind)(**source)
        except ValidationError:
            continue
        del holder[path[-1]]
        return block, entry
    return None


# -- out ---------------------------------------------------------------------------------------------------------


def _next_entry(entries: Iterator[Any], kept: set[str], parts: list[Any]) -> Any:
    """The entry of the next block; parts that repeat calls are put before it."""
    for entry in entries:
        if not isinstance(entry, Mapping) or "call" not in entry:
            return entry
        if entry["call"] in kept:
            parts.append(thaw(entry["frame"]))
    return None


def _part_in(block: ContentBlock, entry: Any) -> Any:
    """The block in the frame of the part that it came from."""
    value = _value(block, uri=isinstance(entry, Mapping) and bool(entry.get("uri")))
    if entry == _STRING and isinstance(block, TextBlock):
        return value
    if not isinstance(entry, Mapping):
        return part_of(block)
    if entry.get("json"):
        return _from_json(value)
    part: Json = thaw(entry["frame"])
    holder = part
    for key in entry["path"][:-1]:
        holder = holder[key]
    holder[entry["path"][-1]] = value
    if isinstance(block, ThinkingBlock) and block.signature is not None and not block.redacted:
        part["signature"] = block.signature
    return part


def _from_json(text: str) -> Json:
    try:
        part = json.loads(text)
    except ValueError:
        part = None  # it was shortened
    return part if isinstance(part, dict) else {"type": "text", "text": text}


def _value(block: ContentBlock, *, uri: bool) -> str:
    if isinstance(block, TextBlock):
        return block.text
    if isinstance(block, ThinkingBlock):
        return (block.signature or "") if block.redacted else block.text
    if isinstance(block, ImageBlock | AudioBlock | VideoBlock | DocumentBlock):
        data = f"data:{block.mime_type};base64,{block.data}" if uri else block.data
        return (block.url if block.data is None else data) or getattr(block, "file_id", None) or ""
    raise TypeError(f"{type(block).__name__} is no part of a content")


def _standard_media(block: MediaBlock) -> Json:
    part: Json = {"type": "file" if isinstance(block, DocumentBlock) else block.type}
    part |= {"mime_type": block.mime_type} if block.mime_type is not None else {}
    if block.data is None:
        return part | ({"url": block.url} if block.url is not None else {"file_id": getattr(block, "file_id", None)})
    return {"mime_type": _MIME_TYPES.get(block.type, "application/octet-stream"), **part, "base64": block.data}
