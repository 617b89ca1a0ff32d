"""A host whose clock is wrong: `chaos_clocks.py URI SECONDS FOLDER`; it does what it is told on standard input, line by line.

put ID     puts a message        work     delivers from now on        Each is answered by a line.
"""

from __future__ import annotations

import asyncio
import datetime
import sys
import time
from pathlib import Path
from typing import Any


def set_clocks(seconds: float) -> None:
    """Let everything in this process that asks Python for the time of day be wrong by so much; durations stay right."""
    right, right_ns, real = time.time, time.time_ns, datetime.datetime
    time.time = lambda: right() + seconds
    time.time_ns = lambda: right_ns() + int(seconds * 1e9)

    class Wrong(real):  # type: ignore[misc, valid-type]
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return real.now(tz) + datetime.timedelta(seconds=seconds)

    datetime.datetime = Wrong  # type: ignore[misc]


if __name__ == "__main__":
    # Before anything is imported that keeps a clock of its own.
    set_clocks(float(sys.argv[2]))

from chaos_blocks import words  # noqa: E402
from pydantic import Field  # noqa: E402

from memory_engine import BaseMemoryBlock, ChatMessage, MemoryEngine  # noqa: E402
from memory_engine.settings import Limits, SystemClock  # noqa: E402

LEASE = 1_800.0
"""Less than the clocks differ, and more than any test takes: who takes a lease that is alive has asked a wrong clock."""


class Watched(BaseMemoryBlock[str]):
    """Says in a file which host begins, fails while there is a file `fail`, and goes on when the file `hold` is gone."""

    heard: list[str] = []
    host: str = Field(default="", exclude=True)
    folder: str = Field(default="", exclude=True)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        folder = Path(self.folder)
        if (folder / "fail").exists():
            (folder / "fail").unlink()
            self._note("failed")
            raise RuntimeError("not now")
        self._note("began")
        while (folder / "hold").exists():
            await asyncio.sleep(0.01)
        self.heard.extend(message.id or "" for message in messages)

    def _note(self, what: str) -> None:
        with (Path(self.folder) / "log").open("a") as log:
            log.write(f"{what} {self.host}\n")

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return f"{len(self.heard)} messages"


def make_engine(uri: str, host: str, folder: Path) -> MemoryEngine:
    """The engine of a host; it delivers when it is told to."""
    return MemoryEngine(
        async_database_uri=uri,
        memory_blocks=[Watched(name="watched", host=host, folder=str(folder))],
        tokenizer_fn=words,
        delivery="worker",
        limits=Limits(lease=LEASE, first_retry=0.05, last_retry=0.2, poll=0.1),
    )


async def main(uri: str, seconds: str, folder: str) -> None:
    """Do what is told."""
    async with make_engine(uri, seconds, Path(folder)) as engine:
        memory = engine.session("s", user_id="ada")
        working = None
        print(SystemClock().now().timestamp(), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            what, *value = line.split()
            if what == "put":
                await memory.put(ChatMessage(role="user", id=value[0], content=f"this is {value[0]}"))
            else:
                working = asyncio.create_task(engine.work())
            print(line, end="", flush=True)
        if working is not None:
            working.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
