"""Memory for agents of Microsoft Agent Framework: a history provider."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from memory_engine.errors import ConfigurationError, MessageConflictError
from memory_engine.formats.agent_framework import from_message, to_message, to_messages
from memory_engine.integrations.one_run import context_of_run
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
        return to_messages(await self.memory_of(session_id).get())

    async def save_messages(
        self, session_id: str | None, messages: Sequence[Message], *, state: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Store the messages; one that is stored under its id already is left alone."""
        await _put(self.memory_of(session_id), messages)

    async def before_run(
        self, *, agent: SupportsAgentRun, session: AgentSession, context: SessionContext, state: dict[str, Any]
    ) -> None:
        """Store the input, and put what the model should read into the context."""
        memory = self.memory_of(context.session_id)
        given = await _put(memory, context.input_messages)
        approved = _approved_calls(context.input_messages)
        run = await self._run_of(memory, approved.union(*(message.tool_results for message in given)))
        run += [message for message in given if all(message.id != known.id for known in run)]
        view = await context_of_run(memory, run)
        # The framework turns approvals into results afterwards: it needs their calls, which a view hides until then.
        held = _steps_of(run, approved)
        ids = {message.id for message in given}
        if held:
            left_out = ids | {message.id for message in held}
            view = make_room(memory, [message for message in view if message.id not in left_out], [*held, *given])
            view += held
            context.input_messages = to_messages(given)
        elif {message.id for message in view[len(view) - len(ids) :]} == ids:
            context.input_messages = to_messages(view[len(view) - len(ids) :])
            view = view[: len(view) - len(ids)]
        else:
            context.input_messages = []
        # The framework's own way leaves out approvals that were settled.
        loaded = _Loaded(self.source_id, to_messages(view))
        await loaded.before_run(agent=agent, session=session, context=context, state=state)
        context.metadata[self.source_id] = run

    async def after_run(
        self, *, agent: SupportsAgentRun, session: AgentSession, context: SessionContext, state: dict[str, Any]
    ) -> None:
        """Store the response."""
        if context.response is None or not context.response.messages:
            return
        memory = self.memory_of(context.session_id)
        stored = await _put(memory, context.response.messages)
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


async def _put(memory: Memory, messages: Sequence[Message]) -> list[ChatMessage]:
    """Store messages. Ids are the provider's: where one stands for something else already, the message gets its own."""
    given = [from_message(message) for message in messages]
    try:
        return await memory.put_messages(given)
    except MessageConflictError:
        stored = []
        for message in given:
            try:
                stored += await memory.put_messages([message])
            except MessageConflictError:
                stored += await memory.put_messages([message.model_copy(update={"id": None})])
        return stored
