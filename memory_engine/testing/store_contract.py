"""What every store must keep, as a pytest class to subclass."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, TypeVar

import pytest

from memory_engine.errors import MessageConflictError, MessageNotFoundError, SessionOwnerError
from memory_engine.store import (
    AppendResult,
    BlockLag,
    BlockTarget,
    Claim,
    Draft,
    FlushPolicy,
    Lease,
    RecordRow,
    SessionRow,
    SessionSpec,
    StateChange,
    StateInUse,
    StateRow,
    Store,
    TokenizerChanged,
    WorkFilter,
    scope_key,
)

T = TypeVar("T")

ROOMY = FlushPolicy(threshold=1_000_000, flush_size=100)
"""A policy under which nothing is flushed."""
TIGHT = FlushPolicy(threshold=100, flush_size=30)
"""A policy under which ten drafts of ten tokens just fit."""
BLOCKS = (BlockTarget("facts", "session"), BlockTarget("profile", "user"), BlockTarget("wiki", "global"))
WORK = WorkFilter(tuple(block.name for block in BLOCKS))
LONG = 60.0


def spec(
    session_id: str = "s", *, user: str | None = "u", tenant: str = "t", blocks: Sequence[BlockTarget] = ()
) -> SessionSpec:
    """A session for a test."""
    return SessionSpec(tenant, session_id, user, "tokenizer-1", tuple(blocks))


def draft(name: str, role: str = "user", tokens: int = 10, **fields: Any) -> Draft:
    """A message for a test; its text is its id."""
    return Draft(message_id=name, role=role, tokens=tokens, data=json.dumps({"content": name}), created_at=1, **fields)


def turns(count: int, *, start: int = 0) -> list[Draft]:
    """`count` turns of a question and an answer, 20 tokens each."""
    pairs = ((draft(f"u{n}"), draft(f"a{n}", "assistant")) for n in range(start, start + count))
    return [one for pair in pairs for one in pair]


def ids(rows: Sequence[Any]) -> list[str]:
    return [row.message_id for row in rows]


def flat(lists: Iterable[Sequence[T]]) -> list[T]:
    return [one for some in lists for one in some]


async def _tried(put: Awaitable[AppendResult]) -> AppendResult | BaseException:
    """What came of it."""
    try:
        return await put
    except Exception as error:  # noqa: BLE001 - it is compared with another
        return error


def _nameless(result: AppendResult) -> AppendResult:
    """Without what tells one session from another."""
    return result._replace(session=result.session._replace(pk=0, uid="", session_id="", created_at=0))


@pytest.mark.asyncio
class StoreContract:
    """Subclass it in a test module and give a fixture `store_factory`; its tests then run for your store.

        class TestMyStore(StoreContract):
            @pytest.fixture
            def store_factory(self, tmp_path):
                async def make():
                    return MyStore(tmp_path / "memory.db")
                return make

    Each call of the factory makes a new, unconnected store on the same empty database; where that cannot be (a database in
    memory), override `shared = False`: tests that need two stores on one database are skipped then.
    """

    shared = True

    @pytest.fixture
    def store_factory(self) -> Callable[[], Awaitable[Store]]:
        raise NotImplementedError("override the fixture store_factory")

    @pytest.fixture
    async def store(self, store_factory: Callable[[], Awaitable[Store]]) -> AsyncIterator[Store]:
        store = await store_factory()
        await store.connect()
        yield store
        await store.aclose()

    @pytest.fixture
    async def other(self, store: Store, store_factory: Callable[[], Awaitable[Store]]) -> AsyncIterator[Store]:
        """A second store on the same database."""
        if not self.shared:
            pytest.skip("this database has one store only")
        other = await store_factory()
        await other.connect()
        yield other
        await other.aclose()

    # -- helpers ---------------------------------------------------------------------------------------------

    async def put(self, store: Store, spec: SessionSpec, drafts: Sequence[Draft], policy: FlushPolicy = ROOMY) -> AppendResult:
        return await store.append(spec, drafts, policy, now=5)

    async def flushed(self, store: Store, target: SessionSpec, count: int = 8) -> SessionRow:
        """A session with `count` turns, of which some were flushed."""
        result = await self.put(store, target, turns(count), TIGHT)
        assert result.flush is not None
        return result.session

    async def claim_one(self, store: Store, work: WorkFilter = WORK) -> Claim:
        claims = await store.claim(work, seconds=LONG, limit=1)
        assert len(claims) == 1
        return claims[0]

    async def absorb_all(self, store: Store, work: WorkFilter = WORK, change: StateChange | None = None) -> list[list[str]]:
        """Deliver whatever is due, one chunk a time; the ids of the messages of each."""
        delivered = []
        while claims := await store.claim(work, seconds=LONG, limit=10):
            for claim in claims:
                chunk = await store.read_chunk(claim, 30)
                assert chunk is not None
                delivered.append(ids(chunk.rows))
                assert await store.commit_delivery(claim, chunk, change or StateChange()) is not None
                await store.release(claim.lease)
        return delivered

    # -- life ------------------------------------------------------------------------------------------------

    async def test_connecting_and_closing_are_idempotent(self, store: Store) -> None:
        await store.connect()
        await store.aclose()
        await store.aclose()

    async def test_what_was_written_is_there_after_reopening(self, store: Store, other: Store) -> None:
        await self.put(store, spec(), turns(2))
        await store.aclose()
        session = (await other.snapshot(spec())).session
        assert session is not None
        assert ids(await other.all_rows(session)) == ["u0", "a0", "u1", "a1"]

    # -- append ----------------------------------------------------------------------------------------------

    async def test_append_creates_the_session_and_gives_seqs(self, store: Store) -> None:
        first = await self.put(store, spec(), [draft("a"), draft("b", "assistant", 7)])
        assert [row.seq for row in first.appended] == [0, 1]
        assert (first.session.next_seq, first.session.turn_seq) == (2, 0)
        assert (first.session.active_tokens, first.session.active_turns, first.session.pinned_tokens) == (17, 1, 0)
        assert (first.session.created_at, first.session.updated_at) == (5, 5)
        second = await store.append(spec(), [draft("c")], ROOMY, now=9, known=first.session)
        assert [row.seq for row in second.rows] == [2]
        assert (second.session.uid, second.session.turn_seq, second.session.updated_at) == (first.session.uid, 2, 9)
        assert second.session.version > first.session.version
        assert second.session.revision == first.session.revision
        assert (await store.snapshot(spec())).session == second.session
        assert await store.visible_rows(second.session) == first.rows + second.rows

    async def test_append_nothing_creates_the_session(self, store: Store) -> None:
        made = await self.put(store, spec(), [])
        assert (made.rows, made.session.next_seq) == ((), 0)
        again = await self.put(store, spec(), [])
        assert again.session == made.session

    async def test_every_field_survives(self, store: Store) -> None:
        given = Draft("x y\t☃ %_'", "assistant", 0, '{"é":"☃"}', 1_700_000_000_123_456, calls=("c1", "c,2"))
        answer = Draft(message_id="r", role="tool", tokens=2, data="{}", created_at=-1, results=("c1", "c,2"))
        rows = (await self.put(store, spec(), [given, answer])).rows
        session = (await store.snapshot(spec())).session
        assert session is not None
        assert await store.all_rows(session) == rows
        assert (rows[0].message_id, rows[0].data, rows[0].created_at) == (given.message_id, given.data, given.created_at)
        assert (rows[0].calls, rows[0].results, rows[1].results) == (("c1", "c,2"), (), ("c1", "c,2"))

    async def test_pinned_rows_count_apart(self, store: Store) -> None:
        session = (await self.put(store, spec(), [draft("sys", "system", 50, pinned=True), draft("u")])).session
        assert (session.active_tokens, session.active_turns, session.pinned_tokens) == (10, 1, 50)

    async def test_a_pinned_answer_pins_its_question(self, store: Store) -> None:
        both = await self.put(store, spec("one"), [draft("u"), draft("a", "assistant", pinned=True)])
        assert [row.pinned for row in both.rows] == [True, True]
        await self.put(store, spec("two"), [*turns(1), draft("u"), draft("x", "assistant")])
        session = (await self.put(store, spec("two"), [draft("a", "assistant", pinned=True)])).session
        assert [row.message_id for row in await store.visible_rows(session) if row.pinned] == ["u", "a"]
        assert (session.active_tokens, session.active_turns, session.pinned_tokens) == (30, 1, 20)
        assert session.revision > 0

    async def test_the_same_id_again_is_a_no_op(self, store: Store) -> None:
        first = await self.put(store, spec(), [draft("a", given_id=True)])
        again = await self.put(store, spec(), [draft("a", given_id=True), draft("b", given_id=True), draft("b", given_id=True)])
        assert [row.seq for row in again.rows] == [0, 1, 1]
        assert ids(again.appended) == ["b"]
        assert again.session.next_seq == 2
        none = await self.put(store, spec(), [draft("a", given_id=True)])
        assert (none.rows, none.appended, none.session) == (first.rows, (), again.session)

    async def test_another_text_under_an_id_is_refused_wholly(self, store: Store) -> None:
        before = (await self.put(store, spec(), [draft("a", given_id=True)])).session
        other = draft("a", given_id=True)._replace(data="{}")
        with pytest.raises(MessageConflictError):
            await self.put(store, spec(), [draft("b"), other])
        with pytest.raises(MessageConflictError):
            await self.put(store, spec(), [draft("c", given_id=True), draft("c", given_id=True)._replace(data="{}")])
        assert (await store.snapshot(spec())).session == before
        partial = await self.put(store, spec(), [other._replace(partial=True)])
        assert (ids(partial.rows), partial.appended, partial.rows[0].data) == (["a"], (), draft("a").data)

    async def test_ids_are_compared_exactly_and_by_session(self, store: Store) -> None:
        names = ["a", "A", "a ", " a", "á", "a\u0301"]
        await self.put(store, spec(), [draft(name, given_id=True) for name in names])
        await self.put(store, spec("other"), [draft("a", given_id=True)._replace(data="{}")])
        for name in names:
            await self.put(store, spec(name, tenant="exact"), [draft("m")])
        assert {info.session_id for info in await store.list_sessions("exact")} == set(names)

    async def test_owner_and_tokenizer_are_checked(self, store: Store) -> None:
        known = (await self.put(store, spec(), [draft("a")])).session
        for user in ("v", None, "U"):
            with pytest.raises(SessionOwnerError):
                await store.append(spec(user=user), [draft("b")], ROOMY, now=5, known=known)
            with pytest.raises(SessionOwnerError):
                await store.snapshot(spec(user=user, blocks=[BLOCKS[0]]))
        with pytest.raises(TokenizerChanged):
            await store.append(replace(spec(), tokenizer="tokenizer-2"), [draft("b")], ROOMY, now=5, known=known)
        assert (await store.snapshot(spec())).session == known

    async def test_a_stale_row_leads_to_the_session_of_now(self, store: Store) -> None:
        known = (await self.put(store, spec(), [draft("a")])).session
        assert await store.delete_session("t", "s")
        result = await store.append(spec(), [draft("b", given_id=True)], ROOMY, now=5, known=known)
        assert result.session.uid != known.uid
        assert result.session.pk != known.pk
        assert await store.all_rows(known) == ()
        elsewhere = await store.append(spec("s2"), [draft("c")], ROOMY, now=5, known=result.session)
        assert elsewhere.session.pk != result.session.pk

    async def test_many_writers_lose_nothing(self, store: Store, other: Store) -> None:
        async def write(one: Store, writer: int) -> None:
            known = None
            for n in range(20):
                result = await one.append(spec(), [draft(f"{writer}-{n}")], ROOMY, now=5, known=known)
                known = result.session

        await asyncio.gather(*(write((store, other)[writer % 2], writer) for writer in range(6)))
        session = (await store.snapshot(spec())).session
        assert session is not None
        rows = await store.all_rows(session)
        assert [row.seq for row in rows] == list(range(120))
        for writer in range(6):
            own = [name for name in ids(rows) if name.startswith(f"{writer}-")]
            assert own == [f"{writer}-{n}" for n in range(20)]
        assert (session.next_seq, session.active_tokens, session.active_turns) == (120, 1200, 120)

    # -- flushing --------------------------------------------------------------------------------------------

    async def test_puts_at_once_do_what_they_do_one_after_another(self, store: Store) -> None:
        """Whatever a store does together for many sessions: the same rows, sums, flushes and errors as each alone."""
        random = Random(5)
        shapes = [
            [draft("q")],
            [draft("q"), draft("a", "assistant", 15)],
            [draft("c", "assistant", calls=("1",)), draft("r", "tool", 40, results=("1",))],
            [draft("rules", "system", 5, pinned=True)],
            [draft("kept", "assistant", 7, pinned=True)],
            [draft("given", given_id=True)],
            [draft("taken", given_id=True)],
            [draft("taken", given_id=True)._replace(data='"other"')],
            [draft("long", tokens=130)],
            [],
        ]
        results: dict[tuple[str, int], list[AppendResult]] = {}
        for step in range(12):
            chosen = [random.choice(shapes) for _ in range(16)]
            seen_at = [random.choice((-1, -1, -2, 0, None)) for _ in range(16)]
            for way in ("alone", "at once"):
                puts = []
                for number, (shape, place) in enumerate(zip(chosen, seen_at, strict=True)):
                    before = results.setdefault((way, number), [])
                    known = before[max(place, -len(before))].session if before and place is not None else None
                    named = [d if d.given_id else d._replace(message_id=f"{d.message_id}-{step}") for d in shape]
                    target = spec(f"{way} {number}", blocks=BLOCKS)
                    puts.append(store.append(target, named, TIGHT, now=step, known=known))
                together = way == "at once"
                given = await asyncio.gather(*puts, return_exceptions=True) if together else [await _tried(put) for put in puts]
                for number, result in enumerate(given):
                    assert isinstance(result, AppendResult | MessageConflictError), result
                    if isinstance(result, AppendResult):
                        results[way, number].append(result)
        for number in range(16):
            alone, at_once = ([_nameless(one) for one in results[way, number]] for way in ("alone", "at once"))
            assert at_once == alone
            stored = [
                await store.all_rows(results[way, number][-1].session) for way in ("alone", "at once") if results[way, number]
            ]
            assert not stored or stored[0] == stored[1]

    async def test_puts_at_once_into_one_session_all_count(self, store: Store) -> None:
        known = (await self.put(store, spec(), [draft("first")])).session
        puts = [store.append(spec(), [draft(f"{n}", tokens=n)], ROOMY, now=1, known=known) for n in range(40)]
        others = [self.put(store, spec(f"other {n}"), [draft("x")]) for n in range(10)]
        results = await asyncio.gather(*puts, *others)
        assert sorted(row.seq for result in results[:40] for row in result.rows) == list(range(1, 41))
        session = (await store.snapshot(spec())).session
        assert session is not None
        assert (session.next_seq, session.active_turns, session.active_tokens) == (41, 41, 10 + sum(range(40)))
        rows = await store.all_rows(session)
        assert {row.message_id: row.seq for row in rows} == {
            "first": 0,
            **{row.message_id: row.seq for result in results[:40] for row in result.rows},
        }

    async def test_a_flush_moves_horizon_and_targets(self, store: Store) -> None:
        with_blocks = spec(blocks=BLOCKS)
        result = await self.put(store, with_blocks, turns(5), TIGHT)
        assert (result.flush, result.session.active_tokens) == (None, 100)
        result = await store.append(with_blocks, turns(1, start=5), TIGHT, now=5, known=result.session)
        assert result.flush is not None
        assert (result.flush.start_seq, result.flush.end_seq, result.flush.tokens) == (0, 4, 40)
        assert (result.session.horizon, result.session.active_tokens, result.session.active_turns) == (4, 80, 4)
        snapshot = await store.snapshot(with_blocks)
        assert snapshot.session == result.session
        assert {(c.block, c.cursor, c.target) for c in snapshot.cursors} == {(b.name, 0, 4) for b in BLOCKS}
        assert ids(await store.visible_rows(result.session)) == [d.message_id for d in turns(6)][4:]
        assert len(await store.all_rows(result.session)) == 12

    async def test_max_turns_flush(self, store: Store) -> None:
        policy = FlushPolicy(threshold=10_000, flush_size=10, max_turns=2)
        result = await self.put(store, spec(), turns(5), policy)
        assert result.flush is not None
        assert (result.session.active_turns, result.session.horizon) == (2, 6)

    async def test_visible_rows(self, store: Store) -> None:
        drafts = [draft("sys", "system", 5, pinned=True), *turns(8)]
        result = await self.put(store, spec(), drafts, TIGHT)
        session = result.session
        assert session.horizon > 1
        assert ids(await store.visible_rows(session)) == ["sys", *[d.message_id for d in drafts[session.horizon :]]]
        assert ids(await store.visible_rows(session, after_seq=0)) == [d.message_id for d in drafts[session.horizon :]]
        assert ids(await store.visible_rows(session, after_seq=15)) == ["a7"]
        await store.append(spec(), [draft("later")], ROOMY, now=5, known=session)
        assert ids(await store.visible_rows(session))[-1] == "a7"

    async def test_the_current_question_stays_visible(self, store: Store) -> None:
        await self.put(store, spec(), [draft("u"), *(draft(f"a{n}", "assistant") for n in range(9))], TIGHT)
        result = await self.put(store, spec(), [draft("a9", "assistant")], TIGHT)
        session = result.session
        assert (session.turn_seq, session.horizon > 0) == (0, True)
        visible = await store.visible_rows(session)
        assert ids(visible)[0] == "u"
        assert ids(visible)[1:] == [f"a{n}" for n in range(session.horizon - 1, 10)]
        assert ids(await store.visible_rows(session, after_seq=0))[0] != "u"

    async def test_the_question_of_a_turn_cut_by_the_horizon_is_visible(self, store: Store) -> None:
        session = (await self.put(store, spec(), [*turns(1), *turns(3, start=1)])).session
        assert await store.advance_horizon(session, spec(), 3) is not None
        session = (await self.put(store, spec(), [])).session
        assert ids(await store.visible_rows(session)) == ["u1", "a1", "u2", "a2", "u3", "a3"]
        assert await store.advance_horizon(session, spec(), 4) is not None
        session = (await self.put(store, spec(), [])).session
        assert ids(await store.visible_rows(session)) == ["u2", "a2", "u3", "a3"]

    async def test_archived_rows(self, store: Store) -> None:
        await self.flushed(store, spec(), 300)
        session = (await store.snapshot(spec())).session
        assert session is not None
        names = [d.message_id for d in turns(300)][: session.horizon]
        assert ids(await store.archived_rows(session, from_seq=0, max_tokens=35)) == names[-3:]
        assert ids(await store.archived_rows(session, from_seq=0, max_tokens=1_000_000)) == names
        assert ids(await store.archived_rows(session, from_seq=session.horizon - 2, max_tokens=1_000)) == names[-2:]
        assert await store.archived_rows(session, from_seq=0, max_tokens=0) == ()

    async def test_all_rows_in_pages(self, store: Store) -> None:
        session = (await self.put(store, spec(), turns(3))).session
        assert ids(await store.all_rows(session, after_seq=1, limit=2)) == ["u1", "a1"]
        assert ids(await store.all_rows(session, limit=2, newest=True)) == ["u2", "a2"]
        assert ids(await store.all_rows(session, after_seq=4, limit=2, newest=True)) == ["a2"]
        assert ids(await store.all_rows(session, before_seq=3, limit=2, newest=True)) == ["a0", "u1"]
        assert ids(await store.all_rows(session, before_seq=2)) == ["u0", "a0"]
        found = await store.row_by_id(session, "a1")
        assert found is not None and (found.message_id, found.seq) == ("a1", 3)
        assert await store.row_by_id(session, "A1") is None

    async def test_flush_complete_turns_and_final(self, store: Store) -> None:
        with_blocks = spec(blocks=BLOCKS)
        session = (await self.put(store, with_blocks, turns(3))).session
        flush = await store.flush(session, with_blocks, TIGHT, final=False)
        assert flush is not None
        assert (flush.start_seq, flush.end_seq, flush.tokens) == (0, 4, 40)
        assert await store.flush(session, with_blocks, TIGHT, final=False) is None
        flush = await store.flush(session, with_blocks, TIGHT, final=True)
        assert flush is not None
        assert (flush.start_seq, flush.end_seq) == (4, 6)
        now = (await store.snapshot(with_blocks)).session
        assert now is not None
        assert (now.turn_seq, now.active_tokens, now.active_turns) == (None, 0, 0)
        assert await store.visible_rows(now) == ()

    async def test_advance_horizon_compares(self, store: Store) -> None:
        session = (await self.put(store, spec(), turns(3))).session
        later = (await self.put(store, spec(), turns(1, start=3))).session
        flush = await store.advance_horizon(session, spec(), 2)
        assert flush is not None
        assert (flush.end_seq, flush.tokens) == (2, 20)
        assert await store.advance_horizon(later, spec(), 4) is None
        now = (await store.snapshot(spec())).session
        assert now is not None
        assert (now.horizon, now.active_tokens, now.active_turns) == (2, 60, 3)
        await store.delete_messages(now, spec(), ["u3"])
        assert await store.advance_horizon(now, spec(), 4) is None

    async def test_recount(self, store: Store) -> None:
        session = (await self.put(store, spec(), [draft("sys", "system", pinned=True), *turns(1)])).session
        changed = replace(spec(), tokenizer="tokenizer-2")
        assert await store.recount(session._replace(version=session.version - 1), "tokenizer-2", {0: 1, 1: 2, 2: 3}) is False
        assert await store.recount(session, "tokenizer-2", {0: 1, 1: 2, 2: 3}) is True
        result = await self.put(store, changed, [draft("x", "assistant")])
        assert (result.session.pinned_tokens, result.session.active_tokens) == (1, 15)
        assert [row.tokens for row in await store.all_rows(result.session)] == [1, 2, 3, 10]

    # -- replacing -------------------------------------------------------------------------------------------

    async def test_replace_keeps_a_common_prefix(self, store: Store) -> None:
        before = await self.put(store, spec(), turns(3))
        given = [one._replace(given_id=True) for one in turns(2)]
        result = await store.replace_active(spec(), [*given, draft("new", "user")], ROOMY, now=9)
        assert ids(await store.visible_rows(result.session)) == ["u0", "a0", "u1", "a1", "new"]
        assert [row.seq for row in result.rows] == [0, 1, 2, 3, 6]
        assert ids(result.appended) == ["new"]
        assert (result.session.active_tokens, result.session.active_turns, result.session.turn_seq) == (50, 3, 6)
        assert result.session.revision > before.session.revision
        assert (await store.snapshot(spec())).session == result.session

    async def test_replace_keeps_the_archive(self, store: Store) -> None:
        session = await self.flushed(store, spec(), 8)
        archived = ids(await store.archived_rows(session, from_seq=0, max_tokens=10_000))
        result = await store.replace_active(spec(), [draft("u0")._replace(given_id=True), draft("z")], ROOMY, now=9)
        assert [row.seq for row in result.rows] == [0, 16]
        assert ids(await store.visible_rows(result.session)) == ["z"]
        assert ids(await store.all_rows(result.session)) == [*archived, "z"]

    async def test_replace_with_reordered_shortened_and_pinned_messages(self, store: Store) -> None:
        drafts = [draft("sys", "system", pinned=True), *turns(8)]
        session = (await self.put(store, spec(), drafts, TIGHT)).session
        assert session.horizon > 1
        given = [
            draft("sys", "system", pinned=True)._replace(given_id=True),
            draft("u7")._replace(given_id=True, partial=True, data="{}", tokens=1),
            draft("u6")._replace(given_id=True),
        ]
        result = await store.replace_active(spec(), given, ROOMY, now=9)
        visible = await store.visible_rows(result.session)
        assert ids(visible) == ["sys", "u7", "u6"]
        assert (visible[1].data, visible[1].tokens) == (draft("u7").data, 10)
        assert ids(result.rows) == ["sys", "u7", "u6"]
        result = await store.replace_active(spec(), [draft("only")], ROOMY, now=9)
        assert ids(await store.visible_rows(result.session)) == ["only"]
        assert (result.session.pinned_tokens, result.session.active_tokens) == (0, 10)

    async def test_replace_flushes_and_clears(self, store: Store) -> None:
        result = await store.replace_active(spec(blocks=BLOCKS), turns(8), TIGHT, now=9)
        assert result.flush is not None
        cleared = await store.replace_active(spec(blocks=BLOCKS), [], TIGHT, now=9)
        assert await store.visible_rows(cleared.session) == ()
        assert (cleared.session.turn_seq, cleared.session.active_tokens) == (None, 0)
        assert len(await store.all_rows(cleared.session)) == result.session.horizon

    # -- snapshot and listing --------------------------------------------------------------------------------

    async def test_snapshot_without_a_session(self, store: Store) -> None:
        snapshot = await store.snapshot(spec(blocks=BLOCKS))
        assert (snapshot.session, snapshot.cursors, snapshot.parked) == (None, (), ())
        assert [state.block for state in snapshot.states] == ["profile", "wiki"]
        assert await store.snapshot(spec()) == replace(snapshot, states=())

    async def test_snapshot_shows_states_of_all_scopes(self, store: Store) -> None:
        session = await self.flushed(store, spec(blocks=BLOCKS))
        await self.absorb_all(store, change=StateChange(state='{"n":1}'))
        snapshot = await store.snapshot(spec(blocks=BLOCKS))
        assert [(s.block, s.version > 0, s.pending_erasures) for s in snapshot.states] == [(b.name, True, 0) for b in BLOCKS]
        assert all(c.cursor == c.target == session.horizon for c in snapshot.cursors)
        elsewhere = await store.snapshot(spec("s2", blocks=BLOCKS))
        assert [(s.block, s.version > 0) for s in elsewhere.states] == [("profile", True), ("wiki", True)]
        stranger = await store.snapshot(spec("s2", tenant="t2", blocks=BLOCKS))
        assert [s.version for s in stranger.states] == [0, 0]

    async def test_list_sessions(self, store: Store) -> None:
        for name in ("b", "a_1", "a%1", "A", "a"):
            await store.append(spec(name, user=name), turns(1), ROOMY, now=ord(name[0]))
        await store.append(replace(spec("meta"), metadata='{"k": [1]}'), [], ROOMY, now=1)
        await self.put(store, spec("a", tenant="t2"), [])

        async def names(**options: Any) -> list[str]:
            return [info.session_id for info in await store.list_sessions("t", **options)]

        assert await names() == sorted(["b", "a_1", "a%1", "A", "a", "meta"])
        assert await names(prefix="a") == ["a", "a%1", "a_1"]
        assert await names(prefix="a_") == ["a_1"]
        assert await names(limit=2) == ["A", "a"]
        assert await names(limit=2, after="a") == ["a%1", "a_1"]
        assert await names(user_id="b") == ["b"]
        assert await names(inactive_before=ord("a")) == ["A", "meta"]
        by_id = {info.session_id: info for info in await store.list_sessions("t")}
        assert (by_id["a"].messages, by_id["a"].user_id, by_id["meta"].metadata) == (2, "a", {"k": [1]})

    # -- deliveries ------------------------------------------------------------------------------------------

    async def test_everything_flushed_is_delivered_once_in_order(self, store: Store) -> None:
        target = spec(blocks=[BLOCKS[0]])
        for n in range(12):
            await self.put(store, target, turns(1, start=n), TIGHT)
        session = (await store.snapshot(target)).session
        assert session is not None
        delivered = await self.absorb_all(store)
        expected = [d.message_id for d in turns(12)][: session.horizon]
        assert [name for chunk in delivered for name in chunk] == expected
        assert (await store.pending(WORK)).any is False
        assert await store.claim(WORK, seconds=LONG, limit=5) == ()

    async def test_chunks_are_parts_of_one_flush(self, store: Store) -> None:
        target = spec(blocks=[BLOCKS[0]])
        session = (await self.put(store, target, turns(20))).session
        flush = await store.flush(session, target, TIGHT, final=True)
        assert flush is not None
        chunks = await self.absorb_all(store)
        assert flat(chunks) == [d.message_id for d in turns(20)]
        assert 1 < len(chunks) <= flush.tokens // 30

    async def test_system_messages_are_not_delivered(self, store: Store) -> None:
        target = spec(blocks=[BLOCKS[0]])
        drafts = [draft("sys", "system", pinned=True), draft("dev", "developer"), draft("kept", pinned=True), *turns(1)]
        session = (await self.put(store, target, drafts)).session
        await store.flush(session, target, TIGHT, final=True)
        assert flat(await self.absorb_all(store)) == ["kept", "u0", "a0"]

    async def test_delivered_rows_are_those_that_a_block_receives(self, store: Store) -> None:
        target = spec(blocks=[BLOCKS[0], replace(BLOCKS[2], start="now")])
        await self.put(store, target, [draft("sys", "system"), *turns(2)])
        other = (await self.put(store, spec("s2", tenant="t2", blocks=BLOCKS), turns(1))).session
        session = (await store.snapshot(target)).session
        assert session is not None
        own = scope_key("session", tenant="t", user_id="u", session_uid=session.uid)
        wide = scope_key("global", tenant="t", user_id="u", session_uid="")

        async def delivered(scope: str, block: str, uid: str, from_seq: int = 0, to_seq: int = 100) -> list[str]:
            return ids(await store.delivered_rows(scope, block, uid, from_seq=from_seq, to_seq=to_seq))

        assert await delivered(own, "facts", session.uid) == [], "nothing was flushed yet"
        await store.flush(session, target, TIGHT, final=True)
        await store.flush(other, spec("s2", tenant="t2", blocks=BLOCKS), TIGHT, final=True)
        assert await delivered(own, "facts", session.uid) == ["u0", "a0", "u1", "a1"]
        assert await delivered(own, "facts", session.uid, 2, 4) == ["a0", "u1"]
        assert await delivered(own, "facts", session.uid, 4, 4) == []
        for scope, block, uid in (
            (own, "facts", other.uid),
            (own, "wiki", session.uid),
            (wide, "facts", session.uid),
            (wide, "wiki", other.uid),
            (own, "facts", "unknown"),
        ):
            assert await delivered(scope, block, uid) == [], (scope, block)
        await store.delete_messages(session, target, ["a0"])
        assert await delivered(own, "facts", session.uid) == ["u0", "u1", "a1"]

    async def test_one_delivery_at_a_time_for_each_pair(self, store: Store, other: Store) -> None:
        for name in ("s1", "s2", "s3"):
            await self.flushed(store, spec(name, user=name, blocks=[BLOCKS[2]]))
        first = await store.claim(WORK, seconds=LONG, limit=10)
        assert len(first) == 1
        assert await other.claim(WORK, seconds=LONG, limit=10) == ()
        pending = await other.pending(WORK)
        assert pending.deliveries == 3
        assert pending.next_in is not None and 0 < pending.next_in <= LONG
        await store.release(first[0].lease)
        assert (await other.pending(WORK)).next_in == 0
        assert len(await other.claim(WORK, seconds=LONG, limit=10)) == 1

    async def test_a_busy_pair_does_not_starve_others(self, store: Store) -> None:
        for n in range(20):
            await self.flushed(store, spec(f"a{n}", blocks=[BLOCKS[2]]))
        await self.flushed(store, spec("z", blocks=[BLOCKS[0]]))
        claims = await store.claim(WORK, seconds=LONG, limit=2)
        assert sorted(claim.lease.block for claim in claims) == ["facts", "wiki"]

    async def test_work_filters(self, store: Store) -> None:
        await self.flushed(store, spec("s1", blocks=BLOCKS))
        await self.flushed(store, spec("s1", tenant="t2", blocks=BLOCKS))
        assert (await store.pending(WorkFilter(("facts",)))).deliveries == 2
        assert (await store.pending(WorkFilter(("facts", "wiki"), tenant="t2"))).deliveries == 2
        assert (await store.pending(WorkFilter(("facts",), tenant="t", session_id="s"))).any is False
        assert (await store.pending(WorkFilter(()))).any is False
        claims = await store.claim(WorkFilter(("facts",), tenant="t2", session_id="s1"), seconds=LONG, limit=9)
        assert [(c.session.tenant, c.lease.block) for c in claims] == [("t2", "facts")]

    async def test_how_far_blocks_are_behind(self, store: Store) -> None:
        assert await store.lags(WORK) == ()
        await self.flushed(store, spec("s1", blocks=BLOCKS))
        session = await self.flushed(store, spec("s2", blocks=[BLOCKS[0]]))
        lags = {lag.block: lag for lag in await store.lags(WORK)}
        assert lags["facts"] == BlockLag("facts", 2, 2 * session.horizon)
        assert lags["wiki"] == BlockLag("wiki", 1, session.horizon)
        assert [lag.block for lag in await store.lags(replace(WORK, blocks=("wiki",)))] == ["wiki"]
        claim = await self.claim_one(store)
        chunk = await store.read_chunk(claim, 10_000)
        await store.fail_delivery(claim, chunk, "no", retry_in=0.0, counted=True, park=True)
        await self.absorb_all(store)
        assert await store.lags(WORK) == (BlockLag(claim.lease.block, parked=1),)

    async def test_commit_writes_state_records_and_cursor(self, store: Store) -> None:
        target = spec(blocks=[BLOCKS[0]])
        await self.flushed(store, target)
        claim = await self.claim_one(store)
        chunk = await store.read_chunk(claim, 10_000)
        assert chunk is not None
        assert chunk.state == StateRow()
        records = (RecordRow("k1", "{}", b"\x00\xff", claim.session.uid, 0), RecordRow("k2", "[1]"))
        state = await store.commit_delivery(claim, chunk, StateChange('{"n":1}', 3, records))
        assert state is not None
        scope = claim.lease.scope_key
        assert await store.read_state(scope, "facts") == state == StateRow(state.version, state.deleted_version, 3, '{"n":1}')
        assert await store.read_records(scope, "facts") == tuple(replace(r, version=state.version) for r in records)
        assert await store.read_chunk(replace(claim, cursor=chunk.to_seq), 10_000) is not None
        again = await store.commit_delivery(claim, chunk, StateChange('{"n":2}'))
        assert again is None
        assert await store.read_state(scope, "facts") == state

    async def test_a_lost_lease_cannot_commit(self, store: Store, other: Store) -> None:
        await self.flushed(store, spec(blocks=[BLOCKS[0]]))
        [claim] = await store.claim(WORK, seconds=LONG, limit=1)
        chunk = await store.read_chunk(claim, 30)
        assert chunk is not None
        assert await store.renew(claim.lease, claim.session, seconds=0.01) is True
        await asyncio.sleep(0.05)
        [stolen] = await other.claim(WORK, seconds=LONG, limit=1)
        assert await store.commit_delivery(claim, chunk, StateChange("{}")) is None
        assert await store.renew(claim.lease, claim.session, seconds=LONG) is False
        assert await store.read_chunk(claim, 30) is None
        await store.fail_delivery(claim, chunk, "late", retry_in=LONG, counted=True, park=True)
        await store.release(claim.lease)
        assert (await store.snapshot(spec(blocks=BLOCKS))).parked == ()
        assert await other.commit_delivery(stolen, chunk, StateChange("{}")) is not None

    async def test_renewing_keeps_a_lease(self, store: Store) -> None:
        await self.flushed(store, spec(blocks=[BLOCKS[0]]))
        [claim] = await store.claim(WORK, seconds=1.0, limit=1)
        assert await store.renew(claim.lease, claim.session, seconds=LONG) is True
        await asyncio.sleep(1.1)
        assert await store.claim(WORK, seconds=LONG, limit=1) == ()
        assert await store.renew(claim.lease, None, seconds=LONG) is True

    async def test_failures_back_off_and_count(self, store: Store) -> None:
        target = spec(blocks=[BLOCKS[0]])
        await self.flushed(store, target)
        claim = await self.claim_one(store)
        await store.fail_delivery(claim, None, "down", retry_in=LONG, counted=False, park=False)
        assert await store.claim(WORK, seconds=LONG, limit=1) == ()
        pending = await store.pending(WORK)
        assert pending.deliveries == 1 and pending.next_in is not None and pending.next_in > LONG / 2
        [cursor] = (await store.snapshot(target)).cursors
        assert (cursor.attempts, cursor.last_error) == (0, "down")

    async def test_a_counted_failure_is_counted_until_success(self, store: Store) -> None:
        target = spec(blocks=[BLOCKS[0]])
        await self.flushed(store, target)
        for attempt in range(3):
            claim = await self.claim_one(store)
            assert claim.attempts == attempt
            await store.fail_delivery(claim, None, "bug", retry_in=0, counted=True, park=False)
        await self.absorb_all(store)
        [cursor] = (await store.snapshot(target)).cursors
        assert (cursor.attempts, cursor.last_error) == (0, None)

    async def test_parking_and_redelivering(self, store: Store) -> None:
        target = spec(blocks=[BLOCKS[0]])
        session = await self.flushed(store, target)
        claim = await self.claim_one(store)
        chunk = await store.read_chunk(claim, 30)
        assert chunk is not None
        await store.fail_delivery(claim, chunk, "poison", retry_in=0, counted=True, park=True)
        [parked] = (await store.snapshot(target)).parked
        assert (parked.block, parked.from_seq, parked.to_seq, parked.error) == ("facts", 0, chunk.to_seq, "poison")
        assert (parked.attempts, parked.redelivering) == (1, False)
        rest = flat(await self.absorb_all(store))
        assert rest == [d.message_id for d in turns(8)][chunk.to_seq : session.horizon]
        assert (await store.pending(WORK)).any is False
        assert await store.redeliver(session, "other") == 0
        assert await store.redeliver(session) == 1
        assert (await store.snapshot(target)).parked[0].redelivering is True
        again = await self.claim_one(store)
        assert (again.parked_id, again.cursor, again.target) == (parked.id, 0, chunk.to_seq)
        same = await store.read_chunk(again, 30)
        assert same is not None and same.rows == chunk.rows
        await store.fail_delivery(again, same, "still", retry_in=0, counted=True, park=True)
        assert (await store.pending(WORK)).any is False
        assert await store.redeliver(session) == 1
        assert await self.absorb_all(store) == [ids(chunk.rows)]
        assert (await store.snapshot(target)).parked == ()

    async def test_a_new_block_starts_at_the_beginning_or_now(self, store: Store) -> None:
        session = await self.flushed(store, spec())
        blocks = (BlockTarget("all", "session"), BlockTarget("new", "session", start="now"))
        target = spec(blocks=blocks)
        await store.ensure_cursors(session, target)
        await store.ensure_cursors(session, target)
        cursors = {cursor.block: (cursor.cursor, cursor.target) for cursor in (await store.snapshot(target)).cursors}
        assert cursors == {"all": (0, session.horizon), "new": (session.horizon, session.horizon)}
        delivered = await self.absorb_all(store, WorkFilter(("all", "new")))
        assert flat(delivered) == [d.message_id for d in turns(8)][: session.horizon]

    async def test_concurrent_workers_deliver_each_message_once(self, store: Store, other: Store) -> None:
        target = spec(blocks=BLOCKS)
        for n in range(10):
            await self.put(store, target, turns(2, start=2 * n), TIGHT)

        async def work(one: Store) -> list[tuple[str, str]]:
            done: list[tuple[str, str]] = []
            while (await one.pending(WORK)).any:
                for claim in await one.claim(WORK, seconds=LONG, limit=1):
                    chunk = await one.read_chunk(claim, 30)
                    if chunk is not None and await one.commit_delivery(claim, chunk, StateChange("{}")) is not None:
                        done += [(claim.lease.block, name) for name in ids(chunk.rows)]
                    await one.release(claim.lease)
            return done

        done = flat(await asyncio.gather(work(store), work(other), work(store)))
        session = (await store.snapshot(target)).session
        assert session is not None
        names = [d.message_id for d in turns(20)][: session.horizon]
        assert sorted(done) == sorted((block.name, name) for block in BLOCKS for name in names)

    # -- erasing ---------------------------------------------------------------------------------------------

    async def erasures(self, store: Store, scope: str, block: str) -> list[tuple[str | None, tuple[int, ...] | None]]:
        return [(e.session_uid, e.seqs) for e in await store.pending_erasures(scope, block)]

    async def remember(self, store: Store, session: SessionRow, block: BlockTarget, records: Sequence[RecordRow]) -> str:
        """Write records by hand; returns the scope key."""
        key = scope_key(block.scope, tenant=session.tenant, user_id=session.user_id, session_uid=session.uid)
        lease = await store.lease(key, block.name, seconds=LONG)
        assert lease is not None
        assert await store.commit_change(lease, StateChange('{"n":1}', put=tuple(records)), session=session) is not None
        await store.release(lease)
        return key

    async def test_delete_messages(self, store: Store) -> None:
        target = spec(blocks=BLOCKS)
        session = await self.flushed(store, target)
        await self.absorb_all(store)
        kept, gone = RecordRow("k", "1", None, session.uid, 1), RecordRow("g", "2", None, session.uid, 0)
        foreign = RecordRow("f", "3", None, "somebody", 0)
        key = await self.remember(store, session, BLOCKS[1], [kept, gone, foreign])
        before = await store.read_state(key, "profile")
        assert await store.delete_messages(session, target, ["u0", "a7", "unknown"]) == 2
        snapshot = await store.snapshot(target)
        after = snapshot.session
        assert after is not None
        assert (after.epoch, after.revision > session.revision, after.uid) == (session.epoch + 1, True, session.uid)
        assert "u0" not in ids(await store.all_rows(after)) and "a7" not in ids(await store.all_rows(after))
        assert after.active_tokens == session.active_tokens - 10
        assert [record.key for record in await store.read_records(key, "profile")] == ["f", "k"]
        state = await store.read_state(key, "profile")
        assert state.version > before.version and state.deleted_version == state.version
        assert await self.erasures(store, key, "profile") == [(session.uid, (0, 15))]
        assert [state.pending_erasures for state in snapshot.states] == [1, 1, 1]
        assert await store.delete_messages(after, target, ["u0"]) == 0
        assert (await store.snapshot(target)).session == after

    async def test_messages_that_were_to_be_absorbed_need_an_erasure(self, store: Store) -> None:
        # Whether a delivery began and was cut off, nobody knows; those that were not flushed were never delivered.
        target = spec(blocks=BLOCKS)
        session = await self.flushed(store, target)
        assert await store.delete_messages(session, target, [turns(8)[session.horizon].message_id]) == 1
        assert (await store.pending(WORK)).erasures == 0
        assert await store.delete_messages(session, target, ["u0"]) == 1
        assert (await store.pending(WORK)).erasures == len(BLOCKS)

    async def test_a_block_that_committed_nothing_is_not_rebuilt(self, store: Store) -> None:
        target = spec(blocks=[BLOCKS[0]])
        session = await self.flushed(store, target)
        key = scope_key(BLOCKS[0].scope, tenant=session.tenant, user_id=session.user_id, session_uid=session.uid)
        lease = await store.lease(key, BLOCKS[0].name, seconds=LONG)
        assert lease is not None
        await store.commit_change(lease, StateChange('{"n":1}'), session=session)
        await store.release(lease)
        assert await store.delete_messages(session, target, ["u0"]) == 1
        [claim] = await store.claim_erasures(WORK, seconds=LONG, limit=5)
        assert await store.commit_erasure(claim, StateChange(), rebuild=True) is True
        await store.release(claim.lease)
        assert (await store.read_state(key, BLOCKS[0].name)).state == '{"n":1}'
        assert (await store.pending(WORK)).erasures == 0

    async def test_nothing_in_flight_commits_after_erasing(self, store: Store) -> None:
        target = spec(blocks=[BLOCKS[0]])
        session = await self.flushed(store, target)
        claim = await self.claim_one(store)
        chunk = await store.read_chunk(claim, 30)
        assert chunk is not None
        await store.delete_messages(session, target, ["u0"])
        assert await store.renew(claim.lease, claim.session, seconds=LONG) is False
        assert await store.commit_delivery(claim, chunk, StateChange("{}")) is None
        assert await store.read_chunk(claim, 30) is None
        await store.release(claim.lease)
        delivered = flat(await self.absorb_all(store))
        assert delivered == [d.message_id for d in turns(8)][1 : session.horizon]

    async def test_rewind_and_pop(self, store: Store) -> None:
        session = (await self.put(store, spec(), turns(3))).session
        with pytest.raises(MessageNotFoundError):
            await store.rewind(session, spec(), "nope")
        assert await store.rewind(session, spec(), "u1") == 4
        now = (await store.snapshot(spec())).session
        assert now is not None
        assert (now.next_seq, now.turn_seq, now.active_tokens, now.active_turns) == (6, 0, 20, 1)
        popped = await store.pop(now, spec())
        assert popped is not None and popped.message_id == "a0"
        assert (await self.put(store, spec(), [draft("again")])).rows[0].seq == 6
        await store.pop(now, spec())
        await store.pop(now, spec())
        assert await store.pop(now, spec()) is None
        assert (await store.list_sessions("t"))[0].messages == 0

    async def test_the_turn_below_the_horizon_survives_deleting(self, store: Store) -> None:
        drafts = [draft("u"), *(draft(f"a{n}", "assistant") for n in range(12))]
        session = (await self.put(store, spec(), drafts, TIGHT)).session
        assert session.horizon > 0 and session.turn_seq == 0
        await store.pop(session, spec())
        now = (await store.snapshot(spec())).session
        assert now is not None and now.turn_seq == 0
        await store.delete_messages(now, spec(), ["u"])
        now = (await store.snapshot(spec())).session
        assert now is not None and now.turn_seq is None

    async def test_reset(self, store: Store) -> None:
        target = spec(blocks=BLOCKS)
        session = await self.flushed(store, target)
        await self.absorb_all(store)
        own = await self.remember(store, session, BLOCKS[0], [RecordRow("own", "1")])
        mine = RecordRow("mine", "1", None, session.uid, 3)
        wide = await self.remember(store, session, BLOCKS[2], [mine, RecordRow("theirs", "2", None, "x", 3)])
        fresh = await store.reset(session, target)
        assert (fresh.pk, fresh.next_seq, fresh.epoch) == (session.pk, session.next_seq, session.epoch + 1)
        assert fresh.uid != session.uid
        assert (fresh.active_tokens, fresh.active_turns, fresh.turn_seq) == (0, 0, None)
        snapshot = await store.snapshot(target)
        assert (snapshot.session, snapshot.cursors, snapshot.parked) == (fresh, (), ())
        assert await store.all_rows(fresh) == ()
        assert (await store.read_state(own, "facts"), await store.count_records(own, "facts")) == (StateRow(), 0)
        assert [record.key for record in await store.read_records(wide, "wiki")] == ["theirs"]
        assert await self.erasures(store, wide, "wiki") == [(session.uid, None)]
        assert await self.erasures(store, own, "facts") == [(session.uid, None)]
        assert (await self.put(store, target, [draft("u0", given_id=True)])).rows[0].seq == session.next_seq
        assert await store.all_rows(session) == ()
        assert await store.delete_messages(session, target, ["u0"]) == 0

    async def test_a_reset_tells_a_block_that_its_shared_records_are_in_a_new_scope(self, store: Store) -> None:
        target = spec(blocks=[BLOCKS[0]])
        session = await self.flushed(store, target)
        await self.absorb_all(store)
        own = await self.remember(store, session, BLOCKS[0], [RecordRow("rule", "1")])
        fresh = await store.reset(session, target)
        claims = await store.claim_erasures(WORK, seconds=LONG, limit=5)
        seqs = {claim.erasure.session_uid: claim.erasure.seqs for claim in claims}
        assert seqs == {session.uid: None, fresh.uid: ()}
        [told] = [claim for claim in claims if claim.erasure.session_uid == fresh.uid]
        new = told.erasure.scope_key
        assert new != own and [record.key for record in await store.read_records(new, "facts")] == ["rule"]
        assert await self.erasures(store, new, "facts") == [], "nothing is to be left out"
        assert [state.pending_erasures for state in (await store.snapshot(target)).states] == [0]
        assert await store.commit_erasure(told, StateChange('{"n":1}'), rebuild=False) is True
        assert (await store.read_state(new, "facts")).state == '{"n":1}'

    async def test_erasing_needs_the_lease_of_a_delivery_in_flight(self, store: Store) -> None:
        target = spec(blocks=[BLOCKS[0]])
        session = await self.flushed(store, target)
        claim = await self.claim_one(store)
        await store.reset(session, target)
        assert await store.claim_erasures(WORK, seconds=LONG, limit=5) == ()
        await store.release(claim.lease)
        [erasure] = await store.claim_erasures(WORK, seconds=LONG, limit=5)
        assert erasure.erasure.session_uid == session.uid
        assert await store.commit_erasure(erasure, StateChange('{"n":1}'), rebuild=False) is True
        assert await store.read_state(erasure.erasure.scope_key, "facts") == StateRow()
        assert (await store.pending(WORK)).any is False

    async def test_an_erasure_is_retried_until_it_succeeds(self, store: Store) -> None:
        target = spec(blocks=[BLOCKS[2]])
        session = await self.flushed(store, target)
        await self.absorb_all(store, change=StateChange('{"n":1}'))
        await store.delete_messages(session, target, ["u0"])
        [claim] = await store.claim_erasures(WORK, seconds=LONG, limit=5)
        assert claim.state.state == '{"n":1}'
        await store.fail_erasure(claim, "down", retry_in=LONG)
        assert await store.claim_erasures(WORK, seconds=LONG, limit=5) == ()
        pending = await store.pending(WORK)
        assert (pending.erasures, pending.deliveries) == (1, 0)
        assert await store.commit_erasure(claim, StateChange(), rebuild=False) is False

    async def test_rebuilding_absorbs_what_is_left(self, store: Store) -> None:
        block = BLOCKS[2]
        first, second = spec("s1", blocks=[block]), spec("s2", blocks=[block])
        session = await self.flushed(store, first)
        await self.flushed(store, second)
        await self.absorb_all(store, change=StateChange('{"n":1}', put=(RecordRow("r", "1"),)))
        await store.delete_messages(session, first, ["u1"])
        [claim] = await store.claim_erasures(WORK, seconds=LONG, limit=5)
        before = claim.state
        assert await store.commit_erasure(claim, StateChange(), rebuild=True) is True
        await store.release(claim.lease)
        state = await store.read_state(claim.lease.scope_key, block.name)
        assert state.state == "{}" and state.version > before.version and state.deleted_version == state.version
        assert await store.read_records(claim.lease.scope_key, block.name) == ()
        delivered = flat(await self.absorb_all(store))
        names = [d.message_id for d in turns(8)][: session.horizon]
        assert sorted(delivered) == sorted([name for name in names if name != "u1"] + names)

    async def test_delete_session(self, store: Store) -> None:
        target = spec(blocks=BLOCKS)
        await self.flushed(store, target)
        await self.absorb_all(store, change=StateChange('{"n":1}'))
        assert await store.delete_session("t", "s") is True
        assert await store.delete_session("t", "s") is False
        assert (await store.snapshot(target)).session is None
        assert (await store.pending(WORK)).erasures == 3

    async def test_delete_user(self, store: Store) -> None:
        for name, user in (("s1", "u"), ("s2", "u"), ("s3", "u2")):
            await self.flushed(store, spec(name, user=user, blocks=BLOCKS))
        await self.absorb_all(store, change=StateChange('{"n":1}', put=(RecordRow("r", "1"),)))
        mine, theirs = (scope_key("user", tenant="t", user_id=user, session_uid="") for user in ("u", "u2"))
        lease = await store.lease(mine, "profile", seconds=1.5)
        assert lease is not None
        old = await store.read_state(mine, "profile")
        assert await store.delete_user("t", "u") == 2
        assert [info.session_id for info in await store.list_sessions("t")] == ["s3"]
        assert await store.read_state(mine, "profile") == StateRow()
        assert (await store.count_records(mine, "profile"), await store.count_records(theirs, "profile")) == (0, 1)
        assert await self.erasures(store, mine, "profile") == [(None, None)]
        assert await self.erasures(store, theirs, "profile") == []
        assert await store.commit_change(lease, StateChange('{"n":2}'), session=None) is None
        assert await store.lease(mine, "profile", seconds=LONG) is None
        await asyncio.sleep(1.6)
        again = await store.lease(mine, "profile", seconds=LONG)
        assert again is not None
        state = await store.commit_change(again, StateChange('{"n":3}'), session=None)
        assert state is not None and state.version > old.version

    async def test_what_was_revoked_can_be_given_back(self, store: Store) -> None:
        """Then its owner writes nothing more, and who erases need not wait."""
        await self.flushed(store, spec(user="u", blocks=BLOCKS))
        mine = scope_key("user", tenant="t", user_id="u", session_uid="")
        lease = await store.lease(mine, "profile", seconds=LONG)
        assert lease is not None
        for _ in range(2):
            await store.delete_user("t", "u")
        assert await store.commit_change(lease, StateChange('{"n":1}'), session=None) is None
        assert await store.renew(lease, None, seconds=LONG) is False
        assert await store.lease(mine, "profile", seconds=LONG) is None
        await store.release(lease)
        assert await store.lease(mine, "profile", seconds=LONG) is not None

    async def test_delete_tenant(self, store: Store) -> None:
        for tenant in ("t", "t:1", "t2"):
            await self.flushed(store, spec(tenant=tenant, blocks=BLOCKS))
        await self.absorb_all(store, change=StateChange('{"n":1}'))
        assert await store.delete_tenant("t") == 1
        for block in BLOCKS[1:]:
            for tenant, there in (("t", False), ("t:1", True), ("t2", True)):
                key = scope_key(block.scope, tenant=tenant, user_id="u", session_uid="")
                assert (await store.read_state(key, block.name) != StateRow()) is there
                assert (await store.pending_erasures(key, block.name) != ()) is not there
        assert await store.list_sessions("t") == ()
        assert len(await store.list_sessions("t:1")) == 1

    async def test_purge(self, store: Store) -> None:
        for tenant, name, now in (("t", "old", 1), ("t", "new", 10), ("t2", "old", 1)):
            await store.append(spec(name, tenant=tenant), turns(1), ROOMY, now=now)
        assert await store.purge("t", inactive_before=10) == 1
        assert [info.session_id for info in await store.list_sessions("t")] == ["new"]
        assert await store.purge(None, inactive_before=11) == 2

    # -- block state -----------------------------------------------------------------------------------------

    async def lease(self, store: Store, scope: str = "g:1:t", block: str = "wiki") -> Lease:
        lease = await store.lease(scope, block, seconds=LONG)
        assert lease is not None
        return lease

    async def test_leases_exclude_each_other(self, store: Store, other: Store) -> None:
        lease = await self.lease(store)
        assert await other.lease("g:1:t", "wiki", seconds=LONG) is None
        assert await other.lease("g:1:t", "facts", seconds=LONG) is not None
        await other.release(replace(lease, token="wrong"))
        assert await other.lease("g:1:t", "wiki", seconds=LONG) is None
        await store.release(lease)
        assert await other.lease("g:1:t", "wiki", seconds=LONG) is not None

    async def test_writing_by_hand_and_delivering_do_not_wait_for_each_other(self, store: Store) -> None:
        await self.flushed(store, spec(blocks=[BLOCKS[0]]))
        claim = await self.claim_one(store)
        chunk = await store.read_chunk(claim, 10_000)
        assert chunk is not None
        scope, block, change = claim.lease.scope_key, claim.lease.block, StateChange('{"n":1}')
        lease = await self.lease(store, scope, block)
        with pytest.raises(StateInUse):
            await store.commit_delivery(claim, chunk, change)
        by_hand = await store.commit_change(lease, StateChange('{"hand":1}'), session=claim.session)
        assert by_hand is not None
        with pytest.raises(StateInUse):
            await store.commit_delivery(claim, replace(chunk, state=by_hand), change)
        await store.release(lease)
        with pytest.raises(StateInUse):
            await store.commit_delivery(claim, chunk, change)
        assert await store.read_state(scope, block) == by_hand
        state = await store.commit_delivery(claim, replace(chunk, state=by_hand), change)
        assert state is not None and state.version > by_hand.version
        assert await store.lease(scope, block, seconds=LONG) is not None, "the commit keeps no lease to write"

    async def test_only_a_delivery_that_changes_something_waits_for_a_hand(self, store: Store) -> None:
        await self.flushed(store, spec(blocks=[BLOCKS[0]]))
        claim = await self.claim_one(store)
        chunk = await store.read_chunk(claim, 10_000)
        assert chunk is not None
        await self.lease(store, claim.lease.scope_key, claim.lease.block)
        assert await store.commit_delivery(claim, chunk, StateChange()) is not None

    async def test_erasures_come_after_a_hand(self, store: Store) -> None:
        """What it wrote to an outside store is there when the block is told to forget."""
        block = BLOCKS[2]
        target = spec(blocks=[block])
        session = await self.flushed(store, target)
        await self.absorb_all(store, change=StateChange('{"n":1}'))
        scope = scope_key(block.scope, tenant=session.tenant, user_id=session.user_id, session_uid=session.uid)
        lease = await self.lease(store, scope, block.name)
        await store.delete_messages(session, target, ["u0"])
        assert await store.claim_erasures(WORK, seconds=LONG, limit=5) == ()
        pending = await store.pending(WORK)
        assert pending.erasures == 1 and pending.next_in is not None and pending.next_in > 0
        await store.release(lease)
        [claim] = await store.claim_erasures(WORK, seconds=LONG, limit=5)
        lease = await self.lease(store, scope, block.name)
        for rebuild in (False, True):
            with pytest.raises(StateInUse):
                await store.commit_erasure(claim, StateChange('{"n":2}'), rebuild=rebuild)
        by_hand = await store.commit_change(lease, StateChange('{"n":3}'), session=None)
        assert by_hand is not None
        await store.release(lease)
        with pytest.raises(StateInUse):
            await store.commit_erasure(claim, StateChange('{"n":2}'), rebuild=False)
        assert await store.commit_erasure(replace(claim, state=by_hand), StateChange('{"n":4}'), rebuild=False) is True
        assert (await store.read_state(scope, block.name)).state == '{"n":4}'

    async def test_changes_merge_and_versions_grow(self, store: Store) -> None:
        lease = await self.lease(store)
        first = await store.commit_change(lease, StateChange('{"a":1}', 2, (RecordRow("k", "1"),)), session=None)
        assert first is not None
        second = await store.commit_change(lease, StateChange(put=(RecordRow("k", "2"), RecordRow("l", "3"))), session=None)
        assert second is not None
        assert (second.state, second.format, second.deleted_version) == ('{"a":1}', 2, first.deleted_version)
        assert second.version > first.version
        assert await store.commit_change(lease, StateChange(), session=None) == second
        third = await store.commit_change(lease, StateChange(delete=("k", "nothing")), session=None)
        assert third is not None and third.deleted_version == third.version > second.version
        assert await store.read_records("g:1:t", "wiki") == (RecordRow("l", "3", version=second.version),)

    async def test_a_change_needs_its_session(self, store: Store) -> None:
        session = (await self.put(store, spec(), turns(1))).session
        lease = await self.lease(store)
        assert await store.commit_change(lease, StateChange("{}"), session=session) is not None
        await store.reset(session, spec())
        assert await store.commit_change(lease, StateChange("{}"), session=session) is None

    async def test_read_records(self, store: Store) -> None:
        lease = await self.lease(store)
        names = ["a", "a%", "a_b", "ab", "b", "\U0010ffff", "\ud7ff"]
        first = await store.commit_change(lease, StateChange(put=tuple(RecordRow(n, "1") for n in names)), session=None)
        assert first is not None
        await store.commit_change(lease, StateChange(put=(RecordRow("ab", "2"), RecordRow("c", "2"))), session=None)

        async def keys(**options: Any) -> list[str]:
            return [record.key for record in await store.read_records("g:1:t", "wiki", **options)]

        assert await keys() == sorted([*names, "c"])
        assert await keys(prefix="a") == ["a", "a%", "a_b", "ab"]
        assert await keys(prefix="a_") == ["a_b"]
        assert await keys(prefix="\ud7ff") == ["\ud7ff"]
        assert await keys(prefix="\U0010ffff") == ["\U0010ffff"]
        assert await keys(changed_since=first.version) == ["ab", "c"]
        assert await keys(keys=["c", "a", "zz", "a"]) == ["a", "c"]
        assert await keys(keys=[]) == []
        assert await keys(keys=[*(f"x{n}" for n in range(3000)), "a"], limit=1) == ["a"]
        assert await keys(after_key="ab", limit=2) == ["b", "c"]
        assert await keys(prefix="a", after_key="a", limit=1) == ["a%"]
        assert await store.count_records("g:1:t", "wiki") == len(names) + 1
        assert await store.read_records("g:1:t", "facts") == ()
        assert await store.read_records("g:1:T", "wiki") == ()
