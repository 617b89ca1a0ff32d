"""LlamaIndex's messages as JSON, as our messages, without LlamaIndex: pure, on JSON alone.

What a `ChatMessage` has no field for is kept in `metadata["llama_index"]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from memory_engine.errors import InvalidMessageError
from memory_engine.importers.content import Fields, call_block, media_block, text_block, thinking_block
from memory_engine.importers.source import as_json, as_message, as_object, filled
from memory_engine.messages import ChatMessage

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
_MEDIA = ("image", "audio", "video", "document")
_USED = {"text": ("text",), "thinking": ("content",), "tool_call": ("tool_call_id", "tool_name", "tool_kwargs")}


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
        if given not in _ROLES:
            raise InvalidMessageError(f"its role {given!r:.60} is none of LlamaIndex's")
        role = _ROLES[given]
        kwargs = dict(as_object(item.get("additional_kwargs") or {}, "its 'additional_kwargs'"))
        if role == "assistant":
            self.nameless.clear()
        blocks, parts = self._blocks(item, row)
        fields: Fields = {"role": role}
        if role == "assistant":
            blocks += self._older_calls(kwargs, {block["id"] for block in blocks if block["type"] == "tool_call"}, row)
        elif role == "tool":
            call_id = kwargs.pop("tool_call_id", None)
            fields["tool_call_id"] = call_id or (self.nameless.pop(0) if self.nameless else f"call-of-{row}")
        if isinstance(kwargs.get("name"), str) and kwargs["name"]:
            fields["name"] = kwargs.pop("name")
        extras = filled({"additional_kwargs": kwargs, "parts": parts, "role": given if given != role else None})
        return as_message(fields | {"blocks": blocks, "metadata": {"llama_index": extras} if extras else None})

    def _blocks(self, item: Mapping[str, Any], row: str) -> tuple[list[Fields], Fields]:
        """The blocks, and under the position of each what ours have no field for."""
        given = item.get("blocks")
        if given is None:
            # As it was written before messages had blocks.
            content = item.get("content")
            return ([text_block(content)] if isinstance(content, str) else []), {}
        if not isinstance(given, list):
            raise InvalidMessageError(f"its 'blocks' are no list but {type(given).__name__}")
        blocks: list[Fields] = []
        parts: Fields = {}
        for index, part in enumerate(given):
            block, rest = self._block(as_object(part, f"blocks[{index}]"), f"{row}-{index}")
            if block is not None:
                blocks.append(block)
            if rest:
                parts[str(index)] = rest
        return blocks, parts

    def _block(self, part: Mapping[str, Any], place: str) -> tuple[Fields | None, Fields]:
        kind = part.get("block_type")
        block = None
        if kind == "text":
            block = text_block(part.get("text"))
        elif kind == "thinking":
            signature = as_object(part.get("additional_information") or {}).get("signature")
            block = thinking_block(part.get("content"), signature=signature if isinstance(signature, str) else None)
        elif kind == "tool_call":
            block = call_block(self._call_id(part.get("tool_call_id"), place), part.get("tool_name"), part.get("tool_kwargs"))
        elif kind in _MEDIA:
            return _media(str(kind), part)
        if block is None:
            return None, dict(part)
        return block, filled({name: value for name, value in part.items() if name not in ("block_type", *_USED[str(kind)])})

    def _older_calls(self, kwargs: Fields, known: set[str], row: str) -> list[Fields]:
        """The calls under `tool_calls`, in OpenAI's form, that are no blocks; they are taken out of `kwargs`."""
        calls = kwargs.get("tool_calls")
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            return []
        found: list[Fields] = []
        for place, call in enumerate(kwargs.pop("tool_calls")):
            body = call.get("function") if isinstance(call.get("function"), Mapping) else {}
            if call.get("id") in known:
                continue
            found.append(call_block(self._call_id(call.get("id"), f"{row}-k{place}"), body.get("name"), body.get("arguments")))
        return found

    def _call_id(self, given: object, otherwise: str) -> str:
        if isinstance(given, str) and given:
            return given
        self.nameless.append(f"call-{otherwise}")
        return self.nameless[-1]


def _media(kind: str, part: Mapping[str, Any]) -> tuple[Fields | None, Fields]:
    path = part.get("path")
    names = {kind: "data", "data": "data", "url": "url", f"{kind}_mimetype": "mime_type"}
    names |= {name: name for name in ("detail", "format", "title")}
    source = {ours: part[theirs] for theirs, ours in names.items() if isinstance(part.get(theirs), str)}
    if not source.get("data") and not source.get("url") and isinstance(path, str):
        # What stands in the file was never part of the history; where it is, was.
        source["url"] = PurePath(path).as_uri() if PurePath(path).is_absolute() else f"file:{path}"
    block = media_block(kind, source)
    if block is None:
        return None, dict(part)
    said = {theirs for theirs, ours in names.items() if ours in block or source.get(ours, "").startswith("data:")}
    return block, filled({name: value for name, value in part.items() if name not in ("block_type", *said)})
