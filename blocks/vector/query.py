"""PURE: what is looked for: the texts of a query, and their words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Final

import regex

from memory_engine import ChatMessage
from memory_engine.blocks.vector.words import Words, ends_of

Query = Sequence[tuple[str, float]]
"""Texts, the most important first, each with its weight."""

_PROBE_WORDS = 48
"""Words of a query that are looked for: of a longer text those at its beginning and at its end, where questions stand."""
_LONG: Final = 16
"""A text with more words than this, those of grammar not counted, says more than what it asks."""
_A_QUESTION: Final = 2
"""A question with fewer ("What do you think?") is about what the text around it says."""
_STANDS_ALONE: Final = 3
"""A message with fewer ("And where?") asks on."""
_AROUND: Final = 0.2
"""The weight of what stands around a question or was said before it: mostly something else, but sometimes what it is about.
Of what was said before, each message has half the weight of what comes after it."""
_READ: Final = 1_000
"""Characters at each end of a text that are enough to see whether it has a few words."""

_SENTENCE_ENDS = regex.compile(r"[.!?…؟][\"'”’»)\]]*+\s++|[。！？][」』”）]*+|\n")
"""Without a look behind: that of a variable length reads a run of brackets once for each of them."""
_CLAUSES = regex.compile(r"(?<=:)\s+|(?<=：)")
_MARK = regex.compile(r"[?？؟;][\"'”’»)\]」』）*_]*$")
_FIRST = regex.compile(r"[^\p{L}]*(\p{L}+)(?:\s+(\p{L}+))?")
_GREEK = regex.compile(r"\p{Greek}")

# What a question begins with, also behind one other word ("at what", "explain how"); left out is what begins instructions
# in another language ("comment", "come", "was").
_ASKING_WORDS: Final = """
    what where who whom whose which when why how
    wo woher wohin wer wen wem wessen wann warum weshalb wieso wie welche welcher welches welchen welchem
    où qui quand pourquoi combien quel quelle quels quelles
    qué dónde quién quiénes cuándo cuál cuáles cuánto cuántos
    chi dove quando perché quale quali quanto quanti
    onde quem quais quantos
    waar wanneer waarom welke hoe
"""
_INVERTED_WORDS: Final = "is are was were do does did has had will would should can could ist war hat hatte"
"""With these a question begins that has no such word; only in the first place."""

_ASKING: Final = frozenset(_ASKING_WORDS.split())
_INVERTED: Final = frozenset(_INVERTED_WORDS.split())


def query_of(asked: Iterable[ChatMessage] | None, messages: Sequence[ChatMessage], window: int) -> Query:
    """What was asked, else the last `window` messages of user and assistant, the newest of the user first."""
    if asked is not None:
        text = "\n".join(filter(None, (message.content.strip() for message in asked)))
        return _asked_first(text, _has_mark, _begins_as_question) if text else []
    latest = [m for m in messages if m.content.strip() and (m.role == "user" or (m.role == "assistant" and not m.tool_calls))]
    latest = latest[-window:][::-1]
    if not latest:
        return []
    # The newest user message is what is being answered, whatever was said since.
    users = [message for message in latest if message.role == "user"]
    asked_by = users[:1] or latest[:1]
    while len(asked_by) < len(users) and not _has_words(_told(asked_by), _STANDS_ALONE):
        # "And where?" asks on about what the user said before.
        asked_by.append(users[len(asked_by)])
    before = [message.content for message in latest if all(message is not one for one in asked_by)]
    # A message without a mark may be no question at all: "When we came home, …" begins a story.
    return [
        *_asked_first(_told(asked_by), _has_mark),
        *((text, _AROUND * 0.5**place) for place, text in enumerate(before, start=1)),
    ]


def _told(messages: Sequence[ChatMessage]) -> str:
    """The texts of messages that are given newest first."""
    return "\n".join(message.content for message in reversed(messages))


def _asked_first(text: str, *signs: Callable[[str], bool]) -> Query:
    """Of a long text first what it asks, by the first sign that anything bears, then all of it with a small weight."""
    # Most questions are short, and to see that they are must not cost as much as to look for their words.
    if (text.isascii() and text.count(" ") < _LONG) or not _has_words(text, _LONG + 1):
        return [(text, 1.0)]
    sentences = _sentences(ends_of(text))
    clauses = [clause for sentence in sentences for clause in _CLAUSES.split(sentence) if clause.strip()]
    for is_asking in signs:
        # "About the trip: when?" asks nothing without what stands before the colon.
        for parts in (clauses, sentences):
            question = " ".join(part.strip() for part in parts if is_asking(part))
            if _has_words(question, _A_QUESTION):
                return [(question, 1.0), (text, _AROUND)]
    return [(text, 1.0)]


def _sentences(text: str) -> list[str]:
    """The sentences of a text, each with what ends it."""
    borders = [0, *(end.end() for end in _SENTENCE_ENDS.finditer(text)), len(text)]
    return [sentence for first, last in pairwise(borders) if (sentence := text[first:last]).strip()]


def _has_words(text: str, count: int) -> bool:
    """Whether a text, its ends if it is long, has so many different words, those of grammar not counted."""
    read = text if len(text) <= 2 * _READ else f"{text[:_READ]}\n{text[-_READ:]}"
    return len(text) >= count and len(_words().content(read)) >= count


@cache
def _words() -> Words:
    return Words()


def _has_mark(sentence: str) -> bool:
    found = _MARK.search(sentence.rstrip())
    return found is not None and (found.group()[0] != ";" or _GREEK.search(sentence) is not None)


def _begins_as_question(sentence: str) -> bool:
    begin = _FIRST.match(sentence)
    if begin is None:
        return False
    first, second = begin[1].casefold(), (begin[2] or "").casefold()
    # "Do not ask" is an instruction.
    return first in _ASKING or second in _ASKING or (first in _INVERTED and second not in ("not", ""))


def probe_words(query: Query, words: Words) -> dict[str, float]:
    """The words that are looked for, each with the weight of the first text it is in."""
    found: dict[str, float] = {}
    for text, weight in query:
        new = [word for word in words.content(text) if word not in found]
        room = _PROBE_WORDS - len(found)
        if len(new) > room:
            new = new[: room - room // 2] + new[len(new) - room // 2 :]
        found.update(dict.fromkeys(new, weight))
    return found
