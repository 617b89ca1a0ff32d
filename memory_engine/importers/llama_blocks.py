"""The content blocks that LlamaIndex dumped, as ours with an entry for what ours cannot say: pure, on JSON alone.

The entries are those of `memory_engine.integrations.llama_index`, which needs LlamaIndex and gives the blocks back.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any, Literal

from pydantic import AnyUrl, BaseModel, ConfigDict, Field, ValidationError, field_validator

from memory_engine.content import AnyBlock, AudioBlock, DocumentBlock, ImageBlock, TextBlock, ThinkingBlock, VideoBlock
from memory_engine.formats.kept import checked_id
from memory_engine.messages import invalid_message

Entry = dict[str, Any]

_MIME_TYPE = re.compile(r"[!-+\--~]{1,255}")


class Dumped(BaseModel):
    """What LlamaIndex takes for a block; anything else it could not give back. Fields that it does not know, it drops."""

    model_config = ConfigDict(hide_input_in_errors=True)

    @field_validator("url", check_fields=False)
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        return url if url is None or cls is _Document else str(AnyUrl(url))

    @field_validator("image", "audio", "video", "data", check_fields=False)
    @classmethod
    def _check_data(cls, data: str | None) -> str | None:
        if not data:
            return data
        try:
            return base64.b64encode(base64.b64decode(data, validate=True)).decode("ascii")
        except (binascii.Error, ValueError):
            return base64.b64encode(data.encode()).decode("ascii")


class _Text(Dumped):
    block_type: Literal["text"]
    text: str


class _Thinking(Dumped):
    block_type: Literal["thinking"]
    content: str | None = None
    num_tokens: int | None = None
    additional_information: dict[str, Any] = Field(default_factory=dict)


class Call(Dumped):
    """A tool call."""

    block_type: Literal["tool_call"]
    tool_call_id: str | None = None
    tool_name: str
    tool_kwargs: dict[str, Any] | str = Field(default_factory=dict)


class _CacheControl(Dumped):
    type: str
    ttl: str = "5m"


class _Cache(Dumped):
    block_type: Literal["cache"]
    cache_control: _CacheControl


class _Image(Dumped):
    block_type: Literal["image"]
    image: str | None = None
    path: str | None = None
    url: str | None = None
    image_mimetype: str | None = None
    detail: str | None = None


class _Audio(Dumped):
    block_type: Literal["audio"]
    audio: str | None = None
    path: str | None = None
    url: str | None = None
    format: str | None = None


class _Video(Dumped):
    block_type: Literal["video"]
    video: str | None = None
    path: str | None = None
    url: str | None = None
    video_mimetype: str | None = None
    detail: str | None = None
    fps: int | None = None


class _Document(Dumped):
    block_type: Literal["document"]
    data: str | None = None
    path: str | None = None
    url: str | None = None
    title: str | None = "input_document"
    document_mimetype: str | None = None

    @field_validator("title")
    @classmethod
    def _check_title(cls, title: str | None) -> str | None:
        return title or "input_document"


class _Citable(Dumped):
    block_type: Literal["citable"]
    title: str
    source: str
    content: str | list[dict[str, Any]]


class _Citation(Dumped):
    block_type: Literal["citation"]
    cited_content: str | dict[str, Any] | list[str | dict[str, Any]]
    source: str
    title: str
    additional_location_info: dict[str, int]


_KINDS: dict[str, type[Any]] = {
    "text": _Text,
    "thinking": _Thinking,
    "tool_call": Call,
    "cache": _Cache,
    "image": _Image,
    "audio": _Audio,
    "video": _Video,
    "document": _Document,
    "citable": _Citable,
    "citation": _Citation,
}
_MEDIA: dict[type[Any], tuple[type[Any], str, str, tuple[str, ...]]] = {
    _Image: (ImageBlock, "image", "image_mimetype", ("detail",)),
    _Audio: (AudioBlock, "audio", "", ("format",)),
    _Video: (VideoBlock, "video", "video_mimetype", ()),
    _Document: (DocumentBlock, "data", "document_mimetype", ("title",)),
}
"""For each block with media: ours, its fields for the bytes and for the type, and other fields that ours has too."""
_QUOTED: dict[type[Any], tuple[str, frozenset[str]]] = {
    _Citable: ("content", frozenset({"text", "image", "document"})),
    _Citation: ("cited_content", frozenset({"text", "image"})),
}
"""For each block with others in it: the field of these, and what they may be."""


def read_block(part: Mapping[str, Any], blocks: list[AnyBlock], read_call: Callable[[Call], Entry] | None) -> Entry:
    """Append ours for a dumped block; returns what it does not say. Without `read_call` a call is only a text.

    :raises InvalidMessageError: LlamaIndex could not read it either.
    """
    name = part.get("block_type")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        # Perhaps of a newer LlamaIndex: a text is what any version can give back.
        blocks.append(TextBlock(text=_text_of(dict(part))))
        return {}
    try:
        block = kind.model_validate({key: value for key, value in part.items() if value is not None})
        if isinstance(block, Call) and read_call is not None:
            return read_call(block)
        return _read(block, blocks)
    except ValidationError as error:
        raise invalid_message(error) from error


def _read(block: Any, blocks: list[AnyBlock]) -> Entry:
    if isinstance(block, _Text):
        blocks.append(TextBlock(text=block.text))
        return {}
    if isinstance(block, _Thinking):
        return _read_thinking(block, blocks)
    if type(block) in _QUOTED:
        return _read_quoted(block, blocks)
    if type(block) in _MEDIA:
        return _read_media(block, blocks)
    dumped = block.model_dump()
    if isinstance(block, _Cache):
        return {"kept": dumped}
    # A call that nobody made: text, for there must be no result.
    blocks.append(TextBlock(text=_text_of(dumped)))
    return {"shown": dumped}


def _text_of(dumped: Mapping[str, Any]) -> str:
    return json.dumps(dumped, ensure_ascii=False, sort_keys=True)


def _read_thinking(block: _Thinking, blocks: list[AnyBlock]) -> Entry:
    extra: Entry = {"additional_information": block.additional_information} if block.additional_information else {}
    if block.num_tokens is not None:
        extra["num_tokens"] = block.num_tokens
    if block.content is None:
        extra["content"] = None
    signature = block.additional_information.get("signature")
    blocks.append(ThinkingBlock(text=block.content or "", signature=signature if isinstance(signature, str) else None))
    return {"extra": extra} if extra else {}


def _read_quoted(block: Any, blocks: list[AnyBlock]) -> Entry:
    field, allowed = _QUOTED[type(block)]
    given = getattr(block, field)
    given = given if isinstance(given, list) else [given]
    parts = [{"block_type": "text", "text": part} if isinstance(part, str) else part for part in given]
    if any(str(part.get("block_type")) not in allowed for part in parts) or (isinstance(block, _Citation) and len(parts) != 1):
        blocks.append(TextBlock(text=_text_of(block.model_dump())))
        return {}
    return {"outer": block.model_dump(exclude={field}), "nested": [read_block(part, blocks, None) for part in parts]}


def _read_media(block: Any, blocks: list[AnyBlock]) -> Entry:
    ours, payload, mime_field, names = _MEDIA[type(block)]
    extra = {key: value for key, value in block.model_dump(exclude={payload, "block_type"}).items() if value is not None}
    if isinstance(block, _Document) and block.path is not None:
        extra["path_is_text"] = True
    data = getattr(block, payload)
    fields: dict[str, Any] = {}
    if data is not None:
        fields["data"] = data
    elif block.url is not None:
        fields["url"] = extra.pop("url")
    elif block.path is not None:
        # What stands in the file was never part of the history; where it is, was.
        path = PurePath(block.path)
        fields["url"] = path.as_uri() if path.is_absolute() else f"file:{block.path}"
        extra["by_path"] = True
    else:
        return {"kept": {"block_type": block.block_type, **extra}}
    mime_type = extra.get(mime_field)
    if isinstance(mime_type, str) and _MIME_TYPE.fullmatch(mime_type):
        fields["mime_type"] = mime_type
    fields |= {name: extra[name] for name in names if checked_id(extra.get(name))}
    blocks.append(ours(**fields))
    return {"extra": extra}
