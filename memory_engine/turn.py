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
transaction when the block is left; when it is left by an exception, or is cancelled, none of it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


class Turn:
    """One turn of a conversation; made by `Memory.turn` and entered once.

    A request that is the newest message already is not stored again: the run before it failed, and this is its repetition. So
    is one with the id of a stored message.
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
        added = added.model_copy(update={"id": added.id or new_ids(1)[0], "created_at": added.created_at or now})
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
        self._over = True
        if self._writes and self._pending:
            await self._memory.put_messages(self._pending)

    @property
    def _waits_for_results(self) -> bool:
        called = {call.id for step in self._pending for call in step.tool_calls}
        return bool(called.difference(*(step.tool_results for step in self._pending)))

    def _check_open(self) -> None:
        if self._context is None or self._over:
            raise ConfigurationError("Steps are added inside of `async with memory.turn(...)`, before `finish`.")

    async def _read(self) -> None:
        pending: Sequence[ChatMessage] = self._pending if self._writes else [self.request, *self._pending]
        self._context = await self._memory._read_context(self.request, self._block_kwargs, pending)

    async def __aenter__(self) -> Self:
        if self._context is not None:
            raise ConfigurationError("A turn is entered once; make another one with memory.turn(...).")
        if not self._memory._writes("turn"):
            self.request = self.request.model_copy(update={"id": self.request.id or new_ids(1)[0]})
        elif (repeated := await self._repeated()) is not None:
            self.request = repeated
        else:
            stored = await self._memory.put(self.request)
            assert stored is not None
            self.request = stored
        await self._read()
        return self

    async def _repeated(self) -> ChatMessage | None:
        """The stored message that this request is, if it is the newest one and nobody has said which one it is."""
        if self.request.id is not None:
            return None
        newest = await self._memory.get_all(last=1)
        same = ("role", "blocks", "name", "metadata")
        if newest and all(getattr(newest[0], name) == getattr(self.request, name) for name in same):
            return newest[0]
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and not self._over:
            await self.finish()
        self._over = True
