from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_engine.messages import ChatMessage, ImageBlock, TextBlock, ToolCallBlock, ToolResultBlock
from memory_engine.truncation import cut_text, truncate


def words(text: str) -> int:
    return len(text.split())


def characters(text: str) -> int:
    return len(text)


def item(text: str, value: float | None = None) -> TextBlock:
    return TextBlock(text=text, value=value)


# -- texts -------------------------------------------------------------------------------------------------------


def test_a_text_ends_at_a_line_when_lines_use_the_room() -> None:
    assert truncate("one two\nthree four\nfive six", 1, words) == "one two\nthree four"
    assert truncate("one two\nthree four\nfive six", 2, words) == "one two\nthree four"
    assert truncate("one two\nthree four\nfive six", 3, words) == "one two"


def test_a_text_without_a_fitting_line_ends_at_a_word() -> None:
    assert truncate("one two three four", 2, words) == "one two"
    assert truncate("one two three four\nfive", 3, words) == "one two"


def test_a_short_heading_alone_is_not_worth_the_rest() -> None:
    text = "Title\n" + "word " * 100
    left = truncate(text, 50, words)
    assert left is not None
    assert words(left) == 51


def test_a_text_without_words_ends_at_a_character() -> None:
    assert truncate("記憶は大切です", 3, characters) == "記憶は大"
    assert truncate("ab " + "x" * 100, 50, characters) == "ab " + "x" * 50


@pytest.mark.parametrize("tokens", [4, 5, 1000])
def test_a_text_that_must_lose_everything_is_left_out(tokens: int) -> None:
    assert truncate("one two three four", tokens, words) is None


def test_a_text_that_need_not_lose_anything_stays() -> None:
    assert truncate("one  two ", 0, words) == "one  two "
    assert cut_text("one two", 2, words) == "one two"
    assert cut_text("one two", 0, words) == ""
    assert cut_text("one two", -1, words) == ""


@given(st.text(max_size=300), st.integers(0, 300))
def test_a_text_is_always_a_beginning_and_cheap_enough(text: str, tokens: int) -> None:
    left = truncate(text, tokens, characters)
    if left is not None:
        assert text.startswith(left)
        assert characters(left) <= max(0, characters(text) - tokens)


# -- items -------------------------------------------------------------------------------------------------------


def test_the_items_of_least_value_go_first_and_the_others_keep_their_order() -> None:
    items = [item("a a", 0.5), item("b b", 0.9), item("c c", 0.1), item("d d", 0.7)]
    assert truncate(items, 1, words) == [items[0], items[1], items[3]]
    assert truncate(items, 3, words) == [items[1], items[3]]
    assert truncate(items, 6, words) == [items[1]]
    assert truncate(items, 8, words) is None
    assert len(items) == 4, "the content given is not changed"


def test_items_without_a_value_go_before_all_others_and_the_last_of_equals_first() -> None:
    items = [item("a", -5.0), item("b"), item("c"), item("d", 0.0)]
    assert truncate(items, 1, words) == [items[0], items[1], items[3]]
    assert truncate(items, 2, words) == [items[0], items[3]]
    assert truncate(items, 3, words) == [items[3]]


def test_a_medium_counts_as_free_so_that_text_goes_too() -> None:
    image = ImageBlock(url="https://example.org/a.png")
    items = [image, item("a a", 0.5), item("b b", 0.9)]
    assert truncate(items, 1, words) == [items[2]]


# -- messages ----------------------------------------------------------------------------------------------------


def test_the_oldest_messages_go_first() -> None:
    messages = [ChatMessage(role="user", content=text) for text in ("a a", "b b", "c c")]
    # A message costs about four tokens beside its text.
    assert truncate(messages, 6, words) == messages[1:]
    assert truncate(messages, 7, words) == messages[2:]
    assert truncate(messages, 13, words) is None
    assert truncate(messages, 0, words) == messages


def test_tool_calls_and_results_count_for_what_they_say() -> None:
    messages = [
        ChatMessage(role="assistant", blocks=[ToolCallBlock(id="1", name="find", arguments={"what": "a b c"})]),
        ChatMessage(role="tool", blocks=[ToolResultBlock(tool_call_id="1", content="x y z")]),
        ChatMessage(role="user", content="q"),
    ]
    assert truncate(messages, 4 + 1 + 4, words) == messages[1:]
    assert truncate(messages, 4 + 1 + 4 + 4 + 3, words) == messages[2:]


def test_the_tag_of_an_item_goes_with_it() -> None:
    items = [TextBlock(text="ab", tag="fact", value=float(n)) for n in range(10)]
    left = truncate(items, 80, characters)
    assert left == items[-5:], "each costs 16 characters with its tag and the end of its line"


@pytest.mark.parametrize("content", [[], None, 3, {"a": 1}])
def test_what_cannot_be_truncated_is_left_out(content: object) -> None:
    assert truncate(content, 1, words) is None  # type: ignore[type-var]
