"""Messages to items, and chosen items back to text."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_engine.blocks.vector.store import Item
from memory_engine.blocks.vector.transcript import (
    PLAIN,
    Layout,
    document_items,
    lines,
    message_items,
    speaker,
    splitter,
    spoken,
)
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


# -- items to text ---------------------------------------------------------------------------------------------------


def at(minutes: float, text: str, seq: int, **fields: Any) -> Item:
    given = {"at": START + timedelta(minutes=minutes), "session_uid": "uid", "seq": seq, "last_seq": seq} | fields
    return Item(key=str(seq), text=text, **given)


def test_the_time_stands_where_it_changes() -> None:
    items = [at(0, "a", 0), at(3, "b", 1, role="assistant"), at(15, "c", 2), at(60 * 24, "d", 3, name="Ada")]
    assert written(items) == (
        "[2025-03-01 12:00]\nuser: a\nassistant: b\n[2025-03-01 12:15]\nuser: c\n[2025-03-02 12:00]\nAda: d"
    )


def test_without_a_format_there_are_no_times() -> None:
    items = [at(0, "a", 0), at(60, "b", 1)]
    assert written(items, Layout(PLAIN, "", 600.0)) == "user: a\nuser: b"


def test_another_session_begins_with_its_time() -> None:
    assert written([at(0, "a", 0), at(0, "b", 1, session_uid="other")]).count("[2025-03-01 12:00]") == 2


def test_an_item_without_a_time_has_none_above_it() -> None:
    assert written([at(0, "a", 0, at=None), at(1, "b", 1)]) == "user: a\n[2025-03-01 12:01]\nuser: b"


def test_times_are_written_as_they_were_told() -> None:
    india = timezone(timedelta(hours=5, minutes=30))
    assert written([at(0, "a", 0, at=START.astimezone(india))]) == "[2025-03-01 17:30]\nuser: a"


def test_documents_stand_as_they_are() -> None:
    paper = Item(key="d", text="Turn the key.", kind="document", document="manual", at=START)
    assert written([paper, at(0, "a", 0)]) == "Turn the key.\n[2025-03-01 12:00]\nuser: a"


def test_passages_with_a_gap_stay_apart() -> None:
    parts = [at(0, text, 4, part=part) for part, text in ((0, "One "), (1, "two "), (3, "four."))]
    told = lines([(part, float(part.part)) for part in parts], LAYOUT)
    assert [(line.text, line.value, line.seq) for line in told] == [
        ("[2025-03-01 12:00]\nuser: One two ", 1.0, 4),
        ("user: four.", 3.0, 4),
    ]


def test_parts_of_two_messages_are_not_one_text() -> None:
    assert len(lines([(at(0, "a", 0), 1.0), (at(0, "b", 1, part=1), 1.0)], LAYOUT)) == 2


def test_a_template_may_use_every_field() -> None:
    template = "{session_id}|{time}|{role}|{name}|{speaker}|{text}|{metadata}"
    item = at(0, "{text} stays", 0, name="Ada", session_id="chat", metadata={"x": 1})
    expected = "chat|2025-03-01T12:00:00+00:00|user|Ada|Ada|{text} stays|{'x': 1}"
    assert Layout(template, "", 600.0).written(item, item.text) == expected
    bare = Item(key="b", text="t")
    assert Layout(template, "", 600.0).written(bare, "t") == "||user||user|t|{}"


def test_nothing_is_written_of_nothing() -> None:
    assert lines([], LAYOUT) == []
