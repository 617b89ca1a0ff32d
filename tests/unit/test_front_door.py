"""The front door is small, complete and cheap to open."""

from __future__ import annotations

import inspect
import subprocess
import sys

import memory_engine
from memory_engine import errors


def test_all_names_exist_and_are_documented() -> None:
    assert len(memory_engine.__all__) <= 15
    for name in memory_engine.__all__:
        thing = getattr(memory_engine, name)
        if inspect.isclass(thing):
            assert inspect.getdoc(thing), name


def test_public_methods_are_documented() -> None:
    for kind in (memory_engine.Memory, memory_engine.MemoryEngine, memory_engine.Receipt, memory_engine.BaseMemoryBlock):
        for name, member in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_") and member.__module__.startswith("memory_engine"):
                assert member.__doc__, f"{kind.__name__}.{name}"


def test_every_error_is_one_of_ours_and_says_what_to_do() -> None:
    tree = inspect.getsource(errors).partition('"""')[2].partition('"""')[0]
    found = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]
    assert found
    for kind in found:
        assert issubclass(kind, memory_engine.MemoryEngineError)
        assert kind.__name__ in tree
        assert str(kind())


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, memory_engine; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    for module in ("qdrant_client", "numpy", "tiktoken", "sqlalchemy", "aiosqlite", "asyncpg", "opentelemetry", "pytest"):
        assert module not in loaded
