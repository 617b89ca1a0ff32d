"""Recall against budget as a picture: one panel for each dataset, one line for each system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.recall_systems import needed

COLOURS = {"ours": ("#0b5394", "#3d85c6", "#76a5e0"), "LlamaIndex": ("#b45f06",) * 3, "LangChain": ("#6a329f",) * 3}
MARKERS = {"ours": "o", "LlamaIndex": "s", "LangChain": "^", "FIFO": "x"}
STYLES = {"tuned": "--", "kept to the budget": ":", "defaults": "-"}
EMBEDDING = "MiniLM"


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows of recall.json with the smallest ratio; of the other libraries those with MiniLM, if there are any."""
    matplotlib = needed("matplotlib", "matplotlib")
    matplotlib.use("Agg")
    pyplot = needed("matplotlib.pyplot", "matplotlib")
    shown = drawn(results)
    datasets = list(dict.fromkeys(row["dataset"] for row in shown))
    figure, axes = pyplot.subplots(1, len(datasets), figsize=(6.4 * len(datasets), 4.8), sharey=True, squeeze=False)
    for panel, dataset in zip(axes[0], datasets, strict=True):
        _panel(panel, [row for row in shown if row["dataset"] == dataset], dataset)
    axes[0][0].set_ylabel("evidence in the context, %")
    columns = 2 * len(datasets)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=columns, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.04 + 0.04 * -(-len(labels) // columns), 1, 1))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def drawn(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows of the picture; all of them in one would be a thicket."""
    ratios = [row["ratio"] for row in results if row["ratio"] is not None]
    at_least = min(ratios, default=None)
    rows = [row for row in results if row["ratio"] in {None, at_least} and row["recall"] is not None]
    others = [row for row in rows if _family(row["system"]) in {"LlamaIndex", "LangChain"}]
    if any(row["system"].endswith(EMBEDDING) for row in others):
        rows = [row for row in rows if row not in others or row["system"].endswith(EMBEDDING)]
    return rows


def _panel(panel: Any, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    seen: dict[str, int] = {}
    for system in dict.fromkeys(row["system"] for row in rows):
        line = [row for row in rows if row["system"] == system]
        family = _family(system)
        colours = COLOURS.get(family, ("#777777",))
        colour = colours[seen.get(family, 0) % len(colours)]
        seen[family] = seen.get(family, 0) + 1
        style = next((style for word, style in STYLES.items() if word in system), "-")
        over = any(row["violations"] for row in line)
        label = f"{system} (over the budget)" if over else system
        budgets, recalls = [row["budget"] for row in line], [row["recall"] for row in line]
        panel.plot(budgets, recalls, style, marker=MARKERS.get(family, "x"), color=colour, label=label, linewidth=1.8)
    budgets = sorted({row["budget"] for row in rows})
    panel.set_xscale("log", base=2)
    panel.set_xticks(budgets, [f"{budget:,}" for budget in budgets])
    panel.minorticks_off()
    panel.set_ylim(0, 100)
    panel.grid(alpha=0.3)
    panel.set_title(f"{title}, {rows[0]['questions']} questions")
    panel.set_xlabel("token budget of the context")


def _family(system: str) -> str:
    return system.split(maxsplit=1)[0].rstrip(",")
