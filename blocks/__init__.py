"""The blocks that come with the engine. They use its public names only, as a block of yours would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if __name__ != "memory_engine.blocks":
    raise ImportError(f"This package is memory_engine.blocks; it cannot be imported as {__name__!r}.")

from memory_engine.blocks.static import StaticMemoryBlock

if TYPE_CHECKING:
    from memory_engine.blocks.entities.block import Entity, EntityMemoryBlock
    from memory_engine.blocks.facts.block import FactExtractionMemoryBlock
    from memory_engine.blocks.facts.entries import Proof
    from memory_engine.blocks.facts.ledger import Fact
    from memory_engine.blocks.summary.block import SummaryMemoryBlock, SummaryVersion
    from memory_engine.blocks.vector.block import Hit, VectorMemoryBlock
    from memory_engine.blocks.vector.llama_index import LlamaIndexVectorStore
    from memory_engine.blocks.vector.qdrant import QdrantVectorStore
    from memory_engine.blocks.vector.ranking import Floor, Weights
    from memory_engine.blocks.vector.records import RecordsVectorStore

__all__ = [
    "Entity",
    "EntityMemoryBlock",
    "Fact",
    "FactExtractionMemoryBlock",
    "Floor",
    "Hit",
    "LlamaIndexVectorStore",
    "Proof",
    "QdrantVectorStore",
    "RecordsVectorStore",
    "StaticMemoryBlock",
    "SummaryMemoryBlock",
    "SummaryVersion",
    "VectorMemoryBlock",
    "Weights",
]

_ON_DEMAND = {
    "Entity": "entities.block",
    "EntityMemoryBlock": "entities.block",
    "Fact": "facts.ledger",
    "FactExtractionMemoryBlock": "facts.block",
    "Floor": "vector.ranking",
    "Hit": "vector.block",
    "LlamaIndexVectorStore": "vector.llama_index",
    "Proof": "facts.entries",
    "QdrantVectorStore": "vector.qdrant",
    "RecordsVectorStore": "vector.records",
    "SummaryMemoryBlock": "summary.block",
    "SummaryVersion": "summary.block",
    "VectorMemoryBlock": "vector.block",
    "Weights": "vector.ranking",
}


def __getattr__(name: str) -> Any:
    # On demand: importing blocks must load neither numpy nor a client.
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"memory_engine.blocks.{_ON_DEMAND[name]}"), name)
