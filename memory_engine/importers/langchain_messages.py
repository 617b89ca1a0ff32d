"""LangChain's message dicts (`{"type": "human", "data": {...}}`) as our messages, without LangChain: pure, on JSON alone.

What a `ChatMessage` has no field for is kept in `metadata["langchain"]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from memory_engine.errors import InvalidMessageError
from memory_engine.importers.content import Fields, call_block, read_content
from memory_engine.importers.source import as_json, as_message, as_object, filled
from memory_engine.messages import ChatMessage

_ROLES = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool", "developer": "developer"}
_CHAT_ROLES = _ROLES | {"user": "user", "assistant": "assistant"}
_TAKEN = frozenset({"type", "content", "name", "tool_calls", "invalid_tool_calls", "tool_call_chunks", "role", "tool_call_id"})


@dataclass(slots=True)
class LangChainReader:
    """Reads the messages of one conversation, in order: calls without an id are joined to their results by their order."""

    nameless: list[str] = field(default_factory=list)

    def message(self, value: object, row: str) -> ChatMessage:
        """The message of a dict that LangChain's `message_to_dict` made; `row` names it among those of its conversation.

        :raises InvalidMessageError: it is no message; the error says why.
        """
        item = as_object(as_json(value))
        data = as_object(item.get("data"), "its 'data'")
        kind = str(item.get("type")).removesuffix("MessageChunk").lower()
        role, name = self._role(kind, data)
        fields: Fields = {"role": role, "name": name or None}
        blocks, parts = read_content(data.get("content"))
        extras = filled({key: value for key, value in data.items() if key not in _TAKEN})
        if parts:
            extras["parts"] = parts
        if role == "assistant":
            calls = self._calls(data, extras, row)
            if calls and blocks == [{"type": "text", "text": ""}]:
                blocks = []
            blocks += calls
        elif role == "tool":
            self._answer(fields, blocks, data, row)
            blocks = fields.pop("blocks", blocks)
        if kind not in _ROLES or kind in ("function", "developer"):
            extras["type"] = kind
        return as_message(fields | {"blocks": blocks, "metadata": {"langchain": extras} if extras else None})

    def _role(self, kind: str, data: Mapping[str, Any]) -> tuple[str, Any]:
        extra = data.get("additional_kwargs")
        if kind == "system" and isinstance(extra, Mapping) and extra.get("__openai_role__") == "developer":
            return "developer", data.get("name")
        if kind in _ROLES:
            return _ROLES[kind], data.get("name")
        if kind == "chat":
            # A role of the application's own is a person who speaks.
            role = str(data.get("role"))
            return _CHAT_ROLES.get(role, "user"), data.get("name") or (None if role in _CHAT_ROLES else role)
        if kind == "remove":
            raise InvalidMessageError("it is an instruction to remove a message, not a message")
        raise InvalidMessageError(f"its type {kind!r:.60} is none of LangChain's")

    def _calls(self, data: Mapping[str, Any], extras: Fields, row: str) -> list[Fields]:
        """The calls of a message, in any of the forms that LangChain has had; what they say is taken out of `extras`."""
        self.nameless.clear()
        older = dict(as_object(data.get("additional_kwargs") or {}, "its 'additional_kwargs'"))
        calls = [*(data.get("tool_calls") or ()), *(data.get("invalid_tool_calls") or ())]
        found = [(call.get("id"), call.get("name"), call.get("args")) for call in calls if isinstance(call, Mapping)]
        if not found:
            found = [_openai_call(call) for call in older.get("tool_calls") or () if isinstance(call, Mapping)]
        if found:
            # They are the same calls once more, as the provider wrote them.
            older.pop("tool_calls", None)
        function = older.pop("function_call", None)
        if isinstance(function, Mapping) and not found:
            found = [(None, function.get("name"), function.get("arguments"))]
        extras.pop("additional_kwargs", None)
        extras |= filled({"additional_kwargs": older})
        return [call_block(self._call_id(given, f"{row}-{place}"), *rest) for place, (given, *rest) in enumerate(found)]

    def _call_id(self, given: object, otherwise: str) -> str:
        if isinstance(given, str) and given:
            return given
        self.nameless.append(f"call-{otherwise}")
        return self.nameless[-1]

    def _answer(self, fields: Fields, blocks: list[Fields], data: Mapping[str, Any], row: str) -> None:
        call_id = data.get("tool_call_id")
        if not isinstance(call_id, str) or not call_id:
            call_id = self.nameless.pop(0) if self.nameless else f"call-of-{row}"
        if data.get("status") == "error" and [block["type"] for block in blocks] == ["text"]:
            result = {"type": "tool_result", "tool_call_id": call_id, "content": blocks[0]["text"], "is_error": True}
            fields["blocks"] = [result]
        else:
            fields["tool_call_id"] = call_id


def _openai_call(call: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    body = call.get("function")
    body = body if isinstance(body, Mapping) else {}
    return call.get("id"), body.get("name"), body.get("arguments")
