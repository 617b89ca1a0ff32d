"""Media of messages, as the formats of frameworks write them."""

from __future__ import annotations

import re

_MIME_TYPE = re.compile(r"[!-+\--~]{1,255}")
# Pydantic writes bytes in the other alphabet of base64.
_STANDARD, _URL_SAFE = str.maketrans("-_", "+/"), str.maketrans("+/", "-_")

DEFAULT_MIME_TYPES = {
    "image": "image/png",
    "audio": "audio/wav",
    "video": "video/mp4",
    "document": "application/octet-stream",
}
"""For blocks of ours that do not say theirs, where a format must."""


def kind_of(mime_type: object) -> str:
    """The `type` of the block for media of that type."""
    family = str(mime_type).partition("/")[0]
    return family if family in ("image", "audio", "video") else "document"


def known_mime_type(value: object) -> dict[str, str]:
    """The field `mime_type` of a block; empty for what none of ours may be."""
    return {"mime_type": value} if isinstance(value, str) and _MIME_TYPE.fullmatch(value) else {}


def from_url_safe(data: str) -> str:
    """The base64 text in the alphabet of our blocks."""
    return data.translate(_STANDARD)


def to_url_safe(data: str) -> str:
    """The base64 text in the alphabet of Pydantic's JSON."""
    return data.translate(_URL_SAFE)
