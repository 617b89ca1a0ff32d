"""Messages of Microsoft Agent Framework, in and out: one `ChatMessage` for each `Message`.

Texts, media, reasoning, calls and results are content blocks; all the rest is kept in `metadata["agent_framework"]`, as the
framework's own `to_dict` writes it (which leaves out `raw_representation` and what an exception said). Contents that have no
block of their own (hosted tools, approvals, ...) are counted as reasoning. A role of the application's own becomes `developer`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic import ValidationError

from memory_engine.errors import MissingExtraError
from memory_engine.formats.kept import digest, thaw
from memory_engine.formats.media import DEFAULT_MIME_TYPES, kind_of, known_mime_type
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
    from agent_framework import Content, Message
except ImportError as error:
    raise MissingExtraError(
        "Messages of Microsoft Agent Framework need the package agent-framework-core; "
        "pip install 'memory-engine-blocks[agent-framework]'."
    ) from error

__all__ = ["from_message", "to_message", "to_messages"]

_Fields = dict[str, Any]
_DATA_URI = re.compile(r"data:([!-+\--~]{1,255});base64,([A-Za-z0-9+/=]*)")
_SILENT = frozenset({"usage"})
"""What no model reads."""
_BESIDE = ("annotations", "additional_properties")


# -- in ------------------------------------------------------------------------------------------------------


def from_message(message: Message) -> ChatMessage:
    """The message for one of the framework's; its `message_id` becomes the `id`.

    :raises InvalidMessageError: it cannot be kept exactly; nothing is dropped silently.
    """
    source = message.to_dict()
    contents = source.pop("contents", [])
    role = _role(message)
    # Only these can be a step of ours: calls that somebody answers, once each, and their results.
    calls = _once(contents, "function_call") if role == "assistant" else {}
    results = _once(contents, "function_result")
    steps = results if role == "tool" else {key: at for key, at in calls.items() if key not in results}
    read = [_read(content, is_step=at in steps.values()) for at, content in enumerate(contents)]
    layout = {"message": source, "contents": [[rest, len(blocks)] for blocks, rest in read]}
    fields: _Fields = {"role": role, "blocks": [block for blocks, _ in read for block in blocks]}
    fields["metadata"] = {"agent_framework": layout}
    if counted := list(_kept_but_sent(source, [rest for _, rest in read])):
        fields["metadata"]["counted"] = counted
    fields["metadata"] |= {"pinned": False} if role == "developer" else {}
    if message.message_id and "\0" not in message.message_id:
        fields["id"] = message.message_id[:512]
    try:
        return ChatMessage.model_validate(fields)
    except ValidationError as error:
        raise invalid_message(error) from error


def _role(message: Message) -> str:
    types = {content.type for content in message.contents}
    if message.role == "tool" or (message.role == "user" and "function_result" in types):
        return "tool" if any(c.type == "function_result" and c.call_id for c in message.contents) else "developer"
    if types == {"function_approval_response"}:
        return "developer"  # it goes on with a request, it is none
    return message.role if message.role in ("system", "user", "assistant") else "developer"


def _once(contents: Sequence[_Fields], kind: str) -> dict[str, int]:
    """The places of the calls or results, by the id of the call, of each the first."""
    found: dict[str, int] = {}
    for at, content in enumerate(contents):
        is_named = content.get("name") or kind == "function_result"
        if content["type"] == kind and content.get("call_id") and is_named and not content.get("informational_only"):
            found.setdefault(content["call_id"], at)
    return found


def _kept_but_sent(message: _Fields, contents: Sequence[_Fields]) -> Iterator[list[str | int]]:
    """The paths to what clients send of what is kept: it costs tokens too."""
    if message.get("author_name"):
        yield ["agent_framework", "message", "author_name"]
    for at, rest in enumerate(contents):
        if rest["type"] in _SILENT or rest.get("whole"):
            continue
        where: list[str | int] = ["agent_framework", "contents", at, 0]
        yield from ([*where, key] for key in _BESIDE if rest.get(key))
        items = rest.get("items") or ()
        is_said = "\n".join(item["text"] for item in items if _is_text(item)) == rest.get("result")
        for place, item in enumerate(items):
            in_item = [*where, "items", place]
            yield from ([*in_item, key] for key in _BESIDE if item.get(key)) if is_said and _is_text(item) else [in_item]


def _is_text(item: _Fields) -> bool:
    return bool(item["type"] == "text" and item.get("text"))


def _read(content: _Fields, *, is_step: bool) -> tuple[list[_Fields], _Fields]:
    """The blocks of a content, and what of it is not in them."""
    rest = dict(content)
    kind = rest["type"]
    if kind == "text":
        return [{"type": "text", "text": rest.pop("text")}], rest
    if kind == "text_reasoning":
        rest |= {} if "text" in rest else {"no_text": True}
        block = {"type": "thinking", "text": rest.pop("text", "")}
        return [block | ({"signature": rest.pop("protected_data")} if "protected_data" in rest else {})], rest
    if is_step:
        return _read_step(rest), rest
    if _is_medium(rest):
        return [_read_media(rest)], rest
    if kind in _SILENT:
        return [], rest
    media = _take_media(rest)
    text = json.dumps(rest, ensure_ascii=False, sort_keys=True)
    return [{"type": "thinking", "text": text}, *media], rest | {"whole": True}


def _is_medium(content: _Fields) -> bool:
    return content["type"] in ("data", "uri") and isinstance(content.get("uri"), str)


def _read_step(rest: _Fields) -> list[_Fields]:
    if rest["type"] == "function_call":
        block = {"type": "tool_call", "id": rest["call_id"], "name": rest["name"]}
        if "arguments" in rest:
            return [block | {"arguments": rest.pop("arguments")}]
        rest["no_arguments"] = True
        return [block]
    result = rest.get("result")
    text = result if isinstance(result, str) else "" if result is None else json.dumps(result, ensure_ascii=False)
    rest["shown"] = digest(text)
    block = {"type": "tool_result", "tool_call_id": rest["call_id"], "content": text, "is_error": "exception" in rest}
    return [block, *_take_media(rest)]


def _take_media(rest: _Fields) -> list[_Fields]:
    """The blocks of the media that a tool returned."""
    items = [dict(item) for item in rest.get("items") or ()]
    media = [item for item in items if _is_medium(item)]
    blocks = [_read_media(item) for item in media]
    for item in media:
        item["taken"] = True
    rest |= {"items": items} if media else {}
    return blocks


def _read_media(rest: _Fields) -> _Fields:
    media_type = rest.get("media_type")
    block: _Fields = {"type": kind_of(media_type)}
    found = _DATA_URI.fullmatch(rest["uri"])
    if found:
        del rest["uri"]
        return block | {"mime_type": found[1], "data": found[2]}
    return block | known_mime_type(media_type) | {"url": rest.pop("uri")}


# -- out -----------------------------------------------------------------------------------------------------


def to_messages(messages: Iterable[ChatMessage]) -> list[Message]:
    """The messages as the framework's, one for each, new objects."""
    return [to_message(message) for message in messages]


def to_message(message: ChatMessage) -> Message:
    """The message as the framework's. Texts are what the blocks say, also where memory shortened or inserted something."""
    layout = message.metadata.get("agent_framework")
    blocks = [block for block in message.blocks if block.origin is None]
    inserted = [_write(block) for block in message.blocks if block.origin is not None]
    if not isinstance(layout, Mapping):
        return Message("system" if message.role == "developer" else message.role, _foreign(message), message_id=message.id)
    ids = {call.id for call in message.tool_calls} | set(message.tool_results)
    kept = [(rest, size, _is_there(rest, size, ids)) for rest, size in layout["contents"]]
    if sum(size if is_there else size - 1 for _, size, is_there in kept) == len(blocks):
        taken = iter(blocks)
        contents = []
        for rest, size, is_there in kept:
            filling = list(islice(taken, size if is_there else size - 1))
            contents += [_fill(thaw(rest), filling)] if is_there else []
    else:
        contents = [_write(block) for block in blocks]  # somebody changed it
    return Message.from_dict({**thaw(layout["message"]), "contents": inserted + contents})


def _is_there(rest: Mapping[str, Any], size: int, ids: set[str]) -> bool:
    """A view leaves out calls that were never answered; media of results stay."""
    is_step = rest["type"] in ("function_call", "function_result") and not rest.get("whole")
    return not (is_step and size) or rest["call_id"] in ids


def _fill(rest: _Fields, blocks: Sequence[ContentBlock]) -> _Fields:
    is_medium = _fill_media(rest, iter(blocks[1:]))
    if rest.pop("whole", False) or not blocks:
        return rest
    block = blocks[0]
    if isinstance(block, TextBlock):
        return rest | {"text": block.text}
    if isinstance(block, ThinkingBlock):
        rest |= {} if rest.pop("no_text", False) and not block.text else {"text": block.text}
        return rest | ({} if block.signature is None else {"protected_data": block.signature})
    if isinstance(block, ToolCallBlock):
        return rest | ({} if rest.pop("no_arguments", False) else {"arguments": thaw(block.arguments)})
    if isinstance(block, ToolResultBlock) and rest.pop("shown") != digest(block.content):
        media = [item for item, is_taken in zip(rest.pop("items", ()), is_medium, strict=True) if is_taken]
        rest |= {"items": [{"type": "text", "text": block.content}, *media]} if media else {}
        rest["result"] = block.content
    return rest if isinstance(block, ToolResultBlock) else _write(block) | rest


def _fill_media(rest: _Fields, blocks: Iterator[ContentBlock]) -> list[bool]:
    """Put the media that a tool returned back; which of its items they are."""
    items = rest.get("items") or []
    is_medium = [item.pop("taken", False) for item in items]
    if any(is_medium):
        pairs = zip(items, is_medium, strict=True)
        rest["items"] = [_write(next(blocks)) | item if is_taken else item for item, is_taken in pairs]
    return is_medium


def _write(block: ContentBlock) -> _Fields:
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    if isinstance(block, ThinkingBlock):
        return {"type": "text_reasoning", "text": block.text, "protected_data": block.signature}
    if isinstance(block, ToolCallBlock):
        return {"type": "function_call", "call_id": block.id, "name": block.name, "arguments": thaw(block.arguments)}
    if isinstance(block, ToolResultBlock):
        content = Content.from_function_result(block.tool_call_id, result=block.content)
        return content.to_dict() | ({"exception": "failed"} if block.is_error else {})
    return _write_media(block)


def _write_media(block: MediaBlock) -> _Fields:
    mime_type = block.mime_type or DEFAULT_MIME_TYPES[block.type]
    if block.data is not None:
        return {"type": "data", "uri": f"data:{mime_type};base64,{block.data}", "media_type": mime_type}
    if block.url is not None:
        return {"type": "uri", "uri": block.url, "media_type": mime_type}
    return {"type": "hosted_file", "file_id": getattr(block, "file_id", None)}


def _foreign(message: ChatMessage) -> list[_Fields]:
    """The contents of a message that did not come from the framework."""
    if message.tool_call_id is None:
        return [_write(block) for block in message.blocks]
    others = [_write(block) for block in message.blocks if not isinstance(block, TextBlock)]
    return [_write(ToolResultBlock(tool_call_id=message.tool_call_id, content=message.content)), *others]
