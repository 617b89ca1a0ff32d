"""Items as records: their JSON, and their words and vector as bytes."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_engine.block import Record
from memory_engine.blocks.vector.store import Item, Vector
from memory_engine.errors import BlockError
from memory_engine.frozen import FrozenDict

PREFIX = "item:"
_HEAD = struct.Struct("<BHH")
_FORMAT = 1


def dimension_of(blob: bytes | None) -> int:
    """How many numbers the vector of an item has; 0: it has none."""
    return int(_HEAD.unpack_from(blob or NO_BLOB)[2])


def record_key(item: Item) -> str:
    """Where an item stands: records are listed in the order of their keys."""
    if item.seq is None:
        return f"{PREFIX}document:{item.document}:{item.part:06d}"
    return f"{PREFIX}{item.session_uid}:{item.seq:016d}:{item.part:04d}"


def data_of(item: Item) -> dict[str, Any]:
    data: dict[str, Any] = {"text": item.text, "role": item.role, "tokens": item.tokens}
    optional = {
        "key": None if PREFIX + item.key == record_key(item) else item.key,
        "kind": None if item.kind == "message" else item.kind,
        "name": item.name,
        "at": item.at.isoformat() if item.at else None,
        "session_id": item.session_id,
        "last_seq": item.last_seq,
        "part": item.part or None,
        "parts": None if item.parts == 1 else item.parts,
        "document": item.document,
        "metadata": dict(item.metadata) or None,
    }
    return data | {name: value for name, value in optional.items() if value is not None}


def item_of(record: Record) -> Item:
    data: Mapping[str, Any] = record.data
    document = data.get("document")
    at = data.get("at")
    return Item(
        key=data.get("key") or record.key.removeprefix(PREFIX),
        text=data["text"],
        kind=data.get("kind", "message"),
        role=data["role"],
        name=data.get("name"),
        at=None if at is None else datetime.fromisoformat(at),
        session_uid=None if document is not None else record.session_uid,
        session_id=data.get("session_id"),
        seq=record.seq,
        last_seq=data.get("last_seq"),
        part=data.get("part", 0),
        parts=data.get("parts", 1),
        tokens=data["tokens"],
        document=document,
        metadata=data.get("metadata") or _NOTHING,
    )


@lru_cache(maxsize=65_536)
def hash_of(word: str) -> int:
    """A word as 32 bits: among the words of one scope, two that share a number are too rare to matter."""
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "little")


def pack(words: Mapping[str, int], vector: Vector | None) -> bytes:
    """Format, number of words, dimension; the words as 32-bit hashes, their counts, the vector in half precision."""
    hashes = np.fromiter((hash_of(word) for word in words), dtype="<u4", count=len(words))[:65_535]
    counts = np.minimum(np.fromiter(words.values(), dtype=np.int64, count=len(words)), 65_535).astype("<u2")[:65_535]
    # Half precision holds the numbers of a vector of length 1, not those of any vector.
    numbers = np.asarray([], dtype="<f2") if vector is None else unit(vector).astype("<f2")
    return _HEAD.pack(_FORMAT, len(hashes), len(numbers)) + hashes.tobytes() + counts.tobytes() + numbers.tobytes()


def unit(vector: Vector) -> NDArray[np.float32]:
    exact = np.asarray(vector, dtype=np.float64)
    length = float(np.linalg.norm(exact))
    result: NDArray[np.float32] = (exact / length if length else exact).astype(np.float32)
    return result


_NOTHING: Mapping[str, Any] = FrozenDict()
"""Shared by the items without metadata: of most scopes, all of them. It can be copied and pickled, as hits must be."""
NO_BLOB = _HEAD.pack(_FORMAT, 0, 0)


def without_vector(blob: bytes) -> bytes:
    form, words, _ = _HEAD.unpack_from(blob)
    return _HEAD.pack(form, words, 0) + blob[_HEAD.size : _HEAD.size + 6 * words]


def unpack(blob: bytes) -> tuple[NDArray[np.uint32], NDArray[np.uint16], NDArray[np.float32]]:
    form, words, dimension = _HEAD.unpack_from(blob)
    if form != _FORMAT:
        raise BlockError(f"An item was stored in format {form} of a newer version; update this package.")
    start = _HEAD.size
    hashes = np.frombuffer(blob, dtype="<u4", count=words, offset=start)
    counts = np.frombuffer(blob, dtype="<u2", count=words, offset=start + 4 * words)
    vector = np.frombuffer(blob, dtype="<f2", count=dimension, offset=start + 6 * words)
    return hashes, counts, vector.astype(np.float32)
