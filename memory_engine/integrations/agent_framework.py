"""Memory for agents of Microsoft Agent Framework: a history provider."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memory_engine.errors import ConfigurationError, MessageConflictError
from memory_engine.formats.agent_framework import from_message, to_message, to_messages
from memory_engine.integrations.room import make_room
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage

# After the import above, which says what is missing.
from agent_framework import AgentSession, HistoryProvider, Message, SessionContext, SupportsAgentRun  # isort: skip

__all__ = ["MemoryHistoryProvider", "from_message", "to_message", "to_messages"]

_MOST_RUNS = 1_000
"""So many runs that wait for results of tools are remembered; others are looked up in what is stored."""
_LOOK_BACK = 1_000
"""So many of the newest messages are looked through for them."""
_SPARE, _PER_INPUT = 16, 4
"""With so many of the newest messages an input is compared: steps of tools may stand between what it repeats."""


class MemoryHistoryProvider(HistoryProvider):
    """A session's memory as an agent's history: `Agent(..., context_providers=[MemoryHistoryProvider(memory)])`.

    `memory` is one session's, or a function from the framework's session id to it, such as `engine.session`. Inputs are
    stored before the model is asked and shown to it as `memory.get()` gives them, within the budget; responses are stored
    when they are there. With `require_per_service_call_history_persistence=True` on the agent that happens at each request
    to the model, else once for each run: then what tools say within a run is not cut, and is stored when it ends.
    A run that failed is taken up again by `agent.run(session=session)`, without its input. Approvals of tools, and results
    that the application gives, go on with the run that asked for them, in another process too.
    """

    def __init__(self, memory: Memory | Callable[[str], Memory], *, source_id: str = "memory_engine") -> None:
        super().__init__(source_id)
        self._memory = memory
        self._runs: OrderedDict[tuple[str, str, str], list[ChatMessage]] = OrderedDict()

    def memory_of(self, session_id: str | None) -> Memory:
        """The memory of that session of the framework's.

        :raises ConfigurationError: the session has no id, and `memory` is a function.
        """
        if isinstance(self._memory, Memory):
            return self._memory
        if session_id is None:
            raise ConfigurationError("Give the run a session: agent.run(..., session=agent.create_session()).")
        return self._memory(session_id)

    async def get_messages(
        self, session_id: str | None, *, state: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Message]:
        """What `memory.get()` returns."""
        return _handed_out(await self.memory_of(session_id).get())

    async def save_messages(
        self, session_id: str | None, messages: Sequence[Message], *, state: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Store the messages; one that is stored under its id already is left alone."""
        await _put(self.memory_of(session_id), [from_message(message) for message in messages])

    async def before_run(
        self, *, agent: SupportsAgentRun, session: AgentSession, context: SessionContext, state: dict[str, Any]
    ) -> None:
        """Store the input, and put what the model should read into the context."""
        memory = self.memory_of(context.session_id)
        given = await _put_input(memory, context.input_messages)
        approved = _approved_calls(context.input_messages)
        run = await self._run_of(memory, approved.union(*(message.tool_results for message in given)))
        run += [message for message in given if all(message.id != known.id for known in run)]
        view = (await memory.context_of_run(run)).messages
        # The framework turns approvals into results afterwards: it needs their calls, which a view hides until then.
        held = _steps_of(run, approved)
        ids = {message.id for message in given}
        if held:
            left_out = ids | {message.id for message in held}
            view = make_room(memory, [message for message in view if message.id not in left_out], [*held, *given])
            view += held
            context.input_messages = _handed_out(given)
        elif {message.id for message in view[len(view) - len(ids) :]} == ids:
            context.input_messages = _handed_out(view[len(view) - len(ids) :])
            view = view[: len(view) - len(ids)]
        else:
            context.input_messages = []
        # The framework's own way leaves out approvals that were settled.
        loaded = _Loaded(self.source_id, _handed_out(view))
        await loaded.before_run(agent=agent, session=session, context=context, state=state)
        context.metadata[self.source_id] = run

    async def after_run(
        self, *, agent: SupportsAgentRun, session: AgentSession, context: SessionContext, state: dict[str, Any]
    ) -> None:
        """Store the response."""
        if context.response is None or not context.response.messages:
            return
        memory = self.memory_of(context.session_id)
        stored = await _put(memory, [from_message(message) for message in context.response.messages])
        for message, kept in zip(context.response.messages, stored, strict=False):
            message.message_id = message.message_id or kept.id  # a workflow hands it on
        run = [*context.metadata.get(self.source_id, ()), *stored]
        answered = {result for message in stored for result in message.tool_results}
        for call in {call.id for message in stored for call in message.tool_calls} - answered:
            self._runs[memory.tenant, memory.session_id, call] = run
        while len(self._runs) > _MOST_RUNS:
            self._runs.popitem(last=False)

    async def _run_of(self, memory: Memory, calls: set[str]) -> list[ChatMessage]:
        """What the run that made these calls has said."""
        keys = [(memory.tenant, memory.session_id, call) for call in calls]
        runs = [run for key in keys if (run := self._runs.pop(key, None)) is not None]
        if runs or not calls:
            return list(runs[0]) if runs else []
        stored = await memory.get_all(last=_LOOK_BACK)
        end = max((at for at, message in enumerate(stored) if _calls_of(message) & calls), default=None)
        if end is None:
            return []
        start = max((at for at, message in enumerate(stored[:end]) if message.role == "user"), default=end)
        results = [message for message in stored[end + 1 :] if set(message.tool_results) & _calls_of(stored[end])]
        return stored[start : end + 1] + results


class _Loaded(HistoryProvider):
    """History that has been loaded already."""

    def __init__(self, source_id: str, messages: list[Message]) -> None:
        super().__init__(source_id)
        self._messages = messages

    async def get_messages(
        self, session_id: str | None, *, state: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Message]:
        return self._messages

    async def save_messages(self, session_id: str | None, messages: Sequence[Message], **kwargs: Any) -> None:
        raise NotImplementedError


def _approved_calls(messages: Sequence[Message]) -> set[str]:
    """The ids of the calls that these messages allow or refuse."""
    responses = [c for message in messages for c in message.contents if c.type == "function_approval_response"]
    return {c.function_call.call_id for c in responses if c.function_call is not None and c.function_call.call_id}


def _calls_of(message: ChatMessage) -> set[str]:
    return {call.id for call in message.tool_calls}


def _steps_of(run: Sequence[ChatMessage], calls: set[str]) -> list[ChatMessage]:
    """The messages that made those calls as far as they wait for a result, with the results that their other calls have."""
    waiting = calls.difference(*(message.tool_results for message in run))
    callers = [message for message in run if _calls_of(message) & waiting]
    made = {call for message in callers for call in _calls_of(message)}
    return [message for message in run if message in callers or made & set(message.tool_results)]


async def _put_input(memory: Memory, messages: Sequence[Message]) -> list[ChatMessage]:
    """The input as it is stored. What it repeats of the conversation, as a workflow hands it on, is not stored again."""
    given = [from_message(message) for message in messages]
    if all(message.role == "tool" for message in given):
        return await _put(memory, given)
    recent = await memory.get_all(last=1 if len(given) == 1 and not given[0].id else _SPARE + _PER_INPUT * len(given))
    repeated = _repeated(given, recent)
    return [*repeated, *await _put(memory, given[len(repeated) :])]


def _repeated(given: Sequence[ChatMessage], stored: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The stored messages that the longest beginning of the input repeats: up to the newest, or to one with an id of ours."""
    for size in range(len(given), 0, -1):
        last = given[size - 1]
        ends = [at for at, message in enumerate(stored) if last.id is not None and message.id == last.id]
        if not ends and stored and _is_same(last, stored[-1]):
            ends = [len(stored) - 1]
        found = _before(given[: size - 1], stored[: ends[-1]]) if ends else None
        if found is not None:
            return [*found, stored[ends[-1]]]
    return []


def _before(given: Sequence[ChatMessage], stored: Sequence[ChatMessage]) -> list[ChatMessage] | None:
    """The stored messages that are these, in order, with others between them; None if one is missing."""
    found: list[ChatMessage] = []
    end = len(stored)
    for message in reversed(given):
        end = next((at for at in range(end - 1, -1, -1) if _is_same(message, stored[at])), -1)
        if end < 0:
            return None
        found.append(stored[end])
    return found[::-1]


def _is_same(given: ChatMessage, stored: ChatMessage) -> bool:
    if given.id is not None and given.id == stored.id:
        return True
    # Without blocks, only what is kept tells.
    return _is_same_content(given, stored) and (bool(given.blocks) or given.metadata == stored.metadata)


async def _put(memory: Memory, given: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Store messages. Ids are the provider's: where one stands for something else already, the message gets its own."""
    try:
        return await memory.put_messages(given)
    except MessageConflictError:
        known = {message.id: message for message in await memory.get_all(last=_LOOK_BACK)}
        stored = []
        for message in given:
            there = known.get(message.id)
            # Where the framework had no id, it is ours: what was handed out came back.
            if there is not None and (_is_same_content(message, there) or not _own_id(there)):
                stored.append(there)
                continue
            try:
                stored += await memory.put_messages([message])
            except MessageConflictError:
                stored += await memory.put_messages([message.model_copy(update={"id": None})])
        return stored


def _is_same_content(given: ChatMessage, stored: ChatMessage) -> bool:
    return (given.role, given.blocks) == (stored.role, stored.blocks)


def _own_id(message: ChatMessage) -> object:
    """The id that the framework gave the message."""
    layout = message.metadata.get("agent_framework")
    return layout["message"].get("message_id") if isinstance(layout, Mapping) else None


def _handed_out(messages: Sequence[ChatMessage]) -> list[Message]:
    """The messages with ids, by which they are known when they come back."""
    written = to_messages(messages)
    for message, ours in zip(written, messages, strict=True):
        message.message_id = message.message_id or ours.id
    return written
