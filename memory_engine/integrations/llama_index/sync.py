"""The sync methods of a memory of LlamaIndex: the async ones, waited for."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from functools import partial
from typing import Any

from llama_index.core.base.llms.types import ChatMessage as Theirs

from memory_engine.integrations.llama_index.connected import Connected


class SyncMethods(Connected):
    """They work in any thread in which no event loop runs; where one does, also in LlamaIndex's own code, for the memories
    of `from_defaults`, whose engine has a thread of its own. Elsewhere they raise `WrongEventLoopError`, because they would
    wait for the event loop that they block."""

    def _do(self, method: str, *arguments: object, **block_kwargs: object) -> Any:
        return self._wait(partial(getattr(self, f"a{method}"), *arguments, **block_kwargs), method)

    def get(self, input: str | Theirs | None = None, **block_kwargs: object) -> list[Theirs]:  # noqa: A002
        """`aget`, waited for."""
        found: list[Theirs] = self._do("get", input, **block_kwargs)
        return found

    def get_all(self, status: str | Enum | None = None) -> list[Theirs]:
        """`aget_all`, waited for."""
        found: list[Theirs] = self._do("get_all", status)
        return found

    def put(self, message: Theirs) -> None:
        """`aput`, waited for."""
        self._do("put", message)

    def put_messages(self, messages: Sequence[Theirs]) -> None:
        """`aput_messages`, waited for."""
        self._do("put_messages", list(messages))

    def set(self, messages: Sequence[Theirs]) -> None:
        """`aset`, waited for."""
        self._do("set", list(messages))

    def reset(self, status: str | Enum | None = None) -> None:
        """`areset`, waited for."""
        self._do("reset", status)
