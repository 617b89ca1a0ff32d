"""LlamaIndex's messages as JSON, as our messages, without LlamaIndex: pure, on JSON alone.

What a `ChatMessage` has no field for is kept in `metadata["llama_index"]`, as the adapter for LlamaIndex keeps it:
its `to_llama_index` gives the messages back as LlamaIndex reads them from the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memory_engine.content import AnyBlock, ToolCallBlock
from memory_engine.errors import InvalidMessageError
from memory_engine.formats.kept import checked_id
from memory_engine.importers.llama_blocks import Call, Entry, read_block
from memory_engine.importers.source import as_json, as_message, as_object
from memory_engine.messages import ChatMessage
from memory_engine.tokens import COUNTED

Fields = dict[str, Any]

_KEY = "llama_index"
_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "assistant": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
}


@dataclass(slots=True)
class LlamaIndexReader:
    """Reads the messages of one conversation, in order: calls without an id are joined to their results by their order."""

    nameless: list[str] = field(default_factory=list)

    def message(self, value: object, row: str) -> ChatMessage:
        """The message of a dumped `ChatMessage` of LlamaIndex; `row` names it among those of its conversation.

        :raises InvalidMessageError: it is no message; the error says why.
        """
        item = as_object(as_json(value))
        given = item.get("role", "user")
        if not isinstance(given, str) or given not in _ROLES:
            raise InvalidMessageError(f"its role {given!r:.60} is none of LlamaIndex's")
        role = _ROLES[given]
        kwargs = dict(as_object(item.get("additional_kwargs") or {}, "its 'additional_kwargs'"))
        # They became blocks when the message was made.
        kwargs.pop("images", None)
        kept: Fields = {} if role == given else {"role": given}
        fields: Fields = {"role": role}
        if checked_id(kwargs.get("name")):
            fields["name"] = kwargs.pop("name")
        if role == "tool":
            self._answer(fields, kwargs, kept, row)
        fields["blocks"] = self._blocks(_parts(item), role, kwargs, kept, row)
        if kwargs:
            kept["additional_kwargs"] = kwargs
        if kept:
            paths = [[_KEY, name] for name in ("additional_kwargs", "blocks") if name in kept]
            fields["metadata"] = {_KEY: kept} | ({COUNTED: paths} if paths else {})
        return as_message(fields)

    def _answer(self, fields: Fields, kwargs: Fields, kept: Fields, row: str) -> None:
        if checked_id(kwargs.get("tool_call_id")):
            fields["tool_call_id"] = kwargs.pop("tool_call_id")
        else:
            fields["tool_call_id"] = self.nameless.pop(0) if self.nameless else f"call-of-{row}"
            kept["no_id"] = True

    def _blocks(self, parts: list[Any], role: str, kwargs: Fields, kept: Fields, row: str) -> list[AnyBlock]:
        """Our blocks; what they cannot say is put into `kept`."""
        blocks: list[AnyBlock] = []
        calls = _Calls(blocks, row) if role == "assistant" else None
        read_call = None if calls is None else calls.read
        entries = [read_block(as_object(part, f"blocks[{index}]"), blocks, read_call) for index, part in enumerate(parts)]
        if calls is not None:
            if older := [calls.read_older(call) for call in _older(kwargs)]:
                kept["calls"] = older
            self.nameless = calls.nameless
        if "calls" in kept or any(entry.keys() - {"call"} for entry in entries):
            kept["blocks"] = entries
        return blocks


class _Calls:
    """The calls of one message, which are appended to its blocks."""

    def __init__(self, blocks: list[AnyBlock], row: str) -> None:
        self.nameless: list[str] = []
        self._blocks, self._row = blocks, row
        self._ids: list[str] = []

    def read(self, call: Call) -> Entry:
        """A call that is a block."""
        extra: Fields = {}
        call_id = checked_id(call.tool_call_id)
        if call_id is None or call_id in self._ids:
            extra["tool_call_id"] = call.tool_call_id
            call_id = self._new_id()
        if checked_id(call.tool_name) is None:
            extra["tool_name"] = call.tool_name
        self._append(call_id, call.tool_name, call.tool_kwargs)
        return {"call": call_id} | ({"extra": extra} if extra else {})

    def read_older(self, call: Mapping[str, Any]) -> str:
        """A call in the form that came before blocks, which may be there as a block, too; returns its id."""
        body = call.get("function")
        body = body if isinstance(body, Mapping) else call
        call_id = checked_id(call.get("id")) or self._new_id()
        if call_id not in self._ids:
            arguments = body.get("arguments")
            self._append(call_id, body.get("name"), arguments if isinstance(arguments, str | Mapping) else {})
        return call_id

    def _append(self, call_id: str, name: object, arguments: Mapping[str, Any] | str) -> None:
        self._ids.append(call_id)
        self._blocks.append(ToolCallBlock(id=call_id, name=checked_id(name) or "unknown", arguments=arguments))

    def _new_id(self) -> str:
        self.nameless.append(f"call-{self._row}-{len(self._ids)}")
        return self.nameless[-1]


def _parts(item: Mapping[str, Any]) -> list[Any]:
    """The message's blocks; its content, as it was written before messages had blocks, is one of them."""
    content = item.get("content")
    parts = content if isinstance(content, list) else item.get("blocks") or []
    if isinstance(content, str):
        return [{"block_type": "text", "text": content}]
    if not isinstance(parts, list):
        raise InvalidMessageError(f"its 'blocks' are no list but {type(parts).__name__}")
    return parts


def _older(kwargs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The calls in the form that came before blocks."""
    calls = kwargs.get("tool_calls")
    if calls is None and kwargs.get("function_call") is not None:
        calls = [kwargs["function_call"]]
    return calls if isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls) else []
