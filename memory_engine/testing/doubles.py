"""A clock that stands still, an embedder without a model, and an LLM that says what the test wrote down."""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from inspect import isawaitable
from typing import Any
from zlib import crc32

Reply = str | BaseException | Callable[[Any], "str | Awaitable[str]"]
"""What a `ScriptedLLM` does when it is called: return a text, raise an error, or ask a function of the prompt."""

_WORD = re.compile(r"\w+")


class FakeClock:
    """A clock that moves only when told to; for `Memory.from_defaults(clock=...)` and `MemoryEngine(clock=...)`.

    >>> clock = FakeClock()
    >>> clock.now()
    datetime.datetime(2025, 1, 1, 0, 0, tzinfo=datetime.timezone.utc)
    >>> clock.advance(90)
    datetime.datetime(2025, 1, 1, 0, 1, 30, tzinfo=datetime.timezone.utc)

    :raises ValueError: `start` is naive.
    """

    def __init__(self, start: datetime = datetime(2025, 1, 1, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError("start must be aware, such as datetime(2025, 1, 1, tzinfo=UTC)")
        self._now = start.astimezone(UTC)

    def now(self) -> datetime:
        """The time now, aware, in UTC."""
        return self._now

    def advance(self, seconds: float) -> datetime:
        """Move the clock by that many seconds (backwards when negative, as real clocks do); returns the new time."""
        self._now += timedelta(seconds=seconds)
        return self._now


class FakeEmbedder:
    """An embedding function without a model: texts that share words have similar vectors, on every machine.

    Each word is hashed to one of `dimensions` places and counted there; the vector has length 1 (length 0 for a text without
    a word). `calls` holds the lists of texts it was given.

    >>> import asyncio
    >>> embed = FakeEmbedder(dimensions=64)
    >>> tea, likes, rain = asyncio.run(embed(["green tea", "she likes green tea", "heavy rain"]))
    >>> sum(a * b for a, b in zip(tea, likes)) > sum(a * b for a, b in zip(tea, rain))
    True
    >>> embed.calls
    [['green tea', 'she likes green tea', 'heavy rain']]
    """

    def __init__(self, dimensions: int = 256) -> None:
        self.dimensions = dimensions
        self.calls: list[list[str]] = []

    async def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector for each text, in order."""
        self.calls.append(list(texts))
        return [self.embed(text) for text in texts]

    def embed(self, text: str) -> list[float]:
        """The vector of one text; not recorded."""
        vector = [0.0] * self.dimensions
        for word in _WORD.findall(text.lower()):
            vector[crc32(word.encode()) % self.dimensions] += 1.0
        length = math.sqrt(sum(value * value for value in vector))
        return [value / length for value in vector] if length else vector


class ScriptExhaustedError(AssertionError):
    """A `ScriptedLLM` was called more often than its script has replies; add replies, or give `otherwise=`."""


class ScriptedLLM:
    """A model that answers with what the test wrote down, one reply for each call; errors among the replies are raised.

    A reply may be a function of the prompt (also an async one). `otherwise` answers when the script is used up: a
    function there makes the model deterministic whatever the order and number of calls, which a `BlockContract` needs.
    `prompts` holds what it was called with; `delay` is how many seconds each call takes.

    >>> import asyncio
    >>> llm = ScriptedLLM(["Ada lives in Turin.", TimeoutError("busy")], otherwise=lambda prompt: f"{len(prompt)} messages")
    >>> asyncio.run(llm([{"role": "user", "content": "Where?"}]))
    'Ada lives in Turin.'
    >>> llm.prompts
    [[{'role': 'user', 'content': 'Where?'}]]
    >>> llm.left
    1
    """

    def __init__(self, replies: Iterable[Reply] = (), *, otherwise: Reply | None = None, delay: float = 0.0) -> None:
        self._replies = deque([replies] if isinstance(replies, str) else replies)
        self._otherwise = otherwise
        self.delay = delay
        self.prompts: list[Any] = []

    @property
    def left(self) -> int:
        """How many replies of the script were not used yet."""
        return len(self._replies)

    def add(self, *replies: Reply) -> None:
        """Append replies to the script."""
        self._replies.extend(replies)

    async def __call__(self, messages: Any) -> str:
        """The next reply.

        :raises ScriptExhaustedError: there is none.
        """
        self.prompts.append(list(messages) if isinstance(messages, list | tuple) else messages)
        reply = self._replies.popleft() if self._replies else self._otherwise
        # Always at least one turn of the event loop, as any real model takes.
        await asyncio.sleep(self.delay)
        if reply is None:
            raise ScriptExhaustedError(
                f"The script has no reply for call {len(self.prompts)}, which asked: {self.prompts[-1]!r:.300}. "
                "Add replies, or give `otherwise=`."
            )
        if isinstance(reply, BaseException):
            raise reply
        if isinstance(reply, str):
            return reply
        answer = reply(messages)
        return await answer if isawaitable(answer) else answer
