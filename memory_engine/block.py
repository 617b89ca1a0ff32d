"""What a memory block is: the class that authors subclass, where its copies are told they stand, and its durable rows.

A block that an author constructs is a definition. The engine never changes it: for every call it binds a copy to one
scope, with the fields that were saved there. See `memory_engine.binding` for how, `memory_engine.delivery` for when.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from memory_engine.errors import BlockStateError
from memory_engine.messages import ChatMessage, ContentBlock
from memory_engine.truncation import truncate
from memory_engine.usage import Usage

T = TypeVar("T", bound="str | list[ContentBlock] | list[ChatMessage]")
R = TypeVar("R")

BLOCK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
"""A name becomes a tag in the prompt and a key in the database."""


_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Erased:
    """Messages that were erased while a block has not forgotten them yet; `seqs` None means the whole session."""

    session_uid: str | None
    seqs: tuple[int, ...] | None

    def covers(self, session_uid: str | None, seq: int | None) -> bool:
        """Whether what came from that message of that session must not be shown any more."""
        if self.session_uid is None:
            return True
        return session_uid == self.session_uid and (self.seqs is None or seq in self.seqs)


class Answers:
    """What outside services answered during one delivery, by the order in which they were asked."""

    def __init__(self) -> None:
        self._known: dict[int, Any] = {}
        self._asked = 0

    async def once(self, ask: Callable[[], Awaitable[R]]) -> R:
        """What `ask` answers, or what it answered before `repeated`."""
        place, self._asked = self._asked, self._asked + 1
        if place not in self._known:
            self._known[place] = await ask()
        answer: R = self._known[place]
        return answer

    def forget(self) -> None:
        """Whatever was answered is of no use any more; from here on everything is asked anew."""
        self._known.clear()

    def repeated(self) -> Answers:
        """The same answers, to be given again from the first on."""
        self._asked = 0
        return self


@dataclass(frozen=True, slots=True)
class BlockContext:
    """Where a bound copy stands.

    `seqs` are parallel to the messages of a delivery; `delivery_id` is the same on every attempt, also after a crash,
    so it may serve as an idempotency key outside. In `_aget`, `tokens_available` is what all sections together may
    cost, `shown` holds the seqs that history is certain to show, `shown_messages` those messages as it shows them, and
    `query` what the caller asked (None: nothing).
    `erasing` lists what a reader of an outside store must leave out until `_aforget` has run. What `_aget` appends to
    `notes` stands in the receipt, for what went on although something was amiss. `usage` counts the calls of a model: what a
    delivery adds goes to telemetry also when it fails; what `_aget` puts there stands in the receipt. In `_aget`,
    `failed_usage` is what deliveries cost in this process that came to nothing. A delivery should be done by `deadline`, by
    the clock of `time.monotonic()`; a little later it is given up. `flush_size` is about what it has at least, in tokens.
    """

    tenant: str
    user_id: str | None
    session_id: str
    session_uid: str
    scope_key: str
    epoch: int
    now: datetime
    count: Callable[[str], int]
    seqs: tuple[int, ...] = ()
    delivery_id: str | None = None
    attempt: int = 1
    state_version: int = 0
    deleted_version: int = 0
    tokens_available: int | None = None
    shown: frozenset[int] = frozenset()
    shown_messages: tuple[ChatMessage, ...] = ()
    query: tuple[ChatMessage, ...] | None = None
    erasing: tuple[Erased, ...] = ()
    notes: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    failed_usage: Usage = field(default_factory=Usage)
    deadline: float | None = None
    flush_size: int | None = None
    answers: Answers = field(default_factory=Answers)

    async def once(self, ask: Callable[[], Awaitable[R]]) -> R:
        """What `ask` answers; for a model or service that `_aput` should not ask, and pay, twice for one delivery.

        When fields or records were changed by hand while `_aput` ran, its copy is discarded and it runs again on the new
        state, in the same process. Then this gives the answers of the first run, in the order in which they were asked for.
        A failed delivery, or one that another process repeats after a crash, asks anew.
        """
        return await self.answers.once(ask)


@dataclass(frozen=True, slots=True)
class Record:
    """One durable row of a block in one scope; `session_uid` and `seq` say where it came from, if anywhere.

    `version` is the `context.state_version` that wrote it: a cache asks for `changed_since` the version it knows, and
    starts anew when `context.deleted_version` is beyond that.
    """

    key: str
    data: Any = None
    blob: bytes | None = None
    session_uid: str | None = None
    seq: int | None = None
    version: int = 0


Page = list[Record]


class RecordReader(Protocol):
    """Reads the committed records of one block in one scope."""

    @property
    def database(self) -> object:
        """Where they are: the same object for every reader of one database, for caches in this process."""

    async def read(
        self,
        *,
        keys: Sequence[str] | None = None,
        prefix: str = "",
        changed_since: int | None = None,
        after_key: str | None = None,
        limit: int | None = None,
    ) -> list[Record]:
        """Records in the order of their keys."""

    async def count(self) -> int:
        """How many there are."""


@dataclass
class Records:
    """A block's durable rows. Writes are kept until cursor and fields are committed with them; reads see them."""

    reader: RecordReader
    session_uid: str | None
    writable: bool
    written: dict[str, Record | None] = field(default_factory=dict)

    @property
    def database(self) -> object:
        """Where the records are. Scope keys repeat from database to database; caches must not mix them up."""
        return self.reader.database

    async def get(self, key: str) -> Record | None:
        """The record of that key, or None."""
        if key in self.written:
            return self.written[key]
        found = await self.reader.read(keys=[key])
        return found[0] if found else None

    async def list(
        self, prefix: str = "", *, changed_since: int | None = None, after_key: str | None = None, limit: int | None = None
    ) -> list[Record]:
        """Records whose key starts with `prefix`, in the order of their keys, from behind `after_key` on."""
        # Rows that this call replaced or deleted may fill the page; ask for that many more.
        wanted = None if limit is None else limit + len(self.written)
        stored = await self.reader.read(prefix=prefix, changed_since=changed_since, after_key=after_key, limit=wanted)
        merged: dict[str, Record | None] = {record.key: record for record in stored}
        complete = wanted is None or len(stored) < wanted
        last = None if complete or not stored else stored[-1].key
        for key, record in self.written.items():
            inside = key.startswith(prefix) and (after_key is None or key > after_key) and (last is None or key <= last)
            if inside or key in merged:
                merged[key] = record
        found = [merged[key] for key in sorted(merged)]
        return [record for record in found if record is not None][:limit]

    async def pages(self, prefix: str = "", *, size: int = 2000) -> AsyncIterator[Page]:
        """All records of a prefix, `size` at a time, for scopes that are too large for one list."""
        after: str | None = None
        while page := await self.list(prefix, after_key=after, limit=size):
            yield page
            after = page[-1].key

    async def count(self) -> int:
        """How many records the scope holds, with the writes of this call."""
        total = await self.reader.count()
        if not self.written:
            return total
        existing = {record.key for record in await self.reader.read(keys=list(self.written))}
        for key, record in self.written.items():
            total += (record is not None) - (key in existing)
        return total

    def put(
        self,
        key: str,
        data: Any = None,
        *,
        blob: bytes | None = None,
        seq: int | None = None,
        session_uid: str | None = None,
        shared: bool = False,
    ) -> None:
        """Write a record; `data` is any JSON value, `blob` bytes, `seq` the message that it came from.

        It counts as coming from the session at work. To change a record that another session wrote, in a wider scope,
        hand on its own `seq` and `session_uid`: with the messages they name, the record is erased. A `shared` record comes
        from no session: it stays when messages and sessions go, in the scope of one session until that is deleted.

        :raises BlockStateError: outside `_aput`, `_aforget` or `transaction()`, or for data that is not JSON.
        """
        self._check(key)
        if seq is not None and (isinstance(seq, bool) or not isinstance(seq, int) or not 0 <= seq < 2**63):
            raise BlockStateError(f"The seq of record {key!r} is that of a message or None, not {seq!r}.")
        try:
            # The value that later readers get, so that this call does not see more than they will.
            kept = json.loads(json.dumps(data, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise BlockStateError(f"The data of record {key!r} is not JSON: {error}. Store plain JSON values.") from error
        try:
            # Not bytes(blob), which makes zeros of a number.
            kept_blob = None if blob is None else bytes(memoryview(blob))
        except TypeError as error:
            raise BlockStateError(f"The blob of record {key!r} is bytes or a buffer, not {type(blob).__name__}.") from error
        self.written[key] = Record(key, kept, kept_blob, None if shared else session_uid or self.session_uid, seq)

    def delete(self, key: str) -> None:
        """Delete a record; nothing happens when there is none. Raises as `put` does."""
        self._check(key)
        self.written[key] = None

    def _check(self, key: str) -> None:
        if not self.writable:
            raise BlockStateError(
                "Records can only be written in `_aput`, `_aforget`, or inside `async with block.transaction()`."
            )
        if not isinstance(key, str) or not 0 < len(key) <= 512 or "\x00" in key or _SURROGATE.search(key):
            raise BlockStateError(
                f"A record's key is a text of 1 to 512 characters without NUL and lone surrogates, not {key!r:.80}."
            )


class Binding(Protocol):
    """What connects a bound copy to its scope."""

    @property
    def context(self) -> BlockContext: ...

    @property
    def records(self) -> Records: ...

    def transaction(self) -> AbstractAsyncContextManager[None]: ...

    def absorb_again(self, *, keep_fields: bool) -> None: ...

    async def originals(self, session_uid: str, from_seq: int, to_seq: int) -> list[tuple[int, ChatMessage]]: ...


class BaseMemoryBlock(BaseModel, Generic[T]):
    """The base of every memory block; `T` is what its section consists of.

    `T` is `str`, `list[ContentBlock]` or `list[ChatMessage]`. A subclass implements `_aget` and `_aput`; its fields are
    its state and survive restarts, per scope. Fields that hold clients, models and the like are declared
    `Field(exclude=True)`: they are shared by reference and never saved. State that grows goes into `self.records`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    state_version: ClassVar[int] = 1
    """Raise it when the meaning of saved fields changes, and translate in `upgrade_state`."""

    name: str = ""
    """Unique in a memory; the tag of the section and the key of the saved state. Default: the name of the class."""
    description: str | None = None
    """For people who read receipts and configurations."""
    priority: int = Field(default=0, ge=0)
    """0 is never truncated; among the others 1 is the most important, the largest number is cut first."""
    scope: Literal["session", "user", "global"] = "session"
    """Who shares the state: one session, all sessions of a `user_id`, or all of a tenant."""
    start: Literal["beginning", "now"] = "beginning"
    """Whether a block that is added to an existing session absorbs its archive first, or only what is flushed later."""
    max_tokens: int | None = Field(default=None, gt=0)
    """The most that the content of the section may cost as it is shown, without its tags, however much room there is."""
    accept_short_term_memory: bool = True
    """Whether flushed messages are delivered to `_aput`; what was flushed before this became False still is."""
    depends_on_query: bool = True
    """False for content that does not change with the query: `insert_method="split"` keeps it in the cached prefix."""

    _binding: Binding | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _name_is_a_tag(self) -> BaseMemoryBlock[T]:
        if not self.name:
            self.__dict__["name"] = type(self).__name__.partition("[")[0]
        if not BLOCK_NAME.fullmatch(self.name):
            raise ValueError(f"the block name {self.name!r} must match {BLOCK_NAME.pattern}, it becomes a tag in the prompt")
        return self

    # -- for authors -----------------------------------------------------------------------------------------

    @abstractmethod
    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> T:
        """The content of the section now. `messages` are the recent history and the query; empty content: no section."""

    @abstractmethod
    async def _aput(self, messages: list[ChatMessage]) -> None:
        """Absorb flushed messages. What this changes in fields and records is committed with the cursor, exactly once.

        It may run more than once for that: after a crash or a failure, and when the state was changed by hand meanwhile; see
        `context.once` and `context.delivery_id`.
        """

    async def atruncate(self, content: T, tokens_to_truncate: int) -> T | None:
        """`content`, cheaper by at least that many tokens; None leaves the section out.

        The default drops the items of least `value` first, the oldest messages of a message list, the end of a text.
        """
        return truncate(content, tokens_to_truncate, self.context.count)

    async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        """Remove what was derived from these messages (None: from the whole session; no session: the whole scope).

        After a reset it is called without any seqs in the scope of the session to come, if shared records went there: what
        was made of them in an outside store was erased with the old scope, and is to be made anew.

        The engine itself deletes the records that carry their seqs. A block that does not override this but has
        absorbed such messages is rebuilt from those that remain.
        """

    @classmethod
    def upgrade_state(cls, state: dict[str, Any], from_version: int) -> dict[str, Any]:
        """Translate fields that were saved under an older `state_version`; they are validated afterwards."""
        return state

    # -- for bound copies ------------------------------------------------------------------------------------

    async def rebuild(self) -> None:
        """Forget what was made of the messages of this scope and absorb them again, in deliveries as after a flush.

        For blocks whose rules have changed. It returns when the deliveries are due; `drain()` waits for them.
        """
        async with self.transaction():
            async for page in self.records.pages():
                for record in page:
                    self.records.delete(record.key)
            self._bound().absorb_again(keep_fields=False)

    async def originals(self, session_uid: str, from_seq: int, to_seq: int) -> list[tuple[int, ChatMessage]]:
        """The stored messages with `from_seq <= seq < to_seq` of a session, each with its seq, in order.

        Only what this block received, or is about to, in its scope; erased messages are not among them.
        """
        return await self._bound().originals(session_uid, from_seq, to_seq)

    @property
    def bound(self) -> bool:
        """Whether this is a copy bound to a scope, not a definition."""
        return self._binding is not None

    @property
    def context(self) -> BlockContext:
        """Where this copy stands. Raises `BlockStateError` on a definition."""
        return self._bound().context

    @property
    def records(self) -> Records:
        """The durable rows of this block in this scope. Raises `BlockStateError` on a definition."""
        return self._bound().records

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """Change fields and records by hand: refreshes the fields, keeps others from writing, commits at the end.

        It does not wait for a delivery that is under way: that one follows, on the state that this leaves. Inside a delivery
        or another transaction it joins that one.
        """
        return self._bound().transaction()

    def _bound(self) -> Binding:
        if self._binding is None:
            raise BlockStateError(
                f"The block {self.name!r} is a definition and belongs to no scope; use `await memory.block({self.name!r})`."
            )
        return self._binding


DEFINITION_FIELDS = frozenset(BaseMemoryBlock.model_fields)
"""Fields that every block has; they follow the definition and are never saved."""
