"""What a source says beside what is stored: the same messages, under the same ids, in the same order, at the same times."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from memory_engine.importers.source import Item, Source, SourceSession
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage, encode, stored_as
from memory_engine.rows import microseconds
from memory_engine.store import MessageRow

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Comparison:
    """A source's session beside what is stored. `difference` says where they part; empty when all is there, in order."""

    expected: int
    found: int
    digest: str = ""
    difference: str = ""
    conflict: bool = False
    """A message is stored under an id with other content, or at another time."""
    others: int = 0
    """Stored messages that the source does not have."""
    others_after: int = 0
    """Those of them that stand behind everything found."""


class Digest:
    """The SHA-256 of messages in their order, with ids and the times that the source knows."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, message: ChatMessage, data: str) -> None:
        """Add a message whose canonical JSON is `data`."""
        time = "" if message.created_at is None else str(microseconds(message.created_at))
        self._hash.update(_joined((message.id or "", time, data)))

    def __str__(self) -> str:
        return self._hash.hexdigest()


async def compare(
    memory: Memory, source: Source, session: SourceSession, *, unpin: bool = False, whole: bool = True
) -> Comparison:
    """Read the source and the stored session side by side, both in pages; unless `whole` only to the first difference."""
    stored = _stored(memory)
    digest = Digest()
    expected = found = others = others_after = 0
    difference, conflict = "", False
    async for item in source.read(session):
        if item.message is None:
            continue
        message = prepared(source, session, item, unpin=unpin)
        expected += 1
        if difference and whole:
            continue
        if difference:
            break
        async for row in stored:
            if row.message_id == message.id:
                others, others_after = others + others_after, 0
                difference = _difference(row, message)
                digest.add(message, row.data)
                found += not difference
                conflict = bool(difference)
                break
            others_after += 1
        else:
            difference = "it is not there, or not in its place"
        if difference:
            difference = f"message {expected} (row {item.row}): {difference}"
    async for _ in stored:
        others_after += 1
    return Comparison(expected, found, str(digest), difference, conflict, others + others_after, others_after)


async def count_own(memory: Memory, source: Source, session: SourceSession) -> int:
    """How many of the stored messages are of this session of the source, wherever they stand."""
    ids = {prepared(source, session, item, unpin=False).id async for item in source.read(session) if item.message is not None}
    return len([row async for row in _stored(memory) if row.message_id in ids])


def _difference(row: MessageRow, message: ChatMessage) -> str:
    if row.data != encode(message):
        return (
            "what is stored under its id has other content; the source was changed, or an earlier import read it otherwise. "
            "To bring it over anew, delete the session here (MemoryEngine.delete_session) and import it again"
        )
    if message.created_at is not None and row.created_at != microseconds(message.created_at):
        return "it is stored with another time"
    return ""


async def _stored(memory: Memory) -> AsyncIterator[MessageRow]:
    """What is stored of a session, in order, archived messages too."""
    session = await memory._session._current()
    after = -1
    while session is not None:
        rows = await memory._session.core.store.all_rows(session, after_seq=after, limit=_PAGE)
        for row in rows:
            yield row
        if len(rows) < _PAGE:
            return
        after = rows[-1].seq


def prepared(source: Source, session: SourceSession, item: Item, *, unpin: bool) -> ChatMessage:
    """The message with the id that it always gets."""
    assert item.message is not None
    message = item.message
    if unpin and message.pinned:
        message = message.model_copy(update={"metadata": {**message.metadata, "pinned": False}})
    name = _joined((source.kind, session.name, item.row))
    message_id = f"{source.kind}-{hashlib.sha256(name).hexdigest()[:32]}"
    return stored_as(message, message_id, item.created_at)


def _joined(parts: Iterable[str]) -> bytes:
    """The parts as one, so that other parts give another."""
    return b"".join(b"%d:%b" % (len(data), data) for data in [part.encode("utf-8", "surrogatepass") for part in parts])
