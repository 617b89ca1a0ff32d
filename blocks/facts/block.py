"""A block that learns facts, corrects them, and knows which messages prove them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from pydantic import BaseModel, Field, field_validator, model_validator

from memory_engine import ChatMessage, ContentBlock, TextBlock
from memory_engine.block import Erased, Record
from memory_engine.blocks.facts.changes import Chunk, apply, condense
from memory_engine.blocks.facts.entries import CURRENT, Entry, Proof, Row, ended_key, entries_of, rows_of
from memory_engine.blocks.facts.ledger import Fact, Ledger, fact_id
from memory_engine.blocks.facts.profile import fields_of, instance_of, patch, read_patches, values_of
from memory_engine.blocks.facts.prompts import (
    FACT_CONDENSE_PROMPT,
    FACT_EXTRACTION_PROMPT,
    MERGES_FORMAT,
    OPERATIONS_FORMAT,
    PROFILE_FORMAT,
    PROFILE_PROMPT,
    checked_prompt,
    data_of,
    filled,
)
from memory_engine.blocks.facts.replies import LONGEST_FACT, Patience, Reply, read_operations, text_of
from memory_engine.blocks.facts.worth import best, worths
from memory_engine.blocks.understanding.block import ModelBlock
from memory_engine.blocks.understanding.held import Held
from memory_engine.blocks.understanding.sentences import clean
from memory_engine.blocks.understanding.transcript import Transcript, said
from memory_engine.errors import BlockError

log = logging.getLogger("memory_engine.blocks.facts")

_LEAST_NEW = 50
"""How many new facts one chunk may bring, however few are shown."""
_MANY = 1_000
"""Records that are read off the event loop."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What holds in a scope, for those who only read, and what of it is shown."""

    ledger: Ledger
    chosen: tuple[Entry, ...]
    sentences: int
    """How many facts in words hold."""


_HELD: Held[_Known] = Held()


class FactExtractionMemoryBlock(ModelBlock):
    """Remembers facts, one call of a model for each delivered chunk: new ones, corrected ones, withdrawn ones.

    Each fact knows the messages that prove it, from when to when it held, and what took its place. The section has the facts
    that hold, `history()` all of them. What one chunk may change is limited, so that no reply can wipe the list; a reply that
    cannot be used changes nothing. When messages are deleted, facts that they alone prove are gone, and what they had ended
    holds again. When there are more than `max_facts`, the same call is asked to merge some; what a merge replaces stays in the
    history. Meanwhile only the `max_facts` of the greatest worth are shown.

    With `schema`, a pydantic model, the block keeps one profile of that type instead of sentences; see `profile()`.
    `memory.block(name)` gives the copy of a scope, with `facts()`, `history()`, `remember()`, `forget_fact()`.
    """

    longest_fact: ClassVar[int] = LONGEST_FACT
    """Characters that a fact may have."""

    name: str = "ExtractedFacts"
    priority: int = Field(default=1, ge=0)
    depends_on_query: bool = False
    max_facts: int = Field(default=50, ge=1, exclude=True)
    """How many facts are shown at most."""
    profile_schema: type[BaseModel] | None = Field(default=None, alias="schema", exclude=True)
    """The type of the profile; as an argument it is called `schema`."""
    fact_extraction_prompt_template: str | None = Field(default=None, exclude=True)
    """The instructions for a chunk, with `{reply_format}`, for a profile also `{fields}`; None: those of this package."""
    fact_condense_prompt_template: str = Field(default=FACT_CONDENSE_PROMPT, exclude=True)
    """What is added to them when there are too many facts, with `{max_facts}` and `{reply_format}`."""

    next_fact: int = 1
    """State: the number of the next fact; none is used twice."""
    condensings: int = 0
    """State: how many of the calls were asked to merge facts too."""
    ignored_parts: int = 0
    """State: how many parts of replies were not carried out; the log says why."""

    @field_validator("profile_schema")
    @classmethod
    def _check_schema(cls, value: type[BaseModel] | None) -> type[BaseModel] | None:
        if value is not None and not json.loads(fields_of(value)).get("properties"):
            raise ValueError(f"schema={value.__name__} has no fields")
        return value

    @field_validator("fact_condense_prompt_template")
    @classmethod
    def _check_condensing(cls, value: str) -> str:
        return checked_prompt(value, ("max_facts", "reply_format"), "fact_condense_prompt_template")

    @model_validator(mode="after")
    def _check_extraction(self) -> FactExtractionMemoryBlock:
        template = self.fact_extraction_prompt_template
        if template is not None:
            required = ("reply_format",) if self.profile_schema is None else ("reply_format", "fields")
            checked_prompt(template, required, "fact_extraction_prompt_template")
        return self

    # -- absorbing -------------------------------------------------------------------------------------------

    async def _aput(self, messages: list[ChatMessage]) -> None:
        transcript = await self.transcript(messages, self.context.seqs)
        if transcript.empty:
            return
        before = await self._records(CURRENT)
        ledger = await self._ledger(before)
        chunk = self._chunk(messages, transcript)
        if self.profile_schema is None:
            ignored = await self._learn(ledger, transcript, chunk)
        else:
            ignored = await self._fill_in(ledger, self.profile_schema, transcript, chunk)
        self.ignored_parts += len(ignored)
        for reason in ignored:
            log.warning("block %r ignores a part of a reply: %s", self.name, reason)
        self._save(ledger, before)

    async def _learn(self, ledger: Ledger, transcript: Transcript, chunk: Chunk) -> list[str]:
        current = [entry for entry in ledger.current if entry.field is None]
        # However many there are, the prompt is bounded.
        shown = best(current, 2 * self.max_facts, transcript.text)
        instructions = filled(self.fact_extraction_prompt_template or FACT_EXTRACTION_PROMPT, reply_format=OPERATIONS_FORMAT)
        full = len(current) > self.max_facts
        if full:
            self.condensings += 1
            instructions += "\n\n" + filled(
                self.fact_condense_prompt_template,
                reply_format=MERGES_FORMAT,
                max_facts=self.max_facts,
                fact_count=len(current),
            )

        async def numbers_shown() -> list[int]:
            return [entry.number for entry in shown]

        # The reply is about the facts that the model was shown, also when others hold by the time it is carried out.
        numbers = await self.context.once(numbers_shown)
        if await self._erased([number for number in numbers if not ledger.holds(number)]):
            # It may repeat what is to be forgotten.
            self.context.answers.forget()
            numbers = [entry.number for entry in shown]
        reply = await self.ask(instructions, data_of(shown, transcript.text), Patience(read_operations))
        ignored = [*reply.wrong]
        ignored += apply(ledger, reply.found, chunk, shown=numbers, most_new=max(_LEAST_NEW, self.max_facts))
        if full:
            ignored += condense(ledger, reply.merges, shown=numbers, max_facts=self.max_facts, since=chunk.end)
        return ignored

    async def _erased(self, numbers: Sequence[int]) -> bool:
        """Whether one of these facts did not only end, but is not in the history either."""
        for number in numbers:
            if not await self.records.list(ended_key(number), limit=1):
                return True
        return False

    async def _fill_in(self, ledger: Ledger, schema: type[BaseModel], transcript: Transcript, chunk: Chunk) -> list[str]:
        template = self.fact_extraction_prompt_template or PROFILE_PROMPT
        instructions = filled(template, reply_format=PROFILE_FORMAT, fields=fields_of(schema))
        known = ledger.values()
        read: Patience[Any] = Patience(partial(read_patches, schema=schema, known=known), empty_is_fine=True)
        reply: Reply[Any] = await self.ask(instructions, data_of(known.values(), transcript.text), read)
        return [*reply.wrong, *patch(ledger, reply.found, chunk)]

    def _chunk(self, messages: Sequence[ChatMessage], transcript: Transcript) -> Chunk:
        context = self.context
        by_seq = dict(zip(context.seqs, messages, strict=True))
        proofs = {n: Proof(by_seq[seq].id, context.session_uid, seq) for n, seq in transcript.seqs.items()}
        return Chunk(proofs, {n: by_seq[seq].created_at or context.now for n, seq in transcript.seqs.items()})

    async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        before = await self._records()
        ledger = await self._ledger(before)
        ledger.erase(Erased(session_uid, None if seqs is None else tuple(seqs)).covers)
        self._save(ledger, before)

    # -- recalling -------------------------------------------------------------------------------------------

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> list[ContentBlock]:
        self.tell()
        if self.ignored_parts:
            self.context.notes.append(f"{self.ignored_parts} parts of replies were ignored so far, the log says why")
        known = await self._holding()
        if self.profile_schema is not None:
            profile = values_of(known.ledger.values().values(), self.profile_schema)
            return [TextBlock(text=f"{field}: {_shown(value)}", tag="fact") for field, value in profile.items()]
        chosen = known.chosen
        if beyond := known.sentences - len(chosen):
            self.context.notes.append(f"{beyond} facts beyond max_facts are not shown")
        # What is shown and in which order depends on the facts alone; the query says what goes first if it must be cut.
        about = "\n".join(said(message) for message in self.context.query or (messages or [])[-1:])
        pairs = zip(chosen, worths(chosen, about), strict=True)
        return [TextBlock(text=entry.text or "", tag="fact", value=worth) for entry, worth in pairs]

    async def facts(self) -> list[Fact]:
        """The facts that hold, oldest first, also those for which there is no room in the section."""
        known = await self._holding()
        return [fact for fact in known.ledger.facts() if fact.valid_to is None]

    async def history(self) -> list[Fact]:
        """Every fact that was ever known and is still proven, oldest first, with when it ended and what took its place."""
        return (await self._read()).facts()

    async def profile(self) -> BaseModel | dict[str, Any]:
        """The profile as an instance of `schema`; a dict of what is known while required fields are missing, or a validator of
        the schema refuses them together.

        :raises BlockError: this block has no schema.
        """
        if self.profile_schema is None:
            raise BlockError(f"The block {self.name!r} keeps facts, no profile; construct it with schema=, or use facts().")
        values = values_of((await self._holding()).ledger.values().values(), self.profile_schema)
        instance = instance_of(values, self.profile_schema)
        return values if instance is None else instance

    # -- by hand ---------------------------------------------------------------------------------------------

    async def remember(self, text: str) -> Fact:
        """Add a fact that no message proves, such as one that a user entered. Returns it, or the one that says the same.

        It stays until it is corrected or forgotten; in a block of scope "session" it goes with the session, also by `reset`.

        :raises ValueError: the text is blank or has more than 500 characters.
        :raises BlockError: this block keeps a profile.
        """
        if self.profile_schema is not None:
            raise BlockError(f"The block {self.name!r} keeps a profile of type {self.profile_schema.__name__}, no sentences.")
        try:
            line = text_of(text)
        except ValueError as error:
            raise ValueError(f"The fact {error}.") from None
        async with self.transaction():
            before = await self._records(CURRENT)
            ledger = await self._ledger(before)
            number = ledger.add(line, [self._hand], self.context.now)
            self._save(ledger, before)
            [fact] = [fact for fact in ledger.facts() if fact.id == fact_id(number)]
            return fact

    async def forget_fact(self, fact: str, *, erase: bool = False) -> bool:
        """End a fact by its id, such as "f12"; whether there was one that holds. An unknown id changes nothing.

        It stays in the history; with `erase` it is removed from there too, with every other version of it, also if it ended
        before. The messages that prove it stay: a `rebuild()` learns it again unless they are deleted.
        """
        async with self.transaction():
            before = await self._records("" if erase else CURRENT)
            ledger = await self._ledger(before)
            known = [entry for entry in ledger.entries.values() if entry.text is not None] if erase else ledger.current
            number = next((entry.number for entry in known if fact_id(entry.number) == fact), None)
            if number is None:
                return False
            if erase:
                ledger.drop(number)
            else:
                ledger.retract(number, [self._hand], self.context.now)
            self._save(ledger, before)
            return True

    async def rebuild(self) -> None:
        """Forget what was made of the messages of this scope and absorb them again; what was entered by hand stays.

        What was forgotten by hand comes back if a message still says it. For another model or prompt. It returns when the
        deliveries are due; `drain()` waits for them.
        """
        async with self.transaction():
            before = await self._records()
            ledger = await self._ledger(before)
            ledger.erase(lambda uid, seq: seq is not None)
            self._save(ledger, before)
            self.condensings = 0
            self._bound().absorb_again(keep_fields=True)

    # -- storage ---------------------------------------------------------------------------------------------

    @property
    def _hand(self) -> Proof:
        """What stands for somebody who enters a fact. It goes with the session if the whole scope does."""
        return Proof(None, self.context.session_uid if self.scope == "session" else None, None)

    async def _records(self, prefix: str = "") -> list[Record]:
        return [record async for page in self.records.pages(prefix) for record in page]

    async def _ledger(self, records: Sequence[Record]) -> Ledger:
        if len(records) > _MANY:
            return await asyncio.to_thread(_ledger_of, records, self.next_fact)
        return _ledger_of(records, self.next_fact)

    async def _read(self, prefix: str = "") -> Ledger:
        """For readers: without what is being erased and is not forgotten yet."""
        erasing = self.context.erasing
        records = [
            record
            for record in await self._records(prefix)
            if not any(erased.covers(record.session_uid, record.seq) for erased in erasing)
        ]
        return await self._ledger(records)

    async def _holding(self) -> _Known:
        """What holds, read again only when something changed."""
        held = _HELD.get(self.records, self.context, self.name)
        # Another definition of this name may show more or fewer.
        if held is not None and len(held.chosen) == min(self.max_facts, held.sentences):
            return held
        ledger = await self._read(CURRENT)
        current = [entry for entry in ledger.current if entry.field is None]
        chosen = tuple(await asyncio.to_thread(best, current, self.max_facts))
        return _HELD.put(self.records, self.context, self.name, _Known(ledger, chosen, len(current)))

    def _save(self, ledger: Ledger, before: Sequence[Record]) -> None:
        """Write what differs. Every record hands on the message that it belongs to, which may be one of another session."""
        stored: Mapping[str, Row] = {record.key: (record.data, record.seq, record.session_uid) for record in before}
        rows = rows_of(ledger.entries.values(), [entry.number for entry in ledger.current])
        for key in stored.keys() - rows.keys():
            self.records.delete(key)
        for key, row in rows.items():
            if stored.get(key) != row:
                data, seq, session_uid = row
                self.records.put(key, data, seq=seq, session_uid=session_uid, shared=session_uid is None)
        self.next_fact = ledger.next_number


def _ledger_of(records: Sequence[Record], next_number: int) -> Ledger:
    return Ledger(entries_of(records), next_number)


def _shown(value: Any) -> str:
    return clean(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
