"""What the blocks say this turn: read all at once, measured as it will be rendered, truncated when the plan asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from memory_engine.binding import Block, bind, can_forget
from memory_engine.block import Erased
from memory_engine.budget import SectionCost
from memory_engine.delivery import describe
from memory_engine.errors import BlockError, BlockResultError, RenderError, StoreError, TokenizerError
from memory_engine.guard import guarded
from memory_engine.messages import (
    AudioBlock,
    ChatMessage,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    VideoBlock,
)
from memory_engine.render import Section, as_history, escape_sections, render, render_section
from memory_engine.session import Core, Session
from memory_engine.store import Cursor, SessionRow, Snapshot, StateRow
from memory_engine.tokens import TokenCounter

_ITEMS = (TextBlock, ImageBlock, AudioBlock, VideoBlock, DocumentBlock)
Content = str | list[ContentBlock] | list[ChatMessage]


@dataclass(slots=True)
class SectionRead:
    """One block's contribution. `asked` and `tokens` are its cost as rendered, whole and now."""

    definition: Block
    lag: int = 0
    attempts: int = 0
    bound: Block | None = None
    content: Content = ""
    items: tuple[ContentBlock, ...] = ()
    messages: tuple[ChatMessage, ...] = ()
    asked: int = 0
    tokens: int = 0
    outcome: str = "whole"
    error: str | None = None
    latency: float = 0.0

    @property
    def name(self) -> str:
        return self.definition.name

    def leave_out(self, outcome: str, error: str | None = None) -> None:
        """Take the section out of the context."""
        self.content, self.items, self.messages, self.tokens = "", (), (), 0
        self.outcome, self.error = outcome, error or self.error


class Sections:
    """The sections of one `get`."""

    def __init__(self, core: Core, session: Session, row: SessionRow | None, snapshot: Snapshot) -> None:
        self._core, self._session, self._row = core, session, row
        self._with_media = True
        cursors = {cursor.block: cursor for cursor in snapshot.cursors}
        self._versions = {state.block: state for state in snapshot.states}
        self.reads = [_unread(definition, cursors.get(name)) for name, definition in core.definitions.items()]

    async def read(
        self,
        *,
        history: Sequence[ChatMessage],
        query: tuple[ChatMessage, ...] | None,
        shown: frozenset[int],
        shown_messages: tuple[ChatMessage, ...],
        room: int,
        block_kwargs: Mapping[str, Any],
    ) -> None:
        """Ask every block at once; one that fails is left out, or raises with `on_block_error="raise"`."""
        messages = [*history, *(query or ())]
        for read in self.reads:
            if self._outdated(read.definition):
                read.leave_out("left out: it is being rebuilt without what was erased")
                continue
            try:
                read.bound = await self._bind(read.definition, room, query=query, shown=shown, shown_messages=shown_messages)
            except StoreError:
                raise
            except Exception as error:  # noqa: BLE001 - restoring state runs the author's validators
                self._failed(read, error)
        results = await asyncio.gather(
            *(self._read_one(read, list(messages), block_kwargs) for read in self.reads if read.bound is not None),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def costs(self) -> tuple[SectionCost, ...]:
        """What the planner needs to know."""
        return tuple(SectionCost(read.name, read.definition.priority, read.tokens) for read in self.reads if read.tokens)

    def rendered(self) -> list[Section]:
        """The sections to render, in the order of the definitions."""
        return [Section(read.name, read.items) for read in self.reads if read.items]

    def messages(self) -> list[ChatMessage]:
        """The messages of sections that are message lists, in the order of the definitions."""
        return [message for read in self.reads for message in read.messages]

    async def cut(self, name: str, tokens: int, reason: str, *, wholly: bool = False) -> None:
        """Make a section cheaper by at least `tokens`, or leave it out (with `wholly` in any case)."""
        read = next(read for read in self.reads if read.name == name)
        if wholly:
            read.leave_out(f"left out: {reason}")
            return
        goal = max(0, read.tokens - tokens)
        missing = tokens
        for _ in range(3):
            if not await self._truncate(read, missing):
                return
            if read.tokens <= goal:
                read.outcome = f"trimmed: {reason}"
                return
            missing = read.tokens - goal
        read.leave_out(f"left out: {reason}, and its atruncate did not free enough")

    def leave_out_media(self) -> bool:
        """Take media out, as no user message is shown that could hold them; whether there were any."""
        self._with_media = False
        changed = [read for read in self.reads if any(_is_media(item) for item in read.items)]
        for read in changed:
            self._measure(read, read.items)
            read.outcome = "trimmed: no user message is shown that could hold its media"
        return bool(changed)

    # -- helpers ---------------------------------------------------------------------------------------------

    def _outdated(self, definition: Block) -> bool:
        """Whether the block still holds what was erased and, as it cannot forget by itself, waits to be rebuilt."""
        version = self._versions.get(definition.name)
        return version is not None and version.pending_erasures > 0 and not can_forget(definition)

    async def _bind(self, definition: Block, room: int, **turn: Any) -> Block:
        """A copy for this turn; `turn` are fields of its context."""
        core = self._core
        context = self._session.context_of(definition, self._row)
        version = self._versions.get(definition.name)
        saved, erasing = StateRow(), ()
        if version is not None:
            if version.version:
                saved = await core.states.read(core.store, version)
            if version.pending_erasures:
                waiting = await core.store.pending_erasures(version.scope_key, definition.name)
                erasing = tuple(Erased(e.session_uid, e.seqs) for e in waiting)  # type: ignore[assignment]
        available = room if definition.max_tokens is None else min(room, definition.max_tokens)
        context = replace(
            context,
            **turn,
            tokens_available=available,
            state_version=saved.version,
            deleted_version=saved.deleted_version,
            erasing=erasing,
            failed_usage=core.worker.failed_usage(context.scope_key, definition.name),
        )
        lease = core.settings.limits.lease
        block, _ = bind(core.store, definition, context, saved, session=self._row, writable=False, lease=lease)
        return block

    async def _read_one(self, read: SectionRead, messages: list[ChatMessage], block_kwargs: Mapping[str, Any]) -> None:
        assert read.bound is not None
        started = time.perf_counter()
        try:
            result = await self._ask(read.bound._aget(messages=messages, **block_kwargs), f"Block {read.name!r}: _aget")
            self._take(read, result)
            read.asked = read.tokens
            await self._bound_size(read)
        except Exception as error:  # noqa: BLE001 - the boundary to code that is not ours
            self._failed(read, error)
        read.latency = time.perf_counter() - started

    async def _ask(self, work: Any, what: str) -> object:
        """Run a block's method under the time limit."""
        try:
            return await guarded(work, seconds=self._core.settings.limits.get, what=what)
        except TokenizerError as error:
            # Its own message speaks of writing; here the block had something counted that is no text.
            raise BlockError(f"{what} could not count: {error}") from error

    async def _bound_size(self, read: SectionRead) -> None:
        limit = read.definition.max_tokens
        if limit is None:
            return
        # A cut counts the tags of items too, so that one frees less of the content itself than was asked.
        for _ in range(10):
            if (size := self._size(read)) <= limit:
                return
            # Blocks cut what they gave; asked for all that escaping adds to it as well, they may have nothing left.
            given = self._size(read, escaped=False)
            await self.cut(read.name, (given if given > limit else size) - limit, f"max_tokens is {limit}")
        if self._size(read) > limit:
            read.leave_out(f"left out: max_tokens is {limit}, and its atruncate did not free enough")

    async def _truncate(self, read: SectionRead, tokens: int) -> bool:
        """Whether the block gave back content; else its section is left out already."""
        assert read.bound is not None
        try:
            result = await self._ask(read.bound.atruncate(read.content, tokens), f"Block {read.name!r}: atruncate")
            if result is None:
                read.leave_out("left out: no room for it")
                return False
            self._take(read, result)
        except Exception as error:  # noqa: BLE001 - as in `_read_one`
            self._failed(read, error)
            return False
        if not read.tokens:
            read.leave_out("left out: no room for it")
        return bool(read.tokens)

    def _failed(self, read: SectionRead, error: Exception) -> None:
        if self._core.settings.on_block_error == "raise":
            if isinstance(error, BlockError):
                raise error
            raise BlockError(f"Block {read.name!r} failed: {describe(error)}") from error
        read.leave_out("left out: the block failed", describe(error))

    def _take(self, read: SectionRead, result: object) -> None:
        """Keep a result and measure it; raises `BlockResultError`."""
        content = _checked(read.name, result)
        read.content = content
        items, messages = _parts(content)
        read.messages = as_history(messages, start_on_user=self._core.settings.start_on_user)
        self._measure(read, items)
        if not read.tokens:
            read.outcome = "empty"

    def _measure(self, read: SectionRead, items: tuple[ContentBlock, ...]) -> None:
        read.items = items if self._with_media else tuple(item for item in items if not _is_media(item))
        read.tokens = self._cost(read)

    def _cost(self, read: SectionRead) -> int:
        """What the section adds to a context, with its tags."""
        counter = self._core.counter
        # At least 1 for what is there, so that it can be cut whatever the tokenizer thinks of it.
        if read.messages:
            return max(1, sum(counter.message(message) for message in read.messages))
        section, tags = Section(read.name, read.items), self._core.definitions
        text = render_section(section, tags=tags)
        tokens = counter.text(text)
        renderer = self._core.settings.renderer
        if renderer is not None and text:
            # What more it costs among others is found on the finished messages, and so is an error; less is found here.
            with suppress(RenderError):
                tokens = min(tokens, counter.text(render((section,), tags=tags, renderer=renderer)))
        media = any(_is_media(item) for item in read.items)
        return max(1, tokens + media_cost(counter, read.items)) if text or media else 0

    def _size(self, read: SectionRead, *, escaped: bool = True) -> int:
        """What the content costs as it is shown, without the tags around it; or as it was given."""
        counter = self._core.counter
        if read.messages:
            return sum(counter.message(message) for message in read.messages)
        section = Section(read.name, read.items)
        shown = escape_sections((section,), tags=self._core.definitions) if escaped else (section,)
        return counter.text("\n".join(one.text for one in shown)) + media_cost(counter, read.items)


def _is_media(item: ContentBlock) -> bool:
    return not isinstance(item, TextBlock)


def media_cost(counter: TokenCounter, items: Sequence[ContentBlock]) -> int:
    """The estimates for the media among the items."""
    media = tuple(item for item in items if _is_media(item))
    if not media:
        return 0
    return counter.message(ChatMessage(role="user", blocks=media)) - counter.message(ChatMessage(role="user", blocks=()))


def _unread(definition: Block, cursor: Cursor | None) -> SectionRead:
    if cursor is None:
        return SectionRead(definition)
    error = cursor.last_error if cursor.attempts or cursor.last_error else None
    return SectionRead(definition, max(0, cursor.target - cursor.cursor), cursor.attempts, error=error)


def _parts(content: Content) -> tuple[tuple[ContentBlock, ...], tuple[ChatMessage, ...]]:
    if isinstance(content, str):
        return ((TextBlock(text=content),) if content.strip() else ()), ()
    messages = tuple(item for item in content if isinstance(item, ChatMessage))
    items = tuple(item for item in content if not isinstance(item, ChatMessage))
    return items, messages


def _checked(name: str, result: object) -> Content:
    if result is None:
        return ""
    if isinstance(result, str):
        try:
            TextBlock(text=result)
        except ValidationError as error:
            raise BlockResultError(
                f"Block {name!r} returned text that cannot be encoded (a lone surrogate); clean it."
            ) from error
        return str(result)
    if isinstance(result, list | tuple):
        if all(isinstance(item, ChatMessage) for item in result) or all(isinstance(item, _ITEMS) for item in result):
            return list(result)
        kinds = sorted({type(item).__name__ for item in result})
        raise BlockResultError(
            f"Block {name!r} returned a list of {kinds}; return text and media blocks, or messages, not both."
        )
    raise BlockResultError(
        f"Block {name!r} returned {type(result).__name__}; return a str, a list of content blocks or of messages."
    )
