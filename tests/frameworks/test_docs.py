"""Every Python block of docs/frameworks.md runs as it stands, in a process and a folder of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_framework_has_an_example() -> None:
    names = ("llama_index", "openai_agents", "langchain", "pydantic_ai")
    assert [name for name in names if not any(f"integrations.{name}" in block for block in BLOCKS)] == []


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block: str, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(block, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or "print" not in block
