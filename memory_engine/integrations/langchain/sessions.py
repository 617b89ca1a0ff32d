"""Which session a run belongs to, by its config.

LangGraph gives a run that begins inside of another one the other's `thread_id`. Where the inner run is a part of the graph (a
compiled agent as a node, or called by a node), both speak of one conversation. Where a tool calls it, the inner run is asked
something of its own, in the middle of a step of the outer one: that is another conversation.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable

from langchain_core.runnables import RunnableConfig

from memory_engine.content import MAX_ID_LENGTH
from memory_engine.engine import MemoryEngine
from memory_engine.errors import ConfigurationError
from memory_engine.integrations.langchain.threads import KEPT, Thread
from memory_engine.memory import Memory

log = logging.getLogger("memory_engine.langchain")

SessionOf = str | Callable[[RunnableConfig], str] | None

_TOOLS = "tools"
"""The node of LangChain's agents that calls tools; LangGraph's `ToolNode` and `tools_condition` have it as default."""


class Threads:
    """The sessions of runs, by their config: `thread_id`, and `user_id` if there is one, under `configurable`.

    An agent that a tool of another one calls has a session of its own, named as `nested_in` says, unless `session_id` or
    another `thread_id` is given.
    """

    def __init__(
        self, memory: Memory | MemoryEngine, *, session_id: SessionOf = None, user_id: SessionOf = None, tenant: str = ""
    ) -> None:
        if not isinstance(memory, Memory | MemoryEngine):
            raise ConfigurationError(f"memory is a MemoryEngine or a Memory, not {type(memory).__name__}.")
        if isinstance(memory, Memory) and (session_id is not None or user_id is not None or tenant):
            raise ConfigurationError("A Memory is one session already; for several give its MemoryEngine.")
        self.memory = memory
        self._session_id, self._user_id, self._tenant = session_id, user_id, tenant
        self._threads: OrderedDict[tuple[str, str | None], Thread] = OrderedDict()

    def of(self, config: RunnableConfig) -> Thread:
        """The thread of a run.

        :raises ConfigurationError: the config names no session.
        """
        if isinstance(self.memory, Memory):
            return self._kept(("", None), self.memory)
        session_id = _named(self._session_id, config, "thread_id")
        if session_id is not None and self._session_id is None:
            session_id = nested_in(session_id, config)
        user_id = _named(self._user_id, config, "user_id")
        if session_id is None:
            raise ConfigurationError(
                'The run names no session; call it with config={"configurable": {"thread_id": ...}}, or give session_id=.'
            )
        key = (session_id, user_id)
        if key not in self._threads and session_id.endswith(f"|{_TOOLS}"):
            log.warning("all agents without a name that tools of this thread call share the session %r; name them", session_id)
        known = self._threads.get(key)
        return self._kept(key, known.memory if known else self.memory.session(session_id, user_id=user_id, tenant=self._tenant))

    def _kept(self, key: tuple[str, str | None], memory: Memory) -> Thread:
        thread = self._threads.setdefault(key, Thread(memory))
        self._threads.move_to_end(key)
        if len(self._threads) > KEPT:
            self._threads.popitem(last=False)
        return thread


def nested_in(thread_id: str, config: RunnableConfig) -> str:
    """The thread's id; for a run inside of a tool, with the nodes that lead to the tool, and the name of the agent.

    Such as `chat-1|tools|weather_expert`. That is the same each time, so the inner agent remembers what it was asked before in
    this thread, too.
    """
    namespace = str((config.get("configurable") or {}).get("checkpoint_ns") or "")
    # "node:id|node:id|...", the last one the node that runs; a number counts the runs of one node.
    nodes = [part.partition(":")[0] for part in namespace.split("|") if not part.isdigit()][:-1]
    if _TOOLS not in nodes:
        return thread_id
    end = len(nodes) - nodes[::-1].index(_TOOLS)
    name = (config.get("metadata") or {}).get("lc_agent_name")
    # Agents that are nodes of one inner graph share its state, and so a session.
    place = [*nodes[:end], str(name)] if name and end == len(nodes) else nodes[:end]
    session_id = "|".join([thread_id, *place])
    return session_id if len(session_id) <= MAX_ID_LENGTH else f"sha256:{hashlib.sha256(session_id.encode()).hexdigest()}"


def _named(given: SessionOf, config: RunnableConfig, key: str) -> str | None:
    if callable(given):
        return given(config)
    if given is not None:
        return given
    value = (config.get("configurable") or {}).get(key)
    return None if value is None else str(value)
