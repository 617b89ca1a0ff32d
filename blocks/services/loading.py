"""What all adapters need: a package that may be missing, and a thread in which a model may take its time."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from memory_engine.errors import MissingExtraError


def require(module: str, *, who: str, pip: str) -> None:
    """Complain now about a package that is missing, without the time that importing it takes.

    :raises MissingExtraError: with the command that installs it.
    """
    # None in sys.modules is how an import is blocked.
    missing = sys.modules[module] is None if module in sys.modules else find_spec(module) is None
    if missing:
        raise MissingExtraError(f'{who} needs the package {module}, which is not installed: pip install "{pip}"')


def load(module: str, *, who: str, pip: str) -> Any:
    """Import it.

    :raises MissingExtraError: when it is not there or does not load, with the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(f'{who} cannot import {module} ({error}): pip install "{pip}"') from error


def is_async(function: Any) -> bool:
    """Whether calling it gives something to await: a coroutine function, or an object whose call is one."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


class Worker:
    """One thread for one model: the event loop stays free, and the model never runs twice at the same time.

    Tokenizers of several packages break when two threads use them, and a model on a CPU uses all cores anyway. The default
    executor is left alone, so that waiting texts do not keep other work from its threads.
    """

    def __init__(self, name: str) -> None:
        # Starts its thread with the first call, and ends it when nobody refers to it any more.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"memory-engine-{name}")

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result of the function, which ran in the thread. A generator is read to its end there."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._executor, context.run, _complete, function, arguments)


def _complete(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        result = function(*arguments)
        return list(result) if isinstance(result, Iterator) else result
    except StopIteration as error:
        # A future cannot carry it: whoever waits would wait for ever.
        raise RuntimeError("the function raised StopIteration") from error
