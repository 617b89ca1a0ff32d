"""What a memory of ours can do and one of LlamaIndex cannot, from any event loop."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from llama_index.core.base.llms.types import ChatMessage as Theirs

from memory_engine.integrations.llama_index.connected import Connected
from memory_engine.receipt import Context


class HandleMethods(Connected):
    """The memory of ours behind it, used in its engine's event loop."""

    async def adrain(self, timeout: float | None = None) -> None:
        """Wait until every block has absorbed every flushed message of this session.

        :raises DrainTimeoutError: after `timeout` seconds; what is pending stays so.
        """
        await self.acall(lambda memory: memory.drain(timeout))

    async def aflush(self, final: bool = False) -> int:
        """Archive all complete turns now, with `final` the current one too; returns how many tokens left the FIFO."""
        return await self.acall(lambda memory: memory.flush(final=final))

    async def acontext(self, input: str | Theirs | None = None, **block_kwargs: Any) -> Context:  # noqa: A002
        """What `aget` finds, as messages of ours, with a `Receipt` that accounts for every token and everything left out."""
        query = self._query(input, block_kwargs)
        return await self.acall(lambda memory: memory.context(query, **block_kwargs))

    @abstractmethod
    def _query(self, input: str | Theirs | None, block_kwargs: dict[str, Any]) -> Any:  # noqa: A002
        """What blocks are asked, as one of ours; what LlamaIndex adds to the arguments of blocks is taken out."""
