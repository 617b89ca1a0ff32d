"""A block that brings back what was said."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import PrivateAttr

from memory_engine import ChatMessage, ContentBlock
from memory_engine.blocks.embedders.protocol import DimensionError
from memory_engine.blocks.vector.hits import Asked, Hit, Postprocessor, best_hits, choice_of, question_of, through
from memory_engine.blocks.vector.query import Query, probe_words, query_of
from memory_engine.blocks.vector.ranking import NO_FLOOR, Ranking, rank
from memory_engine.blocks.vector.section import Section, costs_of, shown_by
from memory_engine.blocks.vector.selection import Filling
from memory_engine.blocks.vector.shown import either, said_by
from memory_engine.blocks.vector.store import Candidates, Item, Probe
from memory_engine.blocks.vector.storing import StoringBlock
from memory_engine.errors import BlockError
from memory_engine.escaping import ROOT_TAG, escape

__all__ = ["Hit", "Postprocessor", "VectorMemoryBlock"]

_CANDIDATES = 200
"""How many items a store that does not look at all of them returns."""
_ROOM = 2_000
"""Tokens of a section whose block is asked without an engine."""
_SMALL = 2_000
"""Up to so many candidates are scored and chosen on the event loop, in little more time than a thread takes to begin."""


class VectorMemoryBlock(StoringBlock):
    """Brings back the stored messages that bear on the question, as they were said, as many as the room holds.

    Without `embed_model` items are found by their words (BM25); with one by words and vectors together. The names of the
    parameters are those of LlamaIndex's block of this name where they mean the same.

    What it shows is chosen by worth per token, written in chronological order, and leaves out what the history shows.
    It shows nothing when the question is about nothing that was said. `memory.block(name)` gives the copy of a scope, with
    `search()`, `add_documents()`, `remove_documents()` and `rebuild()`.
    """

    _section: Section | None = PrivateAttr(default=None)

    # -- recalling -------------------------------------------------------------------------------------------

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> list[ContentBlock]:
        query = query_of(self.context.query, messages or [], self.retrieval_context_window)
        if not query:
            return []
        candidates, ranking = await self._ranked(query)
        if self.floor is not None and not ranking.relevant:
            return []
        scores, least = ranking.scores, self.least_score
        if self.postprocessors:
            hits = await through(self.postprocessors, query[0][0], best_hits(candidates, ranking, self.rerank))
            scores, least = choice_of(hits, candidates.items), 0.0
        if len(candidates.items) <= _SMALL:
            self._section = self._filled(candidates.items, scores, least)
        else:
            self._section = await asyncio.to_thread(self._filled, candidates.items, scores, least)
        return self._section.blocks()

    async def atruncate(self, content: list[ContentBlock], tokens_to_truncate: int) -> list[ContentBlock] | None:
        """Without the items of least worth, as few as possible."""
        section = self._section
        if section is None or content != section.blocks():
            return await super().atruncate(content, tokens_to_truncate)
        section.drop(tokens_to_truncate)
        return section.blocks() or None

    async def search(self, query: Asked, *, limit: int = 10) -> list[Hit]:
        """The best hits for a question, best first, whatever the floor says; for looking, tools and tests.

        :raises ValueError: the question is neither text nor messages, or the limit is no number of hits.
        """
        question = question_of(query)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise ValueError(f"limit is a number of hits, 0 or more, not {limit!r:.80}")
        if not question.strip() or not limit:
            return []
        candidates, ranking = await self._ranked([(question, 1.0)])
        return await through(self.postprocessors, question, best_hits(candidates, ranking, limit))

    async def _ranked(self, query: Query) -> tuple[Candidates, Ranking]:
        probe = Probe(probe_words(query, self._words), await self._query_vector(query[0][0]))
        scope = self._scope()
        try:
            candidates = await self._store.search(scope, probe, limit=_CANDIDATES)
        except DimensionError as error:
            self._note(f"words alone are compared: {error}")
            candidates = await self._store.search(scope, replace(probe, vector=None), limit=_CANDIDATES)
        if candidates.total < self.stored_items and not scope.erasing:
            self._note(
                f"the vector store holds {candidates.total} of {self.stored_items} items; call rebuild() on the bound block"
            )
        elif not candidates.total and not self._own and await self._documents.any():
            # After a reset, until the erasure of what was before has come by.
            self._note("the documents wait to be stored again; rebuild() on the bound block stores them at once")
        ages = None
        if self.weights.half_life is not None:
            now = self.context.now
            ages = np.array([(now - item.at).total_seconds() / 86_400 if item.at else 0.0 for item in candidates.items])
        work = (candidates, list(probe.words.values()), ages, self.weights, self.floor or NO_FLOOR)
        ranking = rank(*work) if len(candidates.items) <= _SMALL else await asyncio.to_thread(rank, *work)
        return candidates, ranking

    async def _query_vector(self, text: str) -> Any:
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
                return await self._embedder.embed_query(text)
        except (BlockError, TimeoutError) as error:
            self._note(f"the query could not be embedded ({str(error) or 'too slow'}): words alone were compared")
            return None

    def _filled(self, items: Sequence[Item], scores: Any, least: float) -> Section:
        context, layout = self.context, self._layout
        filling = Filling(
            items,
            scores,
            limit=self.similarity_top_k,
            least=least,
            layout=layout,
            costs=costs_of(layout, context.count, context.now),
            shown=either(shown_by(context.shown, context.session_uid), said_by(context.shown_messages)),
        )
        section = Section(layout, self._cost)
        section.fill(items, filling, self._room())
        return section

    def _cost(self, text: str) -> int:
        """What a text costs as it is shown: escaped, within its tags."""
        return self.context.count(f"<{self.name}>\n{escape(text, (self.name,))}\n</{self.name}>")

    def _room(self) -> int:
        context = self.context
        around = context.count(f"<{ROOT_TAG}>\n\n</{ROOT_TAG}>")
        available = None if context.tokens_available is None else context.tokens_available - around
        limits = [limit for limit in (available, self.max_tokens) if limit is not None]
        return max(0, min(limits)) if limits else _ROOM
