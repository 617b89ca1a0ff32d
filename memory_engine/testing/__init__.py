"""Test doubles, and contracts to prove one's own blocks and stores with. None of them needs a network or a model.

    from memory_engine.testing import FakeClock, FakeEmbedder, ScriptedLLM          # need nothing but this package
    from memory_engine.testing import BlockContract, StoreContract                  # need pytest and pytest-asyncio

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
    from memory_engine.testing.store_contract import StoreContract

__all__ = ["BlockContract", "FakeClock", "FakeEmbedder", "ScriptExhaustedError", "ScriptedLLM", "StoreContract"]

_NEED_PYTEST = {
    "BlockContract": "memory_engine.testing.block_contract",
    "StoreContract": "memory_engine.testing.store_contract",
}


def __getattr__(name: str) -> Any:
    # On demand: the doubles must be usable where pytest is not installed.
    if name not in _NEED_PYTEST:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_NEED_PYTEST[name]), name)
