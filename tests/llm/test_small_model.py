"""Facts and summary with a real model of 135M parameters: its wisdom is not judged, the pipeline's promises are."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from memory_engine import ChatMessage, Limits, MemoryEngine
from memory_engine.blocks import FactExtractionMemoryBlock, SummaryMemoryBlock
from memory_engine.blocks.models import OpenAICompatibleModel
from memory_engine.demo.transcript import load
from memory_engine.tokens import TokenCounter

LIMIT = 3_000
SUMMARY = 120
HOURS = 3
LIMITS = Limits(delivery=1_800.0, lease=60.0, max_attempts=1)
"""One attempt: a tiny model that answers nonsense twice will do so a third time, and what it refused stays visible."""


def model(url: str, **options: Any) -> OpenAICompatibleModel:
    return OpenAICompatibleModel(
        "smollm2-135m", base_url=url, timeout=900.0, options={"temperature": 0, "max_tokens": 250} | options
    )


OPERATIONS = {
    "type": "object",
    "properties": {
        "operations": {
            "type": "array",
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {
                    "op": {"enum": ["add", "update", "retract"]},
                    "fact": {"type": "string", "maxLength": 4},
                    "text": {"type": "string", "maxLength": 80},
                    "messages": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "integer"}},
                },
                "required": ["op", "text", "messages"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["operations"],
    "additionalProperties": False,
}
"""What servers that constrain replies are given: the form is right then, what it says is the model's own."""


def first_hours() -> list[ChatMessage]:
    utterances = load(None)
    start = utterances[0].created_at
    assert start is not None
    end = start + timedelta(hours=HOURS)
    return [
        ChatMessage(role=m.role, name=m.name, content=m.content, created_at=m.created_at)
        for m in utterances
        if m.created_at is not None and m.created_at <= end
    ]


@pytest.mark.timeout(7_200)
async def test_a_real_model_end_to_end(model_url: str, tmp_path: Path) -> None:
    said = first_hours()
    schema = {"type": "json_schema", "json_schema": {"name": "operations", "schema": OPERATIONS}}
    async with model(model_url, response_format=schema) as for_facts, model(model_url) as for_summary:
        await remember(for_facts, for_summary, said, tmp_path)


async def remember(
    for_facts: OpenAICompatibleModel, for_summary: OpenAICompatibleModel, said: list[ChatMessage], folder: Path
) -> None:
    """Put, absorb, look, and start again."""
    how: dict[str, Any] = {
        "async_database_uri": f"sqlite+aiosqlite:///{folder / 'llm.db'}",
        "token_limit": LIMIT,
        "token_flush_size": 1_000,
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
            refused = {seq for chunk in parked for seq in range(chunk.from_seq, chunk.to_seq)}
            assert len(refused) < len(said), "something was understood"
            print(f"\n{name}: {source.usage}, {len(refused)} of {len(said)} messages parked")
        known = await facts.history()  # type: ignore[attr-defined]
        for fact in known:
            assert fact.text.strip() and fact.proofs
            json.dumps(fact.text)
            for proof in fact.proofs:
                assert proof.message_id in ids
        print(f"{len(known)} facts, the last of them: {[fact.text for fact in known[-3:]]}")
        text = summary.summary  # type: ignore[attr-defined]
        assert text and counter.text(text) <= SUMMARY
        print(f"summary: {text!r}")
        versions = await summary.versions()  # type: ignore[attr-defined]
        covered = await summary.expand(versions[-1].number)  # type: ignore[attr-defined]
        waiting = {seq for _, start, end in summary.waiting for seq in range(start, end)}  # type: ignore[attr-defined]
        refused = {s for c in receipt.parked if c.block == "summary" for s in range(c.from_seq, c.to_seq)}
        assert len({message.id for message in covered} & ids) == len(covered) == len(said) - len(refused) - len(waiting)
        before = [message.content for message in await memory.get("What happened so far?")]
    async with MemoryEngine(**how) as engine:
        again = [message.content for message in await engine.session("apollo").get("What happened so far?")]
        assert again == before, "what was understood outlives the process"
