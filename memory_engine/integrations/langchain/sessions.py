"""Which session a run belongs to, by its config."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from langchain_core.runnables import RunnableConfig

from memory_engine.engine import MemoryEngine
from memory_engine.errors import ConfigurationError
from memory_engine.integrations.langchain.threads import KEPT, Thread
from memory_engine.memory import Memory

SessionOf = str | Callable[[RunnableConfig], str] | None


class Threads:
    """The sessions of runs, by their config: `thread_id`, and `user_id` if there is one, under `configurable`."""

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
        user_id = _named(self._user_id, config, "user_id")
        if session_id is None:
            raise ConfigurationError(
                'The run names no session; call it with config={"configurable": {"thread_id": ...}}, or give session_id=.'
            )
        key = (session_id, user_id)
        known = self._threads.get(key)
        return self._kept(key, known.memory if known else self.memory.session(session_id, user_id=user_id, tenant=self._tenant))

    def _kept(self, key: tuple[str, str | None], memory: Memory) -> Thread:
        thread = self._threads.setdefault(key, Thread(memory))
        self._threads.move_to_end(key)
        if len(self._threads) > KEPT:
            self._threads.popitem(last=False)
        return thread


def _named(given: SessionOf, config: RunnableConfig, key: str) -> str | None:
    if callable(given):
        return given(config)
    if given is not None:
        return given
    value = (config.get("configurable") or {}).get(key)
    return None if value is None else str(value)
