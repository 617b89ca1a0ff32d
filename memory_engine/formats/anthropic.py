"""Messages of Anthropic's API, in and out.

Out, the conversation follows the API's rules: what system and developer messages say stands apart, as text blocks; messages of
one role in a row are one message; results stand first in theirs; empty texts are left out; images and documents are base64,
url or file sources. A conversation has to begin with a user message, as what `Memory.get` returns does.

In, a message becomes one of ours, save that each tool result becomes a message of role `tool`. What a `ChatMessage` has no
field for is kept in `metadata["anthropic"]`: the fields of a response (`model`, `usage`, …), which are not sent back, and what
is left of content blocks without the texts, media and calls that are in our blocks, under `"content"`. Blocks of unknown types
(server tools, search results, those of the future) are kept whole and are counted.

Reasoning goes out when it has a signature; without one Anthropic refuses it. Sound and video, and files that are no PDF and
no text, are named in brackets, because there is no block for them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

from pydantic import ValidationError

from memory_engine.content import AnyBlock
from memory_engine.errors import InvalidMessageError
from memory_engine.formats.kept import (
    Fields,
    Path,
    TakenApart,
    as_object,
    checked_id,
    is_base64,
    mapping,
    put_together,
    split_uri,
    thaw,
)
from memory_engine.messages import (
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    MediaBlock,
    Role,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    invalid_message,
)

__all__ = ["AnthropicRequest", "CachePoint", "from_anthropic", "to_anthropic"]

CachePoint = Literal["instructions", "system", "history", "request"]

_KEY = "anthropic"
_POINTS: tuple[CachePoint, ...] = ("instructions", "system", "history", "request")
_MARKS = 4
"""The API refuses more cache marks in one request."""
_IMAGES = {"/9j/": "image/jpeg", "iVBORw": "image/png", "R0lGOD": "image/gif", "UklGR": "image/webp"}
"""How the base64 text of an image of each kind begins."""


class AnthropicRequest(NamedTuple):
    """What `client.messages.create(system=…, messages=…)` takes."""

    system: list[dict[str, Any]]
    """Text blocks; may be empty."""
    messages: list[dict[str, Any]]


def to_anthropic(
    messages: Iterable[ChatMessage],
    *,
    cache: bool | Collection[CachePoint] = False,
    cache_ttl: Literal["5m", "1h"] | None = None,
) -> AnthropicRequest:
    """The messages as the arguments `system` and `messages` of a request.

    `cache` sets marks (`cache_control`) where a prefix ends that the next request will begin with. True stands for the
    first three; give a collection of names for others, at most all four:

    - `"instructions"`: the end of the system blocks before the first one that memory inserted.
    - `"system"`: the end of all system blocks. What memory inserts there may change from turn to turn, and what follows
      is then not read from the cache: with `insert_method="split"` only sections that do not depend on the query are there.
    - `"history"`: the last block before the newest user message.
    - `"request"`: the last block of all, for an agent that takes several steps on one request.

    With `cache`, marks that came in with messages are left out; without, the newest four of them are kept. `cache_ttl` is
    how long entries live, None for the API's own choice.

    :raises InvalidMessageError: `cache` names a point that does not exist.
    """
    points = _points(cache)
    everything = list(messages)
    system = [pair for message in everything if message.role in ("system", "developer") for pair in _system_blocks(message)]
    talk = [message for message in everything if message.role not in ("system", "developer")]
    newest = max((at for at, message in enumerate(talk) if message.role == "user"), default=0)
    before, after = ([pair for m in part for pair in _role_and_blocks(m)] for part in (talk[:newest], talk[newest:]))
    instructions = [block for block, inserted in system]
    stable = next((at for at, (_, inserted) in enumerate(system) if inserted), len(system))
    parts: dict[CachePoint, list[Fields]] = {
        "instructions": instructions[:stable],
        "system": instructions,
        "history": [block for _, blocks, _ in before for block in blocks],
        "request": [block for _, blocks, _ in (*before, *after) for block in blocks],
    }
    if points:
        for block in (*instructions, *parts["request"]):
            block.pop("cache_control", None)
        mark = {"type": "ephemeral"} | ({"ttl": cache_ttl} if cache_ttl else {})
        for point in points:
            _mark(parts[point], mark)
    else:
        marked = [block for block in (*instructions, *parts["request"]) if block.get("cache_control") is not None]
        for block in marked[:-_MARKS]:
            del block["cache_control"]
    return AnthropicRequest(instructions, _merged([*before, *after]))


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


# -- in ------------------------------------------------------------------------------------------------------


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
    if _dump_plain(role, blocks) != [taken.whole for taken in run]:
        kept["content"] = [taken.entry for taken in run]
    if is_list and role != "tool" and len(run) == 1 and run[0].whole.get("type") == "text":
        kept["as_list"] = True
    fields: Fields = {"role": role, "blocks": blocks, "metadata": {_KEY: kept} if kept else {}}
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


# -- out -----------------------------------------------------------------------------------------------------


def _system_blocks(message: ChatMessage) -> list[tuple[Fields, bool]]:
    """The text blocks of a system message, each with whether memory inserted it."""
    own = [block for block in message.blocks if block.origin is None]
    inserted = [block for block in message.blocks if block.origin]
    pairs = [(block, False) for block in _dump(message, own)] + [(block, True) for block in _dump_plain(message.role, inserted)]
    return [(block, mark) for block, mark in pairs if block.get("type") == "text" and not _is_empty(block)]


def _role_and_blocks(message: ChatMessage) -> list[tuple[str, list[Fields], bool]]:
    """The message's role and blocks, and whether its content is a list even of a single text; nothing if it is empty."""
    inserted = [block for block in message.blocks if block.origin]
    own = [block for block in message.blocks if block.origin is None]
    if not own:
        inserted, own = [], inserted
    blocks = [*_dump_plain(message.role, inserted), *_dump(message, own)]
    blocks = [_without_empty(block) for block in blocks if not _is_empty(block)]
    as_list = bool(mapping(message.metadata.get(_KEY)).get("as_list"))
    return [("assistant" if message.role == "assistant" else "user", blocks, as_list)] if blocks else []


def _dump(message: ChatMessage, blocks: Sequence[AnyBlock]) -> list[Fields]:
    kept = put_together(mapping(message.metadata.get(_KEY)).get("content"), blocks)
    if kept is not None:
        return [_with_valid_ids(block) for block in kept if block is not None]
    if message.tool_call_id is not None:
        result = ToolResultBlock(tool_call_id=message.tool_call_id, content="")
        texts = [block for block in blocks if isinstance(block, TextBlock)]
        if len(texts) == len(blocks) == 1:
            return _dump_plain("tool", [result.model_copy(update={"content": texts[0].text})])
        return _dump_plain("tool", [result, *blocks])
    return _dump_plain(message.role, blocks)


def _dump_plain(role: str, blocks: Sequence[AnyBlock]) -> list[Fields]:
    """Content blocks for blocks of ours that need nothing that was kept."""
    if role != "tool":
        return [dumped for block in blocks for dumped in _dump_block(block, role)]
    results = [_dump_result(block) for block in blocks if isinstance(block, ToolResultBlock)]
    parts = [part for block in blocks for part in _dump_block(block, role) if not _is_empty(part)]
    if results and parts:
        text = results[-1].get("content")
        results[-1]["content"] = [*([{"type": "text", "text": text}] if text else []), *parts]
    return results


def _dump_block(block: AnyBlock, role: str) -> list[Fields]:
    if isinstance(block, TextBlock):
        return [{"type": "text", "text": block.text}]
    if isinstance(block, ToolCallBlock):
        return [{"type": "tool_use", "id": _valid_id(block.id), "name": block.name, "input": _input_of(block)}]
    if isinstance(block, ThinkingBlock):
        return [_dump_thinking(block, block.signature)] if block.signature and role == "assistant" else []
    if isinstance(block, ToolResultBlock) or role == "assistant":
        return []  # results are dumped by themselves; what the assistant said has no place for media
    return [_dump_media(block)]


def _dump_thinking(block: ThinkingBlock, signature: str) -> Fields:
    if block.redacted:
        return {"type": "redacted_thinking", "data": signature}
    return {"type": "thinking", "thinking": block.text, "signature": signature}


def _dump_result(block: ToolResultBlock) -> Fields:
    result: Fields = {"type": "tool_result", "tool_use_id": _valid_id(block.tool_call_id)}
    if block.content or block.is_error:
        result["content"] = block.content or "(no message)"  # an error without a text is refused
    return result | ({"is_error": True} if block.is_error else {})


def _dump_media(block: MediaBlock) -> Fields:
    url, data, mime_type = block.url, block.data, block.mime_type
    if url is not None and (uri := split_uri(url))[1] is not None:
        url, (mime_type, data) = None, uri
    source: Fields | None = None
    if isinstance(block, ImageBlock | DocumentBlock) and url is not None:
        source = {"type": "url", "url": url}
    elif isinstance(block, ImageBlock) and data is not None:
        begins = next((kind for begin, kind in _IMAGES.items() if data.startswith(begin)), "image/png")
        known = mime_type if mime_type in _IMAGES.values() else begins
        source = {"type": "base64", "media_type": known, "data": data}
    elif isinstance(block, DocumentBlock):
        source = _document_source(block.file_id, data, mime_type)
    if source is None:
        return {"type": "text", "text": f"[{getattr(block, 'title', None) or block.type}]"}
    title = {"title": block.title} if isinstance(block, DocumentBlock) and block.title else {}
    return {"type": "image" if isinstance(block, ImageBlock) else "document", "source": source, **title}


def _document_source(file_id: str | None, data: str | None, mime_type: str | None) -> Fields | None:
    if data is None:
        return {"type": "file", "file_id": file_id}
    if mime_type == "application/pdf" or data.startswith("JVBERi"):
        return {"type": "base64", "media_type": "application/pdf", "data": data}
    if mime_type is not None and mime_type.startswith("text/"):
        try:
            return {"type": "text", "media_type": "text/plain", "data": base64.b64decode(data).decode()}
        except (binascii.Error, UnicodeDecodeError):
            return None
    return None


def _input_of(call: ToolCallBlock) -> Fields:
    """The arguments as the object that the API wants; text that is none is handed over under a name of its own."""
    if isinstance(call.arguments, str):
        try:
            value = json.loads(call.arguments or "{}")
        except ValueError:
            value = None
        return value if isinstance(value, dict) else {"arguments": call.arguments}
    return cast(Fields, thaw(call.arguments))


def _with_valid_ids(block: Fields) -> Fields:
    kind = {"tool_use": "id", "tool_result": "tool_use_id"}.get(str(block.get("type")))
    return block if kind is None else {**block, kind: _valid_id(str(block[kind]))}


def _valid_id(call_id: str) -> str:
    """The id, or one made of it when it has characters that the API does not take; the same for a call and its result."""
    if re.fullmatch(r"[a-zA-Z0-9_-]+", call_id):
        return call_id
    return f"call_{hashlib.sha256(call_id.encode()).hexdigest()[:24]}"


def _is_empty(block: Fields) -> bool:
    return block.get("type") == "text" and not str(block.get("text", "")).strip()


def _without_empty(block: Fields) -> Fields:
    """A tool result without empty texts inside."""
    content = block.get("content")
    if block.get("type") != "tool_result" or not isinstance(content, list):
        return block
    parts = [part for part in content if not (isinstance(part, dict) and _is_empty(part))]
    return {**block, "content": parts}


def _merged(pairs: Sequence[tuple[str, list[Fields], bool]]) -> list[Fields]:
    """One message for all blocks of one role in a row, results first."""
    merged: list[Fields] = []
    for role, blocks, as_list in pairs:
        if merged and merged[-1]["role"] == role:
            before = merged[-1]["content"]
            merged[-1]["content"] = [*_as_blocks(before), *blocks]
        elif not as_list and len(blocks) == 1 and blocks[0].keys() == {"type", "text"} and blocks[0]["type"] == "text":
            merged.append({"role": role, "content": blocks[0]["text"]})
        else:
            merged.append({"role": role, "content": blocks})
    for message in merged:
        if message["role"] == "user" and isinstance(message["content"], list):
            message["content"].sort(key=lambda block: block.get("type") != "tool_result")
    return merged


def _as_blocks(content: str | list[Fields]) -> list[Fields]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _points(cache: bool | Collection[CachePoint]) -> Sequence[CachePoint]:
    if isinstance(cache, bool):
        return _POINTS[:3] if cache else ()
    unknown = sorted({str(point) for point in ([cache] if isinstance(cache, str) else cache)} - set(_POINTS))
    if unknown or isinstance(cache, str):
        raise InvalidMessageError(f"cache is True, False or a collection of {', '.join(_POINTS)}; not {unknown or cache!r}.")
    return [point for point in _POINTS if point in cache]


def _mark(blocks: Sequence[Fields], mark: Fields) -> None:
    """Mark the last block that can bear it: reasoning cannot."""
    for block in reversed(blocks):
        if block.get("type") not in ("thinking", "redacted_thinking"):
            block["cache_control"] = dict(mark)
            return
