"""Memory for agents of pydantic-ai: `capabilities=[AgentMemory(memory)]`, or history in and out by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from memory_engine.formats.pydantic_ai import KnownParts, from_model_messages, is_inserted, to_model_messages
from memory_engine.integrations.storing import put_new
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage

# After the import above, which says what is missing.
from pydantic_ai import RunContext  # isort: skip
from pydantic_ai import messages as ai  # isort: skip
from pydantic_ai.capabilities import AbstractCapability, WrapRunHandler  # isort: skip
from pydantic_ai.models import ModelRequestContext  # isort: skip
from pydantic_ai.run import AgentRunResult  # isort: skip

_LOOK_BACK = 1_000
"""What is given is compared with so many of the newest messages."""

__all__ = ["AgentMemory", "from_model_messages", "load_history", "save_messages", "to_model_messages"]


@dataclass
class AgentMemory(AbstractCapability[Any]):
    """A session's memory for runs of an agent: `agent.run(..., capabilities=[AgentMemory(memory)])`, or on the agent itself.

    Each request to the model gets what `memory.get()` gives, with the messages of this run last, in place of the history
    that the framework would send. Messages are stored when the model is asked and when the run ends, however it ends; so
    a run that failed is taken up again by `agent.run(message_history=await load_history(memory), capabilities=...)`,
    without its prompt. Other history that is given is stored as far as memory does not know it. System prompts of the agent
    are sent first and not stored; they, the instructions and the tools have their room in `reserved_tokens`.
    """

    memory: Memory
    _live: RunContext[Any] = field(init=False, repr=False, compare=False)
    _is_begun: bool = field(default=False, init=False, repr=False, compare=False)
    _prompts: list[ai.SystemPromptPart] = field(default_factory=list, init=False, repr=False, compare=False)
    _given: list[ai.ModelMessage] = field(default_factory=list, init=False, repr=False, compare=False)
    _known: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _stored: dict[str, ChatMessage] = field(default_factory=dict, init=False, repr=False, compare=False)

    async def for_run(self, ctx: RunContext[Any]) -> AgentMemory:
        return AgentMemory(self.memory)

    async def wrap_run(self, ctx: RunContext[Any], *, handler: WrapRunHandler) -> AgentRunResult[Any]:
        self._given, self._live = list(ctx.messages), ctx
        try:
            return await handler()
        finally:
            await self._save()

    async def prepare_model_request(self, ctx: RunContext[Any], request_context: ModelRequestContext) -> ModelRequestContext:
        self._live = ctx  # its list of messages is the one that grows; that of `wrap_run` stays as it was
        await self._save()
        if isinstance(request_context.messages[-1], ai.ModelRequest):  # else the provider goes on with what it suspended
            view = (await self.memory.context_of_run(list(self._stored.values()))).messages
            prompts = [*self._prompts, *_system_prompts(self._own())]
            first: list[ai.ModelMessage] = [ai.ModelRequest(parts=prompts)] if prompts else []
            # Without a word of anybody, instructions are all there is: the framework's request has them.
            request_context.messages = first + to_model_messages(view) or request_context.messages
        return request_context

    async def _save(self) -> None:
        if not self._is_begun:
            await self._take_up()
            self._is_begun = True
        said = from_model_messages(self._own(), known=self._known)
        for message in await put_new(self.memory, [message for message in said if message.role != "system"]):
            self._stored[str(message.id)] = message
        self._known.update(str(message.id) for message in said)

    async def _take_up(self) -> None:
        """Store what of the given history is new, and find the request in it that this run goes on with."""
        if not self._given:
            return
        known = KnownParts(await self.memory.get_all(last=_LOOK_BACK))
        new = known.without_known(self._given)
        self._prompts = _system_prompts(new)
        said = await put_new(self.memory, [m for m in from_model_messages(new) if m.role != "system"])
        stored = {message.id: message for message in said}
        for message in _begun(self._given):
            parts = message.parts if isinstance(message, ai.ModelRequest) else ()
            found = [known.stored_as(part) for part in parts]
            found += [stored.get(m.id) for m in from_model_messages(known.without_known([message]))]
            self._stored.update({str(m.id): m for m in found if m is not None})

    def _own(self) -> list[ai.ModelMessage]:
        """What this run has said. A request that it takes up again may be merged into a new one: its parts tell it."""
        given = {id(part) for message in self._given for part in message.parts}
        own: list[ai.ModelMessage] = []
        for message in self._live.messages:
            if message.run_id == self._live.run_id:
                parts: Any = [part for part in message.parts if id(part) not in given]
                own += [message] if len(parts) == len(message.parts) else [replace(message, parts=parts)] if parts else []
        return own


def _system_prompts(messages: Iterable[ai.ModelMessage]) -> list[ai.SystemPromptPart]:
    parts = [part for message in messages for part in message.parts]
    return [part for part in parts if isinstance(part, ai.SystemPromptPart) and not is_inserted(part)]


def _begun(history: Sequence[ai.ModelMessage]) -> Sequence[ai.ModelMessage]:
    """The turn at the end of a history, if it waits for the model or for results of tools."""
    last = history[-1]
    if isinstance(last, ai.ModelResponse) and not any(isinstance(part, ai.ToolCallPart) for part in last.parts):
        return []
    asked = [at for at, m in enumerate(history) if any(isinstance(part, ai.UserPromptPart) for part in m.parts)]
    return history[asked[-1] :] if asked else history[-1:]


async def load_history(memory: Memory, query: str | None = None) -> list[ai.ModelMessage]:
    """What `agent.run(..., message_history=...)` takes: the view that `memory.get(query)` returns."""
    return to_model_messages(await memory.get(query))


async def save_messages(memory: Memory, messages: Iterable[ai.ModelMessage]) -> None:
    """Store what is new among a run's messages: `result.new_messages()`, or all of them. Doing it again changes nothing.

    :raises InvalidMessageError: one of them cannot be kept exactly.
    """
    known = KnownParts(await memory.get_all(last=_LOOK_BACK))
    await put_new(memory, from_model_messages(known.without_known(list(messages))))
