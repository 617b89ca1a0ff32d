"""A block that brings back what was said."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import string
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any
from uuid import uuid4

import numpy as np
from pydantic import Field, PrivateAttr, field_validator

from memory_engine import BaseMemoryBlock, BlockUnavailableError, ChatMessage, ContentBlock, TextBlock
from memory_engine.blocks.embedders.protocol import CachedEmbedder, as_embedder
from memory_engine.blocks.vector.ranking import NO_FLOOR, Floor, Ranking, Weights, rank
from memory_engine.blocks.vector.records import RecordsVectorStore
from memory_engine.blocks.vector.selection import Costs, Filling
from memory_engine.blocks.vector.store import Candidates, Entry, Item, Probe, Scope, VectorStore, follows
from memory_engine.blocks.vector.transcript import (
    PLAIN,
    Layout,
    Line,
    document_items,
    lines,
    message_items,
    speaker,
    spoken,
)
from memory_engine.blocks.vector.words import Words

log = logging.getLogger("memory_engine.blocks.vector")

_RECORDS = RecordsVectorStore()
"""The default store: one cache of a process, whatever the number of blocks."""
_CONTEXT_CHARACTERS = 400
"""Of each message before an item so much is embedded with it: models read a few hundred tokens, the item comes last."""
_PROBE_WORDS = 48
"""Words of a query that are looked for; the rest of a longer one says little more."""
_CANDIDATES = 200
"""How many items a store that does not look at all of them returns."""
_SMALL = 2_000
"""Up to so many candidates are scored on the event loop, in less time than a thread would take to begin."""
_WRAPPING = 16
"""Tokens for the tags around a section."""
_SPARE = 40
"""Tokens of room that are worth another filling."""
_FILLINGS = 3
_OVERESTIMATE = 1.03
_TOGETHER = 100
"""Documents that are cut and embedded together."""
_HELD = "held:"
"""Records of what an outside store should hold: the first and last seq of each item, by session and delivery."""
_FIELDS = {"speaker", "text", "role", "name", "time", "session_id", "metadata"}


@dataclass(frozen=True, slots=True)
class Hit:
    """An item that may be shown: its final score and, for what it is worth, its lexical score and cosine similarity."""

    item: Item
    score: float
    lexical: float = 0.0
    dense: float | None = None


Postprocessor = Callable[[str, list[Hit]], "list[Hit] | Awaitable[list[Hit]]"]


class VectorMemoryBlock(BaseMemoryBlock[list[ContentBlock]]):
    """Brings back the stored messages that bear on the question, as they were said, as many as the room holds.

    Without `embed_model` items are found by their words (BM25); with one by words and vectors together. The names of the
    parameters are those of LlamaIndex's block of this name where they mean the same.

    What it shows is chosen by worth per token, written in chronological order, and leaves out what the history shows.
    It shows nothing when the question is about nothing that was said. `memory.block(name)` gives the copy of a scope, with
    `search()`, `add_documents()`, `remove_documents()` and `rebuild()`.
    """

    name: str = "RetrievedMessages"
    description: str | None = "What was said before and bears on the question."
    priority: int = Field(default=2, ge=0)

    vector_store: Any = Field(default=None, exclude=True)
    """A `VectorStore`; None: the database of the memory itself."""
    embed_model: Any = Field(default=None, exclude=True)
    """An async function from a list of texts to vectors, an adapter of `memory_engine.blocks.embedders`, or embeddings of
    LlamaIndex or LangChain; None: words alone."""
    postprocessors: list[Any] = Field(default_factory=list, exclude=True)
    """Functions `(query, hits) -> hits`, async or not, over the best `rerank` hits: rerankers, thresholds, filters."""
    rerank: int = Field(default=100, gt=0)
    """How many of the best hits `postprocessors` get; the others are left out when there are any."""

    similarity_top_k: int | None = Field(default=None, gt=0)
    """At most so many items; None: as many as the room holds."""
    retrieval_context_window: int = Field(default=5, gt=0)
    """When `get` has no query, the last so many messages of user and assistant are the query, the newest counting most."""
    format_template: str = PLAIN
    """How an item is written, with the fields speaker, text, role, name, time, session_id and metadata."""
    time_format: str = "[%Y-%m-%d %H:%M]"
    """A strftime format, written above the items of one time; "" for none."""
    time_resolution: float = Field(default=600.0, gt=0)
    """Seconds within which items share one time."""
    language: str = "english"
    """Of the words: a language with a Snowball stemmer ("german", "de" …), or "none"."""
    weights: Weights = Weights()
    """How scores are made; see `Weights`."""
    floor: Floor | None = Floor()
    """When nothing is shown at all; None: never."""
    least_score: float = Field(default=0.02, ge=0, le=1)
    """Items below this part of the best score are left out however much room there is."""
    preceding: int = Field(default=2, ge=0, le=8)
    """So many messages before an item are embedded with it, so that "yes, on Friday" is found by what it answers."""
    preceding_share: float = Field(default=0.7, ge=0, le=1)
    """The share of that vector in an item's vector; the rest is that of the item alone."""
    item_tokens: int = Field(default=1024, gt=0)
    """Messages above it become several items."""
    document_tokens: int = Field(default=256, gt=0)
    """Passages of documents are that long at most."""
    embed_timeout: float = Field(default=5.0, gt=0)
    """Seconds that `get` waits for the vector of a query before it goes on with words alone."""

    stored_items: int = 0
    """State: how many items the store should hold."""
    stored_model: str | None = None
    """State: the identity of the model that the stored vectors are of."""

    _embedder: CachedEmbedder | None = PrivateAttr(default=None)
    _words: Words | None = PrivateAttr(default=None)
    _shown: tuple[tuple[Item, float], ...] = PrivateAttr(default=())
    _lines: Sequence[Line] = PrivateAttr(default=())
    _tokens: int = PrivateAttr(default=0)

    @field_validator("vector_store")
    @classmethod
    def _check_store(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, VectorStore):
            raise ValueError(
                f"vector_store must be a VectorStore such as QdrantVectorStore(client), not {type(value).__name__}; "
                "or leave it out to use the database of the memory"
            )
        return value

    @field_validator("format_template")
    @classmethod
    def _check_template(cls, value: str) -> str:
        used = {name for _, name, _, _ in string.Formatter().parse(value) if name is not None}
        if "text" not in used or not used <= _FIELDS:
            raise ValueError(f"format_template must contain {{text}} and may use {sorted(_FIELDS)}, not {sorted(used)}")
        return value

    def model_post_init(self, context: Any, /) -> None:
        # Definitions make them, their copies share them: models, caches and stemmers are made once.
        super().model_post_init(context)
        self._words = Words(self.language)
        if self.embed_model is not None:
            self._embedder = as_embedder(self.embed_model)

    # -- absorbing -------------------------------------------------------------------------------------------

    async def _aput(self, messages: list[ChatMessage]) -> None:
        context = self.context
        items = message_items(
            messages,
            context.seqs,
            session_uid=context.session_uid,
            session_id=context.session_id,
            count=context.count,
            item_tokens=self.item_tokens,
            split=_splitter(self.item_tokens, context.count),
        )
        if not items:
            return
        scope, first = self._scope(), context.seqs[0]
        if not self._own and not self.stored_items:
            await self._begin()
        before: Sequence[Item] = ()
        if self._embedder is not None and self.preceding:
            before = await self._store.items(scope, context.session_uid, max(0, first - 8), first - 1)
        await self._store.add(scope, await self._entries(items, before))
        if not self._own:
            # Shared: an erasure must still find it, to take it off the list together with the items.
            held = [[item.seq, item.last_seq] for item in items]
            self.records.put(f"{_HELD}{context.session_uid}:{first:016d}", held, shared=True)
        self.stored_items += len(items)

    async def _entries(self, items: Sequence[Item], before: Sequence[Item]) -> list[Entry]:
        """Items with their words and, if there is an embedder, their vectors; `before` are those that precede the first."""
        assert self._words is not None
        words = [self._words.count(spoken(item)) for item in items]
        if self._embedder is None or not await self._comparable():
            return [Entry(item, count) for item, count in zip(items, words, strict=True)]
        alone = [spoken(item) for item in items]
        line = [*before, *items]
        within = [self._with_preceding(line, index) for index in range(len(before), len(line))]
        # One call for all texts of a flush.
        texts = list(dict.fromkeys([*alone, *within]))
        rows = dict(zip(texts, await self._embedder.embed(texts), strict=True))
        share = self.preceding_share
        vectors = [_unit((1 - share) * rows[a] + share * rows[w]) for a, w in zip(alone, within, strict=True)]
        return [Entry(*each) for each in zip(items, words, vectors, strict=True)]

    async def _begin(self) -> None:
        """What an outside store needs when it has nothing of the scope: after a reset the documents are there without it."""
        if self.scope == "session":
            async for page in self.records.pages(_HELD):
                for record in page:
                    self.records.delete(record.key)
        await self._add_every_document()

    async def _comparable(self) -> bool:
        """Whether vectors of this model may be added: until a `rebuild()` not to those of another one."""
        assert self._embedder is not None
        if self.stored_model in (None, self._embedder.identity) or await self._store.count(self._scope()) == 0:
            self.stored_model = self._embedder.identity
            return True
        return False

    def _with_preceding(self, line: Sequence[Item], index: int) -> str:
        item = line[index]
        first = index
        while first > max(0, index - self.preceding) and follows(line[first - 1], line[first]):
            first -= 1
        return "\n".join([*(spoken(other)[:_CONTEXT_CHARACTERS] for other in line[first:index]), spoken(item)])

    async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        scope = self._scope()
        if seqs is None and self.scope == "session":
            # The scope ends with its session; what is left in it would never be found again.
            session_uid = None
        followers = await self._followers(scope, session_uid, seqs)
        await self._store.remove(scope, session_uid, seqs)
        for item, preceding in followers:
            await self._store.add(scope, await self._entries([item], preceding))
        if self._own:
            # The records of erased messages are gone already when the items are records.
            self.stored_items = await self._store.count(scope)
        else:
            await self._strike(session_uid, seqs)

    async def _strike(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        """Take what was erased off the list of what an outside store should hold.

        By the list, not by what the store holds before and after: an erasure may be repeated that was cut off half way, and a
        store that lost items earlier must go on being noticed.
        """
        gone = None if seqs is None else set(seqs)
        async for page in self.records.pages(_HELD if session_uid is None else f"{_HELD}{session_uid}:"):
            for record in page:
                left = [] if gone is None else [span for span in record.data if gone.isdisjoint(range(span[0], span[1] + 1))]
                self.stored_items = max(0, self.stored_items - (len(record.data) - len(left)))
                if not left:
                    self.records.delete(record.key)
                elif len(left) < len(record.data):
                    self.records.put(record.key, left, shared=True)

    async def _followers(
        self, scope: Scope, session_uid: str | None, seqs: Sequence[int] | None
    ) -> list[tuple[Item, list[Item]]]:
        """Items whose vectors were made with an erased message before them, and what precedes them without it."""
        if self._embedder is None or session_uid is None or seqs is None or not self.preceding:
            return []
        gone, found = set(seqs), {}
        for seq in sorted(gone):
            for item in await self._store.items(scope, session_uid, max(0, seq - 8), seq + 8):
                found[item.key] = item
        line = [item for key, item in sorted(found.items()) if gone.isdisjoint(range(item.seq or 0, (item.last_seq or 0) + 1))]
        touched = []
        for index, item in enumerate(line):
            if any(0 < (item.seq or 0) - seq <= 8 for seq in gone):
                touched.append((item, line[max(0, index - self.preceding) : index]))
        return touched

    # -- recalling -------------------------------------------------------------------------------------------

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> list[ContentBlock]:
        query = self._query(messages or [])
        if not query:
            return []
        candidates, ranking = await self._ranked(query)
        if self.floor is not None and not ranking.relevant:
            return []
        candidates, scores = await self._postprocessed(query, candidates, ranking)
        self._fill(candidates.items, scores)
        return self._section()

    async def atruncate(self, content: list[ContentBlock], tokens_to_truncate: int) -> list[ContentBlock] | None:
        """Without the items of least worth, as few as possible."""
        if content != self._section():
            return await super().atruncate(content, tokens_to_truncate)
        self._drop(tokens_to_truncate)
        return self._section() or None

    async def search(self, query: str, *, limit: int = 10) -> list[Hit]:
        """The best hits for a question, best first, whatever the floor says; for looking, tools and tests."""
        if not query.strip():
            return []
        candidates, ranking = await self._ranked([(query, 1.0)])
        hits = _hits(candidates, ranking, limit)
        return await self._through(query, hits) if self.postprocessors else hits

    def _query(self, messages: Sequence[ChatMessage]) -> list[tuple[str, float]]:
        """Texts to look for, the most important first, each with its weight."""
        asked = self.context.query
        if asked is not None:
            text = "\n".join(filter(None, (message.content.strip() for message in asked)))
            return [(text, 1.0)] if text else []
        talk = [m.content for m in messages if m.role in ("user", "assistant") and m.content.strip() and not m.tool_calls]
        latest = talk[-self.retrieval_context_window :][::-1]
        # The newest user message is what is being answered; what led to it says what it is about.
        users = [m.content for m in messages if m.role == "user" and m.content.strip()]
        if users and users[-1] in latest:
            latest.remove(users[-1])
            latest.insert(0, users[-1])
        return [(text, 0.5**place) for place, text in enumerate(latest)]

    async def _ranked(self, query: Sequence[tuple[str, float]]) -> tuple[Candidates, Ranking]:
        probe = Probe(self._probe_words(query), await self._query_vector(query))
        scope = self._scope()
        candidates = await self._store.search(scope, probe, limit=_CANDIDATES)
        if candidates.total < self.stored_items and not scope.erasing:
            note = f"the vector store holds {candidates.total} of {self.stored_items} items; call rebuild() on the bound block"
            self.context.notes.append(note)
            log.warning("block %r: %s", self.name, note)
        ages = None
        if self.weights.half_life is not None:
            now = self.context.now
            ages = np.array([(now - item.at).total_seconds() / 86_400 if item.at else 0.0 for item in candidates.items])
        work = (candidates, list(probe.words.values()), ages, self.weights, self.floor or NO_FLOOR)
        ranking = rank(*work) if len(candidates.items) <= _SMALL else await asyncio.to_thread(rank, *work)
        return candidates, ranking

    def _probe_words(self, query: Sequence[tuple[str, float]]) -> Mapping[str, float]:
        assert self._words is not None
        words: dict[str, float] = {}
        for text, weight in query:
            for word in self._words.content(text):
                if len(words) < _PROBE_WORDS:
                    words.setdefault(word, weight)
        return words

    async def _query_vector(self, query: Sequence[tuple[str, float]]) -> Any:
        if self._embedder is None:
            return None
        if self.stored_model is not None and self.stored_model != self._embedder.identity:
            self._note(
                f"items were embedded by {self.stored_model}, not by {self._embedder.identity}: words alone are compared; "
                "call rebuild() on the bound block"
            )
            return None
        try:
            async with asyncio.timeout(self.embed_timeout):
                return await self._embedder.embed_query(query[0][0])
        except (BlockUnavailableError, TimeoutError) as error:
            self._note(f"the query could not be embedded ({str(error) or 'too slow'}): words alone were compared")
            return None

    def _note(self, note: str) -> None:
        self.context.notes.append(note)
        log.warning("block %r: %s", self.name, note)

    async def _postprocessed(
        self, query: Sequence[tuple[str, float]], candidates: Candidates, ranking: Ranking
    ) -> tuple[Candidates, Any]:
        if not self.postprocessors:
            return candidates, ranking.scores
        hits = await self._through(query[0][0], _hits(candidates, ranking, self.rerank))
        places = {item.key: index for index, item in enumerate(candidates.items)}
        scores = np.zeros(len(candidates.items))
        for hit in hits:
            if hit.item.key in places:
                scores[places[hit.item.key]] = hit.score
        return candidates, scores

    async def _through(self, query: str, hits: list[Hit]) -> list[Hit]:
        for postprocess in self.postprocessors:
            result = postprocess(query, hits)
            hits = list(await result) if inspect.isawaitable(result) else list(result)
        return hits

    def _is_shown(self) -> Callable[[Item], bool]:
        """Whether history shows a message of an item."""
        shown, uid = self.context.shown, self.context.session_uid
        if not shown:
            return lambda item: False

        def is_shown(item: Item) -> bool:
            if item.seq is None or item.last_seq is None or item.session_uid != uid:
                return False
            return not shown.isdisjoint(range(item.seq, item.last_seq + 1))

        return is_shown

    def _room(self) -> int:
        available = self.context.tokens_available
        limits = [limit for limit in (available, self.max_tokens) if limit is not None]
        return max(0, min(limits) - _WRAPPING - self.context.count(self.name)) if limits else 2_000

    def _layout(self) -> Layout:
        return Layout(self.format_template, self.time_format, self.time_resolution)

    def _costs(self, layout: Layout) -> Costs:
        count = self.context.count

        @cache
        def line(who: str) -> int:
            return count(layout.written(Item(key="", text="", name=who), "")) + 1

        # Times cost about the same whatever they say; the text as a whole is counted in the end.
        header = count(self.context.now.strftime(self.time_format)) + 1 if self.time_format else 0
        return Costs(
            line=lambda item: 1 if item.kind == "document" else line(speaker(item)),
            header=lambda item: 0 if item.at is None or item.kind == "document" else header,
        )

    def _fill(self, items: Sequence[Item], scores: Any) -> None:
        """Choose what to show. The cost of each item alone is an estimate; the text as a whole is counted."""
        layout, room = self._layout(), self._room()
        costs = self._costs(layout)
        filling = Filling(
            items,
            scores,
            limit=self.similarity_top_k,
            least=self.least_score,
            layout=layout,
            costs=costs,
            shown=self._is_shown(),
        )
        # Lines cost a little less together than one by one: with this much more, one count is mostly enough.
        spare = room * _OVERESTIMATE
        for _ in range(_FILLINGS):
            before = len(filling.chosen)
            filling.extend(spare)
            if len(filling.chosen) == before:
                break
            # In the order of the conversation; the first chosen are worth most.
            worths = {index: float(-place) for place, index in enumerate(filling.chosen)}
            self._show([(items[index], worths[index]) for index in sorted(filling.chosen)])
            spare = room - self._tokens
            if filling.exhausted or spare < _SPARE + room // 25:
                break
        if self._tokens > room:
            self._drop(self._tokens - room)

    def _show(self, shown: Sequence[tuple[Item, float]]) -> None:
        self._shown = tuple(shown)
        self._lines = lines(self._shown, self._layout())
        self._tokens = self.context.count("\n".join([line.text for line in self._lines]))

    def _section(self) -> list[ContentBlock]:
        return [TextBlock(text=line.text, value=line.value, seq=line.seq) for line in self._lines]

    def _drop(self, tokens: int) -> None:
        """Leave out the items of least worth, as few as it takes for the text to cost that many tokens less."""
        everything, goal = sorted(self._shown, key=lambda pair: -pair[1]), self._tokens - tokens

        def fits(size: int) -> bool:
            least = everything[size - 1][1] if size else math.inf
            self._show([pair for pair in shown if pair[1] >= least])
            return self._tokens <= goal

        # Mostly a few are enough; the text is counted for each attempt.
        shown, gone = self._shown, 1
        while gone < len(everything) and not fits(len(everything) - gone):
            gone *= 2
        low, high = max(0, len(everything) - gone), len(everything) - gone // 2 - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        fits(low)

    # -- knowledge -------------------------------------------------------------------------------------------

    async def add_documents(
        self, texts: Sequence[str], metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> list[str]:
        """Remember texts that are no conversation; returns their ids, for `remove_documents`.

        They are cut into passages of `document_tokens` and found like messages. No flush and no erasing of messages or
        sessions touches them; in a block of scope "session" they go with their session. `metadata` is one JSON object for
        all texts or one for each; its `id` makes adding a text again replace it.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        each = [metadata or {}] * len(texts) if metadata is None or isinstance(metadata, Mapping) else list(metadata)
        if len(each) != len(texts):
            raise ValueError(f"{len(texts)} texts with {len(each)} metadata; give one object for all or one for each")
        documents = [str(data.get("id") or uuid4().hex) for data in each]
        async with self.transaction():
            # Ids made here are new; of texts with the same id, the last one counts.
            await self._remove_documents(list(dict.fromkeys(str(data["id"]) for data in each if data.get("id"))))
            latest = dict(zip(documents, zip(texts, map(dict, each), strict=True), strict=True))
            for document, (text, data) in latest.items():
                self.records.put(f"document:{document}", {"text": text, "metadata": data}, shared=True)
            added = [(document, text, data) for document, (text, data) in latest.items()]
            for start in range(0, len(added), _TOGETHER):
                await self._add_passages(added[start : start + _TOGETHER])
        return documents

    async def remove_documents(self, documents: Sequence[str] | None = None) -> int:
        """Forget documents by id, None: all of them. Returns how many there were."""
        async with self.transaction():
            return await self._remove_documents(documents)

    async def rebuild(self) -> None:
        """Store everything of this scope anew: for a store that was lost or restored, or another embedding model.

        Meanwhile what is stored goes on being found, by words alone if the model is another. It returns when the deliveries
        are due; `drain()` waits for them. What an old backup brought back of erased messages is removed.

        :raises BlockError: the store cannot take vectors of this dimension; nothing was changed.
        """
        async with self.transaction():
            dimension = None if self._embedder is None else len((await self._embedder.embed([self.name]))[0])
            same = self._embedder is None or self.stored_model in (None, self._embedder.identity)
            await self._store.renew(self._scope(), dimension=dimension, same_model=same, keep=await self._expected())
            async for page in self.records.pages(_HELD):
                for record in page:
                    self.records.delete(record.key)
            self.stored_items = 0
            self.stored_model = self._embedder.identity if self._embedder else None
            await self._add_every_document()
            self._bound().absorb_again(keep_fields=True)

    async def _expected(self) -> Callable[[Item], bool]:
        """Whether an item should be in an outside store, by what was committed."""
        if self._own:
            return lambda item: True
        spans: dict[str, set[tuple[int, int]]] = {}
        async for page in self.records.pages(_HELD):
            for record in page:
                uid = record.key.removeprefix(_HELD).partition(":")[0]
                spans.setdefault(uid, set()).update((first, last) for first, last in record.data)
        documents = {r.key.removeprefix("document:") async for page in self.records.pages("document:") for r in page}

        def expected(item: Item) -> bool:
            if item.kind == "document":
                return item.document in documents
            return (item.seq, item.last_seq) in spans.get(item.session_uid or "", ())

        return expected

    async def _add_every_document(self) -> None:
        # Read before anything is written, because each page is compared with all that was written.
        records = [record async for page in self.records.pages("document:", size=_TOGETHER) for record in page]
        for start in range(0, len(records), _TOGETHER):
            some = [(r.key.removeprefix("document:"), r.data) for r in records[start : start + _TOGETHER]]
            await self._add_passages([(document, data["text"], data["metadata"]) for document, data in some])

    async def _add_passages(self, documents: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
        """Store the passages of documents, each an id, a text and metadata; embedded together."""
        count, now = self.context.count, self.context.now
        split = _splitter(self.document_tokens, count)

        def passages() -> list[Item]:
            each = (document_items(document, text, data, now, count=count, split=split) for document, text, data in documents)
            return list(chain.from_iterable(each))

        items = await asyncio.to_thread(passages)
        await self._store.add(self._scope(), await self._entries(items, ()))
        self.stored_items += len(items)

    async def _remove_documents(self, documents: Sequence[str] | None) -> int:
        if documents is None:
            known = [record.key.removeprefix("document:") async for page in self.records.pages("document:") for record in page]
        else:
            known = [document for document in documents if await self.records.get(f"document:{document}") is not None]
        if known:
            removed = await self._store.remove_documents(self._scope(), None if documents is None else known)
            self.stored_items = max(0, self.stored_items - removed)
        for document in known:
            self.records.delete(f"document:{document}")
        return len(known)

    # -- helpers ---------------------------------------------------------------------------------------------

    @property
    def _store(self) -> VectorStore:
        store: VectorStore = _RECORDS if self.vector_store is None else self.vector_store
        return store

    @property
    def _own(self) -> bool:
        """Whether items are committed together with the cursor, so that they cannot be lost by themselves."""
        return isinstance(self._store, RecordsVectorStore)

    def _scope(self) -> Scope:
        context = self.context
        return Scope(
            tenant=context.tenant,
            key=context.scope_key,
            block=self.name,
            records=self.records,
            version=context.state_version,
            deleted_version=context.deleted_version,
            erasing=context.erasing,
        )


def _hits(candidates: Candidates, ranking: Ranking, limit: int) -> list[Hit]:
    best = np.argsort(-ranking.scores, kind="stable")[:limit]
    return [
        Hit(
            candidates.items[index],
            float(ranking.scores[index]),
            float(ranking.lexical[index]),
            None if candidates.dense is None else float(candidates.dense[index]),
        )
        for index in best.tolist()
        if ranking.scores[index] > 0
    ]


def _unit(vector: Any) -> Any:
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


def _splitter(tokens: int, count: Callable[[str], int]) -> Callable[[str], list[str]]:
    def split(text: str) -> list[str]:
        from semantic_text_splitter import TextSplitter

        # Not trimmed: passages put together are the text.
        return list(TextSplitter.from_callback(count, tokens, trim=False).chunks(text))

    return split
