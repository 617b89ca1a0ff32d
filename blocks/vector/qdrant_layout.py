"""PURE: what a Qdrant collection of ours is made of; another's is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from memory_engine.blocks.embedders.protocol import DimensionError
from memory_engine.errors import BlockError

KEYWORDS = ("tenant", "scope", "block", "session_uid", "document", "kind")
NUMBERS = ("seq", "until", "part")
"""The parts of the payload that filters use, each with an index."""


@dataclass(frozen=True, slots=True)
class CollectionLayout:
    """What the collection is made of; `dimension` None: words only."""

    dimension: int | None
    indexed: frozenset[str]


def layout_of(info: Any, collection: str, dense_name: str, sparse_name: str) -> CollectionLayout:
    """The layout of a collection of ours; another's is refused before anything is written to it."""
    params = info.config.params
    sparse = (params.sparse_vectors or {}).get(sparse_name)
    modifier = getattr(getattr(sparse, "modifier", None), "value", None)
    vectors = params.vectors or {}
    problem = ""
    dimension = None
    if sparse is None or modifier != "idf":
        problem = f"it has no sparse vector {sparse_name!r} with the IDF modifier"
    elif not isinstance(vectors, dict) or (vectors and dense_name not in vectors):
        problem = f"it has dense vectors, but none is named {dense_name!r}"
    elif vectors:
        dense = vectors[dense_name]
        dimension = dense.size
        if dense.distance.value != "Cosine" or dense.multivector_config is not None:
            problem = f"its vector {dense_name!r} is not a single vector compared by cosine"
    if problem:
        raise BlockError(
            f"The Qdrant collection {collection!r} was not made by QdrantVectorStore: {problem}. "
            "Give another `collection`, which is made on first use, or the `dense_name` and `sparse_name` it has."
        )
    return CollectionLayout(dimension, frozenset(info.payload_schema or {}))


def check_dimension(given: int, layout: CollectionLayout, collection: str) -> None:
    if layout.dimension is None:
        raise BlockError(
            f"The Qdrant collection {collection!r} was made without vectors, for search by words. For an embed_model, give "
            "another `collection` to the store and call `rebuild()` on the bound block."
        )
    if given != layout.dimension:
        raise DimensionError(
            f"The vectors have {given} dimensions, those in the Qdrant collection {collection!r} have {layout.dimension}. "
            "For another embed_model, give another `collection` to the store and call `rebuild()` on the bound block; delete "
            "the old collection when no block uses it any more."
        )
