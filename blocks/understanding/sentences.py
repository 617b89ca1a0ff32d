"""PURE: making a text that a model wrote fit: cleaned of what nobody can read, and cut where a sentence ends."""

from __future__ import annotations

import re
from collections.abc import Callable

from memory_engine.truncation import cut_text

Count = Callable[[str], int]

_END = re.compile(
    r"""(?:(?<=\w)|(?<=[)\]"'”’»%]))[.!?…]+["'”’»)\]]*(?=\s)  # not after a number that only begins a line, see `_LISTED`
    | [。！？｡]+[」』”’）]*
    | \n+""",
    re.VERBOSE,
)
_LISTED = re.compile(r"(?:^|\n)\s*(?:\d{1,3}|[a-zA-Z])[.)]$")
_UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff\ufff9-\ufffb]")
_PER_TOKEN = 64
"""Characters of a text that are looked at for each token allowed: no language needs so many."""


def clean(text: str) -> str:
    """The text without control characters, lone surrogates and white space at its ends."""
    return _UNREADABLE.sub("", text.encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n")).strip()


def one_line(text: str) -> str:
    """The cleaned text with every run of white space as one blank."""
    return " ".join(clean(text).split())


def cut_at_sentence(text: str, limit: int, count: Count) -> str:
    """The longest beginning of `text` that ends with a sentence (or line) and has at most `limit` tokens.

    When not even the first sentence fits, it ends at a word, and where there are none, at a character; maybe "".
    """
    text = text[: _PER_TOKEN * max(limit, 0) + 4096]
    if count(text) <= limit:
        return text
    ends = [found.end() for found in _END.finditer(text) if not _LISTED.search(text[max(0, found.end() - 12) : found.end()])]
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        if count(text[: ends[middle - 1]].rstrip()) <= limit:
            low = middle
        else:
            high = middle - 1
    best = text[: ends[low - 1]].rstrip() if low else ""
    # A count that shrinks as a text grows would lead the search astray.
    if best.strip() and count(best) <= limit:
        return best
    return cut_text(text, limit, count)
