"""Embedders: what turns texts into vectors. Any async function does; these are for those who have none.

Importing this package imports no model and no numpy; each name loads its module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memory_engine.blocks.embedders.cache import EmbeddingCache
    from memory_engine.blocks.embedders.fastembed import FastEmbedEmbedder
    from memory_engine.blocks.embedders.langchain import LangChainEmbedder
    from memory_engine.blocks.embedders.llama_index import LlamaIndexEmbedder
    from memory_engine.blocks.embedders.openai_compatible import OpenAICompatibleEmbedder
    from memory_engine.blocks.embedders.protocol import CachedEmbedder, Embedder, as_embedder
    from memory_engine.blocks.embedders.sentence_transformers import SentenceTransformersEmbedder
    from memory_engine.blocks.embedders.wordllama import WordLlamaEmbedder

__all__ = [
    "CachedEmbedder",
    "Embedder",
    "EmbeddingCache",
    "FastEmbedEmbedder",
    "LangChainEmbedder",
    "LlamaIndexEmbedder",
    "OpenAICompatibleEmbedder",
    "SentenceTransformersEmbedder",
    "WordLlamaEmbedder",
    "as_embedder",
]

_WHERE = {
    "CachedEmbedder": "protocol",
    "Embedder": "protocol",
    "EmbeddingCache": "cache",
    "FastEmbedEmbedder": "fastembed",
    "LangChainEmbedder": "langchain",
    "LlamaIndexEmbedder": "llama_index",
    "OpenAICompatibleEmbedder": "openai_compatible",
    "SentenceTransformersEmbedder": "sentence_transformers",
    "WordLlamaEmbedder": "wordllama",
    "as_embedder": "protocol",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
