"""The blocks that come with the engine. They use its public names only, as a block of yours would."""

if __name__ != "memory_engine.blocks":
    raise ImportError(f"This package is memory_engine.blocks; it cannot be imported as {__name__!r}.")

from memory_engine.blocks.static import StaticMemoryBlock

# A block that needs an optional package is imported on first use: name it in `__getattr__`, not here.
__all__ = ["StaticMemoryBlock"]
