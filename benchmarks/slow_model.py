"""Does an agent wait for memory's model? put and get with blocks whose model takes a second, beside the same without blocks.

    python benchmarks/slow_model.py [--turns 150] [--delay 1.0]

Both memories take turns in one run, on one file each. Milliseconds, medians; "get" is called after each put.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.timing import collector_off, table
from memory_engine import Memory
from memory_engine.blocks import FactExtractionMemoryBlock, SummaryMemoryBlock
from memory_engine.demo.transcript import load


def model(reply: str, delay: float) -> Any:
    """A model that thinks for `delay` seconds and says always the same."""

    async def llm(messages: list[dict[str, str]]) -> str:
        await asyncio.sleep(delay)
        return reply

    return llm


async def measure(turns: int, delay: float) -> dict[str, dict[str, list[float]]]:
    """Seconds of each put and get, with and without the blocks."""
    said = load(None)[:turns]
    facts = model('{"operations": [{"op": "add", "text": "Something was said.", "messages": [1]}]}', delay)
    blocks = [
        FactExtractionMemoryBlock(name="facts", llm=facts),
        SummaryMemoryBlock(name="summary", llm=model("It went on.", delay)),
    ]
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        memories = {
            name: Memory.from_defaults(
                "slow",
                async_database_uri=f"sqlite+aiosqlite:///{Path(folder) / f'{len(given)}.db'}",
                token_limit=1_000,
                token_flush_size=200,
                chat_history_token_ratio=0.5,
                memory_blocks=given,
            )
            for name, given in (("without blocks", []), (f"with models of {delay:g} s", blocks))
        }
        try:
            with collector_off():
                for message in said:
                    for name, memory in memories.items():
                        times = found.setdefault(name, {"put": [], "get": []})
                        begun = time.perf_counter()
                        await memory.put({"role": message.role, "content": message.content})
                        put = time.perf_counter()
                        await memory.get()
                        times["put"].append(put - begun)
                        times["get"].append(time.perf_counter() - put)
        finally:
            for memory in memories.values():
                await memory.aclose(timeout=0.1)
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=150)
    parser.add_argument("--delay", type=float, default=1.0)
    options = parser.parse_args()
    found = asyncio.run(measure(options.turns, options.delay))
    body = [
        [name, *(f"{1000 * statistics.median(times[what]):.2f}" for what in ("put", "get")), f"{1000 * max(times['put']):.0f}"]
        for name, times in found.items()
    ]
    print(table(["", "put, median ms", "get, median ms", "slowest put, ms"], body))
    bare, slow = (statistics.median(times["put"]) for times in found.values())
    print(f"put with / without: {slow / bare:.2f}")


if __name__ == "__main__":
    main()
