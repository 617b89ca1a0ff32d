"""A block with content that never changes: instructions, a profile, the rules of the house."""

from __future__ import annotations

from typing import Any

from memory_engine import BaseMemoryBlock, ChatMessage, ContentBlock


class StaticMemoryBlock(BaseMemoryBlock[str | list[ContentBlock]]):
    """Shows `static_content`, a text or a list of content blocks, in every context.

    With the default `priority=0` it is never truncated. It absorbs nothing and saves nothing.
    """

    name: str = "StaticContent"
    static_content: str | list[ContentBlock]
    accept_short_term_memory: bool = False
    depends_on_query: bool = False

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str | list[ContentBlock]:
        if isinstance(self.static_content, str):
            return self.static_content
        return list(self.static_content)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        return None
