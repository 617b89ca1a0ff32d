"""PURE: the templates that items are written with: what they may use, and how they are filled in."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from memory_engine.blocks.vector.borders import one_line
from memory_engine.blocks.vector.store import Item
from memory_engine.blocks.vector.transcript import speaker

PLAIN: Final = "{speaker}: {text}"
"""How a message is written if nobody wants it otherwise."""
BARE: Final = "{text}"
"""The same for a passage of a document."""
MESSAGE_FIELDS: Final = frozenset({"speaker", "text", "role", "name", "time", "session_id", "metadata"})
DOCUMENT_FIELDS: Final = frozenset({"text", "document", "time", "metadata"})
_DIRECTIVE = re.compile(r"%[-_0^#]*\d*[EO:]?.?", re.DOTALL)
_KNOWN = re.compile(r"%[-_0^#]*\d*[EO:]?[aAbBcCdDeFfgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%]")
_LOOKUP = re.compile(r"metadata(\[[^\[\]{}]+\])+")


def checked_template(template: str, fields: frozenset[str], name: str) -> str:
    """The template, if it can be filled in for every item.

    :raises ValueError: it lacks `{text}`, uses other fields than these, or formats text as something else.
    """
    try:
        used = [(field, spec or "") for _, field, spec, _ in string.Formatter().parse(template) if field is not None]
        wrong = sorted({field for field, _ in used if field not in fields and not _LOOKUP.fullmatch(field)})
        if wrong or "text" not in {field for field, _ in used}:
            raise ValueError(f"it may use {sorted(fields)}, must contain {{text}}, and uses {wrong or 'no text'}")
        if any("{" in spec for _, spec in used):
            raise ValueError("a width or an alignment is written as it is, not as another field")
        template.format(**dict.fromkeys(fields - {"metadata"}, "text"), metadata=_Told({}))
    except (ValueError, LookupError, AttributeError) as error:
        raise ValueError(f"{name} {template!r:.80} cannot be filled in: {error}") from error
    return template


def checked_time_format(given: str) -> str:
    """The strftime format, if it means the same on every system.

    :raises ValueError: it has a directive that strftime does not know, which some systems write as it is and others refuse.
    """
    unknown = [code for code in _DIRECTIVE.findall(given) if not _KNOWN.fullmatch(code)]
    try:
        datetime(2026, 1, 31, 12, tzinfo=UTC).strftime(given)
    except ValueError as error:
        unknown.append(str(error))
    if unknown:
        raise ValueError(
            f"time_format {given!r:.80} is no strftime format: {unknown[0]!r:.80} is unknown; "
            'use directives such as in "[%Y-%m-%d %H:%M]", "%%" for a percent sign, or "" for no times'
        )
    return given


def filled(template: str, item: Item, text: str, time: str) -> str:
    """An item, with `text` for its own, as a template that was checked writes it."""
    return template.format(
        speaker=speaker(item),
        text=text,
        role=item.role,
        name=one_line(item.name or ""),
        time=time,
        session_id=one_line(item.session_id or ""),
        document=one_line(item.document or ""),
        metadata=_Told(item.metadata),
    )


class _Told:
    """Metadata as templates show it: text as it is, other values as JSON, what is missing or empty as nothing.

    It takes one line, so that no value can pretend to be an utterance of its own.
    """

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __getitem__(self, key: str | int) -> _Told:
        if isinstance(self._value, Mapping):
            # In a template, digits are a number; in JSON, every key is a text.
            return _Told(self._value.get(str(key)))
        if isinstance(self._value, list) and isinstance(key, int):
            return _Told(dict(enumerate(self._value)).get(key))
        return _Told(None)

    def __str__(self) -> str:
        value: Any = self._value
        if value is None or value in ({}, []):
            return ""
        if not isinstance(value, str):
            value = json.dumps(dict(value) if isinstance(value, Mapping) else value, ensure_ascii=False, default=dict)
        return one_line(value)

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)
