"""PURE: messages as data for a model that is to say something about them, never as a conversation it takes part in."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memory_engine import ChatMessage, ContentBlock
from memory_engine.escaping import escape
from memory_engine.messages import AudioBlock, DocumentBlock, ImageBlock, TextBlock, ToolCallBlock, ToolResultBlock, VideoBlock

LONGEST = 16_000
"""Characters of a message that a model is given, about 4,000 tokens."""
OWN_TOOLS = frozenset({"remember", "search_memory", "forget"})
"""The names of the tools that `memory.as_tools()` gives."""
_TAGS = ("conversation", "message")
_MEDIA = {ImageBlock: "image", AudioBlock: "audio", VideoBlock: "video", DocumentBlock: "document"}


@dataclass(frozen=True, slots=True)
class Transcript:
    """Messages as a text, and which message each of its numbers stands for."""

    text: str
    seqs: Mapping[int, int]

    @property
    def empty(self) -> bool:
        """Whether nothing was said that a model could read."""
        return not self.seqs


def transcript_of(messages: Sequence[ChatMessage], seqs: Sequence[int]) -> Transcript:
    """The messages that say anything, each in a tag with a short number, in their order.

    Numbers count from 1: ids would cost more tokens than many messages, and a model cannot name a message it was not
    given. Calls of tools and what they returned are text, so that no provider sees a call without its result. What memory
    itself had inserted, what its own tools were asked and returned, and what a model only thought, is left out: else memory
    would remember itself, and what was erased would stay proven by it. Text cannot close its tag. Of a message with more than
    `LONGEST` characters the middle is left out: what a tool returned may be larger than any model can read.
    """
    written: list[str] = []
    numbers: dict[int, int] = {}
    own = {call.id for message in messages for call in message.tool_calls if call.name in OWN_TOOLS}
    for message, seq in zip(messages, seqs, strict=True):
        text = _shortened(said(message, own))
        if not text:
            continue
        number = len(numbers) + 1
        numbers[number] = seq
        about = {"n": str(number), "role": message.role, "name": message.name or ""}
        if message.created_at is not None:
            about["time"] = message.created_at.strftime("%Y-%m-%d %H:%M")
        attributes = "".join(f' {key}="{_attribute(value)}"' for key, value in about.items() if value)
        written.append(f"<message{attributes}>\n{escape(text, _TAGS)}\n</message>")
    return Transcript("<conversation>\n" + "\n".join([*written, "</conversation>"]), numbers)


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[{len(text) - 2 * half:,} characters left out]\n{text[-half:]}"


def said(message: ChatMessage, own_calls: Collection[str] = ()) -> str:
    """What a message says, as plain text; without those calls of tools and their results."""
    parts = []
    for block in message.blocks:
        if block.origin == "memory" or _call_of(block) in own_calls:
            continue
        if isinstance(block, TextBlock):
            parts.append(block.text)
        elif isinstance(block, ToolCallBlock):
            parts.append(f"[calls {block.name} with {_plain(block.arguments)}]")
        elif isinstance(block, ToolResultBlock):
            parts.append(f"[result] {block.content}")
        elif type(block) in _MEDIA:
            parts.append(f"[{_MEDIA[type(block)]}]")
    return "\n".join([part.strip() for part in parts if part.strip()])


def _call_of(block: ContentBlock) -> str | None:
    if isinstance(block, ToolCallBlock):
        return block.id
    return block.tool_call_id if isinstance(block, ToolResultBlock) else None


def _plain(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=dict)


def _attribute(value: str) -> str:
    return " ".join(value.split()).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")[:100]
