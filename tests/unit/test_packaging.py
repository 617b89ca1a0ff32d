"""What is shipped, what importing it loads, and that every part knows of the others."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

import memory_engine

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HEAVY = ["aiosqlite", "alembic", "asyncpg", "numpy", "opentelemetry.sdk", "pytest", "qdrant_client", "sqlalchemy", "tiktoken"]


def run(program: str, *, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)


def test_importing_loads_nothing_heavy() -> None:
    done = run(f"import json, sys, memory_engine; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_importing_loads_no_block_and_no_test_double() -> None:
    done = run("import sys, memory_engine; print(sorted(m for m in sys.modules if m.startswith('memory_engine.')))")
    assert done.returncode == 0, done.stderr
    for package in ("blocks", "data", "demo", "integrations", "sql", "testing"):
        assert f"memory_engine.{package}" not in done.stdout


def test_blocks_have_one_name_only() -> None:
    done = run("import blocks")
    assert done.returncode != 0
    assert "ImportError: This package is memory_engine.blocks" in done.stderr
    assert run("import memory_engine.blocks").returncode == 0


def test_nothing_but_memory_engine_is_importable_from_elsewhere(tmp_path: Path) -> None:
    program = "import importlib.util as u; assert not any(map(u.find_spec, ['blocks', 'tests', 'benchmarks', 'tools']))"
    command = [sys.executable, "-I", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_package_is_listed() -> None:
    found = {"memory_engine"} | {
        "memory_engine." + ".".join(path.relative_to(ROOT / "memory_engine").parts)
        for path in (ROOT / "memory_engine").rglob("*")
        if path.is_dir() and (path / "__init__.py").exists()
    }
    # `rglob` does not go through the link to the folder of the blocks.
    found |= {
        "memory_engine." + ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "blocks").rglob("__init__.py")
    }
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(found)


def test_every_file_with_code_is_in_a_package() -> None:
    folders = {path.parent for path in (ROOT / "memory_engine").rglob("*.py")} | {
        path.parent for path in ROOT.glob("blocks/**/*.py")
    }
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_version_is_one() -> None:
    assert PROJECT["project"]["version"] == memory_engine.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", memory_engine.__version__)


@pytest.mark.parametrize("name", ["py.typed", "data/o200k_base.xz", "data/apollo13.jsonl.gz", "data/NOTICE.md"])
def test_data_is_there(name: str) -> None:
    assert files("memory_engine").joinpath(name).is_file()


def test_extras_name_each_other_rightly() -> None:
    extras: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
    own = PROJECT["project"]["name"]
    for requirement in (line for lines in extras.values() for line in lines if line.startswith(own)):
        named = re.fullmatch(rf"{own}\[([a-z,-]+)\]", requirement)
        assert named, requirement
        assert set(named[1].split(",")) <= extras.keys()


def test_every_python_named_is_a_minor_version() -> None:
    minors = [line.rpartition(" ")[2] for line in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert minors[0] == PROJECT["project"]["requires-python"].removeprefix(">=")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a source distribution has no symlink")
def test_the_symlink_for_static_tools_is_there() -> None:
    assert (ROOT / "memory_engine" / "blocks").is_symlink()
    assert (ROOT / "memory_engine" / "blocks").resolve() == ROOT / "blocks"
