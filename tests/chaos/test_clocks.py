"""Hosts whose clocks are wrong share a session (P5): order is the database's, and so is the time of leases and retries."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from chaos_blocks import PATIENCE
from chaos_clocks import LEASE, make_engine
from chaos_database import BOTH, Database, execute, uri_of

from memory_engine import ChatMessage, Memory
from memory_engine.errors import DrainTimeoutError

pytestmark = pytest.mark.asyncio

CHILD = Path(__file__).with_name("chaos_clocks.py")
HOUR = 3600


class WrongHost:
    """A process whose clock is wrong by some seconds."""

    def __init__(self, seconds: int) -> None:
        self.name = str(seconds)

    async def start(self, uri: str, folder: Path) -> None:
        """Start it; its clock is as wrong as was asked for."""
        pipe = asyncio.subprocess.PIPE
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, str(CHILD), uri, self.name, str(folder), stdin=pipe, stdout=pipe
        )
        assert round((float(await self._line()) - time.time()) / HOUR) == int(self.name) // HOUR

    async def do(self, what: str) -> None:
        """Tell it, and wait until it is done."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n".encode())
        assert await self._line() == what

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def _line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), PATIENCE)).decode().strip()


class Scene:
    """A session that several hosts write, and what the block that hears it noted in a file."""

    def __init__(self, memory: Memory, hosts: Sequence[WrongHost], folder: Path) -> None:
        self.memory, self.hosts, self.log = memory, hosts, folder / "log"
        self.said: list[str] = []
        self.begun: list[str] = []

    async def talk(self, count: int) -> None:
        """Let random hosts put a message, one after the other, and archive them."""
        for _ in range(count):
            name = f"m-{len(self.said)}"
            host = random.choice([None, *(host for host in self.hosts if host.process.returncode is None)])
            if host is None:
                await self.memory.put(ChatMessage(role="user", id=name, content=f"this is {name}"))
            else:
                await host.do(f"put {name}")
            self.said.append(name)
        assert [message.id for message in await self.memory.get_all()] == self.said
        assert (await self.memory.get())[-1].id == self.said[-1]
        await self.memory.flush(final=True)

    async def until_begun(self, host: WrongHost) -> None:
        """Until that host has begun one delivery more."""
        self.begun.append(f"began {host.name}")
        async with asyncio.timeout(PATIENCE):
            while len(self.noted()) < len(self.begun):
                await asyncio.sleep(0.01)
        assert self.noted() == self.begun

    async def absorbed(self) -> None:
        """Everything, once and in order."""
        await self.memory.drain(PATIENCE)
        assert (await self.memory.block("watched")).heard == self.said

    def noted(self) -> list[str]:
        """The lines of the file."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
async def test_hosts_an_hour_ahead_and_behind_keep_order_leases_and_retries(database: Database, tmp_path: Path) -> None:
    """Each of them holds a lease that the others respect while it lives, and take over when it is killed."""
    ahead, behind, last = hosts = [WrongHost(HOUR), WrongHost(-HOUR), WrongHost(HOUR)]
    hold = tmp_path / "hold"
    async with make_engine(uri_of(database), "0", tmp_path) as engine:
        scene = Scene(engine.session("s", user_id="ada"), hosts, tmp_path)
        try:
            await asyncio.gather(*(host.start(uri_of(database), tmp_path) for host in hosts))
            await scene.talk(20)
            (tmp_path / "fail").touch()
            hold.touch()
            await ahead.do("work")
            scene.begun.append(f"failed {ahead.name}")
            for holder, heir in ((ahead, behind), (behind, last)):
                await scene.until_begun(holder)
                await heir.do("work")
                with pytest.raises(DrainTimeoutError):
                    await scene.memory.drain(0.5)
                assert scene.noted() == scene.begun, "its lease was not respected"
                await holder.kill()
                # Half an hour passes.
                execute(database, f"UPDATE memory_block_leases SET until = until - {LEASE}")
                await scene.until_begun(heir)
                hold.unlink()
                await scene.absorbed()
                hold.touch()
                await scene.talk(5)
            hold.unlink()
            await scene.absorbed()
        finally:
            for host in hosts:
                await host.kill()
