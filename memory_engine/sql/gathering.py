"""Puts that come while others are written are written together, on a database with many writers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from memory_engine.errors import StoreUnavailableError
from memory_engine.sql.conversation import Append
from memory_engine.sql.errors import OutcomeUnknown
from memory_engine.sql.pooled import KEPT
from memory_engine.store import AppendResult

log = logging.getLogger("memory_engine.sql")

_GROUPS = KEPT
"""So many statements at once; whoever comes then waits for the next one and goes with all that wait."""
_MOST = 128

Name = tuple[str, str]


class Gathering:
    """Puts of one engine: of each session one after the other as they come, of many sessions together.

    `together` writes several, each of another session, and says for which of them nothing was written; `alone` writes one
    whatever there is to do for it, `again` one that may be written already. A put that meets nobody waits for nobody.
    """

    def __init__(
        self,
        together: Callable[[Sequence[Append]], Awaitable[Sequence[AppendResult | None]]],
        alone: Callable[[Append], Awaitable[AppendResult]],
        again: Callable[[Append], Awaitable[AppendResult]],
    ) -> None:
        self._together, self._alone, self._again = together, alone, again
        self._waiting: dict[Append, asyncio.Future[AppendResult]] = {}
        self._busy: set[Name] = set()
        self._running = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def append(self, append: Append) -> AppendResult:
        """Write one, perhaps together with others that are asked for meanwhile."""
        name = _name(append)
        if name in self._busy or (_joins(append) and self._running >= _GROUPS):
            done = self._waiting[append] = asyncio.get_running_loop().create_future()
            result: AppendResult = await done
            return result
        self._busy.add(name)
        try:
            if _joins(append):
                self._running += 1
                try:
                    (found,) = await self._together([append])
                except OutcomeUnknown:
                    return await self._again(append)
                finally:
                    self._running -= 1
                    self._start()
                if found is not None:
                    return found
            return await self._alone(append)
        finally:
            self._busy.discard(name)
            self._start()

    def _start(self) -> None:
        """Somebody is through: those who wait go next, each session once."""
        group: dict[Append, asyncio.Future[AppendResult]] = {}
        for append, done in list(self._waiting.items()):
            name = _name(append)
            if done.cancelled():
                # Whoever was cancelled in the queue does not want it any more.
                del self._waiting[append]
            elif name in self._busy:
                continue
            elif not _joins(append):
                self._busy.add(name)
                self._begin(self._write_alone(self._alone, append, self._waiting.pop(append)))
            elif self._running < _GROUPS and len(group) < _MOST:
                self._busy.add(name)
                group[append] = self._waiting.pop(append)
        if group:
            self._running += 1
            self._begin(self._write(group))

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, group: dict[Append, asyncio.Future[AppendResult]]) -> None:
        """Write a group by one statement; what that leaves, each by itself, without keeping others from the next statement."""
        left, write = dict(group), self._alone
        try:
            results = await self._together(list(group))
        except OutcomeUnknown:
            write = self._again
        except StoreUnavailableError as error:
            # It was waited for long enough.
            for append, done in group.items():
                del left[append]
                self._end(append, done, error=error)
        except Exception as error:  # noqa: BLE001 - whose fault it is shows when each is alone
            log.debug("%d puts could not be written together: %s", len(group), error)
        else:
            for append, result in zip(group, results, strict=True):
                if result is not None:
                    self._end(append, left.pop(append), result)
        finally:
            self._running -= 1
            for append, done in left.items():
                self._begin(self._write_alone(write, append, done))
            self._start()

    async def _write_alone(
        self,
        write: Callable[[Append], Awaitable[AppendResult]],
        append: Append,
        done: asyncio.Future[AppendResult],
    ) -> None:
        try:
            result = await write(append)
        except asyncio.CancelledError:
            done.cancel()
            self._end(append, done)
            raise
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever asked
            self._end(append, done, error=error)
        else:
            self._end(append, done, result)
        self._start()

    def _end(
        self,
        append: Append,
        done: asyncio.Future[AppendResult],
        result: AppendResult | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Tell whoever asked, unless they are gone."""
        self._busy.discard(_name(append))
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        elif result is not None:
            done.set_result(result)


def _name(append: Append) -> Name:
    return append.spec.tenant, append.spec.session_id


def _joins(append: Append) -> bool:
    """Whether one statement can write it, as far as is known."""
    return append.is_simple and append.leaves_room
