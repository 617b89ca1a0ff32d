"""The recall benchmark on a small transcript: what it counts is right, and it says what it leaves out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import recall
from benchmarks.recall_data import Question, Turn, apollo13, locomo, measurable, normal, own, with_unrelated
from benchmarks.recall_plot import drawn
from benchmarks.recall_systems import Returned
from memory_engine import ChatMessage, blocks

OURS = ("fifo", "lexical") if hasattr(blocks, "VectorMemoryBlock") else ("fifo",)

SAID = [
    ("user", "Ada", "My sister Wilhelmina is allergic to hazelnuts, so please no praline at the party."),
    ("assistant", "Bot", "Noted, no hazelnuts for Wilhelmina."),
    ("user", "Ada", "The spare key to the boathouse lies under the blue flowerpot."),
    ("assistant", "Bot", "Yes."),
]
SMALL_TALK = [
    ("user", "Ada", f"Something else: I walked the dog around the lake, {number} times this month, and the weather was mild.")
    for number in range(60)
]


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    transcript = tmp_path / "party.jsonl"
    messages = [{"role": role, "name": name, "content": text} for role, name, text in [*SAID, *SMALL_TALK]]
    messages[0]["created_at"] = "2025-03-01T09:30:00+01:00"
    transcript.write_text(lines(*messages))
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        lines(
            {"question": "Who is allergic to hazelnuts?", "evidence": [[0, 1]], "category": "single"},
            {"question": "Where is the key to the boathouse?", "evidence": [2, 3]},
            {"question": "Was it really 59 times that I walked the dog?", "evidence": [63]},
            {"question": "Was it agreed?", "evidence": [3]},
            {"question": "What is the capital of Assyria?", "evidence": []},
        )
    )
    return "--transcript", str(transcript), "--questions", str(questions)


def run(tmp_path: Path, files: Sequence[str], *more: str) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    out, details = tmp_path / "out", tmp_path / "details.jsonl"
    recall.main([*files, "--budgets", "300,6000", "--ratio", "0.1", "--out", str(out), "--details", str(details), *more])
    data = json.loads((out / "recall.json").read_text())
    return data, [json.loads(line) for line in details.read_text().splitlines()], (out / "recall.txt").read_text()


def test_the_newest_messages_are_all_that_fifo_recalls(
    tmp_path: Path, files: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    data, details, text = run(tmp_path, files, "--systems", "fifo")
    assert text.strip() == capsys.readouterr().out.strip()
    small, large = data["results"]
    assert (small["budget"], large["budget"]) == (300, 6_000)
    # One question is left without evidence: "Yes." identifies no message.
    assert small["questions"] == large["questions"] == 3
    assert small["recall"] == pytest.approx(100 / 3, abs=0.01)
    assert (large["recall"], large["recall_strict"], large["all_evidence"]) == (100, 100, 100)
    assert large["by_category"]["single"] == 100
    assert small["violations"] == large["violations"] == 0
    assert 200 < small["most_tokens"] <= 300 < large["tokens"] < 6_000
    assert small["unanswerable"]["unrelated"] == {"questions": 41, "recalled_tokens": 0, "nothing_inserted": 100}
    assert any("2 turns of evidence were left out" in note for note in data["notes"])
    assert [line["found"] for line in details if line["budget"] == 300][:3] == [[False], [False], [True]]
    assert "evidence recall, %" in text and "33.3" in text


def test_the_vector_block_finds_what_fifo_has_lost(tmp_path: Path, files: tuple[str, ...]) -> None:
    data, _, _ = run(tmp_path, files, "--systems", ",".join(OURS))
    assert not any("left out: it" in note for note in data["notes"])
    for row in data["results"]:
        assert row["violations"] == 0
        if row["system"] != "FIFO of the newest":
            assert (row["system"], row["recall"]) == ("ours, lexical", 100)


def test_what_is_present_is_judged_by_whole_texts() -> None:
    texts = [normal(text) for text in ("the key  lies\nunder the pot", "the key lies", "in <memory> it is")]
    shown = [
        ChatMessage(role="system", content="10:00 Ada: the key lies under"),
        ChatMessage(role="user", content="the  pot; in &lt;memory> it is"),
    ]
    question = Question("Where?", ((0,), (1,), (2,), (1, 0)))
    answer = recall.judge(question, "one", texts, Returned(shown, 0.5, 0.1, 7))
    assert answer.found == (True, True, True, True)
    answer = recall.judge(question, "one", texts, Returned(shown[:1], 0.5, 0.1, 7))
    assert answer.found == (False, True, False, True)
    assert recall.judge(Question("?", ((0, 1),)), "one", texts, Returned(shown[:1], 0.5, 0.1, 7)).strictly == (False,)


def test_evidence_that_its_text_does_not_identify_is_left_out() -> None:
    turns = [
        Turn("user", text) for text in ("Take care, bye!", "All right.", "Then take care. Take care, bye!", "I live in Turin.")
    ]
    questions = [Question("a", ((0,), (3,))), Question("b", ((1,),)), Question("c", ((2,),)), Question("d", kind="adversarial")]
    found = measurable("one", turns, questions)
    assert [(question.text, question.evidence) for question in found.questions] == [("a", ((3,),)), ("c", ((2,),)), ("d", ())]
    assert found.dropped == 2


def test_apollo_13_is_whole_and_its_alternatives_stand_for_the_nearest_evidence() -> None:
    dataset = apollo13()
    [conversation] = dataset.conversations
    assert len(conversation.turns) == 10_876
    assert len(conversation.questions) == 40
    assert conversation.dropped == 0
    by_text = {question.text: question.evidence for question in conversation.questions}
    [perigee] = [evidence for text, evidence in by_text.items() if text.startswith("What was the predicted closest pass")]
    assert perigee == ((2941, 2942), (3255, 3256, 3478, 3757))
    assert {turn.role for turn in conversation.turns if turn.name in {"CDR", "LMP", "CMP"}} == {"assistant"}
    asked = with_unrelated(dataset).conversations[0].questions
    assert [question.kind for question in asked].count("unrelated") == 40


def test_locomo_is_read_as_it_is_published(tmp_path: Path) -> None:
    path = tmp_path / "locomo.json"
    conversation = {
        "speaker_a": "Ada",
        "speaker_b": "Ben",
        "session_1_date_time": "1:56 pm on 8 May, 2023",
        "session_1": [
            {"speaker": "Ben", "dia_id": "D1:1", "text": "I bought a red canoe yesterday."},
            {"speaker": "Ada", "dia_id": "D1:2", "text": "Look at this one!", "blip_caption": "a photo of a kayak"},
        ],
        "session_10_date_time": "9:00 am on 1 June, 2023",
        "session_10": [{"speaker": "Ada", "dia_id": "D10:1", "text": "My canoe is sold at last."}],
        "session_11_date_time": "9:00 am on 2 June, 2023",
    }
    asked = [
        {"question": "What was bought?", "answer": "a canoe", "evidence": ["D1:1; D1:2", "D:10:1", "D9:9"], "category": 1},
        {"question": "What did Ada buy?", "adversarial_answer": "a canoe", "evidence": ["D1:1"], "category": 5},
        {"question": "Would Ada row?", "answer": "no", "evidence": [], "category": 3},
    ]
    path.write_text(json.dumps([{"sample_id": "conv-1", "conversation": conversation, "qa": asked}]))
    [found] = locomo(path).conversations
    assert [(turn.role, turn.name) for turn in found.turns] == [("assistant", "Ben"), ("user", "Ada"), ("user", "Ada")]
    assert found.turns[1].text == "Look at this one! [shared an image: a photo of a kayak]"
    assert [str(turn.at) for turn in found.turns] == [
        "2023-05-08 13:56:00+00:00",
        "2023-05-08 13:56:01+00:00",
        "2023-06-01 09:00:00+00:00",
    ]
    assert [(q.kind, q.category, q.evidence) for q in found.questions] == [
        ("answerable", "multi-hop", ((0,), (1,), (2,))),
        ("adversarial", "adversarial", ()),
    ]


@pytest.mark.parametrize(
    ("transcript", "questions", "reason"),
    [
        ("{", "", "line 1 is not JSON"),
        (lines({"role": "system", "content": "x"}), "", 'needs "role"'),
        (lines({"role": "user", "content": "x", "created_at": "today"}), "", '"created_at" is a time'),
        (lines({"role": "user", "content": "x"}), lines({"question": "y"}), 'needs "question"'),
        (lines({"role": "user", "content": "x"}), lines({"question": "y", "evidence": [1]}), "1 is no message"),
        (lines({"role": "user", "content": "x"}), lines({"question": "y", "evidence": [[True]]}), "True is no message"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(tmp_path: Path, transcript: str, questions: str, reason: str) -> None:
    paths = tmp_path / "transcript.jsonl", tmp_path / "questions.jsonl"
    for path, text in zip(paths, (transcript, questions), strict=True):
        path.write_text(text)
    with pytest.raises(SystemExit, match=reason):
        own(*paths)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--systems", "mem0"], "there is no system 'mem0'"),
        (["--embeddings", "ada"], "there is no embedding 'ada'"),
        (["--budgets", "many"], "budgets are whole numbers"),
        (["--ratio", "1.5"], "ratios over 0"),
        (["--transcript", "x.jsonl"], "belong together"),
        (["--no-apollo"], "nothing to measure"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], reason: str) -> None:
    with pytest.raises(SystemExit, match=reason):
        recall.main(arguments)


def test_a_fall_of_recall_is_noted_and_the_plot_shows_one_embedding() -> None:
    def row(budget: int, found: bool) -> recall.Row:
        answer = recall.Answer(Question("?", ((0,),)), "one", (found,), (found,), 10, 0, 0.1, 0.0)
        return recall.Row("set", "ours, lexical", 0.1, budget, [answer], [0.1])

    assert recall.falling([row(1_000, False), row(2_000, True), row(4_000, True)]) == []
    note, single = recall.falling([row(1_000, True), row(2_000, False)])
    assert "1 of 1 answers lack evidence that was there at 1000" in single
    assert note == "set: recall of ours, lexical fell from 100.0 to 0.0 between 1000 and 2000"
    rows = [
        {"system": system, "ratio": ratio, "recall": 1.0}
        for system in ("ours, lexical", "LlamaIndex tuned, MiniLM", "LlamaIndex tuned, wordllama")
        for ratio in (0.1, 0.7)
    ]
    assert [row["system"] for row in drawn(rows)] == ["ours, lexical", "LlamaIndex tuned, MiniLM"]


def test_questions_can_be_put_instead_of_asked(tmp_path: Path, files: tuple[str, ...]) -> None:
    asked, _, _ = run(tmp_path, files, "--systems", "lexical")
    put, details, _ = run(tmp_path, files, "--systems", ",".join(OURS), "--ask", "put")
    assert put["plan"]["put"] and not asked["plan"]["put"]
    # The newest messages are all that can be evidence there and not here.
    assert [row["system"] for row in put["results"]] == ["ours, lexical"] * 2
    for before, after in zip(asked["results"], put["results"], strict=True):
        assert (after["recall"], after["violations"]) == (100, 0)
        assert after["asked"] == before["asked"]
    # What was put for one question is gone for the next.
    foreign = [line["recalled"] for line in details if line["kind"] == "unrelated"]
    assert foreign.count(0) > 0.9 * len(foreign)


def test_questions_can_be_asked_within_instructions(tmp_path: Path, files: tuple[str, ...]) -> None:
    data, details, text = run(tmp_path, files, "--systems", "lexical", "--long")
    assert {row["dataset"] for row in data["results"]} == {"party, long questions"}
    assert all(len(line["question"].split()) > 40 for line in details)
    assert len({line["question"] for line in details}) == len(details) / 2
    assert [row["nothing_recalled"] for row in data["results"]] == [0, 0]
    assert "nothing, %" in text
