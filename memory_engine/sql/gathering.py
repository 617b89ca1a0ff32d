"""Puts that come while others are written are written together, on a database with many writers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from memory_engine.errors import StoreError
from memory_engine.sql.conversation import Append
from memory_engine.sql.errors import OutcomeUnknown
from memory_engine.store import AppendResult

log = logging.getLogger("memory_engine.sql")

_GROUPS = 3
"""So many statements at once; whoever comes then waits for the next one and goes with all that wait."""
_MOST = 128


class Gathering:
    """Puts of known sessions. A put that meets nobody waits for nobody.

    `together` writes several, each of another session, and says for which of them nothing was written; `alone` writes one
    whatever there is to do for it, `again` one that may be written already.
    """

    def __init__(
        self,
        together: Callable[[Sequence[Append]], Awaitable[Sequence[AppendResult | None]]],
        alone: Callable[[Append], Awaitable[AppendResult]],
        again: Callable[[Append], Awaitable[AppendResult]],
    ) -> None:
        self._together, self._alone, self._again = together, alone, again
        self._waiting: dict[Append, asyncio.Future[AppendResult]] = {}
        self._running = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def append(self, append: Append) -> AppendResult:
        """Write one, perhaps together with others that are asked for meanwhile."""
        if self._running >= _GROUPS:
            done = self._waiting[append] = asyncio.get_running_loop().create_future()
            result: AppendResult = await done
            return result
        self._running += 1
        try:
            (found,) = await self._together([append])
        except OutcomeUnknown:
            return await self._again(append)
        finally:
            self._next()
        return found if found is not None else await self._alone(append)

    def _next(self) -> None:
        """Somebody is through: those who wait go next, each session once."""
        group: dict[Append, asyncio.Future[AppendResult]] = {}
        sessions: set[int] = set()
        for append, done in list(self._waiting.items()):
            pk = -1 if append.known is None else append.known.pk
            if done.cancelled():
                # Whoever was cancelled in the queue does not want it any more.
                del self._waiting[append]
            elif pk not in sessions and len(group) < _MOST:
                sessions.add(pk)
                group[append] = self._waiting.pop(append)
        if not group:
            self._running -= 1
            return
        task = asyncio.create_task(self._write(group))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, group: dict[Append, asyncio.Future[AppendResult]]) -> None:
        try:
            left = dict(group)
            write = self._alone
            try:
                results = await self._together(list(group))
            except OutcomeUnknown:
                write = self._again
            except StoreError as error:
                # Whose fault it is shows when each is alone.
                log.debug("%d puts could not be written together: %s", len(group), error)
            else:
                for append, result in zip(group, results, strict=True):
                    if result is not None:
                        done = left.pop(append)
                        if not done.done():
                            done.set_result(result)
            await asyncio.gather(*(_write_one(write, append, done) for append, done in left.items()))
        finally:
            for done in group.values():
                done.cancel()  # of what was not written; the others are done
            self._next()


async def _write_one(
    write: Callable[[Append], Awaitable[AppendResult]], append: Append, done: asyncio.Future[AppendResult]
) -> None:
    try:
        result = await write(append)
    except Exception as error:  # noqa: BLE001 - it belongs to whoever asked
        if not done.done():
            done.set_exception(error)
    else:
        if not done.done():
            done.set_result(result)
