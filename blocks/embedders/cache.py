"""The same text is embedded once: vectors of recent texts are kept, and whoever asks meanwhile shares the call."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from memory_engine.errors import BlockError, ConfigurationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]
    Compute = Callable[[list[str]], Awaitable[NDArray[np.float32]]]

OVERHEAD = 300
"""Bytes that an entry costs beside its numbers."""


def cache_key(identity: str, text: str) -> bytes:
    """What a vector is kept under: it depends on the model, its settings and the text."""
    digest = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=20)
    digest.update(b"\x00")
    digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.digest()


class _Call:
    """One call of an embedder, and how many wait for it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[dict[bytes, Vector]] | None = None
        self.waiting = 0

    async def result(self) -> dict[bytes, Vector]:
        assert self.task is not None
        # The caller may be cancelled; the call belongs to others as well.
        return await asyncio.shield(self.task)


class EmbeddingCache:
    """The vectors that were used last, up to `max_bytes`. One may serve several embedders: keys name the model.

    Failures are not kept. A call is cancelled when nobody waits for it any more, not when one of several leaves. Event loops
    in several threads may use it; calls are shared within one loop.
    """

    def __init__(self, max_bytes: int = 64 * 1024 * 1024) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0:
            raise ConfigurationError(f"max_bytes is a number of bytes, 0 to keep nothing, not {max_bytes!r}.")
        self._max_bytes = max_bytes
        self._bytes = 0
        self._vectors: OrderedDict[bytes, Vector] = OrderedDict()
        self._lock = threading.Lock()
        self._calls: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[bytes, _Call]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def size(self) -> int:
        """How many bytes it holds, about."""
        return self._bytes

    def clear(self) -> None:
        """Forget all vectors."""
        with self._lock:
            self._vectors.clear()
            self._bytes = 0

    def get(self, key: bytes) -> Vector | None:
        """The vector kept under that key, read-only."""
        with self._lock:
            vector = self._vectors.get(key)
            if vector is not None:
                self._vectors.move_to_end(key)
            return vector

    def put(self, key: bytes, vector: Vector) -> None:
        """Keep a vector; the ones that were not used for longest make room."""
        cost = vector.nbytes + OVERHEAD
        if cost > self._max_bytes:
            return
        kept = vector.copy()  # a row of a batch would keep the whole batch
        kept.flags.writeable = False
        with self._lock:
            old = self._vectors.pop(key, None)
            if old is not None:
                self._bytes -= old.nbytes + OVERHEAD
            self._vectors[key] = kept
            self._bytes += cost
            while self._bytes > self._max_bytes:
                _, oldest = self._vectors.popitem(last=False)
                self._bytes -= oldest.nbytes + OVERHEAD

    async def fetch(self, wanted: Mapping[bytes, str], compute: Compute, *, batch_size: int) -> dict[bytes, Vector]:
        """The vectors of these texts by key; `compute` is asked for those that are neither kept nor on their way."""
        with self._lock:
            calls = self._calls.setdefault(asyncio.get_running_loop(), {})
        found: dict[bytes, Vector] = {}
        left = deque(wanted)
        while left:
            batch: dict[bytes, str] = {}
            joined: dict[_Call, list[bytes]] = {}
            while left and len(batch) < batch_size:
                key = left.popleft()
                if (kept := self.get(key)) is not None:
                    found[key] = kept
                elif (call := calls.get(key)) is not None:
                    joined.setdefault(call, []).append(key)
                else:
                    batch[key] = wanted[key]
            if batch:
                joined[self._start(calls, batch, compute)] = list(batch)
            found.update(await _gather(joined, calls))
        return found

    def _start(self, calls: dict[bytes, _Call], batch: dict[bytes, str], compute: Compute) -> _Call:
        call = _Call()

        async def run() -> dict[bytes, Vector]:
            try:
                rows = await compute(list(batch.values()))
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is None or current.cancelling():
                    raise
                # Nobody cancelled this call; the callers must not look as if they had been.
                raise BlockError("The embedder cancelled itself.") from None
            finally:
                _leave(calls, call, batch)
            result = dict(zip(batch, rows, strict=True))
            for key, vector in result.items():
                self.put(key, vector)
            return result

        call.task = asyncio.create_task(run())
        call.task.add_done_callback(_retrieved)
        calls.update(dict.fromkeys(batch, call))
        return call


async def _gather(joined: dict[_Call, list[bytes]], calls: dict[bytes, _Call]) -> dict[bytes, Any]:
    """What these calls bring. All are counted as waited for from the start, so that none is given up in between."""
    for call in joined:
        call.waiting += 1
    found = {}
    try:
        for call, keys in joined.items():
            result = await call.result()
            found.update({key: result[key] for key in keys})
    finally:
        for call in joined:
            call.waiting -= 1
            if not call.waiting and call.task is not None and not call.task.done():
                # Whoever asks for these texts from now on must not join a call that is ending.
                _leave(calls, call, [key for key, other in calls.items() if other is call])
                call.task.cancel()
    return found


def _leave(calls: dict[bytes, _Call], call: _Call, keys: Any) -> None:
    for key in keys:
        if calls.get(key) is call:
            del calls[key]


def _retrieved(task: asyncio.Task[Any]) -> None:
    """Without this, asyncio complains about an error that nobody waited for."""
    if not task.cancelled():
        task.exception()
