"""What a vector store keeps and answers: items in, scored candidates out. One contract for every store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from memory_engine.block import Erased, Records

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Vector = Sequence[float]


@dataclass(frozen=True, slots=True)
class Item:
    """One retrievable unit: a message, a small step, a passage of a long message, or a passage of a document.

    `key` identifies it for ever within its scope, so that storing it twice stores it once. Conversation items are ordered by
    `(session_uid, seq, part)`; `last_seq` is the last message of a step. Documents have no session and no seq; their `part`s
    are in the order of the document. `parts` says into how many passages the message or the document was cut. `metadata` is
    that of the message (of a step, of its first message; {} if it is above 4,000 characters of JSON) or of the document.
    """

    key: str
    text: str
    kind: Literal["message", "document"] = "message"
    role: str = "user"
    name: str | None = None
    at: datetime | None = None
    session_uid: str | None = None
    session_id: str | None = None
    seq: int | None = None
    last_seq: int | None = None
    part: int = 0
    parts: int = 1
    tokens: int = 0
    document: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


PAUSE = 3_600.0
"""After so many seconds of silence a conversation begins anew: what comes then has not to do with what was before."""
GAP = 2
"""Messages whose seqs differ by no more follow one another: one in between may have had nothing to store."""


def follows(before: Item, item: Item) -> bool:
    """Whether an item comes directly after another in the same conversation or document."""
    if (before.kind, before.session_uid, before.document) != (item.kind, item.session_uid, item.document):
        return False
    if before.seq == item.seq:
        return item.part == before.part + 1
    if before.seq is None or item.seq is None or item.seq < before.seq:
        return False
    if before.at is not None and item.at is not None and abs((item.at - before.at).total_seconds()) > PAUSE:
        return False
    return item.seq - (before.seq if before.last_seq is None else before.last_seq) <= GAP


@dataclass(frozen=True, slots=True)
class Entry:
    """An item with what it is found by: its words (each with how often it occurs) and, if there is an embedder, its vector."""

    item: Item
    words: Mapping[str, int]
    vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """What is looked for: the words of the query (each with its weight) and, if there is an embedder, its vector."""

    words: Mapping[str, float]
    vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose items. A store must never answer with another scope's, whatever it is asked.

    `records` are the block's rows in the engine's database, for stores that live there; what is written to them is committed
    together with the cursor. `version` and `deleted_version` tell in-process caches what changed. `erasing` names messages
    that are being erased: they must be left out of every answer.
    """

    tenant: str
    key: str
    block: str
    records: Records
    version: int = 0
    deleted_version: int = 0
    erasing: tuple[Erased, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items in their order, with what their scores are computed from; all arrays are parallel to `items`.

    `counts[i, j]` says how often item i contains the j-th word of the probe (`Probe.words` in its order), `lengths[i]` how
    many words it has. `frequency[j]` is the number of items of the scope that contain word j, `average_length` the mean
    number of words of an item. `dense` are cosine similarities to the probe's vector, None without one; items without a
    vector have 0. `follows[i]` says that item i follows item i-1, by the function of that name.
    A store that looks at everything returns the whole scope; one that cannot returns its best `limit` and the items around
    them. `total` is the number of items in the scope. None of the numbers counts items that are being erased, as far as a
    store can tell: what is too much for one filter of Qdrant (several hundred ranges of messages) is in its `total`.
    """

    items: Sequence[Item]
    counts: NDArray[np.float32]
    lengths: NDArray[np.float32]
    frequency: NDArray[np.float32]
    average_length: float
    dense: NDArray[np.float32] | None
    follows: NDArray[np.bool_]
    total: int


@runtime_checkable
class VectorStore(Protocol):
    """Keeps the items of many scopes. Implemented by `RecordsVectorStore` (the default) and `QdrantVectorStore`.

    Every method may raise `BlockUnavailableError` (the service is down: deliveries wait, `get` goes on without) or
    `BlockError` with what to do (a foreign collection); `add` and `search` raise `DimensionError`, before anything is written,
    for vectors of another dimension than the stored ones: then words alone are stored and compared.
    """

    async def add(self, scope: Scope, entries: Sequence[Entry]) -> None:
        """Store entries; one whose key is there is replaced. All vectors have one dimension, or there are none."""

    async def search(self, scope: Scope, probe: Probe, *, limit: int) -> Candidates:
        """Score the scope's items; what `scope.erasing` covers is left out."""

    async def items(self, scope: Scope, session_uid: str, from_seq: int, to_seq: int) -> Sequence[Item]:
        """The items of a session that contain a message with `from_seq <= seq <= to_seq`, in order."""

    async def remove(self, scope: Scope, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        """Remove what came from these messages: a step that contains one of them goes whole. `seqs` None: the whole
        session; `session_uid` None: everything of the scope. Documents go with the whole scope only."""

    async def remove_documents(self, scope: Scope, documents: Sequence[str] | None) -> int:
        """Remove documents by id (None: all). Returns how many items went."""

    async def count(self, scope: Scope) -> int:
        """How many items the scope holds."""

    async def renew(self, scope: Scope, *, dimension: int | None, same_model: bool, keep: Callable[[Item], bool]) -> None:
        """Get ready for everything to be added anew, while what is there goes on being found.

        First of all raises `BlockError` when vectors of that dimension do not fit: of the same model to those that are
        stored, of another one to what the store can hold. Removes the items that `keep` is False for: an old backup brought
        them back. Unless `same_model` takes away all vectors, so that only words find items until they are added; vectors of
        two models cannot be compared.
        """
