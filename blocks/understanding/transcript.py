"""PURE: messages as data for a model that is to say something about them, never as a conversation it takes part in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from memory_engine import ChatMessage, ContentBlock
from memory_engine.escaping import escape, without_rendered
from memory_engine.messages import AudioBlock, DocumentBlock, ImageBlock, TextBlock, ToolCallBlock, ToolResultBlock, VideoBlock

LONGEST = 16_000
"""Characters of a message that a model is given, about 4,000 tokens."""
_SHORTEST = 40
_NONE = range(0)
_PER_TOKEN = 16
OWN_TOOLS = frozenset({"remember", "search_memory", "forget"})
"""The names of the tools that `memory.as_tools()` gives."""
_TAGS = ("conversation", "message")
_MEDIA = {ImageBlock: "image", AudioBlock: "audio", VideoBlock: "video", DocumentBlock: "document"}


@dataclass(frozen=True, slots=True)
class Transcript:
    """Messages as a text, and which message each of its numbers stands for."""

    text: str
    seqs: Mapping[int, int]
    shortened: int = 0
    """How many messages are there only with their beginning and their end, or not at all."""

    @property
    def empty(self) -> bool:
        """Whether nothing was said that a model could read."""
        return not self.seqs


def fitting_transcript(
    messages: Sequence[ChatMessage], seqs: Sequence[int], *, count: Callable[[str], int], limit: int
) -> Transcript:
    """The transcript in `limit` tokens: when it has more, the longest messages lose more of their middle.

    When nothing is left of them to lose, messages in the middle of the conversation are left out.
    """
    # Read once: what is cut and counted below again and again are these.
    texts = texts_of(messages)
    lengths = [len(text) for text in texts]
    # Beyond that no text has so few tokens; a custom tokenizer may be slow.
    longest = min(LONGEST, _level(lengths, _PER_TOKEN * limit))
    while True:
        transcript = _written(messages, seqs, texts, longest=longest)
        tokens = count(transcript.text)
        if tokens <= limit:
            return transcript
        if longest <= _SHORTEST:
            break
        room = int(0.95 * sum([min(length, longest) for length in lengths]) * limit / tokens)
        longest = max(_SHORTEST, min(longest - 1, _level(lengths, room)))
    least, most = 0, max(0, len(messages) - 1)
    while most - least > 1:
        middle = (most + least) // 2
        if count(_without_middle(messages, seqs, texts, middle).text) <= limit:
            most = middle
        else:
            least = middle
    return _without_middle(messages, seqs, texts, most)


def _without_middle(messages: Sequence[ChatMessage], seqs: Sequence[int], texts: Sequence[str], left_out: int) -> Transcript:
    """The ends of the messages, but for so many in the middle."""
    start = (len(messages) - left_out + 1) // 2
    return _written(messages, seqs, texts, longest=_SHORTEST, without=range(start, start + left_out))


def _level(lengths: Sequence[int], room: int) -> int:
    """The length to which the longest are to be cut, so that all of them have `room` characters together."""
    left = room
    for place, length in enumerate(ordered := sorted(lengths)):
        share = left // (len(ordered) - place)
        if length > share:
            return share
        left -= length
    return max(ordered, default=0)


def transcript_of(messages: Sequence[ChatMessage], seqs: Sequence[int]) -> Transcript:
    """The messages that say anything, each in a tag with a short number, in their order.

    Numbers count from 1: ids would cost more tokens than many messages, and a model cannot name a message it was not
    given. Calls of tools and what they returned are text, so that no provider sees a call without its result. What memory
    itself had inserted, what its own tools were asked and returned, and what a model only thought, is left out: else memory
    would remember itself, and what was erased would stay proven by it. Text cannot close its tag. Of a message with more than
    `LONGEST` characters the middle is left out: what a tool returned may be larger than any model can read.
    """
    return _written(messages, seqs, texts_of(messages), longest=LONGEST)


def _written(
    messages: Sequence[ChatMessage], seqs: Sequence[int], texts: Sequence[str], *, longest: int, without: range = _NONE
) -> Transcript:
    """The messages that say these texts, each in `longest` characters, without those at the places `without`."""
    shortened = left_out = 0
    written: list[str] = []
    numbers: dict[int, int] = {}
    for place, (message, seq, whole) in enumerate(zip(messages, seqs, texts, strict=True)):
        if not whole:
            continue
        if place in without:
            if not left_out:
                written.append(f"[{len(without)} messages left out]")
            left_out += 1
            continue
        text = whole if len(whole) <= longest else _shortened(whole, longest)
        shortened += text is not whole
        number = len(numbers) + 1
        numbers[number] = seq
        about = {"n": str(number), "role": message.role, "name": message.name or ""}
        if message.created_at is not None:
            about["time"] = message.created_at.strftime("%Y-%m-%d %H:%M")
        attributes = "".join(f' {key}="{_attribute(value)}"' for key, value in about.items() if value)
        written.append(f"<message{attributes}>\n{escape(text, _TAGS)}\n</message>")
    return Transcript("<conversation>\n" + "\n".join([*written, "</conversation>"]), numbers, shortened + left_out)


def _shortened(text: str, longest: int) -> str:
    half = longest // 2
    return f"{text[:half]}\n[{len(text) - 2 * half:,} characters left out]\n{text[-half:]}"


def texts_of(messages: Iterable[ChatMessage]) -> list[str]:
    """What each message says, as plain text; "" for what memory inserted, and for its own tools' calls and results."""
    own: set[str] = set()
    return [_said(message, own) for message in messages]


def said(message: ChatMessage) -> str:
    """What one message says by itself."""
    return _said(message, set())


def _said(message: ChatMessage, own: set[str]) -> str:
    """What a message says; `own` are the ids of the calls of memory's own tools so far, and is kept up to date."""
    for call in message.tool_calls:
        # Ids may come again: a result belongs to the last call that has its id.
        (own.add if call.name in OWN_TOOLS else own.discard)(call.id)
    if message.role == "tool" and (message.tool_call_id in own or message.name in OWN_TOOLS):
        return ""
    parts = []
    for block in message.blocks:
        if block.origin == "memory" or _call_of(block) in own:
            continue
        if isinstance(block, TextBlock):
            parts.append(without_rendered(block.text) if message.role == "user" else block.text)
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
