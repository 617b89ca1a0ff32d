"""A full disk: errors that say so, nothing that was acknowledged is lost, and all goes on when there is room again."""

from __future__ import annotations

import asyncio
import random
import resource
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import pytest
from chaos_blocks import PATIENCE, heads, recorders, small_engine
from chaos_database import Database, audit, execute, flushed, rows

from memory_engine import BaseMemoryBlock, ChatMessage, Memory
from memory_engine.errors import StoreError, StoreFullError
from memory_engine.testing.postgres import PostgresServer

pytestmark = pytest.mark.asyncio

MEGABYTE = 1 << 20


class Room(Protocol):
    """A disk with a database on it."""

    database: Database

    def fill(self, leave: int = 0) -> None:
        """Take all of the room, but for so many bytes."""

    def free(self) -> None:
        """Give it back."""


class SmallDisk:
    """A disk of its own in memory."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.database = database
        self._ballast = folder / "ballast"

    def fill(self, leave: int = 0) -> None:
        size = MEGABYTE
        with self._ballast.open("ab", buffering=0) as ballast:
            while size >= 4096:
                try:
                    ballast.write(b"x" * size)
                except OSError:
                    size //= 2
            ballast.truncate(max(0, self._ballast.stat().st_size - leave))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


class LimitedFiles:
    """For who may not mount: files of this process that may not grow, as under a quota."""

    def __init__(self, database: Path) -> None:
        self.database: Database = database
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, leave: int = 0) -> None:
        assert isinstance(self.database, Path)
        log = self.database.with_name(f"{self.database.name}-wal")
        size = log.stat().st_size if log.exists() else 4096
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + leave, self._before[1]))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


class RefusingServer:
    """For who may not mount: a PostgreSQL server that answers as one on a full disk does, whenever something is to be kept."""

    def __init__(self, database: str) -> None:
        self.database: Database = database
        # Decided by a row: to change a trigger would have to wait for transactions of the event loop that waits for it.
        execute(database, "CREATE TABLE full_disk (name text)")
        refuse = "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'"
        look = f"IF EXISTS (SELECT FROM full_disk WHERE name = TG_TABLE_NAME) THEN {refuse}; END IF; RETURN NEW"
        execute(database, f"CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $body$ BEGIN {look}; END $body$")
        for table in ("messages", "block_records"):
            execute(database, f"CREATE TRIGGER look BEFORE INSERT ON memory_{table} FOR EACH ROW EXECUTE FUNCTION look()")

    def fill(self, leave: int = 0) -> None:
        execute(self.database, "INSERT INTO full_disk VALUES ('memory_block_records')")
        if not leave:
            execute(self.database, "INSERT INTO full_disk VALUES ('memory_messages')")

    def free(self) -> None:
        execute(self.database, "DELETE FROM full_disk")


@contextmanager
def mounted(size: int) -> Iterator[Path | None]:
    """A folder with a file system of so many bytes; None where that is not allowed."""
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(folder)]
    allowed = False
    with suppress(OSError):
        allowed = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield folder if allowed else None
    finally:
        if allowed:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@pytest.fixture(params=["sqlite", "postgresql"])
def room(request: pytest.FixtureRequest, tmp_path: Path, soak: bool) -> Iterator[Room]:
    """A small disk for each database; PostgreSQL gets one with `--soak`, a server on it takes its time to begin."""
    with ExitStack() as stack:
        made: Room
        if request.param == "sqlite":
            disk = stack.enter_context(mounted(8 * MEGABYTE))
            made = LimitedFiles(tmp_path / "memory.db") if disk is None else SmallDisk(disk, disk / "memory.db")
        else:
            disk = stack.enter_context(mounted(200 * MEGABYTE)) if soak else None
            if disk is None:
                made = RefusingServer(request.getfixturevalue("postgres_uri"))
            else:
                server = stack.enter_context(PostgresServer(folder=disk))
                server.execute("CREATE DATABASE memory")
                made = SmallDisk(disk, server.uri("memory"))
        stack.callback(made.free)
        yield made


def said(number: int) -> ChatMessage:
    """A message that takes some room."""
    return ChatMessage(role="user", id=f"m-{number:04d}", content=f"{number} " + "of many words " * 10)


async def say(memory: Memory, first: int, *, until_refused: int) -> tuple[list[ChatMessage], list[ChatMessage]]:
    """Put one message after the other until so many were refused; what was stored and what not."""
    stored, refused = list[ChatMessage](), list[ChatMessage]()
    for number in range(first, first + 2_000):
        try:
            await memory.put(said(number))
        except StoreFullError as error:
            assert "The disk of the database is full" in str(error) and "Make room and retry" in str(error)
            refused.append(said(number))
            if len(refused) == until_refused:
                return stored, refused
        else:
            stored.append(said(number))
    raise AssertionError("the disk never became full")


async def ids(memory: Memory) -> list[str | None]:
    return [message.id for message in await memory.get_all()]


async def absorbed_once(memory: Memory, database: Database) -> None:
    """By every block, in order."""
    await memory.flush(final=True)
    await memory.drain(PATIENCE)
    for kind in ("in_fields", "in_records"):
        calls = await (await memory.block(kind)).absorbed()
        assert [line for call in calls for line in heads(call)] == flushed(database, memory.session_id), kind
    audit(database)


async def test_a_disk_that_fills_up_refuses_clearly_and_loses_nothing(room: Room) -> None:
    """While messages are put and delivered: what is there can be read, what was refused can be put again."""
    async with small_engine(room.database, recorders(slow=0.02), busy_timeout=2.0) as engine:
        memory = engine.session("s", user_id="ada")
        known = [said(number) for number in range(20)]
        for message in known:
            await memory.put(message)
        room.fill()
        stored, refused = await say(memory, 20, until_refused=12)
        known += stored
        assert await ids(memory) == [message.id for message in known]
        assert (await memory.get())[-1].id == known[-1].id
        assert all(lag.parked == 0 for lag in (await engine.stats()).blocks.values())
        room.free()
        for message in refused:
            await memory.put(message)
        assert await ids(memory) == [message.id for message in (*known, *refused)]
        await absorbed_once(memory, room.database)


class Hoarder(BaseMemoryBlock[str]):
    """Keeps much of each message."""

    calls: int = 0

    async def _aput(self, messages: list[ChatMessage]) -> None:
        self.calls += 1
        for message in messages:
            self.records.put(message.id or "", random.Random(message.id).randbytes(150_000).hex())

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return f"{await self.records.count()} messages"


@pytest.fixture
async def hoarding(room: Room) -> AsyncIterator[Memory]:
    """A memory whose block fills what is left."""
    async with small_engine(room.database, [Hoarder(name="hoarder")], busy_timeout=2.0) as engine:
        yield engine.session("s", user_id="ada")


async def test_a_delivery_that_finds_no_room_is_repeated_until_there_is_some(room: Room, hoarding: Memory) -> None:
    """It is no fault of the block: nothing is parked, however long it takes."""
    await hoarding.put(said(0))
    room.fill(leave=MEGABYTE // 8)
    await hoarding.put_messages([said(number) for number in range(1, 5)])
    await hoarding.flush(final=True)
    query = "SELECT last_error, attempts FROM memory_block_cursors WHERE last_error IS NOT NULL"
    while not (failed := rows(room.database, query)):
        with pytest.raises(TimeoutError):
            await hoarding.drain(0.05)
    assert "Make room and retry" in failed[0][0] and failed[0][1] == 0
    source = (await hoarding.context()).receipt.source("hoarder")
    assert source.lag == 5 and not (await hoarding.context()).receipt.parked
    room.free()
    await hoarding.drain(PATIENCE)
    block = await hoarding.block("hoarder")
    assert await block.records.count() == 5


@pytest.mark.parametrize("room", ["sqlite"], indirect=True)
async def test_a_database_that_cannot_be_opened_for_want_of_room_says_so(room: Room) -> None:
    """One that is there, and a new one."""
    assert isinstance(room.database, Path)
    async with small_engine(room.database, recorders()) as engine:
        await engine.session("s", user_id="ada").put(said(0))
    new = room.database.with_name("memory.db-new")
    new.touch()
    room.fill()
    for database in (room.database, new):
        with pytest.raises(StoreFullError, match="Make room and retry"):
            async with small_engine(database, recorders()) as engine:
                await engine.session("s", user_id="ada").put(said(1))
    room.free()
    for database, count in ((room.database, 2), (new, 1)):
        async with small_engine(database, recorders()) as engine:
            await engine.session("s", user_id="ada").put(said(1))
            assert len(await ids(engine.session("s", user_id="ada"))) == count


@pytest.mark.soak
async def test_a_server_that_ends_for_want_of_room_loses_nothing() -> None:
    """PostgreSQL panics when it cannot write its log; somebody makes room, and starts it again if it has given up."""
    with mounted(200 * MEGABYTE) as folder, PostgresServer(folder=folder) as server:
        server.execute("CREATE DATABASE memory")
        async with small_engine(server.uri("memory"), recorders(slow=0.02), busy_timeout=1.0) as engine:
            memory = engine.session("s", user_id="ada")
            known = [said(number) for number in range(20)]
            for message in known:
                await memory.put(message)
            if folder is None:
                server.crash()
            else:
                room = SmallDisk(folder, server.uri("memory"))
                room.fill()
                with pytest.raises(RuntimeError):
                    _write_its_log(server)
                with pytest.raises(StoreError):
                    await memory.put(said(len(known)))
                room.free()
            async with asyncio.timeout(PATIENCE):
                while not await _stored(memory, said(len(known))):
                    # It recovers by itself, unless there was no room for that either.
                    if not server.running:
                        server.start()
            assert await ids(memory) == [message.id for message in (*known, said(len(known)))]
            await absorbed_once(memory, server.uri("memory"))


def _write_its_log(server: PostgresServer) -> None:
    """Until it begins another file of it."""
    for _ in range(5):
        server.execute("SELECT pg_switch_wal(), pg_logical_emit_message(true, 'a', repeat('a', 100000))", "memory")


async def _stored(memory: Memory, message: ChatMessage) -> bool:
    try:
        await memory.put(message)
    except StoreError as error:
        assert "etry" in str(error)
        return False
    return True
