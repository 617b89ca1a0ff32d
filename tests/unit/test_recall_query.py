"""What is looked for: the question in a long text, else all of it; and before it, what was said."""

from __future__ import annotations

import pytest

from memory_engine import ChatMessage
from memory_engine.blocks.vector.query import Query, probe_words, query_of
from memory_engine.blocks.vector.words import Words

BEFORE = (
    "You are a careful assistant with access to the conversation history. Read everything slowly, think step by step, "
    "never invent facts, keep the answer short and precise, and mention the date on which something was said."
)
ASKED = "Where did Joanna find the turtles?"


def asked(text: str) -> Query:
    return query_of((ChatMessage(role="user", content=text),), (), 5)


def put(*texts: str) -> Query:
    """The query of a conversation in which user and assistant spoke in turn, the user last."""
    roles = ["user" if (len(texts) - place) % 2 else "assistant" for place in range(len(texts))]
    return query_of(None, [ChatMessage(role=role, content=text) for role, text in zip(roles, texts, strict=True)], 5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        f"{BEFORE} {ASKED}",
        f"{ASKED} {BEFORE}",
        f"{BEFORE}\n{ASKED}\n{BEFORE}",
        f"{BEFORE} This is the question: {ASKED} {BEFORE}",
        f"{BEFORE}\n\n- {ASKED}",
    ],
)
def test_a_long_text_is_about_what_it_asks(text: str) -> None:
    (first, weight), (all_of_it, less) = asked(text)
    assert first.removeprefix("- ") == ASKED
    assert all_of_it == text.strip()
    assert weight == 1.0 > less > 0
    words = probe_words(asked(text), Words())
    assert [word for word in words if words[word] == 1.0] == ["joanna", "find", "turtl"]


@pytest.mark.parametrize(
    ("before", "question"),
    [
        (
            (
                "Du bist ein sorgfältiger Assistent. Lies den ganzen Verlauf, erfinde nichts, antworte knapp, nenne Datum, "
                "Ort, Quelle, Namen, Zeugen, Gründe, Zweifel, Widersprüche, Lücken und Folgen."
            ),
            "Wo fand Johanna die Schildkröten?",
        ),
        (
            "你是一个细心的助手，请先阅读全部历史记录，然后逐步思考，不要编造事实，回答要简短准确。",
            "乔安娜在哪里找到乌龟？",
        ),
        (
            "أنت مساعد دقيق اقرأ السجل كله بعناية وفكر خطوة بخطوة ولا تخترع شيئا وأجب بإيجاز واذكر التاريخ والمكان والمصدر.",
            "أين وجدت جوانا السلاحف؟",
        ),
    ],
)
def test_questions_of_other_languages_are_seen(before: str, question: str) -> None:
    assert asked(f"{before} {question}")[0] == (question, 1.0)


@pytest.mark.parametrize(
    "request_",
    ["Where did Joanna find the turtles", "At what price did Joanna sell the turtles", "Did Joanna keep the turtles"],
)
def test_a_question_without_its_mark_is_known_by_how_it_begins(request_: str) -> None:
    assert asked(f"{BEFORE} Request: {request_}.")[0][0] == f"{request_}."
    # "Do not ask" begins no question, and in a message that was put, these words may begin a story.
    plain = f"{BEFORE} Do not ask for clarification."
    assert asked(plain) == [(plain, 1.0)]
    assert put(f"{BEFORE} {request_}.")[0] == (f"{BEFORE} {request_}.", 1.0)


@pytest.mark.parametrize("text", [ASKED, f"We went to the lake. {ASKED}", BEFORE, f"{BEFORE} What do you think?"])
def test_short_texts_and_those_that_ask_nothing_of_their_own_stay_whole(text: str) -> None:
    assert asked(text) == [(text, 1.0)]


def test_a_question_that_needs_what_stands_before_its_colon_keeps_it() -> None:
    assert asked(f"{BEFORE} About the turtles in Lisbon: when?")[0][0] == "About the turtles in Lisbon: when?"


def test_the_newest_user_message_comes_first_and_what_led_to_it_hardly_counts() -> None:
    asked_short, asked_long = ("Who bought the red canoe?", 1.0), (ASKED, 1.0)
    short = put("We saw turtles.", "How nice!", asked_short[0])
    long = put("We saw turtles.", "How nice!", f"{BEFORE} {ASKED}")
    assert (short[0], long[0]) == (asked_short, asked_long)
    for before in (short[1:], long[2:]):
        assert [text for text, _ in before] == ["How nice!", "We saw turtles."]
        assert [weight for _, weight in before] == pytest.approx([0.1, 0.05])


def test_a_message_that_does_not_stand_alone_asks_on() -> None:
    query = put("Hello!", "Hello!", ASKED, "Let me see.", "I mean, when?", "Yes?", "And where?")
    # The window holds five messages, and the question stands alone.
    assert query[0] == (f"{ASKED}\nI mean, when?\nAnd where?", 1.0)
    assert [text for text, _ in query[1:]] == ["Yes?", "Let me see."]
    assert put("Thanks!") == [("Thanks!", 1.0)]


def test_what_the_assistant_said_since_is_not_what_is_asked() -> None:
    messages = [ChatMessage(role="user", content=ASKED), ChatMessage(role="assistant", content="I shall look it up at once.")]
    assert [text for text, _ in query_of(None, messages, 5)] == [ASKED, "I shall look it up at once."]
    assert query_of(None, messages[1:], 5) == [("I shall look it up at once.", 1.0)]


def test_nothing_said_is_no_query() -> None:
    assert query_of(None, (), 5) == []
    assert asked(" \n ") == []


UNITS = ["?", " ", "\n", "? ", "Who? ", '." ', "：", "。", "x", "）", '"', "」", "? \u3000", "。」x", "*", "汉", "é", "\ufdfa"]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("before", [BEFORE, "猫はどこですか。" + BEFORE, f'{BEFORE} "Yes."'])
def test_any_text_can_be_asked(unit: str, before: str) -> None:
    """In a time that does not grow with its length: a pattern that reads a run again and again would take minutes."""
    run = unit * (100_000 // len(unit))
    for text in (f"{before} {run} {ASKED}", f"{before} {run}"):
        assert asked(text)[-1][0] == text.strip()
        assert put("Hello.", "Hello.", text)[0][1] == 1.0
        assert len(probe_words(asked(text), Words())) <= 48


def test_of_a_very_long_text_its_ends_are_asked() -> None:
    filler = " ".join(f"filler{number}" for number in range(20_000))
    for text in (f"{ASKED} {filler}", f"{filler} {ASKED}", f"{filler} {ASKED}\n{BEFORE}"):
        assert asked(text)[0][0].endswith(ASKED)
        words = probe_words(asked(text), Words())
        assert {"joanna", "turtl"} <= set(words)
        assert "filler10000" not in words
