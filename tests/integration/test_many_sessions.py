"""Thousands of sessions in one process: what a handle costs, and that deliveries which hang hold up nobody else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from memory_engine import BaseMemoryBlock, ChatMessage, Limits, MemoryEngine
from memory_engine.sql.postgresql import POOL
from memory_engine.store import WorkFilter
from memory_engine.window import RecentlyShown, Shown, Windows

_CHILD = """
import asyncio, gc, json, os, sys, threading
from glob import glob
from memory_engine import BaseMemoryBlock, MemoryEngine

class Notes(BaseMemoryBlock[str]):
    heard: list[str] = []

    async def _aget(self, messages=None, **block_kwargs):
        return f"{len(self.heard)} messages"

    async def _aput(self, messages):
        self.heard.extend(message.content for message in messages)

def held():
    gc.collect()
    with open("/proc/self/status") as status:
        size = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    open_files = [path for path in map(os.path.realpath, glob("/proc/self/fd/*")) if ".db" in path]
    return {"kilobytes": size, "tasks": len(asyncio.all_tasks()), "threads": threading.active_count(), "files": len(open_files)}

async def use(memory):
    await memory.put({"role": "user", "content": "What is on the list, apart from bread and milk?"})
    assert await memory.get()

async def main(uri, count):
    async with MemoryEngine(async_database_uri=uri, memory_blocks=[Notes(name="notes")]) as engine:
        for number in range(0, 200, 20):
            await asyncio.gather(*(use(engine.session(f"warm {n}")) for n in range(number, number + 20)))
        before = held()
        handles = [engine.session(f"session {number}") for number in range(count)]
        for number in range(0, count, 20):
            await asyncio.gather(*map(use, handles[number:number + 20]))
        print(json.dumps([before, held()]))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.timeout(600)
def test_handles_cost_a_few_kilobytes_and_nothing_else(tmp_path: Path, soak: bool) -> None:
    """Of 10,000 handles that were all used, at most 60 MB; in the normal run what caches hold at most weighs more."""
    count, megabytes = (10_000, 60) if soak else (1_000, 20)
    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    done = subprocess.run([sys.executable, "-c", _CHILD, uri, str(count)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = json.loads(done.stdout)
    grown = (after["kilobytes"] - before["kilobytes"]) / 1024
    print(f"{count} handles: {grown:.1f} MB")
    assert grown <= megabytes
    for what in ("tasks", "threads", "files"):
        assert after[what] <= before[what], what


async def test_handles_on_postgresql_share_the_connections(postgres_uri: str) -> None:
    async with MemoryEngine(async_database_uri=postgres_uri) as engine:
        handles = [engine.session(f"s{number}") for number in range(200)]
        tasks = len(asyncio.all_tasks())
        await asyncio.gather(*(memory.put({"role": "user", "content": "Hello."}) for memory in handles))
        for messages in await asyncio.gather(*(memory.get() for memory in handles)):
            assert len(messages) == 1
        assert len(asyncio.all_tasks()) == tasks
        count = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'memory-engine'"
        )
        store: Any = engine._core.store
        opened = await store._connections.read(lambda connection: connection.exec_driver_sql(count).scalar_one())
        assert opened <= POOL


def test_of_what_was_shown_only_the_recent_is_kept_whole() -> None:
    messages = [ChatMessage(role="user", content=f"message {n}", metadata={"n": [n]}) for n in range(4)]
    again = [ChatMessage(role="user", content=f"message {n}", metadata={"n": [n]}) for n in range(4)]
    recently, old, new = RecentlyShown(size=1), Shown(), Shown()
    assert old.unchanged(messages) == 0
    recently.note(old, messages)
    assert old.unchanged(again) == 4 and old.unchanged([*again[:2], *messages[:1]]) == 2
    recently.note(new, messages)
    assert not old._messages and new._messages
    assert old.unchanged(again) == 4 and old.unchanged([*again[:2], *messages[:1]]) == 2 and old.unchanged([]) == 0
    recently.note(old, again[:1])
    assert old._messages and not new._messages and old.unchanged(messages) == 1


class Stuck(BaseMemoryBlock[str]):
    """Absorbs nothing until it is let go."""

    let_go: Any = Field(exclude=True)
    seen: Any = Field(exclude=True)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return "I am waiting."

    async def _aput(self, messages: list[ChatMessage]) -> None:
        self.seen["running"] += 1
        self.seen["most"] = max(self.seen["most"], self.seen["running"])
        self.seen["started"].set()
        await self.let_go.wait()
        self.seen["running"] -= 1
        self.seen["done"] += 1


@pytest.fixture(params=["sqlite", "postgresql"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    found: str = request.getfixturevalue("postgres_uri")
    return found


async def test_deliveries_that_hang_starve_neither_puts_nor_gets(uri: str, soak: bool) -> None:
    """So many run at once as the limit says, no more are claimed, and everything else goes on."""
    waiting, concurrency = 500 if soak else 60, 4
    let_go = asyncio.Event()
    seen: dict[str, Any] = {"running": 0, "most": 0, "done": 0, "started": asyncio.Event()}
    stuck = Stuck(name="stuck", let_go=let_go, seen=seen)
    limits = Limits(concurrency=concurrency, poll=0.05)
    async with MemoryEngine(async_database_uri=uri, memory_blocks=[stuck], limits=limits) as engine:
        claims: list[tuple[int, int]] = []
        store: Any = engine._core.store
        claim = store.claim

        async def watched_claim(work: WorkFilter, *, seconds: float, limit: int) -> Any:
            found = await claim(work, seconds=seconds, limit=limit)
            claims.append((limit, len(found)))
            return found

        store.claim = watched_claim

        async def lag(number: int) -> None:
            memory = engine.session(f"lags {number}")
            await memory.put({"role": "user", "content": "Remember this."})
            await memory.flush(final=True)

        async def talk(number: int) -> None:
            memory = engine.session(f"talks {number}")
            for turn in range(3):
                await memory.put({"role": "user", "content": f"turn {turn}"})
                assert len(await memory.get()) >= turn + 1

        await asyncio.gather(*map(lag, range(waiting)))
        while seen["running"] < concurrency:
            await seen["started"].wait()
            seen["started"].clear()
        # Each of these would wait for ever behind what hangs.
        await asyncio.gather(*map(talk, range(20)))
        await asyncio.gather(*map(lag, range(waiting, waiting + 5)))
        stats = await engine.stats()
        assert stats.blocks["stuck"].sessions == waiting + 5
        assert (seen["running"], seen["done"]) == (concurrency, 0)
        assert sum(found for _, found in claims) == concurrency, "what cannot be carried out is left to others"
        let_go.set()
        await engine.drain(120.0)
        assert seen["most"] == concurrency and seen["done"] == waiting + 5
        assert all(found <= limit <= concurrency for limit, found in claims)


async def test_the_cache_of_windows_is_bounded_by_messages_too(tmp_path: Path) -> None:
    """A few long conversations take as much memory as many short ones; what was dropped is read again."""
    async with MemoryEngine(async_database_uri=f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}") as engine:
        windows = engine._core.windows = Windows(size=8, messages=100)
        for round_ in range(3):
            for number in range(12):
                memory = engine.session(f"s{number}")
                await memory.put_messages([{"role": "user", "content": f"{number} {round_} {n}"} for n in range(number + 1)])
                shown = [message.content for message in await memory.get()]
                assert shown == [f"{number} {earlier} {n}" for earlier in range(round_ + 1) for n in range(number + 1)]
                kept = [len(window.entries) for window in windows._windows.values()]
                assert sum(kept) == windows._messages <= 100 and len(kept) <= 8
        await engine.session("s11").put_messages([{"role": "user", "content": f"{n}"} for n in range(150)])
        assert len(await engine.session("s11").get()) > 150
        assert len(windows._windows) == 1
        await engine.session("s11").reset()
        assert windows._messages == 0
