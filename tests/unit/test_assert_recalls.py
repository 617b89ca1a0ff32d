from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from memory_engine import BaseMemoryBlock, ChatMessage, Memory
from memory_engine.errors import BudgetExceededError, ConfigurationError
from memory_engine.messages import TextBlock
from memory_engine.testing import assert_recalls

FACTS = [
    "Ada is allergic to hazelnuts.",
    "The spare key is under the blue flowerpot.",
    "The meeting was moved to the ninth of May.",
]


class Words(BaseMemoryBlock[list[TextBlock]]):
    """Keeps every message as a record and returns those that share a word with the query, the best first."""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        for seq, message in zip(self.context.seqs, messages, strict=True):
            self.records.put(f"{seq:08}", message.content, seq=seq)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> list[TextBlock]:
        words = {word for message in self.context.query or () for word in message.content.lower().strip("?").split()[2:]}
        found = []
        for record in await self.records.list():
            shared = len(words & set(record.data.lower().strip(".").split()))
            if shared:
                found.append((-shared, record.key, record.data))
        return [TextBlock(text=text) for _, _, text in sorted(found)]


@pytest.fixture
async def memory() -> AsyncIterator[Memory]:
    async with Memory.from_defaults("recalls", token_limit=4_000, memory_blocks=[Words(name="words", priority=1)]) as memory:
        for fact in FACTS:
            await memory.put(ChatMessage(role="user", content=fact))
            for number in range(10):
                await memory.put(ChatMessage(role="assistant", content=f"Noted. Then we spoke about other things, {number}."))
        yield memory


async def test_what_was_absorbed_is_recalled_at_a_small_budget(memory: Memory) -> None:
    await memory.flush(final=True)  # and not drained: the assertion waits for what is pending
    await assert_recalls(memory, "What is Ada allergic to?", "allergic to hazelnuts", tokens=120)
    await assert_recalls(memory, "Where is the spare key?", ["spare key", "blue  \n flowerpot"], tokens=120)


async def test_what_is_in_history_counts_as_well(memory: Memory) -> None:
    await assert_recalls(memory, "Anything new?", FACTS, tokens=None)
    await assert_recalls(memory, "Anything new?", FACTS[2], tokens=300)


async def test_a_failure_says_what_was_asked_what_came_and_why(memory: Memory) -> None:
    await memory.flush(final=True)
    with pytest.raises(AssertionError) as caught:
        await assert_recalls(
            memory, "Where is the spare key?", ["spare key", "allergic to hazelnuts", "a red balloon"], tokens=150
        )
    shown = str(caught.value)
    assert shown.startswith("Not recalled at 150 tokens: 'allergic to hazelnuts', 'a red balloon'\n")
    assert "question: Where is the spare key?" in shown
    assert "'allergic to hazelnuts' stands in message 0 of 33" in shown
    assert "'a red balloon' stands in none of the session's 33 messages" in shown
    assert "of 150 tokens" in shown and "words" in shown
    assert "The spare key is under the blue flowerpot." in shown


async def test_the_limit_holds_and_an_own_limit_that_is_smaller_wins() -> None:
    async with Memory.from_defaults("small", token_limit=150, memory_blocks=[Words(name="words", priority=1)]) as memory:
        for number in range(40):
            await memory.put(ChatMessage(role="user", content=f"Key number {number} opens door {number}."))
        await memory.flush(final=True)
        with pytest.raises(AssertionError, match="Not recalled at 150 tokens"):
            await assert_recalls(memory, "Which key?", [f"Key number {number} " for number in range(40)], tokens=2_000)
        with pytest.raises(AssertionError, match="Not recalled at 60 tokens"):
            await assert_recalls(memory, "Which key?", [f"Key number {number} " for number in range(8)], tokens=60)


async def test_looking_at_a_smaller_budget_changes_nothing(memory: Memory) -> None:
    before = await memory.context("Where is the spare key?")
    with pytest.raises(AssertionError):
        await assert_recalls(memory, "Where is the spare key?", "flowerpot", tokens=60)
    after = await memory.context("Where is the spare key?")
    assert after.messages == before.messages
    assert after.receipt.source("history").messages == len(FACTS) * 11
    assert after.receipt.source("words").lag == 0
    assert await memory.flush() > 0


async def test_reserved_tokens_are_not_taken_from_a_budget_that_is_given() -> None:
    async with Memory.from_defaults("reserved", token_limit=1_000, reserved_tokens=900) as memory:
        await memory.put(ChatMessage(role="user", content="The password is swordfish."))
        await assert_recalls(memory, "What is the password?", "swordfish")


async def test_what_never_may_be_cut_must_fit(memory: Memory) -> None:
    with pytest.raises(BudgetExceededError):
        await assert_recalls(memory, "Anything new?", FACTS[0], tokens=5)


@pytest.mark.parametrize(("expected", "tokens"), [("", 100), ([], 100), (["a", " "], 100), ("a", 0), ("a", True), ([1], 10)])
async def test_wrong_arguments_are_refused(memory: Memory, expected: str | Sequence[str], tokens: int) -> None:
    with pytest.raises(ConfigurationError):
        await assert_recalls(memory, "What?", expected, tokens=tokens)
