"""Any service that answers POST {base_url}/embeddings as OpenAI's does: OpenAI, Ollama, vLLM, TEI, LM Studio, LiteLLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from memory_engine.blocks.services.http import LARGE, JsonService
from memory_engine.errors import BlockResultError


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
        self._service = JsonService(
            base_url,
            "/embeddings",
            who="OpenAICompatibleEmbedder",
            api_key=api_key,
            headers=headers,
            timeout=timeout,
            retries=retries,
            max_wait=max_wait,
            advice="Check base_url, api_key, model and dimensions.",
        )
        if client is None:
            self._service.check()
        self.batch_size = batch_size
        self._model = model
        self._dimensions = dimensions
        self._client = client
        self._document_prefix = document_prefix
        self._query_prefix = query_prefix
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
        await self._service.aclose()

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
            return _ordered(
                [{"index": one.index, "embedding": one.embedding} for one in answer.data], len(texts), self._service.url
            )
        content = await self._service.post(body)
        if len(content) > LARGE:
            return await asyncio.to_thread(_parsed, content, len(texts), self._service.url)
        return _parsed(content, len(texts), self._service.url)


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
