"""LangChain's message dicts (`{"type": "human", "data": {...}}`) as our messages, without LangChain: pure, on JSON alone.

What a `ChatMessage` has no field for is kept in `metadata["langchain"]`, as `memory_engine.integrations.langchain` keeps it:
its `to_langchain` gives the messages back as LangChain reads them from the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from typing_extensions import TypedDict

from memory_engine.content import ContentBlock, TextBlock, ToolResultBlock
from memory_engine.errors import InvalidMessageError
from memory_engine.formats.kept import checked_id
from memory_engine.importers.langchain_calls import Calls
from memory_engine.importers.langchain_parts import Fields, blocks_of
from memory_engine.importers.source import as_json, as_message, as_object
from memory_engine.messages import ChatMessage, invalid_message

_ROLES = {"system": "system", "human": "user", "ai": "assistant", "tool": "tool", "function": "tool", "chat": "user"}
_SPEAKERS = {"user": "user", "human": "user", "assistant": "assistant", "ai": "assistant", "system": "system"}
_LEFT = frozenset({"type", "tool_call_chunks", "chunk_position", "content_blocks"})
"""What a message of LangChain has no field for when it is whole."""


class _Call(TypedDict):
    name: str
    args: dict[str, Any]
    id: NotRequired[str | None]


class _InvalidCall(TypedDict):
    name: NotRequired[str | None]
    args: NotRequired[str | None]
    id: NotRequired[str | None]
    error: NotRequired[str | None]


class _Usage(TypedDict):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: NotRequired[dict[str, int]]
    output_token_details: NotRequired[dict[str, int]]


class _Data(BaseModel):
    """What LangChain takes for its messages; anything else it could not give back."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    content: str | list[str | dict[str, Any]] = ""
    additional_kwargs: dict[str, Any] = Field(default_factory=dict)
    response_metadata: dict[str, Any] = Field(default_factory=dict)
    name: str | None = None
    id: str | None = Field(default=None, coerce_numbers_to_str=True)


class _Ai(_Data):
    tool_calls: list[_Call] = Field(default_factory=list)
    invalid_tool_calls: list[_InvalidCall] = Field(default_factory=list)
    usage_metadata: _Usage | None = None


class _Tool(_Data):
    tool_call_id: str = Field(default="", coerce_numbers_to_str=True)
    artifact: Any = None
    status: Literal["success", "error"] = "success"

    @field_validator("content", mode="before")
    @classmethod
    def _as_text(cls, content: Any) -> Any:
        """What a tool returned, as LangChain writes it out when it is no text."""
        if isinstance(content, list):
            return [part if isinstance(part, str | dict) else str(part) for part in content]
        return content if isinstance(content, str) else str(content)


class _Chat(_Data):
    role: str = ""


_KINDS: dict[str, type[_Data]] = {"ai": _Ai, "tool": _Tool, "chat": _Chat}


@dataclass(slots=True)
class LangChainReader:
    """Reads the messages of one conversation, in order: calls without an id are joined to their results by their order."""

    nameless: list[tuple[str, str]] = field(default_factory=list)
    """The ids given to such calls of the newest message that has any, and their names."""

    def message(self, value: object, row: str) -> ChatMessage:
        """The message of a dict that LangChain's `message_to_dict` made; `row` names it among those of its conversation.

        :raises InvalidMessageError: it is no message; the error says why.
        """
        item = as_object(as_json(value))
        kind = str(item.get("type")).removesuffix("MessageChunk").lower()
        if kind == "remove":
            raise InvalidMessageError("it is an instruction to remove a message, not a message")
        if kind not in _ROLES:
            raise InvalidMessageError(f"its type {kind!r:.60} is none of LangChain's")
        data = _data(_KINDS.get(kind, _Data), as_object(item.get("data"), "its 'data'"))
        extras: Fields = {}
        fields: Fields = {"role": _role(kind, data)}
        calls = Calls(f"call-{row}")
        if isinstance(data, _Ai):
            valid, invalid = ([dict(call) for call in found] for found in (data.tool_calls, data.invalid_tool_calls))
            calls.read(valid, invalid, data.additional_kwargs)
            self.nameless = calls.nameless
            if data.usage_metadata is not None:
                extras["usage_metadata"] = data.usage_metadata
        extras |= _kept(data, calls)
        blocks = _blocks(data, calls, extras)
        if isinstance(data, _Chat):
            extras |= {"type": kind, "role": data.role}
        elif kind == "function":
            extras["type"] = kind
        if (name := _named(data)) is not None:
            fields["name"] = name
        if name != data.name:
            extras["name"] = data.name
        if fields["role"] == "tool":
            blocks = self._answer(fields, data, row, blocks, extras)
        return as_message(fields | {"blocks": [*blocks, *calls.blocks], "metadata": {"langchain": extras} if extras else None})

    def _answer(self, fields: Fields, data: _Data, row: str, blocks: list[ContentBlock], extras: Fields) -> list[ContentBlock]:
        """The blocks of a result; which call it answers is put into the fields."""
        if not isinstance(data, _Tool):
            fields["tool_call_id"] = self._pending(data.name) or f"call-of-{row}"
            return blocks
        call_id = checked_id(data.tool_call_id)
        if call_id is None:
            call_id = self._pending(None) or f"call-of-{row}"
            extras["tool_call_id"] = data.tool_call_id
        if data.artifact is not None:
            extras["artifact"] = data.artifact
        if data.status == "error":
            if isinstance(data.content, str):
                return [ToolResultBlock(tool_call_id=call_id, content=data.content, is_error=True)]
            extras["status"] = data.status
        fields["tool_call_id"] = call_id
        return blocks

    def _pending(self, name: str | None) -> str | None:
        """The id that was given to the next call that has none, or to the next one with that name."""
        for place, (call_id, called) in enumerate(self.nameless):
            if name is None or name == called:
                del self.nameless[place]
                return call_id
        return None


def _data(kind: type[_Data], given: Mapping[str, Any]) -> _Data:
    # Of what a tool returned, None is a value.
    unsaid = kind.model_fields.keys() - ({"content"} if kind is _Tool else set())
    left = {key for key, value in given.items() if key in _LEFT or (value is None and key in unsaid)}
    try:
        return kind.model_validate({key: value for key, value in given.items() if key not in left})
    except ValidationError as error:
        raise invalid_message(error) from error


def _role(kind: str, data: _Data) -> str:
    if isinstance(data, _Chat):
        return _SPEAKERS.get(data.role, "user")
    if kind == "system" and data.additional_kwargs.get("__openai_role__") == "developer":
        return "developer"
    return _ROLES[kind]


def _named(data: _Data) -> str | None:
    """The name here; a role of the application's own is a person who speaks."""
    name = checked_id(data.name)
    return checked_id(data.role) if name is None and isinstance(data, _Chat) and data.role not in _SPEAKERS else name


def _blocks(data: _Data, calls: Calls, extras: Fields) -> list[ContentBlock]:
    if isinstance(data.content, str):
        return [TextBlock(text=data.content)] if data.content else []
    blocks, extras["content"] = blocks_of(data.content, calls.ids)
    return blocks


def _kept(data: _Data, calls: Calls) -> Fields:
    """What has no field here; the id goes out again, too, by which the application may know the message."""
    kept = {
        "id": data.id,
        "additional_kwargs": data.additional_kwargs,
        "response_metadata": data.response_metadata,
        "calls": calls.layout,
        "fields": data.model_extra,
    }
    return {name: value for name, value in kept.items() if value}
