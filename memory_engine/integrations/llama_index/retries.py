"""The retry of a run that failed: the user message that it left unanswered is stored, and put again by the next run."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from memory_engine.integrations.llama_index.handed import SessionKey
from memory_engine.messages import ChatMessage, encode

_REMEMBERED = 10_000
Call = Callable[[Callable[[Any], Awaitable[Any]]], Awaitable[Any]]


class _Asked(NamedTuple):
    """A user message and the run that put it, which is None when it is over and gone."""

    message: ChatMessage
    run: weakref.ref[Any]

    @property
    def is_over(self) -> bool:
        run = self.run()
        return run is None or run.complete.done()


class Retries:
    """Which run put which user message last, for the sessions used last in this process."""

    def __init__(self) -> None:
        self._asked: OrderedDict[SessionKey, _Asked] = OrderedDict()

    def note(self, session: SessionKey, stored: Sequence[ChatMessage]) -> None:
        """These were put."""
        run = _current_run()
        if run is not None and len(stored) == 1 and stored[0].role == "user":
            self._asked[session] = _Asked(stored[0], weakref.ref(run))
            self._asked.move_to_end(session)
            if len(self._asked) > _REMEMBERED:
                self._asked.popitem(last=False)

    async def is_retry(self, session: SessionKey, new: Sequence[ChatMessage], call: Call) -> bool:
        """Whether this is what an earlier run, which is over, asked last, and nothing was said since."""
        run, asked = _current_run(), self._asked.get(session)
        if run is None or asked is None or len(new) != 1 or not asked.is_over:
            return False
        if asked.run() is run or encode(new[0]) != encode(asked.message):
            return False
        newest = await call(lambda memory: memory.get_all(last=1))
        if not newest or newest[0].id != asked.message.id:
            return False
        if self._asked.get(session) is not asked:
            return False  # another run was faster: one retry, and one message more
        self.note(session, [asked.message])
        return True


def _current_run() -> Any:
    """The workflow run that this is called in; None outside of any, and when it cannot be told.

    The interface for this is not public. Without it nothing is taken for a retry: a repeated question is stored twice.
    """
    try:
        from workflows.plugins.basic import basic_runtime, get_current_run_id

        run = basic_runtime._queues.get(get_current_run_id() or "")
        return run if run is not None and hasattr(run.complete, "done") else None
    except (ImportError, AttributeError):
        return None
