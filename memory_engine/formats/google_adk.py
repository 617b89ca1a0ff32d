"""Events of Google's Agent Development Kit, in and out: one `ChatMessage` for each `Event`.

Texts, media, thoughts, calls and responses are content blocks; all the rest is kept in `metadata["google_adk"]`, so that
nothing is lost. Parts that have no block of their own (executable code, tools of the provider's, ...) are counted as
reasoning; an event without content says nothing and becomes an empty developer message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from memory_engine.errors import MissingExtraError
from memory_engine.formats.kept import digest, thaw
from memory_engine.formats.media import DEFAULT_MIME_TYPES, from_url_safe, kind_of, known_mime_type, to_url_safe
from memory_engine.messages import (
    ChatMessage,
    ContentBlock,
    MediaBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    invalid_message,
)

try:
    from google.adk.events import Event
    from google.genai import types
except ImportError as error:
    raise MissingExtraError(
        "Events of Google's Agent Development Kit need the package google-adk; pip install 'memory-engine-blocks[google-adk]'."
    ) from error

__all__ = ["from_event", "to_content", "to_event"]

_Fields = dict[str, Any]


# -- in ------------------------------------------------------------------------------------------------------


def from_event(event: Event) -> ChatMessage:
    """The message for an event; its `id` stays.

    :raises InvalidMessageError: it cannot be kept exactly; nothing is dropped silently.
    """
    source = json.loads(event.model_dump_json(exclude_none=True))
    content = source.get("content")
    parts = (content or {}).get("parts")
    role = _role(content, parts or [], source.get("author"))
    read = []
    ids: set[str] = set()
    for part in parts or []:
        step = part.get({"assistant": "function_call", "tool": "function_response"}.get(role, ""))
        is_step = bool(step and step.get("id") and step.get("name")) and step["id"] not in ids
        ids |= {step["id"]} if is_step else set()
        read.append(_read(part, is_step=is_step))
    if parts is not None:
        content["parts"] = [[rest, block is not None] for block, rest in read]
    metadata = {"google_adk": source} | ({"pinned": False} if role == "developer" else {})
    fields = {"role": role, "blocks": [block for block, _ in read if block], "metadata": metadata, "id": event.id or None}
    try:
        return ChatMessage.model_validate(fields)
    except ValidationError as error:
        raise invalid_message(error) from error


def _role(content: _Fields | None, parts: list[_Fields], author: str | None) -> str:
    if not parts or content is None:
        return "developer"
    responses = [part["function_response"] for part in parts if "function_response" in part]
    if any(response.get("id") and response.get("name") for response in responses):
        return "tool"
    return "user" if content.get("role", author) == "user" else "assistant"


def _read(part: _Fields, *, is_step: bool) -> tuple[_Fields | None, _Fields]:
    """The block of a part, and what of it is not in the block."""
    rest = dict(part)
    if is_step:
        return _read_step(rest), rest
    if rest.keys() & {"function_call", "function_response"}:
        return _counted(rest)
    if "text" in rest:
        return {"type": "thinking" if rest.get("thought") else "text", "text": rest.pop("text")}, rest
    media = rest.get("inline_data") or rest.get("file_data")
    if media is not None and ("data" in media or "file_uri" in media):
        return _read_media(rest, dict(media))
    return _counted(rest)


def _read_step(rest: _Fields) -> _Fields:
    if "function_call" in rest:
        call = rest["function_call"] = dict(rest["function_call"])
        block = {"type": "tool_call", "id": call["id"], "name": call["name"]}
        if "args" in call:
            return block | {"arguments": call.pop("args")}
        rest["no_args"] = True
        return block
    response = rest["function_response"].get("response")
    text = _text_of(response)
    rest["shown"] = digest(text)
    is_error = isinstance(response, dict) and "error" in response
    return {"type": "tool_result", "tool_call_id": rest["function_response"]["id"], "content": text, "is_error": is_error}


def _read_media(rest: _Fields, media: _Fields) -> tuple[_Fields, _Fields]:
    media_type = media.get("mime_type", "")
    block: _Fields = {"type": kind_of(media_type), **known_mime_type(media_type)}
    if "data" in media:
        block["data"] = from_url_safe(media.pop("data"))
        return block, rest | {"inline_data": media}
    block["url"] = media.pop("file_uri")
    return block, rest | {"file_data": media}


def _counted(rest: _Fields) -> tuple[_Fields, _Fields]:
    return {"type": "thinking", "text": json.dumps(rest, ensure_ascii=False, sort_keys=True)}, rest | {"whole": True}


def _text_of(response: Any) -> str:
    """What a tool said. The kit puts what is no dict under `result`."""
    if isinstance(response, dict) and response.keys() == {"result"} and isinstance(response["result"], str):
        return str(response["result"])
    return "" if response is None else json.dumps(response, ensure_ascii=False)


# -- out -----------------------------------------------------------------------------------------------------


def to_event(message: ChatMessage) -> Event:
    """The message as an event. Texts are what the blocks say, also where memory shortened or inserted something."""
    source = thaw(message.metadata.get("google_adk"))
    content = to_content(message).model_dump_json(exclude_none=True)
    if not isinstance(source, dict):
        author = "user" if message.role == "user" else "model"
        return Event(id=message.id or "", author=author, content=types.Content.model_validate_json(content))
    if "content" in source:
        source["content"] = json.loads(content)
    return Event.model_validate_json(json.dumps(source))


def to_content(message: ChatMessage) -> types.Content:
    """What the message says, as the kit sends it to a model."""
    source = message.metadata.get("google_adk")
    inserted = [_write(block) for block in message.blocks if block.origin is not None]
    if not isinstance(source, Mapping):
        role = "model" if message.role == "assistant" else "user"
        return _content({"role": role, "parts": inserted + _foreign(message)})
    content = dict(source.get("content", {}))
    blocks = [block for block in message.blocks if block.origin is None]
    ids = {call.id for call in message.tool_calls} | set(message.tool_results)
    kept = [(rest, has_block) for rest, has_block in content.get("parts", ()) if _is_there(rest, ids)]
    if sum(has_block for _, has_block in kept) == len(blocks):
        taken = iter(blocks)
        parts = [_fill(thaw(rest), next(taken)) if has_block else thaw(rest) for rest, has_block in kept]
    else:
        parts = [_write(block) for block in blocks]  # somebody changed it
    return _content({**content, "parts": inserted + parts} if "parts" in content or inserted else content)


def _content(fields: Mapping[str, Any]) -> types.Content:
    return types.Content.model_validate_json(json.dumps(fields))


def _is_there(rest: Mapping[str, Any], ids: set[str]) -> bool:
    """A view leaves out calls that were never answered."""
    step = rest.get("function_call") or rest.get("function_response")
    return not step or bool(rest.get("whole")) or step["id"] in ids


def _fill(rest: _Fields, block: ContentBlock) -> _Fields:
    if rest.pop("whole", False):
        return rest
    if isinstance(block, (TextBlock, ThinkingBlock)):
        return rest | {"text": block.text}
    if isinstance(block, ToolCallBlock):
        if not rest.pop("no_args", False):
            rest["function_call"]["args"] = thaw(block.arguments)
        return rest
    if isinstance(block, ToolResultBlock):
        if rest.pop("shown") != digest(block.content):
            rest["function_response"]["response"] = {"error" if block.is_error else "result": block.content}
        return rest
    written = _write(block)
    return rest | {key: value | rest.get(key, {}) for key, value in written.items()}


def _write(block: ContentBlock) -> _Fields:
    if isinstance(block, TextBlock):
        return {"text": block.text}
    if isinstance(block, ThinkingBlock):
        return {"text": block.text, "thought": True}
    if isinstance(block, ToolCallBlock):
        arguments = thaw(block.arguments)
        args = arguments if isinstance(arguments, dict) else {"arguments": arguments}
        return {"function_call": {"id": block.id, "name": block.name, "args": args}}
    if isinstance(block, ToolResultBlock):
        response = {"error" if block.is_error else "result": block.content}
        return {"function_response": {"id": block.tool_call_id, "name": "tool", "response": response}}
    return _write_media(block)


def _write_media(block: MediaBlock) -> _Fields:
    mime_type = block.mime_type or DEFAULT_MIME_TYPES[block.type]
    if block.data is not None:
        return {"inline_data": {"data": to_url_safe(block.data), "mime_type": mime_type}}
    if block.url is not None:
        return {"file_data": {"file_uri": block.url, "mime_type": mime_type}}
    return {"text": f"[file {getattr(block, 'file_id', None)}]"}


def _foreign(message: ChatMessage) -> list[_Fields]:
    """The parts of a message that did not come from the kit."""
    blocks: list[ContentBlock] = [block for block in message.blocks if block.origin is None]
    if message.tool_call_id is not None:
        others = [block for block in blocks if not isinstance(block, TextBlock)]
        blocks = [ToolResultBlock(tool_call_id=message.tool_call_id, content=message.content), *others]
    return [_write(block) for block in blocks]
