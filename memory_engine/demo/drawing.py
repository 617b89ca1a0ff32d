"""Lines, bars and a progress line for a terminal of any width; clean text where there is no terminal."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

Piece = str | tuple[str, str]
"""Text, or text and one of `STYLES`."""

STYLES = {
    "bold": "1",
    "dim": "2",
    "good": "32",
    "bad": "1;31",
    "title": "1;36",
    "first": "35",
    "second": "33",
    "third": "36",
    "fourth": "34",
}
_WIDEST = 112
_NARROWEST = 40
_REDRAW = 0.1
_ASCII = str.maketrans("─█▓▒░│·“”…✓✗", '-#=+:|.""~yn')


class Screen:
    """Writes to `stream`: colours only on a terminal that wants them (NO_COLOR, TERM), a progress line only on a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        terminal = self._stream.isatty() and os.environ.get("TERM", "") != "dumb"
        self._live = terminal
        self._coloured = terminal and not os.environ.get("NO_COLOR")
        self._plain = not _can_show(self._stream, "─█▓│“✓")
        self._drawn = 0
        self._next = 0.0

    @property
    def width(self) -> int:
        """Columns to use now; a terminal may be resized while the demo runs."""
        return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((100, 24)).columns - 1))

    def line(self, *pieces: Piece) -> None:
        """One line, cut at the width."""
        self.clear()
        self._write(self._painted(clip(pieces, self.width)) + "\n")

    def rule(self, title: str, right: str = "") -> None:
        """A heading across the width."""
        right = f" {right} ──" if right else ""
        title = "".join(text for text, _ in clip([title], max(8, self.width - len(right) - 8)))
        fill = "─" * max(2, self.width - len(title) - len(right) - 4)
        self.line("── ", (title, "title"), f" {fill}", (right, "dim"))

    def progress(self, done: int, total: int, left: str, right: str, *, force: bool = False) -> None:
        """Redraw the progress line, at most ten times a second."""
        now = time.monotonic()
        if not self._live or (now < self._next and not force):
            return
        self._next = now + _REDRAW
        room = max(10, self.width - len(left) - len(right) - 4)
        full = room * done // max(1, total)
        pieces = clip([left, "  ", ("█" * full, "third"), ("░" * (room - full), "dim"), "  ", right], self.width)
        length = sum(len(text) for text, _ in pieces)
        self._write("\r" + self._painted(pieces) + " " * max(0, self._drawn - length))
        self._drawn = length

    def clear(self) -> None:
        """Take the progress line away."""
        if self._drawn:
            self._write("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _painted(self, pieces: Sequence[tuple[str, str]]) -> str:
        return "".join(f"\x1b[{STYLES[style]}m{text}\x1b[0m" if style and self._coloured else text for text, style in pieces)

    def _write(self, text: str) -> None:
        if self._plain:
            text = text.translate(_ASCII).encode("ascii", "replace").decode()
        self._stream.write(text)
        self._stream.flush()


def bar(parts: Sequence[tuple[int, str, str]], total: int, width: int) -> list[Piece]:
    """A bar of `width` columns for `total`: for each part its amount, the character it is drawn with, and its style.

    Its length is right to the column as a whole; a part that is not nothing gets at least one column.
    """
    pieces: list[Piece] = []
    amount = column = 0
    for size, character, style in parts:
        amount += size
        end = min(width, max(round(width * amount / max(1, total)), column + (size > 0)))
        pieces.append((character * (end - column), style))
        column = end
    return [*pieces, ("·" * (width - column), "dim")]


def clip(pieces: Sequence[Piece], width: int) -> list[tuple[str, str]]:
    """The pieces as far as `width` columns go, with a mark where something was cut."""
    pairs = [(piece, "") if isinstance(piece, str) else piece for piece in pieces]
    pairs = [(printable(text), style) for text, style in pairs]
    if sum(len(text) for text, _ in pairs) <= width:
        return pairs
    room, cut = width - 1, []
    for text, style in pairs:
        cut.append((text[:room], style))
        room -= len(text[:room])
    return [*cut, ("…", "")]


def printable(text: str) -> str:
    """The text on one line, without anything that would steer the terminal."""
    return "".join(character if character.isprintable() else " " for character in text)


def _can_show(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
