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

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError

from memory_engine.content import AnyBlock
from memory_engine.formats.kept import (
    Fields,
    Path,
    TakenApart,
    as_object,
    as_text,
    checked_id,
    is_base64,
    mapping,
    put_together,
)
from memory_engine.formats.openai import _audio_format, _uri
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

__all__ = ["KEPT", "call_id_of", "dump_marked", "from_openai_responses", "is_output", "to_openai_responses"]

KEPT = "openai_responses"
"""Where in `metadata` is what has no field in a `ChatMessage`."""
_ROLES = ("user", "assistant", "system", "developer")
_MEDIA_PARTS = ("input_image", "input_file", "input_audio")
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
_COMPACTED = ("compaction", "context_compaction")
"""These stand for everything before them, so that they stay in view like instructions."""

_Item = Mapping[str, Any]


def from_openai_responses(items: Iterable[object]) -> list[ChatMessage]:
    """The messages for input or output items (dicts, or the SDK's objects); the items of one response become one message.

    :raises InvalidMessageError: an item is no dict, or JSON cannot give it back exactly.
    """
    messages: list[ChatMessage] = []
    run: list[TakenApart] = []
    for item in items:
        role, taken = _read(as_object(item, "An item of the Responses API"))
        if run and not (role == "assistant" and _belongs(taken, run)):
            messages.append(_message("assistant", run))
            run = []
        if role == "assistant":
            run.append(taken)
        else:
            messages.append(_message(role, [taken]))
    return [*messages, _message("assistant", run)] if run else messages


def to_openai_responses(messages: Iterable[ChatMessage]) -> list[Fields]:
    """The messages as input items. What memory inserted into a message is an item of its own, beside those of the message.

    Reasoning is left out, except where it came in as an item.
    """
    return [item for message in messages for item, _ in dump_marked(message)]


def dump_marked(message: ChatMessage) -> list[tuple[Fields, bool]]:
    """The message's items, each with whether it is a section that memory inserted."""
    inserted = [block for block in message.blocks if block.origin]
    own = [block for block in message.blocks if not block.origin]
    if not own:
        # What users and models said, in messages that a block brought back, is nothing that only memory can have written.
        is_section = bool(inserted) and message.role in ("system", "developer")
        return [(item, is_section) for item in _dump(message, message.blocks)]
    items = [(item, False) for item in _dump(message, own)]
    sections = [(item, True) for item in _dump_plain(message.role, inserted, None)] if inserted else []
    return [*sections, *items] if message.role == "user" else [*items, *sections]


def call_id_of(item: _Item) -> str | None:
    """The id of the call that an item makes or answers; None when it does neither, or does not say which."""
    kind = item.get("type")
    if kind == "mcp_approval_request":
        return checked_id(item.get("id"))
    if kind == "mcp_approval_response":
        return checked_id(item.get("approval_request_id"))
    if kind not in _CALLS and kind not in _OUTPUTS:
        return None
    call_id = item.get("call_id")
    return checked_id(item.get("id") if call_id is None and kind == "local_shell_call_output" else call_id)


def is_output(item: _Item) -> bool:
    """Whether the item answers a call."""
    return item.get("type") in _OUTPUTS and call_id_of(item) is not None


# -- in ------------------------------------------------------------------------------------------------------


def _belongs(taken: TakenApart, run: list[TakenApart]) -> bool:
    """Whether an item may be of the same response as those before it."""
    if run[-1].whole.get("role") and (taken.whole.get("role") or taken.whole.get("type") == "reasoning"):
        return False  # what was said ends a response, unless a call follows
    return taken.call_id is None or all(taken.call_id != other.call_id for other in run)


def _message(role: Role, run: list[TakenApart]) -> ChatMessage:
    blocks = [block for taken in run for block in taken.blocks]
    try:
        bare = ChatMessage(role=role, blocks=blocks)
        if _dump_plain(role, blocks, None) == [taken.whole for taken in run]:
            return bare
        return bare.model_copy(update={"metadata": {KEPT: {"items": [taken.entry for taken in run]}}})
    except ValidationError as error:
        raise invalid_message(error) from error


def _read(item: Fields) -> tuple[Role, TakenApart]:
    kind, role = item.get("type"), item.get("role")
    taken = TakenApart(item)
    if role in _ROLES and kind in (None, "message") and isinstance(item.get("content"), str | list):
        _read_content(taken, item["content"])
        return cast(Role, role), taken
    call_id = call_id_of(item)
    if kind in _COMPACTED:
        taken.take_unknown()
        return "developer", taken
    if kind == "reasoning":
        _read_reasoning(taken)
    elif call_id is None:
        taken.take_unknown(images=[("result",)] if kind == "image_generation_call" else [])
    elif kind in _CALLS:
        taken.call_id = call_id
        _read_call(taken, call_id)
    else:
        _read_output(taken, call_id)
        return "tool", taken
    return "assistant", taken


def _read_content(taken: TakenApart, content: str | list[Any]) -> None:
    if isinstance(content, str):
        taken.take(TextBlock(text=content), "text", ("content",))
        return
    for index, part in enumerate(content):
        _read_part(taken, part, ("content", index))


def _read_part(taken: TakenApart, part: object, path: Path) -> None:
    source = mapping(part)
    kind = source.get("type")
    if kind in ("input_text", "output_text", "text") and isinstance(source.get("text"), str):
        taken.take(TextBlock(text=source["text"]), "text", (*path, "text"))
    elif kind == "refusal" and isinstance(source.get("refusal"), str):
        taken.take(TextBlock(text=source["refusal"]), "text", (*path, "refusal"))
    elif kind not in _MEDIA_PARTS or not _read_media(taken, source, path):
        taken.take_unknown(path)


def _read_media(taken: TakenApart, part: _Item, path: Path) -> bool:
    """Take the source of an image, a file or a sound; False when it has none that we know."""
    sound = mapping(part.get("input_audio")).get("data")
    if part["type"] == "input_audio" and is_base64(sound):
        taken.take(AudioBlock(data=cast(str, sound)), "data", (*path, "input_audio", "data"))
        return True
    for key in ("image_url", "file_data", "file_url"):
        if isinstance(value := part.get(key), str):
            if key == "file_data" and is_base64(value):
                taken.take(DocumentBlock(data=value), "data", (*path, key))
            else:
                taken.take_uri(value, (*path, key), ImageBlock if part["type"] == "input_image" else DocumentBlock)
            return True
    if checked_id(part.get("file_id")):
        taken.take(DocumentBlock(file_id=part["file_id"]), "file_id", (*path, "file_id"))
        return True
    return False


def _read_reasoning(taken: TakenApart) -> None:
    for key in ("summary", "content"):
        parts = taken.whole.get(key)
        for index, part in enumerate(parts if isinstance(parts, list) else ()):
            if isinstance(text := mapping(part).get("text"), str):
                taken.take(ThinkingBlock(text=text), "text", (key, index, "text"))
    if isinstance(secret := taken.whole.get("encrypted_content"), str):
        taken.take(ThinkingBlock(text="", signature=secret), "signature", ("encrypted_content",))


def _read_call(taken: TakenApart, call_id: str) -> None:
    item = taken.whole
    key = {"function_call": "arguments", "custom_tool_call": "input"}.get(item["type"])
    name = checked_id(item.get("name")) or item["type"]
    if key and isinstance(text := item.get(key), str):
        taken.take(ToolCallBlock(id=call_id, name=name, arguments=text), "text", (key,))
    else:
        taken.take(ToolCallBlock(id=call_id, name=name, arguments=as_text(item)), "json")


def _read_output(taken: TakenApart, call_id: str) -> None:
    output = taken.whole.get("output")
    if isinstance(output, str):
        taken.take(ToolResultBlock(tool_call_id=call_id, content=output), "text", ("output",))
        return
    first = mapping(output[0]) if isinstance(output, list) and output else {}
    if first.get("type") not in ("input_text", *_MEDIA_PARTS):
        taken.take(ToolResultBlock(tool_call_id=call_id, content=""))
        taken.take_unknown()
        return
    start = int(isinstance(first.get("text"), str))
    if start:
        taken.take(ToolResultBlock(tool_call_id=call_id, content=first["text"]), "text", ("output", 0, "text"))
    else:
        taken.take(ToolResultBlock(tool_call_id=call_id, content=""))
    for index, part in enumerate(cast(list[Any], output)[start:], start=start):
        _read_part(taken, part, ("output", index))


# -- out -----------------------------------------------------------------------------------------------------


def _dump(message: ChatMessage, blocks: Sequence[AnyBlock]) -> list[Fields]:
    kept = put_together(mapping(message.metadata.get(KEPT)).get("items"), blocks)
    if kept is None:
        return _dump_plain(message.role, blocks, message.tool_call_id)
    items: list[Fields] = []
    for item in kept:
        if item is not None:
            items.append(item)
        else:
            # The copy lost this call; reasoning right before it would be refused without it.
            while items and items[-1].get("type") == "reasoning":
                items.pop()
    return items


def _dump_plain(role: str, blocks: Sequence[AnyBlock], tool_call_id: str | None) -> list[Fields]:
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


def _dump_outputs(blocks: Sequence[AnyBlock], parts: list[Fields], tool_call_id: str | None) -> list[Fields]:
    items: list[Fields] = [
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


def _dump_call(block: ToolCallBlock) -> Fields:
    arguments = block.arguments if isinstance(block.arguments, str) else as_text(block.arguments)
    return {"type": "function_call", "call_id": block.id, "name": block.name, "arguments": arguments}


def _dump_part(block: AnyBlock) -> Fields | None:
    if isinstance(block, TextBlock):
        return {"type": "input_text", "text": block.text}
    if isinstance(block, ImageBlock):
        return {"type": "input_image", "image_url": _uri(block, "image/png"), "detail": block.detail or "auto"}
    if isinstance(block, AudioBlock) and block.data is not None:
        return {"type": "input_audio", "input_audio": {"data": block.data, "format": _audio_format(block)}}
    return _dump_file(block) if isinstance(block, DocumentBlock | AudioBlock | VideoBlock) else None


def _dump_file(block: DocumentBlock | AudioBlock | VideoBlock) -> Fields:
    if block.url is not None:
        return {"type": "input_file", "file_url": block.url}
    if isinstance(block, DocumentBlock) and block.file_id is not None:
        return {"type": "input_file", "file_id": block.file_id}
    name = block.title if isinstance(block, DocumentBlock) else None
    return {"type": "input_file", "file_data": _uri(block, "application/octet-stream"), "filename": name or block.type}
