"""A message of LangChain on its way in; see `messages`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.messages import ChatMessage as LangChainChatMessage
from pydantic import ValidationError

from memory_engine.content import MAX_ID_LENGTH
from memory_engine.integrations.langchain.calls import Calls, known_id
from memory_engine.integrations.langchain.counted import counted_paths
from memory_engine.integrations.langchain.parts import blocks_of
from memory_engine.messages import ChatMessage, ContentBlock, TextBlock, ToolResultBlock, freeze_json, invalid_message
from memory_engine.tokens import COUNTED

MARK = "memory_engine"
"""The key in `response_metadata` under which a message from memory says what memory did to it."""
KEY = "langchain"
OPENAI_ROLE = "__openai_role__"
ROLES = {"system": "system", "human": "user", "ai": "assistant", "tool": "tool", "function": "tool"}

_SPEAKERS = {"user": "user", "human": "user", "assistant": "assistant", "ai": "assistant", "system": "system"}
_OWN = ("content", "additional_kwargs", "response_metadata", "type", "name", "id", "tool_calls", "invalid_tool_calls")
_OWN_OF_RESULTS = ("tool_call_id", "artifact", "status")

Json = dict[str, Any]


def mark_of(message: BaseMessage) -> Mapping[str, Any]:
    """What `to_langchain` noted on a message; empty for all that did not come from memory, or came as it was."""
    mark = message.response_metadata.get(MARK)
    return mark if isinstance(mark, Mapping) else {}


class Reader:
    """One message on its way in."""

    def __init__(self, message: BaseMessage, kind: str) -> None:
        self._source, self._kind = message, kind
        self._mark = mark_of(message)
        self._extras: Json = {}
        self._left_out: list[str] = []

    def message(self) -> ChatMessage:
        source, kind = self._source, self._kind
        metadata = {key: value for key, value in source.response_metadata.items() if key != MARK or not self._mark}
        kwargs = dict(source.additional_kwargs)
        calls = Calls.of(source, kwargs) if isinstance(source, AIMessage) else Calls()
        self._note("additional_kwargs", self._kept("additional_kwargs", kwargs))
        self._note("response_metadata", self._kept("response_metadata", metadata))
        self._note("calls", calls.layout)
        self._note_rest()
        fields: Json = {"role": self._role(kwargs), "partial": bool(self._mark.get("partial"))}
        fields["id"] = self._id("id", source.id)
        fields["name"] = self._id("name", source.name)
        fields["blocks"] = [*self._blocks(calls.ids), *calls.blocks]
        if isinstance(source, ToolMessage):
            self._answer(fields, source)
        elif kind == "function":
            fields["tool_call_id"] = known_id(f"function:{source.name or ''}")
        fields["metadata"] = self._metadata(calls)
        try:
            return ChatMessage.model_validate(fields)
        except ValidationError as error:
            raise invalid_message(error) from error

    def _metadata(self, calls: Calls) -> Json:
        metadata = {key: value for key, value in dict(self._mark.get("metadata") or {}).items() if key != KEY}
        if self._extras:
            metadata[KEY] = self._extras
            if paths := [[KEY, *path] for path in counted_paths(self._extras, calls.blocks, calls.ids)]:
                metadata[COUNTED] = [*metadata.get(COUNTED, ()), *paths]
        return metadata

    def _role(self, kwargs: Mapping[str, Any]) -> str:
        if self._kind == "chat":
            self._extras["type"] = "chat"
            speaker = cast(LangChainChatMessage, self._source).role
            self._extras["role"] = speaker
            return _SPEAKERS.get(speaker, "user")
        if self._kind == "function":
            self._extras["type"] = "function"
        if self._kind == "system" and (self._mark.get("developer") or kwargs.get(OPENAI_ROLE) == "developer"):
            return "developer"
        return ROLES[self._kind]

    def _id(self, name: str, value: str | None) -> str | None:
        if value is None or (0 < len(value) <= MAX_ID_LENGTH and "\0" not in value):
            return value
        self._extras[name] = value
        return None if not value or name == "name" else f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"

    def _answer(self, fields: Json, source: ToolMessage) -> None:
        call = fields["tool_call_id"] = known_id(source.tool_call_id)
        if call != source.tool_call_id:
            self._extras["tool_call_id"] = source.tool_call_id
        if source.artifact is not None:
            self._extras |= self._kept("", {"artifact": source.artifact})
        if source.status == "success":
            return
        if isinstance(source.content, str) and not self._mark.get("parts"):
            del fields["tool_call_id"]
            fields["blocks"] = [ToolResultBlock(tool_call_id=call, content=source.content, is_error=True)]
        else:
            self._extras["status"] = source.status

    def _blocks(self, calls: Mapping[str, str]) -> list[ContentBlock]:
        content, mark = self._source.content, self._mark
        if isinstance(content, str):
            return _from_text(content, mark)
        if mark.get("whole"):
            blocks, _ = blocks_of(content, calls)
            return [_as_inserted(block) for block in blocks]
        places = set(mark.get("parts") or ())
        own = [part for place, part in enumerate(content) if place not in places]
        inserted = [part for place, part in enumerate(content) if place in places]
        blocks, layout = blocks_of(own, calls)
        if not mark.get("string"):
            self._extras["content"] = layout
        return [*map(_as_inserted, blocks_of(inserted, {})[0]), *blocks]

    def _note_rest(self) -> None:
        source = self._source
        if isinstance(source, AIMessage):
            self._note("usage_metadata", source.usage_metadata)
        own = (*_OWN, "usage_metadata", "role", *(_OWN_OF_RESULTS if isinstance(source, ToolMessage) else ()))
        more = {key: value for key, value in source if key not in own}
        self._note("fields", self._kept("fields", more))
        if self._left_out:
            self._extras["left_out"] = self._left_out

    def _note(self, name: str, value: Any) -> None:
        if value:
            self._extras[name] = value

    def _kept(self, where: str, values: Mapping[Any, Any]) -> Json:
        """The values that JSON can keep; of the others the names are noted."""
        kept: Json = {}
        for key, value in values.items():
            try:
                kept |= freeze_json({key: value})
            except ValueError:
                self._left_out.append(f"{where}.{key}" if where else str(key))
                self._extras["left_out"] = self._left_out
        return kept


def _from_text(text: str, mark: Mapping[str, Any]) -> list[ContentBlock]:
    if mark.get("whole"):
        return [TextBlock(text=text, origin="memory")]
    before: list[ContentBlock] = []
    after: list[ContentBlock] = []
    for piece in mark.get("texts") or ():
        if piece in text:
            text = text.replace(piece, "", 1)
            (before if piece.endswith("\n") else after).append(TextBlock(text=piece.strip("\n"), origin="memory"))
    try:
        return [*before, *([TextBlock(text=text)] if text else []), *after]
    except ValidationError as error:
        raise invalid_message(error) from error


def _as_inserted(block: ContentBlock) -> ContentBlock:
    return block.model_copy(update={"origin": "memory"})
