"""PURE: what a reply asks to be done with the facts. Its form is checked here, its sense in `changes`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from memory_engine.blocks.understanding.replies import UnusableReplyError, object_of

T = TypeVar("T")

LONGEST_FACT = 500
"""Characters of a fact."""
_FACT = re.compile(r"\s*[fF]?(\d{1,12})\s*")
_NUMBER = re.compile(r"\s*#?(\d{1,9})\s*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class Add:
    """Something that is known from now on."""

    text: str
    messages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Update:
    """Another text for a known fact."""

    fact: int
    text: str
    messages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Retract:
    """The end of a known fact."""

    fact: int
    messages: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Merge:
    """One text for several known facts."""

    facts: tuple[int, ...]
    text: str


Operation = Add | Update | Retract


@dataclass(frozen=True, slots=True)
class Reply(Generic[T]):
    """What could be read, and what was wrong with the rest."""

    found: tuple[T, ...]
    wrong: tuple[str, ...]
    merges: tuple[Merge, ...] = ()


class Patience(Generic[T]):
    """Reads replies. The first must be right in every part, else the model is asked again; of the second, what is right counts.

    :raises UnusableReplyError: from the call, with the first thing that is wrong.
    """

    def __init__(self, read: Callable[[str], Reply[T]], *, empty_is_fine: bool = False) -> None:
        self._read, self._empty_is_fine, self._asked = read, empty_is_fine, False

    def __call__(self, text: str) -> Reply[T]:
        again, self._asked = self._asked, True
        reply = self._read(text)
        if reply.wrong and not (again and (reply.found or self._empty_is_fine)):
            raise UnusableReplyError(reply.wrong[0])
        return reply


def read_operations(text: str) -> Reply[Operation]:
    """The operations of a reply, and the merges if there are any.

    :raises UnusableReplyError: there is no object with a list of operations.
    """
    answer = object_of(text, "operations")
    listed = answer["operations"]
    if not isinstance(listed, list):
        raise UnusableReplyError('"operations" is not a list')
    found: list[Operation] = []
    wrong: list[str] = []
    for place, one in enumerate(listed, 1):
        try:
            found.append(_operation(one))
        except ValueError as error:
            wrong.append(f"operation {place} {error}")
    # A wrong merge is not worth a second call: the facts that it would merge are there.
    merges = [merge for one in _list(answer.get("merges")) if (merge := _merge(one)) is not None]
    return Reply(tuple(found), tuple(wrong), tuple(merges))


def _operation(one: Any) -> Operation:
    if not isinstance(one, dict):
        raise ValueError("is not an object")
    kind = one.get("op")
    if kind == "add":
        return Add(text_of(one.get("text")), numbers_of(one.get("messages")))
    if kind == "update":
        return Update(_fact(one.get("fact")), text_of(one.get("text")), numbers_of(one.get("messages")))
    if kind == "retract":
        return Retract(_fact(one.get("fact")), numbers_of(one.get("messages")))
    raise ValueError('has no "op" that is "add", "update" or "retract"')


def _merge(one: Any) -> Merge | None:
    try:
        facts = tuple(dict.fromkeys(_fact(fact) for fact in _list(one["facts"])))
        return Merge(facts, text_of(one["text"]))
    except (ValueError, LookupError, TypeError):
        return None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def text_of(value: Any) -> str:
    """A fact as one line.

    :raises ValueError: it is no text, blank, or too long: cut off it might say the opposite.
    """
    if not isinstance(value, str):
        raise ValueError('has no "text"')
    # An escape in JSON may be half of a character, which no database takes.
    text = " ".join(_CONTROL.sub(" ", value.encode("utf-8", "replace").decode("utf-8")).split())
    if not text:
        raise ValueError('has a "text" that says nothing')
    if len(text) > LONGEST_FACT:
        raise ValueError(f'has a "text" of {len(text)} characters; a fact has at most {LONGEST_FACT}')
    return text


def numbers_of(value: Any) -> tuple[int, ...]:
    """Numbers of messages.

    :raises ValueError: it is no list of numbers.
    """
    listed = value if isinstance(value, list) else [value]
    found: list[int] = []
    for one in listed:
        if isinstance(one, int) and not isinstance(one, bool):
            found.append(one)
        elif isinstance(one, str) and (number := _NUMBER.fullmatch(one)):
            found.append(int(number[1]))
        else:
            raise ValueError('has no "messages", the list of the numbers of messages')
    return tuple(dict.fromkeys(found))


def _fact(value: Any) -> int:
    found = _FACT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('has no "fact", the id of a known fact such as "f3"')
    return int(found[1])
