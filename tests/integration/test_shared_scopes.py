"""Blocks that several sessions share, and blocks whose definition changes between two starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from memory_engine import BaseMemoryBlock, ChatMessage, Memory


class Heard(BaseMemoryBlock[str]):
    """Knows every text it absorbed, and cannot forget by itself."""

    name: str = "Heard"
    texts: list[str] = []
    absent: bool = False

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return " | ".join(self.texts)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        if self.absent:
            raise ConnectionError("not reachable")
        self.texts += [message.content for message in messages]


def opened(path: Path, session_id: str, scope: Literal["session", "user"] = "user", **fields: Any) -> Memory:
    return Memory.from_defaults(
        session_id,
        user_id="ada",
        memory_blocks=[Heard(scope=scope, **fields)],
        async_database_uri=f"sqlite+aiosqlite:///{path}/memory.db",
    )


async def put_away(memory: Memory, *texts: str) -> None:
    await memory.put_messages([{"role": "user", "content": text} for text in texts])
    await memory.flush(final=True)


async def say(memory: Memory, *texts: str) -> None:
    await put_away(memory, *texts)
    await memory.drain(timeout=30)


async def heard(memory: Memory) -> list[str]:
    block = await memory.block("Heard")
    assert isinstance(block, Heard)
    return sorted(block.texts)


async def test_a_shared_block_is_rebuilt_from_all_its_sessions_by_any_of_them(tmp_path: Path) -> None:
    async with opened(tmp_path, "one") as one:
        await say(one, "a", "b", "c")
    async with opened(tmp_path, "two") as two:
        await say(two, "d", "e", "f")
        [first, *_] = await two.get_all()
        assert await two.delete([first.id or ""]) == 1
    async with opened(tmp_path, "two") as two:
        assert await heard(two) == ["a", "b", "c", "e", "f"]


async def test_a_block_that_accepts_no_more_hears_no_more(tmp_path: Path) -> None:
    async with opened(tmp_path, "one") as memory:
        await say(memory, "a")
    async with opened(tmp_path, "one", accept_short_term_memory=False) as memory:
        await say(memory, "b")
        assert await heard(memory) == ["a"]
    async with opened(tmp_path, "one") as memory:
        await say(memory, "c")
        assert await heard(memory) == ["a", "b", "c"]


async def test_a_block_that_accepts_no_more_still_absorbs_what_was_flushed_before(tmp_path: Path) -> None:
    """Until then the conversation is shown from there on, as nothing may be both invisible and unabsorbed."""
    async with opened(tmp_path, "one", absent=True) as memory:
        await put_away(memory, "a")
        await memory.aclose(timeout=0)
    async with opened(tmp_path, "one", absent=True, accept_short_term_memory=False) as memory:
        await put_away(memory, "b")
        assert [message.content for message in await memory.get()] == ["a", "b"]
        await memory.aclose(timeout=0)
    async with opened(tmp_path, "one", accept_short_term_memory=False) as memory:
        await memory.drain(timeout=30)
        assert await heard(memory) == ["a"]
        assert [message.role for message in await memory.get()] == ["system"]  # its section, and nothing of the archive


async def test_a_block_with_another_scope_starts_over_at_the_next_get(tmp_path: Path) -> None:
    async with opened(tmp_path, "one", "session") as memory:
        await say(memory, "a", "b")
    async with opened(tmp_path, "one", "user") as memory:
        await memory.get()
        await memory.drain(timeout=30)
        assert await heard(memory) == ["a", "b"]


async def test_a_session_that_was_reset_lags_behind_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, "one") as memory:
        await say(memory, *map(str, range(20)))
        await memory.reset()
        assert (await memory.context()).receipt.source("Heard").lag == 0


async def test_a_view_copy_that_went_through_json_stands_for_its_message(tmp_path: Path) -> None:
    async with Memory.from_defaults("one", token_limit=400, max_tool_result_tokens=50) as memory:
        call = {"id": "1", "type": "function", "function": {"name": "read", "arguments": "{}"}}
        await memory.put_messages(
            [
                {"role": "user", "content": "Read it."},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "word " * 100},
            ]
        )
        stored = await memory.get_all()
        shown = await memory.get()
        assert shown[-1].partial
        again = [ChatMessage.model_validate_json(message.model_dump_json()) for message in shown]
        await memory.put_messages(again)
        await memory.set(again)
        assert await memory.get_all() == stored
