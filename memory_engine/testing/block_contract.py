"""What every memory block must keep, as a pytest class to subclass."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import pytest

from memory_engine.binding import state_fields
from memory_engine.block import BaseMemoryBlock
from memory_engine.engine import MemoryEngine
from memory_engine.errors import BudgetExceededError
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage, TextBlock
from memory_engine.render import Section, render_section
from memory_engine.settings import Limits
from memory_engine.tokens import TokenCounter

Block = BaseMemoryBlock[Any]

_QUICK = Limits(get=10.0, delivery=60.0, first_retry=0.01, last_retry=0.05, lease=5.0, poll=0.05)
_PATIENCE = 60.0
"""Seconds after which a delivery that does not succeed fails the test instead of hanging it."""


class BlockContract:
    """Subclass it in a test module and give the definition of your block; its tests then run for yours.

        class TestMentionCounter(BlockContract):
            @pytest.fixture
            def block(self):
                return MentionCounter(mention_name="Ada")

    It needs `pytest` and `pytest-asyncio`. A block that calls a model needs one whose answer depends on the prompt alone,
    such as `ScriptedLLM(otherwise=lambda prompt: ...)`, because runs are compared with each other; the same holds for what
    it keeps. What may be overridden:

    - `conversation`, a fixture: the messages to absorb. One of them must contain `secret`, best as something that the
      block remembers.
    - `observe(block)`: what a bound copy knows, as comparable data. Extend it by what the block keeps outside.
    - `database_uri(folder, name)`: where engines keep their database.
    - `scopes`: the scopes that the block supports; `token_limits`: the budgets to try.
    """

    pytestmark = pytest.mark.asyncio

    secret: ClassVar[str] = "zebra-7719"
    scopes: ClassVar[Sequence[str]] = ("session", "user", "global")
    token_limits: ClassVar[Sequence[int]] = (128, 512, 4_000)

    @pytest.fixture
    def block(self) -> Block:
        """The definition to test."""
        raise NotImplementedError("Override the fixture `block` of BlockContract; it returns the block to test.")

    @pytest.fixture
    def conversation(self) -> list[ChatMessage]:
        """The messages to absorb; each user message begins a turn, and each turn is flushed for itself."""
        said = [
            ("user", "Hello, I am Ada. I live in Turin and work on a compiler."),
            ("assistant", "Nice to meet you, Ada. How is the compiler going?"),
            ("user", f"Well. Note that the code of my locker is {self.secret}."),
            ("assistant", "Noted."),
            ("user", "My colleague Logan prefers green tea, and so do I."),
            ("assistant", "Green tea for you and for Logan then."),
            ("user", "I moved to Genoa last week."),
            ("assistant", "How do you like it there?"),
        ]
        return [ChatMessage.model_validate({"role": role, "content": text}) for role, text in said]

    async def observe(self, block: Block) -> Any:
        """What a bound copy knows: its fields, and its records without their keys and sessions."""
        fields = block.model_dump(mode="json", include=set(state_fields(block)))
        records = [(record.seq, record.data, record.blob) for record in await block.records.list()]
        return fields, sorted(records, key=repr)

    def database_uri(self, folder: Path, name: str) -> str:
        """Where engines of a test keep their database, the same for the same folder and name; on SQLite unless overridden."""
        return f"sqlite+aiosqlite:///{folder / name}.db"

    # -- the tests -------------------------------------------------------------------------------------------

    async def test_the_definition_is_not_changed(self, block: Block, conversation: list[ChatMessage], tmp_path: Path) -> None:
        """One definition serves all sessions, so nothing that a session teaches may end up in it."""
        before = _definition(block)
        async with self._engine(tmp_path, block) as engine:
            for session_id in ("one", "two"):
                memory = engine.session(session_id, user_id="ada")
                await _tell(memory, conversation)
                await memory.get(conversation[0])
                assert _definition(block) == before

    async def test_state_survives_a_restart(self, block: Block, conversation: list[ChatMessage], tmp_path: Path) -> None:
        """Another process goes on where the one before stopped."""
        expected = await self._undisturbed(block, conversation, tmp_path)
        middle = len(conversation) // 2
        async with self._engine(tmp_path, block, "restarted") as engine:
            memory = engine.session("one", user_id="ada")
            await _tell(memory, conversation[:middle])
            known = await self.observe(await memory.block(block.name))
        async with self._engine(tmp_path, block, "restarted") as engine:
            memory = engine.session("one", user_id="ada")
            assert await self.observe(await memory.block(block.name)) == known
            await _tell(memory, conversation[middle:])
            assert await self.observe(await memory.block(block.name)) == expected

    async def test_each_message_counts_exactly_once(
        self, block: Block, conversation: list[ChatMessage], tmp_path: Path
    ) -> None:
        """A delivery that fails before, after, or in the middle of the work leaves no trace of the failed attempts."""
        expected = await self._undisturbed(block, conversation, tmp_path)
        disturbed, attempts = _disturbed(block)
        async with self._engine(tmp_path, disturbed, "disturbed") as engine:
            memory = engine.session("one", user_id="ada")
            await _tell(memory, conversation)
            assert await self.observe(await memory.block(block.name)) == expected
        if block.accept_short_term_memory:
            assert attempts, "the block received nothing"
            assert set(attempts.values()) == {4}, "every chunk should have failed three times"

    async def test_two_sessions_are_apart(self, block: Block, conversation: list[ChatMessage], tmp_path: Path) -> None:
        """What one session (of another user and tenant) tells is unknown to the other."""
        async with self._engine(tmp_path, block) as engine:
            one = engine.session("one", user_id="ada", tenant="north")
            two = engine.session("two", user_id="bob", tenant="south")
            empty = await self.observe(await two.block(block.name))
            await _tell(one, conversation)
            assert await self.observe(await two.block(block.name)) == empty
            content = await (await two.block(block.name))._aget(messages=[])
            assert self.secret not in repr(content)

    async def test_scopes(self, block: Block, conversation: list[ChatMessage], tmp_path: Path) -> None:
        """Session, user and global scope share exactly as far as they say."""
        shared = {"session": (), "user": ("same user",), "global": ("same user", "other user")}
        for scope in self.scopes:
            definition = block.model_copy(update={"scope": scope})
            async with self._engine(tmp_path, definition, scope) as engine:
                others = {
                    "same user": engine.session("two", user_id="ada", tenant="north"),
                    "other user": engine.session("three", user_id="bob", tenant="north"),
                    "other tenant": engine.session("one", user_id="ada", tenant="south"),
                }
                writer = engine.session("one", user_id="ada", tenant="north")
                empty = await self.observe(await writer.block(block.name))
                await _tell(writer, conversation)
                known = await self.observe(await writer.block(block.name))
                for who, memory in others.items():
                    expected = known if who in shared[scope] else empty
                    assert await self.observe(await memory.block(block.name)) == expected, (scope, who)

    async def test_its_content_is_valid(self, block: Block, conversation: list[ChatMessage], tmp_path: Path) -> None:
        """`_aget` returns a str, a list of content blocks or a list of messages: before, while and after it learns."""
        async with self._engine(tmp_path, block, on_block_error="raise") as engine:
            memory = engine.session("one", user_id="ada")
            assert (await memory.context()).receipt.source(block.name).error is None
            await _tell(memory, conversation)
            for query in (None, "", conversation[0], "Where does Ada live?"):
                context = await memory.context(query)
                assert context.receipt.source(block.name).error is None

    async def test_reading_changes_nothing(self, block: Block, conversation: list[ChatMessage], tmp_path: Path) -> None:
        """Neither `_aget` nor `atruncate` leaves a trace in what is saved."""
        async with self._engine(tmp_path, block, token_limit=256) as engine:
            memory = engine.session("one", user_id="ada")
            await _tell(memory, conversation)
            known = await self.observe(await memory.block(block.name))
            for query in (None, "Where does Ada live?"):
                bound = await memory.block(block.name)
                content = await bound._aget(messages=_query(query))
                if content:
                    await bound.atruncate(content, 1)
                with suppress(BudgetExceededError):
                    await memory.get(query)
            assert await self.observe(await memory.block(block.name)) == known

    async def test_atruncate_frees_what_is_asked(self, block: Block, conversation: list[ChatMessage], tmp_path: Path) -> None:
        """Its result is cheaper by at least that many tokens, or None (or empty) to leave the section out."""
        async with self._engine(tmp_path, block) as engine:
            memory = engine.session("one", user_id="ada")
            await _tell(memory, conversation)
            bound = await memory.block(block.name)
            content = await bound._aget(messages=_query("Where does Ada live?"))
            whole = _cost(content, bound)
            if not whole:
                pytest.skip("the section is empty, there is nothing to truncate")
            for tokens in sorted({1, whole // 4 or 1, whole // 2 or 1, max(1, whole - 1), whole}):
                bound = await memory.block(block.name)
                left = _cost(await bound.atruncate(content, tokens), bound)
                # Counts of parts do not quite add up to that of the whole: the memory asks once more for so few.
                assert left <= max(0, whole - tokens + 2), f"asked to free {tokens} of {whole} tokens, {left} are left"

    async def test_the_budget_holds(self, block: Block, conversation: list[ChatMessage], tmp_path: Path) -> None:
        """Whatever the block returns, a context never costs more than its limit."""
        counter = TokenCounter()
        for limit in self.token_limits:
            async with self._engine(tmp_path, block, f"limit{limit}", token_limit=limit) as engine:
                memory = engine.session("one", user_id="ada")
                await _tell(memory, conversation)
                await memory.put(ChatMessage(role="user", content="Where do I live?"))
                try:
                    messages = await memory.get("Where does Ada live?")
                except BudgetExceededError as error:
                    assert block.priority == 0, "only what is never truncated may exceed the budget"
                    assert error.needed > limit
                else:
                    assert sum(counter.message(message) for message in messages) <= limit

    async def test_what_is_erased_is_gone(self, block: Block, conversation: list[ChatMessage], tmp_path: Path) -> None:
        """After `delete`, neither state nor section has anything of the message, also after a restart."""
        assert any(self.secret in message.content for message in conversation), "no message contains `secret`"
        async with self._engine(tmp_path, block) as engine:
            memory = engine.session("one", user_id="ada")
            await _tell(memory, conversation)
            stored = await memory.get_all()
            doomed = [message.id for message in stored if self.secret in message.content and message.id]
            assert await memory.delete(doomed) == len(doomed)
            await memory.drain(_PATIENCE)
            assert self.secret not in await self._everything(memory, block)
        async with self._engine(tmp_path, block) as engine:
            assert self.secret not in await self._everything(engine.session("one", user_id="ada"), block)

    async def test_a_reset_leaves_nothing(self, block: Block, conversation: list[ChatMessage], tmp_path: Path) -> None:
        """After `reset`, a block of session scope is as new."""
        if block.scope != "session":
            pytest.skip("user and global state outlives a session")
        async with self._engine(tmp_path, block) as engine:
            memory = engine.session("one", user_id="ada")
            empty = await self.observe(await memory.block(block.name))
            await _tell(memory, conversation)
            await memory.reset()
            await memory.drain(_PATIENCE)
            assert await self.observe(await memory.block(block.name)) == empty
            assert self.secret not in await self._everything(memory, block)

    # -- helpers ---------------------------------------------------------------------------------------------

    async def _undisturbed(self, block: Block, conversation: list[ChatMessage], folder: Path) -> Any:
        async with self._engine(folder, block, "undisturbed") as engine:
            memory = engine.session("one", user_id="ada")
            await _tell(memory, conversation)
            return await self.observe(await memory.block(block.name))

    @asynccontextmanager
    async def _engine(self, folder: Path, block: Block, name: str = "memory", **settings: Any) -> AsyncIterator[MemoryEngine]:
        uri = self.database_uri(folder, name)
        async with MemoryEngine(async_database_uri=uri, memory_blocks=[block], limits=_QUICK, **settings) as engine:
            yield engine

    async def _everything(self, memory: Memory, block: Block) -> str:
        bound = await memory.block(block.name)
        content = await bound._aget(messages=_query(f"What do you know of {self.secret[:5]}?"))
        return repr((await self.observe(bound), content))


async def _tell(memory: Memory, conversation: Sequence[ChatMessage]) -> None:
    """Put the messages, flush turn by turn, and wait until all is absorbed."""
    for message in conversation:
        await memory.put(message)
        await memory.flush()
    await memory.flush(final=True)
    await memory.drain(_PATIENCE)


def _definition(block: Block) -> str:
    state = block.model_dump(mode="json", include=set(type(block).model_fields) - _excluded(block))
    private = {name: value for name, value in (block.__pydantic_private__ or {}).items() if name != "_binding"}
    return json.dumps(state, sort_keys=True) + repr(private)


def _excluded(block: Block) -> set[str]:
    return {name for name, info in type(block).model_fields.items() if info.exclude}


def _disturbed(block: Block) -> tuple[Block, Counter[str]]:
    """A copy of the definition whose deliveries fail three times each, and how often each was attempted."""
    attempts: Counter[str] = Counter()
    kind: Any = type(block)

    class Disturbed(kind):  # type: ignore[misc]
        async def _aput(self, messages: list[ChatMessage]) -> None:
            delivery = str(self.context.delivery_id)
            attempts[delivery] += 1
            if attempts[delivery] == 1:
                raise ConnectionError("disturbed before the work")
            await super()._aput(messages if attempts[delivery] != 2 else messages[: len(messages) // 2])
            if attempts[delivery] == 2:
                raise ConnectionError("disturbed in the middle of the work")
            if attempts[delivery] == 3:
                raise RuntimeError("disturbed after the work")

    copy = block.model_copy()
    object.__setattr__(copy, "__class__", Disturbed)
    return copy, attempts


def _query(text: str | None) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)] if text else []


def _cost(content: Any, block: Block) -> int:
    """Tokens of a section's content as rendered, without media: their estimates are nothing that a block knows."""
    if not content:
        return 0
    assert isinstance(content, str | list | tuple), f"the content is {content!r:.80}, not a str or a list"
    items = (TextBlock(text=content),) if isinstance(content, str) else tuple(content)
    counter = TokenCounter()
    if isinstance(items[0], ChatMessage):
        return sum(counter.message(message) for message in items)
    return counter.text(render_section(Section(block.name, items)))
