"""The base of blocks that ask a language model while they absorb; while an agent waits they only read what they know."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import Field, PrivateAttr, field_validator

from memory_engine import BaseMemoryBlock, ContentBlock
from memory_engine.blocks.models.caller import ModelCaller
from memory_engine.blocks.models.protocol import Prompt
from memory_engine.blocks.understanding.replies import UnusableReplyError
from memory_engine.errors import BlockError, ConfigurationError
from memory_engine.usage import Usage

R = TypeVar("R")

log = logging.getLogger("memory_engine.blocks.understanding")

_SHOWN = 2_000
"""Characters of an unusable reply that the model is shown again."""


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

    model_calls: int = 0
    """State: how often the model was called for what is stored."""
    model_input_tokens: int = 0
    """State: the tokens that it was given."""
    model_output_tokens: int = 0
    """State: the tokens that it wrote."""

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

    async def ask(self, instructions: str, data: str, read: Callable[[str], R]) -> R:
        """What `read` makes of the model's reply to instructions about data.

        A reply that `read` refuses with `UnusableReplyError` is shown to the model once, with what is wrong.

        :raises BlockUnavailableError: the model is away; the delivery waits.
        :raises BlockError: the model failed, or its second reply was unusable too.
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
        reply = await self._complete(prompt)
        try:
            return read(reply)
        except UnusableReplyError as error:
            raise BlockError(f"The model of block {self.name!r} gave no usable reply, asked twice: {error}.") from error

    async def _complete(self, prompt: Prompt) -> str:
        used = Usage()
        try:
            return await self._asked().complete(prompt, count=self.context.count, usage=used)
        finally:
            self.context.usage.add(used)
            self.model_calls += used.calls
            self.model_input_tokens += used.input_tokens
            self.model_output_tokens += used.output_tokens

    def _asked(self) -> ModelCaller:
        """The caller for the model as it is set now; a copy of the block may have got another one."""
        if self._caller is None or not self._caller.calls(self.llm, self.llm_timeout, self.llm_retries):
            self._caller = ModelCaller(self.llm, timeout=self.llm_timeout, retries=self.llm_retries)
        return self._caller

    def tell_usage(self) -> None:
        """Let the receipt say what the model was asked so far; for `_aget`."""
        self.context.usage.add(Usage(self.model_calls, self.model_input_tokens, self.model_output_tokens))
