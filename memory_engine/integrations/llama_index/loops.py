"""An event loop in a thread of its own, and which one runs here."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

R = TypeVar("R")


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        # A loop keeps the context that it is made in, and whatever a workflow's run has put there.
        self.loop = contextvars.Context().run(asyncio.new_event_loop)
        threading.Thread(target=self.loop.run_forever, name="memory-engine-llama-index", daemon=True).start()

    def submit(self, work: Callable[[], Awaitable[R]]) -> Future[R]:
        async def run() -> R:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), self.loop)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop in which this is called; None where none runs."""
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None
