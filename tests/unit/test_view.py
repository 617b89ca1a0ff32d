"""Examples of what a model is shown of the stored messages."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from memory_engine.messages import (
    ChatMessage,
    ContentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
)
from memory_engine.view import CopyCache, ViewStep, build_view, extend_view, shorten, shortener


@dataclass(frozen=True)
class Shown:
    seq: int
    message: ChatMessage
    tokens: int

    @property
    def role(self) -> str:
        return self.message.role

    @property
    def pinned(self) -> bool:
        return self.message.pinned

    @property
    def calls(self) -> tuple[str, ...]:
        return tuple(call.id for call in self.message.tool_calls)

    @property
    def results(self) -> tuple[str, ...]:
        return self.message.tool_results


def count(message: ChatMessage) -> int:
    """Four tokens for the message, one for three characters of any text in it."""
    texts = [message.content, message.tool_call_id or ""]
    for block in message.blocks:
        if isinstance(block, ToolCallBlock):
            texts += [block.id, block.name, str(block.arguments)]
        elif isinstance(block, ToolResultBlock):
            texts += [block.tool_call_id, block.content]
    return 4 + sum(-(-len(text) // 3) for text in texts)


def call(*ids: str, text: str | None = None) -> ChatMessage:
    blocks: list[ContentBlock] = [TextBlock(text=text)] if text else []
    blocks += (ToolCallBlock(id=id_, name="look") for id_ in ids)
    return ChatMessage(role="assistant", blocks=blocks)


def result(id_: str, text: str = "found") -> ChatMessage:
    return ChatMessage(role="tool", tool_call_id=id_, content=text)


def results(*ids: str) -> ChatMessage:
    return ChatMessage(role="tool", blocks=[ToolResultBlock(tool_call_id=id_, content=f"for {id_}") for id_ in ids])


def say(role: str, text: str = "words") -> ChatMessage:
    return ChatMessage.model_validate({"role": role, "content": text})


USER, ANSWER = say("user"), say("assistant")


def entries(*messages: ChatMessage) -> list[Shown]:
    named = [message.model_copy(update={"id": f"m{seq}"}) for seq, message in enumerate(messages)]
    return [Shown(seq, message, count(message)) for seq, message in enumerate(named)]


def view(*messages: ChatMessage, limit: int = 1000, closed: bool = False) -> tuple[ViewStep, ...]:
    return build_view(entries(*messages), count, max_tool_result_tokens=limit, closed=closed)


def ids(steps: tuple[ViewStep, ...]) -> list[str]:
    return [str(message.id) for step in steps for message in step.messages]


def test_plain_messages_keep_their_identity_and_count() -> None:
    stored = entries(say("system"), USER, call("a"), result("a"), ANSWER)
    steps = build_view(stored, lambda message: pytest.fail("counted again"), max_tool_result_tokens=1000)
    assert [message for step in steps for message in step.messages] == [entry.message for entry in stored]
    assert all(a is b.message for a, b in zip([m for s in steps for m in s.messages], stored, strict=True))
    assert [step.seqs for step in steps] == [(0,), (1,), (2, 3), (4,)]
    assert [(step.turn, step.pinned, step.is_user, step.role) for step in steps] == [
        (0, True, False, "system"),
        (1, False, True, "user"),
        (1, False, False, "assistant"),
        (1, False, False, "assistant"),
    ]
    assert steps[2].total == sum(steps[2].tokens) == stored[2].tokens + stored[3].tokens


def test_results_follow_their_call_in_its_order() -> None:
    assert ids(view(USER, call("a", "b"), result("b"), USER, result("a"))) == ["m0", "m1", "m4", "m2", "m3"]


def test_an_open_call_is_hidden_while_its_turn_lasts() -> None:
    assert ids(view(USER, call("a", "b", text="Let me see"), result("a"))) == ["m0"]
    assert ids(build_view(entries(call("a"), ANSWER), count, max_tool_result_tokens=9, turn_seq=None)) == ["m1"]


def test_a_later_turn_closes_it_and_the_call_is_dropped() -> None:
    steps = view(USER, call("a", "b", text="Let me see"), result("a"), USER)
    assert ids(steps) == ["m0", "m1", "m2", "m3"]
    copy = steps[1].messages[0]
    assert [block.id for block in copy.tool_calls] == ["a"]
    assert (copy.content, copy.partial, steps[1].tokens[0]) == ("Let me see", True, count(copy))


def test_what_consisted_of_unanswered_calls_disappears() -> None:
    thinking = ChatMessage(role="assistant", blocks=[ThinkingBlock(text="hm"), ToolCallBlock(id="a", name="look")])
    assert ids(view(USER, thinking, call("b"), call("c", text="One moment"), USER)) == ["m0", "m3", "m4"]
    assert ids(view(USER, call("a"), closed=True)) == ["m0"]
    picture = ChatMessage(role="assistant", blocks=[ImageBlock(url="x:y"), ToolCallBlock(id="a", name="look")])
    assert ids(view(USER, picture, USER)) == ["m0", "m1", "m2"]


def test_turn_seq_closes_calls_when_its_message_is_not_among_the_entries() -> None:
    stored = entries(call("a", text="hm"), USER)[:1]
    assert ids(build_view(stored, count, max_tool_result_tokens=9, turn_seq=1)) == ["m0"]


def test_duplicate_and_orphan_results_are_hidden() -> None:
    assert ids(view(result("a"), USER, call("a"), result("a"), result("a", "again"), result("b"), ANSWER)) == [
        "m1",
        "m2",
        "m3",
        "m6",
    ]


def test_what_left_the_fifo_is_not_joined_by_what_is_still_in_it() -> None:
    stored = entries(USER, call("a"), result("a"), call("b", text="One moment"), call("c"), result("c"), result("b"))
    shown = build_view(stored, count, max_tool_result_tokens=1000, horizon=4, closed=True)
    assert [step.seqs for step in shown] == [(0,), (1, 2), (3,), (4, 5)]


def test_a_reused_id_is_matched_in_its_own_turn() -> None:
    assert ids(view(USER, call("a"), result("a"), USER, call("a"), result("a"))) == [f"m{n}" for n in range(6)]


def test_results_for_two_calls_in_one_message_are_shared_out() -> None:
    steps = view(USER, call("a"), call("b"), results("b", "a", "x"))
    assert [step.seqs for step in steps] == [(0,), (1, 2, 3)]
    shown = steps[1].messages
    assert [message.tool_results or [block.id for block in message.tool_calls] for message in shown] == [
        ["a"],
        ("a",),
        ["b"],
        ("b",),
    ]
    assert all(message.partial == (message.role == "tool") for message in shown)
    assert [count(message) for message in shown] == list(steps[1].tokens)


def test_several_results_in_one_message_stay_as_they_are() -> None:
    stored = entries(USER, call("a", "b"), results("b", "a"))
    steps = build_view(stored, count, max_tool_result_tokens=1000)
    assert steps[1].messages[1] is stored[2].message


def test_long_results_are_shortened_once() -> None:
    stored = entries(USER, call("a"), result("a", "data " * 500))
    cache: CopyCache = {}
    first = build_view(stored, count, max_tool_result_tokens=50, cache=cache)
    again = build_view(stored, lambda message: pytest.fail("counted again"), max_tool_result_tokens=50, cache=cache)
    assert first == again
    assert 40 <= first[1].tokens[1] == count(first[1].messages[1]) <= 50
    assert first[1].messages[1] is again[1].messages[1]


class TestShorten:
    def test_the_middle_goes_and_the_marker_says_how_much(self) -> None:
        message = result("a", "start " + "x" * 3000 + " end")
        short = shorten(message, 100, count)
        text = short.content
        assert text.startswith("start ") and text.endswith(" end")
        missing = re.search(r"\[… (\d+) tokens left out …\]", text)
        assert missing is not None
        assert abs(int(missing[1]) - (count(message) - count(short))) < 30
        assert short.partial and 90 <= count(short) <= 100
        assert short.tool_call_id == "a"

    def test_a_message_that_fits_is_returned_itself(self) -> None:
        message = result("a")
        assert shorten(message, 100, count) is message

    @pytest.mark.parametrize("role", ["user", "system"])
    def test_user_and_system_messages_are_never_cut(self, role: str) -> None:
        message = say(role, "x" * 1000)
        assert shorten(message, 10, count) is message

    def test_calls_stay_and_texts_are_cut_alike(self) -> None:
        message = call("a", text="x" * 3000)
        short = shorten(message, 60, count)
        assert short.tool_calls == message.tool_calls
        assert count(short) <= 60
        both = ChatMessage(
            role="tool",
            blocks=[ToolResultBlock(tool_call_id="a", content="x" * 900), ToolResultBlock(tool_call_id="b", content="y" * 60)],
        )
        first, second = shorten(both, 100, count).blocks
        assert isinstance(first, ToolResultBlock) and isinstance(second, ToolResultBlock)
        assert len(first.content) < 300 and second.content == "y" * 60

    def test_below_the_marker_it_is_as_small_as_possible(self) -> None:
        assert shorten(result("a", "x" * 1000), 3, count).content == "[…]"
        assert shorten(result("a", "xy"), 3, count).content == "xy"
        assert shorten(ChatMessage(role="tool", tool_call_id="a"), 1, count).content == ""

    def test_shortening_again_keeps_one_marker_with_the_sum(self) -> None:
        message = result("a", "start " + "x" * 3000 + " end")
        again = shorten(shorten(message, 200, count), 80, count)
        found = re.findall(r"(\d+) tokens left out", again.content)
        assert len(found) == 1
        assert abs(int(found[0]) - (count(message) - count(again))) < 30
        assert again.content.startswith("start") and again.content.endswith("end") and count(again) <= 80

    def test_a_marker_that_was_stored_is_text_like_any_other(self) -> None:
        text = "a" * 300 + "[… 7 tokens left out …]" + "b" * 300
        assert "[… 7 tokens" not in shorten(result("a", text), 50, count).content

    def test_giant_texts_are_not_counted_whole_again_and_again(self) -> None:
        counted = []

        def counting(message: ChatMessage) -> int:
            counted.append(len(message.content))
            return count(message)

        shorten(result("a", "x" * 3_000_000), 200, counting, tokens=1_000_005)
        assert sum(counted) < 50_000

    def test_shortener_counts_and_remembers(self) -> None:
        calls = []

        def counting(message: ChatMessage) -> int:
            calls.append(message)
            return count(message)

        short = shortener(counting)
        message = result("a", "x" * 1000).model_copy(update={"id": "m"})
        copy, tokens = short(message, 50)
        assert tokens == count(copy) <= 50
        before = len(calls)
        assert short(message, 50) == (copy, tokens)
        assert len(calls) == before
        assert short(result("a", "x" * 1000), 50)[1] <= 50

    def test_shortener_keeps_parts_of_one_message_apart(self) -> None:
        short = shortener(count)
        parts = [
            ChatMessage(role="tool", blocks=[ToolResultBlock(tool_call_id=id_, content=id_ * 900)], id="m", partial=True)
            for id_ in ("a", "b")
        ]
        assert [short(part, 50)[0].tool_results for part in parts] == [("a",), ("b",)]


def test_a_view_grows_as_it_would_be_built_anew() -> None:
    before = entries(say("system"), USER, call("1"), result("1"), ANSWER)
    everything = entries(say("system"), USER, call("1"), result("1"), ANSWER, USER, say("system"), ANSWER)
    grown = extend_view(build_view(before, count, max_tool_result_tokens=1000), everything[len(before) :])
    assert grown == build_view(everything, count, max_tool_result_tokens=1000)
    assert extend_view((), everything[:2]) == build_view(everything[:2], count, max_tool_result_tokens=1000)


@pytest.mark.parametrize("message", [call("2"), result("1")])
def test_a_view_does_not_grow_by_calls_and_results(message: ChatMessage) -> None:
    before = entries(USER, call("1"), result("1"))
    after = entries(USER, call("1"), result("1"), message)
    assert extend_view(build_view(before, count, max_tool_result_tokens=1000), after[-1:]) is None
