"""The items of OpenAI's Responses API, as the Agents SDK keeps them, as our messages: pure, on JSON alone.

A message, a call and a result are a message each. Reasoning and what the provider did by itself (a search, an image) belong to
what the model said next, and go into that message. What a `ChatMessage` has no field for is kept in
`metadata["openai_agents"]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from memory_engine.errors import InvalidMessageError
from memory_engine.importers.content import Fields, call_block, read_content, read_reasoning, text_block
from memory_engine.importers.source import Item, as_json, as_message, as_object, filled
from memory_engine.messages import ChatMessage

_ARGUMENTS = ("arguments", "input", "action", "operation")
_TAKEN = frozenset({"role", "content", "call_id", "name", "output", *_ARGUMENTS})


@dataclass(slots=True)
class OpenAIItemsReader:
    """Reads the items of one conversation, in order. Each call returns the messages that are complete then."""

    _row: str = ""
    _time: datetime | None = None
    _thoughts: list[Fields] = field(default_factory=list)
    _before: list[Fields] = field(default_factory=list)

    def read(self, value: object, row: str, time: datetime | None) -> list[Item]:
        """The messages that an item completes, in order; one that waits for the next item gives none."""
        try:
            item = as_object(as_json(value))
            kind = item.get("type") or "message"
            if kind == "reasoning":
                self._hold(row, time, item, read_reasoning(item))
                return []
            if _is_hosted(kind, item):
                self._hold(row, time, item, None)
                return []
            message = _message(kind, item)
        except InvalidMessageError as error:
            return [*self.end(), Item(row, problem=str(error))]
        if message.role != "assistant" or not (self._thoughts or self._before):
            return [*self.end(), Item(row, message, created_at=time)]
        return [self._joined(message)]

    def end(self) -> list[Item]:
        """What was waiting for a next item."""
        if not self._thoughts and not self._before:
            return []
        # A message that says nothing is refused by providers: it names what was done.
        named = [text_block(f"[{item.get('type')}]") for item in self._before if item.get("type") != "reasoning"]
        return [self._joined(as_message({"role": "assistant", "blocks": [] if self._thoughts else named}))]

    def _hold(self, row: str, time: datetime | None, item: Mapping[str, Any], thought: Fields | None) -> None:
        if not self._row:
            self._row, self._time = row, time
        if thought is None:
            self._before.append(dict(item))
            return
        self._thoughts.append(thought)
        self._before.append(
            {name: value for name, value in item.items() if name not in ("summary", "content", "encrypted_content")}
        )

    def _joined(self, message: ChatMessage) -> Item:
        row, time, blocks, before = self._row, self._time, self._thoughts, self._before
        self._row, self._time, self._thoughts, self._before = "", None, [], []
        extras = {**message.metadata.get("openai_agents", {}), "before": before}
        try:
            thoughtful = [block.model_dump() for block in message.blocks]
            fields = {"role": "assistant", "blocks": [*blocks, *thoughtful], "metadata": {"openai_agents": extras}}
            return Item(row, as_message(fields), created_at=time)
        except InvalidMessageError as error:
            return Item(row, problem=str(error))


def _is_hosted(kind: object, item: Mapping[str, Any]) -> bool:
    """Whether it is something that the provider did by itself."""
    if kind in ("message", "item_reference") or not isinstance(kind, str) or "__enc__" in item:
        return False
    return not isinstance(item.get("call_id"), str) and "role" not in item


def _message(kind: object, item: Mapping[str, Any]) -> ChatMessage:
    if "__enc__" in item:
        raise InvalidMessageError("it is encrypted; decrypt the session with its key first")
    if kind == "item_reference":
        raise InvalidMessageError("it only refers to an item that OpenAI holds")
    extras = filled({name: value for name, value in item.items() if name not in _TAKEN})
    fields: Fields
    if kind == "message":
        extras.pop("type", None)
        blocks, parts = read_content(item.get("content"))
        extras |= _telling(parts)
        fields = {"role": item.get("role"), "blocks": blocks}
    elif str(kind).endswith("_output"):
        blocks, parts = _output(item.get("output"))
        extras |= _telling(parts)
        fields = {"role": "tool", "tool_call_id": item.get("call_id"), "blocks": blocks}
    else:
        arguments = next((item[name] for name in _ARGUMENTS if item.get(name) is not None), None)
        name = item.get("name") or str(kind).removesuffix("_call")
        fields = {"role": "assistant", "blocks": [call_block(str(item.get("call_id")), name, arguments)]}
    if extras.get("type") in ("function_call", "function_call_output"):
        del extras["type"]
    return as_message(fields | {"metadata": {"openai_agents": extras} if extras else None})


def _telling(parts: Fields) -> Fields:
    """The extras of parts as `parts`, without those that only name the usual kinds of text."""
    usual = ({"type": "input_text"}, {"type": "output_text"})
    return filled({"parts": {place: rest for place, rest in parts.items() if rest not in usual}})


def _output(output: object) -> tuple[list[Fields], Fields]:
    if isinstance(output, Mapping):
        blocks, parts = read_content([output])
        if blocks:
            return blocks, parts
    if isinstance(output, list) and all(isinstance(part, Mapping) and "type" in part for part in output):
        blocks, parts = read_content(output)
        if blocks:
            return blocks, parts
    text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
    return [text_block(text)], {}
