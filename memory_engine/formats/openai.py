"""OpenAI-style chat dicts, in and out.

What a `ChatMessage` has no field for is kept in `metadata["openai"]`, so that nothing is lost: unknown keys of the message
there (a `refusal` too), unknown keys of its content parts and tool calls under `"_layout"`. Keys whose value is None are
left out. What cannot be kept safely (content parts of an unknown type) is refused with an error that names it.

On the way out, reasoning is left out, except where it came in as `reasoning_content`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from memory_engine.errors import InvalidMessageError
from memory_engine.messages import (
    AudioBlock,
    ChatMessage,
    ImageBlock,
    MediaBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    VideoBlock,
    invalid_message,
)

_KNOWN = frozenset(
    {
        "role",
        "content",
        "name",
        "tool_call_id",
        "tool_calls",
        "reasoning_content",
        "function_call",
        "id",
        "created_at",
        "metadata",
    }
)
_DATA_URI = re.compile(r"data:([!-+\--~]{1,255});base64,([\x00-\x7f]*)")
_ANTHROPIC = ("tool_use", "tool_result", "thinking", "redacted_thinking", "image", "document")
_FORMATS = {"audio/mpeg": "mp3", "audio/x-wav": "wav"}

_Fields = dict[str, Any]
_Json = Mapping[str, Any]


def from_openai(messages: Iterable[object]) -> list[ChatMessage]:
    """The messages for OpenAI-style dicts (or the SDK's message objects), one for each.

    :raises InvalidMessageError: one of them is not a message we know.
    """
    return [message_from_openai(message) for message in messages]


def to_openai(messages: Iterable[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as OpenAI-style dicts; a message that answers several calls gives one dict for each result."""
    return [item for message in messages for item in _dump(message)]


def message_from_openai(value: object) -> ChatMessage:
    """The message for one OpenAI-style dict. Keys `id`, `created_at` and `metadata` become the message's own.

    :raises InvalidMessageError: it is not a message we know; the error says what to correct.
    """
    source = _as_dict(value)
    calls, call_extras = _read_calls(source.get("tool_calls"))
    blocks, part_extras, as_list = _read_content(source, optional=bool(calls))
    reasoning = source.get("reasoning_content")
    layout = {"calls": call_extras, "parts": part_extras, "list": as_list, "reasoning": reasoning is not None}
    layout = {key: item for key, item in layout.items() if item}
    extras = _extras(source, _KNOWN) | ({"_layout": layout} if layout else {})
    fields = {key: source[key] for key in ("role", "name", "tool_call_id", "id", "created_at") if source.get(key) is not None}
    thinking = [] if reasoning is None else [{"type": "thinking", "text": reasoning}]
    fields["blocks"] = [*thinking, *blocks, *calls]
    fields["metadata"] = _with_extras(source.get("metadata"), extras)
    try:
        return ChatMessage.model_validate(fields)
    except ValidationError as error:
        raise invalid_message(error) from error


def message_to_openai(message: ChatMessage) -> dict[str, Any]:
    """The message as one OpenAI-style dict.

    :raises InvalidMessageError: it answers several calls, each of which needs a dict of its own: use `to_openai([message])`.
    """
    items = _dump(message)
    if len(items) != 1:
        raise InvalidMessageError(
            f"This message answers {len(items)} tool calls, which OpenAI writes as {len(items)} messages; "
            "use memory_engine.formats.openai.to_openai([message])."
        )
    return items[0]


# -- in ------------------------------------------------------------------------------------------------------


def _as_dict(value: object) -> _Json:
    dump = getattr(value, "model_dump", None)
    source = value if isinstance(value, Mapping) or dump is None else dump(mode="json", exclude_none=True)
    if not isinstance(source, Mapping):
        raise InvalidMessageError(f"An OpenAI message is a dict with 'role' and 'content', not {type(value).__name__}.")
    if source.get("role") == "function" or source.get("function_call") is not None:
        raise InvalidMessageError("function_call and role 'function' are OpenAI's old form; write tool_calls and role 'tool'.")
    return source


def _read_content(source: _Json, *, optional: bool) -> tuple[list[_Fields], dict[str, _Fields], bool]:
    """Blocks, the unknown keys of each part by its position, and whether only a list can say what was said."""
    content = source.get("content")
    if content is None:
        known = ("content", "refusal", "reasoning_content", "audio")
        if not optional and not any(key in source for key in known):
            raise InvalidMessageError(f"This message has no 'content'; its keys are {_names(source)}.")
        return [], {}, False
    if isinstance(content, str):
        return [{"type": "text", "text": content}], {}, False
    if not isinstance(content, Sequence):
        raise InvalidMessageError(f"'content' must be text, a list of parts, or None, not {type(content).__name__}.")
    blocks: list[_Fields] = []
    extras: dict[str, _Fields] = {}
    for index, part in enumerate(content):
        block, extra = _read_part(part, f"content[{index}]")
        blocks.append(block)
        if extra:
            extras[str(index)] = extra
    return blocks, extras, all(block["type"] == "text" for block in blocks)


def _read_part(part: object, where: str) -> tuple[_Fields, _Fields]:
    if not isinstance(part, Mapping):
        raise InvalidMessageError(f"{where} must be a dict with 'type', not {type(part).__name__}.")
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": part.get("text")}, _extras(part, ("type", "text"))
    if kind == "refusal":
        return {"type": "text", "text": part.get("refusal")}, {"type": kind, **_extras(part, ("type", "refusal"))}
    if not isinstance(kind, str) or kind not in _MEDIA:
        known = ", ".join(["text", "refusal", *_MEDIA])
        hint = " Messages of Anthropic's API: memory_engine.formats.anthropic.from_anthropic." * (kind in _ANTHROPIC)
        raise InvalidMessageError(f"{where} is of the unknown type {kind!r:.80}; known are {known}.{hint}")
    body = part.get(kind)
    if isinstance(body, str) and kind.endswith("_url"):
        body = {"url": body}
    if not isinstance(body, Mapping):
        raise InvalidMessageError(f"{where} needs a dict under {kind!r}.")
    block_type, names = _MEDIA[kind]
    block = {"type": block_type} | {ours: body[theirs] for theirs, ours in names.items() if body.get(theirs) is not None}
    if kind in ("image_url", "video_url"):
        _split_data_uri(block, "url")
    elif kind == "file":
        _split_data_uri(block, "data")
    inner = _extras(body, names)
    return block, _extras(part, ("type", kind)) | ({kind: inner} if inner else {})


def _split_data_uri(block: _Fields, key: str) -> None:
    value = block.get(key)
    match = _DATA_URI.fullmatch(value) if isinstance(value, str) else None
    if match:
        del block[key]
        block["mime_type"], block["data"] = match.groups()


def _read_calls(calls: object) -> tuple[list[_Fields], dict[str, _Fields]]:
    """Blocks, and the unknown keys of each call by its id."""
    if calls is None:
        return [], {}
    if isinstance(calls, (str, Mapping)) or not isinstance(calls, Sequence):
        raise InvalidMessageError(f"'tool_calls' must be a list of dicts, not {type(calls).__name__}.")
    blocks: list[_Fields] = []
    extras: dict[str, _Fields] = {}
    for index, call in enumerate(calls):
        block, extra = _read_call(call, f"tool_calls[{index}]")
        blocks.append(block)
        if extra:
            extras[str(block["id"])] = extra
    return blocks, extras


def _read_call(call: object, where: str) -> tuple[_Fields, _Fields]:
    if not isinstance(call, Mapping):
        raise InvalidMessageError(f"{where} must be a dict with 'id' and 'function', not {type(call).__name__}.")
    kind = call.get("type") or "function"
    body = call.get(kind) if kind in ("function", "custom") else None
    if not isinstance(body, Mapping) or call.get("id") is None:
        raise InvalidMessageError(
            f"{where} needs 'id' and 'function' (with 'name' and 'arguments'); its keys are {_names(call)}."
        )
    text = "input" if kind == "custom" else "arguments"
    arguments = body.get(text)
    block = {
        "type": "tool_call",
        "id": call["id"],
        "name": body.get("name"),
        "arguments": "{}" if arguments is None else arguments,
    }
    inner = _extras(body, ("name", text))
    extra = _extras(call, ("id", "type", kind)) | ({kind: inner} if inner else {})
    return block, extra | ({"type": kind} if kind == "custom" else {})


def _with_extras(metadata: object, extras: _Fields) -> object:
    if metadata is None:
        return {"openai": extras} if extras else {}
    if not extras or not isinstance(metadata, Mapping):
        return metadata
    return {**metadata, "openai": {**_mapping(metadata.get("openai")), **extras}}


def _extras(source: _Json, known: Iterable[str]) -> _Fields:
    return {key: value for key, value in source.items() if key not in known and value is not None}


def _names(source: _Json) -> str:
    return ", ".join(repr(key) for key in list(source)[:20]) or "none"


# -- out -----------------------------------------------------------------------------------------------------


def _dump(message: ChatMessage) -> list[dict[str, Any]]:
    extras = dict(_mapping(message.metadata.get("openai")))
    layout = _mapping(extras.pop("_layout", None))
    results = [block for block in message.blocks if isinstance(block, ToolResultBlock)]
    if results:
        return _dump_results(message, results, layout)
    item: dict[str, Any] = {**_thaw(extras), "role": message.role, "content": _dump_content(message, layout)}
    if message.name is not None:
        item["name"] = message.name
    if message.tool_call_id is not None:
        item["tool_call_id"] = message.tool_call_id
    if layout.get("reasoning"):
        item["reasoning_content"] = "\n".join([block.text for block in message.blocks if isinstance(block, ThinkingBlock)])
    if message.tool_calls:
        call_extras = _mapping(layout.get("calls"))
        item["tool_calls"] = [_dump_call(call, _mapping(call_extras.get(call.id))) for call in message.tool_calls]
    return [item]


def _dump_results(message: ChatMessage, results: list[ToolResultBlock], layout: _Json) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    for block in results:
        items.append({"role": "tool", "content": block.content, "tool_call_id": block.tool_call_id})
        if message.name is not None:
            items[-1]["name"] = message.name
    parts = _dump_parts(message, layout)
    if parts:
        # OpenAI has no place beside a result; the last one takes what else the message holds.
        items[-1]["content"] = [{"type": "text", "text": items[-1]["content"]}, *parts]
    return items


def _dump_content(message: ChatMessage, layout: _Json) -> str | list[dict[str, Any]] | None:
    others = (ToolCallBlock, ThinkingBlock)
    blocks = [block for block in message.blocks if not isinstance(block, others)]
    if layout.get("list") or not all(isinstance(block, TextBlock) for block in blocks):
        return _dump_parts(message, layout)
    if blocks:
        return message.content
    return None if message.role == "assistant" else ""


def _dump_parts(message: ChatMessage, layout: _Json) -> list[dict[str, Any]]:
    extras = _mapping(layout.get("parts"))
    parts: list[dict[str, Any]] = []
    index = 0
    for block in message.blocks:
        if isinstance(block, (ToolCallBlock, ToolResultBlock, ThinkingBlock)):
            continue
        # Parts are numbered without what memory inserted, as they were when they came in.
        extra: _Json = {} if block.origin else _mapping(extras.get(str(index)))
        index += block.origin is None
        parts.append(_dump_part(block, _thaw(extra)))
    return parts


def _dump_part(block: TextBlock | MediaBlock, extra: _Fields) -> dict[str, Any]:
    if isinstance(block, TextBlock):
        kind = "refusal" if extra.get("type") == "refusal" else "text"
        return {**extra, "type": kind, kind: block.text}
    kind, body = _dump_media(block)
    return {**extra, "type": kind, kind: {**_mapping(extra.get(kind)), **body}}


def _dump_media(block: MediaBlock) -> tuple[str, dict[str, Any]]:
    kind, body = _dump_source(block)
    names = _MEDIA[kind][1]
    details = {theirs: getattr(block, ours) for theirs, ours in names.items() if ours in ("detail", "title")}
    return kind, body | {key: value for key, value in details.items() if value is not None}


def _dump_source(block: MediaBlock) -> tuple[str, dict[str, Any]]:
    if isinstance(block, ImageBlock):
        return "image_url", {"url": _uri(block, "image/png")}
    if isinstance(block, VideoBlock):
        return "video_url", {"url": _uri(block, "video/mp4")}
    if isinstance(block, AudioBlock):
        if block.data is None:
            return "audio_url", {"url": block.url}
        return "input_audio", {"data": block.data, "format": _audio_format(block)}
    if block.data is not None:
        return "file", {"file_data": block.data if block.mime_type is None else _uri(block, block.mime_type)}
    return "file", {"file_id": block.file_id} if block.url is None else {"file_url": block.url}


def _uri(block: MediaBlock, mime_type: str) -> str | None:
    return block.url if block.data is None else f"data:{block.mime_type or mime_type};base64,{block.data}"


def _audio_format(block: AudioBlock) -> str:
    mime_type = block.mime_type or "audio/wav"
    return block.format or _FORMATS.get(mime_type) or mime_type.rpartition("/")[2]


def _dump_call(call: ToolCallBlock, extra: _Json) -> dict[str, Any]:
    extra = _thaw(extra)
    kind, text = ("custom", "input") if extra.get("type") == "custom" else ("function", "arguments")
    arguments = call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments, ensure_ascii=False)
    body = {**_mapping(extra.get(kind)), "name": call.name, text: arguments}
    return {**extra, "id": call.id, "type": kind, kind: body}


def _mapping(value: object) -> _Json:
    return value if isinstance(value, Mapping) else {}


def _thaw(value: Any) -> Any:
    """A changeable copy: what goes out belongs to the caller."""
    if isinstance(value, Mapping):
        return {key: _thaw(item) for key, item in value.items()}
    return [_thaw(item) for item in value] if isinstance(value, list) else value


_MEDIA: dict[str, tuple[str, dict[str, str]]] = {
    "image_url": ("image", {"url": "url", "detail": "detail"}),
    "video_url": ("video", {"url": "url"}),
    "audio_url": ("audio", {"url": "url"}),
    "input_audio": ("audio", {"data": "data", "format": "format"}),
    "file": ("document", {"file_data": "data", "file_url": "url", "file_id": "file_id", "filename": "title"}),
}
"""For each kind of part: our type of block, and their names of its fields to ours."""
