"""PURE: messages to items, and chosen items to the text of a section."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Final

from memory_engine import ChatMessage
from memory_engine.blocks.vector.store import Item

Split = Callable[[str], list[str]]

PLAIN: Final = "{speaker}: {text}"
"""How an item is written if nobody wants it otherwise."""
_WINDOW: Final = 8
"""Characters for each token of a passage that the splitter is given at once: of a megabyte it counts large parts again and
again, for minutes if it has no spaces, and lets no other thread run meanwhile."""


def message_items(
    messages: Sequence[ChatMessage],
    seqs: Sequence[int],
    *,
    session_uid: str,
    session_id: str,
    count: Callable[[str], int],
    item_tokens: int,
    split: Split,
) -> list[Item]:
    """One item per message or small step; messages above `item_tokens` become several, which together are their exact text."""
    items: list[Item] = []
    for step in _steps(list(zip(messages, seqs, strict=True))):
        whole = _item(step, session_uid, session_id)
        if len(step) > 1 and count(whole.text) > item_tokens:
            wholes = [_item([pair], session_uid, session_id) for pair in step]
        else:
            wholes = [whole]
        for item in wholes:
            items.extend(_passages(item, count, item_tokens, split))
    return items


def document_items(
    document: str, text: str, metadata: dict[str, object], at: datetime | None, *, count: Callable[[str], int], split: Split
) -> list[Item]:
    """The passages of a document."""
    passages = [passage for passage in split(text) if passage.strip()]
    return [
        Item(
            key=f"document:{document}:{part:06d}",
            text=passage,
            kind="document",
            role="document",
            at=at,
            part=part,
            tokens=count(passage),
            document=document,
            metadata=metadata,
        )
        for part, passage in enumerate(passages)
    ]


def splitter(tokens: int, count: Callable[[str], int]) -> Split:
    """Cuts texts into passages of at most so many tokens, at the ends of paragraphs and sentences where it can."""

    def split(text: str) -> list[str]:
        from semantic_text_splitter import TextSplitter

        # Not trimmed: passages put together are the text.
        cut, window = TextSplitter.from_callback(count, tokens, trim=False), _WINDOW * tokens
        passages: list[str] = []
        start = 0
        while len(text) - start > window:
            some = cut.chunks(text[start : start + window])
            # The last one ends where the window does, not where the text has a border: the next window begins with it.
            some = some[:-1] or some
            passages += some
            start += sum(map(len, some))
        return passages + list(cut.chunks(text[start:]))

    return split


def speaker(item: Item) -> str:
    """Who said it: the name, else the role."""
    return item.name or item.role


def spoken(item: Item) -> str:
    """An item as its embedding and its words are made of: with the name of who said it, because questions name people."""
    return item.text if item.kind == "document" else f"{speaker(item)}: {item.text}"


def key_of(session_uid: str, seq: int, part: int = 0) -> str:
    """The key of a conversation item; keys sort as the conversation does."""
    return f"{session_uid}:{seq:016d}:{part:04d}"


def _steps(pairs: list[tuple[ChatMessage, int]]) -> Iterator[list[tuple[ChatMessage, int]]]:
    """Messages, with a tool call and its results together."""
    step: list[tuple[ChatMessage, int]] = []
    for message, seq in pairs:
        if step and not (message.role == "tool" and step[0][0].tool_calls):
            yield step
            step = []
        step.append((message, seq))
    if step:
        yield step


def _item(step: Sequence[tuple[ChatMessage, int]], session_uid: str, session_id: str) -> Item:
    first, seq = step[0]
    return Item(
        key=key_of(session_uid, seq),
        text="\n".join(filter(None, (_text(message) for message, _ in step))),
        role=first.role,
        name=first.name,
        at=first.created_at,
        session_uid=session_uid,
        session_id=session_id,
        seq=seq,
        last_seq=step[-1][1],
    )


def _text(message: ChatMessage) -> str:
    """The exact text of a message; calls of tools as a line each."""
    calls = [f"[{call.name} {_arguments(call.arguments)}]" for call in message.tool_calls]
    texts = [message.content] if message.content.strip() else []
    return "\n".join([*texts, *calls])


def _arguments(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=dict)


def _passages(item: Item, count: Callable[[str], int], item_tokens: int, split: Split) -> list[Item]:
    if not item.text.strip():
        return []
    tokens = count(item.text)
    if tokens <= item_tokens or item.seq is None or item.session_uid is None:
        return [replace(item, tokens=tokens)]
    return [
        replace(item, key=key_of(item.session_uid, item.seq, part), text=passage, part=part, tokens=count(passage))
        for part, passage in enumerate(split(item.text))
    ]


# -- back to text --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """How items are written: `line` for each, `header` (a strftime format; "" for none) where the time changes by
    `resolution` seconds or more."""

    line: str
    header: str
    resolution: float

    def place(self, item: Item) -> tuple[object, ...]:
        """Items of one place share a header."""
        if item.kind == "document":
            return ("document", item.document)
        if item.at is None or not self.header:
            return (item.session_uid,)
        return (item.session_uid, int(item.at.timestamp() // self.resolution))

    def heading(self, item: Item) -> str:
        """The header above an item that comes first at its place; maybe ""."""
        if item.kind == "document":
            return ""
        return item.at.strftime(self.header) if item.at is not None and self.header else ""

    def written(self, item: Item, text: str) -> str:
        """The line of an item."""
        if item.kind == "document":
            return text
        if self.line == PLAIN:
            return f"{item.name or item.role}: {text}"
        return self.line.format(
            speaker=speaker(item),
            text=text,
            role=item.role,
            name=item.name or "",
            time=item.at.isoformat() if item.at else "",
            session_id=item.session_id or "",
            metadata=item.metadata,
        )


@dataclass(frozen=True, slots=True)
class Line:
    """What is shown of one message, with what it is worth; the first of a time has the time above it."""

    text: str
    value: float
    seq: int | None


def lines(items: Sequence[tuple[Item, float]], layout: Layout) -> list[Line]:
    """Chosen items, in their order, as the lines of a section."""
    written: list[Line] = []
    place: tuple[object, ...] | None = None
    for run in _runs(items):
        item, value = run[0]
        text = item.text
        if len(run) > 1:
            text, value = "".join([part.text for part, _ in run]), max(value for _, value in run)
        text = layout.written(item, text)
        here = layout.place(item)
        if here != place and (heading := layout.heading(item)):
            text = f"{heading}\n{text}"
        place = here
        written.append(Line(text, value, item.seq))
    return written


def _runs(items: Sequence[tuple[Item, float]]) -> Iterator[list[tuple[Item, float]]]:
    """Passages of one message that follow one another, together: their exact text has no break in it."""
    run = list(items[:1])
    for (before, _), (item, value) in pairwise(items):
        if not _continues(before, item):
            yield run
            run = []
        run.append((item, value))
    if run:
        yield run


def _continues(before: Item, item: Item) -> bool:
    same = (before.kind, before.document, before.session_uid, before.seq) == (
        item.kind,
        item.document,
        item.session_uid,
        item.seq,
    )
    return same and item.part == before.part + 1
