"""Messages of Anthropic's API become ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from pydantic import ValidationError

from memory_engine.errors import InvalidMessageError
from memory_engine.formats.anthropic.blocks import KEY, dump_plain
from memory_engine.formats.kept import Fields, Path, TakenApart, as_object, checked_id, is_base64, mapping, split_uri, thaw
from memory_engine.messages import (
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    Role,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    invalid_message,
)


def from_anthropic(messages: object, *, system: str | Sequence[object] | None = None) -> list[ChatMessage]:
    """The messages for one message (a dict, or the SDK's response) or several; with `system` a system message before them.

    The id of a response becomes the message's, so that putting it twice stores it once.

    :raises InvalidMessageError: one of them is not a message we know.
    """
    given = messages if isinstance(messages, Iterable) and not isinstance(messages, Mapping | str) else [messages]
    if hasattr(messages, "model_dump"):
        given = [messages]
    read = [] if system is None else list(_read({"role": "system", "content": thaw(system)}))
    return read + [message for value in given for message in _read(_as_message(value))]


def _as_message(value: object) -> Fields:
    content = value.get("content") if isinstance(value, Mapping) else None
    if isinstance(content, list | tuple):
        # The content of a response, in a dict of the caller's.
        parts = [as_object(part, "A content block of Anthropic's API", leave_out_none=True) for part in content]
        value = {**cast(Fields, value), "content": parts}
    # A response has None in fields that a request may not have at all.
    source = as_object(value, "A message of Anthropic's API", leave_out_none=True)
    if source.get("role") not in ("user", "assistant", "system"):
        raise InvalidMessageError(f"The role of a message is user, assistant or system, not {source.get('role')!r:.80}.")
    return source


def _read(source: Fields) -> Iterator[ChatMessage]:
    role, content = cast(Role, source["role"]), source.get("content")
    extras = {key: value for key, value in source.items() if key not in ("role", "content", "id")}
    if isinstance(content, str):
        yield _message(role, [_of_text(content)], extras, source.get("id"), is_list=False)
        return
    if not isinstance(content, list | tuple):
        raise InvalidMessageError(f"'content' must be text or a list of blocks, not {type(content).__name__}.")
    run: list[TakenApart] = []
    for part in content:
        block = as_object(part, "A content block of Anthropic's API")
        call_id = checked_id(block.get("tool_use_id")) if role == "user" and block.get("type") == "tool_result" else None
        if call_id is None:
            run.append(_read_block(block, role))
            continue
        if run:
            yield _message(role, run, extras, None)
            run = []
        yield _message("tool", [_read_result(block, call_id)], extras, None)
    if run or not content:
        yield _message(role, run, extras, source.get("id"))


def _message(role: Role, run: list[TakenApart], extras: Fields, id_: object, *, is_list: bool = True) -> ChatMessage:
    blocks = [block for taken in run for block in taken.blocks]
    kept = dict(extras)
    if dump_plain(role, blocks) != [taken.whole for taken in run]:
        kept["content"] = [taken.entry for taken in run]
    if is_list and role != "tool" and len(run) == 1 and run[0].whole.get("type") == "text":
        kept["as_list"] = True
    fields: Fields = {"role": role, "blocks": blocks, "metadata": {KEY: kept} if kept else {}}
    try:
        return ChatMessage.model_validate(fields | ({} if id_ is None else {"id": id_}))
    except ValidationError as error:
        raise invalid_message(error) from error


def _of_text(text: str) -> TakenApart:
    taken = TakenApart({"type": "text", "text": text})
    taken.take(TextBlock(text=text), "text", ("text",))
    return taken


def _read_block(block: Fields, role: Role) -> TakenApart:
    taken = TakenApart(block)
    kind = block.get("type")
    call_id, name = checked_id(block.get("id")), checked_id(block.get("name"))
    if kind == "tool_use" and role == "assistant" and call_id and name and isinstance(block.get("input"), dict):
        taken.call_id = call_id
        taken.take(ToolCallBlock(id=call_id, name=name, arguments=block["input"]), "json", ("input",))
    elif kind == "thinking" and isinstance(block.get("thinking"), str) and isinstance(block.get("signature"), str):
        taken.take(ThinkingBlock(text=block["thinking"], signature=block["signature"]), "text", ("thinking",))
    elif kind == "redacted_thinking" and isinstance(block.get("data"), str):
        taken.take(ThinkingBlock(text="", signature=block["data"], redacted=True), "signature", ("data",))
    else:
        _read_part(taken, block, ())
    return taken


def _read_result(block: Fields, call_id: str) -> TakenApart:
    taken = TakenApart(block)
    content = block.get("content")
    is_error = block.get("is_error") is True
    parts = content if isinstance(content, list) else []
    first = mapping(parts[0]) if parts else {}
    if isinstance(content, str):
        taken.take(ToolResultBlock(tool_call_id=call_id, content=content, is_error=is_error), "text", ("content",))
    elif first.get("type") == "text" and isinstance(first.get("text"), str):
        result = ToolResultBlock(tool_call_id=call_id, content=first["text"], is_error=is_error)
        taken.take(result, "text", ("content", 0, "text"))
        parts = [None, *parts[1:]]
    else:
        taken.take(ToolResultBlock(tool_call_id=call_id, content="", is_error=is_error))
    for index, part in enumerate(parts):
        if part is not None:
            _read_part(taken, part, ("content", index))
    return taken


def _read_part(taken: TakenApart, part: object, path: Path) -> None:
    block = mapping(part)
    kind, source = block.get("type"), mapping(block.get("source"))
    if kind == "text" and isinstance(block.get("text"), str):
        taken.take(TextBlock(text=block["text"]), "text", (*path, "text"))
    elif kind not in ("image", "document") or not _read_source(taken, block, source, (*path, "source")):
        taken.take_unknown(path)


def _read_source(taken: TakenApart, part: Mapping[str, Any], source: Mapping[str, Any], path: Path) -> bool:
    """Take an image or a document from its source; False when that is none we know."""
    kind = ImageBlock if part["type"] == "image" else DocumentBlock
    mime_type = source.get("media_type")
    if source.get("type") == "base64" and is_base64(source.get("data")) and isinstance(mime_type, str):
        known = mime_type if split_uri(f"data:{mime_type};base64,")[0] else None
        taken.take(kind(data=source["data"], mime_type=known), "data", (*path, "data"))
    elif source.get("type") == "url" and isinstance(source.get("url"), str):
        taken.take(kind(url=source["url"]), "url", (*path, "url"))
    elif source.get("type") == "text" and isinstance(source.get("data"), str):
        taken.take(TextBlock(text=source["data"]), "text", (*path, "data"))
    elif source.get("type") == "file" and checked_id(source.get("file_id")):
        taken.take(DocumentBlock(file_id=source["file_id"]), "file_id", (*path, "file_id"))
    else:
        return False
    return True
