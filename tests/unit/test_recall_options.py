"""What a block for recall refuses to be told, and its copies."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from pydantic import ValidationError
from qdrant_client import AsyncQdrantClient

from memory_engine.blocks import QdrantVectorStore, RecordsVectorStore, VectorMemoryBlock
from memory_engine.blocks.embedders.protocol import as_embedder
from memory_engine.blocks.vector.ranking import Floor
from memory_engine.errors import BlockStateError
from memory_engine.testing import FakeEmbedder


def nothing(query: str, hits: list[Any]) -> list[Any]:
    return []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"format_template": "no field"}, r"format_template 'no field' cannot be filled in: .*must contain \{text\}"),
        ({"format_template": "{text} {unknown}"}, r"may use .*'metadata'.* and uses \['unknown'\]"),
        ({"format_template": "{text} {document}"}, r"uses \['document'\]"),
        ({"format_template": "{text} {metadata.keys}"}, r"uses \['metadata.keys'\]"),
        ({"format_template": "{text} {metadata[a].b}"}, r"uses"),
        ({"format_template": "{text} {metadata[a]:d}"}, r"cannot be filled in"),
        ({"format_template": "{text:{metadata._value}}"}, r"cannot be filled in"),
        ({"format_template": "{text"}, r"cannot be filled in"),
        ({"document_template": "{speaker}: {text}"}, r"document_template .* uses \['speaker'\]"),
        ({"document_template": "{metadata[text]}"}, r"must contain \{text\}"),
        ({"time_zone": "Middle-earth/Shire"}, r"time_zone is an IANA name"),
        ({"time_zone": ""}, r"time_zone is an IANA name"),
        ({"time_zone": "/etc/passwd"}, r"time_zone is an IANA name"),
        ({"time_zone": "Europe"}, r"time_zone is an IANA name"),
        ({"language": "klingon"}, r"no stemmer"),
        ({"node_postprocessors": []}, r"VectorMemoryBlock has no node_postprocessors; that is postprocessors here"),
        ({"query_kwargs": {}}, r"VectorMemoryBlock has no query_kwargs; filters"),
        ({"postprocessors": [1]}, r"postprocessors are functions"),
        ({"floor": 0.3}, r"floor=Floor\(single=0\.3\)"),
        ({"floor": True}, r"floor=Floor\(single="),
        ({"time_format": "%Q"}, r"time_format '%Q' is no strftime format: '%Q' is unknown"),
        ({"time_format": "[%H:%M %"}, r"'%' is unknown"),
        ({"time_format": "%Y\ud800"}, r"is no strftime format"),
        ({"time_resolution": float("inf")}, r"finite"),
        ({"embed_timeout": float("inf")}, r"finite"),
    ],
)
def test_what_cannot_work_is_refused_with_a_hint(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        VectorMemoryBlock(**options)
    with pytest.raises(ValidationError):
        VectorMemoryBlock().model_copy(update=options)


@pytest.mark.parametrize(
    "options",
    [
        {"document_template": "{metadata[title]}: {text}"},
        {"time_zone": "Europe/Berlin"},
        {"time_format": ""},
        {"time_format": "100%% on %A, %-d. %B %Y"},
        {"floor": None},
        {"floor": Floor(single=0.3)},
    ],
)
def test_what_can_work_is_taken(options: dict[str, Any]) -> None:
    [(name, value)] = options.items()
    assert getattr(VectorMemoryBlock(**options), name) == value


def test_a_copy_with_another_language_has_its_words() -> None:
    english = VectorMemoryBlock(name="recall")
    german = english.model_copy(update={"language": "german"})
    assert german.name == "recall"
    assert german._words.count("Züge") == VectorMemoryBlock(language="german")._words.count("Züge")
    assert english._words.count("Züge") != german._words.count("Züge")


def test_a_copy_with_another_model_has_its_embedder() -> None:
    block = VectorMemoryBlock(embed_model=FakeEmbedder())
    other = FakeEmbedder(32)
    assert block.model_copy()._embedder is block._embedder
    assert block.model_copy(update={"max_tokens": 7})._embedder is block._embedder
    assert block.model_copy(update={"embed_model": other})._embedder is not block._embedder
    assert block.model_copy(update={"embed_model": None})._embedder is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda block: block.model_copy(deep=True), copy.copy])
def test_copies_share_clients_and_models(copied: Any) -> None:
    store, model = QdrantVectorStore(AsyncQdrantClient(":memory:")), FakeEmbedder()
    block = VectorMemoryBlock(vector_store=store, embed_model=model, postprocessors=[nothing], language="german")
    again = copied(block)
    assert again.vector_store is store and again.embed_model is model and again.postprocessors == [nothing]
    assert again._embedder is block._embedder
    assert again == block and again is not block


def test_a_definition_can_be_pickled() -> None:
    block = VectorMemoryBlock(
        embed_model=FakeEmbedder(), postprocessors=[nothing], language="german", time_zone="Europe/Berlin", name="recall"
    )
    again = pickle.loads(pickle.dumps(block))
    assert again._words.count("Züge") == block._words.count("Züge")
    assert again._layout == block._layout
    assert again._embedder.identity == block._embedder.identity
    assert again.model_dump() == block.model_dump()


@pytest.mark.parametrize("name", ["vector_store", "embed_model", "postprocessors"])
def test_what_cannot_be_pickled_is_named(name: str) -> None:
    unfit: dict[str, Any] = {
        "vector_store": RecordsVectorStore(),
        "embed_model": as_embedder(FakeEmbedder()),
        "postprocessors": [lambda query, hits: hits],
    }
    with pytest.raises(BlockStateError, match=rf"cannot be pickled with its {name} .*construct it in the process"):
        pickle.dumps(VectorMemoryBlock(**{name: unfit[name]}))
