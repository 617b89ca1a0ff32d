"""Which stored message an object stands for that LlamaIndex got from us. Its messages have no ids, and no place for ours:
what is in `additional_kwargs` is sent to the model's provider."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from enum import Enum
from functools import partial

from llama_index.core.base.llms.types import ChatMessage as Theirs

from memory_engine import Memory
from memory_engine.errors import ConfigurationError
from memory_engine.integrations.llama_index.content import write_block
from memory_engine.integrations.llama_index.inserted import Inserted, SessionKey
from memory_engine.integrations.llama_index.messages import from_llama_index, to_llama_index
from memory_engine.messages import ChatMessage, encode


class Handed:
    """Remembers handed-out objects as long as they live."""

    def __init__(self) -> None:
        self._inserted = Inserted()
        self._known: dict[int, tuple[weakref.ref[Theirs], SessionKey, ChatMessage]] = {}

    def give(self, session: SessionKey, messages: Sequence[ChatMessage]) -> list[Theirs]:
        """Their messages for ours."""
        given: list[Theirs] = []
        for message in messages:
            made = to_llama_index([message])
            if len(made) == 1:
                key = id(made[0])
                self._inserted.note(session, made[0], message)
                self._known[key] = (weakref.ref(made[0], partial(self._forget, key)), session, message)
            given += made
        return given

    def _forget(self, key: int, reference: weakref.ref[Theirs]) -> None:
        known = self._known.get(key)
        if known is not None and known[0] is reference:
            del self._known[key]

    def read(self, session: SessionKey, messages: Sequence[Theirs]) -> list[ChatMessage]:
        """Ours for theirs: the stored ones for those that were handed out and are as they were, without what memory
        inserted also for those that were changed since."""
        kept: list[ChatMessage | None] = []
        new: list[Theirs] = []
        for message, found in zip(messages, self._inserted.find(session, messages), strict=True):
            source = self._source(session, message)
            if source is not None and to_llama_index([source]) == [message]:
                kept.append(source)
                continue
            left = found if source is None else _without_memory(message, source)
            if isinstance(left, ChatMessage):
                kept.append(left)
            elif left is not None:
                kept.append(None)
                new.append(left)
        # Together, because results without an id belong to the calls before them.
        read = iter(from_llama_index(new))
        return [next(read) if message is None else message for message in kept]

    def _source(self, session: SessionKey, message: Theirs) -> ChatMessage | None:
        known = self._known.get(id(message))
        return known[2] if known is not None and known[0]() is message and known[1] == session else None


def _without_memory(message: Theirs, source: ChatMessage) -> Theirs | None:
    inserted = [write_block(block, {}) for block in source.blocks if block.origin]
    left = [block for block in message.blocks if block not in inserted]
    return message.model_copy(update={"blocks": left}) if left or not inserted else None


async def aligned(messages: Sequence[ChatMessage], memory: Memory) -> list[ChatMessage]:
    """The messages, with the stored ones in place of those at the beginning that have no id but say the same.

    Looked for from the first active message on, and from any archived one from which on everything is the same up to there.
    """
    if not messages or all(message.id is not None for message in messages):
        return list(messages)
    newest = await memory.get_all(archived=True, last=1)
    stored = await memory.get_all()
    active = next((place + 1 for place, one in enumerate(stored) if newest and one.id == newest[0].id), 0)
    said, known = [encode(one) for one in messages], [encode(one) for one in stored]
    start = _start(said, known, active)
    result = list(messages)
    for place, message in enumerate(messages):
        there = start + place
        if there >= len(stored) or not (message.id == stored[there].id or said[place] == known[there]):
            break
        if message.id is None:
            result[place] = stored[there]
    return result


def _start(said: list[str], known: list[str], active: int) -> int:
    if said[:1] == known[active : active + 1]:
        return active
    for start in range(active - 1, -1, -1):
        if said[0] == known[start] and said[: active - start] == known[start : start + len(said)][: active - start]:
            return start
    return active


async def of_status(memory: Memory, status: str | Enum | None) -> list[ChatMessage]:
    """All messages, or those that a `MessageStatus` of LlamaIndex names.

    :raises ConfigurationError: it names none.
    """
    wanted = status.value if isinstance(status, Enum) else status
    if wanted not in (None, "active", "archived"):
        raise ConfigurationError(f"status is None, active or archived, not {status!r:.80}.")
    archived = [] if wanted is None else await memory.get_all(archived=True)
    return archived if wanted == "archived" else (await memory.get_all())[len(archived) :]
