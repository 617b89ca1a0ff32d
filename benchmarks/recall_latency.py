"""What a `get` with recall costs as the scope grows: milliseconds, the longest stop of the event loop, and memory.

    python benchmarks/recall_latency.py [--sizes 1000,20000] [--budget 2000] [--json PATH]

The embedder is left out: vectors are made of a hash, 384 numbers each, and the time from the text of a query to its vector is
taken off. Every question
is asked once, so that nothing is remembered of the one before it but what a conversation would remember too.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from memory_engine import ChatMessage, MemoryEngine
from memory_engine.blocks import VectorMemoryBlock
from memory_engine.blocks.embedders import CachedEmbedder
from memory_engine.demo.recall import all_questions
from memory_engine.demo.transcript import load

DIMENSIONS = 384
_TICK = 0.001


async def hashed(texts: list[str]) -> Any:
    """Vectors that depend on the text alone."""
    rows = []
    for text in texts:
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        rows.append(np.random.default_rng(seed).standard_normal(DIMENSIONS, dtype=np.float32))
    return np.stack(rows)


class Timed(CachedEmbedder):
    """Says how many seconds queries took to become vectors."""

    seconds = 0.0

    async def embed_query(self, text: str) -> Any:
        begun = time.perf_counter()
        try:
            return await super().embed_query(text)
        finally:
            self.seconds += time.perf_counter() - begun


class Ticker:
    """Notes the longest time for which the event loop did not come round."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task: asyncio.Task[None] | None = None

    async def _run(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_TICK)
            self.longest = max(self.longest, time.perf_counter() - before - _TICK)

    async def __aenter__(self) -> Ticker:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()


def conversation(size: int) -> list[ChatMessage]:
    """`size` utterances; where the transcript begins again, each says which round it is."""
    said = load(None)
    return [
        said[i % len(said)].model_copy(
            update={"id": None, "blocks": ChatMessage(role="user", content=f"{said[i % len(said)].content} ({i})").blocks}
        )
        for i in range(size)
    ]


async def fill(engine: MemoryEngine, session: str, messages: list[ChatMessage]) -> float:
    """Put, flush and absorb; the seconds it took."""
    memory = engine.session(session)
    begun = time.perf_counter()
    for start in range(0, len(messages), 1_000):
        await memory.put_messages(messages[start : start + 1_000])
    await memory.flush(final=True)
    await memory.drain(3_600)
    return time.perf_counter() - begun


def reference() -> float:
    """Milliseconds that a loop of 100,000 additions takes now: what the machine is worth at this moment."""
    begun, total = time.perf_counter(), 0
    for number in range(100_000):
        total += number
    return 1000 * (time.perf_counter() - begun)


def resident() -> float:
    """Megabytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def measure(path: Path, block: VectorMemoryBlock, size: int, others: int, budget: int) -> dict[str, Any]:
    """One scope of that size; `others` are sessions of a hundred messages each in the same database."""
    how: dict[str, Any] = {
        "async_database_uri": f"sqlite+aiosqlite:///{path}",
        "token_limit": budget,
        "token_flush_size": budget,
        "chat_history_token_ratio": 0.1,
        "memory_blocks": [block],
    }
    said = conversation(max(size, 100))
    async with MemoryEngine(**how) as engine:
        for other in range(others):
            await fill(engine, f"other-{other}", said[:100])
        absorbing = await fill(engine, "measured", said[:size])
    first_question, *asked = all_questions()
    before = resident()
    async with MemoryEngine(**how) as engine, Ticker() as ticker:
        memory = engine.session("measured")
        begun = time.perf_counter()
        await memory.context(first_question)
        first = time.perf_counter() - begun
        cold, ticker.longest = ticker.longest, 0.0
        held, seconds = resident() - before, []
        for question in asked:
            begun, embedded = time.perf_counter(), getattr(block.embed_model, "seconds", 0.0)
            await memory.context(question)
            seconds.append(time.perf_counter() - begun - (getattr(block.embed_model, "seconds", 0.0) - embedded))
            await asyncio.sleep(0)
        longest = ticker.longest
        references = [reference() for _ in range(9)]
    seconds.sort()
    return {
        "items": size,
        "other sessions": others,
        "vectors": block.embed_model is not None,
        "median ms": 1000 * statistics.median(seconds),
        "p95 ms": 1000 * seconds[int(len(seconds) * 0.95)],
        "loop ms": 1000 * longest,
        "first ms": 1000 * first,
        "first loop ms": 1000 * cold,
        "MB": held,
        "reference ms": statistics.median(references),
        "absorbed/s": size / absorbing,
    }


async def main() -> None:
    """Measure each size with words alone and with vectors, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,5000,20000,50000,100000")
    parser.add_argument("--others", default="0,300", help="other sessions in the same database, at the smallest size")
    parser.add_argument("--budget", type=int, default=2_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for place, size in enumerate(sizes):
            for others in map(int, options.others.split(",")) if not place else (0,):
                for embedder in (None, Timed(hashed)):
                    block = VectorMemoryBlock(name="recall", embed_model=embedder, floor=None)
                    path = Path(folder) / f"{size}-{others}-{embedder is None}.db"
                    row = await measure(path, block, size, others, options.budget)
                    rows.append(row)
                    cells = [f"{value:>10,.1f}" if isinstance(value, float) else f"{value!s:>10}" for value in row.values()]
                    if len(rows) == 1:
                        print(" ".join(f"{name:>10}" for name in row))
                    print(" ".join(cells), flush=True)
    if options.json:
        await asyncio.to_thread(options.json.write_text, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
