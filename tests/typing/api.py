"""Typical calls that a strict type checker must accept. Checked by `make check`, never run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from memory_engine import (
    BaseMemoryBlock,
    ChatMessage,
    ContentBlock,
    Context,
    Limits,
    Memory,
    MemoryEngine,
    Receipt,
    TextBlock,
    ToolCallBlock,
)
from memory_engine.blocks import (
    Entity,
    EntityMemoryBlock,
    Fact,
    FactExtractionMemoryBlock,
    StaticMemoryBlock,
    SummaryMemoryBlock,
    SummaryVersion,
)


class Counter(BaseMemoryBlock[str]):
    count: int = 0
    client: object = Field(default=None, exclude=True)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return str(self.count) if self.context.query else ""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        self.count += len(messages)
        self.records.put("last", {"seqs": list(self.context.seqs)}, seq=self.context.seqs[-1])

    async def atruncate(self, content: str, tokens_to_truncate: int) -> str | None:
        return None


class Items(BaseMemoryBlock[list[ContentBlock]]):
    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> list[ContentBlock]:
        return [TextBlock(text=str(record.data), value=1.0, tag="fact") for record in await self.records.list()]

    async def _aput(self, messages: list[ChatMessage]) -> None:
        return None

    async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        self.records.delete("last")


class Profile(BaseModel):
    age: int


async def model(messages: Any) -> str:
    return str(messages)


async def facts(memory: Memory) -> list[Fact]:
    FactExtractionMemoryBlock(llm=model, max_facts=20, scope="user")
    FactExtractionMemoryBlock(
        llm=model, name="Profile", schema=Profile, fact_extraction_prompt_template="{reply_format}{fields}"
    )
    block = await memory.block("ExtractedFacts")
    assert isinstance(block, FactExtractionMemoryBlock)
    remembered: Fact = await block.remember("likes tea")
    forgotten: bool = await block.forget_fact(remembered.id, erase=True)
    assert forgotten
    ids = [proof.message_id for fact in await block.history() for proof in fact.proofs]
    assert ids
    return await block.facts()


def markdown(sections: Sequence[Any]) -> str:
    return "\n".join(str(section) for section in sections)


async def one_session() -> None:
    blocks: list[BaseMemoryBlock[Any]] = [
        StaticMemoryBlock(static_content="rules"),
        Counter(priority=1, scope="user"),
        Items(name="items", max_tokens=50),
    ]
    memory = Memory.from_defaults(
        "chat",
        token_limit=8_000,
        memory_blocks=blocks,
        tokenizer_fn=len,
        user_id="ada",
        renderer=markdown,
        limits=Limits(get=1.0),
    )
    async with memory:
        stored: ChatMessage | None = await memory.put({"role": "user", "content": "hi"})
        await memory.put(ChatMessage(role="assistant", blocks=[ToolCallBlock(id="1", name="f", arguments={"a": 1})]))
        await memory.put_messages([ChatMessage(role="tool", content="done", tool_call_id="1")])
        messages: list[ChatMessage] = await memory.get("a question")
        await memory.get([messages[0]])
        context: Context = await memory.context(messages=[{"role": "user", "content": "a question"}])
        receipt: Receipt = context.receipt
        assert receipt.source("history").given <= receipt.budget
        await memory.set(messages)
        await memory.flush(final=True)
        await memory.drain(timeout=1.0)
        popped: ChatMessage | None = await memory.pop()
        removed: int = await memory.delete([stored.id or ""] if stored else [])
        await memory.reset()
        block = await memory.block("Counter")
        async with memory.block("Counter") as corrected:
            assert isinstance(corrected, Counter)
            corrected.count = 0
        assert (popped, removed, block) is not None


async def many_sessions() -> None:
    async with MemoryEngine(async_database_uri="sqlite+aiosqlite:///memory.db", delivery="inline") as engine:
        await engine.session("a", user_id="ada", tenant="acme", metadata={"channel": "web"}).get()
        ids: list[str] = [info.session_id for info in await engine.list_sessions(tenant="acme", prefix="a")]
        await engine.delete_session(ids[0], tenant="acme")
        await engine.delete_user("ada", tenant="acme")
        await engine.delete_tenant("acme")
        await engine.purge(inactive_for=86_400.0)
        await engine.drain()


async def writer(messages: list[dict[str, str]]) -> str:
    return messages[-1]["content"]


class FirstWords(SummaryMemoryBlock):
    async def summarize(self, messages: list[ChatMessage], previous: str) -> str:
        return previous + messages[0].content


async def what_was_understood() -> None:
    summary = SummaryMemoryBlock(llm=writer, max_summary_tokens=100, summarize_every=2, must_keep=["42 Main St"])
    entities = EntityMemoryBlock(llm=writer, max_entities=50, scope="user", guidance="Only people.")
    async with Memory.from_defaults(
        "chat", user_id="ada", memory_blocks=[summary, entities, FirstWords(name="words")]
    ) as memory:
        bound = await memory.block("ConversationSummary")
        assert isinstance(bound, SummaryMemoryBlock)
        versions: list[SummaryVersion] = await bound.versions()
        messages: list[ChatMessage] = await bound.expand(versions[-1].number, added=True)
        notes = await memory.block("KnownEntities")
        assert isinstance(notes, EntityMemoryBlock)
        ada: Entity | None = await notes.entity("Ada")
        everybody: list[Entity] = await notes.entities()
        removed: bool = await notes.remove("Ada")
        originals: list[tuple[int, ChatMessage]] = await notes.originals(*everybody[0].messages[0], 10)
        assert (messages, ada, removed, originals) is not None
