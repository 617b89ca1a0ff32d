"""Content blocks of LlamaIndex, in and out. An `Entry` keeps, for each of theirs, what our blocks cannot say:

- `extra`: fields of theirs that ours has not; - `kept`: the whole block, which shows nothing; - `shown`: the whole block, of
which ours shows the JSON; - `outer` and `nested`: a block with others in it; - `call`: a tool call of this id.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from io import IOBase
from pathlib import Path
from typing import Any, TypeGuard, cast

from llama_index.core.base.llms import types as theirs
from pydantic import AnyUrl

from memory_engine.content import (
    MAX_ID_LENGTH,
    AnyBlock,
    AudioBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    VideoBlock,
)

Entry = Mapping[str, Any]
_MIME_TYPE = re.compile(r"[!-+\--~]{1,255}")
_MEDIA: dict[Any, tuple[type[Any], str, str, dict[str, str]]] = {
    theirs.ImageBlock: (ImageBlock, "image", "image_mimetype", {"detail": "detail"}),
    theirs.AudioBlock: (AudioBlock, "audio", "", {"format": "format"}),
    theirs.VideoBlock: (VideoBlock, "video", "video_mimetype", {}),
    theirs.DocumentBlock: (DocumentBlock, "data", "document_mimetype", {"title": "title"}),
}
"""For each of their blocks with media: ours, their fields for the bytes and for the type, and other fields to ours."""
_BY_OURS = {ours: (kind, payload, mime, names) for kind, (ours, payload, mime, names) in _MEDIA.items()}
_OTHERS: dict[str, Any] = {
    kind.model_fields["block_type"].default: kind
    for kind in (theirs.CachePoint, theirs.CitableBlock, theirs.CitationBlock, theirs.ToolCallBlock, *_MEDIA)
}


def is_id(value: object) -> TypeGuard[str]:
    """Whether we can keep it where an id or a name belongs."""
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_LENGTH and "\0" not in value


# -- in ------------------------------------------------------------------------------------------------------


def read_block(block: Any, blocks: list[Any]) -> Entry:
    """Append ours for theirs; returns what it does not say."""
    if isinstance(block, theirs.TextBlock):
        blocks.append(TextBlock(text=block.text))
        return {}
    if isinstance(block, theirs.ThinkingBlock):
        return _read_thinking(block, blocks)
    if isinstance(block, theirs.CitableBlock | theirs.CitationBlock):
        return _read_nested(block, blocks)
    if type(block) in _MEDIA:
        return _read_media(block, blocks)
    dumped = dump(block)
    if isinstance(block, theirs.CachePoint):
        return {"kept": dumped}
    # A call that nobody made: text, for there must be no result.
    blocks.append(TextBlock(text=json.dumps(dumped, ensure_ascii=False, sort_keys=True)))
    return {"shown": dumped}


def dump(block: Any, **options: Any) -> dict[str, Any]:
    """The JSON of a message or block of theirs; ValueError for numbers that JSON has not, which pydantic makes None of."""
    _check_numbers(block.__dict__)
    return cast("dict[str, Any]", block.model_dump(mode="json", **options))


def _check_numbers(value: Any) -> None:
    if isinstance(value, float) and value - value != 0:
        raise ValueError(f"{value} is no number that JSON has; use None or text")
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            _check_numbers(item)


def _read_thinking(block: theirs.ThinkingBlock, blocks: list[Any]) -> Entry:
    extra = {key: value for key, value in dump(block, exclude={"block_type", "content"}).items() if value}
    if block.num_tokens is not None:
        extra["num_tokens"] = block.num_tokens
    if block.content is None:
        extra["content"] = None
    information = dict(extra.pop("additional_information", {}))
    # Kept once, where ours has it.
    signature = information.pop("signature") if isinstance(information.get("signature"), str) else None
    if information:
        extra["additional_information"] = information
    blocks.append(ThinkingBlock(text=block.content or "", signature=signature))
    return {"extra": extra} if extra else {}


def _read_nested(block: theirs.CitableBlock | theirs.CitationBlock, blocks: list[Any]) -> Entry:
    inner = block.nested_blocks_field_name()
    entries = [read_block(one, blocks) for one in block.nested_blocks]
    return {"outer": dump(block, exclude={inner}), "nested": entries}


def _read_media(block: Any, blocks: list[Any]) -> Entry:
    ours, payload, mime_field, names = _MEDIA[type(block)]
    extra = {key: value for key, value in dump(block, exclude={payload, "block_type"}).items() if value is not None}
    if isinstance(block.path, str):
        extra["path_is_text"] = True
    data = _base64(getattr(block, payload))
    fields: dict[str, Any] = {}
    if data is not None:
        fields["data"] = data
    elif block.url is not None:
        fields["url"] = extra.pop("url")
    elif block.path is not None:
        fields["url"] = Path(block.path).absolute().as_uri()
        extra["by_path"] = True
    else:
        return {"kept": {"block_type": block.block_type, **extra}}
    mime_type = extra.get(mime_field)
    if isinstance(mime_type, str) and _MIME_TYPE.fullmatch(mime_type):
        fields["mime_type"] = mime_type
    fields |= {mine: extra[key] for key, mine in names.items() if is_id(extra.get(key))}
    blocks.append(ours(**fields))
    return {"extra": extra}


def _base64(value: Any) -> str | None:
    """Base64 text for bytes, which their blocks encode themselves when they are constructed, or for an open file."""
    if value is None:
        return None
    if isinstance(value, IOBase):
        value.seek(0)
        value = value.read()
    try:
        base64.b64decode(value, validate=True)
    except binascii.Error:
        value = base64.b64encode(value)
    return cast(bytes, value).decode("ascii")


# -- out -----------------------------------------------------------------------------------------------------


def write_block(block: AnyBlock, entry: Entry) -> Any:
    """Their block for ours, with what its entry keeps; without one what is closest."""
    extra = entry.get("extra")
    if isinstance(block, TextBlock):
        return theirs.TextBlock.model_construct(text=block.text)
    if isinstance(block, ToolCallBlock):
        arguments = thaw(block.arguments)
        values = {"tool_call_id": block.id, "tool_name": block.name, "tool_kwargs": arguments}
        return theirs.ToolCallBlock.model_construct(**values | thaw(extra or {}))
    if isinstance(block, ThinkingBlock):
        return _write_thinking(block, extra)
    if isinstance(block, ToolResultBlock):  # of a role that has none in their messages
        return theirs.TextBlock.model_construct(text=block.content)
    if isinstance(block, DocumentBlock) and block.file_id is not None:
        return theirs.TextBlock.model_construct(text=f"[file {block.title or block.file_id}]")
    return _write_media(block, extra)


def _write_thinking(block: ThinkingBlock, extra: Entry | None) -> Any:
    values: dict[str, Any] = {"content": block.text, "num_tokens": None, "additional_information": {}} | thaw(extra or {})
    if block.signature is not None:
        values["additional_information"]["signature"] = block.signature
    if block.redacted:
        values["additional_information"]["redacted"] = True
    return theirs.ThinkingBlock.model_construct(**values)


def _write_media(block: Any, extra: Entry | None) -> Any:
    kind, payload, mime_field, names = _BY_OURS[type(block)]
    if extra is None:
        extra = {key: getattr(block, mine) for key, mine in names.items()}
        if mime_field:
            extra[mime_field] = block.mime_type
        elif extra["format"] is None and block.mime_type is not None:
            extra["format"] = block.mime_type.rpartition("/")[2]
        if kind is theirs.DocumentBlock:
            extra["title"] = extra["title"] or "input_document"
    values = dict(extra)
    by_path = values.pop("by_path", False)
    if block.data is not None:
        values[payload] = block.data.encode("ascii")
    elif not by_path:
        values["url"] = block.url
    return _constructed(kind, values)


def _constructed(kind: Any, values: dict[str, Any]) -> Any:
    path_is_text = values.pop("path_is_text", False)
    if values.get("path") is not None and not path_is_text:
        values["path"] = Path(values["path"])
    if values.get("url") is not None and kind is not theirs.DocumentBlock:
        values["url"] = AnyUrl(values["url"])
    return kind.model_construct(**values)


def write_kept(dumped: Entry, nested: list[Any] | None = None) -> Any:
    """Their block from what was kept of it, with these blocks in it."""
    values = thaw(dumped)
    kind = _OTHERS[values.pop("block_type")]
    if kind in _MEDIA:
        return _constructed(kind, values)
    if nested is not None:
        inner = kind.nested_blocks_field_name()
        if kind is theirs.CitationBlock:
            # Holds exactly one.
            values[inner] = nested[0] if nested else theirs.TextBlock(text="")
        else:
            values[inner] = nested
        return kind.model_construct(**values)
    return kind.model_validate(values)


def thaw(value: Any) -> Any:
    """A changeable copy: what goes out belongs to the caller."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    return [thaw(item) for item in value] if isinstance(value, list) else value
