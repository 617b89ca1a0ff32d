"""The memory from synchronous code: calls run on an event loop in a thread of its own, and wait.

- A memory that was not used yet is bound to that loop by its first synchronous call. From then on it is used synchronously,
  or inside `run_sync`; its asynchronous methods raise `WrongEventLoopError` elsewhere.
- A memory that lives in a running event loop may be called from other threads (as LangChain does with the synchronous code
  of an asynchronous application): the call runs in its own loop.
- A synchronous call in the very thread of the memory's own loop could only wait for itself: a clear error.

Who opened a memory this way closes it with `close(memory)`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from memory_engine.engine import MemoryEngine
from memory_engine.errors import WrongEventLoopError
from memory_engine.memory import Memory

R = TypeVar("R")

PATIENCE = 10.0
"""Seconds in which a loop must begin what it is given; longer, and it is taken to be blocked by who is waiting here."""

_lock = threading.Lock()
_background: asyncio.AbstractEventLoop | None = None


def run_sync(memory: Memory | MemoryEngine, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """What the coroutine of `work` returns, run on the event loop of this memory.

    :raises WrongEventLoopError: this thread runs that loop, or the loop is closed, stopped or blocked.
    """
    engine = memory if isinstance(memory, MemoryEngine) else memory.engine
    loop = engine.loop or _background_loop()
    if _running() is loop:
        raise WrongEventLoopError(
            "A synchronous call in the event loop of this memory would wait for itself; use the asynchronous method (ainvoke, "
            "aget_messages, aload_memory_variables, ...)."
        )
    if not loop.is_running():
        raise WrongEventLoopError("The event loop of this memory has ended; create a new memory on the same database.")
    began = threading.Event()

    async def begin() -> R:
        began.set()
        return await work()

    future = asyncio.run_coroutine_threadsafe(begin(), loop)
    if not began.wait(PATIENCE):
        future.cancel()
        raise WrongEventLoopError(
            f"The event loop of this memory did not answer for {PATIENCE:g} seconds. Probably it is blocked by the synchronous "
            "call that led here; use the asynchronous one (ainvoke instead of invoke)."
        )
    return future.result()


def close(memory: Memory | MemoryEngine) -> None:
    """`aclose` for a memory that was used from synchronous code; pending deliveries end first."""
    run_sync(memory, memory.aclose)


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _background_loop() -> asyncio.AbstractEventLoop:
    """The loop of all synchronous calls of this process, in a thread that ends with it."""
    global _background  # noqa: PLW0603  (one for the process)
    with _lock:
        if _background is None:
            loop = _background = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="memory-engine-sync", daemon=True).start()
            ready = threading.Event()
            loop.call_soon_threadsafe(ready.set)
            ready.wait()
    return _background
