"""Memory for LLM agents: a durable short-term FIFO and pluggable long-term blocks, merged within a token budget.

    from memory_engine import Memory

    async with Memory.from_defaults("chat-1", async_database_uri="sqlite+aiosqlite:///memory.db") as memory:
        await memory.put({"role": "user", "content": "My name is Ada."})
        messages = await memory.get()

The built-in blocks are in `memory_engine.blocks`, the errors in `memory_engine.errors`, test doubles in
`memory_engine.testing`.
"""

from memory_engine.block import BaseMemoryBlock
from memory_engine.engine import MemoryEngine
from memory_engine.errors import BlockUnavailableError, BudgetExceededError, MemoryEngineError
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage, ContentBlock, ImageBlock, TextBlock, ToolCallBlock, ToolResultBlock
from memory_engine.receipt import Context, Receipt
from memory_engine.settings import Limits

__version__ = "0.1.0"

__all__ = [
    "BaseMemoryBlock",
    "BlockUnavailableError",
    "BudgetExceededError",
    "ChatMessage",
    "ContentBlock",
    "Context",
    "ImageBlock",
    "Limits",
    "Memory",
    "MemoryEngine",
    "MemoryEngineError",
    "Receipt",
    "TextBlock",
    "ToolCallBlock",
    "ToolResultBlock",
]
