"""Nothing leaks (P7): one definition and one store serve many sessions, users and tenants, and no item crosses over."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from chaos_blocks import PATIENCE
from chaos_database import audit
from chaos_recall import KINDS, SCOPES, SlowEmbedder, recall_engine, recalling, shop

from memory_engine import ChatMessage, Memory
from memory_engine.blocks.vector.block import VectorMemoryBlock

pytestmark = pytest.mark.asyncio

PHRASE = "where is the lighthouse keeper"


def mark(memory: Memory, number: int) -> str:
    """A word that no other session says, and none is a part of another."""
    return f"x{memory.tenant}q{memory.session_id}q{number}z"


async def talk(memory: Memory, count: int) -> None:
    """All sessions say the same, but for one word in each message."""
    for number in range(count):
        role = ("user", "assistant")[number % 2]
        await memory.put(ChatMessage(role=role, content=f"{PHRASE} {mark(memory, number)}"))
    await memory.flush(final=True)


def may_know(scope: str, memory: Memory, other: Memory) -> bool:
    """Whether a block of that scope may show in `memory` what was said in `other`."""
    same_user = scope == "global" or other.user_id == memory.user_id
    return other.tenant == memory.tenant and same_user and (scope != "session" or other is memory)


async def found_by(block: VectorMemoryBlock, query: str) -> set[str]:
    """The marks of all items that a search brings, however small their scores."""
    return {hit.item.text.split()[-1] for hit in await block.search(query, limit=10_000)}


async def knows_its_own_only(memory: Memory, everyone: Sequence[Memory], count: int) -> None:
    """What it may know is found by what was said there; what it may not know is found by nothing."""
    for scope in SCOPES:
        block = await memory.block(f"of_{scope}")
        assert isinstance(block, VectorMemoryBlock)
        allowed = {mark(other, n) for other in everyone for n in range(count) if may_know(scope, memory, other)}
        assert block.stored_items == len(allowed), f"{block.name}, {(await memory.context()).receipt}"
        assert await found_by(block, PHRASE) <= allowed
        for other in everyone:
            found = await found_by(block, f"{mark(other, 0)} {PHRASE} {mark(other, count - 1)}")
            assert found <= allowed, f"{block.name} of {memory!r}: {found - allowed}"
            if may_know(scope, memory, other):
                assert {mark(other, 0), mark(other, count - 1)} <= found


@pytest.mark.parametrize("kind", KINDS)
async def test_one_definition_and_one_store_serve_many_sessions_of_two_tenants(database: Path, kind: str, scale: int) -> None:
    """Two tenants with the same ids; blocks of session, user and tenant; all in one collection."""
    sessions, users, count = (20, 5, 8) if scale > 1 else (4, 2, 4)
    async with shop(kind, database) as where:
        blocks = recalling(where, SlowEmbedder(slow=0.005))
        before = [block.model_dump() for block in blocks]
        async with recall_engine(database, blocks) as engine:
            everyone = [
                engine.session(f"s{number}", user_id=f"u{number % users}", tenant=tenant)
                for number in range(sessions)
                for tenant in ("acme", "emca")
            ]
            await asyncio.gather(*(talk(memory, count) for memory in everyone))
            await engine.drain(PATIENCE * 5)
            audit(database)
            for memory in everyone:
                await knows_its_own_only(memory, everyone, count)
            for memory in everyone:
                for other in everyone:
                    context = "\n".join(m.content for m in (await memory.get(f"{PHRASE} {mark(other, 0)}"))[:-1])
                    if not may_know("global", memory, other):
                        assert mark(other, 1) not in context, f"{memory!r} shows what {other!r} said"
            stored = Counter((one.block, one.text.split()[-1]) for one in await where.stored())
            said = [mark(memory, n) for memory in everyone for n in range(count)]
            assert stored == Counter((f"of_{scope}", one) for scope in SCOPES for one in said)
            assert [block.model_dump() for block in blocks] == before, "a definition was changed"


@pytest.mark.parametrize("kind", KINDS)
async def test_documents_stay_in_their_scope_and_outlive_sessions(database: Path, kind: str) -> None:
    """Known to a user's sessions, to nobody else, whatever sessions are cleared."""
    async with shop(kind, database) as where, recall_engine(database, recalling(where, SlowEmbedder())) as engine:
        mine = [engine.session(name, user_id="ada", tenant="acme") for name in ("one", "two")]
        others = [engine.session("three", user_id="bob", tenant="acme"), engine.session("one", user_id="ada", tenant="emca")]
        for memory in (*mine, *others):
            await talk(memory, 2)
        await engine.drain(PATIENCE)
        block = await mine[0].block("of_user")
        assert isinstance(block, VectorMemoryBlock)
        await block.add_documents(["the vault opens with seven keys"])
        await mine[0].reset()
        await engine.delete_session("two", tenant="acme")
        await engine.drain(PATIENCE)
        fresh = engine.session("four", user_id="ada", tenant="acme")
        await talk(fresh, 2)
        await engine.drain(PATIENCE)
        for memory in (mine[0], fresh):
            assert "seven keys" in (await memory.get("how does the vault open?"))[0].content
        for memory in others:
            for scope in SCOPES:
                searched = await memory.block(f"of_{scope}")
                assert isinstance(searched, VectorMemoryBlock)
                assert not any("vault" in hit.item.text for hit in await searched.search("how does the vault open?"))
        assert await engine.delete_user("ada", tenant="acme") == 2
        await engine.drain(PATIENCE)
        assert not [one for one in await where.stored() if "vault" in one.text]
