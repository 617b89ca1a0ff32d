"""Which workflow run put which messages: the model of a run is to read its own request last, however many others write to the
session, and the retry of a run that failed is to take up what is stored already instead of storing it again."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from memory_engine.integrations.llama_index.inserted import SessionKey
from memory_engine.messages import ChatMessage, encode

_SESSIONS = 10_000
_MESSAGES = 1_000
"""A run that stored more in one turn is read as everybody reads."""
Call = Callable[[Callable[[Any], Awaitable[Any]]], Awaitable[Any]]


class _Turn:
    """What a run has stored since it was asked last, in order."""

    def __init__(self, run: Any) -> None:
        self.run = weakref.ref(run)
        self.messages: list[ChatMessage] = []

    @property
    def is_over(self) -> bool:
        run = self.run()
        return run is None or run.complete.done()

    @property
    def is_answered(self) -> bool:
        newest = self.messages[-1]
        return newest.role == "assistant" and not newest.tool_calls

    def is_asked_by(self, message: ChatMessage) -> bool:
        return [one.role for one in self.messages].count("user") == 1 and encode(self.messages[0]) == encode(message)


class Runs:
    """The turns of the runs that go on in this process, and of those that ended without an answer in the sessions used last."""

    def __init__(self) -> None:
        self._turns: weakref.WeakKeyDictionary[Any, dict[SessionKey, _Turn]] = weakref.WeakKeyDictionary()
        self._unanswered: OrderedDict[SessionKey, _Turn] = OrderedDict()

    def note(self, session: SessionKey, stored: Sequence[ChatMessage]) -> None:
        """These were put."""
        run = _current_run()
        if run is None or not stored:
            return
        turns = self._turns.setdefault(run, {})
        turn = turns.get(session)
        if turn is None or (stored[0].role == "user" and turn.messages[-1].role != "user"):
            turn = turns[session] = _Turn(run)
        turn.messages += stored
        if len(turn.messages) > _MESSAGES:
            del turns[session]
        self._keep(session, turn)

    def _keep(self, session: SessionKey, turn: _Turn) -> None:
        if turn.is_answered or len(turn.messages) > _MESSAGES:
            if self._unanswered.get(session) is turn:
                del self._unanswered[session]
            return
        self._unanswered[session] = turn
        self._unanswered.move_to_end(session)
        if len(self._unanswered) > _SESSIONS:
            self._unanswered.popitem(last=False)

    def own(self, session: SessionKey) -> list[ChatMessage]:
        """What the run in which this is called has stored in its turn; nothing outside of runs."""
        run = _current_run()
        turn = None if run is None else self._turns.get(run, {}).get(session)
        return [] if turn is None else list(turn.messages)

    def forget(self, session: SessionKey, kept: Collection[str | None] = ()) -> None:
        """Messages were erased, all but those of these ids: what is gone must not be shown to the run that put it."""
        for turns in list(self._turns.values()):
            if session in turns and not all(message.id in kept for message in turns[session].messages):
                del turns[session]

    async def is_retry(self, session: SessionKey, new: Sequence[ChatMessage], call: Call) -> bool:
        """Whether this is what an earlier run, which is over, was asked and did not answer, and nobody said anything since.

        What that run stored is this run's from then on.
        """
        run, asked = _current_run(), self._unanswered.get(session)
        if run is None or asked is None or len(new) != 1 or not asked.is_over or asked.run() is run:
            return False
        if not asked.is_asked_by(new[0]):
            return False
        newest = await call(lambda memory: memory.get_all(last=len(asked.messages)))
        if [message.id for message in newest] != [message.id for message in asked.messages]:
            return False
        if self._unanswered.get(session) is not asked:
            return False  # another run was faster: one retry, and one message more
        self.note(session, asked.messages)
        return True


def _current_run() -> Any:
    """The workflow run that this is called in; None outside of any, and when it cannot be told.

    The interface for this is not public. Without it a run reads as everybody does, and nothing is taken for a retry: a
    repeated question is stored twice.
    """
    try:
        from workflows.plugins.basic import basic_runtime, get_current_run_id

        run = basic_runtime._queues.get(get_current_run_id() or "")
        return run if run is not None and hasattr(run.complete, "done") else None
    except (ImportError, AttributeError):
        return None
