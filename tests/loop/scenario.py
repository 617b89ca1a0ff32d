"""One conversation for every framework: an agent with two tools, 30 turns, three flushes and more, a fact that comes back.

A test turns what its framework sends to the model into our messages, asks `reply_to` what the model says, and turns that into
what its framework expects of a model. `reply_to` checks everything that it is shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from memory_engine import BaseMemoryBlock, ChatMessage, Limits, Memory, MemoryEngine
from memory_engine.tokens import TokenCounter

TURNS = 30
RESTART = 20
"""Before this turn the process is replaced by another."""
TOKEN_LIMIT = 1_200
RESERVED = 200
"""For what the framework itself adds: instructions, definitions of tools."""
CODE_WORD = "heliotrope-seven"
LIMITS = Limits(get=30.0, delivery=30.0, first_retry=0.01, last_retry=0.1, lease=30.0, poll=0.2)
FILLER = "There is more to tell about the journey, the weather and what was eaten on the way. " * 3


class CodeWordBlock(BaseMemoryBlock[str]):
    """Keeps what a user said their code word is."""

    name: str = "code_word"
    word: str = ""

    async def _aget(self, messages: Sequence[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return f"The user's code word is {self.word}." if self.word else ""

    async def _aput(self, messages: Sequence[ChatMessage]) -> None:
        for message in messages:
            if message.role == "user" and (found := re.search(r"My code word is ([a-z-]+)", message.content)):
                self.word = found[1]


def engine_at(uri: str, **settings: Any) -> MemoryEngine:
    """An engine as an application has one, small enough to flush often."""
    return MemoryEngine(
        **{
            "async_database_uri": uri,
            "token_limit": TOKEN_LIMIT,
            "reserved_tokens": RESERVED,
            "token_flush_size": 150,
            "memory_blocks": [CodeWordBlock()],
            "limits": LIMITS,
        }
        | settings
    )


def user_text(turn: int) -> str:
    """What the user says."""
    if turn == 0:
        return f"My code word is {CODE_WORD}. {FILLER}"
    if turn == TURNS - 1:
        return "What is my code word?"
    return f"Question {turn}: what is the weather in town {turn}, and what is {turn} plus 1? {FILLER}"


def weather(town: str) -> str:
    """A tool: the weather in a town."""
    return f"Sunny in {town}."


def add(first: int, second: int) -> str:
    """A tool: a sum."""
    return f"The sum is {first + second}."


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call of the scripted model."""

    id: str
    name: str
    arguments: dict[str, Any]

    @property
    def arguments_json(self) -> str:
        return json.dumps(self.arguments)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the scripted model says: a text, or calls."""

    text: str = ""
    calls: tuple[Call, ...] = ()


@dataclass(slots=True)
class Script:
    """The model: it checks what it is sent and answers by rule. `seen` counts what it was asked; `recalled` is whether it was
    shown the code word when it was asked for it; `problems` what was wrong.
    """

    budget: int = TOKEN_LIMIT
    seen: int = 0
    recalled: bool = False
    problems: list[str] = field(default_factory=list)

    def reply_to(self, sent: Sequence[ChatMessage]) -> Reply:
        """The reply to these messages, the framework's own instructions among them."""
        self.seen += 1
        self.problems += problems_of(sent, self.budget)
        turn = turn_of(sent)
        since = [message for message in sent[_last_user(sent) + 1 :] if message.role == "tool"]
        if turn == TURNS - 1:
            self.recalled = any(CODE_WORD in getattr(block, "text", "") for message in sent for block in message.blocks)
            return Reply(f"It is {CODE_WORD}." if self.recalled else "I do not know.")
        if turn % 3 == 0:
            return Reply(f"Answer to {turn}.")
        # One tool after the other in some turns, both at once in others.
        weather_call = Call(f"call-{turn}-w", "weather", {"town": f"town {turn}"})
        add_call = Call(f"call-{turn}-a", "add", {"first": turn, "second": 1})
        answered = sum(len(message.tool_results) for message in since)
        if turn % 3 == 1:
            return Reply(calls=(weather_call, add_call)) if not answered else Reply(f"Answer to {turn}, with tools.")
        if answered < 2:
            return Reply(calls=((weather_call, add_call)[answered],))
        return Reply(f"Answer to {turn}, with tools.")


def turn_of(sent: Sequence[ChatMessage]) -> int:
    """Which turn is being answered, by the newest user message."""
    text = sent[_last_user(sent)].content
    if "What is my code word?" in text:
        return TURNS - 1
    found = re.search(r"Question (\d+):", text)
    return int(found[1]) if found else 0


def _last_user(sent: Sequence[ChatMessage]) -> int:
    return max(place for place, message in enumerate(sent) if message.role == "user")


def problems_of(sent: Sequence[ChatMessage], budget: int) -> list[str]:
    """What a provider, or we, would refuse about a list of messages; empty when it is in order."""
    problems = []
    tokens = sum(map(TokenCounter().message, sent))
    if tokens > budget:
        problems.append(f"{tokens} tokens in a budget of {budget}")
    talk = [message for message in sent if message.role not in ("system", "developer")]
    if not talk or talk[0].role != "user":
        problems.append(f"it begins with {talk[0].role if talk else 'nothing'}")
    waiting: set[str] = set()
    for message in talk:
        if message.role == "tool":
            answers = set(message.tool_results)
            if not answers <= waiting:
                problems.append(f"results without calls: {sorted(answers - waiting)}")
            waiting -= answers
            continue
        calls = {call.id for call in message.tool_calls}
        # A model's calls may stand in several messages in a row; anything else has to wait for the results.
        if waiting and not calls:
            problems.append(f"calls without results before a {message.role} message: {sorted(waiting)}")
        waiting |= calls
    if waiting:
        problems.append(f"calls without results at the end: {sorted(waiting)}")
    return problems


async def check_history(memory: Memory, *, turns: int = TURNS) -> None:
    """Everything that was said in these turns is stored once, in order."""
    stored = await memory.get_all()
    users = [message.content for message in stored if message.role == "user"]
    assert users == [user_text(turn) for turn in range(turns)]
    calls = [call.id for message in stored for call in message.tool_calls]
    results = [result for message in stored for result in message.tool_results]
    assert len(calls) == len(set(calls)) == sum(2 for turn in range(turns) if turn % 3 and turn != TURNS - 1)
    assert sorted(results) == sorted(calls)
    answers = [message.content for message in stored if message.role == "assistant" and not message.tool_calls]
    assert len(answers) == turns
    texts = [message.content for message in await memory.get_all(archived=True)]
    assert turns < RESTART or texts, "nothing was flushed: the test says nothing"


AT_ONCE = tuple((start + 2, start + 5, start + 8) for start in range(0, TURNS - 3, 9))
"""Turns that are held three at once; each calls one tool after the other."""


async def check_at_once(memory: Memory) -> None:
    """Everything that was said in those turns is stored once."""
    turns = [turn for three in AT_ONCE for turn in three]
    stored = await memory.get_all()
    assert sorted(m.content for m in stored if m.role == "user") == sorted(map(user_text, turns))
    assert sorted(c.id for m in stored for c in m.tool_calls) == sorted(r for m in stored for r in m.tool_results)
    assert len([c for m in stored for c in m.tool_calls]) == 18
    assert len([m for m in stored if m.content.startswith("Answer")]) == 9
    assert await memory.get_all(archived=True)
