"""Memory for agents of Google's Agent Development Kit: a plugin of the runner."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress

from memory_engine.errors import MessageConflictError
from memory_engine.formats.google_adk import from_event, to_content, to_event
from memory_engine.integrations.one_run import context_of_run
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage

# After the import above, which says what is missing.
from google.adk.agents.callback_context import CallbackContext  # isort: skip
from google.adk.agents.invocation_context import InvocationContext  # isort: skip
from google.adk.events import Event  # isort: skip
from google.adk.models.llm_request import LlmRequest  # isort: skip
from google.adk.models.llm_response import LlmResponse  # isort: skip
from google.adk.plugins.base_plugin import BasePlugin  # isort: skip
from google.adk.sessions.session import Session  # isort: skip
from google.genai import types  # isort: skip

__all__ = ["MemoryPlugin", "from_event", "to_content", "to_event"]

_MOST_RUNS = 1_000
"""So many runs are remembered that did not say that they ended."""


class MemoryPlugin(BasePlugin):
    """A session's memory for a application's agents: `App(..., plugins=[MemoryPlugin(memory)])`.

    `memory` is one session's, or a function from the kit's session to it, such as
    `lambda session: engine.session(session.id, user_id=session.user_id, tenant=session.app_name)`. Each request to a model
    gets what `memory.get()` gives, with the messages of this run last, in place of the session's events; sections that
    memory puts into a system message join the instructions. Events are stored by their ids, each when it happens. Memory
    has one view of a conversation: every agent of a run reads the words of all of them as the model's own.
    """

    def __init__(self, memory: Memory | Callable[[Session], Memory], *, name: str = "memory_engine") -> None:
        super().__init__(name)
        self._memory = memory
        self._runs: OrderedDict[str, dict[str, ChatMessage]] = OrderedDict()

    def memory_of(self, session: Session) -> Memory:
        """The memory of that session of the kit's."""
        return self._memory if isinstance(self._memory, Memory) else self._memory(session)

    async def on_event_callback(self, *, invocation_context: InvocationContext, event: Event) -> Event | None:
        """Store what was said."""
        own = [known for known in invocation_context.session.events if known.invocation_id == invocation_context.invocation_id]
        await self._save(invocation_context.session, invocation_context.invocation_id, [*own, event])
        return None

    async def before_model_callback(self, *, callback_context: CallbackContext, llm_request: LlmRequest) -> LlmResponse | None:
        """Give the model what memory has for it."""
        session, run_id = callback_context.session, callback_context.invocation_id
        memory = self.memory_of(session)
        run = await self._save(session, run_id, [event for event in session.events if event.invocation_id == run_id])
        view = await context_of_run(memory, list(run.values()))
        instructions = [message.content for message in view if message.role in ("system", "developer") and message.content]
        if instructions:
            llm_request.append_instructions(instructions)
        contents = [to_content(message) for message in view if message.role not in ("system", "developer")]
        if "gemini" in (llm_request.model or ""):
            _drop_own_ids(contents)
        llm_request.contents = contents
        return None

    async def after_run_callback(self, *, invocation_context: InvocationContext) -> None:
        self._runs.pop(invocation_context.invocation_id, None)

    async def _save(self, session: Session, run_id: str, events: Sequence[Event]) -> dict[str, ChatMessage]:
        """Store what of these events of a run is new; returns all that the run has said."""
        run = self._runs.setdefault(run_id, {})
        while len(self._runs) > _MOST_RUNS:
            self._runs.popitem(last=False)
        said = [event for event in events if event.id not in run and _says_something(event)]
        for message in await _put_new(self.memory_of(session), list(map(from_event, said))):
            run[str(message.id)] = message
        return run


def _says_something(event: Event) -> bool:
    """Not a piece of a stream, nor what the kit asks of the application, nor a change of state alone."""
    if event.partial or event.content is None or not event.content.parts:
        return False
    steps = [step for part in event.content.parts if (step := part.function_call or part.function_response)]
    return not steps or not all((step.name or "").startswith("adk_") for step in steps)


def _drop_own_ids(contents: Sequence[types.Content]) -> None:
    """The kit makes up ids of calls where Gemini gives none, and keeps them from it."""
    for content in contents:
        for part in content.parts or []:
            step = part.function_call or part.function_response
            if step is not None and (step.id or "").startswith("adk-"):
                step.id = None


async def _put_new(memory: Memory, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Store the messages; where one is stored already, that one stays."""
    try:
        return await memory.put_messages(messages)
    except MessageConflictError:
        for message in messages:
            with suppress(MessageConflictError):
                await memory.put(message)
        return list(messages)
