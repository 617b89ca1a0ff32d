"""What texts are found by: words of every script, folded and stemmed."""

from __future__ import annotations

import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from memory_engine.blocks.vector import words as words_module
from memory_engine.blocks.vector.words import Words
from memory_engine.errors import BlockDefinitionError

ENGLISH, GERMAN, NONE = Words(), Words("german"), Words("none")


def shared(words: Words, query: str, text: str) -> set[str]:
    """By what a query finds a text."""
    return set(words.content(query)) & set(words.count(text))


@pytest.mark.parametrize(
    ("language", "query", "text"),
    [
        ("english", "adopting dogs?", "She adopted a DOG."),
        ("english", "cafe", "the Café on the corner"),
        ("english", "Zoë", "zoe called"),
        ("english", "naïve", "nai\u0308ve"),
        ("english", "O'Brien", "o\u2019brien was there"),
        ("english", "ＦＵＬＬ　ｗｉｄｔｈ", "full width"),
        ("english", "flight 1202", "alarm 1202, again"),
        ("english", "٣٤", "the numbers ٣٤"),
        ("english", "max_tokens", "set max_tokens to 5"),
        ("english", "status of the flight", '[flight_status {"number": 5}]'),
        ("english", "straße", "STRASSE"),
        ("de", "Welche Häuser?", "ein Haus am See"),
        ("german", "Bucher", "viele Bücher"),
        ("fr", "chevaux", "le CHEVAL, un chevaux"),
        ("russian", "книги", "читал книгу"),
        ("russian", "йогурт", "ЙОГУРТ"),
        ("es", "corazon", "un CORAZÓN"),
        ("none", "tea", "Tea!"),
        ("english", "東京", "私は東京に住んでいます"),
        ("english", "猫の名前", "私の猫は三毛です"),
        ("english", "過敏", "我對花生過敏。"),
        ("english", "カレーライス", "昨日カレーを食べた"),
        ("english", "김치찌개", "오늘 김치찌개를 먹었다"),
        ("english", "กรุงเทพ", "ฉันอยู่ที่กรุงเทพมหานคร"),
        ("english", "ဘာသာ", "မြန်မာဘာသာစကား"),
        ("english", "iPhone15を買った", "iphone15が好き"),
    ],
)
def test_a_query_finds_the_text(language: str, query: str, text: str) -> None:
    assert shared(Words(language), query, text)


def test_text_without_spaces_becomes_overlapping_pieces() -> None:
    assert set(NONE.count("東京都")) == {"東京", "京都", "東", "京", "都"}
    assert set(NONE.count("カレー")) == {"カレ", "レー"}
    assert set(NONE.count("猫")) == {"猫"}
    assert set(NONE.count("กขคง")) == {"กขค", "ขคง"}
    assert dict(NONE.count("tea茶tea")) == {"tea": 2, "茶": 1}


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("我的猫叫什么名字？", "昨天我们养了一只猫。"),
        ("谁的車？", "車停在院子裡"),
        ("猫の名前は何ですか", "うちには猫がいます"),
        ("どこに住んでいますか", "父は大阪に住みたい"),
        ("개 이름이 뭐야?", "우리 개는 바둑이야"),
        ("개는?", "개 한 마리"),
        ("茶", "我喜欢喝茶"),
    ],
)
def test_words_of_one_character_are_found(query: str, text: str) -> None:
    assert shared(ENGLISH, query, text)


@pytest.mark.parametrize("query", ["这是什么？", "你们是谁", "どこですか", "それは何ですか？", "我们可以吗", "為什麼？"])
def test_questions_of_grammar_alone_ask_for_nothing_that_is_said(query: str) -> None:
    assert not shared(ENGLISH, query, "我们的车是红色的，这是什么？私はそれを赤い車と呼びます。何ですか")


def test_characters_of_longer_words_are_not_asked_for_one_by_one() -> None:
    assert set(NONE.content("東京都")) == {"東京", "京都"}
    assert set(NONE.content("我的生日是哪天")) == {"生日", "天"}


def test_accents_of_other_scripts_make_other_words() -> None:
    assert not shared(Words("russian"), "й", "и")
    assert set(NONE.count("가")) == {"가"}, "Hangul is left composed"
    assert not shared(NONE, "か", "が")


def test_words_are_counted() -> None:
    assert dict(ENGLISH.count("Dogs and a dog, the dog's")) == {"dog": 3, "and": 1, "a": 1, "the": 1, "s": 1}


def test_function_words_are_stored_but_not_asked_for() -> None:
    assert ENGLISH.count("to be or not to be")
    assert not ENGLISH.content("What did you do with the, and how was it?")
    assert set(ENGLISH.content("What is the name of my dog?")) == {"name", "dog"}
    assert not GERMAN.content("Wo war er, und was ist das?")
    assert set(GERMAN.content("für wen ist der Kuchen")) == {"kuch"}
    assert not Words("fr").content("À qui est-ce, et où était-il ?")


def test_questions_in_other_languages_lose_their_function_words_too() -> None:
    assert set(ENGLISH.content("Wo sind die Schlüssel?")) == {"schlussel"}
    assert set(ENGLISH.content("¿Dónde está la casa de Ana?")) == {"casa", "ana"}
    assert set(ENGLISH.content("When did the war begin, and did the man die?")) == {"war", "begin", "man", "die"}
    assert set(GERMAN.content("What is the name of the dog?")) == {"nam", "dog"}
    assert set(NONE.content("What is that dog called?")) == {"dog", "called"}
    assert set(Words("none", ()).content("what is that")) == {"what", "is", "that"}


@pytest.mark.parametrize("language", ["english", "none"])
@pytest.mark.parametrize(
    ("question", "content"),
    [
        ("Var är nyckeln?", "nyckeln"),
        ("Hvor er nøglen?", "nøglen"),
        ("Hvorfor har du ikke nøkkelen?", "nøkkelen"),
        ("Missä avaimet ovat?", "avaimet"),
        ("Куда мы положили ключ?", "положили ключ"),
        ("Gdzie jest klucz?", "klucz"),
        ("Anahtar nerede?", "anahtar"),
        ("Hol van a kulcs?", "kulcs"),
        ("Unde este cheia?", "cheia"),
    ],
)
def test_a_short_question_is_about_its_content_word(language: str, question: str, content: str) -> None:
    words = Words(language)
    assert words.content(question) == words.count(content)


@pytest.mark.parametrize("query", ["war memorial", "die casting machines", "Han Solo", "men at work", "Ready to go?"])
def test_one_word_does_not_make_a_query_one_in_another_language(query: str) -> None:
    assert ENGLISH.content(query) == ENGLISH.count(query.replace(" at ", " ").replace(" to ", " "))


def test_function_words_can_be_replaced() -> None:
    words = Words("english", function_words=["Dog", "ÜBER"])
    assert set(words.content("the dog über all")) == {"the", "all"}
    assert set(Words("english", function_words=()).content("the")) == {"the"}


def test_a_code_and_a_name_are_the_same_language() -> None:
    assert Words("DE").language == Words("German").language == "german"
    assert Words("de").count("Häuser") == Words("german").count("Häuser")


@pytest.mark.parametrize("language", ["klingon", "", "en-US"])
def test_an_unknown_language_names_the_known_ones(language: str) -> None:
    with pytest.raises(BlockDefinitionError, match=r'english.*"none"'):
        Words(language)


@pytest.mark.parametrize("text", ["", "   \n", "?!… — 🚀🎉", "\ud800", "\x00"])
def test_text_without_words_has_none(text: str) -> None:
    assert not ENGLISH.count(text)


def test_what_is_very_long_is_cut() -> None:
    [word] = ENGLISH.count("x" * 100_000)
    assert len(word) <= 64
    assert sum(ENGLISH.count("word " * 1_000_000).values()) <= 50_000


@given(st.text(max_size=60), st.sampled_from([ENGLISH, GERMAN, NONE]))
def test_any_text_is_cut_the_same_way_however_it_is_written(text: str, words: Words) -> None:
    found = words.count(text)
    assert all(word and count > 0 for word, count in found.items())
    assert words.count(unicodedata.normalize("NFD", text)) == words.count(unicodedata.normalize("NFC", text))
    assert not set(words.content(text)) - set(found)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyzäöüßéñ ABCÄÖ", max_size=40))
def test_capitals_make_no_difference(text: str) -> None:
    assert NONE.count(text) == NONE.count(text.upper().lower()) or "ß" in text.lower()
    assert NONE.count(text.casefold()) == NONE.count(text)


@given(st.lists(st.sampled_from(["tea", "東京", "Zoë", "1202", "ไทย"]), min_size=1, max_size=8))
def test_every_word_of_a_text_finds_it(parts: list[str]) -> None:
    text = " ".join(parts)
    assert all(shared(ENGLISH, part, text) for part in parts)


# -- texts of any length ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["word{} ", "слово{} ", "{}汉字"])
def test_of_a_long_question_its_ends_are_read(text: str) -> None:
    content = Words("none").content("".join(text.format(number) for number in range(50_000)))
    assert {"0", "word0", "слово0"} & set(content)
    assert {"49999", "word49999", "слово49999"} & set(content)
    assert len(content) <= 1_000


def test_heaps_of_marks_are_never_put_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalising takes a time that is the square of their number: seconds for 100,000 characters, on the event loop."""
    heaps: list[int] = []

    def normalize(form: Any, text: str) -> str:
        heaps.extend(len(heap) for heap in regex.findall(r"\p{M}+", text))
        return unicodedata.normalize(form, text)

    monkeypatch.setattr(words_module, "unicodedata", SimpleNamespace(normalize=normalize))
    for read in (Words().count, Words().content):
        assert read("olga cafe" + "\u0301\u0323" * 50_000)["cafe"] == 1
    assert max(heaps) <= 8
