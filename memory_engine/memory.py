"""The handle that agents hold. It only delegates: writing to `session`, reading to `reading`, life to `engine`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self
from uuid import uuid4

from memory_engine.errors import ConfigurationError, DrainTimeoutError, ReadOnlyError
from memory_engine.messages import ChatMessage, coerce
from memory_engine.reading import Query, read_context
from memory_engine.receipt import Context
from memory_engine.session import BoundBlock, MessageLike, Session
from memory_engine.settings import Limits, TokenizerFn, check_id, check_timeout
from memory_engine.store import WorkFilter, scope_key
from memory_engine.window import Shown

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from memory_engine.binding import Block
    from memory_engine.engine import MemoryEngine
    from memory_engine.render import Renderer
    from memory_engine.settings import Clock
    from memory_engine.store import Store
    from memory_engine.tools import Tool
    from memory_engine.turn import Turn

log = logging.getLogger("memory_engine")


class Memory:
    """One session's memory: `put` messages in, `get` what the model should read now, always within the budget.

    Get one from `Memory.from_defaults(...)` (a memory of its own) or from `MemoryEngine.session(...)` (shared database
    and blocks). Several tasks, handles, processes and hosts may use one session at the same time.
    """

    def __init__(self, engine: MemoryEngine, session: Session, *, owns_engine: bool = False) -> None:
        self._engine, self._session, self._owns_engine = engine, session, owns_engine
        self._shown = Shown()
        self._on_write: Literal["do", "raise", "ignore"] = "do"

    @classmethod
    def from_defaults(
        cls,
        session_id: str | None = None,
        *,
        token_limit: int = 30_000,
        chat_history_token_ratio: float = 0.7,
        token_flush_size: int | None = None,
        memory_blocks: Sequence[Block] = (),
        insert_method: str = "system",
        tokenizer_fn: TokenizerFn | None = None,
        async_database_uri: str | None = None,
        async_engine: AsyncEngine | None = None,
        table_prefix: str = "memory_",
        reserved_tokens: int = 0,
        delivery: str = "background",
        on_block_error: str = "skip",
        max_turns: int | None = None,
        start_on_user: bool = True,
        max_tool_result_tokens: int | None = None,
        renderer: Renderer | None = None,
        message_overhead_tokens: int = 4,
        image_token_size_estimate: int = 1024,
        audio_token_size_estimate: int = 1024,
        video_token_size_estimate: int = 2048,
        document_token_size_estimate: int = 2048,
        limits: Limits | None = None,
        sqlite_synchronous: str = "NORMAL",
        busy_timeout: float = 30.0,
        store: Store | None = None,
        clock: Clock | None = None,
        user_id: str | None = None,
        tenant: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> Memory:
        """A memory with an engine of its own; sync and cheap, it connects on first use.

        - `token_limit`: what `get` may return, with `reserved_tokens` kept free for the caller's own prompt and tools.
        - `chat_history_token_ratio`: the share of history before the FIFO flushes, in chunks of at least
          `token_flush_size` (None: a tenth of the limit) to the `memory_blocks`.
        - `insert_method`: where memory is put: "system", "user" (the latest user message), or "split" (what does not
          depend on the query to the system message, the rest to the user message: keeps prompt caches hitting).
        - `tokenizer_fn`: str -> int, or str -> something sized; None counts with o200k_base, offline.
        - `async_database_uri`: such as "sqlite+aiosqlite:///memory.db"; without any database nothing is kept.
        - `delivery`: "background" (`put` never waits for a block), "inline" (one attempt inside `put`), or "worker" (other
          processes deliver, see `MemoryEngine.work`).
        - `max_turns`: at most that many turns in the view; `on_block_error`: "skip" or "raise" in `get`.

        :raises ConfigurationError: an argument is wrong; nothing was opened.
        """
        from memory_engine.engine import MemoryEngine

        session_id = f"session-{uuid4()}" if session_id is None else session_id
        engine = MemoryEngine(
            token_limit=token_limit,
            chat_history_token_ratio=chat_history_token_ratio,
            token_flush_size=token_flush_size,
            memory_blocks=memory_blocks,
            insert_method=insert_method,
            tokenizer_fn=tokenizer_fn,
            async_database_uri=async_database_uri,
            async_engine=async_engine,
            table_prefix=table_prefix,
            reserved_tokens=reserved_tokens,
            delivery=delivery,
            on_block_error=on_block_error,
            max_turns=max_turns,
            start_on_user=start_on_user,
            max_tool_result_tokens=max_tool_result_tokens,
            renderer=renderer,
            message_overhead_tokens=message_overhead_tokens,
            image_token_size_estimate=image_token_size_estimate,
            audio_token_size_estimate=audio_token_size_estimate,
            video_token_size_estimate=video_token_size_estimate,
            document_token_size_estimate=document_token_size_estimate,
            limits=limits,
            sqlite_synchronous=sqlite_synchronous,
            busy_timeout=busy_timeout,
            store=store,
            clock=clock,
            # Another program may use the same block name for another block in its sessions: leave those alone.
            _only=WorkFilter((), tenant, session_id, _shared_scopes(tenant, user_id)),
        )
        memory = engine.session(session_id, user_id=user_id, tenant=tenant, metadata=metadata)
        memory._owns_engine = True
        return memory

    # -- what agents call ------------------------------------------------------------------------------------

    async def put(self, message: MessageLike) -> ChatMessage | None:
        """Commit one message (a `ChatMessage`, or a dict of ours or in OpenAI's style); returns it as stored.

        When this returns, the message is committed. It has an id then; a message that comes with an id which is stored
        already is a no-op. None is returned for what memory itself had inserted.

        :raises InvalidMessageError: not a message, or one that cannot be kept exactly; nothing was written.
        :raises StoreError: the database refused; nothing was written.
        """
        if not self._writes("put"):
            return None
        await self._engine._ready()
        stored = await self._session.put((message,))
        return stored[0] if stored else None

    async def put_messages(self, messages: Sequence[MessageLike]) -> list[ChatMessage]:
        """Commit several messages in one transaction, all or none; otherwise as `put`."""
        if not self._writes("put_messages"):
            return []
        await self._engine._ready()
        return await self._session.put(_sequence(messages))

    async def get(self, input: Query = None, *, messages: Query = None, **block_kwargs: Any) -> list[ChatMessage]:  # noqa: A002
        """The messages to send to the model now, at most `token_limit - reserved_tokens` tokens.

        `input` (or `messages`, as LlamaIndex's guide writes it) is what the blocks search with; it is not stored and
        not part of the result. `block_kwargs` are handed to every block's `_aget`.

        :raises BudgetExceededError: what may never be cut does not fit; it names the largest contributors.
        """
        return (await self.context(input, messages=messages, **block_kwargs)).messages

    async def context(self, input: Query = None, *, messages: Query = None, **block_kwargs: Any) -> Context:  # noqa: A002
        """The same messages as `get`, with a `Receipt` that accounts for every token and everything left out."""
        if input is not None and messages is not None:
            raise ConfigurationError("Give the query once: as `input` or as `messages`.")
        return await self.context_of_run((), input if input is not None else messages, **block_kwargs)

    async def context_of_run(self, own: Sequence[ChatMessage], query: Query = None, /, **block_kwargs: Any) -> Context:
        """The context for the model of one run, while other runs write to the same session; for adapters and own loops.

        `own` is what the run has said, in order: messages as they were stored, and others that will be. They stand behind
        everything else, so that a model is never shown another's request last, and the run's request and its newest step
        are there even when others pushed them out of the FIFO. Without `own` it is what `context` returns.

        :raises BudgetExceededError: what may never be cut does not fit.
        """
        await self._engine._ready()
        context = await read_context(self._session, query, block_kwargs, self._shown, own)
        self._session.core.shown.note(self._shown, context.messages)
        return context

    def turn(self, message: MessageLike | str, **block_kwargs: Any) -> Turn:
        """One turn of an agent's own loop: `async with memory.turn("What is …?") as turn:`; see `memory_engine.turn`.

        Entering it commits what the user says. `turn.messages` is what to send to the model; `await turn.add(...)` adds what
        the model says and tools return. Leaving it commits all of that in one transaction, leaving it by an error nothing.

        :raises InvalidMessageError: the message is none of a user's.
        """
        from memory_engine.turn import Turn

        return Turn(self, message, block_kwargs)

    async def get_all(self, *, last: int | None = None, archived: bool = False) -> list[ChatMessage]:
        """Every message of the session in order; with `archived` those that left the FIFO, with `last` the newest of them.

        :raises ConfigurationError: `last` is no number of messages.
        """
        if last is not None and (isinstance(last, bool) or not isinstance(last, int) or not 0 <= last < 2**63):
            raise ConfigurationError(f"last is how many of the newest messages get_all returns, not {last!r:.80}.")
        await self._engine._ready()
        return await self._session.get_all(last, archived=archived)

    async def epoch(self) -> int:
        """A number that grows whenever something of the session is erased (`delete`, `pop`, `rewind`, `reset`); first it is 0.

        Adapters ask it, so that what was erased here does not come back from a copy that a framework keeps.
        """
        await self._engine._ready()
        return await self._session.epoch()

    async def set(self, messages: Sequence[MessageLike]) -> None:
        """Replace the active messages in one transaction; archive and block state stay.

        The common beginning (by id) stays as it is, new messages are appended; archived ones stay archived.
        """
        if not self._writes("set"):
            return
        await self._engine._ready()
        await self._session.set(_sequence(messages))

    # -- the life of a session -------------------------------------------------------------------------------

    async def flush(self, *, final: bool = False) -> int:
        """Archive all complete turns now, with `final` the current one too; returns how many tokens left the FIFO."""
        if not self._writes("flush"):
            return 0
        await self._engine._ready()
        return await self._session.flush(final=final)

    async def drain(self, timeout: float | None = None) -> None:
        """Wait until every block has absorbed every flushed message of this session.

        :raises DrainTimeoutError: after `timeout` seconds; what is pending stays so.
        """
        check_timeout(timeout)
        await self._engine._ready()
        await self._session.drain(timeout)

    async def pop(self) -> ChatMessage | None:
        """Delete the newest message with everything derived from it and return it; None when there is none."""
        if not self._writes("pop"):
            return None
        await self._engine._ready()
        return await self._session.pop()

    async def delete(self, ids: Sequence[str]) -> int:
        """Delete these messages with everything derived from them; unknown ids are ignored. Returns how many went."""
        if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Sequence):
            raise ConfigurationError("delete takes a list of message ids.")
        checked = [check_id("a message id", message_id) for message_id in ids]
        if not self._writes("delete"):
            return 0
        await self._engine._ready()
        return await self._session.delete(checked)

    async def rewind(self, message_id: str) -> int:
        """Delete that message and all after it, to edit and go on from there. Returns how many went.

        :raises MessageNotFoundError: there is no such message.
        """
        check_id("message_id", message_id)
        if not self._writes("rewind"):
            return 0
        await self._engine._ready()
        return await self._session.rewind(message_id)

    async def reset(self) -> None:
        """Delete the session's messages, its session-scoped state and everything derived; user and global state stays."""
        if not self._writes("reset"):
            return
        await self._engine._ready()
        await self._session.reset()

    async def redeliver(self, block: str | None = None) -> int:
        """Give parked chunks (of one block, or all) another round of attempts. Returns how many.

        :raises ConfigurationError: this memory has no such block.
        """
        if block is not None:
            self._session.definition(block)
        if not self._writes("redeliver"):
            return 0
        await self._engine._ready()
        return await self._session.redeliver(block)

    def block(self, name: str) -> BoundBlock:
        """That block bound to this scope: `await memory.block(name)` to look at it, `async with` it to correct it."""
        return BoundBlock(self._engine._ready, self._session, name, read_only=self._on_write != "do")

    def read_only(self, *, on_write: Literal["raise", "ignore"] = "raise") -> Memory:
        """A view of this session for agents that may read it but must not change it; it closes nothing.

        `get`, `context`, `get_all`, `drain` and looking at blocks work as here. What would change the session raises
        `ReadOnlyError`, or with "ignore" does nothing and returns what it returns when there is nothing to do.

        :raises ConfigurationError: `on_write` is something else.
        """
        if on_write not in ("raise", "ignore"):
            raise ConfigurationError(f'on_write is "raise" or "ignore", not {on_write!r:.80}.')
        view = Memory(self._engine, self._session)
        view._on_write = on_write if self._on_write == "do" else self._on_write
        return view

    def as_tools(self, *, erase: bool = False) -> list[Tool]:
        """This memory as tools for a model: `remember`, `search_memory` and `forget`; see `memory_engine.tools`.

        A fact that is forgotten stays in the history of its block, with `erase` not even there.
        """
        from memory_engine.tools import as_tools

        return as_tools(self, erase=erase)

    def _writes(self, what: str) -> bool:
        """Whether this memory may change; raises `ReadOnlyError`."""
        if self._on_write == "raise":
            raise ReadOnlyError(f"{what} was called on a read-only view; write through the memory that it was made of.")
        return self._on_write == "do"

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def session_id(self) -> str:
        """The name of this conversation, unique in its tenant."""
        return self._session.identity[1]

    @property
    def user_id(self) -> str | None:
        """Whose conversation it is; blocks of scope "user" know this user's sessions. None: nobody's."""
        return self._session.identity[2]

    @property
    def tenant(self) -> str:
        """The customer or application that it belongs to; nothing is shared between tenants. Default: ""."""
        return self._session.identity[0]

    @property
    def token_limit(self) -> int:
        """What `get` may return with `reserved_tokens` on top, in tokens."""
        return self._session.core.settings.token_limit

    @property
    def budget(self) -> int:
        """What `get` may return at most, in tokens: `token_limit` less `reserved_tokens`."""
        return self._session.core.settings.budget

    def count_tokens(self, messages: Sequence[MessageLike]) -> int:
        """The tokens of these messages, counted as `get` counts them: with tool calls, media and what each message adds.

        :raises InvalidMessageError: one of them is no message.
        """
        return sum(self._session.core.counter.message(coerce(message)) for message in _sequence(messages))

    @property
    def engine(self) -> MemoryEngine:
        """What holds this session: its database, blocks and settings; of a memory of `from_defaults`, its own."""
        return self._engine

    @property
    def blocks(self) -> Mapping[str, Block]:
        """The definitions of the blocks by name, in their order; `block(name)` gives the one of this scope."""
        return MappingProxyType(self._session.core.definitions)

    @property
    def is_read_only(self) -> bool:
        """Whether this is a view that cannot change the session."""
        return self._on_write != "do"

    def __repr__(self) -> str:
        return f"Memory(session_id={self.session_id!r}, token_limit={self.token_limit})"

    def __bool__(self) -> bool:
        """Always true: frameworks that write `memory or default` must not lose an empty memory."""
        return True

    async def __aenter__(self) -> Self:
        if self._owns_engine:
            await self._engine.__aenter__()
        else:
            await self._engine._ready()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self, *, timeout: float = 30.0) -> None:
        """Let pending deliveries of this session end (at most `timeout` seconds); close what this memory opened.

        A handle of a `MemoryEngine` closes nothing and may be used again; closing the engine ends all of its handles.
        """
        if self._owns_engine:
            await self._engine.aclose(timeout=timeout)
        elif self._engine.connected:
            try:
                await self.drain(timeout)
            except DrainTimeoutError as error:
                log.warning("leaving a session with work left for the engine: %s", error)


def _shared_scopes(tenant: str, user_id: str | None) -> tuple[str, ...]:
    """The scope keys that a session shares with others."""
    if not isinstance(tenant, str) or not isinstance(user_id, str | None):
        return ()  # refused a moment later, by name
    wide = scope_key("global", tenant=tenant, user_id=None, session_uid="")
    return (wide,) if user_id is None else (wide, scope_key("user", tenant=tenant, user_id=user_id, session_uid=""))


def _sequence(messages: object) -> Sequence[MessageLike]:
    if type(messages) is list:
        return messages
    if isinstance(messages, str | bytes | Mapping | ChatMessage) or not isinstance(messages, Sequence):
        raise ConfigurationError("put_messages and set take a list of messages; `put` takes one.")
    return messages
