"""Frameworks are imported on demand, and what is missing is named with the extra that brings it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAMEWORKS = (
    "agent_framework",
    "agents",
    "anthropic",
    "google",
    "langchain",
    "langgraph",
    "llama_index",
    "openai",
    "pydantic_ai",
)
WITHOUT = """
import sys
import memory_engine.errors
sys.modules[sys.argv[1]] = None
try:
    __import__(f"memory_engine.integrations.{sys.argv[2]}")
except memory_engine.errors.MissingExtraError as error:
    print(error)
"""
IMPORTED = """
import sys
import memory_engine, memory_engine.turn, memory_engine.__main__, memory_engine.integrations
import memory_engine.formats.anthropic, memory_engine.formats.openai, memory_engine.formats.openai_responses
print([name for name in sys.modules if name.startswith(tuple(sys.argv[1:]))])
"""


def run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("package", "module", "extra"),
    [
        ("agent_framework", "agent_framework", "agent-framework"),
        ("agents", "openai_agents", "openai-agents"),
        ("google.adk", "google_adk", "google-adk"),
        ("langchain", "langchain.middleware", "langchain"),
        ("langchain_classic", "langchain.legacy", "langchain-classic"),
        ("langchain_core", "langchain", "langchain"),
        ("langgraph", "langchain.graph", "langchain"),
        ("llama_index.core.memory", "llama_index", "llama-index"),
        ("pydantic_ai", "pydantic_ai", "pydantic-ai"),
    ],
)
def test_without_the_package_the_extra_is_named(package: str, module: str, extra: str) -> None:
    assert f"pip install 'memory-engine-blocks[{extra}]'" in run(WITHOUT, package, module)


def test_no_framework_is_imported_by_what_needs_none() -> None:
    assert run(IMPORTED, *FRAMEWORKS).strip() == "[]"


def test_an_integration_is_a_small_file() -> None:
    sizes = {path: path.read_bytes().count(b"\n") for path in (ROOT / "memory_engine" / "integrations").rglob("*.py")}
    assert len(sizes) > 10
    assert {path.name: lines for path, lines in sizes.items() if lines > 250} == {}
