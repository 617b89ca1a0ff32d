"""Any service that answers POST {base_url}/chat/completions as OpenAI's does: OpenAI, Ollama, vLLM, LM Studio, llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from memory_engine.blocks.models.protocol import Completion, Prompt
from memory_engine.blocks.services.http import JsonService
from memory_engine.errors import BlockResultError


class OpenAICompatibleModel:
    """A chat model behind a service, with httpx or with an `openai.AsyncOpenAI` of yours.

    `options` go into every request, such as `{"temperature": 0, "response_format": {"type": "json_object"}}`. Close it with
    `aclose()` or use it in `async with`; a client of yours stays open. Repetitions are the block's business.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str = "https://api.openai.com/v1",
        api_key: str | None = None,
        client: Any = None,
        timeout: float = 120.0,
        headers: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self._client = client
        self._options = dict(options or {})
        self._service = JsonService(
            base_url,
            "/chat/completions",
            who="OpenAICompatibleModel",
            api_key=api_key,
            headers=headers,
            timeout=timeout,
            retries=0,
            max_wait=0.0,
            advice="Check base_url, api_key, model and options.",
        )
        if client is None:
            self._service.check()

    def __repr__(self) -> str:
        return f"OpenAICompatibleModel({self.model!r})"  # never with the key

    async def __aenter__(self) -> OpenAICompatibleModel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of this event loop; the next call opens new ones."""
        await self._service.aclose()

    async def __call__(self, messages: Prompt, /) -> Completion:
        """The answer of the first choice."""
        body: dict[str, Any] = {"model": self.model, "messages": messages, **self._options}
        if self._client is not None:
            answer = await self._client.chat.completions.create(**body)
            usage = getattr(answer, "usage", None)
            text = answer.choices[0].message.content or ""
            return Completion(text, getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None))
        return _completion(await self._service.post(body), self._service.url)


def _completion(content: bytes, url: str) -> Completion:
    try:
        answer = json.loads(content)
        text = answer["choices"][0]["message"]["content"] or ""
        usage = answer.get("usage") or {}
        return Completion(str(text), _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens"))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        shown = content[:200].decode("utf-8", "replace")
        raise BlockResultError(f"{url} did not answer with a chat completion as OpenAI does, but with: {shown}") from error


def _tokens(usage: Mapping[str, Any], name: str) -> int | None:
    value = usage.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
