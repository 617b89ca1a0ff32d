"""Copies of blocks bound to a scope: restored from what is saved, and compared afterwards with what to save."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from memory_engine.block import DEFINITION_FIELDS, BaseMemoryBlock, BlockContext, Record, Records
from memory_engine.errors import BlockDefinitionError, BlockError, BlockStateError, ReadOnlyError, StoreError
from memory_engine.messages import ChatMessage
from memory_engine.rows import message_of
from memory_engine.store import Lease, MessageRow, RecordRow, SessionRow, StateChange, StateRow, Store

Block = BaseMemoryBlock[Any]
_MUCH_JSON = 65_536
"""Characters of JSON that are read off the event loop."""
_MANY_RECORDS = 50
"""More records than this are written as JSON off the event loop."""
_MANY_MESSAGES = 500
"""So many messages are decoded off the event loop."""
_IMMUTABLE = frozenset({type(None), bool, int, float, str, bytes})
_CONTAINERS = (list, dict, set, bytearray)
_CHANGING: ContextVar[frozenset[tuple[Store, str, str]]] = ContextVar("memory_engine_changing", default=frozenset())


def state_fields(block: Block) -> tuple[str, ...]:
    """The fields that are state: the author's own, without those excluded from serialization."""
    return _state_fields(type(block))


@lru_cache(maxsize=1_024)
def _state_fields(kind: type[Block]) -> tuple[str, ...]:
    fields = kind.model_fields
    return tuple(name for name, info in fields.items() if name not in DEFINITION_FIELDS and not info.exclude)


def check_definition(block: object) -> Block:
    """The block, if it can be used in a memory; raises `BlockDefinitionError` that names the field to correct."""
    if not isinstance(block, BaseMemoryBlock):
        raise BlockDefinitionError(f"memory_blocks takes instances of BaseMemoryBlock subclasses, not {block!r:.80}.")
    if block.bound:
        raise BlockDefinitionError(
            f"The block {block.name!r} is bound to a scope already; give the definition you constructed."
        )
    try:
        _dump(block)
        _copyable(block)
    except BlockStateError as error:
        raise BlockDefinitionError(str(error)) from error
    return block


def _copyable(block: Block) -> None:
    """Every bound copy gets its own state fields and private containers: better to learn here that it cannot."""
    private = block.__pydantic_private__ or {}
    owned = {f"field {name!r}": block.__dict__[name] for name in state_fields(block)}
    owned |= {f"private attribute {name!r}": value for name, value in private.items() if isinstance(value, _CONTAINERS)}
    for what, value in owned.items():
        try:
            copy.deepcopy(value)
        except Exception as error:  # copying runs code of any type
            raise BlockStateError(
                f"The {what} of block {block.name!r} cannot be copied ({error}). Declare clients and models as "
                "Field(exclude=True): they are shared by reference and never saved."
            ) from error


def can_forget(definition: Block) -> bool:
    """Whether the author implemented `_aforget`; if not, the engine rebuilds the block from what remains."""
    return type(definition)._aforget is not BaseMemoryBlock._aforget


class NoRecords:
    """The records of a block that is about to be rebuilt without what was erased: none are shown any more."""

    @property
    def database(self) -> object:
        return self

    async def read(self, **options: Any) -> list[Record]:
        return []

    async def count(self) -> int:
        return 0


class StoredRecords:
    """Reads one pair's committed records from the store."""

    def __init__(self, store: Store, scope_key: str, block: str) -> None:
        self._store, self._scope_key, self._block = store, scope_key, block

    @property
    def database(self) -> object:
        return self._store

    async def read(
        self,
        *,
        keys: Sequence[str] | None = None,
        prefix: str = "",
        changed_since: int | None = None,
        after_key: str | None = None,
        limit: int | None = None,
    ) -> list[Record]:
        rows = await self._store.read_records(
            self._scope_key,
            self._block,
            keys=keys,
            prefix=prefix,
            changed_since=changed_since,
            after_key=after_key,
            limit=limit,
        )
        if sum([len(row.data) for row in rows]) > _MUCH_JSON:
            return await asyncio.to_thread(_as_records, rows)
        return _as_records(rows)

    async def count(self) -> int:
        return await self._store.count_records(self._scope_key, self._block)


def _as_messages(rows: Iterable[MessageRow]) -> list[tuple[int, ChatMessage]]:
    return [(row.seq, message_of(row)) for row in rows]


def _as_rows(records: Iterable[Record]) -> tuple[RecordRow, ...]:
    return tuple([RecordRow(r.key, json.dumps(r.data, separators=(",", ":")), r.blob, r.session_uid, r.seq) for r in records])


def _as_records(rows: Iterable[RecordRow]) -> list[Record]:
    return [Record(r.key, json.loads(r.data), r.blob, r.session_uid, r.seq, r.version) for r in rows]


@dataclass
class ScopeBinding:
    """Connects one bound copy to its scope; `lease` seconds bound a transaction by hand whose process died."""

    store: Store
    definition: Block
    context: BlockContext
    records: Records
    saved: StateRow
    session: SessionRow | None
    lease: float = 30.0
    block: Block | None = None
    wake: Callable[[], None] | None = None
    absorbing_again: bool = False
    read_only: bool = False

    def absorb_again(self, *, keep_fields: bool) -> None:
        """Make everything that is stored due again, with the commit of the transaction by hand that this is called in."""
        if not self.records.writable:
            raise BlockStateError("Only inside `async with block.transaction()` can a block be sent back to the beginning.")
        self.absorbing_again = True
        if not keep_fields:
            assert self.block is not None
            restore(self.block, self.definition, StateRow())

    async def originals(self, session_uid: str, from_seq: int, to_seq: int) -> list[tuple[int, ChatMessage]]:
        """The messages of a session that this block received in this scope, with their seqs."""
        rows = await self.store.delivered_rows(
            self.context.scope_key, self.definition.name, session_uid, from_seq=from_seq, to_seq=to_seq
        )
        if len(rows) > _MANY_MESSAGES:
            return await asyncio.to_thread(_as_messages, rows)
        return _as_messages(rows)

    def transaction(self) -> AbstractAsyncContextManager[None]:
        if self.read_only:
            raise ReadOnlyError(
                f"The block {self.definition.name!r} was asked for through a read-only view; change it through the memory."
            )
        return nullcontext() if self.records.writable else self._by_hand()

    def change(self) -> StateChange:
        """What the copy's fields and records add up to; raises `BlockStateError` for state that cannot be saved."""
        return self._change(_as_rows(self._put()))

    async def changed(self) -> StateChange:
        """The same; many records do not hold up the event loop."""
        put = self._put()
        return self._change(await asyncio.to_thread(_as_rows, put) if len(put) > _MANY_RECORDS else _as_rows(put))

    def _put(self) -> list[Record]:
        return [record for record in self.records.written.values() if record is not None]

    def _change(self, put: tuple[RecordRow, ...]) -> StateChange:
        assert self.block is not None
        delete = tuple(key for key, record in self.records.written.items() if record is None)
        state = _changed_state(self.block, self.definition, self.saved)
        return StateChange(state, type(self.definition).state_version, put, delete, self.absorbing_again)

    @asynccontextmanager
    async def _by_hand(self) -> AsyncIterator[None]:
        assert self.block is not None
        lease = await self._take_lease()
        mine = _CHANGING.set(_CHANGING.get() | {(self.store, lease.scope_key, lease.block)})
        try:
            self._keep(await self.store.read_state(self.context.scope_key, self.definition.name))
            restore(self.block, self.definition, self.saved)
            self.records.reader = StoredRecords(self.store, self.context.scope_key, self.definition.name)
            self.records.written.clear()
            self.records.writable = True
            async with kept(self.store, lease, self.session, self.lease):
                yield
                change = await self.changed()
            written = await self.store.commit_change(lease, change, session=self.session)
            if written is None:
                raise BlockError(
                    f"The block {self.definition.name!r} was not changed: its session was erased meanwhile, or the database "
                    "could not be reached for so long that the lease ended. Bind the block again and repeat the change."
                )
            self._keep(written)
            if change.absorb_again and self.wake is not None:
                self.wake()
        except BaseException:
            # The copy must not go on showing what was not committed.
            restore(self.block, self.definition, self.saved)
            raise
        finally:
            self.records.writable = False
            self.records.written.clear()
            self.absorbing_again = False
            with suppress(ValueError):  # the block was closed in another task than it was opened in
                _CHANGING.reset(mine)
            await asyncio.shield(self.store.release(lease))

    def _keep(self, saved: StateRow) -> None:
        self.saved = saved
        self.context = replace(self.context, state_version=saved.version, deleted_version=saved.deleted_version)

    async def _take_lease(self) -> Lease:
        loop = asyncio.get_running_loop()
        end = loop.time() + 2 * self.lease
        pause = 0.005
        while True:
            trying = asyncio.create_task(self._try_lease())
            try:
                lease = await asyncio.shield(trying)
            except asyncio.CancelledError:
                # A lease that was taken on the way is given back, or deliveries would wait until it runs out.
                await asyncio.wait({trying})
                if not trying.cancelled() and trying.exception() is None and (taken := trying.result()) is not None:
                    await self.store.release(taken)
                raise
            if lease is not None:
                return lease
            if loop.time() > end:
                raise BlockError(f"The block {self.definition.name!r} is being changed by somebody else; try again later.")
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.25)

    async def _try_lease(self) -> Lease | None:
        lease = await self.store.lease(self.context.scope_key, self.definition.name, seconds=self.lease)
        if lease is not None and await self._outdated():
            await self.store.release(lease)
            return None
        return lease

    async def _outdated(self) -> bool:
        """Whether the block still holds what was erased and waits to be rebuilt."""
        if can_forget(self.definition):
            return False
        return bool(await self.store.pending_erasures(self.context.scope_key, self.definition.name))


def is_changing(store: Store, scope_key: str | None, block: str) -> bool:
    """Whether this task, or the one that began it, is changing that pair by hand; scope None: in any scope.

    A delivery to it, or waiting for one, would wait for the task itself.
    """
    return any(one is store and name == block and scope_key in (None, key) for one, key, name in _CHANGING.get())


@asynccontextmanager
async def kept(store: Store, lease: Lease, session: SessionRow | None, seconds: float) -> AsyncIterator[asyncio.Event]:
    """Renews a lease meanwhile; the event is set when it is lost."""
    lost = asyncio.Event()

    async def renew() -> None:
        while not lost.is_set():
            await asyncio.sleep(seconds / 3)
            try:
                held = await store.renew(lease, session, seconds=seconds)
            except StoreError:
                # A database that is busy for a moment: the lease may still be ours, and the commit looks once more.
                continue
            if not held:
                lost.set()

    task = asyncio.create_task(renew())
    try:
        yield lost
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()


def bind(
    store: Store,
    definition: Block,
    context: BlockContext,
    saved: StateRow,
    *,
    session: SessionRow | None,
    writable: bool,
    lease: float = 30.0,
    blank: bool = False,
    wake: Callable[[], None] | None = None,
) -> tuple[Block, ScopeBinding]:
    """A copy of `definition` with the saved fields, connected to its scope; a `blank` one shows nothing of what is saved."""
    block = definition.model_copy()
    saved = replace(saved, state="{}") if blank else saved
    reader = NoRecords() if blank else StoredRecords(store, context.scope_key, definition.name)
    records = Records(reader, context.session_uid or None, writable)
    binding = ScopeBinding(store, definition, context, records, saved, session, lease, block, wake)
    restore(block, definition, saved)
    _own_private_attributes(block)
    block._binding = binding
    return block, binding


def restore(block: Block, definition: Block, saved: StateRow) -> None:
    """Set the fields of a copy: those saved to what was saved, all others to fresh copies of the definition's."""
    values = _saved_values(definition, saved)
    for name in state_fields(definition):
        if name not in values:
            value = getattr(definition, name)
            block.__dict__[name] = value if type(value) in _IMMUTABLE else copy.deepcopy(value)
    try:
        for name, value in values.items():
            type(block).__pydantic_validator__.validate_assignment(block, name, value)
    except ValidationError:
        # Validators of the author may compare fields: then only all of them together are valid.
        _restore_together(block, definition, values)


def _restore_together(block: Block, definition: Block, values: dict[str, Any]) -> None:
    kind = type(block)
    fields = {name: definition.__dict__[name] for name in kind.model_fields} | values
    probe = kind.__new__(kind)
    try:
        kind.__pydantic_validator__.validate_python(fields, self_instance=probe, by_alias=False, by_name=True)
    except ValidationError as error:
        raise BlockStateError(
            f"The saved fields {sorted(values)} of block {definition.name!r} do not fit their types any more: {error}. "
            "Raise state_version and translate them in upgrade_state."
        ) from error
    for name in values:
        block.__dict__[name] = probe.__dict__[name]


def _saved_values(definition: Block, saved: StateRow) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(saved.state)
    kind = type(definition)
    if saved.version and saved.format > kind.state_version:
        raise BlockStateError(
            f"The state of block {definition.name!r} was saved by its version {saved.format}, this is {kind.state_version}; "
            "run the newer code."
        )
    if values and saved.format < kind.state_version:
        values = _upgraded(definition, values, saved.format)
    known = set(state_fields(definition))
    return {name: value for name, value in values.items() if name in known}


def _upgraded(definition: Block, values: dict[str, Any], from_version: int) -> dict[str, Any]:
    try:
        upgraded = type(definition).upgrade_state(values, from_version)
    except Exception as error:  # the author's code
        raise BlockStateError(
            f"upgrade_state of block {definition.name!r} failed on state of version {from_version}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(upgraded, dict):
        raise BlockStateError(
            f"upgrade_state of block {definition.name!r} returned {type(upgraded).__name__}; return the dict of fields."
        )
    return upgraded


def _changed_state(block: Block, definition: Block, saved: StateRow) -> str | None:
    _check_private_attributes(block, definition)
    start = definition.model_copy()
    restore(start, definition, saved)
    before, after = _dump(start), _dump(block)
    kept_fields = _saved_values(definition, saved)
    values = {name: after[name] for name in after if name in kept_fields or before[name] != after[name]}
    state = "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in values.items()) + "}"
    if all(before[name] == after[name] for name in after) and saved.format == type(block).state_version:
        return None
    _check_round_trip(block, definition, state, after)
    return state


def _check_round_trip(block: Block, definition: Block, state: str, after: dict[str, str]) -> None:
    again = definition.model_copy()
    restore(again, definition, StateRow(1, 0, type(definition).state_version, state))
    restored = _dump(again)
    for name in json.loads(state):
        # The members of a set may stand in another order in JSON and be the same.
        if restored[name] != after[name] and again.__dict__[name] != block.__dict__[name]:
            raise BlockStateError(
                f"The field {name!r} of block {definition.name!r} does not come back from JSON as it was; "
                "use a type that does, or keep it in self.records."
            )


def _dump(block: Block) -> dict[str, str]:
    """The state fields as JSON texts."""
    dumped: dict[str, str] = {}
    for name in state_fields(block):
        try:
            value = block.model_dump(mode="json", include={name}, warnings="error")
            dumped[name] = json.dumps(value[name], separators=(",", ":"), allow_nan=False, sort_keys=True)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise BlockStateError(
                f"The field {name!r} of block {block.name!r} cannot be saved as JSON ({error}). Declare clients and models as "
                "Field(exclude=True); keep state in JSON-able types or in self.records."
            ) from error
    return dumped


def _own_private_attributes(block: Block) -> None:
    private = block.__pydantic_private__ or {}
    for name, value in private.items():
        if isinstance(value, _CONTAINERS):
            private[name] = copy.deepcopy(value)


def _check_private_attributes(block: Block, definition: Block) -> None:
    theirs = definition.__pydantic_private__ or {}
    for name, value in (block.__pydantic_private__ or {}).items():
        if name == "_binding":
            continue
        known = theirs.get(name)
        same = value == known if isinstance(value, _CONTAINERS) else value is known
        if not same:
            raise BlockStateError(
                f"The private attribute {name!r} of block {block.name!r} was changed; it would be lost. Make it a field, "
                "which is saved, or keep it in self.records."
            )
