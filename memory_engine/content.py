"""The content blocks of a message: text, media, tool calls and results, reasoning; deeply immutable."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from memory_engine.frozen import FrozenDict, check_text, freeze_json

MAX_ID_LENGTH = 512
_EMPTY = FrozenDict()


def empty_object() -> FrozenDict:
    return _EMPTY


def _check_id(value: object) -> str:
    text = check_text(value)
    if not text or "\0" in text or len(text) > MAX_ID_LENGTH:
        raise ValueError(f"must have 1 to {MAX_ID_LENGTH} characters, none of them NUL")
    return text


def _check_object(value: object) -> FrozenDict:
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a dict of JSON values, not {type(value).__name__}")
    return cast(FrozenDict, freeze_json(value))


def _check_arguments(value: object) -> FrozenDict | str:
    return check_text(value) if isinstance(value, str) else _check_object(value)


def _check_data(value: object) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return base64.b64encode(value).decode("ascii")
    text = check_text(value)
    if not text.isascii() or text.startswith("data:"):
        raise ValueError("must be bytes or base64 text alone, without a 'data:...;base64,' prefix (that is a url)")
    return text


Text = Annotated[str, BeforeValidator(check_text)]
Id = Annotated[str, BeforeValidator(_check_id)]
_MimeType = Annotated[str, Field(pattern=r"\A[!-+\--~]{1,255}\z"), BeforeValidator(check_text)]
_Data = Annotated[str, BeforeValidator(_check_data)]
Object = Annotated[Mapping[str, Any], PlainValidator(_check_object, json_schema_input_type=dict[str, Any])]
_Arguments = Annotated[Mapping[str, Any] | str, PlainValidator(_check_arguments, json_schema_input_type=dict[str, Any] | str)]


class Value(BaseModel):
    """A deeply immutable value: copies are the value itself, changed copies are validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", revalidate_instances="subclass-instances", hide_input_in_errors=True)

    if not TYPE_CHECKING:

        def __init__(self, /, *args: object, **data: object) -> None:
            if args:
                fields = ", ".join(f"{name}=..." for name in type(self)._example())
                raise TypeError(f"{type(self).__name__} takes keyword arguments only: {type(self).__name__}({fields})")
            self.__pydantic_validator__.validate_python(data, self_instance=self)

        # Tells pydantic that validation need not go through this method.
        __init__.__pydantic_base_init__ = True

    @classmethod
    def _example(cls) -> list[str]:
        return [name for name, field in cls.model_fields.items() if field.is_required()] or ["url"]

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The value with these fields changed; unlike pydantic's own, the changes are validated and frozen.

        :raises ValidationError: the result is not valid.
        """
        if not update:
            return self
        values = self.__dict__
        if "content" in update and "content" not in values:
            values = {name: value for name, value in values.items() if name != "blocks"}
        return self.model_validate({**values, **update})

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if value != field.get_default(call_default_factory=True):
                yield name, value

    @model_serializer(mode="wrap")
    def _leave_out_none(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped = handler(self).items()
        return {name: value for name, value in dumped if value is not None and (name != "partial" or value)}


class _Block(Value):
    origin: Literal["memory"] | None = None
    """`"memory"` marks what memory inserted itself; `put` drops it."""
    value: float | None = Field(default=None, allow_inf_nan=False)
    """How much this item of a memory block is worth: the lowest is dropped first."""
    seq: int | None = Field(default=None, strict=True)
    """Which message this item of a memory block comes from."""


class TextBlock(_Block):
    """Text. As an item of a memory block it may carry a `tag`, which the renderer wraps around it."""

    type: Literal["text"] = "text"
    text: Text
    tag: str | None = Field(default=None, pattern=r"\A[A-Za-z][A-Za-z0-9_-]{0,63}\z")


class _MediaBlock(_Block):
    url: Text | None = None
    data: _Data | None = None
    """Base64 text; bytes are encoded."""
    mime_type: _MimeType | None = None

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if sum(source is not None for source in self._sources()) != 1:
            raise ValueError(f"{type(self).__name__} needs exactly one source: url= or data= (base64 text or bytes)")
        return self

    def _sources(self) -> tuple[str | None, ...]:
        return (self.url, self.data)


class ImageBlock(_MediaBlock):
    """An image by `url` or as base64 `data`; `detail` is a hint for the model (low, high, auto)."""

    type: Literal["image"] = "image"
    detail: Id | None = None


class AudioBlock(_MediaBlock):
    """Sound by `url` or as base64 `data`; `format` such as wav or mp3."""

    type: Literal["audio"] = "audio"
    format: Id | None = None


class VideoBlock(_MediaBlock):
    """A video by `url` or as base64 `data`."""

    type: Literal["video"] = "video"


class DocumentBlock(_MediaBlock):
    """A file by `url`, as base64 `data`, or by the `file_id` it has at the provider; `title` is its name."""

    type: Literal["document"] = "document"
    title: Text | None = None
    file_id: Id | None = None

    def _sources(self) -> tuple[str | None, ...]:
        return (self.url, self.data, self.file_id)


class ToolCallBlock(_Block):
    """A call that the assistant makes. `arguments` is a dict, or the text exactly as the model wrote it."""

    type: Literal["tool_call"] = "tool_call"
    id: Id
    name: Id
    arguments: _Arguments = Field(default_factory=empty_object)


class ToolResultBlock(_Block):
    """What a tool answered to the call `tool_call_id`."""

    type: Literal["tool_result"] = "tool_result"
    tool_call_id: Id
    content: Text
    is_error: bool = Field(default=False, strict=True)


class ThinkingBlock(_Block):
    """The model's reasoning. When `redacted`, `text` is empty and `signature` holds what the provider encrypted."""

    type: Literal["thinking"] = "thinking"
    text: Text
    signature: Text | None = None
    redacted: bool = Field(default=False, strict=True)


MediaBlock = ImageBlock | AudioBlock | VideoBlock | DocumentBlock
AnyBlock = TextBlock | ImageBlock | AudioBlock | VideoBlock | DocumentBlock | ToolCallBlock | ToolResultBlock | ThinkingBlock
ContentBlock = Annotated[AnyBlock, Field(discriminator="type")]
BLOCK_TYPES: dict[str, type[AnyBlock]] = {str(block.model_fields["type"].default): block for block in get_args(AnyBlock)}
"""The class for each value of `type`."""
