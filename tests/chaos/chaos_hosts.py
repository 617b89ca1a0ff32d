"""The hosts of an application, as they run in production: writers that serve users, and an engine for worker processes.

chaos_hosts.py URI WRITER START DELIVERY     puts messages from number START on until its standard input ends
python -m memory_engine worker --app chaos_hosts:make_engine     with the address in CHAOS_DATABASE
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from itertools import count
from typing import Any

from chaos_blocks import InRecords, speech, words

from memory_engine import BaseMemoryBlock, ChatMessage, Memory, MemoryEngine
from memory_engine.errors import StoreError
from memory_engine.settings import Limits

LEASE = 2.0
LIMITS = Limits(lease=LEASE, first_retry=0.01, last_retry=0.2, poll=0.2)
PATIENT, IMPATIENT = 30.0, 0.3
"""Seconds for which a server that is away is looked for: as by default, or so few that its users see errors."""
_ROUND = 150
"""So many messages of each writer go to the same sessions; then others begin, so that none grows without end."""
_AT_ONCE = 3


class Tally(BaseMemoryBlock[str]):
    """Counts what it absorbed and adds up a number for each message: one that is missing or came twice shows."""

    absorbed: int = 0
    total: int = 0

    async def _aput(self, messages: list[ChatMessage]) -> None:
        await asyncio.sleep(random.random() * 0.01)
        self.absorbed, self.total = tally([m.id or "" for m in messages], self.absorbed, self.total)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return f"{self.absorbed} messages"


def tally(ids: Iterable[str], absorbed: int = 0, total: int = 0) -> tuple[int, int]:
    """What a `Tally` that had absorbed so much makes of these."""
    for message_id in ids:
        absorbed += 1
        total = (total + int.from_bytes(sha256(message_id.encode()).digest()[:6])) % 2**48
    return absorbed, total


def make_engine(uri: str | None = None, *, delivery: str = "worker", busy_timeout: float = PATIENT) -> MemoryEngine:
    """The engine of every host; workers take the address from their environment."""
    blocks = [
        Tally(name="of_session", priority=1),
        InRecords(name="in_records", priority=2, slow=0.01),
        Tally(name="of_user", scope="user", priority=3),
    ]
    return MemoryEngine(
        async_database_uri=uri or os.environ["CHAOS_DATABASE"],
        memory_blocks=blocks,
        token_limit=300,
        token_flush_size=60,
        tokenizer_fn=words,
        limits=LIMITS,
        delivery=delivery,
        busy_timeout=busy_timeout,
    )


def session_of(number: int) -> str:
    """The session that a writer's message goes to; all writers share it."""
    return f"s{number // _ROUND}-{number % _AT_ONCE}"


def user_of(session: str) -> str:
    """Whose session it is."""
    return f"u{session[-1]}"


def message_of(writer: str, number: int) -> ChatMessage:
    """The message of that number, the same whenever it is made."""
    random_ = random.Random(f"{writer}-{number}")
    role = ("user", "assistant")[number // _AT_ONCE % 2]
    return ChatMessage(role=role, id=f"m-{writer}-{number:06d}", content=speech(random_))


async def write(uri: str, writer: str, start: int, delivery: str, stop: asyncio.Event) -> None:
    """Put one message after the other, each again until it is acknowledged, as users do who want theirs to be kept."""
    random_ = random.Random()
    engine = make_engine(uri, delivery=delivery, busy_timeout=random_.choice((PATIENT, IMPATIENT)))
    for number in count(start):
        memory = engine.session(session_of(number), user_id=user_of(session_of(number)))
        while not await _acknowledged(memory, message_of(writer, number)):
            await asyncio.sleep(0.05)
        print("done", number, flush=True)
        if random_.random() < 0.05:
            with suppress(StoreError):
                await memory.get("tea")
        if stop.is_set():
            break
        await asyncio.sleep(random_.random() * 0.08)
    with suppress(StoreError):
        await engine.aclose()


async def _acknowledged(memory: Memory, message: ChatMessage) -> bool:
    try:
        await memory.put(message)
    except StoreError as error:
        print("refused", type(error).__name__, flush=True)
        return False
    return True


async def main(uri: str, writer: str, start: str, delivery: str) -> None:
    """Write until standard input ends."""
    stop = asyncio.Event()
    writing = asyncio.create_task(write(uri, writer, int(start), delivery, stop))
    await asyncio.to_thread(sys.stdin.read)
    stop.set()
    await writing


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
