"""PURE: items to points and back, BM25 weights, and answers to candidates."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import blake2s
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

from memory_engine.blocks.vector.erased import by_session, is_erased
from memory_engine.blocks.vector.qdrant_filters import client_models
from memory_engine.blocks.vector.store import Candidates, Entry, Item, Probe, Scope, Vector, follows
from memory_engine.errors import BlockError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

K1 = 1.2
B = 0.5
AVERAGE_WORDS = 24.0
"""BM25 constants. They are part of the stored values: the average cannot follow the data without rewriting every point."""

_NAMESPACE = UUID("8f3f0a4e-5a0c-5b7e-9d52-1f6b8d0c7a11")
_BATCH_WEIGHT = 24_000
"""Numbers in one upsert: the client encodes a request on the event loop, which this keeps to about 15 ms."""


@dataclass(frozen=True, slots=True)
class Found:
    """A point as it came back."""

    item: Item
    length: int
    vector: Sequence[float] | None
    words: Mapping[int, float]


# -- items and points ----------------------------------------------------------------------------------------------


def point_id(scope: Scope, key: str) -> str:
    """The id of an item's point: the same in every process, for ever, so that storing twice stores once."""
    return str(uuid5(_NAMESPACE, json.dumps([scope.tenant, scope.key, scope.block, key])))


@lru_cache(maxsize=65_536)
def word_index(word: str) -> int:
    """The place of a word in the sparse vectors. Never `hash()`, which differs in each process."""
    return int.from_bytes(blake2s(word.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big")


def dimension_of(entries: Iterable[Entry]) -> int | None:
    dimensions = {len(entry.vector) for entry in entries if entry.vector is not None}
    if len(dimensions) > 1 or 0 in dimensions:
        raise BlockError(f"All vectors must have one dimension, not {sorted(dimensions)}; look at the embed_model.")
    return dimensions.pop() if dimensions else None


def numbers_of(vector: Vector) -> list[float]:
    numbers = [float(number) for number in vector]
    if not all(map(math.isfinite, numbers)):
        raise BlockError("A vector holds NaN or infinity; look at the embed_model.")
    return numbers


def _payload_of(scope: Scope, entry: Entry) -> dict[str, Any]:
    """What filters use lies open, the rest in `item`; metadata as JSON text, because a server keeps only 64-bit numbers."""
    item = entry.item
    try:
        metadata = json.dumps(dict(item.metadata), ensure_ascii=False, allow_nan=False) if item.metadata else None
    except (TypeError, ValueError) as error:
        raise BlockError(f"The metadata of item {item.key!r} is not JSON: {error}. Use plain JSON values.") from error
    used = {
        "tenant": scope.tenant,
        "scope": scope.key,
        "block": scope.block,
        "key": item.key,
        "kind": item.kind,
        "session_uid": item.session_uid,
        "seq": item.seq,
        "until": item.seq if item.last_seq is None else item.last_seq,
        "document": item.document,
        "part": item.part,
    }
    rest = {
        "text": item.text,
        "role": item.role,
        "name": item.name,
        "at": item.at and item.at.isoformat(),
        "session_id": item.session_id,
        "last_seq": item.last_seq,
        "parts": None if item.parts == 1 else item.parts,
        "tokens": item.tokens,
        "metadata": metadata,
        "words": sum(entry.words.values()),
    }
    payload: dict[str, Any] = {key: value for key, value in used.items() if value is not None}
    payload["item"] = {key: value for key, value in rest.items() if value is not None}
    return payload


def item_of(payload: Mapping[str, Any]) -> Item:
    rest = payload["item"]
    return Item(
        key=payload["key"],
        text=rest["text"],
        kind=payload["kind"],
        role=rest["role"],
        name=rest.get("name"),
        at=datetime.fromisoformat(rest["at"]) if "at" in rest else None,
        session_uid=payload.get("session_uid"),
        session_id=rest.get("session_id"),
        seq=payload.get("seq"),
        last_seq=rest.get("last_seq"),
        part=payload["part"],
        parts=rest.get("parts", 1),
        tokens=rest["tokens"],
        document=payload.get("document"),
        metadata=json.loads(rest.get("metadata", "{}")),
    )


def hashed(words: Mapping[str, float]) -> dict[int, float]:
    """Weights by place; words that fall on one place are added."""
    places: dict[int, float] = defaultdict(float)
    for word, weight in words.items():
        if weight:
            places[word_index(word)] += weight
    return dict(sorted(places.items()))


def _bm25(words: Mapping[str, int]) -> dict[int, float]:
    """The part of BM25 that a document knows by itself; the server multiplies by the query's IDF."""
    norm = _norm(sum(words.values()))
    return {place: count * (K1 + 1) / (count + norm) for place, count in hashed(words).items()}


def _norm(length: int) -> float:
    return K1 * (1 - B + B * length / AVERAGE_WORDS)


def _count_of(weight: float, length: int) -> int:
    """How often the word is there whose weight this is: `_bm25` the other way round."""
    rest = K1 + 1 - weight
    return min(length, round(weight * _norm(length) / rest)) if rest > 0 else length


def batches(entries: Iterable[Entry], most: int) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    weight = 0
    for entry in entries:
        own = (0 if entry.vector is None else len(entry.vector)) + 2 * len(entry.words) + len(entry.item.text) // 8
        if batch and (len(batch) == most or weight + own > _BATCH_WEIGHT):
            yield batch
            batch, weight = [], 0
        batch.append(entry)
        weight += own
    if batch:
        yield batch


def points_of(scope: Scope, entries: Iterable[Entry], dense_name: str, sparse_name: str) -> list[Any]:
    models = client_models()
    points = []
    for entry in entries:
        vectors: dict[str, Any] = {}
        if entry.vector is not None:
            vectors[dense_name] = numbers_of(entry.vector)
        if weights := _bm25(entry.words):
            vectors[sparse_name] = models.SparseVector(indices=list(weights), values=list(weights.values()))
        payload = _payload_of(scope, entry)
        points.append(models.PointStruct(id=point_id(scope, entry.item.key), vector=vectors, payload=payload))
    return points


def found_in(scope: Scope, points: Iterable[Any], dense_name: str, sparse_name: str) -> list[Found]:
    """Points as they came back, without what is being erased."""
    mine = {"tenant": scope.tenant, "scope": scope.key, "block": scope.block}
    erasing = by_session(scope.erasing)
    found = []
    for point in points:
        payload = point.payload or {}
        # The filter has seen to it; that no other scope is ever shown does not depend on the server alone.
        if any(payload.get(key) != value for key, value in mine.items()):
            continue
        item = item_of(payload)
        if not is_erased(item, erasing):
            vectors = point.vector if isinstance(point.vector, dict) else {}
            words = vectors.get(sparse_name)
            weights = {} if words is None else dict(zip(words.indices, words.values, strict=True))
            found.append(Found(item, payload["item"]["words"], vectors.get(dense_name), weights))
    return found


# -- answers -------------------------------------------------------------------------------------------------------


def candidates_of(
    pool: Sequence[Found], around: Sequence[Found], probe: Probe, vector: Vector | None, limit: int, total: int
) -> Candidates:
    """The pool and what surrounds it, in order; `vector` None: no cosines."""
    import numpy as np

    ordered = in_order(list({found.item.key: found for found in (*around, *pool)}.values()))
    items = [found.item for found in ordered]
    places = [word_index(word) for word in probe.words]
    counts = [[_count_of(one.words[place], one.length) if place in one.words else 0 for place in places] for one in ordered]
    lengths = np.array([found.length for found in ordered], np.float32)
    # Something may have been added between the two calls.
    total = max(total, len(items))
    return Candidates(
        items=items,
        counts=np.array(counts, np.float32).reshape(len(items), len(places)),
        lengths=lengths,
        frequency=np.array(_frequencies(pool, places, limit, total), np.float32),
        # Of those that came back: nobody counts the words of a whole scope for each query.
        average_length=float(lengths.mean()) if items else 0.0,
        dense=None if vector is None else _cosines(ordered, vector),
        follows=np.array([i > 0 and follows(items[i - 1], items[i]) for i in range(len(items))], np.bool_),
        total=total,
    )


def _cosines(found: Sequence[Found], vector: Vector) -> NDArray[np.float32]:
    import numpy as np

    probe = np.asarray(vector, np.float32)
    zeros = [0.0] * len(probe)
    rows = np.array([zeros if one.vector is None else one.vector for one in found], np.float32).reshape(len(found), len(probe))
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(probe)
    cosines: NDArray[np.float32] = np.divide(rows @ probe, lengths, out=np.zeros(len(found), np.float32), where=lengths > 0)
    return cosines


def _frequencies(pool: Sequence[Found], places: Sequence[int], limit: int, total: int) -> list[int]:
    """How many items of the scope contain each word; what the server knows is of all scopes together.

    Fewer matches than `limit` are all there are: the counts are exact. Else the pool holds every match of a rare word, for
    those rank first, and little more than a sample of a frequent one: the count is scaled up to the scope by its share.
    """
    frequencies = [sum(place in found.words for found in pool) for place in places]
    matches = sum(any(place in found.words for place in places) for found in pool)
    if matches < max(1, limit):
        return frequencies
    return [round(count * (1 + (total / matches - 1) * count / matches)) for count in frequencies]


def in_order(found: list[Found]) -> list[Found]:
    """Sessions by when their first item here was said, then in their order; documents last."""
    began: dict[str, tuple[int, float]] = {}
    for item in (one.item for one in found if one.item.kind == "message"):
        uid = item.session_uid or ""
        start = (item.seq or 0, item.at.timestamp() if item.at else 0.0)
        began[uid] = min(began.get(uid, start), start)

    def place(one: Found) -> tuple[Any, ...]:
        item = one.item
        if item.kind == "document":
            return (1, 0.0, item.document or "", 0, item.part, item.key)
        uid = item.session_uid or ""
        return (0, began[uid][1], uid, item.seq or 0, item.part, item.key)

    return sorted(found, key=place)
