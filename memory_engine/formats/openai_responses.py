"""Items of OpenAI's Responses API (`input` and `output` items), in and out.

The items of one model response belong together (a reasoning item is refused without the item that follows it), so that a
run of them becomes one assistant message: texts as text blocks, calls as tool calls, reasoning as thinking. A call's output
becomes a message of role `tool`; messages of users, systems and developers stay one message each.

Nothing is lost, items of types that are not known here included. A message's texts, calls and media are in its blocks; what
is left of its items is kept in `metadata["openai_responses"]`, with the places that the blocks go back to. A copy of a message
that was shortened, or lost a call, therefore gives items with that text, or without that call.

What the model reads of an item that has no blocks of its own (a hosted tool call, an item of the future) is counted too: long
texts in it become text blocks, pictures become images, and the rest stands as JSON in a thinking block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from pydantic import ValidationError

from memory_engine.content import AnyBlock
from memory_engine.errors import InvalidMessageError
from memory_engine.formats.openai import _DATA_URI, _audio_format, _mapping, _thaw, _uri
from memory_engine.frozen import freeze_json
from memory_engine.messages import (
    AudioBlock,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    Role,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    VideoBlock,
    invalid_message,
)

__all__ = ["call_id_of", "from_openai_responses", "is_output", "to_openai_responses"]

_KEY = "openai_responses"
_ROLES = ("user", "assistant", "system", "developer")
_CALLS = {
    "function_call": "function_call_output",
    "custom_tool_call": "custom_tool_call_output",
    "shell_call": "shell_call_output",
    "local_shell_call": "local_shell_call_output",
    "apply_patch_call": "apply_patch_call_output",
    "computer_call": "computer_call_output",
    "tool_search_call": "tool_search_output",
    "program": "program_output",
    "mcp_approval_request": "mcp_approval_response",
}
"""The type of a call's item to that of its output."""
_OUTPUTS = {output: call for call, output in _CALLS.items()}
_WORDS, _LONG = 40, 200
"""Characters from which a text with spaces, and any text, inside an item that we do not know becomes a block."""

_Fields = dict[str, Any]
_Item = Mapping[str, Any]
_Path = tuple[str | int, ...]


def from_openai_responses(items: Iterable[object]) -> list[ChatMessage]:
    """The messages for input or output items (dicts, or the SDK's objects); the items of one response become one message.

    :raises InvalidMessageError: an item is no dict, or JSON cannot give it back exactly.
    """
    messages: list[ChatMessage] = []
    run: list[_Reading] = []
    for item in items:
        reading = _read(_as_item(item))
        if run and not (reading.role == "assistant" and _belongs(reading, run)):
            messages.append(_message(run))
            run = []
        run.append(reading)
        if reading.role != "assistant":
            messages.append(_message(run))
            run = []
    return [*messages, _message(run)] if run else messages


def to_openai_responses(messages: Iterable[ChatMessage]) -> list[dict[str, Any]]:
    """The messages as input items. What memory inserted into a message is an item of its own, beside those of the message.

    Reasoning is left out, except where it came in as an item.
    """
    return [item for message in messages for item, _ in dump_marked(message)]


def dump_marked(message: ChatMessage) -> list[tuple[dict[str, Any], bool]]:
    """The message's items, each with whether memory inserted it."""
    inserted = [block for block in message.blocks if block.origin]
    own = [block for block in message.blocks if not block.origin]
    if not own:
        return [(item, bool(inserted)) for item in _dump(message, message.blocks)]
    items = [(item, False) for item in _dump(message, own)]
    sections = [(item, True) for item in _dump_plain(message.role, inserted, None)] if inserted else []
    return [*sections, *items] if message.role == "user" else [*items, *sections]


def call_id_of(item: _Item) -> str | None:
    """The id of the call that an item makes or answers; None when it does neither, or does not say which."""
    kind = item.get("type")
    if kind == "mcp_approval_request":
        return _checked_id(item.get("id"))
    if kind == "mcp_approval_response":
        return _checked_id(item.get("approval_request_id"))
    if kind not in _CALLS and kind not in _OUTPUTS:
        return None
    call_id = item.get("call_id")
    return _checked_id(item.get("id") if call_id is None and kind == "local_shell_call_output" else call_id)


def is_output(item: _Item) -> bool:
    """Whether the item answers a call."""
    return item.get("type") in _OUTPUTS and call_id_of(item) is not None


# -- in ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Reading:
    """An item as blocks, and what is left of it with the places that the blocks were taken from, in their order."""

    item: _Fields
    role: Role = "assistant"
    blocks: list[AnyBlock] = field(default_factory=list)
    places: list[list[str | int]] = field(default_factory=list)
    call_id: str | None = None
    rest: Any = None

    def take(self, block: AnyBlock, how: str, path: _Path) -> None:
        """The value at `path` becomes a block; `how` says which of the block's fields gives it back."""
        self.blocks.append(block)
        self.places.append([how, *path])
        if how not in ("json", "none"):
            self.rest = _put(self.rest, path, None)

    def entry(self) -> _Fields:
        entry: _Fields = {"at": self.places, "item": self.rest}
        return entry | ({"call": self.call_id} if self.role == "assistant" and self.call_id is not None else {})


def _as_item(value: object) -> _Fields:
    dump = getattr(value, "model_dump", None)
    source = value if isinstance(value, Mapping) or dump is None else dump(mode="json", exclude_unset=True)
    if not isinstance(source, Mapping):
        raise InvalidMessageError(f"An item of the Responses API is a dict, not {type(value).__name__}.")
    try:
        return cast(_Fields, _thaw(freeze_json(source)))
    except ValueError as error:
        raise InvalidMessageError(f"The item of type {source.get('type')!r:.80} cannot be stored: {error}.") from None


def _belongs(reading: _Reading, run: list[_Reading]) -> bool:
    """Whether an item may be of the same response as those before it."""
    if run[-1].item.get("role") and (reading.item.get("role") or reading.item.get("type") == "reasoning"):
        return False  # what was said ends a response, unless a call follows
    return reading.call_id is None or all(reading.call_id != other.call_id for other in run)


def _message(run: list[_Reading]) -> ChatMessage:
    blocks = [block for reading in run for block in reading.blocks]
    try:
        bare = ChatMessage(role=run[0].role, blocks=blocks)
        if _dump_plain(bare.role, blocks, None) == [reading.item for reading in run]:
            return bare
        return bare.model_copy(update={"metadata": {_KEY: {"items": [reading.entry() for reading in run]}}})
    except ValidationError as error:
        raise invalid_message(error) from error


def _read(item: _Fields) -> _Reading:
    kind, role = item.get("type"), item.get("role")
    reading = _Reading(item, rest=item)
    if role in _ROLES and kind in (None, "message") and isinstance(item.get("content"), str | list):
        reading.role = cast(Role, role)
        _read_content(reading, ("content",))
        return reading
    reading.call_id = call_id_of(item)
    if kind == "reasoning":
        _read_reasoning(reading)
    elif reading.call_id is not None and kind in _CALLS:
        _read_call(reading, reading.call_id)
    elif reading.call_id is not None:
        reading.role = "tool"
        _read_output(reading, reading.call_id)
    else:
        _read_unknown(reading, ())
    return reading


def _read_content(reading: _Reading, path: _Path) -> None:
    content = reading.item[path[0]]
    if isinstance(content, str):
        reading.take(TextBlock(text=content), "text", path)
        return
    for index, part in enumerate(content):
        _read_part(reading, part, (*path, index))


def _read_part(reading: _Reading, part: object, path: _Path) -> None:
    source = _mapping(part)
    kind = source.get("type")
    if kind in ("input_text", "output_text", "text") and isinstance(source.get("text"), str):
        reading.take(TextBlock(text=source["text"]), "text", (*path, "text"))
    elif kind == "refusal" and isinstance(source.get("refusal"), str):
        reading.take(TextBlock(text=source["refusal"]), "text", (*path, "refusal"))
    elif kind not in _MEDIA_PARTS or not _read_media(reading, source, path):
        _read_unknown(reading, path)


def _read_media(reading: _Reading, part: _Item, path: _Path) -> bool:
    """Take the source of an image, a file or a sound; False when it has none that we know."""
    inner = _mapping(part.get("input_audio"))
    if part["type"] == "input_audio" and _is_data(inner.get("data")):
        reading.take(AudioBlock(data=inner["data"]), "data", (*path, "input_audio", "data"))
        return True
    block = ImageBlock if part["type"] == "input_image" else DocumentBlock
    for key in ("image_url", "file_data", "file_url"):
        if isinstance(value := part.get(key), str):
            _take_uri(reading, value, (*path, key), block)
            return True
    if _checked_id(part.get("file_id")):
        reading.take(DocumentBlock(file_id=part["file_id"]), "file_id", (*path, "file_id"))
        return True
    return False


def _take_uri(reading: _Reading, uri: str, path: _Path, block: type[ImageBlock | DocumentBlock | AudioBlock | VideoBlock]) -> None:
    found = _DATA_URI.fullmatch(uri)
    if found and _is_data(found[2]):
        reading.take(block(mime_type=found[1], data=found[2]), "uri", path)
    elif path[-1] == "file_data" and _is_data(uri):
        reading.take(block(data=uri), "data", path)
    else:
        reading.take(block(url=uri), "url", path)


def _read_reasoning(reading: _Reading) -> None:
    for key in ("summary", "content"):
        parts = reading.item.get(key)
        for index, part in enumerate(parts if isinstance(parts, list) else ()):
            if isinstance(text := _mapping(part).get("text"), str):
                reading.take(ThinkingBlock(text=text), "text", (key, index, "text"))
    if isinstance(secret := reading.item.get("encrypted_content"), str):
        reading.take(ThinkingBlock(text="", signature=secret), "signature", ("encrypted_content",))


def _read_call(reading: _Reading, call_id: str) -> None:
    item = reading.item
    key = {"function_call": "arguments", "custom_tool_call": "input"}.get(item["type"])
    name = _checked_id(item.get("name")) or item["type"]
    if key and isinstance(text := item.get(key), str):
        reading.take(ToolCallBlock(id=call_id, name=name, arguments=text), "text", (key,))
    else:
        reading.take(ToolCallBlock(id=call_id, name=name, arguments=_dumps(item)), "json", ())
        reading.rest = None


def _read_output(reading: _Reading, call_id: str) -> None:
    output = reading.item.get("output")
    if isinstance(output, str):
        reading.take(ToolResultBlock(tool_call_id=call_id, content=output), "text", ("output",))
        return
    first = _mapping(output[0]) if isinstance(output, list) and output else {}
    if first.get("type") not in ("input_text", *_MEDIA_PARTS):
        reading.take(ToolResultBlock(tool_call_id=call_id, content=""), "none", ())
        _read_unknown(reading, ())
        return
    start = int(isinstance(first.get("text"), str))
    text = first["text"] if start else ""
    path = ("output", 0, "text")
    reading.take(ToolResultBlock(tool_call_id=call_id, content=text), "text" if start else "none", path if start else ())
    for index, part in enumerate(cast(list[Any], output)[start:], start=start):
        _read_part(reading, part, ("output", index))


def _read_unknown(reading: _Reading, path: _Path) -> None:
    """Long texts and media of the value at `path` become blocks, what is left of it one of JSON."""
    inner = _Reading({}, rest=_get(reading.rest, path))
    for leaf, text in list(_leaves(inner.rest, ())):
        found = _DATA_URI.fullmatch(text)
        if found and _is_data(found[2]):
            _take_uri(inner, text, leaf, _media_class(found[1]))
        elif reading.item.get("type") == "image_generation_call" and leaf == ("result",) and _is_data(text):
            inner.take(ImageBlock(data=text), "data", leaf)
        elif _is_prose(text, leaf[-1]):
            inner.take(TextBlock(text=text), "text", leaf)
    reading.take(ThinkingBlock(text=_dumps(inner.rest)), "json", path)
    reading.rest = _put(reading.rest, path, None)
    for block, (how, *leaf_path) in zip(inner.blocks, inner.places, strict=True):
        reading.blocks.append(block)
        reading.places.append([how, *path, *leaf_path])


def _leaves(value: object, path: _Path) -> Iterator[tuple[_Path, str]]:
    if isinstance(value, str) and path:
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))


def _is_prose(text: str, key: str | int) -> bool:
    """Whether a text may be shortened; ids, addresses and what is encrypted may not."""
    if isinstance(key, str) and (key in ("id", "url", "encrypted_content", "signature") or key.endswith(("_id", "_url"))):
        return False
    return len(text) >= _LONG or (len(text) >= _WORDS and " " in text)


def _media_class(mime_type: str) -> type[ImageBlock | DocumentBlock | AudioBlock | VideoBlock]:
    kinds = {"image": ImageBlock, "audio": AudioBlock, "video": VideoBlock}
    return kinds.get(mime_type.partition("/")[0], DocumentBlock)


def _is_data(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and not value.startswith("data:")


def _checked_id(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 512 and "\0" not in value else None


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


# -- out -----------------------------------------------------------------------------------------------------


def _dump(message: ChatMessage, blocks: Sequence[AnyBlock]) -> list[dict[str, Any]]:
    entries = _mapping(message.metadata.get(_KEY)).get("items")
    if isinstance(entries, list):
        items = _dump_kept(entries, blocks)
        if items is not None:
            return items
    return _dump_plain(message.role, blocks, message.tool_call_id)


def _dump_kept(entries: Sequence[_Item], blocks: Sequence[AnyBlock]) -> list[dict[str, Any]] | None:
    """The items with the blocks put back into them; None when these are not the blocks that were taken from them."""
    left = list(blocks)
    items: list[dict[str, Any]] = []
    for entry in entries:
        count = len(entry["at"])
        if "call" in entry and not (left and isinstance(left[0], ToolCallBlock) and left[0].id == entry["call"]):
            # The copy lost this call. Reasoning right before it would be refused without it.
            while items and items[-1].get("type") == "reasoning":
                items.pop()
            continue
        taken, left = left[:count], left[count:]
        item: Any = _thaw(entry["item"])
        for (how, *path), block in zip(entry["at"], taken, strict=False):
            try:
                item = item if how == "none" else _put(item, tuple(path), _VALUES[how](block))
            except (AttributeError, ValueError, TypeError, LookupError):
                return None
        if len(taken) < count or not isinstance(item, dict):
            return None
        items.append(item)
    return None if left else items


def _dump_plain(role: str, blocks: Sequence[AnyBlock], tool_call_id: str | None) -> list[dict[str, Any]]:
    """Items for blocks that did not come from items."""
    parts = [part for block in blocks if (part := _dump_part(block)) is not None]
    if role == "tool":
        return _dump_outputs(blocks, parts, tool_call_id)
    text = "\n".join([block.text for block in blocks if isinstance(block, TextBlock)])
    if role == "assistant":
        # What the assistant said has no place for media.
        said = [{"role": role, "content": text}] if any(isinstance(block, TextBlock) for block in blocks) else []
        return said + [_dump_call(block) for block in blocks if isinstance(block, ToolCallBlock)]
    return [{"role": role, "content": text if all(part["type"] == "input_text" for part in parts) else parts}]


def _dump_outputs(blocks: Sequence[AnyBlock], parts: list[_Fields], tool_call_id: str | None) -> list[dict[str, Any]]:
    items = [
        {"type": "function_call_output", "call_id": block.tool_call_id, "output": block.content}
        for block in blocks
        if isinstance(block, ToolResultBlock)
    ]
    if tool_call_id is not None:
        output: Any = parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "input_text" else parts
        return [{"type": "function_call_output", "call_id": tool_call_id, "output": output or ""}]
    if parts and items:
        items[-1]["output"] = [{"type": "input_text", "text": items[-1]["output"]}, *parts]
    return items


def _dump_call(block: ToolCallBlock) -> dict[str, Any]:
    arguments = block.arguments if isinstance(block.arguments, str) else _dumps(block.arguments)
    return {"type": "function_call", "call_id": block.id, "name": block.name, "arguments": arguments}


def _dump_part(block: AnyBlock) -> dict[str, Any] | None:
    if isinstance(block, TextBlock):
        return {"type": "input_text", "text": block.text}
    if isinstance(block, ImageBlock):
        return {"type": "input_image", "image_url": _uri(block, "image/png"), "detail": block.detail or "auto"}
    if isinstance(block, AudioBlock) and block.data is not None:
        return {"type": "input_audio", "input_audio": {"data": block.data, "format": _audio_format(block)}}
    if isinstance(block, DocumentBlock) and block.file_id is not None:
        return {"type": "input_file", "file_id": block.file_id}
    if isinstance(block, DocumentBlock | AudioBlock | VideoBlock):
        if block.url is not None:
            return {"type": "input_file", "file_url": block.url}
        name = getattr(block, "title", None) or block.type
        return {"type": "input_file", "file_data": _uri(block, "application/octet-stream"), "filename": name}
    return None


def _text_of(block: AnyBlock) -> str:
    if isinstance(block, ToolResultBlock):
        return block.content
    if isinstance(block, ToolCallBlock):
        return block.arguments if isinstance(block.arguments, str) else _dumps(block.arguments)
    return cast(TextBlock | ThinkingBlock, block).text


_VALUES: dict[str, Callable[[Any], Any]] = {
    "text": _text_of,
    "json": lambda block: json.loads(_text_of(block)),
    "signature": lambda block: block.signature,
    "uri": lambda block: f"data:{block.mime_type};base64,{block.data}",
    "data": lambda block: block.data,
    "url": lambda block: block.url,
    "file_id": lambda block: block.file_id,
}
"""For each way in which a block was taken: what it gives back."""
_MEDIA_PARTS = ("input_image", "input_file", "input_audio")


def _get(value: Any, path: _Path) -> Any:
    for step in path:
        value = value[step]
    return value


def _put(value: Any, path: _Path, new: Any) -> Any:
    """A copy of `value` with `new` at `path`; only what is on the way there is copied."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _put(copy[path[0]], path[1:], new)
    return copy
