"""`LlamaIndexMemory`: a session of ours as a `BaseMemory` of LlamaIndex."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import Any, Self, TypeVar
from uuid import uuid4

from llama_index.core.base.llms.types import ChatMessage as Theirs

from memory_engine import Memory
from memory_engine.errors import ConfigurationError
from memory_engine.integrations.llama_index import engines
from memory_engine.integrations.llama_index.arguments import arguments_of, portable
from memory_engine.integrations.llama_index.handed import Handed, aligned, of_status
from memory_engine.integrations.llama_index.handle import HandleMethods
from memory_engine.integrations.llama_index.runs import Runs
from memory_engine.integrations.llama_index.sync import SyncMethods
from memory_engine.messages import ChatMessage

R = TypeVar("R")
_handed = Handed()
_runs = Runs()


class LlamaIndexMemory(HandleMethods, SyncMethods):
    """One session's memory for agents, workflows and chat engines of LlamaIndex.

    It consists of plain JSON and finds its engine by name at every use, so it goes into a serialized `Context` and comes out
    again, also in another process; see `register_engine`. Nothing of a database address that may be secret is in it.

    `engine` is the name of a registered engine; `arguments` is what an engine of `from_defaults` can be opened from again,
    and `needs` what else that takes. The sync methods wait for the async ones, and block the event loop that they are called
    in; one of the application's own engine would wait for itself there, and raises `WrongEventLoopError` instead.

    What `get` returned may be put or set again: messages that are stored are known again, and what memory inserted is not
    stored, also when they went through JSON. One that is new is stored whenever it is put, with one exception: when an agent's
    run ended before it was answered, the same text put by another run is its retry.

    What `aget` returns in a workflow's run ends with what this run asked, whatever others put meanwhile.
    """

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex serializes it."""
        return "LlamaIndexMemory"

    @classmethod
    def from_defaults(
        cls,
        session_id: str | None = None,
        chat_history: Sequence[Theirs] | None = None,
        *,
        user_id: str | None = None,
        tenant: str = "",
        engine_name: str | None = None,
        **options: Any,
    ) -> Self:
        """A memory with an engine of its own, from the arguments of LlamaIndex's `Memory.from_defaults` and of our own.

        Sync and cheap; it connects on first use. `memory_blocks` may be of both kinds. Memories with equal arguments and a
        database share one engine, which runs in a thread of its own until `aclose()` of the last one, or until none of them is
        left: pending deliveries get some seconds then, and what is not done is done at the next start. An `async_engine` of
        yours is used in the event loop in which the memory is used first.
        A `chat_history` that is not empty becomes the active messages at once.

        :raises ConfigurationError: an argument is wrong or has no counterpart (`chat_store`, `db_schema`).
        """
        arguments = arguments_of(options)
        connection = engines.open_engine(arguments, engine_name)
        plain, needs = portable(arguments)
        name = session_id or f"session-{uuid4()}"
        memory = cls(session_id=name, user_id=user_id, tenant=tenant, engine=connection.name, arguments=plain, needs=needs)
        memory._own(connection)
        if chat_history:
            if connection.thread is None:
                raise ConfigurationError("With an async_engine of yours, call `await memory.aset(chat_history)` instead.")
            connection.thread.submit(partial(memory.aset, list(chat_history))).result()
        return memory

    @classmethod
    def from_memory(cls, memory: Memory) -> Self:
        """The memory for LlamaIndex of a handle of ours: `LlamaIndexMemory.from_memory(engine.session("chat-1"))`.

        It runs in the event loop of the handle's engine, and closes nothing. Read-only views stay so.
        """
        wrapped = cls(
            session_id=memory.session_id,
            user_id=memory.user_id,
            tenant=memory.tenant,
            engine=engines.name_of(memory.engine),
            on_write=memory._on_write,
        )
        wrapped._handle = memory
        return wrapped

    # -- async -----------------------------------------------------------------------------------------------

    async def aget(self, input: str | Theirs | None = None, **block_kwargs: Any) -> list[Theirs]:  # noqa: A002
        """The messages to send to the model now, new objects at every call; see `memory_engine.Memory.get`.

        `initial_token_count`, which chat engines give, is not used: reserve what prompts need with `reserved_tokens`.
        """
        query = self._query(input, block_kwargs)
        # Found here: the engine's thread knows of no run.
        own = _runs.own(self._session)

        async def read(memory: Memory) -> list[ChatMessage]:
            if own:
                return (await memory.context_of_run(own, query, **block_kwargs)).messages
            return await memory.get(query, **block_kwargs)

        return self._given(await self.acall(read))

    async def aget_all(self, status: str | Enum | None = None) -> list[Theirs]:
        """Every message in order, archived ones too; with a `MessageStatus` those that are "active" or "archived"."""
        return self._given(await self.acall(lambda memory: of_status(memory, status)))

    async def aput(self, message: Theirs) -> None:
        """Commit one message; one that `get` returned is stored already."""
        await self.aput_messages([message])

    async def aput_messages(self, messages: Sequence[Theirs]) -> None:
        """Commit several messages in one transaction, all or none."""
        new = self._read(messages)
        if await _runs.is_retry(self._session, new, self.acall):
            return
        stored = await self.acall(lambda memory: memory.put_messages(new))
        _runs.note(self._session, stored)

    async def aset(self, messages: Sequence[Theirs]) -> None:
        """Make these the active messages, in one transaction. Those that are stored stay as they are, known by their ids
        when `get` returned them, else by their content; the archive and what blocks know stay too."""

        async def replace(memory: Memory) -> list[ChatMessage]:
            known = await aligned(new, memory)
            await memory.set(known)
            return known

        new = self._read(messages)
        known = await self.acall(replace)
        _runs.forget(self._session, {message.id for message in known})

    async def areset(self, status: str | Enum | None = None) -> None:
        """Delete the session's messages and everything derived; with a `MessageStatus` only those, with what came of them."""

        async def reset(memory: Memory) -> None:
            if status is None:
                await memory.reset()
            else:
                await memory.delete([message.id for message in await of_status(memory, status) if message.id])

        await self.acall(reset)
        _runs.forget(self._session)

    # -- helpers ---------------------------------------------------------------------------------------------

    @property
    def _session(self) -> tuple[str, str, str]:
        return (self.engine, self.tenant, self.session_id)

    def _query(self, input: str | Theirs | None, block_kwargs: dict[str, Any]) -> Any:  # noqa: A002
        block_kwargs.pop("initial_token_count", None)
        asked: Any = block_kwargs.pop("messages", None) if input is None else input
        asked = [asked] if isinstance(asked, Theirs) else asked
        return self._read(asked) if isinstance(asked, list) and all(isinstance(item, Theirs) for item in asked) else asked

    def _read(self, messages: Sequence[Theirs]) -> list[ChatMessage]:
        return _handed.read(self._session, messages)

    def _given(self, messages: Sequence[ChatMessage]) -> list[Theirs]:
        return _handed.give(self._session, messages)
