"""A small production: writers on several hosts, workers beside them, and everything that can fail failing (P3 to P5)."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from chaos_blocks import PATIENCE, heads
from chaos_database import BOTH, Database, audit, flushed, rows, uri_of
from chaos_hosts import make_engine, message_of, session_of, tally, user_of

from memory_engine import MemoryEngine
from memory_engine.testing.postgres import PostgresServer

pytestmark = pytest.mark.asyncio

HERE = Path(__file__).parent
PIPE = asyncio.subprocess.PIPE
WRITERS = ("1", "2", "3", "4")
WORKERS = 2


class Host:
    """A process that is started again whenever it was killed."""

    def __init__(self, uri: str, *arguments: str) -> None:
        self.uri, self.arguments = uri, arguments
        self.kills = 0
        self.up = asyncio.Event()

    def command(self) -> list[str]:
        """What is started."""
        return [sys.executable, "-m", "memory_engine", "worker", "--app", "chaos_hosts:make_engine", *self.arguments]

    async def start(self) -> None:
        """Start it; it needs not be up yet."""
        self.up.clear()
        environment = os.environ | {"CHAOS_DATABASE": self.uri}
        self.process = await asyncio.create_subprocess_exec(
            *self.command(), cwd=HERE, env=environment, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        self.errors: list[str] = []
        self.reading = [asyncio.create_task(self._read()), asyncio.create_task(self._read_errors())]

    async def kill(self) -> None:
        """End it as `kill -9` does, and start it again."""
        assert self.process.returncode is None, self.said()
        self.process.kill()
        await self._ended()
        self.kills += 1
        await self.start()

    async def stop(self) -> None:
        """Tell it to end, and wait until it has done what it does then."""
        self.ask_to_end()
        await asyncio.wait_for(self._ended(), PATIENCE)
        assert self.process.returncode == 0, self.said()

    def ask_to_end(self) -> None:
        """As an orchestrator does."""
        self.process.send_signal(signal.SIGTERM)

    def line(self, line: str) -> None:
        """Take in what it says."""

    def said(self) -> str:
        """Its last words."""
        return "".join(self.errors[-40:])

    async def _ended(self) -> None:
        await self.process.wait()
        await asyncio.gather(*self.reading)

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            # The last line of one that was killed may be torn: then nobody was told.
            if line.endswith(b"\n"):
                self.line(line.decode())

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.up.set()
            self.errors.append(line.decode())


class Writer(Host):
    """Goes on behind what was acknowledged."""

    done = -1

    def __init__(self, uri: str, name: str, delivery: str) -> None:
        super().__init__(uri, name, delivery)
        self.refused: Counter[str] = Counter()

    def command(self) -> list[str]:
        name, delivery = self.arguments
        return [sys.executable, str(HERE / "chaos_hosts.py"), self.uri, name, str(self.done + 1), delivery]

    def ask_to_end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def line(self, line: str) -> None:
        what, value = line.split()
        if what == "done":
            assert int(value) == self.done + 1
            self.done = int(value)
            self.up.set()
        else:
            self.refused[value] += 1

    @property
    def acknowledged(self) -> dict[str, list[str]]:
        """The ids of its messages, by session, in their order."""
        found: dict[str, list[str]] = {}
        for number in range(self.done + 1):
            found.setdefault(session_of(number), []).append(message_of(self.arguments[0], number).id or "")
        return found


class Chaos:
    """What is done to the hosts and to their database, spread over some seconds in random order."""

    def __init__(self, kinds: Sequence[Sequence[Host]], server: PostgresServer | None) -> None:
        self.kinds, self.server = kinds, server
        self.happened: Counter[str] = Counter()

    async def rage(self, seconds: float, *, kills: int, crashes: int, drops: int) -> None:
        """Let so many things happen in that time; a little longer if they take longer."""
        events: list[Callable[[], Awaitable[None]]] = [self._kill] * kills
        if self.server is not None:
            events += [self._crash] * crashes + [self._drop] * drops
        random.shuffle(events)
        start = time.monotonic()
        for event, moment in zip(events, sorted(random.uniform(0, seconds) for _ in events), strict=True):
            await asyncio.sleep(start + moment - time.monotonic())
            await event()
        await asyncio.sleep(start + seconds - time.monotonic())

    async def _kill(self) -> None:
        """One that is at work, most of the time: one that is starting has little to lose."""
        host = random.choice(self.kinds[self.happened["kills"] % len(self.kinds)])
        if random.random() < 0.8:
            await asyncio.wait_for(host.up.wait(), PATIENCE)
        await host.kill()
        self.happened["kills"] += 1

    async def _crash(self) -> None:
        assert self.server is not None
        await asyncio.to_thread(self.server.crash)
        await asyncio.sleep(random.random() * 0.5)
        await asyncio.to_thread(self.server.start)
        self.happened["crashes"] += 1

    async def _drop(self) -> None:
        """One connection of a host that is at something, if there is one."""
        assert self.server is not None
        one = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'memory-engine' "
            "ORDER BY state = 'idle', random() LIMIT 1"
        )
        while await asyncio.to_thread(self.server.execute, one) != "t":
            await asyncio.sleep(0.05)
        self.happened["drops"] += 1


@pytest.fixture
def place(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Database, PostgresServer | None]:
    """A database of this test's own, and the server that it may crash."""
    if database_kind == "sqlite":
        return tmp_path / "memory.db", None
    server: PostgresServer = request.getfixturevalue("own_server")
    return server.uri("memory"), server


@pytest.mark.timeout(600)
@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
async def test_hosts_databases_and_connections_that_die_lose_and_repeat_nothing(
    place: tuple[Database, PostgresServer | None], soak: bool
) -> None:
    """Three minutes with `--soak`: every acknowledged message is there once and was absorbed once, and nothing is stuck."""
    database, server = place
    uri = uri_of(database)
    writers = [
        Writer(uri, name, ("worker", "background")[place % 2]) for place, name in enumerate(WRITERS if soak else WRITERS[:2])
    ]
    workers = [Host(uri) for _ in range(WORKERS)]
    hosts = [*writers, *workers]
    chaos = Chaos([writers, workers], server)
    try:
        await asyncio.gather(*(host.start() for host in hosts))
        await asyncio.gather(*(asyncio.wait_for(host.up.wait(), PATIENCE) for host in hosts))
        if soak:
            await chaos.rage(180, kills=40, crashes=10, drops=50)
        else:
            await chaos.rage(2, kills=3, crashes=1, drops=5)
        await asyncio.gather(*(writer.stop() for writer in writers))
        stopped = time.monotonic()
        async with make_engine(uri) as engine:
            await learn_everything(engine, writers)
            drained = time.monotonic() - stopped
            await asyncio.gather(*(worker.stop() for worker in workers))
            await check(engine, database, writers)
    finally:
        for host in hosts:
            if host.process.returncode is None:
                host.process.kill()
    messages = sum(writer.done + 1 for writer in writers)
    refused = sum((writer.refused for writer in writers), Counter[str]())
    kills = {"of writers": sum(w.kills for w in writers), "of workers": sum(w.kills for w in workers)}
    print(f"\n{messages} messages, {dict(chaos.happened)}, kills {kills}, puts that were refused and repeated: {dict(refused)}")
    print(f"everything was absorbed {drained:.1f} s after the last put")
    expected = {"kills": 40, "crashes": 10, "drops": 50} if soak else {"kills": 3, "crashes": 1, "drops": 5}
    assert chaos.happened == (expected if server is not None else {"kills": expected["kills"]})
    assert messages > (2_000 if soak else 10), "nearly nothing was written: the test says nothing"


async def learn_everything(engine: MemoryEngine, writers: list[Writer]) -> None:
    """Archive what is left of all sessions, and wait until the workers have delivered everything."""
    for session in sorted({session for writer in writers for session in writer.acknowledged}):
        await engine.session(session, user_id=user_of(session)).flush(final=True)
    await engine.drain(5 * PATIENCE)


async def check(engine: MemoryEngine, database: Database, writers: list[Writer]) -> None:
    """Everything is there once, in the order of each writer, was absorbed once, and nothing waits or is in the way."""
    stats = await engine.stats()
    assert [(lag.messages, lag.parked, lag.erasures) for lag in stats.blocks.values()] == [(0, 0, 0)] * 3
    assert rows(database, "SELECT owner FROM memory_block_leases") == []
    audit(database)
    acknowledged = [writer.acknowledged for writer in writers]
    of_users: dict[str, list[str]] = {}
    for session in sorted({session for one in acknowledged for session in one}):
        memory = engine.session(session, user_id=user_of(session))
        stored = [message.id or "" for message in await memory.get_all()]
        of_users.setdefault(user_of(session), []).extend(stored)
        for name, one in zip(WRITERS, acknowledged, strict=False):
            assert [i for i in stored if i.startswith(f"m-{name}-")] == one.get(session, []), f"writer {name} in {session}"
        assert len(stored) == sum(len(one.get(session, [])) for one in acknowledged), session
        of_session = await memory.block("of_session")
        assert (of_session.absorbed, of_session.total) == tally(stored), session
        calls = await (await memory.block("in_records")).absorbed()
        assert [line for call in calls for line in heads(call)] == flushed(database, session), session
        assert (await memory.get())[0].role == "system"
    for user, stored in of_users.items():
        memory = engine.session(f"s0-{user[1:]}", user_id=user)
        of_user = await memory.block("of_user")
        assert (of_user.absorbed, of_user.total) == tally(stored), user
