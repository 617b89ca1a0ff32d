"""A process that delivers: `python -m memory_engine worker --app module:engine`, as many of them as are wanted."""

from __future__ import annotations

import asyncio
import inspect
import logging
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from memory_engine.engine import MemoryEngine
from memory_engine.errors import ConfigurationError

log = logging.getLogger("memory_engine.worker")


async def run_worker(app: str, *, once: bool = False, grace: float = 30.0) -> None:
    """Deliver for the engine that `app` names ("package.module:engine") until SIGTERM or SIGINT.

    What it names is a `MemoryEngine`, or a function (also an async one) that returns one. It should be the application's own:
    blocks are found by their names, and behave as they are defined there.

    :raises ConfigurationError: it is none of these.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    engine = await load_engine(app)
    try:
        log.info("delivering for %s", app)
        await engine.work(once=once, stop=stop, grace=grace)
        log.info("ended; what is pending stays in the database")
    finally:
        # What is left is for the other workers, or for the next start.
        await engine.aclose(timeout=0)


async def load_engine(app: str) -> MemoryEngine:
    """The engine that a text such as "package.module:engine" names; modules are also looked for in the working directory."""
    module, _, name = app.partition(":")
    if not module or not name:
        raise ConfigurationError(f"--app is a module and an engine in it, such as app.memory:engine, not {app!r}.")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"--app {app} cannot be loaded: {error}.") from error
    if callable(found) and not isinstance(found, MemoryEngine):
        found = found()
    if inspect.isawaitable(found):
        found = await found
    if not isinstance(found, MemoryEngine):
        raise ConfigurationError(f"--app {app} is {type(found).__name__}; it must be a MemoryEngine, or return one.")
    return found
