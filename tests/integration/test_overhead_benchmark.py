"""The benchmarks of latency and throughput run on both databases, and their pictures show what they measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import concurrency, concurrency_systems, overhead, plots


def measured(path: Path, sizes: str, *more: str) -> dict[str, Any]:
    overhead.main(["--alone", "--sizes", sizes, "--repeat", "2", "--json", str(path), *more])
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def of(found: dict[str, Any], operation: str) -> Sequence[str]:
    return [row["system"] for row in found["results"] if row["operation"] == operation and row["size"] == 10]


def test_latency_on_postgresql(tmp_path: Path, postgres_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = measured(tmp_path / "overhead_postgresql.json", "10", "--database", "postgresql", "--uri", postgres_uri)
    assert found["database"] == "postgresql" and found["environment"]["postgresql"]["fsync"] in {"on", "off"}
    assert set(of(found, "put")) == {"memory_engine", "bare SQLAlchemy Core", "raw asyncpg"}
    assert of(found, "get, unchanged") == ["memory_engine"]
    assert of(found, "one-row select") == ["bare SQLAlchemy Core"]
    assert all(row["samples"] == 2 and row["median_ms"] > 0 for row in found["results"] if row["operation"] == "put")
    # The lower limits read the window that the engine showed.
    assert {row["messages"] for row in found["windows"] if row["size"] == 10} == {15}
    assert not any("read" in note.split() for note in found["notes"])
    ratios = {ratio["name"]: ratio for ratio in found["ratios"]}
    assert ratios["put / the same statements in one transaction through raw asyncpg, 10 messages"]["limit"] == 2
    assert ratios["get, unchanged / one-row select through bare SQLAlchemy, 10 messages"]["limit"] == 2.5
    assert ratios["put at 100,000 messages / at 1,000 messages"]["passed"] is None
    assert "fsync" in capsys.readouterr().out


def test_latency_on_sqlite_and_its_picture(tmp_path: Path) -> None:
    found = measured(tmp_path / "overhead.json", "5,10")
    assert set(of(found, "put")) == {"memory_engine", "bare SQLAlchemy Core", "raw aiosqlite"}
    assert found["notes"] == []
    curves = {curve.look.label: curve.points for curve in plots.latency_curves(found, "put")}
    assert set(curves) == {"memory_engine", "the same statements, bare SQLAlchemy", "the same statements, raw driver"}
    medians = {(row["system"], row["operation"], row["size"]): row["median_ms"] for row in found["results"]}
    assert curves["memory_engine"] == tuple((size, medians["memory_engine", "put", size]) for size in (5, 10))
    if find_spec("matplotlib"):
        plots.main(["--results", str(tmp_path)])
        assert (tmp_path / "latency.png").stat().st_size > 10_000


def test_throughput_against_sessions_and_its_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    systems = [concurrency_systems.Ours, concurrency_systems.RawSqlite, concurrency_systems.SqliteTogether]
    monkeypatch.setitem(concurrency_systems.SYSTEMS, "sqlite", systems)
    monkeypatch.setattr(concurrency, "LEAST", 12)
    concurrency.main(["--databases", "sqlite", "--sessions", "2,3", "--puts", "5", "--rounds", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "concurrency.json").read_text())
    put = [(row["sessions"], row["acknowledged"], row["stored"], row["failed"]) for row in found["results"]]
    assert put == [(2, 12, 12, 0)] * 3 + [(3, 15, 15, 0)] * 3
    assert "of raw" in capsys.readouterr().out
    curves = {curve.look.label: curve.points for curve in plots.throughput_curves(found, "sqlite")}
    assert [sessions for sessions, _ in curves["memory_engine"]] == [2, 3] and len(curves) == 3
    assert plots.throughput_curves(found, "postgresql") == []
    if find_spec("matplotlib"):
        plots.main(["--results", str(tmp_path)])
        assert (tmp_path / "throughput.png").stat().st_size > 10_000
