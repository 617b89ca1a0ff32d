"""The base of blocks that ask a language model while they absorb; while an agent waits they only read what they know."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import Field, PrivateAttr, field_validator

from memory_engine import BaseMemoryBlock, BlockUnavailableError, ChatMessage, ContentBlock
from memory_engine.blocks.models.caller import ModelCaller
from memory_engine.blocks.models.protocol import Prompt
from memory_engine.blocks.understanding.replies import UnusableReplyError
from memory_engine.blocks.understanding.transcript import Transcript, fitting_transcript
from memory_engine.errors import BlockError, ConfigurationError
from memory_engine.usage import Usage

R = TypeVar("R")

log = logging.getLogger("memory_engine.blocks.understanding")

_SHOWN = 2_000
"""Characters of an unusable reply that the model is shown again."""
_LEAST_INPUT = 32_000
"""Tokens of a conversation that one call is given at most, unless chunks are made to be larger."""


class ModelBlock(BaseMemoryBlock[list[ContentBlock]]):
    """A memory block with a language model of its own.

    `llm` is an async function from messages to text, or anything that `memory_engine.blocks.models` can adapt; every block
    takes its own, and none has a default. A model that is away or too slow makes deliveries wait, never an agent.
    """

    llm: Any = Field(exclude=True)
    """The model; see `memory_engine.blocks.models`."""
    llm_timeout: float = Field(default=60.0, gt=0, exclude=True)
    """Seconds for one call."""
    llm_retries: int = Field(default=2, ge=0, exclude=True)
    """How often a call is repeated at once when the model is busy; after that the delivery waits."""
    max_input_tokens: int | None = Field(default=None, ge=200, exclude=True)
    """The most of a conversation that one call is given; None: twice the flush size, at least 32,000. Of messages that are too
    long for it (a step with many results of tools) the middle is left out, which the receipt says."""

    model_calls: int = 0
    """State: how often the model was called for this scope, since its state was last dropped by an erasure."""
    model_input_tokens: int = 0
    """State: the tokens that it was given."""
    model_output_tokens: int = 0
    """State: the tokens that it wrote."""
    model_failed_calls: int = 0
    """State: how many of the calls brought no answer."""
    shortened_messages: int = 0
    """State: of how many messages the model was given only the beginning and the end."""

    _caller: ModelCaller | None = PrivateAttr(default=None)

    @field_validator("llm")
    @classmethod
    def _check_llm(cls, value: Any) -> Any:
        try:
            ModelCaller(value)
        except ConfigurationError as error:
            raise ValueError(str(error)) from error
        return value

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        self._asked()

    async def transcript(self, messages: Sequence[ChatMessage], seqs: Sequence[int]) -> Transcript:
        """The messages as data for the model, not more than `max_input_tokens` of them."""
        found = await asyncio.to_thread(fitting_transcript, messages, seqs, count=self.context.count, limit=self.most_input)
        self.shortened_messages += found.shortened
        return found

    async def ask(self, instructions: str, data: str, read: Callable[[str], R]) -> R:
        """What `read` makes of the model's reply to instructions about data.

        A reply that `read` refuses with `UnusableReplyError` is shown to the model once, with what is wrong.

        :raises BlockUnavailableError: the model is away, or slower than a delivery may take; the delivery waits.
        :raises BlockError: the model failed, or its second reply was unusable too, or there was no time for a second one.
        """
        prompt: Prompt = [{"role": "system", "content": instructions}, {"role": "user", "content": data}]
        reply = await self._complete(prompt)
        try:
            return read(reply)
        except UnusableReplyError as error:
            log.info("block %r asks its model again: %s", self.name, error)
            prompt += [
                {"role": "assistant", "content": reply[:_SHOWN] or "(nothing)"},
                {"role": "user", "content": f"This reply cannot be used: {error}."},
            ]
            unusable = error
        late: BlockUnavailableError | None = None
        try:
            reply = await self._complete(prompt)
        except BlockUnavailableError as error:
            late = error
            deadline = self.context.deadline
            if deadline is None or time.monotonic() < deadline:
                raise
            log.warning("block %r: no time was left to ask the model again: %s", self.name, unusable)
        try:
            # Of the second reply, what is right counts; without one, of the first.
            return read(reply)
        except UnusableReplyError as error:
            asked = "asked twice" if late is None else "and no time was left to ask again (see Limits.delivery, llm_timeout)"
            # Not unavailable, which would be repeated for ever: its first reply may be as useless each time.
            raise BlockError(f"The model of block {self.name!r} gave no usable reply, {asked}: {error}.") from error

    async def rebuild(self) -> None:
        """As `BaseMemoryBlock.rebuild`; what was spent on the model stays counted."""
        async with self.transaction():
            spent = self._spent()
            await super().rebuild()
            self._spend(spent)

    def tell(self) -> None:
        """Let the receipt say what the model was asked so far, and what it was not shown; for `_aget`."""
        self.context.usage.add(self._spent())
        self.context.usage.add(self.context.failed_usage)
        if self.shortened_messages:
            self.context.notes.append(
                f"of {self.shortened_messages} messages the model was given only the beginning and the end, or nothing: "
                "a chunk had more than max_input_tokens"
            )

    async def _complete(self, prompt: Prompt) -> str:
        context = self.context

        async def ask() -> tuple[str, Usage]:
            used = Usage()
            try:
                asked = self._asked()
                return await asked.complete(prompt, count=context.count, usage=used, deadline=context.deadline), used
            finally:
                # In any case: a delivery that fails in the end was paid for too.
                context.usage.add(used)

        reply, told = await context.once(ask)
        self._spend(told)
        return reply

    def _spent(self) -> Usage:
        return Usage(self.model_calls, self.model_input_tokens, self.model_output_tokens, self.model_failed_calls)

    def _spend(self, used: Usage) -> None:
        total = self._spent()
        total.add(used)
        self.model_calls, self.model_failed_calls = total.calls, total.failed
        self.model_input_tokens, self.model_output_tokens = total.input_tokens, total.output_tokens

    @property
    def most_input(self) -> int:
        """How many tokens of a conversation one call is given at most."""
        return self.max_input_tokens or max(_LEAST_INPUT, 2 * (self.context.flush_size or 0))

    def _asked(self) -> ModelCaller:
        """The caller for the model as it is set now; a copy of the block may have got another one."""
        if self._caller is None or not self._caller.calls(self.llm, self.llm_timeout, self.llm_retries):
            self._caller = ModelCaller(self.llm, timeout=self.llm_timeout, retries=self.llm_retries)
        return self._caller
