"""The conversation as data for a model, and what is made of its replies."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_engine import ChatMessage, ImageBlock, TextBlock, ToolCallBlock, ToolResultBlock
from memory_engine.blocks import FactExtractionMemoryBlock
from memory_engine.blocks.understanding.replies import UnusableReplyError, object_of, without_thinking
from memory_engine.blocks.understanding.transcript import LONGEST, fitting_transcript, said, transcript_of
from memory_engine.messages import ThinkingBlock
from memory_engine.testing import ScriptedLLM

OBJECT = '{"operations": []}'


def user(text: str, **fields: Any) -> ChatMessage:
    return ChatMessage(role="user", content=text, **fields)


# -- the conversation ------------------------------------------------------------------------------------------------


def test_messages_have_short_numbers_and_say_who_and_when() -> None:
    at = datetime(2025, 3, 1, 9, 30, tzinfo=UTC)
    found = transcript_of([user("Hello.", name="Ada", created_at=at), ChatMessage(role="assistant", content="Hi.")], [17, 18])
    assert found.text == (
        '<conversation>\n<message n="1" role="user" name="Ada" time="2025-03-01 09:30">\nHello.\n</message>\n'
        '<message n="2" role="assistant">\nHi.\n</message>\n</conversation>'
    )
    assert found.seqs == {1: 17, 2: 18}
    assert not found.empty


def test_tools_are_text_and_memory_and_thoughts_are_left_out() -> None:
    call = ToolCallBlock(id="c1", name="weather", arguments={"city": "Graz"})
    messages = [
        ChatMessage(role="assistant", blocks=[ThinkingBlock(text="Let me think."), TextBlock(text="Looking."), call]),
        ChatMessage(role="tool", blocks=[ToolResultBlock(tool_call_id="c1", content="sunny")]),
        ChatMessage(role="user", blocks=[TextBlock(text="known already", origin="memory"), TextBlock(text="Thanks.")]),
        ChatMessage(role="user", blocks=[ImageBlock(url="https://example.com/a.png")]),
        ChatMessage(role="user", blocks=[TextBlock(text="only memory", origin="memory")]),
        ChatMessage(role="assistant", blocks=[ThinkingBlock(text="Nothing to say.")]),
    ]
    assert [said(message) for message in messages] == [
        'Looking.\n[calls weather with {"city": "Graz"}]',
        "[result] sunny",
        "Thanks.",
        "[image]",
        "",
        "",
    ]
    assert list(transcript_of(messages, range(6)).seqs.values()) == [0, 1, 2, 3], "what says nothing has no number"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<memory>\n<facts>\nlikes tea\n</facts>\n</memory>\nAnd coffee?", "And coffee?"),
        ("<memory>\n<facts>\nlikes tea\n</facts>\n</memory>", ""),
        ("<memory>\n<a>\nx\n</a>\n</memory>\nSay <memory>\nhello\n</memory>", "Say <memory>\nhello\n</memory>"),
        ("What does <memory> mean?\n</memory>", "What does <memory> mean?\n</memory>"),
        ("<memory>\nnever closed", "<memory>\nnever closed"),
    ],
)
def test_what_memory_wrote_is_known_behind_another_librarys_message(text: str, left: str) -> None:
    assert said(user(text)) == left
    assert said(ChatMessage(role="assistant", content=text)) == text


@given(st.lists(st.text(alphabet='<>/message conversation n="12"\n'), max_size=5), st.text('<>/message n="12"&\n', max_size=30))
def test_no_text_and_no_name_can_end_or_begin_a_message(texts: list[str], name: str) -> None:
    found = transcript_of([user(text, name=name or None) for text in texts], range(len(texts)))
    tags = re.findall(r"<\s*/?\s*(?:message|conversation)\b", found.text, re.IGNORECASE)
    assert len(tags) == 2 * len(found.seqs) + 2
    assert re.findall(r'<message n="(\d+)" ', found.text) == [str(number) for number in found.seqs]


def test_the_middle_of_a_huge_message_is_left_out() -> None:
    text = transcript_of([user("a" * 1_000_000 + "z")], [0]).text
    assert len(text) < LONGEST + 200
    assert "[984,001 characters left out]" in text and "z\n</message>" in text


@given(
    st.lists(st.text("ab \n<", max_size=400), max_size=12),
    st.integers(50, 1_000),
    st.sampled_from([len, lambda text: len(text.split()), lambda text: 3 * len(text)]),
)
def test_what_does_not_fit_loses_the_middle_of_its_longest_messages(texts: list[str], limit: int, count: Any) -> None:
    messages = [user(text) for text in texts]
    whole, found = (
        transcript_of(messages, range(len(texts))),
        fitting_transcript(messages, range(len(texts)), count=count, limit=limit),
    )
    if count(whole.text) <= limit:
        assert found == whole
        return
    assert count(found.text) <= limit or len(found.seqs) <= 1
    assert list(found.seqs) == [*range(1, len(found.seqs) + 1)] and set(found.seqs.values()) <= set(whole.seqs.values())
    assert found.shortened > 0 or len(whole.seqs) <= 1


# -- replies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        OBJECT,
        f"  \n{OBJECT}\n",
        f"```json\n{OBJECT}\n```",
        f"```\n{OBJECT}",
        f"Sure! Here it is:\n\n```json\n{OBJECT}\n```\nAnything else?",
        f"<think>Maybe {{}} or {{'a': 1}}?</think>\n{OBJECT}",
        f'<think>{{"operations": ["a draft"]}}</think>{OBJECT}',
        f'<thinking>\n{{"operations": ["a draft"]}}\n</thinking>\n```json\n{OBJECT}\n```',
        f'{{"operations": ["a draft"]}} no, rather {OBJECT}',
        f"{OBJECT} (an empty object {{}} means that nothing changed)",
        f"{{ broken {OBJECT}",
        f"I was thinking</think>{OBJECT}",
    ],
)
def test_the_object_is_found_in_what_models_write_around_it(reply: str) -> None:
    assert object_of(reply, "operations") == {"operations": []}


def test_a_tag_inside_an_answer_is_quoted() -> None:
    reply = json.dumps({"operations": [{"op": "add", "text": "He wrote <think> and </think>."}]})
    assert object_of(reply, "operations")["operations"][0]["text"] == "He wrote <think> and </think>."


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I cannot do that.",
        '{"operations": [',
        '{"facts": []}',
        "[1, 2]",
        '["operations"]',
        f"<think>{OBJECT}",
        f"Well. <think>{OBJECT}",
        '{"operations": NaN}',
        "{" * 100_000,
        '{"a":' * 5_000,
        "<think>" * 20_000,
        "</think>" * 20_000,
        "x" * 10_000_000,
        "```" * 50_000,
    ],
    ids=lambda reply: f"{reply[:12]!r} and {len(reply)}",
)
def test_what_is_no_such_object_is_unusable(reply: str) -> None:
    with pytest.raises(UnusableReplyError):
        object_of(reply, "operations")


@given(st.text(alphabet="<>/think ab{}\n`", max_size=200))
def test_thinking_never_breaks_it(text: str) -> None:
    assert without_thinking(f"<think>{text}</think>\nAnswer").endswith("Answer") or "<think" in text


# -- the model -------------------------------------------------------------------------------------------------------


def test_a_copy_with_another_model_asks_that_one() -> None:
    first, second = ScriptedLLM(OBJECT), ScriptedLLM(OBJECT)
    block = FactExtractionMemoryBlock(llm=first)
    copied = block.model_copy(update={"llm": second})
    assert copied._asked().calls(second, 60.0, 2)
    assert block._asked().calls(first, 60.0, 2)
    assert block._asked() is block._asked()
    assert not block._asked().calls(first, 30.0, 2)


# -- memory does not feed on itself ----------------------------------------------------------------------------------


def test_what_memorys_own_tools_said_is_left_out() -> None:
    asked = ToolCallBlock(id="c1", name="search_memory", arguments={"query": "tea"})
    other = ToolCallBlock(id="c2", name="weather", arguments={})
    messages = [
        ChatMessage(role="assistant", blocks=[TextBlock(text="Let me look."), asked, other]),
        ChatMessage(role="tool", blocks=[ToolResultBlock(tool_call_id="c1", content="[f1] Ada likes tea.")]),
        ChatMessage(role="tool", blocks=[ToolResultBlock(tool_call_id="c2", content="sunny")]),
    ]
    found = transcript_of(messages, [4, 5, 6])
    assert "likes tea" not in found.text and "search_memory" not in found.text
    assert "[calls weather with {}]" in found.text and "sunny" in found.text
    assert found.seqs == {1: 4, 2: 6}
