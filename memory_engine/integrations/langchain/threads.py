"""A session as a graph's thread sees it: which of the state's messages are new, which were edited, and what to show."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from itertools import pairwise

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage

from memory_engine.errors import InvalidMessageError, MessageConflictError
from memory_engine.integrations.langchain.calls import known_id
from memory_engine.integrations.langchain.incoming import mark_of
from memory_engine.integrations.langchain.messages import from_langchain, message_from_langchain, to_langchain
from memory_engine.memory import Memory
from memory_engine.messages import without_memory

log = logging.getLogger("memory_engine.langchain")

_RECENT = 500
"""So many stored messages are read when a process meets a session, to know what of a state is stored."""
KEPT = 1_000
"""So many threads and, in each, so many times five ids are remembered."""


class Thread:
    """One session. Whoever changes a state keeps the ids of its messages, which is how they are told apart here."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._known: dict[str, int] | None = None
        self._epoch = 0
        self._begins: dict[str, str] = {}  # of requests in several messages: the id of the first by that of the last
        self._lock = asyncio.Lock()

    async def store(self, messages: Sequence[BaseMessage]) -> None:
        """Store what a state has that memory has not.

        New is what stands behind the newest message that is stored, and what the run says. What stands between the two is new
        unless something was erased from the session since it was looked at here: then it may be what was erased, and that does
        not come back. What was edited in the state under its own id is replaced, unless it has left the FIFO.

        :raises InvalidMessageError: a message has no id, or cannot be kept.
        """
        async with self._lock:
            known = await self._stored()
            said = self._said(messages)
            prints = {str(message.id): fingerprint(message) for message in said}
            newest = max((at for at, message in enumerate(said) if message.id in known), default=-1)
            edited = {
                str(message.id): message
                for message in said[: newest + 1]
                if not mark_of(message) and known.get(str(message.id), prints[str(message.id)]) != prints[str(message.id)]
            }
            new = await self._new(said, newest)
            self._note_request(new)
            await self._write(new, edited)
            known.update({message_id: value for message_id, value in prints.items() if message_id in known})
            known.update({str(message.id): prints[str(message.id)] for message in new})
            for message_id in list(known)[: -5 * KEPT]:
                del known[message_id]

    async def view(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """The messages for the model of the run with this state, within the budget; made for the caller, who may change them.

        The run's request and what was said since stand last, whatever other runs of the session have said meanwhile.
        """
        own = [message for message in map(without_memory, from_langchain(self._own(messages))) if message is not None]
        return to_langchain((await self.memory.context_of_run(own)).messages)

    def _own(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """What the run with this state has said: its request, which may be several messages, and the steps after it."""
        known = self._known or {}
        said = [message for message in self._said(messages) if message.id in known]
        request = next((str(message.id) for message in reversed(said) if _is_request(message)), None)
        first = self._begins.get(request or "", request)
        start = next((at for at, message in enumerate(said) if message.id == first), len(said))
        return said[start:]

    def _said(self, messages: Sequence[BaseMessage]) -> list[BaseMessage]:
        """What was said, each message under an id of its own.

        Some models give the id of an older message again. An answer right behind a request that was stored later than a message
        of the answer's id is another message; it is known by both ids, so each time by the same.
        """
        said = [message for message in messages if not _is_inserted(message)]
        if any(message.id is None for message in said):
            raise InvalidMessageError(
                "A message of the graph's state has no id, so nobody can tell whether it is new; declare the key as "
                "Annotated[list[AnyMessage], add_messages], which gives ids."
            )
        places = {message_id: place for place, message_id in enumerate(self._known or ())}
        for at, (before, message) in enumerate(pairwise(said), start=1):
            if isinstance(message, AIMessage) and not mark_of(message) and _is_request(before):
                place = places.get(str(message.id))
                if place is not None and place < places.get(str(before.id), -1):
                    said[at] = message.model_copy(update={"id": known_id(f"{message.id}:{before.id}")})
        return said

    def knows(self, message: BaseMessage) -> bool:
        """Whether a message of that id is stored, as far as it was looked at here."""
        return message.id in (self._known or ())

    async def _new(self, said: Sequence[BaseMessage], newest: int) -> list[BaseMessage]:
        """What is to be stored of what was said, whose newest message that is known here stands at that place."""
        request = max((at for at, message in enumerate(said) if _is_request(message)), default=newest + 1)
        start = newest + 1
        if start < _request_start(said, request) and await self._was_erased():
            start = max(start, _request_start(said, request))
        elif newest == request == len(said) - 1 and await self._was_erased():
            # A run begins with a request that is known. One that was erased is asked again.
            stored = {message.id for message in await self.memory.get_all()}
            start = newest if said[newest].id not in stored else start
        # What has a mark came from memory, as a copy; when it is not known any more, it was erased.
        return [message for message in said[start:] if not mark_of(message)]

    async def _was_erased(self) -> bool:
        """Whether something was erased that may still be in a state: since this was asked last, at first ever."""
        before, self._epoch = self._epoch, await self.memory.epoch()
        return self._epoch != before

    def _note_request(self, new: Sequence[BaseMessage]) -> None:
        at = max((at for at, message in enumerate(new) if _is_request(message)), default=0)
        start = _request_start(new, at)
        if start < at:
            self._begins[str(new[at].id)] = str(new[start].id)
        for message_id in list(self._begins)[:-KEPT]:
            del self._begins[message_id]

    async def _stored(self) -> dict[str, int]:
        if self._known is None:
            recent = to_langchain(await self.memory.get_all(last=_RECENT))
            self._known = {str(message.id): fingerprint(message) for message in recent}
        return self._known

    async def _write(self, new: Sequence[BaseMessage], edited: dict[str, BaseMessage]) -> None:
        if new:
            try:
                await self.memory.put_messages(from_langchain(new))
            except MessageConflictError:
                # Stored by another process, or too long ago to be known here.
                stored = {str(message.id): message for message in to_langchain(await self.memory.get_all())}
                for message in new:
                    before = stored.get(str(message.id))
                    if before is not None and fingerprint(before) != fingerprint(message):
                        edited[str(message.id)] = message
                await self.memory.put_messages(from_langchain([message for message in new if message.id not in stored]))
        if edited:
            await self._replace(edited)

    async def _replace(self, edited: Mapping[str, BaseMessage]) -> None:
        archived = {message.id for message in await self.memory.get_all(archived=True)}
        active = {message_id: message_from_langchain(m) for message_id, m in edited.items() if message_id not in archived}
        if late := [message_id for message_id in edited if message_id in archived]:
            log.warning("messages edited after they left the FIFO stay as blocks have read them: %s", late)
        if active:
            await self.memory.set([active.get(message.id or "", message) for message in await self.memory.get_all()])


def fingerprint(message: BaseMessage) -> int:
    """A number that changes with what a message says. It is this process's own."""
    content = message.content if isinstance(message.content, str) else repr(message.content)
    calls = repr([(c["id"], c["name"], c["args"]) for c in message.tool_calls]) if isinstance(message, AIMessage) else ""
    status = message.status if isinstance(message, ToolMessage) else ""
    return hash((message.type, content, calls, status))


def _is_request(message: BaseMessage) -> bool:
    return message.type == "human" or (message.type == "chat" and message_from_langchain(message).role == "user")


def _request_start(messages: Sequence[BaseMessage], at: int) -> int:
    """Where the request begins whose last message is at this place."""
    while at > 0 and (_is_request(messages[at - 1]) or messages[at - 1].type == "system"):
        at -= 1
    return at


def _is_inserted(message: BaseMessage) -> bool:
    mark = mark_of(message)
    return bool(mark.get("whole") or mark.get("part_of")) or message.type == "remove"
