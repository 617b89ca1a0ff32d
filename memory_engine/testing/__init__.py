"""Test doubles, and contracts to prove one's own blocks and stores with. None of them needs a network or a model.

    from memory_engine.testing import FakeClock, FakeEmbedder, ScriptedLLM          # need nothing but this package
    from memory_engine.testing import BlockContract, StoreContract                  # need pytest and pytest-asyncio
    from memory_engine.testing import VectorStoreContract                           # these and numpy
    from memory_engine.testing import assert_recalls                                # "this must be in context at 2,000 tokens"

A contract is a pytest class: subclass it in a test module, say what to test in a fixture, and its tests run for yours.

    class TestMentionCounter(BlockContract):
        @pytest.fixture
        def block(self):
            return MentionCounter(mention_name="Ada")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memory_engine.testing.doubles import FakeClock, FakeEmbedder, ScriptedLLM, ScriptExhaustedError

if TYPE_CHECKING:
    from memory_engine.testing.block_contract import BlockContract
    from memory_engine.testing.recall import assert_recalls
    from memory_engine.testing.store_contract import StoreContract
    from memory_engine.testing.vector_store_contract import VectorStoreContract

__all__ = [
    "BlockContract",
    "FakeClock",
    "FakeEmbedder",
    "ScriptExhaustedError",
    "ScriptedLLM",
    "StoreContract",
    "VectorStoreContract",
    "assert_recalls",
]

_ON_DEMAND = {
    "BlockContract": "memory_engine.testing.block_contract",
    "StoreContract": "memory_engine.testing.store_contract",
    "VectorStoreContract": "memory_engine.testing.vector_store_contract",
    "assert_recalls": "memory_engine.testing.recall",
}


def __getattr__(name: str) -> Any:
    # The doubles must be usable where pytest is not installed, and without loading the engine.
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_ON_DEMAND[name]), name)
