"""PURE: whether a text names something, whatever its case and white space."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

# Written without spaces between words, or with endings attached to names: a letter next to a name there says nothing.
_SCRIPTS = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{_SCRIPTS}]")
_WORD = re.compile(rf"[^\W{_SCRIPTS}]+")


def folded(text: str) -> str:
    """A text as it is compared: compatibility forms, case and runs of white space are the same."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def mentions(text: str, name: str) -> bool:
    """Whether a folded text holds a folded name as words of its own, not as a part of longer ones."""
    if not name:
        return False
    start = text.find(name)
    while start >= 0:
        end = start + len(name)
        if _is_border(text, start) and _is_border(text, end):
            return True
        start = text.find(name, start + 1)
    return False


def head_of(name: str) -> str:
    """The word that a folded name begins with; "" when it begins with none that stands for itself."""
    found = _WORD.match(name)
    return found[0] if found else ""


@dataclass(frozen=True, slots=True)
class Searched:
    """A folded text in which many names are looked for: most of them are seen not to be there by their first word."""

    text: str
    words: frozenset[str]

    @classmethod
    def of(cls, text: str) -> Searched:
        """A text, not folded yet."""
        key = folded(text)
        return cls(key, frozenset(_WORD.findall(key)))

    def mentions(self, name: str, head: str) -> bool:
        """As `mentions`, for a folded name and its `head_of`."""
        return (not head or head in self.words) and mentions(self.text, name)


def _is_border(text: str, place: int) -> bool:
    """Whether a word may begin or end between two characters."""
    if place in (0, len(text)):
        return True
    before, after = text[place - 1], text[place]
    if _UNSPACED.match(before) or _UNSPACED.match(after):
        return True
    return not (_in_word(before) and _in_word(after))


def _in_word(char: str) -> bool:
    return char.isalnum() or char == "_" or unicodedata.category(char).startswith("M")
