"""Events of Google's Agent Development Kit, in and out: one `ChatMessage` for each `Event`.

Texts, media, thoughts, calls and responses are content blocks; all the rest is kept in `metadata["google_adk"]`, so that
nothing is lost. Parts that have no block of their own (executable code, tools of the provider's, ...) are counted as
reasoning; an event without content says nothing and becomes an empty developer message.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
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
        content["parts"] = [[rest, len(blocks)] for blocks, rest in read]
    metadata = {"google_adk": source} | ({"pinned": False} if role == "developer" else {})
    if counted := list(_kept_but_sent([rest for _, rest in read])):
        metadata["counted"] = counted
    blocks = [block for blocks, _ in read for block in blocks]
    fields = {"role": role, "blocks": blocks, "metadata": metadata, "id": event.id or None}
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


def _kept_but_sent(parts: Sequence[_Fields]) -> Iterator[list[str | int]]:
    """The paths to what the kit sends of what is kept: it costs tokens too."""
    for at, rest in enumerate(parts):
        if rest.get("whole"):
            continue
        where: list[str | int] = ["google_adk", "content", "parts", at, 0]
        for key in ("thought_signature", "part_metadata"):
            if rest.get(key):
                yield [*where, key]
        if "function_response" in rest:
            yield [*where, "function_response", "name"]


def _read(part: _Fields, *, is_step: bool) -> tuple[list[_Fields], _Fields]:
    """The blocks of a part, and what of it is not in them."""
    rest = dict(part)
    if is_step:
        return _read_step(rest), rest
    if rest.keys() & {"function_call", "function_response"}:
        return _counted(rest)
    if "text" in rest:
        return [{"type": "thinking" if rest.get("thought") else "text", "text": rest.pop("text")}], rest
    if _is_medium(rest):
        block, media = _read_media(rest)
        return [block], rest | media
    return _counted(rest)


def _read_step(rest: _Fields) -> list[_Fields]:
    if "function_call" in rest:
        call = rest["function_call"] = dict(rest["function_call"])
        block = {"type": "tool_call", "id": call["id"], "name": call["name"]}
        if "args" in call:
            return [block | {"arguments": call.pop("args")}]
        rest["no_args"] = True
        return [block]
    answer = rest["function_response"] = dict(rest["function_response"])
    text = _text_of(answer.get("response"))
    rest["shown"] = digest(text)
    is_error = isinstance(answer.get("response"), dict) and "error" in answer["response"]
    blocks: list[_Fields] = [{"type": "tool_result", "tool_call_id": answer["id"], "content": text, "is_error": is_error}]
    for at, part in enumerate(answer.get("parts") or ()):
        if _is_medium(part):
            block, media = _read_media(part)
            blocks.append(block)
            answer["parts"] = [*answer["parts"][:at], part | media | {"taken": True}, *answer["parts"][at + 1 :]]
    return blocks


def _is_medium(part: _Fields) -> bool:
    media = part.get("inline_data") or part.get("file_data") or {}
    return "data" in media or "file_uri" in media


def _read_media(part: _Fields) -> tuple[_Fields, _Fields]:
    """The block of a medium, and what of its data is not in it."""
    key = "inline_data" if part.get("inline_data") else "file_data"
    media = dict(part[key])
    media_type = media.get("mime_type", "")
    block: _Fields = {"type": kind_of(media_type), **known_mime_type(media_type)}
    if "data" in media:
        block["data"] = from_url_safe(media.pop("data"))
    else:
        block["url"] = media.pop("file_uri")
    return block, {key: media}


def _counted(rest: _Fields) -> tuple[list[_Fields], _Fields]:
    return [{"type": "thinking", "text": json.dumps(rest, ensure_ascii=False, sort_keys=True)}], rest | {"whole": True}


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
    kept = [(rest, size, _is_there(rest, ids)) for rest, size in content.get("parts", ())]
    if sum(size if is_there else size - 1 for _, size, is_there in kept) == len(blocks):
        taken = iter(blocks)
        parts = []
        for rest, size, is_there in kept:
            filling = list(islice(taken, size if is_there else size - 1))
            parts += [_fill(thaw(rest), filling)] if is_there else []
    else:
        parts = [_write(block) for block in blocks]  # somebody changed it
    return _content({**content, "parts": inserted + parts} if "parts" in content or inserted else content)


def _content(fields: Mapping[str, Any]) -> types.Content:
    return types.Content.model_validate_json(json.dumps(fields))


def _is_there(rest: Mapping[str, Any], ids: set[str]) -> bool:
    """A view leaves out calls that were never answered; media of results stay."""
    step = rest.get("function_call") or rest.get("function_response")
    return not step or bool(rest.get("whole")) or step["id"] in ids


def _fill(rest: _Fields, blocks: Sequence[ContentBlock]) -> _Fields:
    if rest.pop("whole", False) or not blocks:
        return rest
    block = blocks[0]
    if isinstance(block, (TextBlock, ThinkingBlock)):
        return rest | {"text": block.text}
    if isinstance(block, ToolCallBlock):
        if not rest.pop("no_args", False):
            rest["function_call"]["args"] = thaw(block.arguments)
        return rest
    if isinstance(block, ToolResultBlock):
        if rest.pop("shown") != digest(block.content):
            rest["function_response"]["response"] = {"error" if block.is_error else "result": block.content}
        media = iter(blocks[1:])
        for part in rest["function_response"].get("parts") or ():
            if part.pop("taken", False):
                part.update(_with_media(part, next(media)))
        return rest
    return _with_media(rest, block)


def _with_media(rest: _Fields, block: ContentBlock) -> _Fields:
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
