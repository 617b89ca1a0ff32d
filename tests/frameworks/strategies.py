"""What generated messages of every framework are made of."""

from __future__ import annotations

from hypothesis import strategies as st

from memory_engine.tokens import TokenCounter

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NAMES = st.text("abcdefgh_-", min_size=1, max_size=12)
MAYBE = st.none() | NAMES
NUMBERS = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=3)


COUNTER = TokenCounter(len)
"""Counts characters, so that texts cost the same alone and in JSON."""
_MEDIA = {"image": 1024, "audio": 1024, "video": 2048}


def size_of_medium(media_type: str | None) -> int:
    """What a medium costs at least."""
    return _MEDIA.get(str(media_type).partition("/")[0], 2048)


def characters(value: object) -> int:
    """Those of all texts in a JSON value, its keys left out."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(characters, value.values()))
    return sum(map(characters, value)) if isinstance(value, list) else 0
