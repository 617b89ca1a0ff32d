"""Conversations with questions whose evidence is known: LoCoMo, Apollo 13, and transcripts of one's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from itertools import starmap
from pathlib import Path
from typing import Any, Literal

from memory_engine import ChatMessage
from memory_engine.demo.transcript import SPACECRAFT, load

Role = Literal["user", "assistant"]
Kind = Literal["answerable", "adversarial", "unrelated"]

SHORTEST = 12
"""Texts of fewer characters ("Yes, please.") are found anywhere; they prove nothing."""
INSTRUCTIONS = Path(__file__).parent / "instructions.txt"
UNRELATED = Path(__file__).parent / "unrelated.txt"
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
_DIALOGUE_ID = re.compile(r"D:?(\d+):(\d+)")
_SESSION = re.compile(r"session_(\d+)")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: Role
    text: str
    name: str | None = None
    at: datetime | None = None

    def message(self) -> ChatMessage:
        return ChatMessage(role=self.role, content=self.text, name=self.name, created_at=self.at)

    @property
    def spoken(self) -> str:
        """The text behind its speaker, for systems whose messages have no name."""
        return f"{self.name}: {self.text}" if self.name else self.text


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and the turns that answer it.

    `evidence` holds one tuple for each thing to be found: the turn that says it, then turns that say the same.
    """

    text: str
    evidence: tuple[tuple[int, ...], ...] = ()
    kind: Kind = "answerable"
    category: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One memory's content, and what it is asked afterwards. `dropped` counts evidence that cannot be measured."""

    name: str
    turns: tuple[Turn, ...]
    questions: tuple[Question, ...]
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Dataset:
    """Conversations that are reported together."""

    name: str
    conversations: tuple[Conversation, ...]

    def part(self, *, conversations: int, questions: int) -> Dataset:
        """A smaller set: the first conversations, and of each kind of question evenly spread ones."""
        kept = [replace(one, questions=_spread(one.questions, questions)) for one in self.conversations[:conversations]]
        return replace(self, conversations=tuple(kept))


def _spread(questions: Sequence[Question], count: int) -> tuple[Question, ...]:
    chosen: list[Question] = []
    for kind in dict.fromkeys(question.kind for question in questions):
        of_kind = [question for question in questions if question.kind == kind]
        chosen += of_kind[:: max(1, -(-len(of_kind) // count))]
    return tuple(chosen)


# -- evidence that can be measured -------------------------------------------------------------------------------------


def normal(text: str) -> str:
    """The text as it is compared: white space counts as one blank, and a defused `<` as what it was."""
    return " ".join(text.replace("&lt;", "<").split())


def measurable(name: str, turns: Sequence[Turn], questions: Sequence[Question]) -> Conversation:
    """The conversation without evidence that its text does not identify.

    Whether a turn was brought back is seen by its text in the context. That proves nothing when the text is shorter than
    `SHORTEST` or stands in another turn as well; then the turn is left out of the evidence, for every system alike, and so is
    a question that has no other. (None of the evidence of LoCoMo and Apollo 13 is of that kind.)
    """
    texts = [normal(turn.text) for turn in turns]
    # One search through everything that was said: a text that stands in two turns is found twice.
    everything = "\n".join(texts)
    usable: dict[int, bool] = {}

    def identified(index: int) -> bool:
        if index not in usable:
            text = texts[index]
            first = everything.find(text)
            usable[index] = len(text) >= SHORTEST and everything.find(text, first + 1) < 0
        return usable[index]

    kept, dropped = [], 0
    for question in questions:
        groups = [tuple(index for index in group if identified(index)) for group in question.evidence]
        # Without the turn itself, what says the same may still be found; strictly the group then has nothing to find.
        found = tuple(group for group in groups if group)
        dropped += len(groups) - len(found)
        if found or question.kind != "answerable":
            kept.append(replace(question, evidence=found))
    return Conversation(name, tuple(turns), tuple(kept), dropped)


def with_unrelated(dataset: Dataset, *, path: Path = UNRELATED, limit: int | None = None) -> Dataset:
    """The same with questions on which no conversation has anything to say."""
    asked = tuple(Question(line, kind="unrelated") for line in _written(path)[:limit])
    kept = [replace(one, questions=(*one.questions, *asked)) for one in dataset.conversations]
    return replace(dataset, conversations=tuple(kept))


def lengthened(dataset: Dataset, *, path: Path = INSTRUCTIONS) -> Dataset:
    """The same questions within instructions as agents write them: the n-th question of a conversation within the n-th."""
    written = _written(path)

    def long(place: int, question: Question) -> Question:
        text = question.text.strip()
        instruction = written[place % len(written)]
        return replace(question, text=instruction.format(question=text, request=text.rstrip("?. ")))

    kept = [replace(one, questions=tuple(starmap(long, enumerate(one.questions)))) for one in dataset.conversations]
    return replace(dataset, name=f"{dataset.name}, long questions", conversations=tuple(kept))


def _written(path: Path) -> list[str]:
    """The lines of a file without comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


# -- LoCoMo ------------------------------------------------------------------------------------------------------------


def locomo(path: Path) -> Dataset:
    """LoCoMo (Maharana et al., 2024) as its authors publish it. CC BY-NC: read from where you have it, not shipped here.

    Speaker A is the user. What is on a shared image is appended to the text, as the authors do for models without eyes.
    Evidence in one string is split ("D8:6; D9:17"), ids that no turn has are left out, and with them a question that has
    no other evidence. Category 5 asks about the wrong person: there is nothing to find.
    """
    read = json.loads(path.read_text(encoding="utf-8"))
    return Dataset("LoCoMo", tuple(_locomo_conversation(str(one["sample_id"]), one) for one in read))


def _locomo_conversation(name: str, sample: Mapping[str, Any]) -> Conversation:
    said = sample["conversation"]
    turns: list[Turn] = []
    places: dict[str, int] = {}
    sessions = sorted(int(found[1]) for key in said if (found := _SESSION.fullmatch(key)))
    for number in sessions:
        begin = datetime.strptime(said[f"session_{number}_date_time"], "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
        for later, turn in enumerate(said[f"session_{number}"]):
            caption = f" [shared an image: {turn['blip_caption']}]" if turn.get("blip_caption") else ""
            role: Role = "user" if turn["speaker"] == said["speaker_a"] else "assistant"
            places[turn["dia_id"]] = len(turns)
            turns.append(Turn(role, turn["text"] + caption, turn["speaker"], begin + timedelta(seconds=later)))
    return measurable(name, turns, list(_locomo_questions(sample["qa"], places)))


def _locomo_questions(asked: Sequence[Mapping[str, Any]], places: Mapping[str, int]) -> Iterator[Question]:
    for one in asked:
        found = [f"D{session}:{turn}" for text in one["evidence"] for session, turn in _DIALOGUE_ID.findall(text)]
        indexes = [places[dialogue_id] for dialogue_id in dict.fromkeys(found) if dialogue_id in places]
        adversarial = one["category"] == 5
        kind: Kind = "adversarial" if adversarial else "answerable"
        evidence = () if adversarial else tuple((index,) for index in indexes)
        yield Question(str(one["question"]), evidence, kind, CATEGORIES.get(one["category"], str(one["category"])))


# -- Apollo 13 ---------------------------------------------------------------------------------------------------------


def apollo13() -> Dataset:
    """The air-to-ground loop of Apollo 13 with forty questions. The ground is the user, the crew the assistant.

    A question's `alt` are utterances that repeat an answer (a read-back, a later report); each stands for the evidence that
    it is nearest to, the earlier one when it lies in the middle.
    """
    turns = [
        Turn("assistant" if said.name in SPACECRAFT else "user", said.content, said.name, said.created_at) for said in load()
    ]
    path = files("memory_engine") / "data" / "apollo13-questions.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    questions = [Question(one["question"], _with_alternatives(one), category=one["kind"]) for one in lines]
    return Dataset("Apollo 13", (measurable("apollo13", turns, questions),))


def _with_alternatives(one: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    groups: dict[int, list[int]] = {index: [index] for index in one["evidence"]}
    for alternative in one.get("alt", ()):
        nearest = min(groups, key=lambda index: (abs(index - alternative), index))
        groups[nearest].append(alternative)
    return tuple(map(tuple, groups.values()))


# -- one's own ---------------------------------------------------------------------------------------------------------


def own(transcript: Path, questions: Path) -> Dataset:
    """A transcript and questions in the JSONL form that benchmarks/RECALL.md describes."""
    turns = [_own_turn(line, f"{transcript.name}, line {number}") for number, line in _json_lines(transcript)]
    asked = [_own_question(line, len(turns), f"{questions.name}, line {number}") for number, line in _json_lines(questions)]
    conversation = measurable(transcript.stem, turns, asked)
    return Dataset(transcript.stem, (conversation,))


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise SystemExit(f"{path.name}, line {number} is not JSON: {error}") from error


def _own_turn(line: Any, where: str) -> Turn:
    if (
        not isinstance(line, Mapping)
        or line.get("role") not in {"user", "assistant"}
        or not isinstance(line.get("content"), str)
    ):
        raise SystemExit(f'{where}: needs "role" ("user" or "assistant") and "content" (a text).')
    at = line.get("created_at")
    try:
        moment = None if at is None else datetime.fromisoformat(at)
    except (TypeError, ValueError) as error:
        raise SystemExit(f'{where}: "created_at" is a time such as 2025-03-01T09:30:00+00:00 ({error}).') from error
    if moment is not None and moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return Turn(line["role"], line["content"], line.get("name"), moment)


def _own_question(line: Any, turns: int, where: str) -> Question:
    if not isinstance(line, Mapping) or not isinstance(line.get("question"), str) or not isinstance(line.get("evidence"), list):
        raise SystemExit(f'{where}: needs "question" (a text) and "evidence" (a list of messages, counted from 0).')
    groups = [entry if isinstance(entry, list) else [entry] for entry in line["evidence"]]
    for index in (index for group in groups for index in group):
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < turns:
            raise SystemExit(f"{where}: {index!r} is no message; the transcript has {turns}, counted from 0.")
    evidence = tuple(map(tuple, filter(None, groups)))
    return Question(line["question"], evidence, "answerable" if evidence else "unrelated", str(line.get("category", "")))
