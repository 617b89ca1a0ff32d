"""A `BaseChatMessageHistory`: for `RunnableWithMessageHistory`, and whatever else takes a history.

    RunnableWithMessageHistory(chain, lambda session_id: MemoryChatMessageHistory(engine.session(session_id)), ...)

What it returns is the budgeted context with memory's section; what a run adds is stored, once. The question of a run comes
on top of that context: keep room for it with `reserved_tokens`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from types import FrameType

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from memory_engine.errors import MessageConflictError
from memory_engine.integrations.langchain.incoming import mark_of
from memory_engine.integrations.langchain.messages import from_langchain, to_langchain
from memory_engine.integrations.langchain.sync import close, run_sync
from memory_engine.integrations.langchain.threads import fingerprint
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage

log = logging.getLogger("memory_engine.langchain")


class MemoryChatMessageHistory(BaseChatMessageHistory):
    """The history of one session, within its budget. Cheap: make one for each run, or keep one, as you like.

    `query` is what blocks search with; without it, the newest stored messages. The asynchronous methods are the real ones;
    the others may be called where `sync` says, and a history that was used so is closed with `close()`.
    """

    def __init__(self, memory: Memory, *, query: str | None = None) -> None:
        super().__init__()
        self.memory = memory
        self._query = query
        self._handed_out: set[str] = set()

    async def aget_messages(self) -> list[BaseMessage]:
        """The messages for a model now; a fresh list of messages that may be changed.

        :raises BudgetExceededError: what may never be cut does not fit.
        """
        if _asked_at_the_end(sys._getframe(1)):
            return []
        return await self._get()

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Store what is new. What this history handed out, and what memory inserted, is not stored again.

        An answer with the id of a message that was stored before its question is a new one, as some models give one id again;
        where the question has an id too, it may be a repetition of both, and is not stored again.

        :raises MessageConflictError: another message is stored under the id of one of them; none of these was stored.
        """
        new = [message for message in messages if message.id not in self._handed_out and not mark_of(message)]
        *_, question, answer = (None, None, *messages)
        if isinstance(answer, AIMessage) and isinstance(question, HumanMessage) and new and new[-1] is question:
            new.append(answer.model_copy(update={"id": None}))
        given = from_langchain(new)
        try:
            stored = await self.memory.put_messages(given)
        except MessageConflictError:
            known = {message.id: fingerprint(message) for message in to_langchain(await self.memory.get_all())}
            if any(known.get(message.id, fingerprint(message)) != fingerprint(message) for message in new):
                raise
            await self.memory.put_messages(from_langchain([message for message in new if message.id not in known]))
            return
        if [message.role for message in stored[-2:]] == ["user", "assistant"] and _is_later(*stored[-2:]):
            if given[-2].id is None:
                await self.memory.put(given[-1].model_copy(update={"id": None}))
            else:
                log.warning("the answer %r was stored before its question, so it is taken to be repeated", given[-1].id)

    async def aclear(self) -> None:
        """Delete the session's messages with everything derived from them."""
        await self.memory.reset()

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """`aget_messages` from synchronous code."""
        if _asked_at_the_end(sys._getframe(1)):
            return []
        return run_sync(self.memory, self._get)

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """`aadd_messages` from synchronous code."""
        run_sync(self.memory, lambda: self.aadd_messages(messages))

    def clear(self) -> None:
        """`aclear` from synchronous code."""
        run_sync(self.memory, self.aclear)

    def close(self) -> None:
        """Close the memory, if it was used from synchronous code."""
        close(self.memory)

    async def _get(self) -> list[BaseMessage]:
        messages = to_langchain(await self.memory.get(self._query))
        self._handed_out.update(message.id for message in messages if message.id is not None)
        return messages


def _is_later(question: ChatMessage, answer: ChatMessage) -> bool:
    """Whether the question was stored after the answer to it. What is stored together has one time."""
    return question.created_at is not None and answer.created_at is not None and question.created_at > answer.created_at


def _asked_at_the_end(caller: FrameType | None) -> bool:
    """Whether `RunnableWithMessageHistory` asks, to leave out so many of a finished run's messages.

    It takes as many off the front as the history has by then, which loses the question when another run of the session has
    written meanwhile. Told that there are none, it gives all of them to `add_messages`, which tells them apart by their ids.
    """
    return caller is not None and caller.f_code.co_name in ("_exit_history", "_aexit_history")
