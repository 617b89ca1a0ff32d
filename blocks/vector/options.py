"""What a block for recall can be told, and the checks of it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Self
from zoneinfo import ZoneInfo

from pydantic import Field, PrivateAttr, field_validator, model_validator

from memory_engine import BaseMemoryBlock, ContentBlock
from memory_engine.blocks.embedders.protocol import CachedEmbedder, as_embedder
from memory_engine.blocks.vector.entries import MOST_PRECEDING
from memory_engine.blocks.vector.layout import Layout
from memory_engine.blocks.vector.ranking import Floor, Weights
from memory_engine.blocks.vector.store import VectorStore
from memory_engine.blocks.vector.templates import (
    BARE,
    DOCUMENT_FIELDS,
    MESSAGE_FIELDS,
    PLAIN,
    checked_template,
    checked_time_format,
)
from memory_engine.blocks.vector.words import Words
from memory_engine.errors import BlockStateError

_SHARED = ("vector_store", "embed_model", "postprocessors")
"""Fields that copies of a definition share."""
_ELSEWHERE = {
    "node_postprocessors": "that is postprocessors here: functions (query, hits) -> hits",
    "query_kwargs": "filters and thresholds are functions in postprocessors here; what a store needs is given to the store",
}
"""What LlamaIndex calls otherwise."""


class RecallOptions(BaseMemoryBlock[list[ContentBlock]]):
    """The fields of `VectorMemoryBlock`, all of which are checked when a definition is made or copied with changes."""

    name: str = "RetrievedMessages"
    description: str | None = "What was said before and bears on the question."
    priority: int = Field(default=2, ge=0)

    vector_store: Any = Field(default=None, exclude=True)
    """A `VectorStore`; None: the database of the memory itself."""
    embed_model: Any = Field(default=None, exclude=True)
    """An async function from a list of texts to vectors, an adapter of `memory_engine.blocks.embedders`, or embeddings of
    LlamaIndex or LangChain; None: words alone."""
    postprocessors: list[Any] = Field(default_factory=list, exclude=True)
    """Functions `(query, hits) -> hits`, async or not, over the best `rerank` hits: rerankers, thresholds, filters. What the
    last one returns is shown, best first, as far as there is room: by the scores it gives if they are positive and fall, else
    by its order alone. Items that it did not get are ignored."""
    rerank: int = Field(default=100, gt=0)
    """How many of the best hits `postprocessors` get; the others are left out when there are any."""

    similarity_top_k: int | None = Field(default=None, gt=0)
    """At most so many items; None: as many as the room holds."""
    retrieval_context_window: int = Field(default=5, gt=0)
    """When `get` has no query, the last so many messages of user and assistant are the query, the newest counting most."""
    format_template: str = PLAIN
    """How a message is written, with the fields speaker, text, role, name, time, session_id and metadata. `{metadata[topic]}`
    is one value of the metadata, "" if there is none."""
    document_template: str = BARE
    """How passages of a document are written, with the fields text, document (its id), time (when it was added) and metadata,
    as in "{metadata[title]}: {text}"."""
    time_format: str = "[%Y-%m-%d %H:%M]"
    """A strftime format, written above the items of one time; "" for none."""
    time_zone: str | None = None
    """The IANA name of the zone in which times are shown, such as "Europe/Berlin"; None: UTC, as they are stored."""
    time_resolution: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    """Seconds within which items share one time."""
    language: str = "english"
    """Of the words: a language with a Snowball stemmer ("german", "de" …), or "none"."""
    weights: Weights = Weights()
    """How scores are made; see `Weights`."""
    floor: Floor | None = Floor()
    """When nothing is shown at all; None: never."""
    least_score: float = Field(default=0.02, ge=0, le=1)
    """Items below this part of the best score are left out however much room there is; not what `postprocessors` return."""
    preceding: int = Field(default=2, ge=0, le=MOST_PRECEDING)
    """So many messages before an item are embedded with it, so that "yes, on Friday" is found by what it answers."""
    preceding_share: float = Field(default=0.7, ge=0, le=1)
    """The share of that vector in an item's vector; the rest is that of the item alone."""
    item_tokens: int = Field(default=1024, gt=0)
    """Messages above it become several items."""
    document_tokens: int = Field(default=256, gt=0)
    """Passages of documents are that long at most."""
    embed_timeout: float = Field(default=1.5, gt=0, allow_inf_nan=False)
    """Seconds that `get` waits for the vector of a query before it goes on with words alone; less than `Limits(get=...)`,
    which leaves the whole section out."""

    _embedder: CachedEmbedder | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _names_of_llama_index(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for name, hint in _ELSEWHERE.items():
                if name in data:
                    raise ValueError(f"{cls.__name__} has no {name}; {hint}")
        return data

    @field_validator("vector_store")
    @classmethod
    def _check_store(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, VectorStore):
            raise ValueError(
                f"vector_store must be a VectorStore such as QdrantVectorStore(client), not {type(value).__name__}; "
                "or leave it out to use the database of the memory"
            )
        return value

    @field_validator("postprocessors")
    @classmethod
    def _check_postprocessors(cls, value: list[Any]) -> list[Any]:
        if wrong := [each for each in value if not callable(each)]:
            raise ValueError(f"postprocessors are functions (query, hits) -> hits, not {wrong[0]!r:.80}")
        return value

    @field_validator("format_template")
    @classmethod
    def _check_format_template(cls, value: str) -> str:
        return checked_template(value, MESSAGE_FIELDS, "format_template")

    @field_validator("document_template")
    @classmethod
    def _check_document_template(cls, value: str) -> str:
        return checked_template(value, DOCUMENT_FIELDS, "document_template")

    @field_validator("time_format")
    @classmethod
    def _check_time_format(cls, value: str) -> str:
        return checked_time_format(value)

    @field_validator("floor", mode="before")
    @classmethod
    def _check_floor(cls, value: Any) -> Any:
        if isinstance(value, bool | int | float | str):
            raise ValueError(
                f"floor has several thresholds: floor=Floor(single={_share(value)}), or None for no floor, not {value!r}"
            )
        return value

    @field_validator("time_zone")
    @classmethod
    def _check_time_zone(cls, value: str | None) -> str | None:
        if value is not None:
            _zone(value)
        return value

    @field_validator("language")
    @classmethod
    def _check_language(cls, value: str) -> str:
        _words(value)
        return value

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._equip()

    def _equip(self) -> None:
        # Definitions make it, their copies share it: with it the cache of vectors.
        self._embedder = None if self.embed_model is None else as_embedder(self.embed_model)

    @property
    def _words(self) -> Words:
        return _words(self.language)

    @property
    def _layout(self) -> Layout:
        zone = None if self.time_zone is None else _zone(self.time_zone)
        return Layout(self.format_template, self.time_format, self.time_resolution, self.document_template, zone)

    # -- copies ----------------------------------------------------------------------------------------------

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other fields; they are checked as those of a new definition are."""
        copied = super().model_copy(deep=deep)
        for name, value in (update or {}).items():
            type(self).__pydantic_validator__.validate_assignment(copied, name, value)
        if update and "embed_model" in update:
            copied._equip()
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        # Clients and models cannot be copied, and need not be.
        shared = [getattr(self, name) for name in _SHARED if name != "postprocessors"]
        known = {id(value): value for value in (*shared, *self.postprocessors)}
        memo = {} if memo is None else memo
        memo.update(known)
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        if self.bound:
            raise BlockStateError(f"The block {self.name!r} is bound to a scope and cannot be pickled; pickle its definition.")
        for name in _SHARED:
            try:
                pickle.dumps(getattr(self, name))
            except Exception as error:
                raise BlockStateError(
                    f"The block {self.name!r} cannot be pickled with its {name} ({error}); construct it in the process that "
                    "uses it."
                ) from error
        state = super().__getstate__()
        # Made anew from the field of that name: it has threads and a cache.
        private = state["__pydantic_private__"] or {}
        return state | {"__pydantic_private__": {**private, "_embedder": None}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__(state)
        self._equip()


def _share(value: object) -> float:
    """What somebody who gave one number for a floor may have meant."""
    return value if isinstance(value, float) and 0 <= value <= 1 else 0.45


@lru_cache(maxsize=32)
def _words(language: str) -> Words:
    return Words(language)


@lru_cache(maxsize=32)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:
        raise ValueError(
            f'time_zone is an IANA name such as "Europe/Berlin", or None for UTC, not {name!r:.80}; where the system has no '
            "time zones, install the package tzdata"
        ) from error
