"""A memory block as a user would write it: it keeps the log of a mission. Its fields are its state, nothing else is needed."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, Field

from memory_engine import BaseMemoryBlock, ChatMessage, ContentBlock, TextBlock

PHASES = {
    "liftoff": r"The clock is running",
    "Earth orbit": r"GO orbit",
    "on the way to the Moon": r"GO for TLI",
    "docked with the lunar module": r"hard docked",
    "emergency": r"Houston, we've had a problem",
    "the lunar module is the lifeboat": r"LM lifeboat",
    "on a free return": r"Burn's complete",
    "fast way home": r"proceed\. Here's our residuals",
    "service module dropped": r"one whole side of that spacecraft missing",
    "lunar module dropped": r"Farewell, Aquarius",
    "under parachutes": r"chutes look good",
    "splashdown": r"Splashdown at this time",
}
WATCHED = {
    "problem": r"problem",
    "oxygen": r"oxygen|\bO2\b|\b02 (tank|quantity|flow|heater|press)",
    "tank": r"tank",
    "venting": r"venting",
    "fuel cell": r"fuel cell",
    "undervolt": r"undervolt",
    "battery": r"batter(y|ies)",
    "explosion": r"explosion",
    "lifeboat": r"lifeboat",
    "free return": r"free[ -]return",
    "midcourse": r"midcourse",
    "gimbal lock": r"gimbal lock",
    "lithium hydroxide": r"lithium",
    "CO2": r"C[O0]2\b",
    "cold": r"cold",
    "sleep": r"asleep|sleep",
    "Moon": r"Moon",
    "jettison": r"jettison",
    "Iwo Jima": r"Iwo",
    "chutes": r"chutes",
    "splashdown": r"splash",
}
_PHASES = {phase: re.compile(pattern) for phase, pattern in PHASES.items()}
_WATCHED = {word: re.compile(pattern, re.IGNORECASE) for word, pattern in WATCHED.items()}
_SENTENCE = re.compile(r"[^.?!]+[.?!]*")


class Heard(BaseModel):
    """A sentence, who said it, and when (mission time)."""

    t: str
    speaker: str
    text: str

    def __str__(self) -> str:
        return f"{self.t} {self.speaker} “{self.text}”"


class Word(BaseModel):
    """How often a watched word was said, and the sentences in which it was said first and last."""

    times: int = 0
    first: Heard
    last: Heard


class MissionLog(BaseMemoryBlock[list[ContentBlock]]):
    """Remembers the phases of the mission, who spoke how often, and where each watched word was said first and last.

    When there is not enough room for all of it, what the question does not ask for goes first.
    """

    name: str = "mission_log"
    priority: int = 1

    absorbed: int = 0
    until: str = "000:00:00"
    phases: dict[str, str] = Field(default_factory=dict)
    spoken: dict[str, int] = Field(default_factory=dict)
    words: dict[str, Word] = Field(default_factory=dict)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        for message in messages:
            time, speaker = str(message.metadata["t"]), message.name or "?"
            self.absorbed += 1
            self.until = time
            self.spoken[speaker] = self.spoken.get(speaker, 0) + 1
            for phase, pattern in _PHASES.items():
                if phase not in self.phases and pattern.search(message.content):
                    self.phases[phase] = time
            for word, pattern in _WATCHED.items():
                if found := pattern.search(message.content):
                    self._note(word, Heard(t=time, speaker=speaker, text=sentence(message.content, found.start())))

    def _note(self, word: str, heard: Heard) -> None:
        known = self.words.setdefault(word, Word(first=heard, last=heard))
        known.times += 1
        known.last = heard

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> list[ContentBlock]:
        if not self.absorbed:
            return []
        asked = " ".join(message.content for message in self.context.query or ())
        spoken = ", ".join(f"{speaker} {count:,}" for speaker, count in sorted(self.spoken.items(), key=lambda item: -item[1]))
        phases = "; ".join(f"{time} {phase}" for phase, time in self.phases.items())
        items: list[ContentBlock] = [
            TextBlock(text=f"Log up to {self.until}, {self.absorbed:,} utterances: {spoken}.", value=9.0),
            TextBlock(text=f"Phases: {phases}.", value=8.0),
        ]
        for age, (word, known) in enumerate(sorted(self.words.items(), key=lambda item: item[1].last.t)):
            line = f"- {word}, once: {known.first}"
            if known.times > 1:
                line = f"- {word}, {known.times:,} times. First: {known.first} Last: {known.last}"
            # A word of the question is worth most, among the others the one that was heard last.
            items.append(TextBlock(text=line, value=7.0 if _WATCHED[word].search(asked) else age / len(self.words)))
        return items


def sentence(text: str, position: int, *, longest: int = 110) -> str:
    """The sentence of `text` that contains `position`; of a long one, `longest` characters around it."""
    found = next((part for part in _SENTENCE.finditer(text) if part.start() <= position < part.end()), None)
    if found is None:
        return text[:longest]
    start, end = found.span()
    if end - start > longest:
        start = max(start, min(position - longest // 2, end - longest))
        end = start + longest
    part = text[start:end].strip()
    return ("…" if start > found.start() else "") + part + ("…" if end < found.end() else "")
