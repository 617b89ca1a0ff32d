"""Memory in a LangGraph: a node before the model and one after it, or the two hooks of a prebuilt agent.

remember = GraphMemory(engine)
builder.add_node("memory", remember.before_model)     # state["messages"] -> state["llm_input_messages"]
builder.add_node("record", remember.after_model)
create_react_agent(model, tools, pre_model_hook=remember.before_model, post_model_hook=remember.after_model)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, RemoveMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableLambda

from memory_engine.engine import MemoryEngine
from memory_engine.integrations.langchain.missing import needs
from memory_engine.integrations.langchain.sessions import SessionOf, Threads
from memory_engine.integrations.langchain.sync import run_sync
from memory_engine.memory import Memory

with needs("langgraph"):
    from langgraph.graph.message import REMOVE_ALL_MESSAGES


log = logging.getLogger("memory_engine.langchain")


class GraphMemory:
    """Replaces a state's list of messages by the budgeted one, and stores what is new in it.

    - `before_model`: a node that stores what is new in `state[messages_key]` and returns the messages for the model under
      `output_key`. With `output_key="messages"` they take the place of the state's own, which keeps checkpoints small:
      what is left out is in memory.
    - `after_model`: a node that stores what is new, the answer, and changes nothing. Without it an answer is stored by the
      next `before_model` that sees it, unless something was erased from the session meanwhile.
    - `messages_for(messages, config)`: both in one call, inside a node of yours.

    Sessions are named as for `MemoryMiddleware`. The state's messages need ids: use the reducer `add_messages`.
    """

    def __init__(
        self,
        memory: Memory | MemoryEngine,
        *,
        messages_key: str = "messages",
        output_key: str = "llm_input_messages",
        session_id: SessionOf = None,
        user_id: SessionOf = None,
        tenant: str = "",
    ) -> None:
        self._threads = Threads(memory, session_id=session_id, user_id=user_id, tenant=tenant)
        self._messages_key, self._output_key = messages_key, output_key
        self.before_model: Runnable[Any, Any] = RunnableLambda(self._before, self._abefore, name="memory_before_model")
        self.after_model: Runnable[Any, Any] = RunnableLambda(self._after, self._aafter, name="memory_after_model")

    async def messages_for(self, messages: Sequence[BaseMessage], config: RunnableConfig) -> list[BaseMessage]:
        """Store what is new of a state's messages; the messages for the model, within the budget."""
        thread = self._threads.of(config)
        await thread.store(messages)
        return await thread.view(messages)

    async def _abefore(self, state: Any, config: RunnableConfig) -> dict[str, Any]:
        view = await self.messages_for(self._messages(state), config)
        if self._output_key == self._messages_key:
            return {self._output_key: [RemoveMessage(id=REMOVE_ALL_MESSAGES), *view]}
        return {self._output_key: view}

    async def _aafter(self, state: Any, config: RunnableConfig) -> None:
        messages = self._messages(state)
        if messages and isinstance(messages[-1], HumanMessage) and any(isinstance(m, AIMessage) for m in messages):
            log.warning(
                "the state ends with the request %r: the model gave the id of an older message again, and LangGraph has put "
                "its answer there; give answers ids of their own",
                messages[-1].id,
            )
        await self._threads.of(config).store(messages)

    def _before(self, state: Any, config: RunnableConfig) -> dict[str, Any]:
        return run_sync(self._threads.memory, lambda: self._abefore(state, config))

    def _after(self, state: Any, config: RunnableConfig) -> None:
        run_sync(self._threads.memory, lambda: self._aafter(state, config))

    def _messages(self, state: Any) -> Sequence[BaseMessage]:
        key = self._messages_key
        messages: Sequence[BaseMessage] = state[key] if isinstance(state, Mapping) else getattr(state, key)
        return messages
