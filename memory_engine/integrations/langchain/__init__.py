"""Memory for LangChain and LangGraph: agents, graphs, runnables with history, and the memory classes of old.

    from langchain.agents import create_agent
    from memory_engine.integrations.langchain import MemoryMiddleware

    agent = create_agent(model, tools, middleware=[MemoryMiddleware(engine)])
    await agent.ainvoke({"messages": [("user", "Hello!")]}, {"configurable": {"thread_id": "chat-1"}})

- `MemoryMiddleware`: for `langchain.agents.create_agent`.
- `GraphMemory`: two nodes for a LangGraph, or the hooks of a prebuilt agent.
- `MemoryChatMessageHistory`: a `BaseChatMessageHistory`, for `RunnableWithMessageHistory`.
- `ConversationMemory`: `save_context`, `load_memory_variables` and the other names of `ConversationBufferMemory`.
- `from_langchain`, `to_langchain`: messages, both ways, without loss.

Each is imported when it is asked for. Calls from synchronous code work as `sync` says.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from memory_engine.integrations.langchain.missing import needs

with needs("langchain_core"):
    import langchain_core.messages  # noqa: F401  (what all of them need)

if TYPE_CHECKING:
    from memory_engine.integrations.langchain.graph import GraphMemory
    from memory_engine.integrations.langchain.history import MemoryChatMessageHistory
    from memory_engine.integrations.langchain.legacy import ConversationMemory
    from memory_engine.integrations.langchain.messages import (
        from_langchain,
        message_from_langchain,
        message_to_langchain,
        to_langchain,
    )
    from memory_engine.integrations.langchain.middleware import MemoryMiddleware
    from memory_engine.integrations.langchain.sync import close

__all__ = [
    "ConversationMemory",
    "GraphMemory",
    "MemoryChatMessageHistory",
    "MemoryMiddleware",
    "close",
    "from_langchain",
    "message_from_langchain",
    "message_to_langchain",
    "to_langchain",
]

_HOMES = {
    "ConversationMemory": "legacy",
    "GraphMemory": "graph",
    "MemoryChatMessageHistory": "history",
    "MemoryMiddleware": "middleware",
    "close": "sync",
    "from_langchain": "messages",
    "message_from_langchain": "messages",
    "message_to_langchain": "messages",
    "to_langchain": "messages",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
