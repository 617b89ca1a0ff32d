"""What takes long is done beside the event loop, or in pieces between which other tasks run."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from memory_engine import MemoryEngine
from memory_engine.blocks import VectorMemoryBlock
from memory_engine.blocks.vector.documents import documents_of

TEXTS = [f"Parcel {number} left the depot at dawn." for number in range(300)]


def engine_of(folder: Path) -> MemoryEngine:
    uri = f"sqlite+aiosqlite:///{folder / 'memory.db'}"
    return MemoryEngine(async_database_uri=uri, memory_blocks=[VectorMemoryBlock()])


class Threads:
    """In which threads a function ran that is replaced by one that writes it down; and how much it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str, name: str) -> None:
        self.on_loop: list[int] = []
        self.beside: list[int] = []
        place = __import__(module, fromlist=[name])
        function = getattr(place, name)

        def noted(given: Any, *args: Any, **kwargs: Any) -> Any:
            here = threading.current_thread() is threading.main_thread()
            (self.on_loop if here else self.beside).append(len(given))
            return function(given, *args, **kwargs)

        monkeypatch.setattr(place, name, noted)


async def test_documents_are_read_and_written_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Threads(monkeypatch, "memory_engine.blocks.vector.storing", "documents_of")
    written = Threads(monkeypatch, "memory_engine.binding", "_as_rows")
    async with engine_of(tmp_path) as engine:
        block: Any = await engine.session("one").block("RetrievedMessages")
        await block.add_documents(TEXTS)
    assert (read.on_loop, read.beside) == ([], [300])
    assert max(written.on_loop, default=0) < 100
    assert max(written.beside) == 600, "texts and passages"


async def test_deliveries_are_written_beside_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Threads(monkeypatch, "memory_engine.binding", "_as_rows")
    async with engine_of(tmp_path) as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": " ".join(TEXTS * 40)})
        await memory.flush(final=True)
        await memory.drain(60)
        assert max(written.on_loop, default=0) < 100
        assert max(written.beside) > 50


async def test_other_tasks_run_while_documents_are_put(tmp_path: Path) -> None:
    async with engine_of(tmp_path) as engine:
        block: Any = await engine.session("one").block("RetrievedMessages")
        async with block.transaction():
            turns = 0

            async def count() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0)
                    turns += 1

            counting = asyncio.create_task(count())
            await block._documents.put(documents_of(TEXTS, None))
            counting.cancel()
            assert turns >= 5
