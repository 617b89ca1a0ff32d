"""LangChain's `FileChatMessageHistory`: a JSON file with the list of a conversation's messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from memory_engine.errors import ConfigurationError, InvalidMessageError, StoreUnreadableError
from memory_engine.importers.langchain_messages import LangChainReader
from memory_engine.importers.source import Item, SourceSession

_CHUNK = 1 << 16
_PAGE = 200


class LangChainFile:
    """The conversation in a file, or those in the `*.json` files of a folder; the file's name without .json is the session."""

    kind = "langchain-file"
    order = "their place in the file, to whose end LangChain writes"
    tables: tuple[str, ...] = ()

    def __init__(self, path: str, *, encoding: str = "utf-8") -> None:
        self._path, self._encoding = Path(path), encoding
        self._files: dict[str, Path] = {}

    async def sessions(self) -> list[SourceSession]:
        path = self._path
        files = await asyncio.to_thread(lambda: sorted(path.glob("*.json")) if path.is_dir() else [path] * path.is_file())
        if not files:
            raise ConfigurationError(f"There is no file {str(path)!r}, or no *.json in it.")
        self._files = {file.name.removesuffix(".json"): file for file in files}
        return [SourceSession(name) for name in self._files]

    async def read(self, session: SourceSession) -> AsyncIterator[Item]:
        reader = LangChainReader()
        place = 0
        try:
            with self._files[session.name].open(encoding=self._encoding) as file:
                values, damage = elements(file), ""
                while not damage:
                    page, damage = await asyncio.to_thread(_some, values)
                    for value in page:
                        try:
                            yield Item(str(place), reader.message(value, str(place)))
                        except InvalidMessageError as error:
                            yield Item(str(place), problem=str(error))
                        place += 1
                    if len(page) < _PAGE:
                        break
                if damage:
                    # LangChain cannot read such a file at all.
                    yield Item(str(place), problem=f"the file is damaged from here on: {damage}")
        except (OSError, UnicodeDecodeError, LookupError) as error:
            raise StoreUnreadableError(f"{self._files[session.name].name} cannot be read: {error}") from error

    async def notes(self) -> list[str]:
        return ["The file has no times: the messages get that of the import."]

    async def aclose(self) -> None:
        self._files = {}


def elements(file: TextIO) -> Iterator[Any]:
    """The elements of a JSON list of objects, one after the other, without holding the whole text.

    :raises InvalidMessageError: it is none, or it ends too early.
    """
    decode = json.JSONDecoder().raw_decode
    text = file.read(_CHUNK).lstrip()
    if not text.startswith("["):
        raise InvalidMessageError("it does not begin with a JSON list")
    text, first, wanted = text[1:], True, _CHUNK
    while True:
        text = text.lstrip()
        if text.startswith("]"):
            return
        try:
            if not first and text:
                if text[0] != ",":
                    raise InvalidMessageError(f"there is {text[:20]!r} where a comma should be")
                value, end = decode(text, len(text) - len(text[1:].lstrip()))
            else:
                value, end = decode(text)
        except (ValueError, RecursionError) as error:
            if isinstance(error, InvalidMessageError):
                raise
            # Perhaps it is only cut off. What is read doubles, so that a long element is not decoded once for each chunk.
            more = file.read(wanted)
            if not more:
                raise InvalidMessageError(f"it is no JSON: {error}") from error
            text, wanted = text + more, 2 * wanted
            continue
        yield value
        text, first, wanted = text[end:], False, _CHUNK


def _some(values: Iterator[Any]) -> tuple[list[Any], str]:
    """The next page, and what is wrong behind it."""
    page: list[Any] = []
    try:
        # One by one: what comes before the damage is kept.
        page.extend(islice(values, _PAGE))
    except InvalidMessageError as error:
        return page, str(error)
    return page, ""
