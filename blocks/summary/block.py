"""A block that keeps a running summary of what left the FIFO."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from memory_engine import ChatMessage, ContentBlock, TextBlock
from memory_engine.blocks.models.protocol import Prompt
from memory_engine.blocks.summary.pins import fitted, missing, occurring
from memory_engine.blocks.summary.prompts import PROMPT, check_prompt, filled, instructions_of, summary_of, with_pins
from memory_engine.blocks.summary.spans import Span, joined
from memory_engine.blocks.understanding.block import ModelBlock
from memory_engine.blocks.understanding.replies import UnusableReplyError
from memory_engine.blocks.understanding.sentences import clean, one_line
from memory_engine.blocks.understanding.transcript import texts_of
from memory_engine.errors import BlockError
from memory_engine.escaping import escape

log = logging.getLogger("memory_engine.blocks.summary")

_VERSION = "version:"
_ABOUT = 40
"""Tokens that a message has in a prompt besides its text."""
_BEFORE = "before"
"""The record that keeps the spans of versions which are not kept any more."""


@dataclass(frozen=True, slots=True)
class SummaryVersion:
    """How the summary read once. `added` are the messages that this version took in, as (session uid, first seq, behind the
    last); it stands for those of all earlier versions too."""

    number: int
    text: str
    created_at: datetime
    added: tuple[Span, ...]


async def _no_model(prompt: Prompt) -> str:
    raise BlockError("This summary block has no llm; its summarize() must not ask one.")


class SummaryMemoryBlock(ModelBlock):
    """Keeps a running summary of what left the FIFO; each message goes into it once.

    After every `summarize_every` chunks `llm` writes the summary anew, from the one before and what was said since. It never
    has more than `max_summary_tokens`: a longer one is sent back once, then cut at a sentence. What waits for its turn is shown
    as it was said. `memory.block(name)` gives the copy of a scope, with `summary`, `versions()`, `expand()` and `rebuild()`.

    To summarise in another way, override `summarize`; then no `llm` is needed.
    """

    name: str = "ConversationSummary"
    description: str | None = "What was said before, in short."
    priority: int = Field(default=1, ge=0)
    depends_on_query: bool = False

    llm: Any = Field(default=_no_model, exclude=True)
    """The model that writes the summary; see `memory_engine.blocks.models`."""
    max_summary_tokens: int = Field(default=512, gt=0, exclude=True)
    """The most that the summary may have."""
    summarize_every: int = Field(default=1, gt=0, exclude=True)
    """After so many chunks the summary is written anew, earlier if one call could not be given all of them; a chunk has at
    least the flush size of the memory."""
    must_keep: list[str] = Field(default_factory=list, exclude=True)
    """Texts that every summary has word for word once they were said; case and white space do not count."""
    prompt: str = Field(default=PROMPT, exclude=True)
    """What the model is given, with the placeholders `{summary}` and `{new_lines}`."""
    keep_versions: int = Field(default=20, gt=0, exclude=True)
    """So many versions are kept, with the current one."""

    summary: str = ""
    """State: the summary."""
    version: int = 0
    """State: its number; 0 when nothing was summarised yet."""
    waiting: list[Span] = Field(default_factory=list)
    """State: the messages that wait to be summarised."""
    waiting_chunks: int = 0
    """State: in how many chunks they came."""
    waiting_tokens: int = 0
    """State: about how many tokens they have."""
    kept: list[str] = Field(default_factory=list)
    """State: those of `must_keep` that were said."""
    pinned: list[str] = Field(default_factory=list)
    """State: what pinned messages said."""

    @field_validator("must_keep")
    @classmethod
    def _check_must_keep(cls, value: list[str]) -> list[str]:
        pins = [one_line(pin) for pin in value]
        if not all(pins):
            raise ValueError("must_keep is a list of texts, none of them blank")
        return list(dict.fromkeys(pins))

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, value: str) -> str:
        return check_prompt(value)

    @model_validator(mode="after")
    def _can_summarize(self) -> Self:
        if self.llm is _no_model and type(self).summarize is SummaryMemoryBlock.summarize:
            raise ValueError("a summary block needs an llm, or a subclass that overrides summarize()")
        return self

    # -- absorbing -------------------------------------------------------------------------------------------

    async def summarize(self, messages: list[ChatMessage], previous: str) -> str:
        """The summary that replaces `previous` ("" at first) and takes in messages that no summary had before.

        Made to be overridden. Whatever it returns is cut to `max_summary_tokens` and gets back the pins that it lost.

        :raises BlockError: there is none; nothing changes, and the delivery is tried again.
        """
        conversation = (await self.transcript(messages, range(len(messages)))).text
        pins = self._pins()
        instructions = instructions_of(self.max_summary_tokens, pins)
        drafts: list[str] = []

        def read(reply: str) -> str:
            text = summary_of(reply)
            # A custom tokenizer may be slow; beyond this no text has fewer tokens than are allowed.
            tokens = self.context.count(text[: 64 * self.max_summary_tokens + 4096])
            drafts.append(text)
            if tokens > self.max_summary_tokens and len(drafts) == 1:
                raise UnusableReplyError(
                    f"the summary has {tokens} tokens or more, and at most {self.max_summary_tokens} are allowed; write a "
                    "shorter one that keeps what matters most"
                )
            return text

        try:
            data = filled(self.prompt, summary=previous, new_lines=conversation)
            return await self.ask(instructions, with_pins(data, pins), read)
        except BlockError as error:
            # A summary that is too long can be cut; that is better than none.
            if drafts and isinstance(error.__cause__, UnusableReplyError):
                return drafts[-1]
            raise

    async def _aput(self, messages: list[ChatMessage]) -> None:
        if not messages:
            return
        context = self.context
        here: Span = (context.session_uid, context.seqs[0], context.seqs[-1] + 1)
        texts = [text for text in texts_of(messages) if text]
        tokens = sum([context.count(text) + _ABOUT for text in texts])
        if not tokens or not self._is_due(tokens):
            self.waiting = joined(self.waiting, [here])
            self.waiting_chunks += bool(tokens)
            self.waiting_tokens += tokens
            return
        material = [message for _, message in await self._messages(self.waiting)] + messages
        self._note_pins(material)
        self.summary = self._fitted(await self.summarize(material, self.summary))
        await self._keep_version(joined(self.waiting, [here]))
        self.waiting, self.waiting_chunks, self.waiting_tokens = [], 0, 0

    def _is_due(self, tokens: int) -> bool:
        """Whether a chunk of so many tokens is the last to wait for: the next might be more than one call can be given."""
        return self.waiting_chunks + 1 >= self.summarize_every or self.waiting_tokens + 2 * tokens > self.most_input

    def _note_pins(self, messages: Sequence[ChatMessage]) -> None:
        told = texts_of(messages)
        texts = [self.summary, *told]
        self.kept = [*self.kept, *(pin for pin in occurring(self.must_keep, texts) if pin not in self.kept)]
        pinned = [text for message, text in zip(messages, told, strict=True) if message.metadata.get("pinned") is True]
        marked = [one_line(text) for text in pinned]
        self.pinned = list(dict.fromkeys([*self.pinned, *filter(None, marked)]))

    def _pins(self) -> list[str]:
        # What the definition does not ask for any more need not be kept.
        return [pin for pin in self.must_keep if pin in self.kept] + self.pinned

    def _fitted(self, text: object) -> str:
        if not isinstance(text, str) or not (cleaned := clean(text)):
            raise BlockError(f"summarize() of block {self.name!r} returned no text; what was said is kept and tried again.")
        pins, limit = self._pins(), self.max_summary_tokens
        fit = fitted(cleaned, pins, limit=limit, count=self.context.count)
        if lost := missing(pins, fit):
            log.warning("block %r: %d texts to keep have no room in %d tokens", self.name, len(lost), limit)
        return fit

    async def _keep_version(self, added: Sequence[Span]) -> None:
        self.version += 1
        data = {"text": self.summary, "added": list(added), "at": self.context.now.isoformat()}
        self.records.put(f"{_VERSION}{self.version:09d}", data)
        old = [one for one in await self.versions() if one.number <= self.version - self.keep_versions]
        if old:
            before = await self._before()
            for one in old:
                before = joined(before, one.added)
                self.records.delete(f"{_VERSION}{one.number:09d}")
            self.records.put(_BEFORE, before)

    async def _before(self) -> list[Span]:
        record = await self.records.get(_BEFORE)
        return [(uid, start, end) for uid, start, end in record.data] if record is not None else []

    # -- looking back ----------------------------------------------------------------------------------------

    async def versions(self) -> list[SummaryVersion]:
        """The versions that are kept, the oldest first."""
        return [
            SummaryVersion(
                int(record.key.removeprefix(_VERSION)),
                record.data["text"],
                datetime.fromisoformat(record.data["at"]),
                tuple([(uid, start, end) for uid, start, end in record.data["added"]]),
            )
            for record in await self.records.list(_VERSION)
        ]

    async def expand(self, version: int | None = None, *, added: bool = False) -> list[ChatMessage]:
        """The messages that a version (None: the current one) stands for, as they are stored; [] before the first.

        With `added` only those that came with that version.

        :raises LookupError: that version does not exist, or is not kept any more.
        """
        number = self.version if version is None else version
        if number == 0 and version is None:
            return []
        kept = await self.versions()
        found = next((one for one in kept if one.number == number), None)
        if found is None:
            known = f"{kept[0].number} to {kept[-1].number}" if kept else "none"
            raise LookupError(f"The summary has no version {number}; kept are: {known}.")
        spans: list[Span] = list(found.added)
        if not added:
            earlier = [span for one in kept if one.number < number for span in one.added]
            spans = joined(await self._before(), [*earlier, *spans])
        return [message for _, message in await self._messages(spans)]

    async def _messages(self, spans: Sequence[Span]) -> list[tuple[int | None, ChatMessage]]:
        """The messages of spans; each with its seq when it is of the session at hand."""
        found: list[tuple[int | None, ChatMessage]] = []
        for uid, start, end in spans:
            own = uid == self.context.session_uid
            found += [(seq if own else None, message) for seq, message in await self.originals(uid, start, end)]
        return found

    # -- showing ---------------------------------------------------------------------------------------------

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> list[ContentBlock]:
        self.tell()
        items: list[ContentBlock] = []
        if self.summary:
            # Again, because the definition may allow less than when it was written.
            pins = self._pins()
            text = fitted(self.summary, pins, limit=self.max_summary_tokens, count=self.context.count)
            if text:
                items.append(TextBlock(text=text, tag="summary", value=1.0))
            if lost := missing(pins, text):
                self.context.notes.append(f"max_summary_tokens leaves no room for {len(lost)} of the texts that must be kept")
        shown = self.context.shown
        waiting = [(seq, message) for seq, message in await self._messages(self.waiting) if seq is None or seq not in shown]
        told = texts_of([message for _, message in waiting])
        for number, ((seq, message), text) in enumerate(zip(waiting, told, strict=True)):
            if text:
                line = f"{message.name or message.role}: {text}"
                items.append(TextBlock(text=line, tag="message", value=number / len(waiting), seq=seq))
        return items

    async def atruncate(self, content: list[ContentBlock], tokens_to_truncate: int) -> list[ContentBlock] | None:
        """Without the oldest waiting messages, as few as possible; then with the summary cut at a sentence."""
        plain, left = self.context.count, list(content)

        def count(text: str) -> int:
            return plain(escape(text))

        saved = 0
        while saved < tokens_to_truncate:
            place = next((n for n, item in enumerate(left) if getattr(item, "tag", None) == "message"), None)
            if place is None:
                break
            saved += _cost(left.pop(place), count)
        if saved >= tokens_to_truncate or not left:
            return left or None
        text = getattr(left[0], "text", "")
        limit = count(text) - (tokens_to_truncate - saved)
        text = fitted(text, self._pins(), limit=limit, count=count) if limit > 0 else ""
        return [TextBlock(text=text, tag="summary", value=1.0)] if text else None


def _cost(item: ContentBlock, count: Any) -> int:
    text = getattr(item, "text", "")
    # The tags are the renderer's, so they are not escaped.
    return int(count(text)) + int(count("[message][/message]\n"))
