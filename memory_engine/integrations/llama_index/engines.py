"""Where the memories of this process find their engines: by name, so that a serialized memory holds no connection.

An engine of the application's own runs in the application's event loop. One that `from_defaults` opens runs in an event loop
in a thread of its own, because such a memory is used from sync code, from one `asyncio.run` after the other, and never closed.
It is open as long as a memory holds its connection, and closed when the last one is gone.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from memory_engine import MemoryEngine
from memory_engine.errors import ConfigurationError, WrongEventLoopError
from memory_engine.integrations.llama_index.arguments import equal, is_in_memory, name_for
from memory_engine.integrations.llama_index.loops import LoopThread, running_loop

R = TypeVar("R")
_LAST = 10.0
"""Seconds for deliveries when nobody holds an engine any more, or the interpreter exits; the rest stays in the database."""


class User:
    """Stands for a memory for whose sake an engine is open, and goes with it."""


@dataclass(eq=False)
class Connection:
    """An engine under its name; `arguments` are those that `from_defaults` made it of, None for one of the application's."""

    name: str
    engine: MemoryEngine
    arguments: Mapping[str, Any] | None = None
    users: weakref.WeakSet[User] = field(default_factory=weakref.WeakSet)
    threaded: bool = False

    @property
    def closed(self) -> bool:
        return self.engine.closed

    @property
    def thread(self) -> LoopThread | None:
        """Where it runs; None: in the event loop of whoever uses it first."""
        return _own_thread() if self.threaded else None

    def __del__(self) -> None:
        loop = self.engine.loop
        if self.arguments is not None and not self.closed and loop is not None and loop.is_running():
            _close_later(self.engine, loop)

    async def call(self, work: Callable[[], Awaitable[R]], *, connect: bool = True) -> R:
        """Do it in the engine's event loop."""
        thread = self.thread
        if thread is None or asyncio.get_running_loop() is thread.loop:
            return await work()
        if connect and not self.engine.connected:
            await asyncio.wrap_future(self._connected(thread))
        return await asyncio.wrap_future(thread.submit(work))

    def _connected(self, thread: LoopThread) -> Future[object]:
        """Done when the engine is connected. What it starts then goes on as long as it is open, and must not hold what the
        context of the caller does: a workflow's run, and with it the memory that holds the engine."""
        return contextvars.Context().run(thread.submit, self.engine.session("any").__aenter__)

    def wait(self, work: Callable[[], Awaitable[R]], method: str) -> R:
        """Do it there and block until it is done.

        An engine in a thread of its own does it also while the event loop of the caller is blocked.

        :raises WrongEventLoopError: the engine's event loop does not run, or it may be the one that would be blocked.
        """
        running, thread = running_loop(), self.thread
        if running is not None and (thread is None or running is thread.loop):
            raise WrongEventLoopError(
                f"{method}() would block the event loop that is running here; write `await memory.a{method}(...)`."
            )
        if thread is not None:
            if not self.engine.connected:
                self._connected(thread).result()
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


_registered: dict[str, Connection] = {}
_opened: weakref.WeakValueDictionary[str, Connection] = weakref.WeakValueDictionary()
_kept: dict[str, Connection] = {}
_closing: set[Future[None]] = set()
_lock = threading.Lock()
_thread: LoopThread | None = None


def register_engine(name: str, engine: MemoryEngine) -> None:
    """Let memories find this engine under `name`, also those that come out of a serialized `Context`.

    Call it when the application starts, in every process. The engine stays yours: you close it. A name that was given
    before stands for the new engine from now on.

    :raises ConfigurationError: the name is no text, or the engine no `MemoryEngine`.
    """
    if not isinstance(name, str) or not name or not isinstance(engine, MemoryEngine):
        raise ConfigurationError("register_engine takes a name and a MemoryEngine.")
    with _lock:
        _registered[name] = Connection(name, engine)


def name_of(engine: MemoryEngine) -> str:
    """The name of an engine; one that has none gets one that is good for this process."""
    with _lock:
        for connection in (*_registered.values(), *_opened.values()):
            if connection.engine is engine:
                return connection.name
        name = f"engine-{uuid4()}"
        _registered[name] = Connection(name, engine)
        return name


def find(name: str) -> Connection | None:
    """What is registered under that name and not closed."""
    registered = _registered.get(name)
    if registered is not None:
        return registered
    opened = _opened.get(name)
    return None if opened is None or opened.closed else opened


def keep(connection: Connection) -> None:
    """Hold it until it is closed, if `from_defaults` opened it: something that is no object refers to it."""
    if connection.arguments is not None:
        _kept[connection.name] = connection


def open_engine(arguments: Mapping[str, Any], name: str | None = None) -> Connection:
    """A connection for these arguments of `MemoryEngine`: the one that is open for equal ones, or a new one.

    :raises ConfigurationError: an argument is wrong, or the name stands for an engine with others.
    """
    in_memory = is_in_memory(arguments)
    with _lock:
        base = name or name_for(arguments)
        known = _registered.get(base) or _opened.get(base)
        if known is not None and not known.closed:
            if not in_memory and known.arguments is not None and equal(known.arguments, arguments):
                return known
            if name is not None:
                raise ConfigurationError(f"The name {name!r} stands for an engine with other arguments; choose another.")
            base = f"{base}-{uuid4().hex[:8]}"
        engine = MemoryEngine(**arguments)
        # An engine on an AsyncEngine of the user's has to run where that one's connections are.
        threaded = arguments.get("async_engine") is None
        connection = _opened[base] = Connection(base, engine, dict(arguments), threaded=threaded)
        _registered.pop(base, None)  # closed, or it would have been taken
        return connection


async def release(connection: Connection, user: User, timeout: float) -> None:
    """One user less; the last one closes an engine that `from_defaults` opened."""
    with _lock:
        connection.users.discard(user)
        if connection.users:
            return
    await connection.call(partial(connection.engine.aclose, timeout=timeout), connect=False)
    with _lock:
        for connections in (_opened, _kept):
            if connections.get(connection.name) is connection:
                del connections[connection.name]


def lost(name: str, needs: Mapping[str, Any]) -> ConfigurationError:
    """What to say when nothing has that name here."""
    missing = f" It has {', '.join(needs)}, which no JSON can carry." if needs else ""
    return ConfigurationError(
        f"No engine is registered as {name!r} in this process.{missing} Before the memory is used, call "
        f"register_engine({name!r}, engine), or Memory.from_defaults(...) with the arguments it was made with."
    )


def _own_thread() -> LoopThread:
    global _thread  # noqa: PLW0603 - one for the process
    if _thread is None:
        _thread = LoopThread()
        # Not atexit: then no thread can be started any more, and databases have theirs.
        getattr(threading, "_register_atexit")(_close_all)  # noqa: B009
    return _thread


def _close_later(engine: MemoryEngine, loop: asyncio.AbstractEventLoop) -> None:
    """Close it in its event loop, without waiting: this is called from wherever the last memory went."""
    closing = asyncio.run_coroutine_threadsafe(engine.aclose(timeout=_LAST), loop)
    _closing.add(closing)
    closing.add_done_callback(_closing.discard)


def _close_all() -> None:
    for connection in list(_opened.values()):
        if connection.threaded and not connection.closed and _thread is not None:
            with suppress(Exception):
                _thread.submit(partial(connection.engine.aclose, timeout=_LAST)).result(2 * _LAST)
    with suppress(Exception):
        wait(_closing, 2 * _LAST)


def _after_fork() -> None:
    """A forked process has neither the thread nor the connections: engines of `from_defaults` are made anew."""
    global _thread, _lock
    _thread, _lock = None, threading.Lock()
    _closing.clear()
    for connection in list(_opened.values()):
        if connection.threaded and connection.arguments is not None and not connection.closed:
            connection.engine._closed = True  # the parent's
            connection.engine = MemoryEngine(**connection.arguments)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
