"""`ChatMessage`, a deeply immutable value, and its exact JSON round trip."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, AwareDatetime, Field, ValidationError, model_validator

from memory_engine.content import (
    BLOCK_TYPES,
    AnyBlock,
    AudioBlock,
    ContentBlock,
    DocumentBlock,
    Id,
    ImageBlock,
    MediaBlock,
    Object,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    Value,
    VideoBlock,
    empty_object,
)
from memory_engine.errors import InvalidMessageError
from memory_engine.frozen import FrozenDict, FrozenList, freeze_json, freeze_trusted

__all__ = [
    "AudioBlock",
    "ChatMessage",
    "ContentBlock",
    "DocumentBlock",
    "FrozenDict",
    "FrozenList",
    "ImageBlock",
    "MediaBlock",
    "Role",
    "TextBlock",
    "ThinkingBlock",
    "ToolCallBlock",
    "ToolResultBlock",
    "VideoBlock",
    "coerce",
    "decode",
    "encode",
    "freeze_json",
    "invalid_message",
    "without_memory",
]

Role = Literal["system", "developer", "user", "assistant", "tool"]

_V = TypeVar("_V", bound=Value)


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999 in UTC") from None


class ChatMessage(Value):
    """One message of a conversation, deeply immutable.

    Give its content as `content=` (text, a list of content blocks, or None) or as `blocks=`. Tool results go into role
    `tool`, as the content of a message with `tool_call_id` or as `ToolResultBlock`s; tool calls into role `assistant`.
    `id` and `created_at` (aware, kept in UTC) are None until `put` assigns them. `metadata` is any JSON object;
    `metadata["pinned"]` keeps a message in the view (True) or unpins a system message (False); `metadata["counted"]` names what
    of the metadata costs tokens, see `memory_engine.tokens`.

    :raises ValidationError: (a ValueError) a field is wrong; the message says which and why.
    """

    role: Role
    blocks: tuple[ContentBlock, ...] = ()
    id: Id | None = None
    name: Id | None = None
    tool_call_id: Id | None = None
    created_at: Annotated[AwareDatetime, AfterValidator(_to_utc)] | None = None
    metadata: Object = Field(default_factory=empty_object)
    partial: bool = Field(default=False, strict=True)
    """True on a view copy that was shortened; never stored."""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            role: Role,
            content: str | Sequence[ContentBlock | Mapping[str, Any]] | None = None,
            blocks: Sequence[ContentBlock | Mapping[str, Any]] = (),
            id: str | None = None,  # noqa: A002
            name: str | None = None,
            tool_call_id: str | None = None,
            created_at: datetime | None = None,
            metadata: Mapping[str, Any] = ...,
            partial: bool = False,
        ) -> None: ...

    @classmethod
    def _example(cls) -> list[str]:
        return ["role", "content"]

    @model_validator(mode="before")
    @classmethod
    def _content_to_blocks(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if "tool_calls" in data:
            raise ValueError("tool_calls is OpenAI style: use ChatMessage.from_openai(...), or a ToolCallBlock in blocks=")
        if "content" not in data:
            return data
        fields = dict(data)
        content = fields.pop("content")
        if content is None:
            return fields
        if "blocks" in fields:
            raise ValueError("give content= or blocks=, not both")
        if isinstance(content, str):
            content = ({"type": "text", "text": content},)
        elif not isinstance(content, (list, tuple)):
            raise ValueError(f"content must be text, a list of content blocks, or None, not {type(content).__name__}")
        fields["blocks"] = content
        return fields

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if self.metadata:
            _check_pinned(self)
        if self.role == "tool" or self.tool_call_id is not None:
            _check_tool_role(self)
        for block in self.blocks:
            if type(block) is ToolCallBlock or type(block) is ToolResultBlock:
                _check_tool_blocks(self)
                break
        return self

    @property
    def content(self) -> str:
        """The text of all text blocks, joined by newlines."""
        blocks = self.blocks
        if len(blocks) == 1 and isinstance(block := blocks[0], TextBlock):
            return block.text
        return "\n".join([block.text for block in blocks if isinstance(block, TextBlock)])

    @property
    def tool_calls(self) -> tuple[ToolCallBlock, ...]:
        """The calls that this message makes."""
        return tuple([block for block in self.blocks if isinstance(block, ToolCallBlock)])

    @property
    def tool_results(self) -> tuple[str, ...]:
        """The ids of the calls that this message answers."""
        if self.role != "tool":
            return ()
        if self.tool_call_id is not None:
            return (self.tool_call_id,)
        return tuple([block.tool_call_id for block in self.blocks if isinstance(block, ToolResultBlock)])

    @property
    def pinned(self) -> bool:
        """Whether the message stays in the view: system and developer messages do, unless `metadata` says otherwise."""
        pinned = self.metadata.get("pinned")
        return self.role in ("system", "developer") if pinned is None else bool(pinned)

    @classmethod
    def from_openai(cls, message: object) -> ChatMessage:
        """The message for an OpenAI-style dict (or the SDK's object); see `memory_engine.formats.openai`.

        :raises InvalidMessageError: it is not a message we know; nothing is dropped silently.
        """
        from memory_engine.formats.openai import message_from_openai

        return message_from_openai(message)

    def to_openai(self) -> dict[str, Any]:
        """The message as an OpenAI-style dict.

        :raises InvalidMessageError: it answers several calls; `memory_engine.formats.openai.to_openai` makes a dict of each.
        """
        from memory_engine.formats.openai import message_to_openai

        return message_to_openai(self)

    def __str__(self) -> str:
        text = " ".join(_summary(block) for block in self.blocks[:20])
        return f"{self.role}: {text[:160] + '…' if len(text) > 160 else text}"


def _check_pinned(message: ChatMessage) -> None:
    if "pinned" not in message.metadata:
        return
    pinned = message.metadata["pinned"]
    if not isinstance(pinned, bool):
        raise ValueError("metadata['pinned'] must be True or False")
    if pinned and (message.tool_calls or message.role == "tool"):
        raise ValueError("a message with tool calls or tool results cannot be pinned")


def _check_tool_role(message: ChatMessage) -> None:
    if message.role != "tool":
        raise ValueError(f"tool_call_id belongs to role 'tool', not '{message.role}'")
    has_blocks = any(isinstance(block, ToolResultBlock) for block in message.blocks)
    if has_blocks == (message.tool_call_id is not None):
        raise ValueError("a message with role 'tool' needs either tool_call_id= or ToolResultBlocks that name their calls")


def _check_tool_blocks(message: ChatMessage) -> None:
    calls = [block.id for block in message.tool_calls]
    if calls and message.role != "assistant":
        raise ValueError(f"tool calls belong to role 'assistant', not '{message.role}'")
    results = [block.tool_call_id for block in message.blocks if isinstance(block, ToolResultBlock)]
    if results and message.role != "tool":
        raise ValueError(f"tool results belong to role 'tool', not '{message.role}'")
    for ids, what in ((calls, "calls have"), (results, "results answer")):
        if len(set(ids)) < len(ids):
            raise ValueError(f"two tool {what} the same call id")


def _summary(block: AnyBlock) -> str:
    if isinstance(block, TextBlock):
        return block.text[:200]
    if isinstance(block, ToolCallBlock):
        return f"[call {block.name}]"
    if isinstance(block, ToolResultBlock):
        return f"[result] {block.content[:200]}"
    return f"[{block.type}]"


_DEFAULTS: dict[type[Value], dict[str, Any]] = {
    cls: {name: field.get_default(call_default_factory=True) for name, field in cls.model_fields.items()}
    for cls in (ChatMessage, *BLOCK_TYPES.values())
}
_TALK = frozenset({"system", "developer", "user", "assistant"})
_OUR_KEYS = frozenset({"content", *ChatMessage.model_fields})
_encode_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")).encode
_quoted = json.encoder.encode_basestring
_decode_json = json.JSONDecoder().decode


def encode(message: ChatMessage) -> str:
    """The canonical JSON of a message, without `id`, `created_at` and `partial`.

    Messages with the same content give the same string: keys are sorted, values that are None or False left out.

    :raises InvalidMessageError: the message was built around its validation (`model_construct`).
    """
    blocks = message.blocks
    if len(blocks) == 1 and type(block := blocks[0]) is TextBlock and _has_only_text(message, block):
        # What most messages are; the general way takes six times as long.
        return f'{{"blocks":[{{"text":{_quoted(block.text)},"type":"text"}}],"role":{_quoted(message.role)}}}'
    fields: dict[str, Any] = {
        "blocks": [
            {name: value for name, value in block.__dict__.items() if value is not None and value is not False}
            for block in blocks
        ],
        "role": message.role,
    }
    if message.metadata:
        fields["metadata"] = message.metadata
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    try:
        return _encode_json(fields)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessageError(
            f"The message has values that JSON does not have: {error}. Build it with ChatMessage(...)."
        ) from error


def _has_only_text(message: ChatMessage, block: TextBlock) -> bool:
    if message.metadata or message.name is not None or message.tool_call_id is not None:
        return False
    nothing_else = list(block.__dict__.values()).count(None) == len(TextBlock.model_fields) - 2
    return nothing_else and type(block.text) is str and type(message.role) is str


def decode(data: str, *, id: str | None, created_at: datetime | None) -> ChatMessage:  # noqa: A002
    """The message that `encode` made `data` of. `data` is trusted: it is not validated again; `created_at` is in UTC."""
    fields = _decode_json(data)
    blocks = []
    for values in fields["blocks"]:
        arguments = values.get("arguments")
        if arguments is not None:
            values["arguments"] = freeze_trusted(arguments)
        blocks.append(_restore(BLOCK_TYPES[values["type"]], values))
    fields["blocks"] = tuple(blocks)
    if "metadata" in fields:
        fields["metadata"] = freeze_trusted(fields["metadata"])
    fields["id"] = id
    fields["created_at"] = created_at
    return _restore(ChatMessage, fields)


def _restore(cls: type[_V], values: dict[str, Any]) -> _V:
    # What unpickling does; about four times as fast as model_construct.
    value = cls.__new__(cls)
    state = {
        "__dict__": {**_DEFAULTS[cls], **values},
        "__pydantic_extra__": None,
        "__pydantic_fields_set__": set(values),
        "__pydantic_private__": None,
    }
    value.__setstate__(state)
    return value


def stored_as(message: ChatMessage, message_id: str, created_at: datetime | None) -> ChatMessage:
    """The message with the id and time that it got when it was stored; both are trusted, nothing is validated again."""
    return _restore(ChatMessage, {**message.__dict__, "id": message_id, "created_at": created_at})


def coerce(value: object) -> ChatMessage:
    """The message that was meant: a `ChatMessage`, a dict of its fields, or an OpenAI-style dict.

    :raises InvalidMessageError: it is none of these; the message says what to correct.
    """
    if type(value) is ChatMessage:
        return value
    if type(value) is dict and (plain := _plain(value)) is not None:
        return plain
    try:
        if isinstance(value, ChatMessage):
            return ChatMessage.model_validate(value)
        if isinstance(value, Mapping) and not _is_openai(value):
            return ChatMessage.model_validate(dict(value))
    except ValidationError as error:
        raise invalid_message(error) from error
    if isinstance(value, Mapping) or hasattr(value, "model_dump"):
        return ChatMessage.from_openai(value)
    raise InvalidMessageError(
        f"A message is a ChatMessage or a dict with 'role' and 'content', not {type(value).__name__}; "
        'write ChatMessage(role="user", content=...).'
    )


def _plain(value: dict[Any, Any]) -> ChatMessage | None:
    """The message of a dict of a role and a text and nothing else, as most are; to validate it takes three times as long."""
    role, text = value.get("role"), value.get("content")
    if len(value) != 2 or type(text) is not str or not text.isascii() or type(role) is not str or role not in _TALK:
        return None
    block = _restore(TextBlock, {"type": "text", "text": text})
    return _restore(ChatMessage, {"role": role, "blocks": (block,)})


def _is_openai(value: Mapping[Any, Any]) -> bool:
    """Whether a dict has keys or content parts that our own fields do not have."""
    if "blocks" in value:
        return False
    if "content" not in value or not _OUR_KEYS.issuperset(value):
        return True
    content = value.get("content")
    if not isinstance(content, (list, tuple)):
        return False
    return any(isinstance(part, Mapping) and not _is_ours(part) for part in content)


def _is_ours(part: Mapping[Any, Any]) -> bool:
    block = BLOCK_TYPES.get(str(part.get("type")))
    return block is not None and all(key in block.model_fields for key in part)


def invalid_message(error: ValidationError) -> InvalidMessageError:
    """The engine's error for pydantic's: what is wrong with which field, without the values."""
    reasons = []
    for detail in error.errors(include_input=False, include_url=False, include_context=False):
        where = ".".join(str(step) for step in detail["loc"])
        reasons.append(f"{where or 'message'}: {detail['msg'].removeprefix('Value error, ')}")
    return InvalidMessageError(f"The message cannot be stored: {'; '.join(reasons[:5])}.")


def without_memory(message: ChatMessage) -> ChatMessage | None:
    """The message without what memory inserted into it; None when it consisted of nothing else."""
    blocks = message.blocks
    for block in blocks:
        if block.origin:
            break
    else:
        return message
    kept = tuple([block for block in blocks if block.origin is None])
    return message.model_copy(update={"blocks": kept}) if kept else None
