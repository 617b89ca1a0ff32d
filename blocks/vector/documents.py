"""Documents: texts that are no conversation, kept whole as records so that their passages can be made anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Any
from uuid import uuid4

from memory_engine.block import Record, Records
from memory_engine.blocks.vector.store import Item
from memory_engine.blocks.vector.transcript import document_items, splitter

TOGETHER = 100
"""Documents that are cut and embedded together."""
_PREFIX = "document:"

Metadata = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Document:
    """A text as it was given."""

    id: str
    text: str
    metadata: dict[str, Any]


def documents_of(texts: Sequence[str], metadata: Metadata | None) -> list[Document]:
    """Each text with its metadata, and the id in there or a new one."""
    texts = [texts] if isinstance(texts, str) else list(texts)
    each = [metadata or {}] * len(texts) if metadata is None or isinstance(metadata, Mapping) else list(metadata)
    if len(each) != len(texts):
        raise ValueError(f"{len(texts)} texts with {len(each)} metadata; give one object for all or one for each")
    if isinstance(metadata, Mapping) and metadata.get("id") is not None and len(texts) > 1:
        raise ValueError(f"{len(texts)} texts cannot share the id {metadata['id']!r}; give each its own metadata")
    return [Document(str(data.get("id") or uuid4().hex), text, dict(data)) for text, data in zip(texts, each, strict=True)]


def passages_of(documents: Iterable[Document], at: datetime, *, count: Callable[[str], int], tokens: int) -> list[Item]:
    """The passages of documents, of at most so many tokens each."""
    split = splitter(tokens, count)
    each = (document_items(one.id, one.text, one.metadata, at, count=count, split=split) for one in documents)
    return list(chain.from_iterable(each))


class Documents:
    """The documents of a scope."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def put(self, document: Document) -> None:
        """Remember it, instead of one of the same id."""
        # Shared: no session that ends takes it along.
        self._records.put(f"{_PREFIX}{document.id}", {"text": document.text, "metadata": document.metadata}, shared=True)

    def delete(self, document: str) -> None:
        """Forget it."""
        self._records.delete(f"{_PREFIX}{document}")

    async def ids(self, among: Iterable[str] | None = None) -> list[str]:
        """The ids of all documents, or which of those are known."""
        if among is None:
            return [_id_of(record) async for page in self._records.pages(_PREFIX) for record in page]
        return [document for document in among if await self._records.get(f"{_PREFIX}{document}") is not None]

    async def all(self) -> list[Document]:
        """Every document; read before anything is written, because each page is compared with all that was written."""
        return [
            Document(_id_of(record), record.data["text"], record.data["metadata"])
            async for page in self._records.pages(_PREFIX, size=TOGETHER)
            for record in page
        ]


def _id_of(record: Record) -> str:
    return record.key.removeprefix(_PREFIX)
