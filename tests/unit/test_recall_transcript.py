"""Messages to items, and chosen items back to text."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_engine.blocks.vector.layout import Layout, lines
from memory_engine.blocks.vector.store import Item
from memory_engine.blocks.vector.templates import PLAIN
from memory_engine.blocks.vector.transcript import document_items, message_items, speaker, splitter, spoken
from memory_engine.messages import ChatMessage, TextBlock, ToolCallBlock

START = datetime(2025, 3, 1, 12, tzinfo=UTC)
LAYOUT = Layout(PLAIN, "[%Y-%m-%d %H:%M]", 600.0)


def count(text: str) -> int:
    """Words, so that sums of parts are easy to see."""
    return len(re.findall(r"\S+", text))


def message(role: str, content: str = "", **fields: Any) -> ChatMessage:
    return ChatMessage.model_validate({"role": role, "content": content, **fields})


def asking(content: str, *calls: tuple[str, dict[str, Any]]) -> ChatMessage:
    """A message of the assistant with calls, whose ids are call-0, call-1 …"""
    asked = [ToolCallBlock(id=f"call-{n}", name=name, arguments=arguments) for n, (name, arguments) in enumerate(calls)]
    return ChatMessage(role="assistant", blocks=[*([TextBlock(text=content)] if content else []), *asked])


def items_of(*messages: ChatMessage, first: int = 0, item_tokens: int = 50) -> list[Item]:
    return message_items(
        messages,
        range(first, first + len(messages)),
        session_uid="uid",
        session_id="chat",
        count=count,
        item_tokens=item_tokens,
        split=splitter(item_tokens, count),
    )


def written(items: list[Item], layout: Layout = LAYOUT) -> str:
    return "\n".join(line.text for line in lines([(item, 1.0) for item in items], layout))


# -- messages to items -----------------------------------------------------------------------------------------------


def test_a_message_is_an_item() -> None:
    [item] = items_of(message("user", "  I live in Turin. ", name="Ada", created_at=START), first=7)
    assert (item.text, item.role, item.name, item.at) == ("  I live in Turin. ", "user", "Ada", START)
    assert (item.session_uid, item.session_id, item.seq, item.last_seq, item.part) == ("uid", "chat", 7, 7, 0)
    assert item.tokens == 4
    assert item.kind == "message"


def test_a_call_and_its_results_are_one_item() -> None:
    asks = asking("Let me see.", ("look_up", {"city": "Zürich"}), ("add", {"a": 1}))
    answers = [message("tool", "rainy", tool_call_id="call-0"), message("tool", "2", tool_call_id="call-1")]
    user, step, after = items_of(message("user", "How is the weather?"), asks, *answers, message("assistant", "Rainy."))
    assert step.text == 'Let me see.\n[look_up {"city": "Zürich"}]\n[add {"a": 1}]\nrainy\n2'
    assert (step.seq, step.last_seq, step.role) == (1, 3, "assistant")
    assert (user.last_seq, after.seq) == (0, 4)


def test_a_result_without_its_call_is_an_item_of_its_own() -> None:
    items = items_of(message("tool", "rainy", tool_call_id="call-1"), message("user", "thanks"))
    assert [(item.text, item.role) for item in items] == [("rainy", "tool"), ("thanks", "user")]


def test_a_large_step_becomes_items_of_its_messages() -> None:
    asks = asking("", ("look_up", {"page": 1}))
    items = items_of(asks, message("tool", "word " * 49, tool_call_id="call-0"))
    assert [(item.seq, item.last_seq, item.role) for item in items] == [(0, 0, "assistant"), (1, 1, "tool")]


def test_what_says_nothing_is_no_item() -> None:
    assert items_of(message("user", ""), message("user", " \n\t"), message("assistant", "\u3000")) == []


def test_keys_sort_as_the_conversation_does() -> None:
    items = items_of(*(message("user", f"{n} " * 120) for n in range(12)), first=95)
    assert [item.key for item in items] == sorted(item.key for item in items)
    assert len({item.key for item in items}) == len(items) > 24


TEXTS = st.text(alphabet=st.sampled_from("ab .\n\t,!?äß東京。🚀👩‍🚀\r"), max_size=400)


@given(TEXTS, st.integers(1, 20))
def test_the_passages_of_a_message_are_together_its_exact_text(text: str, size: int) -> None:
    items = items_of(message("user", text), item_tokens=size)
    if not text.strip():
        assert not items
        return
    assert "".join(item.text for item in items) == text
    assert [item.part for item in items] == list(range(len(items)))
    assert all(item.tokens == count(item.text) for item in items)
    whole = lines([(item, float(item.part)) for item in items], Layout(PLAIN, "", 600.0))
    assert [(line.text, line.value) for line in whole] == [(f"user: {text}", float(len(items) - 1))]


@given(st.lists(st.sampled_from(["one", "two", "three.", "\n\n", "four,"]), min_size=1, max_size=200), st.integers(1, 30))
def test_passages_are_not_longer_than_asked(parts: list[str], size: int) -> None:
    items = items_of(message("user", " ".join(parts)), item_tokens=size)
    assert all(item.tokens <= size for item in items)


def test_names_are_part_of_what_is_said() -> None:
    named, unnamed = items_of(message("user", "hello", name="Ada"), message("assistant", "hi"))
    assert [speaker(named), speaker(unnamed)] == ["Ada", "assistant"]
    assert [spoken(named), spoken(unnamed)] == ["Ada: hello", "assistant: hi"]


# -- documents -------------------------------------------------------------------------------------------------------


def test_a_document_becomes_passages() -> None:
    text = "One two three. " * 20
    items = document_items("manual", text, {"page": 7}, START, count=count, split=splitter(15, count))
    assert "".join(item.text for item in items).split() == text.split()
    assert {(item.kind, item.document, item.session_uid, item.seq) for item in items} == {("document", "manual", None, None)}
    assert [item.part for item in items] == list(range(len(items)))
    assert all(item.tokens <= 15 and item.metadata == {"page": 7} and spoken(item) == item.text for item in items)


@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_document_has_none(text: str) -> None:
    assert document_items("empty", text, {}, START, count=count, split=splitter(15, count)) == []
