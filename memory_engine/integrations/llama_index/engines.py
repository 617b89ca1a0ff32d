"""Where the memories of this process find their engines: by name, so that a serialized memory holds no connection.

An engine of the application's own runs in the application's event loop. One that `from_defaults` opens runs in an event loop
in a thread of its own, because such a memory is used from sync code, from one `asyncio.run` after the other, and never closed.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from memory_engine import MemoryEngine
from memory_engine.errors import ConfigurationError, WrongEventLoopError
from memory_engine.integrations.llama_index.arguments import equal, is_in_memory, name_for

R = TypeVar("R")
_AT_EXIT = 10.0
"""Seconds that deliveries under way have when the interpreter exits; what is not done stays in the database."""


class _LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="memory-engine-llama-index", daemon=True).start()

    def submit(self, work: Callable[[], Awaitable[R]]) -> Future[R]:
        async def run() -> R:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), self.loop)


@dataclass(eq=False)
class Connection:
    """An engine under its name; `arguments` are those that `from_defaults` made it of, None for one of the application's."""

    name: str
    engine: MemoryEngine
    arguments: Mapping[str, Any] | None = None
    users: int = 0
    threaded: bool = False

    @property
    def closed(self) -> bool:
        return self.engine.closed

    @property
    def thread(self) -> _LoopThread | None:
        """Where it runs; None: in the event loop of whoever uses it first."""
        return _own_thread() if self.threaded else None

    async def call(self, work: Callable[[], Awaitable[R]]) -> R:
        """Do it in the engine's event loop."""
        thread = self.thread
        if thread is None or asyncio.get_running_loop() is thread.loop:
            return await work()
        return await asyncio.wrap_future(thread.submit(work))

    def wait(self, work: Callable[[], Awaitable[R]], method: str) -> R:
        """Do it there and block until it is done.

        An engine in a thread of its own does it also while the event loop of the caller is blocked.

        :raises WrongEventLoopError: the engine's event loop does not run, or it may be the one that would be blocked.
        """
        running, thread = _running_loop(), self.thread
        if running is not None and (thread is None or running is thread.loop):
            raise WrongEventLoopError(
                f"{method}() would block the event loop that is running here; write `await memory.a{method}(...)`."
            )
        if thread is not None:
            return thread.submit(work).result()
        loop = self.engine.loop
        if loop is None or not loop.is_running():
            raise WrongEventLoopError(
                f"The event loop of the engine {self.name!r} is not running, so {method}() cannot be done; write "
                f"`await memory.a{method}(...)` there, or let `Memory.from_defaults` open an engine with a loop of its own."
            )

        async def run() -> R:
            return await work()

        return asyncio.run_coroutine_threadsafe(run(), loop).result()


_connections: dict[str, Connection] = {}
_lock = threading.Lock()
_thread: _LoopThread | None = None


def register_engine(name: str, engine: MemoryEngine) -> None:
    """Let memories find this engine under `name`, also those that come out of a serialized `Context`.

    Call it when the application starts, in every process. The engine stays yours: you close it. A name that was given
    before stands for the new engine from now on.

    :raises ConfigurationError: the name is no text, or the engine no `MemoryEngine`.
    """
    if not isinstance(name, str) or not name or not isinstance(engine, MemoryEngine):
        raise ConfigurationError("register_engine takes a name and a MemoryEngine.")
    with _lock:
        _connections[name] = Connection(name, engine)


def name_of(engine: MemoryEngine) -> str:
    """The name of an engine; one that has none gets one that is good for this process."""
    with _lock:
        for name, connection in _connections.items():
            if connection.engine is engine:
                return name
        name = f"engine-{uuid4()}"
        _connections[name] = Connection(name, engine)
        return name


def find(name: str) -> Connection | None:
    """What is registered under that name and not closed."""
    connection = _connections.get(name)
    if connection is not None and connection.closed and connection.arguments is not None:
        return None
    return connection


def open_engine(arguments: Mapping[str, Any], name: str | None = None) -> Connection:
    """A connection for these arguments of `MemoryEngine`: the one that is open for equal ones, or a new one.

    :raises ConfigurationError: an argument is wrong, or the name stands for an engine with others.
    """
    in_memory = is_in_memory(arguments)
    with _lock:
        base = name or name_for(arguments)
        known = _connections.get(base)
        if known is not None and not known.closed:
            if not in_memory and known.arguments is not None and equal(known.arguments, arguments):
                return known
            if name is not None:
                raise ConfigurationError(f"The name {name!r} stands for an engine with other arguments; choose another.")
            base = f"{base}-{uuid4().hex[:8]}"
        engine = MemoryEngine(**arguments)
        # An engine on an AsyncEngine of the user's has to run where that one's connections are.
        threaded = arguments.get("async_engine") is None
        connection = _connections[base] = Connection(base, engine, dict(arguments), threaded=threaded)
        return connection


async def release(connection: Connection, timeout: float) -> None:
    """One user less; the last one closes an engine that `from_defaults` opened."""
    with _lock:
        connection.users -= 1
        if connection.users > 0:
            return
    await connection.call(partial(connection.engine.aclose, timeout=timeout))
    with _lock:
        if _connections.get(connection.name) is connection:
            del _connections[connection.name]


def lost(name: str, needs: Mapping[str, Any]) -> ConfigurationError:
    """What to say when nothing has that name here."""
    missing = f" It has {', '.join(needs)}, which no JSON can carry." if needs else ""
    return ConfigurationError(
        f"No engine is registered as {name!r} in this process.{missing} Before the memory is used, call "
        f"register_engine({name!r}, engine), or Memory.from_defaults(...) with the arguments it was made with."
    )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None


def _own_thread() -> _LoopThread:
    global _thread  # noqa: PLW0603 - one for the process
    if _thread is None:
        _thread = _LoopThread()
        # Not atexit: then no thread can be started any more, and databases have theirs.
        getattr(threading, "_register_atexit")(_close_all)  # noqa: B009
    return _thread


def _close_all() -> None:
    for connection in list(_connections.values()):
        if connection.threaded and not connection.closed and _thread is not None:
            with suppress(Exception):
                _thread.submit(partial(connection.engine.aclose, timeout=_AT_EXIT)).result(2 * _AT_EXIT)


def _after_fork() -> None:
    """A forked process has neither the thread nor the connections: engines of `from_defaults` are made anew."""
    global _thread, _lock
    _thread, _lock = None, threading.Lock()
    for connection in _connections.values():
        if connection.threaded and connection.arguments is not None and not connection.closed:
            connection.engine._closed = True  # the parent's
            connection.engine = MemoryEngine(**connection.arguments)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
