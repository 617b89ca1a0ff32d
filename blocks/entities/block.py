"""A block that keeps what is known of each person, place and thing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from memory_engine import ChatMessage, ContentBlock, TextBlock
from memory_engine.blocks.entities.entity import Entity, Names, Proof, merged, names_of, newest
from memory_engine.blocks.entities.prompts import Found, data_of, entities_of, instructions_of
from memory_engine.blocks.understanding.block import ModelBlock
from memory_engine.blocks.understanding.held import Held
from memory_engine.blocks.understanding.mentions import Searched, folded, head_of
from memory_engine.blocks.understanding.sentences import cut_at_sentence
from memory_engine.blocks.understanding.transcript import Transcript, texts_of

__all__ = ["Entity", "EntityMemoryBlock"]

_KEY = "entity:"
_HELD: Held[Names] = Held()
_MOST_KNOWN = 30
"""So many known entities are shown to the model beside the conversation."""
_LOOKED_AT = 20_000
"""Characters of a message in which names are looked for while an agent waits."""
_LEAST_NEW = 10
"""How many entities one chunk may bring, however few are kept."""


class EntityMemoryBlock(ModelBlock):
    """Keeps a note on each person, place and thing, and shows the notes on those that are being spoken of.

    `llm` writes the notes when messages leave the FIFO, one call for each chunk. What is shown is found by names and aliases in
    the query and in the recent messages, without any call. `memory.block(name)` gives the copy of a scope, with `entities()`,
    `entity()`, `remove()` and `rebuild()`.
    """

    name: str = "KnownEntities"
    description: str | None = "What is known of those who are mentioned."
    priority: int = Field(default=1, ge=0)

    max_entities: int = Field(default=200, gt=0, exclude=True)
    """So many are kept; of more, those that were mentioned longest ago and seldom are dropped."""
    max_entity_tokens: int = Field(default=120, gt=0, exclude=True)
    """The most that a note may have; a longer one is cut at a sentence."""
    recent_messages: int = Field(default=6, ge=0, exclude=True)
    """In so many of the newest messages, besides the query, names are looked for."""
    guidance: str = Field(default="", exclude=True)
    """What the model is told besides, such as "Only people and companies."."""

    deliveries: int = 0
    """State: how many chunks were read."""
    dropped_entities: int = 0
    """State: how many notes were dropped, or not begun, for want of room."""

    # -- absorbing -------------------------------------------------------------------------------------------

    async def _aput(self, messages: list[ChatMessage]) -> None:
        seqs = self.context.seqs[: len(messages)]
        transcript = await self.transcript(messages, seqs)
        if transcript.empty:
            return
        known = await self._known()
        texts = dict(zip(seqs, await asyncio.to_thread(_searched, messages), strict=True))
        mentioned = await asyncio.to_thread(_mentioned, known, list(texts.values()))
        # A conversation goes on about whom it was about with "he" and "they": those of the chunk before are shown too.
        shown = [entity for key, entity in known.items() if key in mentioned or entity.seen == self.deliveries]
        shown = sorted(shown, key=lambda entity: (entity.key not in mentioned, -entity.seen, entity.key))[:_MOST_KNOWN]
        instructions = instructions_of(self.max_entity_tokens, self.guidance)
        last = len(transcript.seqs)
        found = await self.ask(instructions, data_of(shown, transcript.text), lambda reply: entities_of(reply, last))
        self.deliveries += 1
        seen = {key: replace(known[key], seen=self.deliveries) for key in mentioned}
        proven = self._proven(found, transcript, texts)
        entities = merged(known | seen, proven, most_new=max(_LEAST_NEW, self.max_entities // 2))
        kept = newest(entities, self.max_entities)
        taken = set().union(*[entity.keys for entity in entities.values()]) if entities else set()
        ignored = {one.key for one in proven} - taken
        self.dropped_entities += len(entities) - len(kept) + len(ignored)
        self._write(known, kept)

    def _proven(self, found: Sequence[Found], transcript: Transcript, texts: Mapping[int, Searched]) -> list[Entity]:
        """Those that a message of this chunk stands for: one that it names as its proof, or else one that names it."""
        proven: list[Entity] = []
        for one in found:
            seqs = [transcript.seqs[number] for number in one.numbers]
            if not seqs:
                names = [(key, head_of(key)) for key in map(folded, (one.name, *one.aliases))]
                seqs = [seq for seq, text in texts.items() if any(text.mentions(*name) for name in names)]
            text = cut_at_sentence(one.text, self.max_entity_tokens, self.context.count)
            if seqs and text:
                proofs: list[Proof] = [(self.context.session_uid, seq) for seq in seqs]
                proven.append(Entity(one.name, text, one.kind, one.aliases, tuple(proofs), self.deliveries))
        return proven

    def _write(self, before: Mapping[str, Entity], after: Mapping[str, Entity]) -> None:
        for key in before.keys() - after.keys():
            self.records.delete(_KEY + key)
        for key, entity in after.items():
            if before.get(key) != entity:
                uid, seq = entity.messages[-1]
                # With the only message that it came from, the record goes in the same transaction.
                only = seq if len(entity.messages) == 1 else None
                self.records.put(_KEY + key, entity.to_json(), seq=only, session_uid=uid)

    async def _known(self) -> dict[str, Entity]:
        return {
            record.key.removeprefix(_KEY): Entity.from_json(record.data)
            for record in await self.records.list(_KEY)
            if record.data is not None
        }

    # -- showing ---------------------------------------------------------------------------------------------

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> list[ContentBlock]:
        self.tell()
        if self.dropped_entities:
            self.context.notes.append(f"{self.dropped_entities} notes were dropped so far, max_entities is {self.max_entities}")
        asked = _text_of(self.context.query or ())
        newest_messages = (messages or [])[-self.recent_messages - len(self.context.query or ()) :]
        recent = _text_of(newest_messages) if self.recent_messages else asked
        if not recent.text and not asked.text:
            return []
        items: list[tuple[float, Entity]] = []
        for entity, names in await self._names():
            worth = entity.seen / (1 + self.deliveries)
            if any([asked.mentions(*name) for name in names]):
                items.append((1 + worth, entity))
            elif any([recent.mentions(*name) for name in names]):
                items.append((worth, entity))
        items.sort(key=lambda item: (-item[0], item[1].key))
        return [TextBlock(text=entity.line, tag="entity", value=value) for value, entity in items]

    async def _names(self) -> Names:
        held = _HELD.get(self.records, self.context, self.name)
        if held is not None:
            return held
        known = (await self._known()).values()
        # Folding takes longer than looking for a name.
        return _HELD.put(self.records, self.context, self.name, await asyncio.to_thread(names_of, known))

    # -- by hand ---------------------------------------------------------------------------------------------

    async def entities(self) -> list[Entity]:
        """All that are known, those mentioned last first."""
        return list(newest(await self._known(), self.max_entities).values())

    async def entity(self, name: str) -> Entity | None:
        """The one with that name or alias, whatever its case; None when nothing is known of it."""
        key, known = folded(name), await self._known()
        return known.get(key) or next((entity for entity in known.values() if key in entity.keys), None)

    async def remove(self, name: str) -> bool:
        """Drop what is known of one, by name or alias; whether there was any. The messages stay, and may bring it back."""
        async with self.transaction():
            entity = await self.entity(name)
            if entity is not None:
                self.records.delete(_KEY + entity.key)
        return entity is not None


def _text_of(messages: Sequence[ChatMessage]) -> Searched:
    return Searched.of("\n".join([text[:_LOOKED_AT] for text in texts_of(messages)]))


def _searched(messages: Sequence[ChatMessage]) -> list[Searched]:
    return [Searched.of(text) for text in texts_of(messages)]


def _mentioned(known: Mapping[str, Entity], texts: Sequence[Searched]) -> set[str]:
    """The keys of those that a text names."""
    return {
        entity.key
        for entity, names in names_of(known.values())
        if any(text.mentions(*name) for text in texts for name in names)
    }
