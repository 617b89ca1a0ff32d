"""Messages of pydantic-ai, in and out.

Every `ModelRequest` becomes one `ChatMessage` for each of its prompts and tool returns, every `ModelResponse` one. Their texts,
media and calls are content blocks; all the rest of them is kept in `metadata["pydantic_ai"]`, so that nothing is lost. What
the framework itself writes into a request (feedback, notes of changes) becomes developer messages that are not pinned. What
a provider's own tools did within a response is counted as reasoning.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from memory_engine.errors import MissingExtraError
from memory_engine.messages import (
    ChatMessage,
    ContentBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    invalid_message,
)

try:
    from pydantic_ai import messages as ai
except ImportError as error:
    raise MissingExtraError(
        "Messages of pydantic-ai need the package pydantic-ai-slim; pip install 'memory-engine-blocks[pydantic-ai]'."
    ) from error

MARK = "memory_engine"
"""The key in a message's metadata that says that it was made of a message which did not come from pydantic-ai."""

_Fields = dict[str, Any]
_KINDS = {"image-url": "image", "audio-url": "audio", "video-url": "video", "document-url": "document"}
_MIME_TYPE = re.compile(r"[!-+\--~]{1,255}")
_MIME_TYPES = {"image": "image/png", "audio": "audio/wav", "video": "video/mp4", "document": "application/octet-stream"}
_WITHIN_RESPONSE = frozenset({"builtin-tool-call", "builtin-tool-return", "compaction"})
# Pydantic writes bytes in the other alphabet of base64.
_STANDARD, _URL_SAFE = str.maketrans("-_", "+/"), str.maketrans("+/", "-_")
_files = TypeAdapter(list[ai.MultiModalContent], config=ConfigDict(ser_json_bytes="base64"))


def from_model_messages(messages: Iterable[ai.ModelMessage], *, known: Container[str] = ()) -> list[ChatMessage]:
    """The messages for those of pydantic-ai, each with an id that is the same every time.

    Those whose first part has an id in `known` are left out.

    :raises InvalidMessageError: one of them cannot be kept exactly; nothing is dropped silently.
    """
    found: list[ChatMessage] = []
    times: dict[str, int] = {}
    for message in messages:
        base = base_id(message)
        times[base] = times.get(base, 0) + 1
        group = base if times[base] == 1 else f"{base}:{times[base]}"
        if f"{group}/0" not in known:
            found += _read(message, group)
    return found


def base_id(message: ai.ModelMessage) -> str:
    """What a message is known by, whatever the framework adds to it later: its run, its times and its calls."""
    keys = [(part.part_kind, getattr(part, "tool_call_id", None), _moment(part)) for part in message.parts]
    said = [key for key in keys if key[1:] != (None, None) and key[0] != "system-prompt"]
    when = _moment(message) if isinstance(message, ai.ModelResponse) or not said else None
    digest = hashlib.sha256(repr((said, when)).encode()).hexdigest()[:24]
    return f"{message.run_id or 'message'}:{message.kind}:{digest}"


def _moment(value: object) -> str | None:
    moment = getattr(value, "timestamp", None)
    return moment.astimezone(UTC).isoformat() if isinstance(moment, datetime) else None


def _read(message: ai.ModelMessage, base: str) -> list[ChatMessage]:
    source = json.loads(ai.ModelMessagesTypeAdapter.dump_json([message]))[0]
    parts = [_read_part(part, fields) for part, fields in zip(message.parts, source.pop("parts"), strict=True)]
    outer = {key: value for key, value in source.items() if value is not None}
    if isinstance(message, ai.ModelResponse):
        groups = [("assistant", parts)]
    else:
        groups = [(_role(part), [read]) for part, read in zip(message.parts, parts, strict=True)] or [("developer", [])]
    found = []
    for at, (role, group) in enumerate(groups):
        layout = {"group": base, "at": at, "message": outer, "parts": [[rest, len(blocks)] for blocks, rest in group]}
        fields: _Fields = {"role": role, "id": f"{base}/{at}", "blocks": [block for blocks, _ in group for block in blocks]}
        fields["metadata"] = {"pydantic_ai": layout} | ({"pinned": False} if role == "developer" else {})
        if role == "tool":
            fields["tool_call_id"] = group[0][1]["tool_call_id"]
        try:
            found.append(ChatMessage.model_validate(fields))
        except ValidationError as error:
            raise invalid_message(error) from error
    return found


def _role(part: Any) -> str:
    if isinstance(part, ai.SystemPromptPart) and part.scope == "conversation":
        return "system"
    if isinstance(part, ai.ToolReturnPart) or (part.part_kind == "retry-prompt" and part.tool_name is not None):
        return "tool"
    return "user" if isinstance(part, (ai.UserPromptPart, ai.SpeechPart)) else "developer"


def _read_part(part: Any, fields: _Fields) -> tuple[list[_Fields], _Fields]:
    """The blocks of a part, and what of its fields is not in them."""
    rest = {key: value for key, value in fields.items() if value is not None or key == "content"}
    kind = part.part_kind
    if kind in ("text", "system-prompt") or (kind == "user-prompt" and isinstance(rest["content"], str)):
        return [{"type": "text", "text": rest.pop("content")}], rest
    if kind == "thinking":
        block = {"type": "thinking", "text": rest.pop("content")}
        return [block | ({"signature": rest.pop("signature")} if "signature" in rest else {})], rest
    if kind == "tool-call":
        block = {"type": "tool_call", "id": rest["tool_call_id"], "name": rest["tool_name"]}
        given = {"arguments": rest.pop("args")} if "args" in rest else {}
        return [block | given], rest | ({} if given else {"no_args": True})
    if kind == "user-prompt":
        read = [_read_item(item) for item in rest.pop("content")]
        return [found for found, _ in read if found], rest | {"items": [item for _, item in read]}
    if kind in ("file", "speech"):
        return _read_media(rest, "content" if kind == "file" else "audio")
    return _shown(part, rest), rest


def _read_media(rest: _Fields, key: str) -> tuple[list[_Fields], _Fields]:
    blocks = [{"type": "text", "text": rest.pop("transcript")}] if "transcript" in rest else []
    if key in rest:
        found, rest[key] = _read_item(rest[key])
        blocks += [found] if found else []
    return blocks, rest


def _shown(part: Any, rest: _Fields) -> list[_Fields]:
    """What the model reads of a part that has no block of its own, so that it is counted."""
    if isinstance(part, ai.ToolReturnPart):
        text = part.model_response_str()
        if rest["content"] == text:
            del rest["content"]
        elif isinstance(rest["content"], (dict, list)):
            rest["json"] = json.dumps(rest.pop("content"), ensure_ascii=False)  # in the order in which the model reads it
        rest["shown"] = _digest(text)
        files = [_read_item(item)[0] for item in json.loads(_files.dump_json(part.files))]
        return [{"type": "text", "text": text}, *filter(None, files)]
    response = getattr(part, "model_response", None)
    text = response() if callable(response) else json.dumps(rest, ensure_ascii=False, sort_keys=True)
    rest["whole"] = True
    return [{"type": "thinking" if part.part_kind in _WITHIN_RESPONSE else "text", "text": text}]


def _read_item(item: Any) -> tuple[_Fields | None, _Fields | None]:
    """The block of an item of a prompt, and what of it is not in the block."""
    if isinstance(item, str):
        return {"type": "text", "text": item}, None
    rest = dict(item)
    kind, media_type = rest["kind"], rest.get("media_type")
    mime_type = {"mime_type": media_type} if isinstance(media_type, str) and _MIME_TYPE.fullmatch(media_type) else {}
    if kind in _KINDS:
        return {"type": _KINDS[kind], "url": rest.pop("url")} | mime_type, rest
    if kind == "binary":
        family = str(media_type).partition("/")[0]
        data = rest.pop("data").translate(_STANDARD)
        return {"type": family if family in ("image", "audio", "video") else "document", "data": data} | mime_type, rest
    if kind == "uploaded-file":
        return {"type": "document", "file_id": rest.pop("file_id")} | mime_type, rest
    return ({"type": "text", "text": rest.pop("content")}, rest) if "content" in rest else (None, rest)


# -- out -----------------------------------------------------------------------------------------------------


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
        parts += [{"part_kind": "system-prompt", "content": item} for item in inserted]
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
    if shown is not None and shown != _digest(text):
        return {"content": text}
    return {"content": fields.get("content", text) if content is None else json.loads(content)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


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
        mime_type = block.mime_type or _MIME_TYPES[block.type]
        return {"kind": "binary", "data": block.data.translate(_URL_SAFE), "media_type": mime_type}
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
        parts = [{"part_kind": "system-prompt", "content": message.content} | when]
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
