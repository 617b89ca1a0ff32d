"""`memory.turn(...)`: one request of a user, the tool steps on it and its answer, for those who write their own loop.

    async with memory.turn("What is the weather in Turin?") as turn:
        while True:
            reply = await client.chat.completions.create(model=MODEL, messages=turn.to_openai(), tools=TOOLS)
            message = await turn.add(reply.choices[0].message)
            if not message.tool_calls:
                break
            for call in message.tool_calls:
                await turn.add({"role": "tool", "tool_call_id": call.id, "content": await run(call)})

The request is committed at once, so that nothing that a user said is lost. What follows is kept here and committed in one
transaction when the block is left; when it is left by an exception, or is cancelled, none of it is. What is committed has the
request's id in `metadata["turn"]`.

A request that is asked again because its turn failed is not stored a second time: one with an id is known by it, another one
by what it says, if it is still unanswered and either its turn failed in this process or nothing was answered since.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

from memory_engine.errors import ConfigurationError, InvalidMessageError
from memory_engine.formats.anthropic import AnthropicRequest, CachePoint, to_anthropic
from memory_engine.formats.openai import to_openai
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage, coerce, without_memory
from memory_engine.receipt import Context
from memory_engine.rows import new_ids
from memory_engine.session import MessageLike

_Key = tuple[int, str, str, str]
_open: set[_Key] = set()
"""The requests that turns of this process are answering."""
_failed: OrderedDict[_Key, None] = OrderedDict()
"""The requests whose turns failed in this process, the newest last."""
_MOST_FAILED = 1_000
_LOOK_BACK = 32
"""Among so many of the newest messages a request that is asked again is looked for."""


class Turn:
    """One turn of a conversation; made by `Memory.turn` and entered once.

    When a request with an id was answered before, `steps` and `answer` are what was stored then from the start, and nothing is
    stored again.
    """

    def __init__(self, memory: Memory, message: MessageLike | str, block_kwargs: dict[str, Any]) -> None:
        request = ChatMessage(role="user", content=message) if isinstance(message, str) else without_memory(coerce(message))
        if request is None or request.role != "user":
            raise InvalidMessageError("A turn begins with what the user says: a text, or a message with the role 'user'.")
        self._memory, self._block_kwargs = memory, block_kwargs
        self._context: Context | None = None
        self._pending: list[ChatMessage] = []
        self._writes = not memory.is_read_only
        self._over = False
        self._key: _Key | None = None
        self.request: ChatMessage = request
        """What the user said, once entered as it is stored."""

    @property
    def messages(self) -> list[ChatMessage]:
        """What to send to the model now: the context with all steps of this turn, within the budget; a new list each time."""
        return list(self.context.messages)

    @property
    def context(self) -> Context:
        """The same with its receipt."""
        if self._context is None:
            raise ConfigurationError("A turn has messages inside of `async with memory.turn(...) as turn:`.")
        return self._context

    @property
    def steps(self) -> tuple[ChatMessage, ...]:
        """What was added to this turn, in order."""
        return tuple(self._pending)

    @property
    def answer(self) -> ChatMessage | None:
        """The newest message of the assistant in this turn that calls no tools."""
        answers = (step for step in reversed(self._pending) if step.role == "assistant" and not step.tool_calls)
        return next(answers, None)

    def to_openai(self) -> list[dict[str, Any]]:
        """`messages` as OpenAI-style dicts."""
        return to_openai(self.messages)

    def to_anthropic(
        self, *, cache: bool | Collection[CachePoint] = False, cache_ttl: Literal["5m", "1h"] | None = None
    ) -> AnthropicRequest:
        """`messages` as the arguments `system` and `messages` of Anthropic's API; `cache` as in `formats.anthropic`."""
        return to_anthropic(self.messages, cache=cache, cache_ttl=cache_ttl)

    async def add(self, message: MessageLike) -> ChatMessage:
        """Add what the model said or a tool returned: a message, or a dict or object of OpenAI's; it is returned as a message.

        While calls are without results, `messages` stay as they were.

        :raises InvalidMessageError: it is no message.
        :raises BudgetExceededError: what may never be cut of the turn does not fit any more.
        """
        self._check_open()
        added = without_memory(coerce(message))
        if added is None:
            raise InvalidMessageError("What memory had inserted is no step of a turn.")
        # As it will be stored, so that what is shown now is what is shown later, and a provider's cache goes on.
        now = self._memory._session.core.clock.now()
        marked = {**added.metadata, "turn": self.request.id}
        fields = {"id": added.id or new_ids(1)[0], "created_at": added.created_at or now, "metadata": marked}
        added = added.model_copy(update=fields)
        self._pending.append(added)
        if not self._waits_for_results:
            await self._read()
        return added

    async def finish(self, answer: MessageLike | str | None = None) -> None:
        """Add the answer (a text is the assistant's), and commit the turn now instead of at the end of the block."""
        self._check_open()
        if isinstance(answer, str):
            answer = ChatMessage(role="assistant", content=answer)
        if answer is not None:
            await self.add(answer)
        if self._writes and self._pending:
            await self._commit()
        self._over = True

    @property
    def _waits_for_results(self) -> bool:
        called = {call.id for step in self._pending for call in step.tool_calls}
        return bool(called.difference(*(step.tool_results for step in self._pending)))

    def _check_open(self) -> None:
        if self._context is None or self._over:
            raise ConfigurationError("Steps are added inside of `async with memory.turn(...)`, before `finish`.")

    async def _read(self) -> None:
        own = [self.request, *self._pending]
        self._context = await self._memory.context_of_run(own, self.request, **self._block_kwargs)

    async def _commit(self) -> None:
        """All steps or none, also for who cancels meanwhile: what was committed then is taken back."""
        commit = asyncio.ensure_future(self._memory.put_messages(self._pending))
        try:
            await asyncio.shield(commit)
        except asyncio.CancelledError:
            undone = asyncio.ensure_future(self._undo(commit))
            while not undone.done():
                with suppress(asyncio.CancelledError):  # it is raised in any case, when this is done
                    await asyncio.wait({undone})
            undone.result()
            raise

    async def _undo(self, commit: asyncio.Future[list[ChatMessage]]) -> None:
        await asyncio.wait({commit})
        if not commit.cancelled() and commit.exception() is None:
            await self._memory.delete([str(message.id) for message in commit.result()])

    async def __aenter__(self) -> Self:
        if self._context is not None:
            raise ConfigurationError("A turn is entered once; make another one with memory.turn(...).")
        try:
            await self._begin()
            await self._read()
        except BaseException:
            self._end(failed=True)
            raise
        return self

    async def _begin(self) -> None:
        """Store the request, or find it where it is stored."""
        if not self._memory._writes("turn"):
            self.request = self.request.model_copy(update={"id": self.request.id or new_ids(1)[0]})
            return
        has_id = self.request.id is not None
        repeated = None if has_id else await self._repeated()
        request = repeated or await self._memory.put(self.request)
        assert request is not None
        self.request, self._key = request, self._key_of(request)
        _open.add(self._key)
        if has_id and (await self._memory.get_all(last=1))[0].id != request.id:
            self._pending = [message for message in await self._memory.get_all() if _is_of(message, request)]
            self._writes = not self._pending

    async def _repeated(self) -> ChatMessage | None:
        """The stored message that this request is, if its turn failed."""
        same = ("role", "blocks", "name", "metadata")
        later: list[ChatMessage] = []
        answered = False
        for message in reversed(await self._memory.get_all(last=_LOOK_BACK)):
            key = self._key_of(message)
            if (
                all(getattr(message, name) == getattr(self.request, name) for name in same)
                and key not in _open
                and (key in _failed or not answered)
                and not _is_answered(message, later)
            ):
                return message
            answered = answered or message.role == "assistant"
            later.insert(0, message)
        return None

    def _key_of(self, message: ChatMessage) -> _Key:
        return id(self._memory.engine), self._memory.tenant, self._memory.session_id, str(message.id)

    def _end(self, *, failed: bool) -> None:
        self._over = True
        if self._key is None:
            return
        _open.discard(self._key)
        _failed.pop(self._key, None)
        if failed:
            _failed[self._key] = None
            while len(_failed) > _MOST_FAILED:
                _failed.popitem(last=False)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = error is not None and not self._over
        try:
            if error is None and not self._over:
                failed = True
                await self.finish()
                failed = False
        finally:
            self._end(failed=failed)


def _is_of(message: ChatMessage, request: ChatMessage) -> bool:
    return message.metadata.get("turn") == request.id


def _is_answered(request: ChatMessage, later: Sequence[ChatMessage]) -> bool:
    """Whether a turn was committed for it, or somebody put an answer right behind it."""
    if any(_is_of(message, request) for message in later):
        return True
    return bool(later) and later[0].role in ("assistant", "tool") and "turn" not in later[0].metadata
