"""What every vector store must keep, as a pytest class to subclass."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from math import log, sqrt
from typing import Any, Protocol

import pytest

from memory_engine.block import Erased
from memory_engine.blocks.vector.store import Candidates, Entry, Item, Probe, Scope, VectorStore
from memory_engine.errors import BlockError

START = datetime(2025, 3, 1, 12, tzinfo=UTC)
MANY = 1000
"""A limit beyond what any test here stores."""


class OpenScope(Protocol):
    """Opens a scope for reading and writing; what was written is committed when it is closed.

    Tests use the tenants "acme" and "globex", the keys "one" and "two", and the blocks "recall" and "notes".
    """

    def __call__(self, tenant: str = "acme", key: str = "one", block: str = "recall") -> AbstractAsyncContextManager[Scope]: ...


@dataclass(frozen=True)
class Shelf:
    """A store as the tests use it: each call opens its scope and closes it."""

    store: VectorStore
    open_scope: OpenScope

    async def add(self, *entries: Entry, **where: str) -> None:
        async with self.open_scope(**where) as scope:
            await self.store.add(scope, entries)

    async def search(self, probe: Probe, *, limit: int = MANY, erasing: tuple[Erased, ...] = (), **where: Any) -> Candidates:
        async with self.open_scope(**where) as scope:
            return await self.store.search(replace(scope, erasing=erasing), probe, limit=limit)

    async def texts(self, query: str, **options: Any) -> list[str]:
        """The texts that contain a word of the query, the best first."""
        found = await self.search(ask(query), **options)
        scores = bm25(found)
        ranked = sorted(range(len(found.items)), key=lambda i: -scores[i])
        return [found.items[i].text for i in ranked if scores[i] > 0]

    async def items(self, session_uid: str, from_seq: int, to_seq: int, *, erasing: tuple[Erased, ...] = ()) -> list[Item]:
        async with self.open_scope() as scope:
            return list(await self.store.items(replace(scope, erasing=erasing), session_uid, from_seq, to_seq))

    async def remove(self, session_uid: str | None, seqs: Sequence[int] | None, **where: str) -> None:
        async with self.open_scope(**where) as scope:
            await self.store.remove(scope, session_uid, seqs)

    async def remove_documents(self, documents: Sequence[str] | None, **where: str) -> int:
        async with self.open_scope(**where) as scope:
            return await self.store.remove_documents(scope, documents)

    async def count(self, **where: str) -> int:
        async with self.open_scope(**where) as scope:
            return await self.store.count(scope)

    async def renew(
        self,
        *,
        dimension: int | None = 2,
        same_model: bool = True,
        keep: Callable[[Item], bool] = lambda item: True,
        **where: str,
    ) -> None:
        async with self.open_scope(**where) as scope:
            await self.store.renew(scope, dimension=dimension, same_model=same_model, keep=keep)


def words_of(text: str) -> dict[str, int]:
    """The words of a text, each with how often it occurs."""
    return dict(Counter(re.findall(r"\w+", text.lower())))


def said(seq: int, text: str, vector: Sequence[float] | None = None, *, session: str = "s1", **fields: Any) -> Entry:
    """A message for a test."""
    at = START + timedelta(minutes=seq)
    key = fields.pop("key", f"{session}:{seq:09d}:{fields.get('part', 0)}")
    item = Item(key=key, text=text, at=at, session_uid=session, session_id=f"id of {session}", seq=seq, **fields)
    return Entry(item, words_of(text), vector)


def passage(document: str, part: int, text: str, vector: Sequence[float] | None = None, **fields: Any) -> Entry:
    """A part of a document for a test."""
    item = Item(key=f"{document}:{part}", text=text, kind="document", document=document, part=part, **fields)
    return Entry(item, words_of(text), vector)


def ask(query: str = "", vector: Sequence[float] | None = None) -> Probe:
    """A probe for a test; every word weighs 1."""
    return Probe(dict.fromkeys(words_of(query), 1.0), vector)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """What `dense` must be."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def bm25(found: Candidates) -> list[float]:
    """What a block makes of the counts."""
    scores = []
    for counts, length in zip(found.counts.tolist(), found.lengths.tolist(), strict=True):
        score = 0.0
        for count, frequency in zip(counts, found.frequency.tolist(), strict=True):
            idf = log(1 + (found.total - frequency + 0.5) / (frequency + 0.5))
            score += idf * count * 2.2 / (count + 1.2 * (0.5 + 0.5 * length / max(1.0, found.average_length)))
        scores.append(score)
    return scores


def counts(found: Candidates) -> dict[str, list[float]]:
    """The counts of each item, by its text."""
    return {item.text: row for item, row in zip(found.items, found.counts.tolist(), strict=True)}


def dense(found: Candidates) -> dict[str, float]:
    """The cosine of each item, by its text."""
    assert found.dense is not None
    return {item.text: score for item, score in zip(found.items, found.dense.tolist(), strict=True)}


def pairs(found: Candidates) -> set[tuple[str, str]]:
    """The items that follow each other, by their texts."""
    items = found.items
    return {(items[i - 1].text, items[i].text) for i in range(len(items)) if found.follows[i]}


@pytest.mark.asyncio
class VectorStoreContract:
    """Subclass it in a test module and give the fixtures `store` and `open_scope`; its tests then run for your store.

        class TestMyStore(VectorStoreContract):
            @pytest.fixture
            def store(self, tmp_path):
                return MyStore(tmp_path)

            @pytest.fixture
            def open_scope(self):
                @asynccontextmanager
                async def open_scope(tenant="acme", key="one", block="recall"):
                    yield Scope(tenant, key, block, my_records)
                return open_scope

    A store that lives in `scope.records` gives a scope whose writes are committed when it is closed, as those of
    `block.transaction()` are. The store is empty at the start of each test.
    """

    @pytest.fixture
    def store(self) -> VectorStore:
        raise NotImplementedError("override the fixture store")

    @pytest.fixture
    def open_scope(self) -> OpenScope:
        raise NotImplementedError("override the fixture open_scope")

    @pytest.fixture
    def shelf(self, store: VectorStore, open_scope: OpenScope) -> Shelf:
        return Shelf(store, open_scope)

    # -- what goes in comes out ------------------------------------------------------------------------------

    async def test_it_is_a_vector_store(self, store: VectorStore) -> None:
        assert isinstance(store, VectorStore)

    async def test_what_was_added_is_found(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "The cat sleeps"), said(1, "A dog barks"), said(2, "The cat and the dog"))
        assert set(await shelf.texts("cat")) == {"The cat sleeps", "The cat and the dog"}
        assert set(await shelf.texts("dog")) == {"A dog barks", "The cat and the dog"}
        assert await shelf.count() == 3

    async def test_items_come_back_exactly(self, shelf: Shelf) -> None:
        text = '  Straße naïve 東京タワー สวัสดี 👩‍🚀 "quoted" \\ <tag>\n\ttabbed\r\n e\u0301  '
        metadata = {"rühm": [1, 2.5, None, True, {"tief": "東"}], "large": 2**70, "empty": {}}
        at = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=timezone(timedelta(hours=5, minutes=30)))
        step = Item(
            key="a step: 東/1#0",
            text=text,
            role="assistant",
            name="Zoë",
            at=at,
            session_uid="uid-ß",
            session_id="the session 1",
            seq=5,
            last_seq=8,
            part=3,
            parts=5,
            tokens=17,
            metadata=metadata,
        )
        bare = Item(key="bare", text="marker", session_uid="uid-ß", seq=9)
        document = Item(key="d", text="", kind="document", role="system", document="Handbuch 1", part=2, metadata={"page": 7})
        await shelf.add(*(Entry(item, {"marker": 1}) for item in (step, bare, document)))
        found = await shelf.search(ask("marker"))
        assert {item.key: item for item in found.items} == {item.key: item for item in (step, bare, document)}

    async def test_adding_twice_stores_once(self, shelf: Shelf) -> None:
        entries = [said(0, "one cat", [1.0, 0.0]), said(1, "two cats", [0.0, 1.0])]
        await shelf.add(*entries)
        before = await shelf.search(ask("cat", [1.0, 1.0]))
        await shelf.add(*entries)
        after = await shelf.search(ask("cat", [1.0, 1.0]))
        assert await shelf.count() == 2
        assert list(after.items) == list(before.items)
        assert after.counts.tolist() == before.counts.tolist()
        assert after.frequency.tolist() == before.frequency.tolist()

    async def test_a_replaced_entry_is_what_it_is_now(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "an old cat", [1.0, 0.0]), said(1, "a bird", [1.0, 0.0]))
        await shelf.add(said(0, "a new dog", [0.0, 1.0]))
        assert await shelf.texts("cat") == []
        scores = dense(await shelf.search(ask("dog", [0.0, 1.0])))
        assert scores["a new dog"] == pytest.approx(1.0, abs=2e-3)
        assert await shelf.count() == 2

    async def test_nothing_to_add_is_nothing(self, shelf: Shelf) -> None:
        await shelf.add()
        assert await shelf.count() == 0

    async def test_many_entries_at_once(self, shelf: Shelf) -> None:
        await shelf.add(*(said(n, f"item number{n} of many", [1.0, n / 500]) for n in range(500)))
        assert await shelf.count() == 500
        for n in (0, 255, 256, 499):
            assert (await shelf.texts(f"number{n}", limit=10)) == [f"item number{n} of many"]

    async def test_concurrent_adds_all_stay(self, shelf: Shelf) -> None:
        await asyncio.gather(*(shelf.add(*(said(10 * n + i, f"task{n} item") for i in range(5))) for n in range(6)))
        assert await shelf.count() == 30
        await asyncio.gather(*(shelf.add(said(n, "again")) for n in (1000, 1000, 1000)))
        assert await shelf.count() == 31

    # -- scores ----------------------------------------------------------------------------------------------

    async def test_a_rare_word_beats_a_common_one(self, shelf: Shelf) -> None:
        common = [said(n, f"the weather on day {n}") for n in range(30)]
        await shelf.add(*common, said(30, "a zebra on day 30"))
        assert (await shelf.texts("weather zebra"))[0] == "a zebra on day 30"

    async def test_more_of_a_word_and_less_of_others_rank_higher(self, shelf: Shelf) -> None:
        long = "tea and " + " ".join(f"word{n}" for n in range(60))
        await shelf.add(said(0, long), said(1, "tea please now"), said(2, "tea tea tea"), said(3, "nothing"))
        assert await shelf.texts("tea") == ["tea tea tea", "tea please now", long]

    async def test_counts_lengths_and_frequencies_are_told(self, shelf: Shelf) -> None:
        texts = ["all cat cat cat", "all dog cat", "all all alone here", "all " * 40 + "dog " * 25]
        await shelf.add(*(said(10 * n, text) for n, text in enumerate(texts)))
        await shelf.add(said(0, "all cat dog"), key="two")
        found = await shelf.search(Probe({"cat": 2.0, "unheard": 1.0, "all": 0.5, "dog": 1.0}))
        assert [item.text for item in found.items] == texts
        assert found.counts.tolist() == [[3, 0, 1, 0], [1, 0, 1, 1], [0, 0, 2, 0], [0, 0, 40, 25]]
        assert found.lengths.tolist() == [4, 3, 4, 65]
        assert found.frequency.tolist() == [2, 0, 4, 2]
        assert found.average_length == pytest.approx(19)
        assert found.total == 4

    async def test_a_word_without_weight_keeps_its_column(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "a cat and a dog"))
        found = await shelf.search(Probe({"cat": 0.0, "dog": 1.0, "a": 0.0}))
        assert found.counts.tolist() == [[1, 1, 2]]
        assert found.frequency.tolist() == [1, 1, 1]

    async def test_dense_scores_are_cosines(self, shelf: Shelf) -> None:
        vectors = {"east": [2.0, 0.0, 0.0], "north": [0.0, 0.5, 0.0], "between": [1.0, 1.0, 0.0], "west": [-1.0, 0.0, 0.1]}
        await shelf.add(*(said(n, text, vector) for n, (text, vector) in enumerate(vectors.items())))
        probe = [3.0, 0.3, 0.0]
        found = await shelf.search(ask(vector=probe))
        expected = {text: cosine(probe, vector) for text, vector in vectors.items()}
        assert dense(found) == pytest.approx(expected, abs=2e-3)
        assert found.counts.shape == (4, 0)
        assert found.frequency.shape == (0,)

    async def test_words_and_vectors_together(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "a cat", [1.0, 0.0]), said(1, "a kitten", [0.9, 0.1]), said(2, "a car", [0.0, 1.0]))
        found = await shelf.search(ask("cat", [1.0, 0.0]))
        scores = dense(found)
        assert scores["a cat"] > scores["a kitten"] > scores["a car"]
        assert counts(found) == {"a cat": [1], "a kitten": [0], "a car": [0]}

    async def test_without_vectors_there_are_no_dense_scores(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "a cat"))
        assert (await shelf.search(ask("cat"))).dense is None
        assert await shelf.texts("cat") == ["a cat"]

    async def test_a_probe_without_a_vector_is_compared_by_words(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "a cat", [1.0, 0.0]), said(1, "a dog", [0.0, 1.0]))
        assert (await shelf.search(ask("cat"))).dense is None
        assert await shelf.texts("cat") == ["a cat"]

    async def test_vectors_of_length_zero_are_like_nothing(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "a cat", [0.0, 0.0]), said(1, "a dog", [0.0, 1.0]))
        found = await shelf.search(ask("cat dog", [0.0, 0.0]))
        assert dense(found) == {"a cat": 0.0, "a dog": 0.0}

    async def test_items_without_a_vector_are_like_nothing(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "a cat", [1.0, 0.0]))
        await shelf.add(said(1, "no cat"))
        scores = dense(await shelf.search(ask("cat", [1.0, 0.0])))
        assert scores == pytest.approx({"a cat": 1.0, "no cat": 0.0}, abs=2e-3)

    async def test_unknown_words_score_nothing(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "a cat"))
        assert await shelf.texts("unheard words") == []

    async def test_an_empty_probe_scores_nothing(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "a cat"))
        found = await shelf.search(ask())
        assert found.dense is None and found.counts.shape == (len(found.items), 0)

    async def test_an_empty_scope_answers_nothing(self, shelf: Shelf) -> None:
        for _ in range(2):
            for probe in (ask("cat"), ask("cat", [1.0, 0.0]), ask()):
                found = await shelf.search(probe)
                assert (list(found.items), len(found.lengths), len(found.follows), found.total) == ([], 0, 0, 0)
                assert found.counts.shape == (0, len(probe.words))
                assert found.frequency.tolist() == [0] * len(probe.words)
            assert await shelf.items("s1", 0, 9) == []
            await shelf.remove("s1", [0])
            await shelf.remove("s1", None)
            await shelf.remove(None, None)
            assert await shelf.remove_documents(None) == 0
            assert await shelf.count() == 0
            await shelf.add(said(0, "a cat", [1.0, 0.0]), key="two")

    async def test_vectors_of_another_dimension_are_refused(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "a cat", [1.0, 0.0]))
        with pytest.raises(BlockError, match="dimension"):
            await shelf.add(said(1, "a dog", [1.0, 0.0, 0.0]))
        with pytest.raises(BlockError, match="dimension"):
            await shelf.add(said(1, "a dog", [1.0, 0.0]), said(2, "a bird", [1.0]))
        with pytest.raises(BlockError, match="dimension"):
            await shelf.search(ask("cat", [1.0, 0.0, 0.0]))
        assert await shelf.texts("cat") == ["a cat"]
        assert await shelf.count() == 1

    # -- order -----------------------------------------------------------------------------------------------

    async def test_candidates_are_in_order_and_say_what_follows(self, shelf: Shelf) -> None:
        entries = [
            said(0, "word a0"),
            said(1, "word a1", last_seq=3),
            said(4, "word a4"),
            said(6, "word a6"),
            said(20, "word a20 first", part=0),
            said(20, "word a20 second", part=1),
            said(20, "word a20 fourth", part=3),
            said(1, "word b1", session="s2"),
            passage("doc", 0, "word d0"),
            passage("doc", 1, "word d1"),
            passage("doc", 3, "word d3"),
            passage("other", 4, "word o4"),
        ]
        await shelf.add(*reversed(entries))
        found = await shelf.search(ask("word"))
        assert pairs(found) == {
            ("word a0", "word a1"),
            ("word a1", "word a4"),
            ("word a4", "word a6"),
            ("word a20 first", "word a20 second"),
            ("word d0", "word d1"),
        }
        for session in ("s1", "s2"):
            places = [(item.seq, item.part) for item in found.items if item.session_uid == session]
            assert places == sorted(places)
        assert found.total == len(found.items) == len(entries)
        assert len(found.counts) == len(found.lengths) == len(found.follows) == len(entries)

    async def test_what_surrounds_a_find_comes_with_it(self, shelf: Shelf) -> None:
        await shelf.add(*(said(n, "needle" if n == 50 else f"straw {n}", [1.0, n / 100]) for n in range(100)))
        found = await shelf.search(ask("needle"), limit=1)
        told = counts(found)
        assert (told["straw 49"], told["needle"], told["straw 51"]) == ([0], [1], [0])
        assert {("straw 49", "needle"), ("needle", "straw 51")} <= pairs(found)

    async def test_what_surrounds_parts_and_steps_comes_with_them(self, shelf: Shelf) -> None:
        step = said(2, "before", last_seq=6)
        parts = [said(7, "needle" if part == 4 else f"part {part}", part=part) for part in range(6)]
        papers = [passage("doc", part, "pin" if part == 0 else f"page {part}") for part in range(4)]
        await shelf.add(said(0, "start"), step, *parts, said(8, "after"), *papers)
        found = await shelf.search(ask("needle"), limit=1)
        around = {("before", "part 0"), ("part 3", "needle"), ("needle", "part 5"), ("part 5", "after")}
        assert around <= pairs(found)
        assert {("pin", "page 1"), ("page 1", "page 2")} <= pairs(await shelf.search(ask("pin"), limit=1))

    async def test_the_best_are_there_whatever_the_limit(self, shelf: Shelf) -> None:
        # Far apart, so that neighbours do not count.
        entries = [said(10 * n, f"straw{n} hay" + " more" * n, [1.0, n / 60]) for n in range(60)]
        await shelf.add(*entries, said(1000, "needle hay", [0.0, 1.0]))
        found = await shelf.search(ask("needle hay", [0.0, 1.0]), limit=5)
        assert len(found.items) == 61 or len(found.items) <= 10
        assert "needle hay" in [item.text for item in found.items]
        assert found.total == 61

    async def test_items_of_a_part_of_a_session(self, shelf: Shelf) -> None:
        parts = [said(6, f"part {part}", part=part) for part in range(3)]
        entries = [said(0, "zero"), said(2, "step", [1.0, 0.0], last_seq=4), said(5, "five"), *parts, said(9, "nine")]
        await shelf.add(*reversed(entries), said(5, "other", session="s2"), passage("doc", 5, "paper"))
        whole = [entry.item for entry in entries]
        assert await shelf.items("s1", 0, 100) == whole
        assert await shelf.items("s1", 4, 6) == whole[1:6]
        assert await shelf.items("s1", 3, 3) == whole[1:2]
        assert await shelf.items("s1", 7, 8) == await shelf.items("unknown", 0, 100) == []
        assert await shelf.items("s1", 0, 100, erasing=(Erased("s1", (3, 9)),)) == [whole[0], *whole[2:6]]

    async def test_items_of_a_long_session(self, shelf: Shelf) -> None:
        await shelf.add(*(said(n, f"item {n}") for n in range(300)))
        assert [item.seq for item in await shelf.items("s1", 0, 1000)] == list(range(300))

    # -- whose items -----------------------------------------------------------------------------------------

    async def test_scopes_tenants_and_blocks_are_apart(self, shelf: Shelf) -> None:
        places: list[dict[str, Any]] = [
            {"tenant": "acme", "key": "one", "block": "recall"},
            {"tenant": "acme", "key": "two", "block": "recall"},
            {"tenant": "acme", "key": "one", "block": "notes"},
            {"tenant": "globex", "key": "one", "block": "recall"},
        ]
        for n, place in enumerate(places):
            await shelf.add(said(0, f"secret {n}", [1.0, 0.0]), passage("doc", 0, f"secret paper {n}", [1.0, 0.0]), **place)
        for n, place in enumerate(places):
            found = await shelf.search(ask("secret", [1.0, 0.0]), **place)
            assert {item.text for item in found.items} == {f"secret {n}", f"secret paper {n}"}
            assert found.total == await shelf.count(**place) == 2
            assert found.frequency.tolist() == [2]
        await shelf.remove("s1", [0], **places[0])
        assert await shelf.remove_documents(["doc"], **places[0]) == 1
        await shelf.remove(None, None, **places[1])
        assert [await shelf.count(**place) for place in places] == [0, 0, 2, 2]

    # -- forgetting ------------------------------------------------------------------------------------------

    async def test_messages_are_removed_by_seq(self, shelf: Shelf) -> None:
        await shelf.add(*(said(n, f"cat {n}") for n in range(6)), said(1, "cat elsewhere", session="s2"))
        await shelf.remove("s1", [1, 3, 4, 99])
        assert set(await shelf.texts("cat")) == {"cat 0", "cat 2", "cat 5", "cat elsewhere"}
        assert await shelf.count() == 4

    @pytest.mark.parametrize("seq", [2, 3, 4])
    async def test_a_step_goes_whole(self, shelf: Shelf, seq: int) -> None:
        parts = [said(2, f"step part {part}", last_seq=4, part=part) for part in range(2)]
        await shelf.add(said(1, "step before"), *parts, said(5, "step after"))
        await shelf.remove("s1", [seq])
        assert set(await shelf.texts("step")) == {"step before", "step after"}

    async def test_no_seqs_remove_nothing(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "a cat"))
        await shelf.remove("s1", [])
        assert await shelf.count() == 1

    async def test_very_many_seqs_are_removed(self, shelf: Shelf) -> None:
        await shelf.add(*(said(n, f"cat {n}") for n in range(240)))
        await shelf.remove("s1", range(0, 240, 2))
        assert await shelf.count() == 120

    async def test_a_session_is_removed_and_documents_stay(self, shelf: Shelf) -> None:
        await shelf.add(
            said(0, "cat one"), said(7, "cat two"), said(0, "cat other", session="s2"), passage("doc", 0, "cat paper")
        )
        await shelf.remove("s1", None)
        assert set(await shelf.texts("cat")) == {"cat other", "cat paper"}
        await shelf.remove("s2", [0])
        assert await shelf.texts("cat") == ["cat paper"]

    async def test_the_whole_scope_is_removed(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "cat one"), said(0, "cat other", session="s2"), passage("doc", 0, "cat paper"))
        await shelf.remove(None, None)
        assert await shelf.texts("cat") == []
        assert await shelf.count() == 0

    async def test_what_was_removed_may_come_again(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "a cat", [1.0, 0.0]))
        await shelf.remove("s1", [0])
        await shelf.add(said(0, "a cat", [1.0, 0.0]))
        assert await shelf.texts("cat") == ["a cat"]
        assert await shelf.count() == 1

    async def test_documents_are_removed_by_id(self, shelf: Shelf) -> None:
        papers = [passage(name, part, f"cat {name} {part}") for name in ("a", "b", "c") for part in range(3)]
        await shelf.add(*papers, said(0, "cat message"))
        assert await shelf.remove_documents([]) == 0
        assert await shelf.remove_documents(["a", "unknown"]) == 3
        assert await shelf.count() == 7
        assert await shelf.remove_documents(None) == 6
        assert await shelf.texts("cat") == ["cat message"]

    async def test_what_is_being_erased_is_left_out(self, shelf: Shelf) -> None:
        entries = [
            said(0, "cat 0", [1.0, 0.0]),
            said(2, "cat step", [1.0, 0.0], last_seq=4),
            said(5, "cat 5", [1.0, 0.0]),
            said(3, "cat other", [1.0, 0.0], session="s2"),
            passage("doc", 0, "cat paper", [1.0, 0.0]),
        ]
        await shelf.add(*entries)

        async def visible(*erasing: Erased) -> set[str]:
            found = await shelf.search(ask("cat", [1.0, 0.0]), erasing=erasing)
            return {item.text for item in found.items}

        assert await visible() == {"cat 0", "cat step", "cat 5", "cat other", "cat paper"}
        assert await visible(Erased("s1", (3,))) == {"cat 0", "cat 5", "cat other", "cat paper"}
        assert await visible(Erased("s1", (0, 5)), Erased("s2", None)) == {"cat step", "cat paper"}
        assert await visible(Erased("s1", None)) == {"cat other", "cat paper"}
        assert await visible(Erased("s1", tuple(range(5, 1000, 2)))) == {"cat 0", "cat step", "cat other", "cat paper"}
        assert await visible(Erased(None, None)) == set()
        assert await shelf.count() == 5

    async def test_what_is_being_erased_is_not_counted(self, shelf: Shelf) -> None:
        entries = [said(0, "cat dog", [1.0, 0.0]), said(2, "cat cat", [1.0, 0.0], last_seq=4), said(5, "dog", [1.0, 0.0])]
        await shelf.add(*entries, said(3, "cat", [1.0, 0.0], session="s2"))
        for probe in (ask("cat dog"), ask("cat dog", [1.0, 0.0])):
            for erased, total, frequency, average in (
                (Erased("s1", (3,)), 3, [2, 2], 4 / 3),
                (Erased("s1", None), 1, [1, 0], 1),
                (Erased(None, None), 0, [0, 0], 0),
            ):
                found = await shelf.search(probe, erasing=(erased,))
                assert found.total == total
                assert found.frequency.tolist() == frequency
                assert found.average_length == pytest.approx(average)

    # -- making everything anew ------------------------------------------------------------------------------

    async def test_vectors_of_the_same_model_stay(self, shelf: Shelf) -> None:
        await shelf.add(
            said(0, "a cat", [1.0, 0.0]), said(1, "a dog", [0.0, 1.0]), passage("doc", 0, "a cat paper", [1.0, 0.0])
        )
        before = await shelf.search(ask("cat", [1.0, 0.0]))
        await shelf.renew()
        after = await shelf.search(ask("cat", [1.0, 0.0]))
        assert list(after.items) == list(before.items)
        assert dense(after) == pytest.approx(dense(before), abs=2e-3)
        assert counts(after) == counts(before)

    async def test_vectors_of_another_model_go_and_words_stay(self, shelf: Shelf) -> None:
        entries = [said(0, "a cat", [1.0, 0.0]), said(1, "a dog", [0.0, 1.0]), passage("doc", 0, "a cat paper", [1.0, 0.0])]
        await shelf.add(*entries)
        await shelf.add(said(0, "a cat", [1.0, 0.0]), key="two")
        before = await shelf.search(ask("cat dog"))
        await shelf.renew(same_model=False)
        found = await shelf.search(ask("cat dog", [1.0, 0.0]))
        assert found.dense is None or not found.dense.any()
        assert list(found.items) == list(before.items)
        assert counts(found) == counts(before)
        assert found.frequency.tolist() == before.frequency.tolist()
        assert await shelf.count() == 3
        assert dense(await shelf.search(ask("cat", [1.0, 0.0]), key="two")) == pytest.approx({"a cat": 1.0}, abs=2e-3)
        await shelf.add(said(1, "a dog", [1.0, 0.0]))
        again = dense(await shelf.search(ask("cat", [1.0, 0.0])))
        assert again == pytest.approx({"a cat": 0.0, "a dog": 1.0, "a cat paper": 0.0}, abs=2e-3)

    @pytest.mark.parametrize("same_model", [True, False])
    async def test_what_should_not_be_there_goes(self, shelf: Shelf, same_model: bool) -> None:
        papers = [passage(name, 0, f"cat {name}", [1.0, 0.0]) for name in ("a", "b")]
        await shelf.add(*(said(n, f"cat {n}", [1.0, 0.0]) for n in range(270)), *papers)
        await shelf.add(said(1, "cat elsewhere", [1.0, 0.0]), key="two")
        await shelf.renew(same_model=same_model, keep=lambda item: item.document == "b" or item.seq in {7, 269})
        assert set(await shelf.texts("cat")) == {"cat 7", "cat 269", "cat b"}
        assert await shelf.count() == 3
        assert await shelf.texts("cat", key="two") == ["cat elsewhere"]

    async def test_a_dimension_that_does_not_fit_changes_nothing(self, shelf: Shelf) -> None:
        await shelf.add(said(0, "a cat", [1.0, 0.0]), said(1, "a dog", [0.0, 1.0]))
        with pytest.raises(BlockError, match="dimension"):
            await shelf.renew(dimension=3, keep=lambda item: False)
        assert dense(await shelf.search(ask("cat", [1.0, 0.0]))) == pytest.approx({"a cat": 1.0, "a dog": 0.0}, abs=2e-3)
        assert await shelf.count() == 2

    async def test_nothing_can_be_made_anew(self, shelf: Shelf) -> None:
        await shelf.renew(dimension=None)
        await shelf.renew(dimension=2, same_model=False)
        assert await shelf.count() == 0
        await shelf.add(said(0, "a cat", [1.0, 0.0]))
        assert await shelf.texts("cat") == ["a cat"]
