"""Messages of pydantic-ai become ours."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from memory_engine.errors import MissingExtraError
from memory_engine.formats.kept import digest
from memory_engine.formats.media import from_url_safe, kind_of, known_mime_type
from memory_engine.messages import ChatMessage, invalid_message

try:
    from pydantic_ai import messages as ai
except ImportError as error:
    raise MissingExtraError(
        "Messages of pydantic-ai need the package pydantic-ai-slim; pip install 'memory-engine-blocks[pydantic-ai]'."
    ) from error

_Fields = dict[str, Any]
_KINDS = {"image-url": "image", "audio-url": "audio", "video-url": "video", "document-url": "document"}
_WITHIN_RESPONSE = frozenset({"builtin-tool-call", "builtin-tool-return", "compaction"})
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
    return f"{message.run_id or 'message'}:{message.kind}:{digest(repr((said, when)))}"


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
        if counted := [path for at, (_, rest) in enumerate(group) for path in _kept_but_sent(at, rest)]:
            fields["metadata"]["counted"] = counted
        if role == "tool":
            fields["tool_call_id"] = group[0][1]["tool_call_id"]
        try:
            found.append(ChatMessage.model_validate(fields))
        except ValidationError as error:
            raise invalid_message(error) from error
    return found


def _kept_but_sent(at: int, rest: _Fields) -> Iterator[list[str | int]]:
    """The paths to what models send of what is kept of a part: it costs tokens too."""
    if not rest.get("whole"):
        keys = ("tool_name", "provider_details") if rest["part_kind"] == "tool-return" else ("provider_details",)
        for key in keys:
            if rest.get(key):
                yield ["pydantic_ai", "parts", at, 0, key]


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
        rest["shown"] = digest(text)
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
    mime_type = known_mime_type(media_type)
    if kind in _KINDS:
        return {"type": _KINDS[kind], "url": rest.pop("url")} | mime_type, rest
    if kind == "binary":
        return {"type": kind_of(media_type), "data": from_url_safe(rest.pop("data"))} | mime_type, rest
    if kind == "uploaded-file":
        return {"type": "document", "file_id": rest.pop("file_id")} | mime_type, rest
    return ({"type": "text", "text": rest.pop("content")}, rest) if "content" in rest else (None, rest)
