"""Deliveries to blocks in whole memories on SQLite: retries, parking, restarts, erasure."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from memory_engine import BaseMemoryBlock, BlockUnavailableError, ChatMessage, Limits, Memory, MemoryEngine
from memory_engine.errors import DrainTimeoutError, StoreError

pytestmark = pytest.mark.asyncio

LIMITS: dict[str, Any] = {
    "get": 2.0,
    "delivery": 5.0,
    "first_retry": 0.01,
    "last_retry": 0.03,
    "max_attempts": 3,
    "lease": 0.5,
    "poll": 0.05,
}
PATIENCE = 30.0

Delivery = Literal["background", "inline"]
both = pytest.mark.parametrize("delivery", ["background", "inline"])


class Probe(BaseMemoryBlock[str]):
    """Keeps what it is told; `on_put` may look, wait or raise first."""

    name: str = "probe"
    seen: list[str] = []
    on_put: Any = Field(default=None, exclude=True)

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return " ".join(self.seen)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        if self.on_put is not None:
            done = self.on_put(self, [message.content for message in messages])
            if inspect.isawaitable(done):
                await done
        self.seen.extend(message.content for message in messages)


class Forgetter(Probe):
    """Keeps seqs with what it is told, so that it can forget; notes what it was asked to forget."""

    name: str = "forgetter"
    by_seq: dict[str, str] = {}
    forgotten: Any = Field(default_factory=list, exclude=True)
    fail: Any = Field(default_factory=list, exclude=True)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        for seq, message in zip(self.context.seqs, messages, strict=True):
            self.by_seq[f"{self.context.session_uid}:{seq}"] = message.content
            self.records.put(f"{self.context.session_uid}:{seq}", message.content, seq=seq)

    async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        self.forgotten.append((session_uid, seqs))
        if self.fail:
            raise self.fail.pop()
        for key in list(self.by_seq):
            uid, _, seq = key.partition(":")
            if session_uid is None or (uid == session_uid and (seqs is None or int(seq) in seqs)):
                del self.by_seq[key]


def once(error: BaseException, times: int = 1) -> Callable[..., None]:
    """Raises the first `times` times."""
    left = [times]

    def fail(*_: object) -> None:
        if left[0]:
            left[0] -= 1
            raise error

    return fail


def _sqlite_in(folder: Path) -> str:
    return f"sqlite+aiosqlite:///{folder / 'memory.db'}"


_addresses: list[Callable[[Path], str]] = [_sqlite_in]
"""Gives the database that belongs to a folder."""


@pytest.fixture(autouse=True, params=["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
def _database_kind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything here holds on both databases; on PostgreSQL with `--soak`."""
    if request.param == "postgresql":
        server, made = request.getfixturevalue("postgres"), dict[Path, str]()

        def postgresql_in(folder: Path) -> str:
            if folder not in made:
                # A running event loop allows no other one in its thread.
                with ThreadPoolExecutor(1) as thread:
                    made[folder] = thread.submit(server.make).result()
            return made[folder]

        _addresses[0] = postgresql_in
    yield
    _addresses[0] = _sqlite_in


@asynccontextmanager
async def open_engine(folder: Path, *blocks: BaseMemoryBlock[Any], **settings: Any) -> AsyncIterator[MemoryEngine]:
    engine = make_engine(folder, *blocks, **settings)
    try:
        yield engine
    finally:
        await engine.aclose(timeout=settings.get("close_in", 0.05))


def make_engine(folder: Path, *blocks: BaseMemoryBlock[Any], **settings: Any) -> MemoryEngine:
    limits = Limits(**{**LIMITS, **settings.pop("limits", {})})
    settings.pop("close_in", None)
    return MemoryEngine(async_database_uri=_addresses[0](folder), memory_blocks=blocks, limits=limits, **settings)


async def tell(memory: Memory, *texts: str) -> list[str]:
    """Each text is a turn and a flush of its own; nothing waits for the blocks."""
    ids = []
    for text in texts:
        stored = await memory.put({"role": "user", "content": text})
        assert stored is not None
        ids.append(stored.id or "")
        await memory.flush(final=True)
    return ids


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def seen(memory: Memory, name: str = "probe") -> list[str]:
    return list((await memory.block(name)).seen)  # type: ignore[attr-defined]


# -- the usual course --------------------------------------------------------------------------------------------


@both
async def test_a_block_gets_every_flushed_message_once_and_in_order(tmp_path: Path, delivery: Delivery) -> None:
    async with open_engine(tmp_path, Probe(), delivery=delivery, token_limit=400, token_flush_size=30) as engine:
        memory = engine.session("one")
        texts = [f"message number {n} of the conversation" for n in range(100)]
        for n, text in enumerate(texts):
            await memory.put({"role": "user" if n % 2 == 0 else "assistant", "content": text})
        await memory.flush(final=True)
        await memory.drain(PATIENCE)
        assert await seen(memory) == texts


async def test_system_messages_are_not_delivered(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Probe()) as engine:
        memory = engine.session("one")
        await memory.put({"role": "system", "content": "rules"})
        await memory.put({"role": "developer", "content": "more rules"})
        await tell(memory, "hello")
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["hello"]


async def test_a_block_that_takes_no_short_term_memory_gets_none(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Probe(accept_short_term_memory=False, name="deaf"), Probe()) as engine:
        memory = engine.session("one")
        await tell(memory, "hello")
        await memory.drain(PATIENCE)
        assert await seen(memory, "deaf") == []
        assert await seen(memory) == ["hello"]


async def test_an_inline_delivery_is_done_when_put_returns(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Probe(), delivery="inline") as engine:
        memory = engine.session("one")
        await tell(memory, "hello")
        assert await seen(memory) == ["hello"]


async def test_a_background_delivery_does_not_hold_up_put(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with open_engine(tmp_path, Probe(on_put=lambda *_: gate.wait())) as engine:
        memory = engine.session("one")
        async with asyncio.timeout(PATIENCE):
            await tell(memory, "one", "two", "three")
        assert await seen(memory) == []
        gate.set()
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one", "two", "three"]


async def test_what_is_not_absorbed_yet_stays_in_view(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with open_engine(tmp_path, Probe(on_put=lambda *_: gate.wait())) as engine:
        memory = engine.session("one")
        await tell(memory, "one", "two")
        context = await memory.context()
        assert [message.content for message in context.messages] == ["one", "two"]
        assert context.receipt.source("probe").lag == 2
        gate.set()
        await memory.drain(PATIENCE)
        context = await memory.context()
        assert len(context.messages) == 1
        assert "<probe>\none two\n</probe>" in context.messages[0].content
        assert context.receipt.source("probe").lag == 0


async def test_many_quick_deliveries_keep_their_lease(tmp_path: Path) -> None:
    """Together they take twice as long as the lease, each of them far less; none is done again."""
    delivered: list[str] = []

    async def note(block: Probe, texts: list[str]) -> None:
        delivered.extend(texts)
        await asyncio.sleep(0.06)

    async with open_engine(tmp_path, Probe(on_put=note), limits={"lease": 1.5}, token_flush_size=1) as engine:
        memory = engine.session("one")
        texts = [f"text {number}" for number in range(50)]
        await memory.put_messages([{"role": "user", "content": text} for text in texts])
        await memory.flush(final=True)
        await memory.drain(PATIENCE)
        assert delivered == texts


async def test_what_a_delivery_is_told(tmp_path: Path) -> None:
    contexts: list[Any] = []

    def look(block: Probe, _: list[str]) -> None:
        contexts.append(block.context)
        if len(contexts) < 3:
            raise ConnectionError("again") if len(contexts) == 1 else RuntimeError("again")

    async with open_engine(tmp_path, Probe(on_put=look, scope="user")) as engine:
        memory = engine.session("one", user_id="ada", tenant="north")
        await memory.put_messages([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        await memory.flush(final=True)
        await memory.drain(PATIENCE)
    first, second, third = contexts
    assert (first.tenant, first.user_id, first.session_id) == ("north", "ada", "one")
    assert first.scope_key == "u:5:north:3:ada"
    assert len(first.seqs) == 2
    assert first.seqs == second.seqs == third.seqs
    assert first.delivery_id == second.delivery_id == third.delivery_id
    assert first.session_uid in first.delivery_id
    assert [first.attempt, second.attempt, third.attempt] == [1, 1, 2], "an unavailable service is no attempt"
    assert first.count("two words") == 2
    assert first.now.utcoffset() is not None


# -- failures ----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "error",
    [RuntimeError("a bug"), ConnectionError("down"), BlockUnavailableError("down"), TimeoutError(), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
async def test_a_failing_delivery_is_retried_and_put_does_not_notice(
    tmp_path: Path, delivery: Delivery, error: BaseException
) -> None:
    async with open_engine(tmp_path, Probe(on_put=once(error, 2)), delivery=delivery) as engine:
        memory = engine.session("one")
        await tell(memory, "one", "two")
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one", "two"]
        assert (await memory.context()).receipt.parked == ()


async def test_an_inline_failure_is_one_attempt_and_stays_pending(tmp_path: Path) -> None:
    attempts: list[list[str]] = []

    def fail(_: Probe, texts: list[str]) -> None:
        attempts.append(texts)
        raise ConnectionError("down for now")

    async with open_engine(tmp_path, Probe(on_put=fail), delivery="inline") as engine:
        memory = engine.session("one")
        await tell(memory, "one")
        assert attempts == [["one"]]
        assert (await engine.pending()).deliveries == 1
        receipt = (await memory.context()).receipt
        assert "down for now" in (receipt.source("probe").error or "")
        assert receipt.source("probe").lag == 1


async def test_a_failed_attempt_leaves_no_trace_in_the_block(tmp_path: Path) -> None:
    fail = once(RuntimeError("in the middle"), 2)

    def disturbed(block: Probe, _: list[str]) -> None:
        block.seen.append("half")
        block.records.put(f"half-{block.context.attempt}")
        fail()
        block.seen.remove("half")

    async with open_engine(tmp_path, Probe(on_put=disturbed)) as engine:
        memory = engine.session("one")
        await tell(memory, "one")
        await memory.drain(PATIENCE)
        block = await memory.block("probe")
        assert await seen(memory) == ["one"]
        assert [record.key for record in await block.records.list()] == ["half-3"]


async def test_a_refused_chunk_is_parked_and_the_block_goes_on(tmp_path: Path) -> None:
    attempts: list[str] = []
    healed = False

    def picky(_: Probe, texts: list[str]) -> None:
        attempts.extend(texts)
        if "poison" in texts and not healed:
            raise ValueError("cannot digest poison")

    async with open_engine(tmp_path, Probe(on_put=picky), Probe(name="other")) as engine:
        memory = engine.session("one")
        await tell(memory, "one", "poison", "two")
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one", "two"]
        assert await seen(memory, "other") == ["one", "poison", "two"]
        assert attempts.count("poison") == 3
        receipt = (await memory.context()).receipt
        [parked] = receipt.parked
        assert (parked.block, parked.attempts) == ("probe", 3)
        assert parked.error == "ValueError: cannot digest poison"
        assert parked.to_seq == parked.from_seq + 1
        assert "poison" in str(receipt)

        assert await memory.redeliver("other") == 0
        assert await memory.redeliver("probe") == 1
        await memory.drain(PATIENCE)
        assert attempts.count("poison") > 3, "another try"
        assert len((await memory.context()).receipt.parked) == 1, "and parked again"

        healed = True
        assert await memory.redeliver() == 1
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one", "two", "poison"]
        assert (await memory.context()).receipt.parked == ()
        assert await memory.redeliver() == 0


async def test_an_unavailable_service_is_waited_for_without_end(tmp_path: Path) -> None:
    attempts: list[int] = []
    up = False

    def service(block: Probe, _: list[str]) -> None:
        attempts.append(block.context.attempt)
        if not up:
            raise BlockUnavailableError("the embedder is down")

    async with open_engine(tmp_path, Probe(on_put=service)) as engine:
        memory = engine.session("one")
        await tell(memory, "one")
        await until(lambda: len(attempts) > 10)
        receipt = (await memory.context()).receipt
        assert receipt.parked == ()
        assert receipt.source("probe").error == "the embedder is down"
        up = True
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one"]
        assert set(attempts) == {1}
        assert (await memory.context()).receipt.source("probe").error is None


async def test_a_hanging_delivery_is_given_up_and_retried(tmp_path: Path) -> None:
    hang = [True, True]

    async def stuck(*_: object) -> None:
        if hang:
            hang.pop()
            await asyncio.sleep(3600)

    async with open_engine(tmp_path, Probe(on_put=stuck), limits={"delivery": 0.05}) as engine:
        memory = engine.session("one")
        await tell(memory, "one")
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one"]
        assert (await memory.context()).receipt.parked == ()


async def test_a_delivery_that_ignores_cancellation_cannot_commit_late(tmp_path: Path) -> None:
    hang = [True]
    ended: list[str] = []

    async def stubborn(block: Probe, _: list[str]) -> None:
        if not hang:
            return
        hang.pop()
        for _step in range(40):
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue
        block.seen.append("late")
        ended.append("late")

    async with open_engine(tmp_path, Probe(on_put=stubborn), limits={"delivery": 0.05}) as engine:
        memory = engine.session("one")
        await tell(memory, "one")
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one"]
        await until(lambda: ended)
        assert await seen(memory) == ["one"]


async def test_one_failing_block_does_not_hold_up_another(tmp_path: Path) -> None:
    def down(*_: object) -> None:
        raise ConnectionError("down")

    async with open_engine(tmp_path, Probe(name="down", on_put=down), Probe()) as engine:
        memory = engine.session("one")
        await tell(memory, "one")
        while await seen(memory) != ["one"]:
            await asyncio.sleep(0.01)
        assert await seen(memory, "down") == []
        assert "<probe>" in (await memory.get())[0].content


async def test_a_database_that_refuses_a_commit_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    async with open_engine(tmp_path, Probe(on_put=lambda _, texts: calls.append(texts))) as engine:
        memory = engine.session("one")
        await engine.pending()
        store = engine._core.store
        commit, refuse, lose = store.commit_delivery, once(StoreError("disk full"), 2), once(StoreError("lost answer"), 1)

        async def flaky(*arguments: Any) -> Any:
            refuse()
            written = await commit(*arguments)
            # Committed, but the answer does not arrive.
            lose()
            return written

        monkeypatch.setattr(store, "commit_delivery", flaky)
        await tell(memory, "one", "two")
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one", "two"]
        assert (await memory.context()).receipt.parked == ()


async def test_inline_put_does_not_raise_for_a_queue_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_engine(tmp_path, Probe(), delivery="inline") as engine:
        memory = engine.session("one")
        await engine.pending()
        claim, refuse = engine._core.store.claim, once(StoreError("busy"))

        async def flaky(*arguments: Any, **named: Any) -> Any:
            refuse()
            return await claim(*arguments, **named)

        monkeypatch.setattr(engine._core.store, "claim", flaky)
        await tell(memory, "one")
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one"]


# -- drain and close ---------------------------------------------------------------------------------------------


@both
async def test_drain_gives_up_after_its_time(tmp_path: Path, delivery: Delivery) -> None:
    def down(*_: object) -> None:
        raise ConnectionError("down")

    async with open_engine(tmp_path, Probe(on_put=down), delivery=delivery) as engine:
        memory = engine.session("one")
        await tell(memory, "one")
        with pytest.raises(DrainTimeoutError, match="1 deliveries and 0 erasures were still pending"):
            await memory.drain(0.1)
        with pytest.raises(TimeoutError):
            await engine.drain(0.0)
        await engine.session("two").drain(PATIENCE)


async def test_drain_of_an_empty_session_returns(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Probe()) as engine:
        await engine.session("one").drain(PATIENCE)
        await engine.drain(PATIENCE)


async def test_closing_finishes_what_is_pending(tmp_path: Path) -> None:
    async def slow(*_: object) -> None:
        await asyncio.sleep(0.05)

    async with open_engine(tmp_path, Probe(on_put=slow), close_in=PATIENCE) as engine:
        await tell(engine.session("one"), "one", "two")
    async with open_engine(tmp_path, Probe()) as engine:
        assert await seen(engine.session("one")) == ["one", "two"]
        assert not (await engine.pending()).any


async def test_closing_leaves_the_rest_for_the_next_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def down(*_: object) -> None:
        raise ConnectionError("down")

    async with open_engine(tmp_path, Probe(on_put=down)) as engine:
        await tell(engine.session("one"), "one")
        with caplog.at_level(logging.WARNING):
            await engine.aclose(timeout=0.05)
        assert "work left for the next start" in caplog.text
    async with open_engine(tmp_path, Probe()) as engine:
        await engine.drain(PATIENCE)
        assert await seen(engine.session("one")) == ["one"]


# -- unclean ends ------------------------------------------------------------------------------------------------


async def crash(engine: MemoryEngine) -> None:
    """End as `kill -9` does: nothing is given back, nothing is said."""
    store = engine._core.store

    async def nothing(*_: object, **__: object) -> None:
        return None

    for name in ("release", "fail_delivery", "commit_delivery"):
        setattr(store, name, nothing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memory_engine.delivery.GRACE", 0)
        await engine._core.worker.stop()
    engine._closed = True
    await store.aclose()


async def test_a_start_resumes_what_a_dead_process_left(tmp_path: Path) -> None:
    started = asyncio.Event()

    async def forever(*_: object) -> None:
        started.set()
        await asyncio.sleep(3600)

    dead = make_engine(tmp_path, Probe(on_put=forever))
    await tell(dead.session("one"), "one", "two")
    await asyncio.wait_for(started.wait(), PATIENCE)
    await crash(dead)
    async with open_engine(tmp_path, Probe()) as engine:
        memory = engine.session("one")
        await engine.drain(PATIENCE)
        assert await seen(memory) == ["one", "two"]


async def test_work_that_was_done_but_not_committed_is_done_again_under_the_same_id(tmp_path: Path) -> None:
    deliveries: list[tuple[str | None, list[str]]] = []
    done = asyncio.Event()

    def note(block: Probe, texts: list[str]) -> None:
        deliveries.append((block.context.delivery_id, texts))

    dead = make_engine(tmp_path, Probe(on_put=note), token_flush_size=10)
    memory = dead.session("one")
    await memory.put({"role": "user", "content": "hello"})
    committing = dead._core.store

    async def never(*_: object) -> None:
        done.set()
        await asyncio.sleep(3600)

    committing.commit_delivery = never  # type: ignore[method-assign,assignment]
    await memory.flush(final=True)
    await asyncio.wait_for(done.wait(), PATIENCE)
    await crash(dead)
    async with open_engine(tmp_path, Probe(on_put=note), token_flush_size=1000) as engine:
        await engine.drain(PATIENCE)
        assert await seen(engine.session("one")) == ["hello"]
    assert len(deliveries) == 2
    assert deliveries[0] == deliveries[1]


async def test_attempts_are_counted_across_restarts(tmp_path: Path) -> None:
    attempts: list[int] = []

    def fail(block: Probe, _: list[str]) -> None:
        attempts.append(block.context.attempt)
        raise ValueError("a bug")

    async with open_engine(tmp_path, Probe(on_put=fail), delivery="inline") as engine:
        await tell(engine.session("one"), "poison")
    for _ in range(100):
        async with open_engine(tmp_path, Probe(on_put=fail), delivery="inline") as engine:
            if not (await engine.pending()).any:
                break
    # Closing at once cancels what is under way, but an attempt that was made is recorded first.
    assert attempts == [1, 2, 3]
    async with open_engine(tmp_path, Probe()) as engine:
        [parked] = (await engine.session("one").context()).receipt.parked
        assert parked.attempts == 3


@pytest.mark.parametrize("fails", [True, False])
async def test_what_a_block_did_is_recorded_although_the_engine_closes(tmp_path: Path, fails: bool) -> None:
    calls: list[int] = []

    def act(block: Probe, _: list[str]) -> None:
        calls.append(block.context.attempt)
        if fails:
            raise ValueError("a bug")

    async with open_engine(tmp_path, Probe(on_put=act), close_in=0) as engine:
        store = engine._core.store
        name = "fail_delivery" if fails else "commit_delivery"
        record, recording = getattr(store, name), asyncio.Event()

        async def slowly(*args: Any, **kwargs: Any) -> Any:
            recording.set()
            await asyncio.sleep(0.05)
            return await record(*args, **kwargs)

        setattr(store, name, slowly)
        await tell(engine.session("one"), "hello")
        await asyncio.wait_for(recording.wait(), PATIENCE)
    assert calls == [1]
    async with open_engine(tmp_path, Probe(on_put=act)) as engine:
        await engine.drain(PATIENCE)
    assert calls == ([1, 2, 3] if fails else [1])


async def test_two_engines_share_the_work(tmp_path: Path) -> None:
    delivered: list[tuple[str, str]] = []

    async def note(block: Probe, texts: list[str]) -> None:
        delivered.extend((block.context.session_id, text) for text in texts)
        await asyncio.sleep(0.001)

    # A lease that no slow machine lets run out, so that nothing is delivered twice.
    longer = {"limits": {"lease": 60.0}}
    async with (
        open_engine(tmp_path, Probe(on_put=note), **longer) as one,
        open_engine(tmp_path, Probe(on_put=note), **longer) as two,
    ):

        async def converse(engine: MemoryEngine, session_id: str) -> None:
            for n in range(5):
                await tell(engine.session(session_id), f"{session_id} {n}")

        await asyncio.gather(*(converse(engine, f"s{n}") for n in range(6) for engine in (one, two)))
        await one.drain(PATIENCE)
        await two.drain(PATIENCE)
        for n in range(6):
            stored = [message.content for message in await one.session(f"s{n}").get_all()]
            assert len(stored) == 10
            assert await seen(two.session(f"s{n}")) == stored
    assert len(delivered) == len(set(delivered)) + 30, "each session told the same five texts twice"


async def test_sessions_of_one_user_take_turns_on_one_state(tmp_path: Path) -> None:
    at_work = 0

    async def alone(*_: object) -> None:
        nonlocal at_work
        at_work += 1
        assert at_work == 1
        await asyncio.sleep(0.002)
        at_work -= 1

    async with open_engine(tmp_path, Probe(on_put=alone, scope="user")) as engine:
        memories = [engine.session(f"s{n}", user_id="ada") for n in range(5)]
        await asyncio.gather(*(tell(memory, *(f"{n}.{k}" for k in range(4))) for n, memory in enumerate(memories)))
        await engine.drain(PATIENCE)
        known = await seen(memories[0])
        assert sorted(known) == sorted(f"{n}.{k}" for n in range(5) for k in range(4))
        for n in range(5):
            assert [text for text in known if text.startswith(f"{n}.")] == [f"{n}.{k}" for k in range(4)]


# -- blocks that come later --------------------------------------------------------------------------------------


async def test_a_block_that_is_added_later_absorbs_the_archive(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Probe(), close_in=PATIENCE) as engine:
        await tell(engine.session("one"), "one", "two")
    late, now = Probe(name="late"), Probe(name="now", start="now")
    async with open_engine(tmp_path, Probe(), late, now) as engine:
        memory = engine.session("one")
        await memory.get()
        await memory.drain(PATIENCE)
        assert await seen(memory, "late") == ["one", "two"]
        assert await seen(memory, "now") == []
        await tell(memory, "three")
        await memory.drain(PATIENCE)
        assert await seen(memory, "late") == ["one", "two", "three"]
        assert await seen(memory, "now") == ["three"]
        assert await seen(memory) == ["one", "two", "three"]


@pytest.mark.parametrize("how", ["drain", "flush"])
async def test_a_late_block_needs_no_get(tmp_path: Path, how: str) -> None:
    async with open_engine(tmp_path) as engine:
        await tell(engine.session("one"), "one", "two")
    async with open_engine(tmp_path, Probe()) as engine:
        memory = engine.session("one")
        expected = ["one", "two"]
        if how == "flush":
            await tell(memory, "three")
            expected.append("three")
        await memory.drain(PATIENCE)
        assert await seen(memory) == expected


async def test_a_block_from_the_first_message_on_misses_nothing_with_start_now(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Probe(start="now")) as engine:
        memory = engine.session("one")
        await tell(memory, "one", "two")
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one", "two"]


async def test_a_block_that_is_not_there_for_a_while_catches_up(tmp_path: Path) -> None:
    async with open_engine(tmp_path, Probe(), close_in=PATIENCE) as engine:
        await tell(engine.session("one"), "one")
    async with open_engine(tmp_path) as engine:
        await tell(engine.session("one"), "two")
    async with open_engine(tmp_path, Probe()) as engine:
        memory = engine.session("one")
        await tell(memory, "three")
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one", "two", "three"]


# -- erasure -----------------------------------------------------------------------------------------------------


@both
async def test_delete_lets_a_block_forget_and_rebuilds_one_that_cannot(tmp_path: Path, delivery: Delivery) -> None:
    forgetter = Forgetter()
    async with open_engine(tmp_path, Probe(), forgetter, delivery=delivery) as engine:
        memory = engine.session("one")
        ids = await tell(memory, "one", "secret", "three")
        await memory.drain(PATIENCE)
        assert await memory.delete([ids[1], "unknown"]) == 1
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one", "three"]
        block = await memory.block("forgetter")
        assert list(block.by_seq.values()) == ["one", "three"]
        assert [record.data for record in await block.records.list()] == ["one", "three"]
        # More than once, should the lease have ended before the first time was noted.
        assert forgetter.forgotten and all(told == (block.context.session_uid, (1,)) for told in forgetter.forgotten)
        assert "secret" not in repr(await memory.get())
        assert "secret" not in repr(await memory.get_all())
        await tell(memory, "four")
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one", "three", "four"]


async def test_rewind_and_pop_take_back_what_was_learnt(tmp_path: Path) -> None:
    forgetter = Forgetter()
    async with open_engine(tmp_path, Probe(), forgetter) as engine:
        memory = engine.session("one")
        ids = await tell(memory, "one", "two", "three")
        await memory.drain(PATIENCE)
        assert await memory.rewind(ids[1]) == 2
        await tell(memory, "two again")
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one", "two again"]
        popped = await memory.pop()
        assert popped is not None
        assert popped.content == "two again"
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one"]
        assert list((await memory.block("forgetter")).by_seq.values()) == ["one"]


async def test_what_no_block_has_seen_needs_no_forgetting(tmp_path: Path) -> None:
    forgetter = Forgetter()
    async with open_engine(tmp_path, Probe(), forgetter) as engine:
        memory = engine.session("one")
        await tell(memory, "one")
        await memory.drain(PATIENCE)
        await memory.put({"role": "user", "content": "active"})
        await memory.pop()
        await memory.drain(PATIENCE)
        assert forgetter.forgotten == []
        assert await seen(memory) == ["one"]


async def test_reset_clears_the_session_and_its_part_of_wider_scopes(tmp_path: Path) -> None:
    user, session = Forgetter(scope="user"), Forgetter(name="mine")
    async with open_engine(tmp_path, Probe(), user, session, Probe(name="rebuilt", scope="global")) as engine:
        one, two = engine.session("one", user_id="ada"), engine.session("two", user_id="ada")
        await tell(one, "one", "secret")
        await tell(two, "other")
        await engine.drain(PATIENCE)
        uid = (await one.block("mine")).context.session_uid
        await one.reset()
        await engine.drain(PATIENCE)
        assert await one.get_all() == []
        assert await seen(one) == []
        assert (await one.block("mine")).by_seq == {}
        assert await (await one.block("mine")).records.count() == 0
        assert list((await two.block("forgetter")).by_seq.values()) == ["other"]
        assert [record.data for record in await (await two.block("forgetter")).records.list()] == ["other"]
        assert await seen(two, "rebuilt") == ["other"]
        assert (uid, None) in user.forgotten
        await tell(one, "afresh")
        await engine.drain(PATIENCE)
        assert await seen(one) == ["afresh"]
        assert sorted((await one.block("forgetter")).by_seq.values()) == ["afresh", "other"]


async def test_deleting_a_user_clears_what_blocks_know_of_the_user(tmp_path: Path) -> None:
    user = Forgetter(scope="user")
    async with open_engine(tmp_path, Probe(scope="user"), user) as engine:
        ada, bob = engine.session("one", user_id="ada"), engine.session("two", user_id="bob")
        await tell(ada, "of ada")
        await tell(bob, "of bob")
        await engine.drain(PATIENCE)
        assert await engine.delete_user("ada") == 1
        await engine.drain(PATIENCE)
        again = engine.session("three", user_id="ada")
        assert await seen(again) == []
        assert (await again.block("forgetter")).by_seq == {}
        assert await seen(bob) == ["of bob"]


async def test_a_delivery_in_flight_cannot_commit_what_was_erased(tmp_path: Path) -> None:
    gate, started = asyncio.Event(), asyncio.Event()

    async def wait(*_: object) -> None:
        started.set()
        await gate.wait()

    async with open_engine(tmp_path, Probe(on_put=wait)) as engine:
        memory = engine.session("one")
        [_, secret] = [
            await memory.put({"role": "user", "content": "one"}),
            await memory.put({"role": "user", "content": "secret"}),
        ]
        await memory.flush(final=True)
        await asyncio.wait_for(started.wait(), PATIENCE)
        assert secret is not None
        await memory.delete([secret.id or ""])
        gate.set()
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["one"]


async def test_a_reset_in_the_middle_of_a_delivery(tmp_path: Path) -> None:
    gate, started = asyncio.Event(), asyncio.Event()

    async def wait(*_: object) -> None:
        started.set()
        await gate.wait()

    async with open_engine(tmp_path, Probe(on_put=wait), Probe(name="user", scope="user")) as engine:
        memory = engine.session("one", user_id="ada")
        await tell(memory, "secret")
        await asyncio.wait_for(started.wait(), PATIENCE)
        await memory.reset()
        gate.set()
        await tell(memory, "new")
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["new"]
        assert await seen(memory, "user") == ["new"]


async def test_an_erasure_is_never_given_up(tmp_path: Path) -> None:
    forgetter = Forgetter()
    async with open_engine(tmp_path, forgetter) as engine:
        memory = engine.session("one")
        [secret] = await tell(memory, "secret")
        await memory.drain(PATIENCE)
        forgetter.fail.extend([RuntimeError("a bug")] * 5 + [asyncio.CancelledError()])
        await memory.delete([secret])
        await memory.drain(PATIENCE)
        assert len(forgetter.forgotten) == 7
        assert (await memory.block("forgetter")).by_seq == {}


async def test_parked_messages_can_be_erased(tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no")

    async with open_engine(tmp_path, Probe(on_put=refuse)) as engine:
        memory = engine.session("one")
        [secret] = await tell(memory, "secret")
        await memory.drain(PATIENCE)
        assert len((await memory.context()).receipt.parked) == 1
        await memory.delete([secret])
        await memory.drain(PATIENCE)
        await memory.redeliver()
        await memory.drain(PATIENCE)
        assert await seen(memory) == []
        await memory.reset()
        assert (await memory.context()).receipt.parked == ()


async def test_until_a_block_has_forgotten_readers_are_told_what_to_leave_out(tmp_path: Path) -> None:
    forgetter = Forgetter()
    async with open_engine(tmp_path, forgetter, limits={"first_retry": 0.2}) as engine:
        memory = engine.session("one")
        ids = await tell(memory, "secret", "harmless")
        await memory.drain(PATIENCE)
        assert (await memory.block("forgetter")).context.erasing == ()
        forgetter.fail.extend([ConnectionError("the vector store is down")] * 10_000)
        await memory.delete([ids[0]])
        block = await memory.block("forgetter")
        [erased] = block.context.erasing
        secret, harmless = (int(key.partition(":")[2]) for key in block.by_seq)
        assert erased.covers(block.context.session_uid, secret)
        assert not erased.covers(block.context.session_uid, harmless)
        assert [record.data for record in await block.records.list()] == ["harmless"], "records go at once"
        with pytest.raises(DrainTimeoutError, match="0 deliveries and 1 erasures"):
            await memory.drain(0.05)
        forgetter.fail.clear()
        await memory.drain(PATIENCE)
        block = await memory.block("forgetter")
        assert block.context.erasing == ()
        assert list(block.by_seq.values()) == ["harmless"]


async def test_a_block_that_waits_to_be_rebuilt_shows_nothing(tmp_path: Path) -> None:
    down = False

    def service(*_: object) -> None:
        if down:
            raise ConnectionError("down")

    async with open_engine(tmp_path, Probe(on_put=service)) as engine:
        memory = engine.session("one")
        ids = await tell(memory, "secret", "harmless")
        await memory.drain(PATIENCE)
        assert "secret" in (await memory.get())[0].content
        down = True
        await memory.delete([ids[0]])
        for _ in range(5):
            assert "secret" not in repr(await memory.get())
            assert "secret" not in repr((await memory.block("probe")).seen)
            await asyncio.sleep(0.01)
        down = False
        await memory.drain(PATIENCE)
        assert await seen(memory) == ["harmless"]


@pytest.mark.parametrize("fails", [True, False])
async def test_what_ended_before_its_delivery_was_cancelled_counts(tmp_path: Path, fails: bool) -> None:
    """Cancelled in the moment between the end of the block's work and its being written down."""
    attempts: list[int] = []

    def act(block: Probe, _: list[str]) -> None:
        attempts.append(block.context.attempt)
        if len(attempts) == 1:
            for task in engine._core.worker._running:
                asyncio.get_running_loop().call_soon(task.cancel)
        if fails:
            raise ValueError("a bug")

    async with open_engine(tmp_path, Probe(on_put=act)) as engine:
        memory = engine.session("one")
        await tell(memory, "news")
        await memory.drain(PATIENCE)
        assert attempts == ([1, 2, 3] if fails else [1])
        parked = (await memory.context()).receipt.parked
        assert [chunk.attempts for chunk in parked] == ([3] if fails else [])


async def test_erasures_and_deliveries_take_turns(tmp_path: Path) -> None:
    """A long queue of the one does not keep the other waiting to its end."""
    order: list[str] = []

    class Ordered(Probe):
        async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
            order.append("erasure")

    def note(block: Probe, _: list[str]) -> None:
        order.append("delivery")

    async with open_engine(tmp_path, Ordered(on_put=note), delivery="worker", limits={"concurrency": 1}) as engine:
        told = {number: await tell(engine.session(f"old{number}"), "old", "news") for number in range(12)}
        await engine.work(once=True)
        for number, ids in told.items():
            await engine.session(f"old{number}").delete(ids[:1])
        for number in range(4):
            await tell(engine.session(f"new{number}"), "news")
        order.clear()
        await engine.work(once=True)
    assert (order.count("delivery"), order.count("erasure")) == (4, 12)
    assert "delivery" in order[:3] and "erasure" in order[:3]


async def test_a_time_limit_around_get_is_a_time_limit(tmp_path: Path) -> None:
    """Also when the block had its answer ready in the very moment in which the time was over."""

    class Late(Probe):
        async def _aget(self, messages: Sequence[ChatMessage] | None = None, **_: Any) -> str:
            time.sleep(0.1)  # noqa: ASYNC251 - it holds the event loop past the limit, and then is done
            return "late"

    async with open_engine(tmp_path, Late()) as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "hello"})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await memory.get()
