"""PURE: what a model answered as JSON, whatever it wrote around it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_TAG = r"(?:think|thinking|thought|reasoning|reflection|scratchpad)"
_OPENING = re.compile(rf"<{_TAG}\b[^<>]{{0,100}}>", re.IGNORECASE)
_CLOSING = re.compile(rf"</{_TAG}\s{{0,10}}>", re.IGNORECASE)
_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_LONGEST = 200_000
"""Characters of a reply that are looked at; what blocks ask for has a few thousand."""
_TRIES = 50


class UnusableReplyError(Exception):
    """The reply is not what was asked for; the message says to the model what to do."""


def without_thinking(reply: str) -> str:
    """The reply itself: drafts that a model wrote for itself, finished or cut off, are not its answer."""
    text = reply.strip()
    if text.startswith(("{", "```")):
        # It begins with the answer; such a tag further on is quoted.
        return text
    closed = [found.end() for found in _CLOSING.finditer(text)]
    text = text[closed[-1] :] if closed else text
    opened = _OPENING.search(text)
    return (text if opened is None else text[: opened.start()]).strip()


def object_of(reply: str, key: str) -> dict[str, Any]:
    """The JSON object with that key in a reply, also when there is prose, a code fence or thinking around it; the last one.

    :raises UnusableReplyError: there is none.
    """
    if len(reply) > _LONGEST:
        raise UnusableReplyError(f"it has {len(reply):,} characters; reply with one short JSON object")
    text = without_thinking(reply)
    for part in (*reversed(_FENCE.findall(text)), text):
        found = [value for value in _objects(part) if key in value]
        if found:
            return found[-1]
    raise UnusableReplyError(f'there is no whole JSON object with "{key}" in it; reply with that object and nothing else')


def _objects(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder(parse_constant=_refuse)
    start = tries = 0
    while tries < _TRIES and (start := text.find("{", start)) >= 0:
        tries += 1
        try:
            value, start = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        if isinstance(value, dict):
            yield value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
