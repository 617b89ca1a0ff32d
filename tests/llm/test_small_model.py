"""Facts and summary with a real model of 135M parameters: its wisdom is not judged, the pipeline's promises are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memory_engine import ChatMessage, Limits, MemoryEngine
from memory_engine.blocks import FactExtractionMemoryBlock, SummaryMemoryBlock
from memory_engine.blocks.models import OpenAICompatibleModel
from memory_engine.demo.transcript import load
from memory_engine.tokens import TokenCounter

LIMIT = 1_500
SUMMARY = 120
LIMITS = Limits(delivery=1_800.0, lease=60.0, max_attempts=1)
"""One attempt: a tiny model that answers nonsense twice will do so a third time, and what it refused stays visible."""


def model(url: str, **options: Any) -> OpenAICompatibleModel:
    return OpenAICompatibleModel(
        "smollm2-135m", base_url=url, timeout=900.0, options={"temperature": 0, "max_tokens": 120} | options
    )


@pytest.mark.timeout(7_200)
async def test_a_real_model_end_to_end(model_url: str, tmp_path: Path) -> None:
    said = [ChatMessage(role=m.role, name=m.name, content=m.content, created_at=m.created_at) for m in load(None)[:40]]
    schema = {"type": "json_schema", "json_schema": {"name": "operations", "schema": {"type": "object"}}}
    async with model(model_url, response_format=schema) as for_facts, model(model_url) as for_summary:
        await remember(for_facts, for_summary, said, tmp_path)


async def remember(
    for_facts: OpenAICompatibleModel, for_summary: OpenAICompatibleModel, said: list[ChatMessage], folder: Path
) -> None:
    """Put, absorb, look, and start again."""
    how: dict[str, Any] = {
        "async_database_uri": f"sqlite+aiosqlite:///{folder / 'llm.db'}",
        "token_limit": LIMIT,
        "token_flush_size": 500,
        "chat_history_token_ratio": 0.4,
        "limits": LIMITS,
        "memory_blocks": [
            FactExtractionMemoryBlock(name="facts", llm=for_facts, llm_timeout=900.0, max_facts=10),
            SummaryMemoryBlock(name="summary", llm=for_summary, llm_timeout=900.0, max_summary_tokens=SUMMARY),
        ],
    }
    counter = TokenCounter()
    async with MemoryEngine(**how) as engine:
        memory = engine.session("apollo")
        for message in said:
            await memory.put(message)
            context = await memory.context("What happened so far?")
            assert context.receipt.tokens <= LIMIT
        await memory.flush(final=True)
        await memory.drain(3_600)
        receipt = (await memory.context("What happened so far?")).receipt
        facts, summary = await memory.block("facts"), await memory.block("summary")
        ids = {message.id for message in await memory.get_all()}
        assert len(ids) == len(said), "nothing was lost"
        for name in ("facts", "summary"):
            source = receipt.source(name)
            parked = [chunk for chunk in receipt.parked if chunk.block == name]
            assert source.lag == 0, "every message was absorbed, or is named among the parked"
            assert source.usage is not None or parked, "the model was asked"
            for chunk in parked:
                assert "gave no usable reply" in chunk.error
        known = await facts.history()  # type: ignore[attr-defined]
        for fact in known:
            assert fact.text.strip() and fact.proofs
            json.dumps(fact.text)
            for proof in fact.proofs:
                assert proof.message_id in ids
        text = summary.summary  # type: ignore[attr-defined]
        assert counter.text(text) <= SUMMARY
        if text:
            versions = await summary.versions()  # type: ignore[attr-defined]
            covered = await summary.expand(versions[-1].number)  # type: ignore[attr-defined]
            assert {message.id for message in covered} <= ids
        before = [message.content for message in await memory.get("What happened so far?")]
    async with MemoryEngine(**how) as engine:
        again = [message.content for message in await engine.session("apollo").get("What happened so far?")]
        assert again == before, "what was understood outlives the process"
