"""A session as a graph's thread sees it: which of the state's messages are new, which were edited, and what to show."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig

from memory_engine.engine import MemoryEngine
from memory_engine.errors import ConfigurationError, InvalidMessageError, MessageConflictError
from memory_engine.integrations.langchain.incoming import mark_of
from memory_engine.integrations.langchain.messages import from_langchain, message_from_langchain, to_langchain
from memory_engine.memory import Memory

log = logging.getLogger("memory_engine.langchain")

SessionOf = str | Callable[[RunnableConfig], str] | None

_RECENT = 500
"""So many stored messages are read when a process meets a session, to know what of a state is stored."""
_KEPT = 1_000
"""So many threads and, in each, so many times five ids are remembered."""


class Thread:
    """One session. Whoever changes a state keeps the ids of its messages, which is how they are told apart here."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self._known: dict[str, int] | None = None
        self._lock = asyncio.Lock()

    async def store(self, messages: Sequence[BaseMessage]) -> None:
        """Store what a state has that memory has not.

        New is what stands behind the newest message that is stored: so what was erased from memory does not come back from
        a state that has later messages (the newest ones are to be removed from the state, too). What was edited in the state
        under its own id is replaced, unless it has left the FIFO.

        :raises InvalidMessageError: a message has no id, or cannot be kept.
        """
        async with self._lock:
            known = await self._stored()
            said = [message for message in messages if not _is_inserted(message)]
            for message in said:
                if message.id is None:
                    raise InvalidMessageError(
                        "A message of the graph's state has no id, so nobody can tell whether it is new; declare the key as "
                        "Annotated[list[AnyMessage], add_messages], which gives ids."
                    )
            prints = {str(message.id): fingerprint(message) for message in said}
            newest = max((at for at, message in enumerate(said) if message.id in known), default=-1)
            # What has a mark came from memory, as a copy; when it is not known any more, it was erased.
            new = [message for message in said[newest + 1 :] if not mark_of(message)]
            edited = {
                str(message.id): message
                for message in said[: newest + 1]
                if not mark_of(message) and known.get(str(message.id), prints[str(message.id)]) != prints[str(message.id)]
            }
            await self._write(new, edited)
            known.update({message_id: value for message_id, value in prints.items() if message_id in known})
            known.update({str(message.id): prints[str(message.id)] for message in new})
            for message_id in list(known)[: -5 * _KEPT]:
                del known[message_id]

    async def view(self, query: str | None = None) -> list[BaseMessage]:
        """The messages for a model, within the budget; made for the caller, who may change them."""
        return to_langchain(await self.memory.get(query))

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


class Threads:
    """The sessions of runs, by their config: `thread_id`, and `user_id` if there is one, under `configurable`."""

    def __init__(
        self, memory: Memory | MemoryEngine, *, session_id: SessionOf = None, user_id: SessionOf = None, tenant: str = ""
    ) -> None:
        if not isinstance(memory, Memory | MemoryEngine):
            raise ConfigurationError(f"memory is a MemoryEngine or a Memory, not {type(memory).__name__}.")
        if isinstance(memory, Memory) and (session_id is not None or user_id is not None or tenant):
            raise ConfigurationError("A Memory is one session already; for several give its MemoryEngine.")
        self.memory = memory
        self._session_id, self._user_id, self._tenant = session_id, user_id, tenant
        self._threads: OrderedDict[tuple[str, str | None], Thread] = OrderedDict()

    def of(self, config: RunnableConfig) -> Thread:
        """The thread of a run.

        :raises ConfigurationError: the config names no session.
        """
        if isinstance(self.memory, Memory):
            return self._kept(("", None), self.memory)
        session_id = _named(self._session_id, config, "thread_id")
        user_id = _named(self._user_id, config, "user_id")
        if session_id is None:
            raise ConfigurationError(
                'The run names no session; call it with config={"configurable": {"thread_id": ...}}, or give session_id=.'
            )
        key = (session_id, user_id)
        known = self._threads.get(key)
        return self._kept(key, known.memory if known else self.memory.session(session_id, user_id=user_id, tenant=self._tenant))

    def _kept(self, key: tuple[str, str | None], memory: Memory) -> Thread:
        thread = self._threads.setdefault(key, Thread(memory))
        self._threads.move_to_end(key)
        if len(self._threads) > _KEPT:
            self._threads.popitem(last=False)
        return thread


def fingerprint(message: BaseMessage) -> int:
    """A number that changes with what a message says. It is this process's own."""
    content = message.content if isinstance(message.content, str) else repr(message.content)
    calls = repr([(c["id"], c["name"], c["args"]) for c in message.tool_calls]) if isinstance(message, AIMessage) else ""
    status = message.status if isinstance(message, ToolMessage) else ""
    return hash((message.type, content, calls, status))


def _is_inserted(message: BaseMessage) -> bool:
    mark = mark_of(message)
    return bool(mark.get("whole") or mark.get("part_of")) or message.type == "remove"


def _named(given: SessionOf, config: RunnableConfig, key: str) -> str | None:
    if callable(given):
        return given(config)
    if given is not None:
        return given
    value = (config.get("configurable") or {}).get(key)
    return None if value is None else str(value)
