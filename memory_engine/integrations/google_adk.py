"""Memory for agents of Google's Agent Development Kit: a plugin of the runner."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from memory_engine.formats.google_adk import from_event, to_content, to_event
from memory_engine.integrations.google_adk_events import contents_beside, live_events, story_of, tell, with_beside
from memory_engine.integrations.room import make_room
from memory_engine.integrations.storing import put_new
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
from google.adk.tools.base_tool import BaseTool  # isort: skip
from google.adk.tools.tool_context import ToolContext  # isort: skip
from google.genai import types  # isort: skip

__all__ = ["MemoryPlugin", "from_event", "to_content", "to_event"]

_MOST_RUNS = 1_000
"""So many runs are remembered that did not say that they ended."""


_Key = tuple[str, str, str]

_calling: ContextVar[_Key | None] = ContextVar("memory_engine_calling", default=None)
"""The session whose tool is at work: runs of others within it are part of the tool."""


@dataclass(slots=True)
class _Run:
    stored: dict[str, ChatMessage] = field(default_factory=dict)
    replaced: set[str] = field(default_factory=set)


class MemoryPlugin(BasePlugin):
    """A session's memory for an application's agents: `App(..., plugins=[MemoryPlugin(memory)])`.

    `memory` is one session's, or a function from the kit's session to it, such as
    `lambda session: engine.session(session.id, user_id=session.user_id, tenant=session.app_name)`. Each request to a model
    gets what `memory.get()` gives, with the messages of this run last, in place of the session's events; sections that
    memory puts into a system message join the instructions, and what the kit adds for this request alone (instructions in
    contents, artifacts) stays where it is, within the budget. Agents with `include_contents="none"` are sent what the kit
    sends them, and the runs of an `AgentTool` are none of this memory's. Events are stored by their ids, each when it happens.
    Of several results for one call the last counts. What `runner.rewind_async` takes back is deleted when the next run
    begins. Memory has one view of a conversation: every agent of a run reads the words of all of them as the model's own.
    """

    def __init__(self, memory: Memory | Callable[[Session], Memory], *, name: str = "memory_engine") -> None:
        super().__init__(name)
        self._memory = memory
        self._runs: OrderedDict[str, _Run] = OrderedDict()

    def memory_of(self, session: Session) -> Memory:
        """The memory of that session of the kit's."""
        return self._memory if isinstance(self._memory, Memory) else self._memory(session)

    async def on_event_callback(self, *, invocation_context: InvocationContext, event: Event) -> Event | None:
        """Store what was said."""
        if not _is_nested(invocation_context.session):
            await self._save(invocation_context.session, invocation_context.invocation_id, event)
        return None

    async def before_model_callback(self, *, callback_context: CallbackContext, llm_request: LlmRequest) -> LlmResponse | None:
        """Give the model what memory has for it."""
        session, run_id = callback_context.session, callback_context.invocation_id
        if _is_nested(session):
            return None
        run = await self._save(session, run_id)
        agent = callback_context.get_invocation_context().agent
        if getattr(agent, "include_contents", "default") != "default" or llm_request.previous_interaction_id:
            return None
        memory = self.memory_of(session)
        events = live_events(session.events)[0]
        story = story_of([told.event for told in tell(events) if told.event], run_id)
        view = (await memory.context_of_run([run.stored.get(event.id) or from_event(event) for event in story])).messages
        beside = contents_beside(llm_request.contents, events)
        if beside:
            view = make_room(memory, view, [from_event(Event(author="user", content=content)) for content, _ in beside])
        instructions = [message.content for message in view if message.role in ("system", "developer") and message.content]
        if instructions:
            llm_request.append_instructions(instructions)
        contents = [to_content(message) for message in view if message.role not in ("system", "developer")]
        if "gemini" in (llm_request.model or ""):
            _drop_own_ids(contents)
        llm_request.contents = with_beside(contents, beside)
        return None

    async def before_tool_callback(
        self, *, tool: BaseTool, tool_args: dict[str, Any], tool_context: ToolContext
    ) -> dict[str, Any] | None:
        if not _is_nested(tool_context.session):
            _calling.set(_key(tool_context.session))
        return None

    async def after_tool_callback(
        self, *, tool: BaseTool, tool_args: dict[str, Any], tool_context: ToolContext, result: dict[str, Any]
    ) -> dict[str, Any] | None:
        if not _is_nested(tool_context.session):
            _calling.set(None)
        return None

    async def after_run_callback(self, *, invocation_context: InvocationContext) -> None:
        self._runs.pop(invocation_context.invocation_id, None)

    async def _save(self, session: Session, run_id: str, newest: Event | None = None) -> _Run:
        """Store what of the events of a run is new, in place of preliminary results."""
        memory = self.memory_of(session)
        events, gone = live_events(session.events)
        if newest is not None and all(event.id != newest.id for event in events):
            events.append(newest)
        if run_id not in self._runs and gone:
            await memory.delete([version for event in gone for version in _versions(event)])
        run = self._runs.setdefault(run_id, _Run())
        while len(self._runs) > _MOST_RUNS:
            self._runs.popitem(last=False)
        told = [item for item in tell(events) if run_id in item.by or (item.event and item.event.invocation_id == run_id)]
        said = [item.event for item in told if item.event and item.event.id not in run.stored]
        for message in await put_new(memory, list(map(from_event, said))):
            run.stored[str(message.id)] = message
        # Afterwards, so that no moment is without a result; until then the first one counts.
        stale = [version for item in told for version in item.stale if version not in run.replaced]
        if stale:
            await memory.delete(stale)
            run.replaced.update(stale)
        return run


def _key(session: Session) -> _Key:
    return session.app_name, session.user_id, session.id


def _is_nested(session: Session) -> bool:
    """Whether a tool of another session runs this one."""
    return _calling.get() not in (None, _key(session))


def _versions(event: Event) -> list[str]:
    """The ids under which an event may have been stored."""
    return [event.id, *[f"{event.id}:{number}" for number in range(1, len(event.get_function_responses()))]]


def _drop_own_ids(contents: Sequence[types.Content]) -> None:
    """The kit makes up ids of calls where Gemini gives none, and keeps them from it."""
    for content in contents:
        for part in content.parts or []:
            step = part.function_call or part.function_response
            if step is not None and (step.id or "").startswith("adk-"):
                step.id = None
