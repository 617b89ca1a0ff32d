"""Counts are tiktoken's own, never too low above the exact size, and any tokenizer that misbehaves is named."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Sized
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_engine import tokens
from memory_engine.errors import TokenizerError
from memory_engine.messages import (
    AudioBlock,
    ChatMessage,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    VideoBlock,
)
from memory_engine.tokens import BIG_TEXT, TokenCounter

SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
"""What tiktoken expects of o200k_base.tiktoken (tiktoken_ext/openai_public.py)."""

counter = TokenCounter()


def whole(text: str) -> int:
    """The count without pieces."""
    return len(tokens._load().encode_ordinary(text))


def words(text: str) -> int:
    return len(text.split())


class TestRanks:
    def test_they_are_those_of_tiktoken(self) -> None:
        lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in tokens._ranks().items())
        assert hashlib.sha256(b"".join(lines)).hexdigest() == SHA256

    def test_pattern_and_special_tokens_are_those_of_tiktoken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from tiktoken_ext import openai_public

        monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
        expected = openai_public.o200k_base()
        assert expected["pat_str"] == tokens._PATTERN
        assert expected["special_tokens"] == tokens._SPECIAL

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Hello, world!", [13225, 11, 2375, 0]),
            ("tiktoken is great!", [83, 8251, 2488, 382, 2212, 0]),
            ("2 + 2 = 4", [17, 659, 220, 17, 314, 220, 19]),
        ],
    )
    def test_known_encodings(self, text: str, expected: list[int]) -> None:
        assert tokens._load().encode_ordinary(text) == expected
        assert counter.text(text) == len(expected)

    def test_loading_needs_neither_network_nor_home_nor_temporary_folder(self) -> None:
        program = """
import sys
def refuse(event, arguments):
    assert not event.startswith("socket.") and event not in ("os.mkdir", "tempfile.mkstemp", "tempfile.mkdtemp"), event
sys.addaudithook(refuse)
from memory_engine.tokens import TokenCounter
assert "tiktoken" not in sys.modules
print(TokenCounter().text("Hello, world!"))
"""
        environment = {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-B", "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout == "4\n"

    def test_many_threads_load_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = Mock(wraps=tokens._ranks)
        monkeypatch.setattr(tokens, "_encoding", None)
        monkeypatch.setattr(tokens, "_ranks", made)
        barrier, counts = threading.Barrier(8), []

        def count() -> None:
            barrier.wait()
            counts.append(TokenCounter().text("Hello, world!"))

        threads = [threading.Thread(target=count) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts == [4] * 8
        made.assert_called_once()


class TestText:
    def test_nothing_costs_nothing(self) -> None:
        assert counter.text("") == 0

    def test_special_tokens_are_plain_text(self) -> None:
        assert counter.text("<|endoftext|>") > 1

    def test_lone_surrogates_count(self) -> None:
        assert counter.text("\ud800") > 0

    @pytest.mark.parametrize(
        "text",
        [
            " " * 1_000_000,
            "\n" * 1_000_000,
            " \n" * 500_000,
            " " * 999_999 + "x",
            "a" * 1_000_000,
            "A" * 1_000_000,
            "0" * 1_000_000,
            "=" * 1_000_000,
            "中" * 300_000,
            "😀" * 300_000,
            "e" + "\u0301" * 300_000,
            "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000)),
        ],
        ids=lambda text: f"{text[0]!r} and {len(text)}",
    )
    def test_giant_runs_end_soon_and_never_cost_less_than_the_whole(self, text: str) -> None:
        # What takes quadratic time here takes minutes, and ends at the time limit of the tests.
        counted = counter.text(text)
        sample = text[:200_000]
        assert whole(sample) <= counter.text(sample) <= whole(sample) + 40
        assert counted >= counter.text(text[: len(text) // 2])

    def test_giant_random_text(self) -> None:
        rng = random.Random(7)
        text = "".join(chr(rng.choice((rng.randrange(0x20, 0xD800), rng.randrange(0xE000, 0x110000)))) for _ in range(400_000))
        assert counter.text(text) >= whole(text)

    @given(
        st.lists(
            st.sampled_from(
                ["\n", "\r\n", "\n\n", " ", "/", "//", "\t", "\u2028", "\x1c", "\xa0", "a", "Ünï", "don't", "1", ".", "<", "日"]
            )
            | st.text(max_size=5),
            min_size=20,
        )
    )
    def test_lines_are_counted_one_by_one_exactly(self, parts: list[str]) -> None:
        text = "".join(parts)
        assert counter.text(text) == whole(text)
        assert counter.text(text) == whole(text), "remembered"

    def test_giant_prose_is_exact(self) -> None:
        rng = random.Random(2)
        parts = ["the ", "cat", ". ", "\n", "\n\n", "1999", "don't", "  ", "日本語", "。", "Ünïcode ", "—", "x=1;", "\t", "/"]
        text = "".join(rng.choices(parts, k=150_000))
        assert len(text) > 4 * BIG_TEXT
        assert counter.text(text) == whole(text)

    @given(st.text(), st.text(), st.sampled_from("az09AZ日語 é'ſ\u0301²\u0660_-\n"), st.sampled_from(" \n\t.,0aA'。\u3000("))
    def test_boundaries_change_no_count(self, before: str, after: str, left: str, right: str) -> None:
        text = before + left + right + after
        for cut in (match.end() for match in tokens._BOUNDARY.finditer(text)):
            assert whole(text[:cut]) + whole(text[cut:]) == whole(text), (text[:cut], text[cut:])

    @given(
        st.lists(
            st.sampled_from(["a", "b ", " ", "\n", "0", ".", "é", "日", "'s", "😀", "A", "\u0301"]), min_size=1, max_size=60
        )
    )
    def test_pieces_cover_the_text(self, parts: list[str]) -> None:
        text = "".join(parts)
        original = tokens.BIG_TEXT, tokens._TAIL
        try:
            tokens.BIG_TEXT, tokens._TAIL = 8, 4
            pieces = list(tokens._pieces(text))
            counted = counter.text(text)
        finally:
            tokens.BIG_TEXT, tokens._TAIL = original
        assert "".join(text[start:end] for start, end, _ in pieces) == text
        assert all(0 < end - start <= 8 for start, end, _ in pieces)
        assert counted >= whole(text)


class TestTokenizerFn:
    @pytest.mark.parametrize(
        "tokenizer_fn",
        [words, str.split, partial(words), lambda text: tuple(text.split()), lambda text: dict.fromkeys(text.split()).keys()],
    )
    def test_counts_and_tokens(self, tokenizer_fn: Callable[[str], int | Sized]) -> None:
        assert TokenCounter(tokenizer_fn).text("one two three") == 3

    @pytest.mark.parametrize("result", [-1, True, None, 1.5, object(), {"input_ids": [1, 2]}])
    def test_what_is_no_count_is_refused(self, result: Any) -> None:
        with pytest.raises(TokenizerError, match="tokenizer_fn returned"):
            TokenCounter(lambda _: result).text("x")

    def test_an_asynchronous_function_is_refused(self) -> None:
        async def count(text: str) -> int:
            return len(text)

        with pytest.raises(TokenizerError, match="asynchronous"):
            TokenCounter(count).text("x")

    def test_a_panic_is_an_error_that_names_the_tokenizer(self) -> None:
        class PanicException(BaseException):
            pass

        def panics(text: str) -> int:
            raise PanicException("overflow")

        with pytest.raises(TokenizerError, match=r"panics raised PanicException: overflow") as caught:
            TokenCounter(panics).text("x")
        assert isinstance(caught.value.__cause__, PanicException)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
    def test_what_is_meant_for_the_program_passes(self, error: type[BaseException]) -> None:
        def stops(text: str) -> int:
            raise error

        with pytest.raises(error):
            TokenCounter(stops).text("x")

    def test_errors_of_the_default_are_of_the_same_kind(self) -> None:
        with pytest.raises(TokenizerError):
            counter.text(None)


class TestMessage:
    count = TokenCounter(words, message_overhead=4)

    @pytest.mark.parametrize(
        ("message", "expected"),
        [
            (ChatMessage(role="user", content="one two"), 4 + 2),
            (ChatMessage(role="user", content=None), 4),
            (ChatMessage(role="user", content="one", name="Ada Lovelace"), 4 + 1 + 2),
            (ChatMessage(role="user", content="one", metadata={"note": "costs nothing"}), 4 + 1),
            (
                ChatMessage(role="user", content="one", metadata={"kept": {"a": ["x", "y z"]}, "counted": [["kept", "a", 1]]}),
                4 + 1 + 2,
            ),
            (
                ChatMessage(role="user", content="one", metadata={"kept": {"a": "x y"}, "counted": [["kept"], ["kept", "a"]]}),
                4 + 1 + 3 + 2,
            ),
            (ChatMessage(role="user", content="one", metadata={"counted": "yes"}), 4 + 1),
            (
                ChatMessage(
                    role="user", content="one", metadata={"counted": [["gone"], ["counted", 7], ["counted", "x"], [[]], 1]}
                ),
                4 + 1,
            ),
            (ChatMessage(role="tool", content="one two", tool_call_id="call 1"), 4 + 2 + 2),
            (ChatMessage(role="tool", blocks=[ToolResultBlock(tool_call_id="c", content="one two")]), 4 + 1 + 2),
            (ChatMessage(role="assistant", blocks=[ThinkingBlock(text="one two", signature="s")]), 4 + 2 + 1),
            (ChatMessage(role="assistant", blocks=[ToolCallBlock(id="c", name="f", arguments="one two")]), 4 + 1 + 1 + 2),
            (ChatMessage(role="assistant", blocks=[ToolCallBlock(id="c", name="f", arguments={"a": 1, "b": 2})]), 4 + 2 + 4),
        ],
    )
    def test_costs(self, message: ChatMessage, expected: int) -> None:
        assert self.count.message(message) == expected

    @pytest.mark.parametrize(
        ("block", "expected"), [(ImageBlock, 1024), (AudioBlock, 1024), (VideoBlock, 2048), (DocumentBlock, 2048)]
    )
    def test_media_cost_an_estimate_whatever_their_size(self, block: type[ImageBlock], expected: int) -> None:
        message = ChatMessage(role="user", blocks=[block(data=b"x" * 10_000), TextBlock(text="one")])
        assert self.count.message(message) == 4 + expected + 1

    def test_estimates_can_be_set(self) -> None:
        message = ChatMessage(role="user", blocks=[ImageBlock(url="https://example.com/a.png")])
        assert TokenCounter(words, message_overhead=1, image=10).message(message) == 11

    @given(st.lists(st.text(), min_size=2, max_size=4))
    def test_several_texts_cost_the_most_of_joined_and_apart(self, texts: list[str]) -> None:
        message = ChatMessage(role="user", blocks=[TextBlock(text=text) for text in texts])
        cost = counter.message(message) - 4
        assert cost == max(sum(map(counter.text, texts)), counter.text(message.content))

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
        )
    )
    def test_arguments_cost_at_least_their_json(self, value: Any) -> None:
        call = ToolCallBlock(id="c", name="f", arguments={"value": value})
        cost = counter.message(ChatMessage(role="assistant", blocks=[call])) - 4 - 2
        assert cost >= counter.text(json.dumps(call.arguments, ensure_ascii=False))


class TestOffTheLoop:
    async def where(self, texts: list[str]) -> set[int]:
        threads = set()

        def count(text: str) -> int:
            threads.add(threading.get_ident())
            return len(text)

        blocks: list[ContentBlock] = [TextBlock(text=text) for text in texts]
        assert await TokenCounter(count).count_messages([ChatMessage(role="user", blocks=[block]) for block in blocks]) == [
            4 + len(text) for text in texts
        ]
        return threads

    async def test_short_texts_are_counted_at_once(self) -> None:
        assert await self.where(["one", "two"]) == {threading.get_ident()}

    async def test_long_texts_are_counted_in_a_thread(self) -> None:
        assert threading.get_ident() not in await self.where(["one", "x" * (BIG_TEXT + 1)])
        assert threading.get_ident() not in await self.where(["x" * BIG_TEXT, "x"])

    async def test_text_async(self) -> None:
        assert await counter.text_async("Hello, world!") == 4
        assert await counter.text_async(" " * 200_000) >= whole(" " * 200_000)

    async def test_the_first_count_loads_off_the_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        load, loaded_in = tokens._load, []

        def watched() -> Any:
            loaded_in.append(threading.get_ident())
            return load()

        monkeypatch.setattr(tokens, "_encoding", None)
        monkeypatch.setattr(tokens, "_load", watched)
        assert await TokenCounter().count_messages([ChatMessage(role="user", content="Hello, world!")]) == [8]
        assert loaded_in
        assert threading.get_ident() not in loaded_in

    async def test_errors_come_through(self) -> None:
        with pytest.raises(TokenizerError):
            await TokenCounter(lambda _: -1).count_messages([ChatMessage(role="user", content="x" * (BIG_TEXT + 1))])


class TestIdentity:
    def test_is_computed_lazily_and_once(self) -> None:
        tokenizer_fn = Mock(side_effect=len)
        lazy = TokenCounter(tokenizer_fn)
        tokenizer_fn.assert_not_called()
        assert lazy.identity == lazy.identity
        assert tokenizer_fn.call_count == len(tokens._PROBES)

    def test_is_equal_for_counters_that_count_alike(self) -> None:
        assert TokenCounter().identity == TokenCounter().identity
        assert TokenCounter(words).identity == TokenCounter(partial(words)).identity

    def test_differs_by_name_counts_and_sizes(self) -> None:
        class Tokenizer:
            def __init__(self, factor: int) -> None:
                self.factor = factor

            def __call__(self, text: str) -> int:
                return self.factor * len(text)

        counters = [
            TokenCounter(),
            TokenCounter(message_overhead=3),
            TokenCounter(image=85),
            TokenCounter(words),
            TokenCounter(len),
            TokenCounter(Tokenizer(1)),
            TokenCounter(Tokenizer(2)),
        ]
        assert len({each.identity for each in counters}) == len(counters)

    def test_names_the_tokenizer(self) -> None:
        assert TokenCounter().identity.startswith("tiktoken.o200k_base:")
        assert TokenCounter(words).identity.startswith(f"{__name__}.words:")
