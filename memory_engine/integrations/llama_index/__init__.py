"""Memory for LlamaIndex: agents, workflows and chat engines, with blocks of theirs and of ours.

`Memory` is the name under which LlamaIndex's own class is imported, so that one import line changes.
"""

from __future__ import annotations

from memory_engine.errors import MissingExtraError

try:
    import llama_index.core.memory as _  # noqa: F401 - only whether it is there
except ImportError as error:
    raise MissingExtraError("This integration needs LlamaIndex; pip install 'memory-engine-blocks[llama-index]'.") from error

from memory_engine.integrations.llama_index.blocks import LlamaIndexBlock
from memory_engine.integrations.llama_index.engines import register_engine
from memory_engine.integrations.llama_index.memory import LlamaIndexMemory
from memory_engine.integrations.llama_index.messages import from_llama_index, to_llama_index

Memory = LlamaIndexMemory

__all__ = ["LlamaIndexBlock", "LlamaIndexMemory", "Memory", "from_llama_index", "register_engine", "to_llama_index"]
