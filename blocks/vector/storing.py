"""What a block for recall stores and forgets: messages and documents as items in its vector store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memory_engine import ChatMessage
from memory_engine.blocks.embedders.protocol import CachedEmbedder, DimensionError
from memory_engine.blocks.vector.documents import TOGETHER, Document, Documents, documents_of, ids_of, passages_of
from memory_engine.blocks.vector.entries import Line, entries_of, followers_of, off_loop, preceding_items
from memory_engine.blocks.vector.held import Held
from memory_engine.blocks.vector.options import RecallOptions
from memory_engine.blocks.vector.records import RecordsVectorStore
from memory_engine.blocks.vector.store import Entry, Item, Scope, VectorStore
from memory_engine.blocks.vector.transcript import message_items, splitter

log = logging.getLogger("memory_engine.blocks.vector")

_RECORDS = RecordsVectorStore()
"""The default store: one cache of a process, whatever the number of blocks."""


class StoringBlock(RecallOptions):
    """A block that keeps messages and documents as items; what it shows of them is decided elsewhere."""

    stored_items: int = 0
    """State: how many items the store should hold."""
    stored_model: str | None = None
    """State: the identity of the model that the stored vectors are of."""

    # -- absorbing -------------------------------------------------------------------------------------------

    async def _aput(self, messages: list[ChatMessage]) -> None:
        context = self.context
        items = await off_loop(
            sum(len(message.content) for message in messages),
            message_items,
            messages,
            context.seqs,
            session_uid=context.session_uid,
            session_id=context.session_id,
            count=context.count,
            item_tokens=self.item_tokens,
            split=splitter(self.item_tokens, context.count),
        )
        if not items:
            return
        scope, first = self._scope(), context.seqs[0]
        await self._begin()
        before: Sequence[Item] = ()
        if self._embedder is not None and self.preceding:
            before = await preceding_items(self._store, scope, context.session_uid, first)
        await self._add(Line([*before, *items], range(len(before), len(before) + len(items))))
        if not self._own:
            self._held.add(context.session_uid, first, items)
        self.stored_items += len(items)

    async def _add(self, line: Line) -> None:
        """Store items; with words alone if their vectors have another dimension than those that are there."""
        embedder, scope = await self._comparable(), self._scope()
        try:
            await self._store.add(scope, await self._entries(line, embedder))
        except DimensionError as error:
            if embedder is None:
                raise
            log.warning("block %r stores items with their words alone: %s", self.name, error)
            await self._store.add(scope, await self._entries(line, None))

    async def _entries(self, line: Line, embedder: CachedEmbedder | None) -> list[Entry]:
        share = self.preceding_share
        return await entries_of(line, words=self._words, embedder=embedder, preceding=self.preceding, share=share)

    async def _begin(self) -> None:
        """Before anything is written: after a reset the documents are there, and an outside store has nothing of them."""
        if self._own or self.stored_items:
            return
        if self.scope == "session":
            await self._held.clear()
        await self._add_passages(await self._documents.all())

    async def _comparable(self) -> CachedEmbedder | None:
        """The embedder, if its vectors may be added: until a `rebuild()` not to those of another one."""
        embedder = self._embedder
        if embedder is None:
            return None
        if self.stored_model in (None, embedder.identity) or await self._store.count(self._scope()) == 0:
            self.stored_model = embedder.identity
            return embedder
        return None

    async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        scope = self._scope()
        if seqs is not None and not seqs:
            # After a reset the documents are there; what an outside store had of them went with the old scope.
            await self._begin()
            if self._own:
                self.stored_items = await self._store.count(scope)
            return
        if seqs is None and self.scope == "session":
            # The scope ends with its session; what is left in it would never be found again.
            session_uid = None
        followers: list[Line] = []
        if self._embedder is not None and self.preceding and session_uid is not None and seqs is not None:
            followers = await followers_of(self._store, scope, session_uid, seqs)
        await self._store.remove(scope, session_uid, seqs)
        for line in followers:
            await self._add(line)
        if self._own:
            # The records of erased messages are gone already when the items are records.
            self.stored_items = await self._store.count(scope)
        else:
            struck = await self._held.strike(session_uid, seqs)
            self.stored_items = max(0, self.stored_items - struck)

    # -- knowledge -------------------------------------------------------------------------------------------

    async def add_documents(
        self, texts: str | Sequence[str], metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> list[str]:
        """Remember texts that are no conversation; returns their ids, for `remove_documents`.

        They are cut into passages of `document_tokens` and found like messages. No flush and no erasing of messages or
        sessions touches them; in a block of scope "session" they go with their session. `metadata` is one JSON object for
        all texts or one for each; its `id`, a text or a whole number, makes adding a text again replace it.

        :raises ValueError: a text is blank or no text, or metadata or an id cannot be stored; nothing was written.
        """
        given = await asyncio.to_thread(documents_of, texts, metadata)
        async with self.transaction():
            # Ids made here are new; of texts with the same id, the last one counts.
            await self._begin()
            await self._remove_documents(list(dict.fromkeys(one.id for one in given if one.metadata.get("id") is not None)))
            latest = {one.id: one for one in given}
            await self._documents.put(latest.values())
            await self._add_passages(list(latest.values()))
        return [one.id for one in given]

    async def remove_documents(self, documents: str | Sequence[str] | None = None) -> int:
        """Forget documents by id (one or several), None: all of them. Returns how many there were.

        :raises ValueError: it is neither an id nor ids.
        """
        ids = ids_of(documents)
        async with self.transaction():
            return await self._remove_documents(ids)

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
            await self._held.clear()
            self.stored_items = 0
            self.stored_model = self._embedder.identity if self._embedder else None
            await self._add_passages(await self._documents.all())
            self._bound().absorb_again(keep_fields=True)

    async def _expected(self) -> Callable[[Item], bool]:
        """Whether an item should be in an outside store, by what was committed."""
        if self._own:
            return lambda item: True
        spans, documents = await self._held.spans(), set(await self._documents.ids())

        def expected(item: Item) -> bool:
            if item.kind == "document":
                return item.document in documents
            return (item.seq, item.last_seq) in spans.get(item.session_uid or "", ())

        return expected

    async def _add_passages(self, documents: Sequence[Document]) -> None:
        context = self.context
        for start in range(0, len(documents), TOGETHER):
            some = documents[start : start + TOGETHER]
            items = await asyncio.to_thread(passages_of, some, context.now, count=context.count, tokens=self.document_tokens)
            await self._add(Line(items, range(len(items))))
            self.stored_items += len(items)

    async def _remove_documents(self, documents: Sequence[str] | None) -> int:
        known = await self._documents.ids(documents)
        if known:
            removed = await self._store.remove_documents(self._scope(), None if documents is None else known)
            self.stored_items = max(0, self.stored_items - removed)
        for document in known:
            self._documents.delete(document)
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

    @property
    def _held(self) -> Held:
        return Held(self.records)

    @property
    def _documents(self) -> Documents:
        return Documents(self.records)

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

    def _note(self, note: str) -> None:
        self.context.notes.append(note)
        log.warning("block %r: %s", self.name, note)
