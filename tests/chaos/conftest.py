"""The tests of this folder share helper modules with the processes they start; `--soak` runs them at full length."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Processes are started as scripts of this folder, so both sides import the helpers by the same plain names.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def database_kind(request: pytest.FixtureRequest) -> str:
    """SQLite, unless a test is parametrized by it."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture
def new_database(request: pytest.FixtureRequest, database_kind: str, tmp_path: Path) -> Callable[[str], Path | str]:
    """Makes databases of that kind by their names."""
    if database_kind == "sqlite":
        return lambda name: tmp_path / f"{name}.db"
    made = request.getfixturevalue("postgres")
    # A running event loop allows no other one in its thread.
    from chaos_database import in_thread

    return lambda name: str(in_thread(made.make))


@pytest.fixture
def database(new_database: Callable[[str], Path | str]) -> Path | str:
    """Where a test keeps its database."""
    return new_database("memory")
