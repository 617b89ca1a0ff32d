"""Documents: texts that are no conversation, kept whole as records so that their passages can be made anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any
from uuid import uuid4

from memory_engine.block import Record, Records
from memory_engine.blocks.vector.store import Item
from memory_engine.blocks.vector.transcript import document_items, splitter
from memory_engine.frozen import check_text, freeze_json

TOGETHER = 100
"""Documents that are cut and embedded together."""
_PREFIX = "document:"
_WRITTEN = 10_000
"""Characters written before the event loop may do something else; each document counts as some."""
_LONGEST_ID = 400

Metadata = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Document:
    """A text as it was given."""

    id: str
    text: str
    metadata: dict[str, Any]


def documents_of(texts: str | Sequence[str], metadata: Metadata | None) -> list[Document]:
    """Each text with its metadata, and the id in there or a new one.

    :raises ValueError: a text, its metadata or its id cannot be stored; it says which and why.
    """
    if isinstance(texts, str):
        texts = [texts]
    elif isinstance(texts, Mapping | bytes) or not isinstance(texts, Iterable):
        raise ValueError(f"documents are a text or a list of texts, with their metadata beside them, not {_kind(texts)}")
    texts = list(texts)
    if metadata is not None and (isinstance(metadata, str | bytes) or not isinstance(metadata, Iterable)):
        raise ValueError(f"metadata is a dict for all texts or a list with one for each, not {_kind(metadata)}")
    each = [metadata or {}] * len(texts) if metadata is None or isinstance(metadata, Mapping) else list(metadata)
    if len(each) != len(texts):
        raise ValueError(f"{len(texts)} texts with {len(each)} metadata; give one object for all or one for each")
    if isinstance(metadata, Mapping) and metadata.get("id") is not None and len(texts) > 1:
        raise ValueError(f"{len(texts)} texts cannot share the id {metadata['id']!r}; give each its own metadata")
    return [_document(text, data, number) for number, (text, data) in enumerate(zip(texts, each, strict=True), start=1)]


def ids_of(documents: str | Iterable[str] | None) -> list[str] | None:
    """Which documents are meant, None: all; one id counts as it does in `add_documents`.

    :raises ValueError: it is neither an id nor ids.
    """
    if documents is None:
        return None
    some = [documents] if isinstance(documents, str | int) else documents
    ids = list(some) if isinstance(some, Iterable) and not isinstance(some, Mapping | bytes) else [some]
    if wrong := [one for one in ids if isinstance(one, bool) or not isinstance(one, str | int)]:
        raise ValueError(
            f"documents are removed by an id or a list of ids as add_documents returned them, not by {_kind(wrong[0])}"
        )
    return list(dict.fromkeys(map(str, ids)))


def _kind(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _document(text: object, metadata: object, number: int) -> Document:
    try:
        checked = check_text(text)
    except ValueError as error:
        raise ValueError(f"text {number} {error}; read files and decode bytes before adding them") from error
    if not checked.strip():
        raise ValueError(f"text {number} is blank; leave it out, nothing could ever find it")
    if not isinstance(metadata, Mapping):
        raise ValueError(f"the metadata of text {number} must be a dict, not {type(metadata).__name__}")
    try:
        data = freeze_json(dict(metadata))
    except ValueError as error:
        raise ValueError(f"the metadata of text {number} is not JSON: {error}; use plain values under keys of text") from error
    return Document(_id(data.get("id"), number), checked, data)


def _id(given: object, number: int) -> str:
    if given is None:
        return uuid4().hex
    document = str(given)
    if (
        isinstance(given, bool)
        or not isinstance(given, str | int)
        or "\x00" in document
        or not 0 < len(document) <= _LONGEST_ID
    ):
        raise ValueError(
            f"the id of text {number} must be a text of 1 to {_LONGEST_ID} characters without NUL, or a whole number, "
            f"not {given!r:.80}"
        )
    return document


def passages_of(documents: Iterable[Document], at: datetime, *, count: Callable[[str], int], tokens: int) -> list[Item]:
    """The passages of documents, of at most so many tokens each."""
    split = splitter(tokens, count)
    each = (document_items(one.id, one.text, one.metadata, at, count=count, split=split) for one in documents)
    return list(chain.from_iterable(each))


class Documents:
    """The documents of a scope."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def put(self, documents: Iterable[Document]) -> None:
        """Remember them, instead of those of the same ids."""
        written = 0
        for document in documents:
            # Shared: no session that ends takes it along.
            self._records.put(f"{_PREFIX}{document.id}", {"text": document.text, "metadata": document.metadata}, shared=True)
            written += 200 + len(document.text)
            if written > _WRITTEN:
                written = 0
                await asyncio.sleep(0)

    def delete(self, document: str) -> None:
        """Forget it."""
        self._records.delete(f"{_PREFIX}{document}")

    async def ids(self, among: Iterable[str] | None = None) -> list[str]:
        """The ids of all documents, or which of those are known."""
        if among is None:
            return [_id_of(record) async for page in self._records.pages(_PREFIX) for record in page]
        return [document for document in among if await self._records.get(f"{_PREFIX}{document}") is not None]

    async def any(self) -> bool:
        """Whether there are any."""
        return bool(await self._records.list(_PREFIX, limit=1))

    async def all(self) -> list[Document]:
        """Every document; read before anything is written, because each page is compared with all that was written."""
        return [
            Document(_id_of(record), record.data["text"], record.data["metadata"])
            async for page in self._records.pages(_PREFIX, size=TOGETHER)
            for record in page
        ]


def _id_of(record: Record) -> str:
    return record.key.removeprefix(_PREFIX)
