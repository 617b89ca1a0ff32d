"""The tests of this folder share helper modules with the processes they start; `--soak` runs them at full length."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Processes are started as scripts of this folder, so both sides import the helpers by the same plain names.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where a test keeps its database."""
    return tmp_path / "memory.db"
