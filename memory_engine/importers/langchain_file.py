"""LangChain's `FileChatMessageHistory`: a JSON file with the list of a conversation's messages."""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from memory_engine.errors import ConfigurationError, InvalidMessageError
from memory_engine.importers.langchain_messages import LangChainReader
from memory_engine.importers.source import Item, SourceSession, read_item

_CHUNK = 1 << 16
_PAGE = 200
_WHITE = re.compile(r"[ \t\n\r]*")


class LangChainFile:
    """The conversation in a file, or those in the `*.json` files of a folder; the file's name without .json is the session."""

    kind = "langchain-file"
    order = "their place in the file, to whose end LangChain writes"
    tables: tuple[str, ...] = ()

    def __init__(self, path: str, *, encoding: str = "utf-8") -> None:
        try:
            "".encode(codecs.lookup(encoding).name)
        except LookupError as error:
            raise ConfigurationError(f"--encoding is one of text, such as utf-8 or latin-1: {error}.") from error
        self._path, self._encoding = Path(path), encoding
        self._files: dict[str, Path] = {}

    async def sessions(self) -> list[SourceSession]:
        path = self._path
        files = await asyncio.to_thread(lambda: sorted(path.glob("*.json")) if path.is_dir() else [path] * path.is_file())
        files = [file for file in files if file.is_file()]
        if not files:
            raise ConfigurationError(f"There is no file {str(path)!r}, or no *.json in it.")
        self._files = {file.name.removesuffix(".json"): file for file in files}
        return [SourceSession(name) for name in self._files]

    async def read(self, session: SourceSession) -> AsyncIterator[Item]:
        reader = LangChainReader()
        place, damage = 0, ""
        try:
            with self._files[session.name].open(encoding=self._encoding) as file:
                values = elements(file)
                while not damage:
                    page, damage = await asyncio.to_thread(_some, values)
                    for value in page:
                        yield read_item(str(place), partial(reader.message, value, str(place)))
                        place += 1
                    if len(page) < _PAGE:
                        break
        except OSError as error:
            damage = str(error)
        if damage:
            # LangChain cannot read such a file at all.
            yield Item(str(place), problem=f"the file is damaged from here on: {damage}")

    async def notes(self) -> list[str]:
        return ["The file has no times: the messages get that of the import."]

    async def aclose(self) -> None:
        self._files = {}


def elements(file: TextIO) -> Iterator[Any]:
    """The elements of a JSON list of objects, one after the other, without holding the whole text.

    :raises InvalidMessageError: it is none, it ends too early, or something stands behind it.
    """
    decode = json.JSONDecoder().raw_decode
    text = file.read(_CHUNK)
    place = _next(text, 0)
    if not text.startswith("[", place):
        raise InvalidMessageError("it does not begin with a JSON list")
    place, first, wanted = place + 1, True, _CHUNK
    while True:
        start = _next(text, place)
        if text.startswith("]", start):
            _check_end(text[start + 1 :], file)
            return
        if not first and start < len(text):
            if text[start] != ",":
                raise InvalidMessageError(f"there is {text[start : start + 20]!r} where a comma should be")
            start = _next(text, start + 1)
        try:
            # What was read stays where it is: a long element is not copied once for each of those behind it.
            value, end = decode(text, start)
        except (ValueError, RecursionError) as error:
            # Perhaps it is only cut off. What is read doubles, so that a long element is not decoded once for each chunk.
            more = file.read(wanted)
            if not more:
                raise InvalidMessageError(f"it is no JSON: {error}") from error
            text, place, wanted = text[place:] + more, 0, 2 * wanted
            continue
        yield value
        place, first, wanted = end, False, _CHUNK


def _next(text: str, place: int) -> int:
    """Where the white space from there on ends."""
    found = _WHITE.match(text, place)
    return place if found is None else found.end()


def _check_end(text: str, file: TextIO) -> None:
    while text:
        if (place := _next(text, 0)) < len(text):
            raise InvalidMessageError(f"there is {text[place : place + 20]!r} behind its end")
        text = file.read(_CHUNK)


def _some(values: Iterator[Any]) -> tuple[list[Any], str]:
    """The next page, and what is wrong behind it."""
    page: list[Any] = []
    try:
        # One by one: what comes before the damage is kept.
        page.extend(islice(values, _PAGE))
    except (OSError, ValueError) as error:
        return page, str(error)
    return page, ""
