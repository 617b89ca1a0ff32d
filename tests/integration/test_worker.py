"""Workers: processes beside the agents' that deliver, on both databases, and what an engine says of the lag."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from memory_engine import BaseMemoryBlock, ChatMessage, Memory, MemoryEngine
from memory_engine.errors import ConfigurationError, DrainTimeoutError
from memory_engine.worker import load_engine

pytestmark = pytest.mark.asyncio

PATIENCE = 60.0
APP = """
import asyncio, os
from memory_engine import BaseMemoryBlock, Limits, MemoryEngine


class Heard(BaseMemoryBlock[str]):
    name: str = "heard"
    heard: list[str] = []

    async def _aget(self, messages=None, **block_kwargs):
        return f"{len(self.heard)} messages"

    async def _aput(self, messages):
        with open(os.environ["HEARD"], "a") as log:
            log.write("begin\\n")
        await asyncio.sleep(float(os.environ.get("SLOW", "0")))
        self.heard.extend(message.content for message in messages)
        with open(os.environ["HEARD"], "a") as log:
            log.write("".join(message.content + "\\n" for message in messages))


def make_engine(**settings):
    limits = Limits(lease=1.0, first_retry=0.01, last_retry=0.1, poll=0.1, delivery=30.0)
    return MemoryEngine(async_database_uri=os.environ["MEMORY"], memory_blocks=[Heard()], limits=limits,
                        token_flush_size=20, token_limit=1_000, **{"delivery": "worker"} | settings)


async def later():
    return make_engine()


text = "no engine"
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def app(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an application, and its database in the environment."""
    sqlite = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    monkeypatch.setenv("MEMORY", sqlite if request.param == "sqlite" else request.getfixturevalue("postgres_uri"))
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"app_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(APP)
    return tmp_path / name


async def worker(app: Path, *options: str, **environment: str) -> asyncio.subprocess.Process:
    """A worker process of the application."""
    command = [sys.executable, "-m", "memory_engine", "worker", "--app", f"{app.name}:make_engine", *options]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *command, cwd=app.parent, env=os.environ | environment, stdout=pipe, stderr=pipe
    )


async def ended(process: asyncio.subprocess.Process) -> str:
    """What it said, when it ended in order."""
    _, errors = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0, errors.decode()
    return errors.decode()


async def tell(memory: Memory, count: int) -> list[str]:
    said = [f"number {number} of {memory.session_id}" for number in range(count)]
    for text in said:
        await memory.put({"role": "user", "content": text})
    await memory.flush(final=True)
    return said


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    end = time.monotonic() + PATIENCE
    while not await holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


async def test_a_worker_delivers_what_agents_put_and_ends_when_told(app: Path) -> None:
    async with await load_engine(f"{app.name}:make_engine") as engine:
        process = await worker(app)
        memory = engine.session("one")
        said = await tell(memory, 30)
        await memory.drain(PATIENCE)
        assert (await memory.block("heard")).heard == said  # type: ignore[attr-defined]
        assert "30 messages" in (await memory.get())[0].content
        assert (await engine.stats()).pending == 0
        process.send_signal(signal.SIGTERM)
        assert "what is pending stays in the database" in await ended(process)
        await tell(memory, 5)
        with pytest.raises(DrainTimeoutError):
            await memory.drain(0.3)
        lag = (await engine.stats()).blocks["heard"]
        assert (lag.sessions, lag.messages, lag.parked, lag.erasures) == (1, 5, 0, 0)


async def test_once_delivers_what_is_due_and_ends(app: Path) -> None:
    async with await load_engine(f"{app.name}:later") as engine:
        sessions = [engine.session(f"s{number}") for number in range(5)]
        said = [await tell(memory, 6) for memory in sessions]
        await asyncio.gather(*[ended(await worker(app, "--once")) for _ in range(3)])
        for memory, texts in zip(sessions, said, strict=True):
            await memory.drain(PATIENCE)
            assert (await memory.block("heard")).heard == texts  # type: ignore[attr-defined]
        assert (await engine.stats()).pending == 0


async def test_once_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """What it has begun may end within the grace; then it stays pending."""
    begun, stop = asyncio.Event(), asyncio.Event()

    class Stuck(BaseMemoryBlock[str]):
        name: str = "stuck"

        async def _aget(self, messages: Sequence[ChatMessage] | None = None, **block_kwargs: Any) -> str:
            return ""

        async def _aput(self, messages: Sequence[ChatMessage]) -> None:
            begun.set()
            await asyncio.sleep(3_600)

    uri = f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}"
    async with MemoryEngine(async_database_uri=uri, memory_blocks=[Stuck()], delivery="worker") as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "hello"})
        await memory.flush(final=True)
        working = asyncio.create_task(engine.work(once=True, stop=stop, grace=0.05))
        await begun.wait()
        assert not working.done()
        stop.set()
        await asyncio.wait_for(working, 30)
        assert (await engine.stats()).pending == 1


async def test_what_runs_when_a_worker_is_told_to_end_may_end(app: Path) -> None:
    async with await load_engine(f"{app.name}:make_engine") as engine:
        memory = engine.session("one")
        said = await tell(memory, 1)
        process = await worker(app, SLOW="1")
        heard = app.parent / "heard"
        await until(lambda: asyncio.to_thread(heard.exists))
        process.send_signal(signal.SIGTERM)
        await ended(process)
        assert heard.read_text().splitlines() == ["begin", *said], "it was not begun again"
        assert (await memory.block("heard")).heard == said  # type: ignore[attr-defined]


async def test_another_worker_takes_over_when_one_dies(app: Path) -> None:
    async with await load_engine(f"{app.name}:make_engine") as engine:
        memory = engine.session("one")
        said = await tell(memory, 10)
        first = await worker(app, SLOW="60")
        await until(lambda: asyncio.to_thread((app.parent / "heard").exists))
        first.kill()
        await first.wait()
        second = await worker(app)
        await memory.drain(PATIENCE)
        assert (await memory.block("heard")).heard == said  # type: ignore[attr-defined]
        second.terminate()
        await ended(second)
        told = Counter((app.parent / "heard").read_text().splitlines())
        assert all(told[text] == 1 for text in said)


async def test_closing_does_not_wait_for_workers_and_leaves_their_work_alone(app: Path) -> None:
    engine = await load_engine(f"{app.name}:make_engine")
    memory: Memory = engine.session("one")
    await tell(memory, 3)
    await asyncio.wait_for(engine.aclose(), 10)
    assert not (app.parent / "heard").exists()
    async with await load_engine(f"{app.name}:make_engine") as again:
        await again.work(once=True)
        assert len((await again.session("one").block("heard")).heard) == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{}", "is a module and an engine in it"),
        ("{}:nothing", "cannot be loaded"),
        ("{}_missing:engine", "cannot be loaded"),
        ("{}:text", "is str; it must be a MemoryEngine"),
    ],
)
@pytest.mark.parametrize("app", ["sqlite"], indirect=True)
async def test_what_is_no_application_is_refused(app: Path, name: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        await load_engine(name.format(app.name))


async def test_how_to_deliver_is_checked() -> None:
    with pytest.raises(ConfigurationError, match="worker"):
        MemoryEngine(delivery="workers")
