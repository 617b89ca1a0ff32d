"""Any service that answers POST {base_url}/embeddings as OpenAI's does: OpenAI, Ollama, vLLM, TEI, LM Studio, LiteLLM."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from memory_engine import BlockUnavailableError
from memory_engine.blocks.embedders.failures import unavailable_status
from memory_engine.blocks.embedders.loading import load, require
from memory_engine.errors import BlockError, BlockResultError, ConfigurationError

if TYPE_CHECKING:
    import httpx

WHO = "OpenAICompatibleEmbedder"
FIRST_PAUSE = 0.5
LARGE = 100_000
"""Bytes of JSON that are parsed in another thread, because it takes milliseconds."""

pause = asyncio.sleep


class OpenAICompatibleEmbedder:
    """Embeds through a service, with httpx or with an `openai.AsyncOpenAI` of yours.

    A request that is refused with 429 or a status from 500 on, or that does not get through, is repeated `retries` times,
    after the time that the service asks for if it is at most `max_wait` seconds; then it is a `BlockUnavailableError`, and
    the engine waits. Close it with `aclose()` or use it in `async with`; a client of yours stays open.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str = "https://api.openai.com/v1",
        api_key: str | None = None,
        dimensions: int | None = None,
        client: Any = None,
        document_prefix: str = "",
        query_prefix: str = "",
        batch_size: int = 64,
        timeout: float = 30.0,
        retries: int = 2,
        max_wait: float = 20.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`client` is an `openai.AsyncOpenAI`, which has its own address, key, time limit and retries.

        The prefixes are for models that want texts marked, such as "query: " and "passage: ".
        """
        if client is None:
            require("httpx", who=WHO, pip="httpx")
            if not re.match(r"https?://", base_url):
                raise ConfigurationError(
                    f"base_url starts with http:// or https://, as in http://localhost:11434/v1, not {base_url!r}."
                )
        if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
            raise ConfigurationError(f"retries is a number, 0 for none, not {retries!r}.")
        self.batch_size = batch_size
        self._model = model
        self._url = base_url.rstrip("/") + "/embeddings"
        self._dimensions = dimensions
        self._client = client
        self._document_prefix = document_prefix
        self._query_prefix = query_prefix
        self._timeout = timeout
        self._retries = retries
        self._max_wait = max_wait
        self._headers = {**({"Authorization": f"Bearer {api_key}"} if api_key else {}), **(headers or {})}
        # A connection belongs to the event loop in which it was opened.
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()
        # Not the address: a server may move.
        settings = [model, *([str(dimensions)] if dimensions else []), *filter(None, [document_prefix, query_prefix])]
        self.identity = "openai-compatible:" + ":".join(settings)

    def __repr__(self) -> str:
        return f"OpenAICompatibleEmbedder({self._model!r})"  # never with the key

    async def __aenter__(self) -> OpenAICompatibleEmbedder:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of this event loop; the next call opens new ones."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    async def __call__(self, texts: list[str], /) -> list[list[float]]:
        """One vector per text."""
        return await self._embed([self._document_prefix + text for text in texts])

    async def embed_query(self, text: str) -> list[float]:
        """The vector of a question."""
        return (await self._embed([self._query_prefix + text]))[0]

    async def _embed(self, texts: list[str]) -> list[list[float]]:
        # An empty text is refused by OpenAI, and the whole batch with it.
        body: dict[str, Any] = {"model": self._model, "input": [text or " " for text in texts], "encoding_format": "float"}
        if self._dimensions is not None:
            body["dimensions"] = self._dimensions
        if self._client is not None:
            answer = await self._client.embeddings.create(**body)
            return _ordered([{"index": one.index, "embedding": one.embedding} for one in answer.data], len(texts), self._url)
        content = await self._post(body)
        if len(content) > LARGE:
            return await asyncio.to_thread(_parsed, content, len(texts), self._url)
        return _parsed(content, len(texts), self._url)

    async def _post(self, body: dict[str, Any]) -> bytes:
        httpx = load("httpx", who=WHO, pip="httpx")
        client = self._open(httpx)
        attempt = 0
        while True:
            wait = FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1)
            try:
                response = await client.post(self._url, json=body)
            except httpx.TransportError as error:
                if attempt >= self._retries:
                    raise BlockUnavailableError(
                        f"{self._url} does not answer ({type(error).__name__}: {error}). Is the address right?"
                    ) from error
            else:
                status = response.status_code
                if status == 200:
                    return bytes(response.content)
                said = f"{self._url} answered {status}: {response.text[:200]}"
                if not unavailable_status(status):
                    raise BlockError(f"{said} Check base_url, api_key, model and dimensions.")
                asked = retry_after(response.headers)
                if attempt >= self._retries or (asked is not None and asked > self._max_wait):
                    raise BlockUnavailableError(said)
                wait = wait if asked is None else asked
            attempt += 1
            await pause(min(wait, self._max_wait))

    def _open(self, httpx: Any) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            self._clients[loop] = httpx.AsyncClient(timeout=self._timeout, headers=self._headers)
        return self._clients[loop]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """How many seconds the service asks to wait: a number, or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _parsed(content: bytes, count: int, url: str) -> list[list[float]]:
    try:
        data = json.loads(content)["data"]
    except (ValueError, TypeError, KeyError) as error:
        shown = content[:200].decode("utf-8", "replace")
        raise BlockResultError(f"{url} did not answer with embeddings as OpenAI does, but with: {shown}") from error
    return _ordered(data, count, url)


def _ordered(data: Any, count: int, url: str) -> list[list[float]]:
    """The vectors in the order of the texts; services may answer in any order and number them."""
    if not isinstance(data, list) or not all(isinstance(one, dict) and "embedding" in one for one in data):
        raise BlockResultError(f"{url} did not answer with embeddings as OpenAI does: `data` is no list of them.")
    if len(data) != count:
        raise BlockResultError(f"{url} answered with {len(data)} vectors for {count} texts.")
    if sorted(one["index"] for one in data if isinstance(one.get("index"), int)) == list(range(count)):
        data = sorted(data, key=lambda one: one["index"])
    return [one["embedding"] for one in data]
