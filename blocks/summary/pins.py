"""PURE: what a summary must say word for word, and a summary that fits its budget with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from memory_engine.blocks.understanding.mentions import folded, mentions
from memory_engine.blocks.understanding.sentences import Count, cut_at_sentence, one_line


def occurring(pins: Iterable[str], texts: Sequence[str]) -> list[str]:
    """Those of the pins that one of the texts holds."""
    where = [folded(text) for text in texts]
    return [pin for pin in pins if any(mentions(text, folded(pin)) for text in where)]


def missing(pins: Iterable[str], text: str) -> list[str]:
    """Those of the pins that the text does not hold."""
    where = folded(text)
    return [pin for pin in pins if not mentions(where, folded(pin))]


def fitted(text: str, pins: Sequence[str], *, limit: int, count: Count) -> str:
    """The text with every pin in it, in at most `limit` tokens; maybe "".

    A pin that the text does not hold is added as a line "Keep: …", and the text is cut for it at a sentence. Of pins that
    alone exceed the limit, the first ones that fit stay.
    """
    lines: list[str] = []
    seen: set[str] = set()
    while True:
        body = cut_at_sentence(text, limit, lambda beginning: count(_with(beginning, lines)))
        whole = _with(body, lines)
        lost = [pin for pin in missing(pins, whole) if pin not in seen]
        if not lost:
            return whole if count(whole) <= limit else _with("", lines)
        for pin in lost:
            seen.add(pin)
            if count(_with("", [*lines, _line(pin)])) <= limit:
                lines.append(_line(pin))


def _with(body: str, lines: Sequence[str]) -> str:
    return "\n".join([part for part in (body.strip(), *lines) if part])


def _line(pin: str) -> str:
    return f"Keep: {one_line(pin)}"
