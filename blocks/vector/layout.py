"""PURE: chosen items as the lines of a section."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import partial, reduce
from itertools import pairwise
from typing import Final

from memory_engine.blocks.vector.borders import borders_of, ends_a_line, guarded
from memory_engine.blocks.vector.store import Item
from memory_engine.blocks.vector.templates import BARE, PLAIN, filled
from memory_engine.blocks.vector.transcript import speaker

_LEFT_OUT: Final = "…"
MARKS: Final = "… …"
"""What a passage may have around it, for estimates of what it costs."""
_TEXT: Final = "\x00"


@dataclass(frozen=True, slots=True)
class Layout:
    """How items are written: `line` for each message, `document` for each passage of a document, `header` (a strftime format;
    "" for none) where the time changes by `resolution` seconds or more. Times are those of `zone`, None: as they were told."""

    line: str
    header: str
    resolution: float
    document: str = BARE
    zone: tzinfo | None = None

    def place(self, item: Item) -> tuple[object, ...]:
        """Items of one place share a header."""
        if item.kind == "document":
            return ("document", item.document)
        if item.at is None or not self.header:
            return (item.session_uid,)
        seconds = item.at.timestamp()
        # By the clock that is shown, so that days begin at its midnight.
        if self.zone is not None and (offset := item.at.astimezone(self.zone).utcoffset()) is not None:
            seconds += offset.total_seconds()
        return (item.session_uid, int(seconds // self.resolution))

    def heading(self, item: Item) -> str:
        """The header above an item that comes first at its place; maybe ""."""
        if item.kind == "document":
            return ""
        return self._local(item.at).strftime(self.header) if item.at is not None and self.header else ""

    def written(self, item: Item, text: str) -> str:
        """The line of an item."""
        template = self.document if item.kind == "document" else self.line
        if template == BARE:
            return text
        if template == PLAIN:
            return f"{speaker(item)}: {text}"
        return filled(template, item, text, self._local(item.at).isoformat() if item.at else "")

    def begins_with(self, item: Item) -> bool:
        """Whether the text of an item begins a line."""
        if item.kind == "message" and self.line == PLAIN:
            return False  # what many lines are asked, each time
        return ends_a_line(self.written(item, _TEXT).partition(_TEXT)[0])

    def _local(self, at: datetime) -> datetime:
        return at if self.zone is None else at.astimezone(self.zone)


@dataclass(frozen=True, slots=True)
class Line:
    """What is shown of one message, with what it is worth; the first of a time has the time above it."""

    text: str
    value: float
    seq: int | None


def lines(items: Sequence[tuple[Item, float]], layout: Layout) -> list[Line]:
    """Chosen items, in their order, as the lines of a section.

    Passages of one message are one line; "…" stands where some of it is left out. The text is exact, unless a line of it
    could be taken for a header or for what another speaker says: then all lines of it but the first are indented.
    """
    speakers = frozenset([speaker(item) for item, _ in items if item.kind == "message"])
    borders = borders_of(layout.header, layout.line, speakers)
    written: list[Line] = []
    place: tuple[object, ...] | None = None
    for passages in _sources(items):
        item, value = passages[0]
        text = item.text
        if item.parts > 1 or len(passages) > 1:
            text, value = _text_of([passage for passage, _ in passages]), max([value for _, value in passages])
        text = layout.written(item, guarded(text, borders, begins=partial(layout.begins_with, item)))
        here = layout.place(item)
        if here != place and (heading := layout.heading(item)):
            text = f"{heading}\n{text}"
        place = here
        written.append(Line(text, value, item.seq))
    return written


def _sources(items: Sequence[tuple[Item, float]]) -> Iterator[list[tuple[Item, float]]]:
    """Passages of one message or document that stand together."""
    source = list(items[:1])
    for (before, _), (item, value) in pairwise(items):
        if _source(before) != _source(item) or item.part <= before.part:
            yield source
            source = []
        source.append((item, value))
    if source:
        yield source


def _source(item: Item) -> tuple[object, ...]:
    return (item.kind, item.document, item.session_uid, item.seq)


def _text_of(passages: Sequence[Item]) -> str:
    """The exact text of passages, marked where some are left out between them, before or after them."""
    first, last = passages[0], passages[-1]
    runs = [[first.text]]
    for before, passage in pairwise(passages):
        if passage.part != before.part + 1:
            runs.append([])
        runs[-1].append(passage.text)
    texts = ["".join(run) for run in runs]
    if first.part > 0:
        texts.insert(0, "")
    if last.part < last.parts - 1:
        texts.append("")
    return reduce(_with_mark, texts)


def _with_mark(before: str, after: str) -> str:
    blank = " " if before and not before[-1].isspace() else ""
    other = " " if after and not after[0].isspace() else ""
    return f"{before}{blank}{_LEFT_OUT}{other}{after}"
