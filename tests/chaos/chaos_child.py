"""The processes that the tests kill, interrupt, or let write at the same time; run by path.

chaos_child.py act DATABASE SEED COUNT START     does the acts of a seed from START on, saying which are done
chaos_child.py recall DATABASE SEED COUNT START KIND  the same, with blocks for recall on a vector store of that kind
chaos_child.py facts DATABASE SEED COUNT START   the same in one session, with a block for facts and a slow model
chaos_child.py think DATABASE SEED COUNT START LOG    the same, with blocks that ask a model, whose calls go to LOG
chaos_child.py write DATABASE WRITER COUNT       puts COUNT messages into a shared session and one of its own
chaos_child.py forget DATABASE                   puts a message and never closes the memory
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from pathlib import Path

from chaos_blocks import acts, recorders, small_engine, speech
from chaos_database import Database, database_of

from memory_engine import ChatMessage, MemoryEngine


def say(*words: object) -> None:
    """One line to whoever started this process, at once."""
    print(*words, flush=True)


async def act(database: Database, seed: int, count: int, start: int) -> None:
    """Carry out the acts and acknowledge each; when all are done keep the process up, its deliveries may still run."""
    say("ready")
    async with small_engine(database, recorders(slow=0.02)) as engine:
        await _go_on(engine, seed, count, start)


async def recall(database: Path, seed: int, count: int, start: int, kind: str) -> None:
    """The same, while what is flushed goes to a vector store."""
    from chaos_recall import SlowEmbedder, recalling, shop

    say("ready")
    folder = database.with_suffix(".qdrant")
    async with (
        shop(kind, database, folder) as where,
        small_engine(database, recalling(where, SlowEmbedder(slow=0.02), ("session", "user"))) as engine,
    ):
        await _go_on(engine, seed, count, start)


async def facts(database: Path, seed: int, count: int, start: int) -> None:
    """The same in one session, while a model makes facts of what is flushed."""
    from chaos_facts import facts_engine

    say("ready")
    async with facts_engine(database, slow=0.05) as engine:
        await _go_on(engine, seed, count, start, sessions=("a",))


async def think(database: Path, seed: int, count: int, start: int, log: Path) -> None:
    """The same, while a model summarises and notes what is flushed."""
    from chaos_models import thinking_engine

    say("ready")
    async with thinking_engine(database, log, slow=0.4) as engine:
        await _go_on(engine, seed, count, start)


async def _go_on(engine: MemoryEngine, seed: int, count: int, start: int, sessions: tuple[str, ...] = ("a", "b")) -> None:
    memories = {session: engine.session(session, user_id="ada") for session in sessions}
    for number, todo in enumerate(acts(seed, count, sessions)[start:], start):
        memory = memories[todo.session]
        if todo.messages:
            await memory.put_messages(todo.messages)
        else:
            await memory.flush()
        say("done", number)
        await asyncio.sleep(random.random() * 0.006)
        if random.random() < 0.1:
            await memory.get("tea")
    await engine.drain()
    say("end")
    await asyncio.sleep(3600)


async def write(database: Database, writer: str, count: int) -> None:
    """Put messages in two sessions; other processes do the same to the shared one."""
    random_ = random.Random(writer)
    async with small_engine(database, recorders(slow=0.005)) as engine:
        shared, own = engine.session("shared", user_id="ada"), engine.session(f"own-{writer}", user_id="ada")
        for number in range(count):
            role = ("user", "assistant")[number % 2]
            for memory, name in ((shared, "s"), (own, "o")):
                await memory.put(ChatMessage(role=role, id=f"{name}-{writer}-{number:04d}", content=speech(random_)))
            if random_.random() < 0.1:
                await shared.get()
        await engine.drain(60.0)
    say("end")


async def forget(database: Database) -> None:
    """Use a memory and let the program end without closing it."""
    engine = small_engine(database, recorders())
    await engine.session("a", user_id="ada").put(ChatMessage(role="user", id="kept", content="I stay"))
    say("end")


def main(kind: str, database: str, *arguments: str) -> None:
    """Do what the first argument says."""
    # A shell that runs the tests in the background has them ignore Ctrl-C, and so their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    path = Path(database)
    if kind == "act":
        asyncio.run(act(database_of(database), *map(int, arguments)))
    elif kind == "facts":
        asyncio.run(facts(path, *map(int, arguments)))
    elif kind == "recall":
        seed, count, start = map(int, arguments[:3])
        asyncio.run(recall(path, seed, count, start, arguments[3]))
    elif kind == "think":
        seed, count, start = map(int, arguments[:3])
        asyncio.run(think(path, seed, count, start, Path(arguments[3])))
    elif kind == "write":
        asyncio.run(write(database_of(database), arguments[0], int(arguments[1])))
    else:
        asyncio.run(forget(database_of(database)))


if __name__ == "__main__":
    main(*sys.argv[1:])
