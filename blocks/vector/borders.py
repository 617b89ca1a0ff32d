"""PURE: text of one item that could be taken for the beginning of another, and how that is prevented."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from functools import lru_cache
from typing import Final

_BREAKS: Final = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
_BLANKS: Final = rf"(?:[^\S{_BREAKS}]|[\u200b-\u200d\u2060\ufeff])*"
_CONTINUED = re.compile(rf"([{_BREAKS}])(?![{_BREAKS}]|\Z)")
_INDENT: Final = "  "
_ROLES: Final = ("assistant", "developer", "system", "tool", "user")
_NUMBERS: Final = frozenset("dmyYHIMSfjUWwuGVCseklg")
_PREFIXED: Final = {"F": r"[\d-]+", "T": r"[\d:]+", "R": r"[\d:]+", "D": r"[\d/]+", "z": r"[-+\d:.Z]*", "%": "%"}
_ANYTHING: Final = rf"[^{_BREAKS}]{{0,60}}?"


@lru_cache(maxsize=256)
def borders_of(header: str, line: str, speakers: frozenset[str]) -> re.Pattern[str]:
    """Finds a line break before what looks like a header of that strftime format, like one of these speakers or a role
    with a colon, or like the beginning of a line of that template."""
    names = sorted({*_ROLES, *(name.strip() for name in speakers)} - {""})
    who = "|".join(map(re.escape, names))
    forms = [rf"(?:{who}){_BLANKS}[:\uff1a]", _opening(line, who), _time(header)]
    # One character first: that is what is searched for fast.
    return re.compile(rf"[{_BREAKS}]{_BLANKS}(?:{'|'.join(filter(None, forms))})", re.IGNORECASE)


def guarded(text: str, borders: re.Pattern[str], *, begins: Callable[[], bool]) -> str:
    """The exact text if no line of it could be taken for another item, else with its further lines indented.

    Its first line is looked at, too, if the text `begins` a line.
    """
    if len(text.splitlines()) < 2 and not begins():
        return text
    found = borders.search(f"\n{text}")
    if found is None:
        return text
    if found.start() == 0 and begins():
        text = _INDENT + text
    elif found.start() == 0 and not borders.search(text):
        return text
    return _CONTINUED.sub(rf"\1{_INDENT}", text)


def one_line(text: str) -> str:
    """A name or a value without line breaks."""
    return text if text.isprintable() else " ".join(text.splitlines())


def ends_a_line(text: str) -> bool:
    """Whether what comes after a text begins a line."""
    return not text or text[-1] in _BREAKS


def _opening(line: str, who: str) -> str | None:
    """How a line of a template begins, up to its text; None if it does not begin with who speaks."""
    form, named = "", False
    for literal, field, _, _ in string.Formatter().parse(line.lstrip()):
        form += re.escape(literal)
        if field is None or field == "text":
            break
        named = named or field in ("speaker", "role", "name")
        form += f"(?:{who})?" if field == "name" else f"(?:{who})" if field in ("speaker", "role") else _ANYTHING
    return form.removesuffix("\\ ") if named else None


def _time(header: str) -> str | None:
    """What a time looks like in a strftime format."""
    lines = header.split("\n")
    first = next((one.strip() for one in lines if one.strip()), None)
    if first is None:
        return None
    parts = re.split(r"%[-_0^#:]*([A-Za-z%])", first)
    forms = [_directive(part) if place % 2 else re.escape(part) for place, part in enumerate(parts)]
    return rf"{''.join(forms)}(?=[\s{_BREAKS}]|\Z)"


def _directive(letter: str) -> str:
    return r"\d+" if letter in _NUMBERS else _PREFIXED.get(letter, _ANYTHING)
