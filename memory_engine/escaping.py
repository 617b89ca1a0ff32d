"""Keeping stored text inside its section: what looks like one of our own tags is defused, all else is verbatim."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

ROOT_TAG = "memory"
ITEM_TAGS = frozenset({"fact", "facts", "message", "summary", "entity", "document", "item"})

# What is drawn as nothing: a model reads over it, so it must not hide a tag.
_INVISIBLE = (
    r"\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff"
)
_BEFORE_NAME = rf"[\s{_INVISIBLE}/\\]*"
_WITHIN_WORD = rf"[{_INVISIBLE}]*"
_BETWEEN_WORDS = rf"[\s{_INVISIBLE}_-]*"
# When letters follow, also after `-`, `.` or `:`, it is another tag than ours.
_END_OF_NAME = r"(?!_*[^\W_]|[-.:]\w)"
_NOT_IN_TAG = re.compile(r"[^\w.-]+")
_LEADING = re.compile(rf"\A{_BEFORE_NAME}")
_SKIPPED = re.compile(rf"[\s{_INVISIBLE}_/\\-]+")


_RENDERED = re.compile(rf"\A\s*<{ROOT_TAG}>\n<[\w.-]+>\n.*?\n</[\w.-]+>\n</{ROOT_TAG}>(?:\s+|\Z)", re.DOTALL)


def without_rendered(text: str) -> str:
    """The text behind what the built-in renderer put before it; the text itself if it begins with something else.

    Memory's own text is marked in a `ChatMessage`, but not in what a framework made of one and stored again. Nobody can say it
    in the name of memory for more than itself: within the tags every such tag is escaped, so the first one that closes ends it.
    """
    return _RENDERED.sub("", text, count=1)


def tag_name(name: str) -> str:
    """The tag for a name: characters that could end a tag become `_`."""
    return _NOT_IN_TAG.sub("_", name) or "_"


def escape(text: str, names: Iterable[str] = ()) -> str:
    """The text with `&lt;` for each `<` that starts something resembling one of our own tags.

    These are `memory`, the usual tags of items, and `names` (of sections and items): opening or closing, in any case, with
    anything invisible in between, with `-`, `_` or spaces between the words of a name, with attributes or cut off at the
    end of the text. Everything else stays as it is, also `&lt;`.
    """
    if "<" not in text:
        return text
    pattern, compact = _matcher(frozenset(names))
    text = pattern.sub("&lt;", text)
    # The next text may go on with what this one begins.
    last = text.rfind("<")
    if last >= 0:
        rest = _LEADING.sub("", text[last + 1 :])
        if not rest.startswith(("-", "_")) and any(name.startswith(_compact(rest)) for name in compact):
            text = f"{text[:last]}&lt;{text[last + 1 :]}"
    return text


@lru_cache(maxsize=256)
def _matcher(names: frozenset[str]) -> tuple[re.Pattern[str], frozenset[str]]:
    """What finds the `<` of our tags, and the names without anything between their letters."""
    every = {ROOT_TAG, *ITEM_TAGS, *names, *map(tag_name, names)}
    alternatives = "|".join(sorted({_resembling(name) for name in every if _compact(name)}))
    return re.compile(rf"<(?={_BEFORE_NAME}(?:{alternatives}){_END_OF_NAME})", re.IGNORECASE), frozenset(map(_compact, every))


def _resembling(name: str) -> str:
    words = [word for word in _SKIPPED.split(name) if word]
    return _BETWEEN_WORDS.join(_WITHIN_WORD.join(re.escape(char) for char in word) for word in words)


def _compact(text: str) -> str:
    return unicodedata.normalize("NFC", _SKIPPED.sub("", text)).casefold()
