"""Hosts whose clocks are wrong share a session (P5): order is the database's, and so is the time of leases and retries."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path

import pytest
from chaos_blocks import PATIENCE
from chaos_clocks import LEASE, make_engine
from chaos_database import BOTH, Database, execute, uri_of

from memory_engine import ChatMessage
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


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
async def test_hosts_an_hour_ahead_and_behind_keep_order_leases_and_retries(database: Database, tmp_path: Path) -> None:
    """Each of them holds a lease that the others respect while it lives, and take over when it is killed."""
    uri, log = uri_of(database), tmp_path / "log"
    ahead, behind, last = hosts = [WrongHost(HOUR), WrongHost(-HOUR), WrongHost(HOUR)]
    async with make_engine(uri, "0", tmp_path) as engine:
        memory = engine.session("s", user_id="ada")
        try:
            await memory.put(ChatMessage(role="user", id="first", content="this is the first"))
            said = ["first"]
            await asyncio.gather(*(host.start(uri, tmp_path) for host in hosts))

            async def talk(count: int) -> None:
                for _ in range(count):
                    name = f"m-{len(said)}"
                    host = random.choice([None, *(host for host in hosts if host.process.returncode is None)])
                    if host is None:
                        await memory.put(ChatMessage(role="user", id=name, content=f"this is {name}"))
                    else:
                        await host.do(f"put {name}")
                    said.append(name)
                assert [message.id for message in await memory.get_all()] == said
                assert (await memory.get())[-1].id == said[-1]
                await memory.flush(final=True)

            async def until(last: str) -> None:
                async with asyncio.timeout(PATIENCE):
                    while not log.exists() or log.read_text().splitlines()[-1] != last:
                        await asyncio.sleep(0.01)

            await talk(20)
            (tmp_path / "fail").touch()
            for holder, heir in ((ahead, behind), (behind, last)):
                if holder is ahead:
                    (tmp_path / "hold").touch()
                    await holder.do("work")
                await until(f"began {holder.name}")
                await heir.do("work")
                with pytest.raises(DrainTimeoutError):
                    await memory.drain(0.5)
                assert log.read_text().splitlines()[-1] == f"began {holder.name}", "its lease was not respected"
                await holder.kill()
                # Half an hour passes.
                execute(database, f"UPDATE memory_block_leases SET until = until - {LEASE}")
                await until(f"began {heir.name}")
                (tmp_path / "hold").unlink()
                await memory.drain(PATIENCE)
                assert (await memory.block("watched")).heard == said
                if heir is behind:
                    (tmp_path / "hold").touch()
                await talk(5)
            await memory.drain(PATIENCE)
            assert log.read_text().splitlines()[:3] == [f"failed {HOUR}", f"began {HOUR}", f"began -{HOUR}"]
            assert (await memory.block("watched")).heard == said
        finally:
            for host in hosts:
                await host.kill()
