"""Services that answer POST with JSON, as OpenAI's do: connections, repetitions, and errors that say whether to wait."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from memory_engine import BlockUnavailableError
from memory_engine.blocks.services.failures import retry_after, unavailable_status
from memory_engine.blocks.services.loading import load, require
from memory_engine.errors import BlockError, ConfigurationError

if TYPE_CHECKING:
    import httpx

FIRST_PAUSE = 0.5
"""Seconds before the first repetition when the service does not say."""
LARGE = 100_000
"""Bytes of JSON that are parsed in another thread, because it takes milliseconds."""

pause = asyncio.sleep


class JsonService:
    """One address that takes JSON. `timeout` and `max_wait` are seconds; `advice` says what to check when it refuses."""

    def __init__(
        self,
        base_url: str,
        path: str,
        *,
        who: str,
        api_key: str | None,
        headers: Mapping[str, str] | None,
        timeout: float,
        retries: int,
        max_wait: float,
        advice: str,
    ) -> None:
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ConfigurationError(f"retries is a number, 0 for none, not {retries!r}.")
        self.url = base_url.rstrip("/") + path
        self._who = who
        self._headers = {**({"Authorization": f"Bearer {api_key}"} if api_key else {}), **(headers or {})}
        self._timeout, self._retries, self._max_wait, self._advice = timeout, retries, max_wait, advice
        # A connection belongs to the event loop in which it was opened.
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    def check(self) -> None:
        """Complain now about what would fail at the first request.

        :raises ConfigurationError: the address is none.
        :raises MissingExtraError: httpx is not installed.
        """
        require("httpx", who=self._who, pip="httpx")
        if not re.match(r"https?://", self.url):
            raise ConfigurationError(
                f"base_url starts with http:// or https://, as in http://localhost:11434/v1, not {self.url!r}."
            )

    async def post(self, body: Mapping[str, Any]) -> bytes:
        """The answer to a body.

        :raises BlockUnavailableError: it does not answer, or not now.
        :raises BlockError: it refuses.
        """
        httpx = load("httpx", who=self._who, pip="httpx")
        client = self._open(httpx)
        attempt = 0
        while True:
            wait = FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1)
            try:
                response = await client.post(self.url, json=body)
            except httpx.TransportError as error:
                if attempt >= self._retries:
                    raise BlockUnavailableError(
                        f"{self.url} does not answer ({type(error).__name__}: {error}). Is the address right?"
                    ) from error
            else:
                status = response.status_code
                if status == 200:
                    return bytes(response.content)
                said = f"{self.url} answered {status}: {response.text[:200]}"
                if not unavailable_status(status):
                    raise BlockError(f"{said} {self._advice}")
                asked = retry_after(response.headers)
                if attempt >= self._retries or (asked is not None and asked > self._max_wait):
                    raise BlockUnavailableError(said, retry_after=asked)
                wait = wait if asked is None else asked
            attempt += 1
            await pause(min(wait, self._max_wait))

    async def aclose(self) -> None:
        """Close the connections of this event loop; the next request opens new ones."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def _open(self, httpx: Any) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = httpx.AsyncClient(timeout=self._timeout, headers=self._headers)
        return self._clients[loop]
