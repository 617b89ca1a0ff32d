"""PURE: messages and documents to items."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from memory_engine import ChatMessage
from memory_engine.blocks.vector.borders import one_line
from memory_engine.blocks.vector.store import Item

Split = Callable[[str], list[str]]

_WINDOW: Final = 8
"""Characters for each token of a passage that the splitter is given at once: of a megabyte it counts large parts again and
again, for minutes if it has no spaces, and lets no other thread run meanwhile."""
_MOST_METADATA: Final = 4_000
"""Characters of JSON: metadata beyond that is a load for every process that searches, not something to show."""


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
            parts=len(passages),
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
    """Who said it: the name, else the role; on one line, or a name could be an utterance of somebody else."""
    return one_line(item.name or item.role)


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
        metadata=_small(first.metadata),
    )


def _small(metadata: Mapping[str, object]) -> Mapping[str, object]:
    if metadata and len(json.dumps(metadata, ensure_ascii=False, default=dict)) > _MOST_METADATA:
        return {}
    return metadata


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
    passages = split(item.text)
    return [
        replace(
            item,
            key=key_of(item.session_uid, item.seq, part),
            text=passage,
            part=part,
            parts=len(passages),
            tokens=count(passage),
        )
        for part, passage in enumerate(passages)
    ]
