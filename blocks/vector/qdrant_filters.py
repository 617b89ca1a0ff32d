"""PURE: conditions on points, for searching, erasing and what stands around the best."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from memory_engine.block import Erased
from memory_engine.blocks.vector.store import Item
from memory_engine.errors import MissingExtraError

MOST_CONDITIONS = 100
"""So many conditions stand in one filter."""
_REACH = 2
"""How far a neighbour may be from a candidate, in messages or parts."""


def client_models() -> Any:
    try:
        from qdrant_client import models
    except ImportError as error:
        raise MissingExtraError("QdrantVectorStore needs qdrant-client: pip install memory-engine-blocks[qdrant]") from error
    return models


def equals(key: str, value: str) -> Any:
    return client_models().FieldCondition(key=key, match=client_models().MatchValue(value=value))


def among(key: str, values: Sequence[int] | Sequence[str]) -> Any:
    return client_models().FieldCondition(key=key, match=client_models().MatchAny(any=list(values)))


def _range(key: str, **bounds: int) -> Any:
    return client_models().FieldCondition(key=key, range=client_models().Range(**bounds))


def touching(session_uid: str, low: int, high: int) -> Any:
    """Items of a session with any message from `low` to `high`."""
    return client_models().Filter(must=[equals("session_uid", session_uid), _range("seq", lte=high), _range("until", gte=low)])


def hidden(erasing: Iterable[Erased]) -> list[Any]:
    """What is being erased, so that it takes no candidate's place. What is too much for a filter is dropped here later."""
    conditions: list[Any] = []
    for erased in erasing:
        if erased.session_uid is not None and erased.seqs is None:
            conditions.append(equals("session_uid", erased.session_uid))
        elif erased.session_uid is not None and erased.seqs:
            conditions.extend(touching(erased.session_uid, low, high) for low, high in runs_of(erased.seqs))
    return conditions[:MOST_CONDITIONS]


def near_to(items: Iterable[Item]) -> list[Any]:
    """Conditions for the neighbours of these items; few, because local mode checks each of them for each point."""
    begins: dict[str, set[int]] = defaultdict(set)
    ends: dict[str, set[int]] = defaultdict(set)
    documents: dict[str, set[int]] = defaultdict(set)
    for item in items:
        if item.kind == "document" and item.document is not None:
            documents[item.document].update(range(max(0, item.part - _REACH), item.part + _REACH + 1))
        elif item.session_uid is not None and item.seq is not None:
            last = item.seq if item.last_seq is None else item.last_seq
            # Its own seq: the other parts of a long message.
            begins[item.session_uid].update((item.seq, *range(last + 1, last + _REACH + 1)))
            ends[item.session_uid].update(range(max(0, item.seq - _REACH), item.seq))
    conditions = []
    for uid, seqs in begins.items():
        either = [among("seq", sorted(seqs))]
        if ends[uid]:
            either.append(among("until", sorted(ends[uid])))
        conditions.append(client_models().Filter(must=[equals("session_uid", uid)], should=either))
    for document, parts in documents.items():
        of_it = [equals("kind", "document"), equals("document", document), among("part", sorted(parts))]
        conditions.append(client_models().Filter(must=of_it))
    return conditions


def runs_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers as ranges from first to last, in order."""
    runs: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def slices(values: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
