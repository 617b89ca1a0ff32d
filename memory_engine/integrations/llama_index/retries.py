"""The retry of a run that failed: the user message that it left unanswered is stored, and put again by the next run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from memory_engine.integrations.llama_index.handed import SessionKey
from memory_engine.messages import ChatMessage, encode

_REMEMBERED = 10_000
Call = Callable[[Callable[[Any], Awaitable[Any]]], Awaitable[Any]]


class Retries:
    """Which run put which user message last, for the sessions used last in this process."""

    def __init__(self) -> None:
        self._asked: OrderedDict[SessionKey, tuple[str, ChatMessage]] = OrderedDict()

    def note(self, session: SessionKey, stored: Sequence[ChatMessage]) -> None:
        """These were put."""
        run = current_run()
        if run is not None and len(stored) == 1 and stored[0].role == "user":
            self._asked[session] = (run, stored[0])
            self._asked.move_to_end(session)
            if len(self._asked) > _REMEMBERED:
                self._asked.popitem(last=False)

    async def is_retry(self, session: SessionKey, new: Sequence[ChatMessage], call: Call) -> bool:
        """Whether this is what an earlier run, which is over, asked last, and nothing was said since."""
        run, asked = current_run(), self._asked.get(session)
        if run is None or asked is None or len(new) != 1:
            return False
        earlier, message = asked
        if earlier == run or not is_over(earlier) or encode(new[0]) != encode(message):
            return False
        newest = await call(lambda memory: memory.get_all(last=1))
        if not newest or newest[0].id != message.id:
            return False
        self._asked[session] = (run, message)
        return True


def current_run() -> str | None:
    """The id of the workflow run that this is called in, None outside of any."""
    try:
        from workflows.plugins.basic import get_current_run_id
    except ImportError:
        return None
    return get_current_run_id()


def is_over(run: str) -> bool:
    """Whether that run of this process has ended; False also when nobody can tell, so that nothing is taken for a retry."""
    try:
        from workflows.plugins.basic import basic_runtime

        queues = basic_runtime._queues.get(run)
        return queues is None or queues.complete.done()
    except (ImportError, AttributeError):
        return False
