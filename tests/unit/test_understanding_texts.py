"""Names in texts, and texts cut where a sentence ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_engine.blocks.understanding.mentions import Searched, folded, head_of, mentions
from memory_engine.blocks.understanding.sentences import clean, cut_at_sentence, one_line
from memory_engine.tokens import TokenCounter

TOKENS = TokenCounter().text


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ("Deven is here", "deven", True),
        ("is DEVEN here?", "Deven", True),
        ("Deven's plan", "Deven", True),
        ("(Deven)", "Deven", True),
        ("Devendra is here", "Deven", False),
        ("McDeven", "Deven", False),
        ("Devendra and Deven", "Deven", True),
        ("Main\n  Street", "main street", True),
        ("142 Main St", "42 Main St", False),
        ("42 Main Street", "42 Main St", False),
        ("die STRASSE", "Straße", True),
        ("ＡＤＡ", "Ada", True),
        ("我住在北京的西边", "北京", True),
        ("데번은 여기 있다", "데번", True),
        ("ดีวานอยู่ที่นี่", "ดีวาน", True),
        ("Zoë", "Zoe", False),
        ("snake_case", "snake", False),
        ("C++ and Rust", "C++", True),
        ("anything", "", False),
    ],
)
def test_names_are_found_as_words(text: str, name: str, found: bool) -> None:
    assert mentions(folded(text), folded(name)) is found


@given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=60))
def test_a_name_between_blanks_is_always_found(before: str, name: str, after: str) -> None:
    if folded(name):
        assert mentions(folded(f"{before} {name} {after}"), folded(name))


PIECES = st.lists(
    st.sampled_from(["a", "b", "ab", " ", ".", "_", "'", "北", "京", "데", "ี", "é", "\u0301", "1"]), max_size=8
).map("".join)


@given(PIECES, PIECES)
def test_looking_at_the_first_word_first_changes_nothing(text: str, name: str) -> None:
    name = folded(name)
    assert Searched.of(text).mentions(name, head_of(name)) is mentions(folded(text), name)


@given(PIECES, PIECES, PIECES)
def test_what_is_inside_is_found_either_way(before: str, name: str, after: str) -> None:
    name, text = folded(name), f"{before}{name}{after}"
    assert Searched.of(text).mentions(name, head_of(name)) is mentions(folded(text), name)


@pytest.mark.parametrize(
    ("text", "limit", "cut"),
    [
        ("One two. Three four. Five six.", 6, "One two. Three four. Five six."),
        ("One two. Three four. Five six.", 5, "One two. Three four."),
        ("One two! Three (four?) Five six.", 4, "One two! Three (four?)"),
        ('He said "no." Then he left.', 4, 'He said "no."'),
        ("A price of 3.50 is fine. Then more words.", 7, "A price of 3.50 is fine."),
        ("First line\nsecond line is long", 3, "First line"),
        ("1. Ada lives here\n2. Logan lives there", 5, "1. Ada lives here"),
        ("One two three four five", 3, "One two three"),
        ("One two.", 0, ""),
        ("", 5, ""),
    ],
)
def test_texts_end_with_a_sentence(text: str, limit: int, cut: str) -> None:
    assert cut_at_sentence(text, limit, words) == cut


def test_sentences_without_blanks_between_them() -> None:
    assert cut_at_sentence("我住在北京。他住在上海。", 7, len) == "我住在北京。"


def test_a_word_that_does_not_fit_is_cut() -> None:
    assert cut_at_sentence("abcdefgh", 3, len) == "abc"


@given(st.text(alphabet=st.sampled_from("ab .!?\n。"), max_size=200), st.integers(0, 60))
def test_what_is_cut_is_a_beginning_and_fits(text: str, limit: int) -> None:
    for count in (words, len, TOKENS):
        cut = cut_at_sentence(text, limit, count)
        assert count(cut) <= limit
        assert text.startswith(cut)
        if count(text) <= limit:
            assert cut == text


def test_ten_megabytes_are_cut_without_reading_them_all() -> None:
    seen: list[int] = []

    def count(text: str) -> int:
        seen.append(len(text))
        return words(text)

    assert words(cut_at_sentence("Word by word. " * 700_000, 50, count)) == 48
    assert max(seen) < 10_000


@given(st.text())
def test_cleaned_texts_can_be_stored_and_shown(text: str) -> None:
    cleaned = clean(text)
    cleaned.encode("utf-8")
    assert "\x00" not in cleaned
    assert cleaned == cleaned.strip()
    assert "\n" not in one_line(text)


def test_lone_surrogates_are_replaced() -> None:
    assert clean(" a\ud800b\x00\r\nc\u200b ") == "a?b\nc"
