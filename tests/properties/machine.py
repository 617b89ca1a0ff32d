"""A memory driven by small numbers, and beside it a plain model of what it must hold; every `get` is checked."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

import oracle
from checks import Check, Exceeded
from oracle import SYSTEM, Kept
from worlds import MESSAGE_KINDS, QUERY, TOKENIZERS, Known, Recorder, World, fingerprint, message_of, text_of

from memory_engine import BudgetExceededError, ChatMessage, Memory, MemoryEngine
from memory_engine.errors import MessageConflictError, MessageNotFoundError
from memory_engine.messages import encode
from memory_engine.rows import message_of as row_message
from memory_engine.settings import Limits
from memory_engine.store import Snapshot
from memory_engine.tokens import TokenCounter

LIMITS = Limits(get=0.15, delivery=20.0, first_retry=0.001, last_retry=0.01, poll=0.5)


@dataclass
class Model:
    """What the memory must hold: the stored messages in order, the current turn's user message, and what is archived."""

    messages: list[ChatMessage] = field(default_factory=list)
    turn: str | None = None
    unpinned: set[str] = field(default_factory=set)
    archived: set[str] = field(default_factory=set)
    """Ids below the horizon, as of the last look into the database."""

    def find(self, message_id: str | None) -> ChatMessage | None:
        return next((message for message in self.messages if message.id == message_id), None)

    def known(self) -> Known:
        """The calls that wait, and those that are answered."""
        answered = [id_ for message in self.messages for id_ in message.tool_results]
        called = [call.id for message in self.messages for call in message.tool_calls]
        return Known([id_ for id_ in called if id_ not in answered], [id_ for id_ in called if id_ in answered])

    def add(self, message: ChatMessage) -> None:
        self.messages.append(message)
        if message.role == "user":
            self.turn = message.id

    def remove(self, ids: set[str]) -> None:
        self.messages = [message for message in self.messages if message.id not in ids]
        if self.turn in ids:
            left = [m.id for m in self.messages if m.role == "user" and m.id not in self.archived]
            self.turn = left[-1] if left else None


class Machine:
    """One session of a memory, the model of it, and what was checked."""

    def __init__(self, world: World, uri: str | None, tally: Tally[str], name: str = "s") -> None:
        self.world, self.uri, self.tally, self.name = world, uri, tally, name
        self.model = Model()
        self.handles: list[Memory] = []
        self.engines: list[MemoryEngine] = []
        self.last: list[ChatMessage] = []
        self.log: list[str] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Machine:
        await self._open()
        return self

    async def __aexit__(self, *error: object) -> None:
        if any(error):
            self.uri = None  # do not hide the error behind another one
        await self._stack.aclose()

    async def _open(self) -> None:
        self.engines, self.handles = [], []
        for _ in range(1 if self.uri is None else 2):
            engine = MemoryEngine(async_database_uri=self.uri, limits=LIMITS, busy_timeout=20.0, **self.world.arguments())
            self.engines.append(await self._stack.enter_async_context(engine))
            self.handles.append(engine.session(self.name))
        self.handles.append(self.engines[0].session(self.name))
        text = TokenCounter(TOKENIZERS[self.world.tokenizer]).text
        self.count = oracle.Counter(text, self.world.overhead, self.world.media_costs)

    # -- one operation -------------------------------------------------------------------------------------------

    async def step(self, kind: str, seed: int) -> None:
        rng = Random(seed)
        memory = self.handles[seed % len(self.handles)]
        self.log.append(f"{kind} {seed}")
        if kind in MESSAGE_KINDS:
            await self._put(memory, [message_of(kind, rng, self.model.known())])
        else:
            await getattr(self, f"_do_{kind}")(memory, rng)
        self.tally["operations"] += 1
        await self.look(memory)
        stored = await memory.get_all()
        assert [m.id for m in stored] == [m.id for m in self.model.messages]
        for there, ours in zip(stored, self.model.messages, strict=True):
            assert encode(there) == encode(ours), f"{there.id} changed"
            assert there.created_at == ours.created_at and not there.partial

    async def look(self, memory: Memory) -> tuple[Snapshot, list[Kept]]:
        """The session as it is in the database when nothing moves, and what the model says about it."""
        for engine in self.engines:
            await engine._core.settle()
        session, store = memory._session, memory._session.core.store
        snapshot = await store.snapshot(session.spec)
        if snapshot.session is None:
            return snapshot, []
        row = snapshot.session
        rows = await store.all_rows(row)
        assert all(a.seq < b.seq for a, b in pairwise(rows)) and all(r.seq < row.next_seq for r in rows)
        self.model.archived = {r.message_id for r in rows if r.seq < row.horizon}
        entries = [Kept(r.seq, row_message(r), r.pinned) for r in rows]
        turn = next((e.message.id for e in entries if e.seq == row.turn_seq), None)
        assert turn == self.model.turn, "another turn is current"
        for entry in entries:
            assert entry.pinned or not entry.message.pinned or entry.message.id in self.model.unpinned
        if row.tokenizer == session.spec.tokenizer:
            active = [r for r in rows if r.seq >= row.horizon]
            assert row.active_tokens == sum(r.tokens for r in active if not r.pinned)
            assert row.active_turns == sum(r.role == "user" for r in active if not r.pinned)
            assert row.pinned_tokens == sum(r.tokens for r in rows if r.pinned)
        return snapshot, entries

    # -- writing -------------------------------------------------------------------------------------------------

    async def _put(self, memory: Memory, messages: Sequence[ChatMessage]) -> None:
        given = [oracle.bare(m) for m in messages if not oracle.is_memory(m)]
        conflict, new = self._expected(given)
        if conflict:
            try:
                await memory.put_messages(messages)
            except MessageConflictError:
                self.tally["conflicts"] += 1
                return
            raise AssertionError("other content under a known id was accepted")
        stored = await memory.put_messages(messages)
        assert len(stored) == len(given)
        taken: set[str] = {m.id for m in self.model.messages if m.id}
        for ours, there in zip(given, stored, strict=True):
            assert there.id and there.created_at and (ours.id in (None, there.id))
            if there.id not in taken:
                taken.add(there.id)
                expected = ours if ours.id is None else new[ours.id]
                assert encode(there) == encode(expected)
                self.model.add(there)
            else:
                found = self.model.find(there.id)
                assert found is not None and encode(found) == encode(there)

    def _expected(self, given: Sequence[ChatMessage]) -> tuple[bool, dict[str, ChatMessage]]:
        """Whether the ids conflict, and what is new by its given id."""
        new: dict[str, ChatMessage] = {}
        for message in given:
            if message.id is None:
                continue
            same = self.model.find(message.id) or new.setdefault(message.id, message)
            if not message.partial and encode(same) != encode(message):
                return True, {}
        return False, new

    async def _do_batch(self, memory: Memory, rng: Random) -> None:
        known = self.model.known()
        kinds = [rng.choice(MESSAGE_KINDS) for _ in range(rng.randint(0, 5))]
        await self._put(memory, [message_of(kind, rng, known) for kind in kinds])

    async def _do_turns(self, memory: Memory, rng: Random) -> None:
        """Turns as they come in life: a request, steps with tools, an answer."""
        for _ in range(rng.randint(1, 3)):
            await self._put(memory, [message_of("user", rng, Known())])
            for _ in range(rng.randint(0, 5)):
                await self._put(memory, [message_of(rng.choice(["call", "call", "calls"]), rng, Known())])
                waiting = [call.id for call in self.model.messages[-1].tool_calls]
                rng.shuffle(waiting)
                late = waiting[: rng.randint(0, len(waiting)) if rng.random() < 0.2 else None]
                await self._put(memory, [message_of("answer", rng, Known([id_])) for id_ in late])
                if rng.random() < 0.3:
                    await self._do_get(memory, rng)
            await self._put(memory, [message_of("assistant", rng, Known())])

    async def _do_reput(self, memory: Memory, rng: Random) -> None:
        """A retry: messages that are stored already, perhaps constructed anew."""
        again = rng.sample(self.model.messages, min(len(self.model.messages), rng.randint(0, 4)))
        await self._put(memory, [ChatMessage.model_validate(m.model_dump()) if rng.random() < 0.5 else m for m in again])

    async def _do_conflict(self, memory: Memory, rng: Random) -> None:
        if self.model.messages:
            known = rng.choice(self.model.messages)
            await self._put(memory, [message_of("user", rng, Known()), ChatMessage(role="user", content="!", id=known.id)])

    async def _do_own_id(self, memory: Memory, rng: Random) -> None:
        await self._put(memory, [ChatMessage(role="user", content=text_of(rng, 20), id=f"own-{rng.randrange(4)}")])

    async def _do_put_back(self, memory: Memory, rng: Random) -> None:
        """Also what a `get` long ago returned, of messages that may be gone by now."""
        if rng.random() < 0.6:
            await self._do_get(memory, rng)
        await self._put(memory, self.last)

    async def _do_set_back(self, memory: Memory, rng: Random) -> None:
        if rng.random() < 0.6:
            await self._do_get(memory, rng)
        await self._set(memory, self.last)

    async def _do_set(self, memory: Memory, rng: Random) -> None:
        stored = list(self.model.messages)
        active = [m for m in stored if m.id not in self.model.archived]
        given = rng.choice([stored, active, active[: len(active) // 2], active[1:], [], rng.sample(stored, len(stored) // 2)])
        new = [message_of(rng.choice(MESSAGE_KINDS), rng, Known()) for _ in range(rng.randint(0, 3))]
        await self._set(memory, [*given, *new])

    async def _set(self, memory: Memory, messages: Sequence[ChatMessage]) -> None:
        await self.look(memory)
        archived, model = self.model.archived, self.model
        wanted: dict[str | int, ChatMessage] = {}
        conflict = False
        given = [oracle.bare(m) for m in messages if not oracle.is_memory(m)]
        for place, message in enumerate(given):
            stored = model.find(message.id) if message.id else None
            same = stored if message.id in archived else wanted.get(message.id or place)
            conflict = conflict or (same is not None and not message.partial and encode(same) != encode(message))
            if message.id not in archived:
                wanted.setdefault(message.id or place, stored if message.partial and stored else message)
        if conflict:
            try:
                await memory.set(messages)
            except MessageConflictError:
                self.tally["conflicts"] += 1
                return
            raise AssertionError("other content under a known id was accepted")
        await memory.set(messages)
        self._follow_set(await memory.get_all(), list(wanted.values()), {m.id for m in given if m.id})

    def _follow_set(self, after: Sequence[ChatMessage], wanted: Sequence[ChatMessage], given: set[str]) -> None:
        model = self.model
        archive = [m for m in model.messages if m.id in model.archived]
        assert [m.id for m in after[: len(archive)]] == [m.id for m in archive], "set touched the archive"
        active = after[len(archive) :]
        assert [encode(m) for m in active] == [encode(m) for m in wanted]
        assert all(b.id in (None, a.id) for a, b in zip(active, wanted, strict=True))
        model.unpinned |= {m.id for m in archive if m.id and m.id not in given}
        model.unpinned -= {m.id for m in active if m.id}
        users = [m.id for m in active if m.role == "user"]
        model.turn = users[-1] if users else model.turn if model.turn in given & {m.id for m in archive} else None
        model.messages = [*archive, *active]

    async def _do_flush(self, memory: Memory, rng: Random) -> None:
        assert await memory.flush() >= 0

    async def _do_final(self, memory: Memory, rng: Random) -> None:
        await memory.flush(final=True)
        self.model.turn = None
        _, entries = await self.look(memory)
        assert {e.message.id for e in entries if not e.pinned} <= self.model.archived

    async def _do_pop(self, memory: Memory, rng: Random) -> None:
        await self.look(memory)
        popped = await memory.pop()
        expected = self.model.messages[-1] if self.model.messages else None
        assert popped == expected
        self.model.remove({popped.id} if popped and popped.id else set())

    async def _do_delete(self, memory: Memory, rng: Random) -> None:
        await self.look(memory)
        ids = {m.id for m in rng.sample(self.model.messages, min(len(self.model.messages), rng.randint(0, 3))) if m.id}
        assert await memory.delete([*ids, "unknown"]) == len(ids)
        self.model.remove(ids)

    async def _do_rewind(self, memory: Memory, rng: Random) -> None:
        await self.look(memory)
        if not self.model.messages or rng.random() < 0.1:
            try:
                await memory.rewind("unknown")
            except MessageNotFoundError:
                return
            raise AssertionError("rewound to nothing")
        place = rng.randrange(len(self.model.messages) // 2, len(self.model.messages))
        ids = [m.id for m in self.model.messages[place:] if m.id]
        assert await memory.rewind(ids[0]) == len(ids)
        self.model.remove(set(ids))

    async def _do_reset(self, memory: Memory, rng: Random) -> None:
        await memory.reset()
        self.model = Model()

    async def reopen(self, world: World) -> None:
        """Everything closed and opened again on the same database, with other settings."""
        if self.uri is not None:
            self.log.append(f"reopen {world}")
            await self._stack.aclose()
            self.world = world
            await self._open()
            self.tally["reopened"] += 1

    async def _do_drain(self, memory: Memory, rng: Random) -> None:
        await self.look(memory)
        await memory.drain(timeout=30)
        _, entries = await self.look(memory)
        expected = [
            (entry.seq, entry.message.id, fingerprint(entry.message))
            for entry in entries
            if entry.message.id in self.model.archived and entry.message.role not in SYSTEM
        ]
        for definition in self.world.recording_blocks():
            block = await memory.block(definition.name)
            assert isinstance(block, Recorder)
            assert [tuple(item) for item in block.absorbed] == expected, f"{definition.name} absorbed something else"
        self.tally["drained"] += 1

    # -- reading -------------------------------------------------------------------------------------------------

    async def _do_get(self, memory: Memory, rng: Random) -> None:
        snapshot, entries = await self.look(memory)
        query: Any = rng.choice([None, QUERY, ChatMessage(role="user", content=QUERY), [{"role": "user", "content": QUERY}]])
        self.tally["gets"] += 1
        try:
            context = await memory.context(query)
        except BudgetExceededError as error:
            self.tally["over budget"] += 1
            Exceeded(self, snapshot.session, entries).check(error)
            return
        self.last = list(context.messages)
        Check(self, snapshot, entries, context).all()
        if rng.random() < 0.3:
            await self._get_again(memory, context.messages)

    async def _do_get_of_run(self, memory: Memory, rng: Random) -> None:
        """What the model of one run reads: some request, some of what followed it, and perhaps what is not stored yet."""
        snapshot, entries = await self.look(memory)
        stored = [entry.message for entry in entries]
        requests = [place for place, message in enumerate(stored) if message.role == "user"]
        start = rng.choice(requests) if requests and rng.random() < 0.8 else rng.randint(0, len(stored))
        said = [m for m in stored[start + 1 : start + 9] if m.role in ("assistant", "tool") and rng.random() < 0.7]
        own = [*stored[start : start + 1], *said]
        if rng.random() < 0.4:
            own.append(ChatMessage(role="assistant", id="not stored", content=text_of(rng, 20)))
        self.tally["gets of runs"] += 1
        try:
            context = await memory.context_of_run(own)
        except BudgetExceededError:
            self.tally["over budget"] += 1
            return
        Check(self, snapshot, entries, context).of_run(own)

    async def _get_again(self, memory: Memory, messages: list[ChatMessage]) -> None:
        """What a caller does to a list it got must not matter to anybody."""
        messages.reverse()
        messages.clear()
        snapshot, entries = await self.look(memory)
        self.tally["gets"] += 1
        try:
            context = await memory.context()
        except BudgetExceededError as error:
            # What is pending may have been absorbed meanwhile, and blocks may say something else each time.
            Exceeded(self, snapshot.session, entries).check(error)
            return
        Check(self, snapshot, entries, context).all()
