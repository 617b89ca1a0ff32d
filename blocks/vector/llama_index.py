"""Vectors in any vector store of LlamaIndex; texts, words and order in the records of the block.

The store outside holds vectors under stable ids and nothing else, and what it finds counts only as far as the records know it:
so nothing that was erased, and nothing of another scope, is ever shown, whatever is left out there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import Any
from uuid import UUID

import numpy as np

from memory_engine.blocks.embedders.protocol import DimensionError
from memory_engine.blocks.services.loading import load
from memory_engine.blocks.vector.erased import last_seq_of
from memory_engine.blocks.vector.records import RecordsVectorStore
from memory_engine.blocks.vector.store import Candidates, Entry, Item, Probe, Scope, Vector
from memory_engine.errors import BlockError, ConfigurationError

_STATE = "llama-index-vectors"
_ALL = 1_000_000_000


class LlamaIndexVectorStore:
    """Wraps a `BasePydanticVectorStore`: `VectorMemoryBlock(vector_store=LlamaIndexVectorStore(store), embed_model=...)`.

    Its similarities should be cosines, as those of most stores are. What is erased is deleted there too, by its document id.
    It needs a collection of its own for each dimension of vectors.

    :raises ConfigurationError: `store` is no vector store of LlamaIndex.
    """

    def __init__(self, store: Any, *, cache_bytes: int = 256_000_000) -> None:
        if not all(hasattr(store, method) for method in ("async_add", "aquery", "adelete")):
            raise ConfigurationError(f"LlamaIndexVectorStore wraps a vector store of LlamaIndex, not {store!r:.80}.")
        self._store = store
        self._records = RecordsVectorStore(cache_bytes=cache_bytes)

    def __repr__(self) -> str:
        return f"LlamaIndexVectorStore({type(self._store).__name__})"

    async def add(self, scope: Scope, entries: Sequence[Entry]) -> None:
        """Store the items, then their vectors. Raises `DimensionError` for vectors of several dimensions."""
        generation, dimension = await _state(scope)
        dimensions = {len(entry.vector) for entry in entries if entry.vector is not None}
        if len(dimensions | ({dimension} if dimension else set())) > 1:
            raise _wrong_dimension(scope, dimensions | {dimension or 0})
        place = _place(scope, generation)
        await self._records.add(scope, [replace(entry, vector=None) for entry in entries])
        nodes = [_node(place, entry.item, entry.vector) for entry in entries if entry.vector is not None and any(entry.vector)]
        if dimensions and not dimension:
            _write_state(scope, generation, dimensions.pop())
        if nodes:
            await self._store.async_add(nodes)

    async def search(self, scope: Scope, probe: Probe, *, limit: int) -> Candidates:
        """Every item by its words, and the `limit` nearest ones with their similarity, the others with 0."""
        generation, dimension = await _state(scope)
        if probe.vector is not None and dimension and len(probe.vector) != dimension:
            raise _wrong_dimension(scope, {len(probe.vector), dimension})
        found = await self._records.search(scope, replace(probe, vector=None), limit=limit)
        if probe.vector is None or not dimension:
            return found
        place = _place(scope, generation)
        near = await self._nearest(place, probe.vector, limit) if any(probe.vector) else {}
        dense = np.array([near.get(_node_id(place, item), 0.0) for item in found.items], dtype=np.float32)
        return replace(found, dense=dense)

    async def _nearest(self, place: str, vector: Vector, limit: int) -> dict[str, float]:
        types = _types()
        query = types.VectorStoreQuery(
            query_embedding=list(vector),
            similarity_top_k=limit,
            filters=_only(types, place),
            mode=types.VectorStoreQueryMode.DEFAULT,
        )
        result = await self._store.aquery(query)
        ids = result.ids or [node.node_id for node in result.nodes or ()]
        return dict(zip(ids, result.similarities or (), strict=False))

    async def items(self, scope: Scope, session_uid: str, from_seq: int, to_seq: int) -> Sequence[Item]:
        """The items that contain one of these messages, in order."""
        return await self._records.items(scope, session_uid, from_seq, to_seq)

    async def remove(self, scope: Scope, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        """Remove what came from these messages, here and there."""
        generation, dimension = await _state(scope)
        place = _place(scope, generation)
        if session_uid is None:
            await self._delete_place(scope, place)
            if dimension:
                _write_state(scope, generation + 1, None)
        elif seqs is None:
            everything = await self._everything(scope)
            await self._delete(_documents(place, [item for item in everything if item.session_uid == session_uid]))
            await self._delete_session(place, session_uid)
        elif seqs:
            erased = set(seqs)
            stored = await self._records.items(scope, session_uid, min(erased), max(erased))
            # A step goes whole. What the engine has deleted from the records already is known by its seq.
            hit = [item for item in stored if not erased.isdisjoint(range(item.seq or 0, last_seq_of(item) + 1))]
            known = {f"{place}/{session_uid}/{seq}" for seq in erased} if dimension else set()
            await self._delete(known | _documents(place, hit))
        await self._records.remove(scope, session_uid, seqs)

    async def remove_documents(self, scope: Scope, documents: Sequence[str] | None) -> int:
        """Remove documents, here and there."""
        place = _place(scope, (await _state(scope))[0])
        everything = await self._everything(scope)
        gone = [one for one in everything if one.kind == "document" and (documents is None or one.document in documents)]
        await self._delete(_documents(place, gone))
        return await self._records.remove_documents(scope, documents)

    async def count(self, scope: Scope) -> int:
        """How many items the scope holds."""
        return await self._records.count(scope)

    async def renew(self, scope: Scope, *, dimension: int | None, same_model: bool, keep: Callable[[Item], bool]) -> None:
        """Take away what should not be there and, for another model, all vectors."""
        generation, known = await _state(scope)
        if same_model and dimension is not None and known and known != dimension:
            raise BlockError(
                f"Block {scope.block!r} has vectors of dimension {known}, now its embed_model makes {dimension} under the same "
                "name. Give the embedder an `identity` of its own, then call `rebuild()` again."
            )
        place = _place(scope, generation)
        if same_model:
            await self._delete(_documents(place, [item for item in await self._everything(scope) if not keep(item)]))
        elif known:
            await self._delete_place(scope, place)
            _write_state(scope, generation + 1, None)
        await self._records.renew(scope, dimension=None, same_model=True, keep=keep)

    # -- deleting outside ------------------------------------------------------------------------------------

    async def _everything(self, scope: Scope) -> Sequence[Item]:
        found = await self._records.search(replace(scope, erasing=()), Probe({}), limit=_ALL)
        return found.items

    async def _delete(self, documents: Iterable[str]) -> None:
        for document in sorted(documents):
            await self._store.adelete(document)

    async def _delete_session(self, place: str, session_uid: str) -> None:
        """What the engine had deleted from the records before, where the store can be asked by what nodes carry."""
        types = _types()
        # A store that cannot keeps vectors, without any text, that nothing leads to.
        with suppress(NotImplementedError):
            await self._store.adelete_nodes(filters=_only(types, place, session_uid))

    async def _delete_place(self, scope: Scope, place: str) -> None:
        await self._delete(_documents(place, await self._everything(scope)))
        with suppress(NotImplementedError):
            await self._store.adelete_nodes(filters=_only(_types(), place))


async def _state(scope: Scope) -> tuple[int, int | None]:
    """How often vectors were made anew, and their dimension; None: there are none."""
    record = await scope.records.get(_STATE)
    return (0, None) if record is None else (record.data["generation"], record.data["dimension"])


def _write_state(scope: Scope, generation: int, dimension: int | None) -> None:
    scope.records.put(_STATE, {"generation": generation, "dimension": dimension}, shared=True)


def _place(scope: Scope, generation: int) -> str:
    """Where the vectors of a scope are among those of all others; nobody can make one of another's names."""
    parts = [scope.tenant, scope.key, scope.block, str(generation)]
    return sha256("".join(f"{len(part)}:{part}" for part in parts).encode()).hexdigest()


def _document(place: str, item: Item) -> str:
    name = f"{item.session_uid}/{item.seq}" if item.kind == "message" else f"document/{item.document}"
    return f"{place}/{name}"


def _documents(place: str, items: Iterable[Item]) -> set[str]:
    return {_document(place, item) for item in items}


def _node_id(place: str, item: Item) -> str:
    # A UUID, because some stores take nothing else.
    return str(UUID(sha256(f"{place}/{item.key}".encode()).hexdigest()[:32]))


def _node(place: str, item: Item, vector: Vector) -> Any:
    schema = load("llama_index.core.schema", who="LlamaIndexVectorStore", pip="llama-index-core")
    node_id = _node_id(place, item)
    metadata = {"scope": place, "session": f"{place}/{item.session_uid}"}
    node = schema.TextNode(id_=node_id, text=node_id, embedding=[float(number) for number in vector], metadata=metadata)
    node.relationships[schema.NodeRelationship.SOURCE] = schema.RelatedNodeInfo(node_id=_document(place, item))
    return node


def _types() -> Any:
    return load("llama_index.core.vector_stores.types", who="LlamaIndexVectorStore", pip="llama-index-core")


def _only(types: Any, place: str, session_uid: str | None = None) -> Any:
    key, value = ("scope", place) if session_uid is None else ("session", f"{place}/{session_uid}")
    return types.MetadataFilters(filters=[types.MetadataFilter(key=key, value=value)])


def _wrong_dimension(scope: Scope, dimensions: set[int]) -> DimensionError:
    return DimensionError(
        f"Block {scope.block!r} has vectors of dimension {min(dimensions)} and {max(dimensions)}. After a change of the "
        "embedding model give it an `identity` of its own and call `rebuild()` on the bound block."
    )
