"""The pictures of what was measured: latency against the length of history, throughput against the number of sessions.

    python benchmarks/plots.py [--results FOLDER]

They are drawn from overhead.json, overhead_postgresql.json and concurrency.json in that folder and written beside them, as
latency.png and throughput.png; a file that is not there leaves its panels or its picture out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.contenders import imported

RESULTS = Path(__file__).parent / "results"
DATABASES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


@dataclass(frozen=True, slots=True)
class Look:
    """How a system is drawn, the same in every picture, in Okabe and Ito's colours, which colour-blind people tell apart."""

    label: str
    colour: str
    marker: str
    style: str = "-"
    width: float = 1.6


OURS = Look("memory_engine", "#0072B2", "o", width=2.6)
LLAMA = Look("LlamaIndex Memory", "#D55E00", "s")
OPENAI = Look("OpenAI Agents session", "#009E73", "D")
LANGCHAIN = Look("LangChain SQLChatMessageHistory", "#CC79A7", "^")
DRIVER = Look("the driver alone", "#000000", "x", ":")

LATENCY: Mapping[str, Sequence[tuple[str, Look]]] = {
    "sqlite": (
        # With the same settings for durability as everyone else; with its defaults it is slower.
        ("LlamaIndex, WAL", LLAMA),
        ("LangChain SQLChatMessageHistory", LANGCHAIN),
        ("OpenAI SQLiteSession", OPENAI),
        ("bare SQLAlchemy Core", Look("the same statements, bare SQLAlchemy", "#56B4E9", "v", "--")),
        ("raw aiosqlite", Look("the same statements, raw driver", DRIVER.colour, "x", ":")),
        ("memory_engine", OURS),
    ),
    "postgresql": (
        ("LlamaIndex", LLAMA),
        ("LangChain SQLChatMessageHistory", LANGCHAIN),
        ("OpenAI SQLAlchemySession", OPENAI),
        ("bare SQLAlchemy Core", Look("the same statements, bare SQLAlchemy", "#56B4E9", "v", "--")),
        ("raw asyncpg", Look("the same statements, raw driver", DRIVER.colour, "x", ":")),
        ("memory_engine", OURS),
    ),
}
THROUGHPUT: Sequence[tuple[str, Look]] = (
    ("LlamaIndex Memory", LLAMA),
    ("OpenAI Agents SQLAlchemySession", OPENAI),
    ("LangChain SQLChatMessageHistory", LANGCHAIN),
    ("raw", Look("raw driver, a commit for each message", DRIVER.colour, "x", ":")),
    ("raw, together", Look("raw driver, group commit", "#7f7f7f", "+", "--")),
    ("memory_engine", OURS),
)


@dataclass(frozen=True, slots=True)
class Curve:
    """One system in one panel."""

    look: Look
    points: tuple[tuple[int, float], ...]


def latency_curves(measured: Mapping[str, Any], operation: str) -> list[Curve]:
    """Medians in milliseconds by messages, of what overhead.py wrote."""
    curves = []
    for system, look in LATENCY[measured.get("database", "sqlite")]:
        rows = [row for row in measured["results"] if (row["system"], row["operation"]) == (system, operation)]
        curves.append(Curve(look, tuple(sorted((row["size"], row["median_ms"]) for row in rows))))
    return [curve for curve in curves if curve.points]


def throughput_curves(measured: Mapping[str, Any], database: str) -> list[Curve]:
    """Medians of messages per second by sessions, of what concurrency.py wrote."""
    curves = []
    for system, look in THROUGHPUT:
        rates: dict[int, list[float]] = {}
        for row in measured["results"]:
            if (row["database"], row["system"]) == (database, system):
                rates.setdefault(row["sessions"], []).append(row["acknowledged"] / row["seconds"])
        curves.append(Curve(look, tuple(sorted((sessions, statistics.median(each)) for sessions, each in rates.items()))))
    return [curve for curve in curves if curve.points]


def draw_latency(found: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A column for each database; puts above, gets below."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, len(found), figsize=(5.6 * len(found), 7.6), sharex=True, sharey="row", squeeze=False)
    for column, measured in enumerate(found):
        for row, operation in enumerate(("put", "get")):
            panel = axes[row][column]
            _draw(panel, latency_curves(measured, operation))
            panel.set_title(f"{operation}, {DATABASES[measured.get('database', 'sqlite')]}")
            panel.set_ylabel("median, ms" if column == 0 else "")
            panel.set_xlabel("messages in the history" if row else "")
    _finish(figure, axes, path)


def draw_throughput(measured: Mapping[str, Any], path: Path) -> None:
    """A panel for each database."""
    pyplot = _pyplot()
    shown = [database for database in DATABASES if throughput_curves(measured, database)]
    figure, axes = pyplot.subplots(1, len(shown), figsize=(5.6 * len(shown), 4.6), sharey=True, squeeze=False)
    for column, database in enumerate(shown):
        panel = axes[0][column]
        _draw(panel, throughput_curves(measured, database))
        panel.set_title(f"puts at once, {DATABASES[database]}")
        panel.set_ylabel("messages per second" if column == 0 else "")
        panel.set_xlabel("sessions")
    _finish(figure, axes, path)


def _pyplot() -> Any:
    imported("matplotlib", "matplotlib").use("Agg")
    return imported("matplotlib.pyplot", "matplotlib")


def _draw(panel: Any, curves: Sequence[Curve]) -> None:
    for curve in curves:
        look = curve.look
        across, up = zip(*curve.points, strict=True)
        options = {"color": look.colour, "marker": look.marker, "linestyle": look.style, "linewidth": look.width}
        panel.plot(across, up, label=look.label, markersize=6, **options)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(imported("matplotlib.ticker", "matplotlib").LogLocator(subs=(1, 2, 5), numticks=30))
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    panel.tick_params(axis="y", which="minor", left=False)
    panel.grid(alpha=0.3)


def _finish(figure: Any, axes: Any, path: Path) -> None:
    """What was measured marks the axis; one legend for all panels, below them, ours first."""
    places = sorted({place for panel in axes.flat for line in panel.get_lines() for place in line.get_xdata()})
    for panel in axes.flat:
        panel.set_xticks(places, [f"{place:,}" for place in places])
        panel.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    labelled = {
        label: handle
        for panel in axes.flat
        for handle, label in reversed(list(zip(*panel.get_legend_handles_labels(), strict=True)))
    }
    figure.legend(labelled.values(), labelled.keys(), loc="lower center", ncols=3, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.6 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=130)
    _pyplot().close(figure)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the JSON files are")
    folder: Path = parser.parse_args(given).results
    overhead = [path for name in ("overhead", "overhead_postgresql") if (path := folder / f"{name}.json").exists()]
    if overhead:
        draw_latency([json.loads(path.read_text()) for path in overhead], folder / "latency.png")
    if (path := folder / "concurrency.json").exists():
        draw_throughput(json.loads(path.read_text()), folder / "throughput.png")


if __name__ == "__main__":
    main()
