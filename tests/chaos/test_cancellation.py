"""Cancelling at any await loses nothing (P4), and misuse across event loops or after closing is told (P6)."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Generator, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from chaos_blocks import PATIENCE, QUICK, Outside, heads, recorders, small_engine
from chaos_database import BOTH, BOTH_IN_SOAK, Database, audit, flushed, rows

from memory_engine import ChatMessage, Memory, MemoryEngine
from memory_engine.errors import ClosedError, DrainTimeoutError, WrongEventLoopError

CHILD = Path(__file__).with_name("chaos_child.py")
Operation = Callable[[Memory, MemoryEngine], Awaitable[Any]]


class CancelledAt:
    """Awaits `work` and cancels the task that does so at the n-th await that really waits.

    With `late` the cancellation arrives when what is awaited has just ended, so that its result is on the way already.
    """

    def __init__(self, work: Awaitable[Any], number: int, *, late: bool) -> None:
        self._work, self._number, self._late = work, number, late

    def __await__(self) -> Generator[Any, Any, Any]:
        task = asyncio.current_task()
        assert task is not None
        inner = self._work.__await__()
        step: Callable[[], Any] = lambda: next(inner)  # noqa: E731
        for number in range(1, 10_000):
            try:
                waiting = step()
            except StopIteration as stop:
                return stop.value
            if number == self._number:
                if self._late and waiting is not None:
                    waiting.add_done_callback(lambda _: task.cancel())
                else:
                    asyncio.get_running_loop().call_soon(task.cancel)
            try:
                value = yield waiting
            except BaseException as error:  # noqa: BLE001 - handed on to where it belongs
                step = lambda error=error: inner.throw(error)  # type: ignore[misc]  # noqa: E731
            else:
                step = lambda value=value: inner.send(value)  # type: ignore[misc]  # noqa: E731
        raise AssertionError("it never ends")


async def cancelled(work: Awaitable[Any], number: int, *, late: bool) -> bool:
    """Run with a cancellation at that await; whether it came to one."""

    async def run() -> None:
        await CancelledAt(work, number, late=late)

    task = asyncio.create_task(run())
    await asyncio.wait({task}, timeout=PATIENCE)
    assert task.done(), f"cancelled at await {number}, it does not end"
    if not task.cancelled():
        task.result()
    return task.cancelled()


def question(name: str, size: int = 12) -> ChatMessage:
    """A user's message of that many words."""
    return ChatMessage(role="user", id=name, content=" ".join([name] * size))


async def prepare(memory: Memory) -> None:
    """Enough messages that the next put makes a flush."""
    for number in range(20):
        await memory.put(question(f"{memory.session_id}-{number:03d}"))


async def _put(memory: Memory, engine: MemoryEngine) -> None:
    await memory.put_messages([question(f"{memory.session_id}-new{number}", 30) for number in range(3)])


async def _get(memory: Memory, engine: MemoryEngine) -> None:
    await memory.get("what?")


async def _drain(memory: Memory, engine: MemoryEngine) -> None:
    await memory.flush()
    await memory.drain()


async def _set(memory: Memory, engine: MemoryEngine) -> None:
    await memory.set([question(f"{memory.session_id}-set{number}") for number in range(3)])


async def _delete(memory: Memory, engine: MemoryEngine) -> None:
    await memory.delete([f"{memory.session_id}-{number:03d}" for number in (1, 19)])


async def _reset(memory: Memory, engine: MemoryEngine) -> None:
    await memory.reset()


async def _correct(memory: Memory, engine: MemoryEngine) -> None:
    async with memory.block("in_records") as block:
        block.records.put("~note", ["by hand", "a note"])
        await asyncio.sleep(0)
        block.records.put("~other", ["by hand", "another"])


OPERATIONS: list[Operation] = [_put, _get, _drain, _set, _delete, _reset, _correct]


async def check(memory: Memory, engine: MemoryEngine, database: Database, what: str) -> None:
    """Whole or not at all, sums that add up, a usable connection, and deliveries that go on."""
    name = memory.session_id
    ids = [message.id or "" for message in await memory.get_all()]
    assert len([i for i in ids if "-new" in i]) in (0, 3), f"{what}: a put was torn"
    assert len([i for i in ids if "-set" in i]) in (0, 3), f"{what}: a set was torn"
    gone = {f"{name}-001", f"{name}-019"}
    assert gone <= set(ids) or not gone & set(ids) or f"{name}-set0" in ids, f"{what}: a deletion was torn"
    await memory.put(question(f"{name}-after"))
    assert (await memory.get())[-1].id == f"{name}-after", what
    await memory.flush(final=True)
    await memory.drain(PATIENCE)
    expected = flushed(database, name)
    assert expected[-1].endswith("-after"), what
    for kind in ("in_fields", "in_records"):
        calls = await (await memory.block(kind)).absorbed()
        lines = [line for call in calls for line in heads(call) if "/" in line]
        assert lines == expected, f"{what}: {kind}"
    keys = [key for (key,) in rows(database, "SELECT key FROM memory_block_records WHERE key LIKE '~%' ORDER BY 1")]
    assert keys == sorted(["~note", "~other"] * (len(keys) // 2)), f"{what}: a correction was torn"
    audit(database)


def _cases() -> Iterator[Any]:
    """All of them on both databases with `--soak`; in the normal run some on SQLite, and two operations on PostgreSQL."""
    for operation, late, delivery, kind in product(OPERATIONS, (False, True), ("background", "inline"), BOTH):
        of_both = late and delivery == "background" and operation in {_put, _correct}
        chosen = of_both or (kind == "sqlite" and (delivery == "background" or operation in {_put, _drain}))
        name = f"{operation.__name__[1:]}-{'done' if late else 'waiting'}-{delivery}-{kind}"
        yield pytest.param(operation, late, delivery, kind, id=name, marks=[] if chosen else [pytest.mark.soak])


@pytest.mark.asyncio
@pytest.mark.parametrize(("operation", "late", "delivery", "database_kind"), [*_cases()], indirect=["database_kind"])
async def test_a_cancelled_operation_is_done_or_not(
    database: Database, operation: Operation, late: bool, delivery: str, soak: bool
) -> None:
    """Cancelled at each of its awaits in turn, until it gets through."""
    async with small_engine(database, recorders(slow=0.004), delivery=delivery) as engine:
        number, came, step = 0, True, 13 if isinstance(database, Path) else 30
        while came:
            number += 1 if soak or number < 3 else step
            memory = engine.session(f"s{number}", user_id=f"u{number}")
            await prepare(memory)
            came = await cancelled(operation(memory, engine), number, late=late)
            await check(memory, engine, database, f"{operation.__name__}, await {number}")
        assert number > 1, "it never waited"


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
@pytest.mark.asyncio
@pytest.mark.parametrize("late", [False, True], ids=["waiting", "done"])
async def test_a_cancelled_correction_holds_no_lease(database: Database, late: bool) -> None:
    """Nobody has to wait until it runs out."""
    async with small_engine(database, recorders(), limits=replace(QUICK, lease=3600.0)) as engine:
        memory = engine.session("s", user_id="u")
        number, came = 0, True
        while came:
            number += 1
            came = await cancelled(_correct(memory, engine), number, late=late)
            async with asyncio.timeout(PATIENCE):
                while rows(database, "SELECT * FROM memory_block_leases"):
                    await asyncio.sleep(0.001)
        assert number > 3, "it hardly waited"


@pytest.mark.parametrize("database_kind", BOTH_IN_SOAK, indirect=True)
@pytest.mark.asyncio
@pytest.mark.parametrize("late", [False, True], ids=["waiting", "done"])
async def test_the_first_use_can_be_cancelled(new_database: Callable[[str], Database], late: bool) -> None:
    """While it connects and creates the tables."""
    number, came = 0, True
    while came:
        number += 1
        database = new_database(str(number))
        engine = small_engine(database, recorders())
        memory = engine.session("s", user_id="u")
        came = await cancelled(memory.put(question("s-first")), number, late=late)
        stored = [message.id for message in await memory.get_all()]
        assert stored in ([], ["s-first"]) if came else stored == ["s-first"]
        await check(memory, engine, database, f"await {number}")
        await engine.aclose()


@pytest.mark.parametrize("database_kind", BOTH_IN_SOAK, indirect=True)
@pytest.mark.asyncio
@pytest.mark.parametrize("late", [False, True], ids=["waiting", "done"])
async def test_closing_can_be_cancelled(new_database: Callable[[str], Database], late: bool, soak: bool) -> None:
    """What was pending is resumed by the next start, and closing again is allowed."""
    number, came = 0, True
    while came:
        number += 1 if soak or number < 3 else 5
        database = new_database(str(number))
        engine = small_engine(database, recorders(slow=0.01))
        memory = engine.session("s", user_id="u")
        await prepare(memory)
        came = await cancelled(engine.aclose(), number, late=late)
        await engine.aclose()
        async with small_engine(database, recorders()) as engine:
            await check(engine.session("s", user_id="u"), engine, database, f"await {number}")


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
@pytest.mark.asyncio
@pytest.mark.parametrize("delivery", ["background", "inline"])
async def test_closing_does_not_wait_for_a_block_that_does_not_end(database: Database, delivery: str) -> None:
    """Longer than it was told to; the next start absorbs what was pending."""
    entered = asyncio.Event()
    stuck = Outside(name="outside", priority=1, linger=3600.0, entered=entered.set)
    async with asyncio.timeout(PATIENCE):
        engine = small_engine(database, [stuck])
        await prepare(engine.session("s", user_id="u"))
        await engine.aclose(timeout=0.05)
        entered.clear()
        engine = small_engine(database, [stuck], delivery=delivery)
        memory = engine.session("s", user_id="u")
        assert len(await memory.get_all()) == 20
        await entered.wait()
        assert len(await memory.get_all()) == 20
        with pytest.raises(DrainTimeoutError):
            await memory.drain(0.05)
        await engine.aclose(timeout=0.05)
    async with small_engine(database, [Outside(name="outside", priority=1)], delivery=delivery) as engine:
        memory = engine.session("s", user_id="u")
        await memory.drain(PATIENCE)
        calls = await (await memory.block("outside")).absorbed()
        assert [line for call in calls for line in heads(call)] == flushed(database, "s")


@pytest.mark.parametrize("database_kind", BOTH, indirect=True)
@pytest.mark.asyncio
async def test_a_program_may_be_cancelled_as_a_whole(database: Database, soak: bool) -> None:
    """Writers, readers and drains in one task group that is cancelled after more and more turns of the loop."""
    stored: list[str] = []

    async def put(engine: MemoryEngine, writer: int) -> None:
        memory = engine.session("s", user_id="u")
        for number in range(1000):
            message = question(f"m-{len(stored)}-{writer}-{number}-{start}")
            await memory.put(message)
            stored.append(message.id or "")

    async def look(engine: MemoryEngine) -> None:
        while True:
            await engine.session("s", user_id="u").get("what?")
            await engine.session("s", user_id="u").drain()

    async def program() -> None:
        async with small_engine(database, recorders(slow=0.01)) as engine, asyncio.TaskGroup() as group:
            for writer in range(2):
                group.create_task(put(engine, writer))
            group.create_task(look(engine))

    for start in range(40 if soak else 10):
        task = asyncio.create_task(program())
        await asyncio.sleep(start * 0.003)
        task.cancel()
        await asyncio.wait({task}, timeout=PATIENCE)
        assert task.cancelled(), f"start {start}"
    async with small_engine(database, recorders()) as engine:
        memory = engine.session("s", user_id="u")
        kept = [message.id for message in await memory.get_all()]
        assert len(set(kept)) == len(kept) and set(stored) <= set(kept)
        await check(memory, engine, database, "at the end")


# -- one engine, one event loop, until it is closed --------------------------------------------------------------


def touches(memory: Memory, engine: MemoryEngine) -> list[Callable[[], Awaitable[Any]]]:
    """Everything that can be asked of a memory and its engine."""

    async def bound() -> object:
        return await memory.block("in_fields")

    async def corrected() -> None:
        async with memory.block("in_fields"):
            raise AssertionError("unreachable")

    async def entered() -> None:
        async with memory:
            raise AssertionError("unreachable")

    async def entered_engine() -> None:
        async with engine:
            raise AssertionError("unreachable")

    return [
        lambda: memory.put(question("x")),
        lambda: memory.put_messages([]),
        memory.get,
        memory.context,
        memory.get_all,
        lambda: memory.set([]),
        memory.flush,
        memory.drain,
        memory.pop,
        lambda: memory.delete(["x"]),
        lambda: memory.rewind("x"),
        memory.reset,
        memory.redeliver,
        bound,
        corrected,
        entered,
        entered_engine,
        engine.list_sessions,
        lambda: engine.delete_session("s"),
        lambda: engine.delete_user("u"),
        lambda: engine.delete_tenant("t"),
        lambda: engine.purge(inactive_for=0.0),
        engine.pending,
        engine.drain,
    ]


@pytest.mark.asyncio
async def test_a_closed_memory_says_so(database: Path) -> None:
    """Whatever is asked of it, and closing twice is fine."""
    engine = small_engine(database, recorders())
    memory = engine.session("s", user_id="u")
    await memory.put(question("s-1"))
    await engine.aclose()
    await engine.aclose()
    for touch in touches(memory, engine):
        with pytest.raises(ClosedError):
            await touch()
    async with small_engine(database, recorders()) as engine:
        assert len(await engine.session("s", user_id="u").get_all()) == 1


@pytest.mark.parametrize("database_kind", BOTH_IN_SOAK, indirect=True)
@pytest.mark.asyncio
async def test_closing_while_others_work(database: Database) -> None:
    """What runs meanwhile ends whole or is told that the memory is closed."""
    for start in range(10):
        engine = small_engine(database, recorders(slow=0.01))
        memory = engine.session("s", user_id="u")
        work = [asyncio.create_task(memory.put(question(f"s-{start}-{number}"))) for number in range(8)]
        work += [asyncio.create_task(memory.get()) for _ in range(4)]  # type: ignore[arg-type]
        await asyncio.sleep(start * 0.002)
        await engine.aclose()
        for result in await asyncio.wait_for(asyncio.gather(*work, return_exceptions=True), PATIENCE):
            assert not isinstance(result, BaseException) or isinstance(result, ClosedError), repr(result)
        assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()], (
            f"start {start}: left-over tasks"
        )
    async with small_engine(database, recorders()) as engine:
        await check(engine.session("s", user_id="u"), engine, database, "at the end")


def test_another_event_loop_is_refused(database: Path) -> None:
    """While the first loop is there; the data is there for an engine of the second's own."""
    engine = small_engine(database, recorders())
    memory = engine.session("s", user_id="u")

    async def first() -> None:
        await memory.put(question("s-1"))
        await memory.drain()

    async def second() -> None:
        for touch in [*touches(memory, engine), engine.aclose]:
            with pytest.raises(WrongEventLoopError):
                await touch()
        async with small_engine(database, recorders()) as again:
            assert len(await again.session("s", user_id="u").get_all()) == 1

    with asyncio.Runner() as runner:
        runner.run(first())
        _in_thread(second)
        runner.run(engine.aclose())


def _in_thread(work: Callable[[], Awaitable[None]]) -> None:
    """Run in an event loop of another thread, while ours still exists."""
    failed: list[BaseException] = []

    async def main() -> None:
        await work()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread of the test
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@pytest.mark.asyncio
async def test_an_engine_that_nobody_closed_warns(database: Path) -> None:
    """With `ResourceWarning`, and its database can be used at once."""
    engine = small_engine(database, recorders())
    await engine.session("s", user_id="u").put(question("s-1"))
    core = engine._core
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del engine
        gc.collect()
    assert [w for w in caught if w.category is ResourceWarning and "was not closed" in str(w.message)]
    await core.worker.stop()
    await core.store.aclose()


def test_a_program_that_forgets_to_close_ends_and_loses_nothing(database: Path) -> None:
    """It neither hangs nor fails, and says what was forgotten."""
    arguments = [sys.executable, "-W", "always::ResourceWarning", str(CHILD), "forget", str(database)]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 0 and ended.stdout == "end\n", ended.stderr
    assert "was not closed" in ended.stderr

    async def look() -> None:
        async with small_engine(database, recorders()) as engine:
            assert [message.id for message in await engine.session("a", user_id="ada").get_all()] == ["kept"]

    asyncio.run(look())
