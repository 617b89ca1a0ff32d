"""What the demo plays: the air-to-ground transcript of Apollo 13 as messages, and the moments at which it pauses."""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Literal

from memory_engine import ChatMessage

LAUNCH = datetime(1970, 4, 11, 19, 13, tzinfo=UTC)
SPACECRAFT = frozenset({"CDR", "CMP", "LMP", "SC"})

MISSION = """\
Apollo 13, the third flight that was to land on the Moon. Launch: 11 April 1970, 19:13 UTC. Times are mission time, hhh:mm:ss.
Crew (user): CDR James Lovell, CMP Jack Swigert, LMP Fred Haise. Houston (assistant): CC, the capsule communicator.
Command and service module: Odyssey. Lunar module: Aquarius. Planned landing site: Fra Mauro.
You listen to the air-to-ground loop. Answer the flight director's questions from it; say at which time something was said."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A pause: after the utterance `index`, the `question` is asked; `words` of the mission log belong to it."""

    index: int
    title: str
    question: str
    words: tuple[str, ...] = ()


MOMENTS = (
    Moment(82, "Liftoff was 13 minutes ago: in orbit", "Did everything go well from liftoff to orbit?"),
    Moment(
        2199,
        "“Houston, we've had a problem”",
        "What is the problem, and what was said before about oxygen and its tanks?",
        ("problem", "oxygen", "tank"),
    ),
    Moment(
        3218,
        "On the way home: the free-return burn is complete",
        "When was the free return first planned, and how did the LM become a lifeboat?",
        ("free return", "lifeboat"),
    ),
    Moment(
        10734,
        "“Farewell, Aquarius”: the lunar module is jettisoned",
        "What was said about the explosion, the lithium hydroxide canisters and the cold?",
        ("explosion", "lithium hydroxide", "cold"),
    ),
    Moment(
        10875,
        "Splashdown",
        "Where is the splashdown, which ship waits there, and are the chutes good?",
        ("splashdown", "Iwo Jima", "chutes"),
    ),
)


def load(limit: int | None = None) -> list[ChatMessage]:
    """The first `limit` utterances, or all 10,876: the crew speaks as the user, everybody on the ground as the assistant."""
    path = files("memory_engine") / "data" / "apollo13.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    return [_message(json.loads(line)) for line in lines[:limit]]


def moments(count: int) -> list[Moment]:
    """The moments within the first `count` utterances; the last utterance always is one."""
    reached = [moment for moment in MOMENTS if moment.index < count]
    if count and (not reached or reached[-1].index != count - 1):
        reached.append(
            Moment(
                count - 1,
                "The last utterance that was played",
                "What is going on, and what was the last problem?",
                ("problem",),
            )
        )
    return reached


def batches(messages: Sequence[ChatMessage], ends: Collection[int]) -> Iterator[list[ChatMessage]]:
    """What was said within one minute goes together; no batch goes on past one of the `ends` (numbers of messages)."""
    batch: list[ChatMessage] = []
    for number, message in enumerate(messages):
        if batch and (number in ends or _minute(message) != _minute(batch[-1])):
            yield batch
            batch = []
        batch.append(message)
    if batch:
        yield batch


def _minute(message: ChatMessage) -> str:
    return str(message.metadata["t"]).rpartition(":")[0]


def _message(utterance: dict[str, str]) -> ChatMessage:
    role: Literal["user", "assistant"] = "user" if utterance["speaker"] in SPACECRAFT else "assistant"
    hours, minutes, seconds = map(int, utterance["t"].split(":"))
    return ChatMessage(
        role=role,
        name=utterance["speaker"],
        content=utterance["text"],
        created_at=LAUNCH + timedelta(hours=hours, minutes=minutes, seconds=seconds),
        metadata={"t": utterance["t"]},
    )
