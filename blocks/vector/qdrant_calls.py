"""Calls of a Qdrant client: who writes tries again, who answers an agent does not wait for a server that is down."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from memory_engine.blocks.vector.qdrant_errors import MissingError, judge, told
from memory_engine.errors import BlockError, BlockUnavailableError

_LONGEST_WAIT = 5.0
REST = 5.0
"""For so many seconds after a failure nobody who answers an agent asks the server."""
QUICKLY = 2.0
"""So many seconds such a call may take: with the embedding of a query it stays below what a `get` waits for a block."""


class Calls:
    """Calls methods of a client on one collection; failures become errors that say what to do.

    `forget` is called when what is known of the collection may not hold any more. `clock` counts seconds, from anywhere.
    """

    def __init__(
        self,
        client: Any,
        collection: str,
        *,
        retries: int,
        backoff: float,
        clock: Callable[[], float],
        forget: Callable[[], None],
    ) -> None:
        self._client, self._collection = client, collection
        self._retries, self._backoff = retries, backoff
        self._clock, self._forget = clock, forget
        self._rests_until: float | None = None
        self._failure = ""

    async def patient(self, method: str, **arguments: Any) -> Any:
        """What may pass is tried again."""
        wait = self._backoff
        for left in range(self._retries, -1, -1):
            try:
                return await self._once(method, None, arguments)
            except _PassingError as failure:
                if not left:
                    raise failure.reason from failure.__cause__
                asked = failure.asked
            # Spread, so that processes which failed together do not come back together.
            await asyncio.sleep(min(_LONGEST_WAIT, max(asked, wait * random.uniform(0.5, 1.5))))
            wait *= 2
        raise AssertionError("unreachable")

    def hurry(self) -> None:
        """Before quick calls: raises `BlockUnavailableError` if any call failed just now, so that nobody waits for nothing."""
        now = self._clock()
        if self._rests_until is not None:
            if now < self._rests_until:
                raise BlockUnavailableError(f"{self._failure} (asked again at most every {REST:g} s)")
            # Who comes now looks whether it is back; those that come meanwhile do not wait for what is found.
            self._rests_until = now + REST

    async def quick(self, method: str, **arguments: Any) -> Any:
        """One attempt that may not take long."""
        try:
            return await self._once(method, QUICKLY, arguments)
        except _PassingError as failure:
            raise failure.reason from failure.__cause__

    async def _once(self, method: str, seconds: float | None, arguments: dict[str, Any]) -> Any:
        try:
            async with asyncio.timeout(seconds):
                answer = await getattr(self._client, method)(collection_name=self._collection, **arguments)
        except Exception as error:
            kind, asked = judge(error)
            if kind == "unknown":
                raise
            if kind in {"missing", "refused"}:
                self._forget()  # a collection that refuses may have been made anew, with another layout
                self._rests_until = None
            if kind == "missing":
                raise MissingError from error
            if kind == "refused":
                raise BlockError(f"Qdrant refused {method} on {self._collection!r}: {told(error)}") from error
            self._failure = f"Qdrant is not available ({method} on {self._collection!r}): {told(error)}"
            self._rests_until = self._clock() + REST
            if kind == "down":
                raise BlockUnavailableError(self._failure) from error
            raise _PassingError(BlockUnavailableError(self._failure), asked) from error
        self._rests_until = None
        return answer


class _PassingError(Exception):
    """A failure that may pass; `asked` are the seconds that the server asks to wait."""

    def __init__(self, reason: BlockUnavailableError, asked: float) -> None:
        super().__init__(str(reason))
        self.reason, self.asked = reason, asked
