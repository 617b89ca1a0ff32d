"""Running code that is not ours: a time limit that holds even when the code ignores cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from memory_engine.errors import BlockError, BlockTimeoutError

R = TypeVar("R")

_GRACE = 0.2
"""Seconds that cancelled code may take to clean up before it is left to itself."""


class Interrupted(Exception):
    """Internal: the guarded code was stopped because its `stop` event was set."""


class EndedBefore(asyncio.CancelledError):
    """The caller was cancelled when the work had ended already: with `error`, or well."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__()
        self.error = error


async def guarded(
    work: Coroutine[Any, Any, R], *, seconds: float, what: str, stop: asyncio.Event | None = None, tell_late: bool = False
) -> R:
    """The result of `work`, which is cancelled after `seconds`, or when `stop` is set, or with the caller.

    :raises BlockTimeoutError: the time is over; names `what`.
    :raises BlockError: the code raised `CancelledError` by itself, or another exception that is no `Exception`.
    :raises Interrupted: `stop` was set first.
    :raises EndedBefore: with `tell_late`, it is cancelled too late to stop anything.
    """
    task: asyncio.Task[R] = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(stop.wait()) if stop is not None else None
    try:
        waiting = {task} if watch is None else {task, watch}
        await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.cancelled():
            raise BlockError(f"{what} cancelled itself.")
        if task.done():
            return _result(task, what)
        await _abandon(task)
        if watch is not None and watch.done():
            raise Interrupted
        raise BlockTimeoutError(f"{what} took longer than {seconds:g} s.")
    except asyncio.CancelledError:
        if not task.done():
            await _abandon(task)
            raise
        if task.cancelled() or not tell_late:
            raise
        raise EndedBefore(_error_of(task, what)) from None
    finally:
        if watch is not None:
            watch.cancel()


def _result(task: asyncio.Task[R], what: str) -> R:
    try:
        return task.result()
    except Exception:
        raise
    except BaseException as error:  # code in Rust (tokenizers among it) raises its PanicException
        raise BlockError(f"{what} raised {type(error).__name__}: {error}") from error


def _error_of(task: asyncio.Task[Any], what: str) -> Exception | None:
    try:
        _result(task, what)
    except Exception as error:  # noqa: BLE001 - it is handed on
        return error
    return None


async def _abandon(task: asyncio.Task[Any]) -> None:
    task.cancel()
    # Shielded: our own cancellation must not leave the task without somebody to take its exception.
    task.add_done_callback(_take_exception)
    await asyncio.wait({task}, timeout=_GRACE)


def _take_exception(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
