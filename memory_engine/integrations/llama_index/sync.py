"""The sync methods of a memory of LlamaIndex: the async ones, waited for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum
from functools import partial
from typing import TypeVar

from llama_index.core.base.llms.types import ChatMessage as Theirs
from llama_index.core.memory.types import BaseMemory

R = TypeVar("R")


class SyncMethods(BaseMemory):
    """They work in any thread in which no event loop runs; where one does, also in LlamaIndex's own code, for the memories
    of `from_defaults`, whose engine has a thread of its own. Elsewhere they raise `WrongEventLoopError`, because they would
    wait for the event loop that they block."""

    @abstractmethod
    def _wait(self, work: Callable[[], Awaitable[R]], method: str) -> R:
        """Do that in the engine's event loop, and wait for it."""

    def get(self, input: str | Theirs | None = None, **block_kwargs: object) -> list[Theirs]:  # noqa: A002
        """`aget`, waited for."""
        return self._wait(partial(self.aget, input, **block_kwargs), "get")

    def get_all(self, status: str | Enum | None = None) -> list[Theirs]:
        """`aget_all`, waited for."""
        return self._wait(partial(self.aget_all, status), "get_all")

    def put(self, message: Theirs) -> None:
        """`aput`, waited for."""
        self._wait(partial(self.aput, message), "put")

    def put_messages(self, messages: Sequence[Theirs]) -> None:
        """`aput_messages`, waited for."""
        self._wait(partial(self.aput_messages, messages), "put_messages")

    def set(self, messages: Sequence[Theirs]) -> None:
        """`aset`, waited for."""
        self._wait(partial(self.aset, messages), "set")

    def reset(self, status: str | Enum | None = None) -> None:
        """`areset`, waited for."""
        self._wait(partial(self.areset, status), "reset")
