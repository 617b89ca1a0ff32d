"""What the runs of this process ask, so that a request that is repeated is told from the same one of somebody else."""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict
from typing import Any

SessionKey = tuple[int, str, str]

_MOST = 10_000
_runs: OrderedDict[SessionKey, list[tuple[str, weakref.ref[asyncio.Task[Any]]]]] = OrderedDict()
"""What runs ask, each with the task that it runs in, for the sessions used last."""


def note_run(session: SessionKey, asked: str) -> None:
    """This task asks that now."""
    task = asyncio.current_task()
    others = [(text, run) for text, run in _runs.pop(session, ()) if run() is not task and not _is_over(run)]
    _runs[session] = [*others, *([(asked, weakref.ref(task))] if task is not None else [])]
    while len(_runs) > _MOST:
        _runs.popitem(last=False)


def is_being_answered(session: SessionKey, asked: str) -> bool:
    """Whether a run that goes on in another task asks the same: then this is another request."""
    task = asyncio.current_task()
    return any(text == asked and run() is not task and not _is_over(run) for text, run in _runs.get(session, ()))


def _is_over(run: weakref.ref[asyncio.Task[Any]]) -> bool:
    task = run()
    return task is None or task.done()
