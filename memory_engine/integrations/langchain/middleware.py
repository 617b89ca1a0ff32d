"""Middleware for `langchain.agents.create_agent`: the model reads the budgeted messages, memory stores what is new."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from langchain_core.messages import BaseMessage, SystemMessage
from langchain_core.runnables import RunnableConfig

from memory_engine.engine import MemoryEngine
from memory_engine.integrations.langchain.missing import needs
from memory_engine.integrations.langchain.sessions import SessionOf, Threads
from memory_engine.integrations.langchain.sync import run_sync
from memory_engine.memory import Memory

with needs("langchain"):
    from langchain.agents.middleware import AgentMiddleware, AgentState, ModelRequest, ModelResponse

with needs("langgraph"):
    from langgraph.config import get_config
    from langgraph.runtime import Runtime

log = logging.getLogger("memory_engine.langchain")

Request = ModelRequest[Any]
Response = ModelResponse[Any]


class MemoryMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Before each call of the model: what is new in the agent's state is stored, and the model is sent what memory returns.

    `memory` is a `MemoryEngine`, whose sessions are named by `configurable: {"thread_id": ..., "user_id": ...}` of a run (or
    by `session_id`, `user_id`: texts, or functions of the config), or one `Memory`. Put it first in `middleware=[...]`, so that
    the others see the messages that are sent.

    - The state is not changed, so checkpointers, interrupts and other middleware work as ever. With a checkpointer the state
      holds the whole thread; without one memory is what remembers: give each run the new messages alone.
    - Messages are told apart by their ids. What is edited in the state is replaced in memory while it is in the FIFO; what is
      removed from the state stays in memory (`memory.delete([...])` forgets it). What was erased from memory does not come back
      from the state.
    - Leading system messages of the context are joined to the agent's system prompt, as one message; keep room for the
      prompt and the tools with `reserved_tokens`.
    - An agent that a tool of another agent calls has a session of its own in each thread,
      `{thread_id}|tools|{name of the agent}` (so give such agents names), or the one that `session_id` names. Agents that are
      nodes of a graph share the session of its thread, as they share its state.
    - The answer is stored when it is in the state, after the model's other middleware. A failed run leaves what was said until
      then; resume it from its checkpoint, or give the same messages (with their ids) again.

    `ainvoke` and `astream` are the real thing; `invoke` and `stream` work where `sync` says.
    """

    def __init__(
        self, memory: Memory | MemoryEngine, *, session_id: SessionOf = None, user_id: SessionOf = None, tenant: str = ""
    ) -> None:
        super().__init__()
        self._threads = Threads(memory, session_id=session_id, user_id=user_id, tenant=tenant)

    async def awrap_model_call(self, request: Request, handler: Callable[[Request], Awaitable[Response]]) -> Response:
        """Store what is new, then call the model with what memory returns."""
        config = get_config()
        return self._with_own_ids(await handler(await self._with_memory(request, config)), request, config)

    async def aafter_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        """Store the model's answer, as it is after the other middleware."""
        await self._store(state, get_config())

    async def aafter_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        """Store what a tool or middleware ended the run with."""
        await self._store(state, get_config())

    def wrap_model_call(self, request: Request, handler: Callable[[Request], Response]) -> Response:
        """The same for `invoke`."""
        config = get_config()
        response = handler(run_sync(self._threads.memory, lambda: self._with_memory(request, config)))
        return self._with_own_ids(response, request, config)

    def after_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        """The same for `invoke`."""
        config = get_config()
        run_sync(self._threads.memory, lambda: self._store(state, config))

    def after_agent(self, state: AgentState[Any], runtime: Runtime[Any]) -> None:
        """The same for `invoke`."""
        self.after_model(state, runtime)

    async def _store(self, state: AgentState[Any], config: RunnableConfig) -> None:
        await self._threads.of(config).store(state["messages"])

    def _with_own_ids(self, response: Response, request: Request, config: RunnableConfig) -> Response:
        """The response; a message in it that has the id of an older one gets another. Else LangGraph would replace that one."""
        thread = self._threads.of(config)
        older = {message.id for message in request.state["messages"] if message.id is not None}
        if not any(message.id in older or thread.knows(message) for message in response.result):
            return response
        result = list(response.result)
        for at, message in enumerate(result):
            if message.id in older or thread.knows(message):
                log.warning("the model gave the id %r again; its new message gets another", message.id)
                result[at] = message.model_copy(update={"id": str(uuid4())})
        return replace(response, result=result)

    async def _with_memory(self, request: Request, config: RunnableConfig) -> Request:
        thread = self._threads.of(config)
        # Answers to calls with broken arguments, which LangChain has just made; they get into the state with the reply.
        made = [message for message in request.messages if message.id is None]
        for message in made:
            message.id = str(uuid4())
        said = [*request.state["messages"], *made]
        await thread.store(said)
        view = await thread.view(said)
        start = next((at for at, message in enumerate(view) if not isinstance(message, SystemMessage)), len(view))
        system = joined([*([request.system_message] if request.system_message else []), *view[:start]])
        return request.override(messages=list[Any](view[start:]), system_message=system)


def joined(messages: Sequence[BaseMessage]) -> SystemMessage | None:
    """One system message for several, as some providers take only one; the first one's other fields stay."""
    if len(messages) < 2:
        return messages[0] if messages and isinstance(messages[0], SystemMessage) else None
    first = messages[0]
    if all(isinstance(message.content, str) for message in messages):
        content: Any = "\n\n".join([str(message.content) for message in messages])
    else:
        content = [part for message in messages for part in _parts(message.content)]
    return SystemMessage(content=content, **first.model_dump(exclude={"content", "type"}))


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
