"""Calling a model on behalf of a block: in time, again when it was only busy, and counted."""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import Callable
from typing import Any

from memory_engine import BlockUnavailableError
from memory_engine.blocks.models.protocol import Completion, Prompt, adapt
from memory_engine.blocks.services.failures import asked_to_wait, translate
from memory_engine.blocks.services.loading import Worker, is_async
from memory_engine.errors import BlockResultError
from memory_engine.usage import Usage

FIRST_PAUSE = 0.5
"""Seconds before the first repetition when the service does not say."""
LONGEST_REPLY = 400_000
"""Characters of an answer that are kept: more is no answer to what blocks ask."""

pause = asyncio.sleep


class ModelCaller:
    """A model as blocks use it. It may be shared by blocks and by memories.

    `timeout` and `max_wait` are seconds: for one call, and for the longest pause before a repetition. A call that fails
    because the service is busy or away is repeated `retries` times, after the time that the service asks for if it says so.
    """

    def __init__(self, llm: Any, *, timeout: float = 60.0, retries: int = 2, max_wait: float = 20.0) -> None:
        self._given, self._model = llm, adapt(llm)
        self._who = f"The model {_name(llm)}"
        self._timeout, self._retries, self._max_wait = timeout, retries, max_wait
        self._worker: Worker | None = None

    def __deepcopy__(self, memo: object) -> ModelCaller:
        # Copies of a block share the model.
        return self

    def calls(self, llm: Any, timeout: float, retries: int) -> bool:
        """Whether it calls exactly that model in that way."""
        return self._given is llm and (self._timeout, self._retries) == (timeout, retries)

    async def complete(
        self, prompt: Prompt, *, count: Callable[[str], int], usage: Usage, deadline: float | None = None
    ) -> str:
        """The answer to a prompt; every call is counted in `usage`, with `count` where the model does not say its tokens.

        Nothing goes on beyond `deadline`, by the clock of `time.monotonic()`.

        :raises BlockUnavailableError: the model does not answer, or not now.
        :raises BlockResultError: it answered with something that is no text.
        :raises BlockError: any other failure.
        """
        attempt = 0
        while True:
            if deadline is not None and time.monotonic() >= deadline:
                raise BlockUnavailableError(f"{self._who} was not asked: no time is left.")
            usage.calls += 1
            try:
                completion = await self._once(prompt, self._seconds(deadline))
            except Exception as error:  # noqa: BLE001 - models are code of others, and their clients have errors of their own
                usage.failed += 1
                translated = translate(error, self._who)
                wait = asked_to_wait(error)
                own = FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1)
                pausing = min(own if wait is None else wait, self._max_wait)
                again = attempt < self._retries and (wait is None or wait <= self._max_wait)
                again = again and (deadline is None or time.monotonic() + pausing < deadline)
                if not isinstance(translated, BlockUnavailableError) or not again:
                    if isinstance(translated, BlockUnavailableError) and wait is not None:
                        translated.retry_after = wait
                    raise translated from (None if translated is error else error)
                await pause(pausing)
                attempt += 1
                continue
            told, answered = completion.input_tokens, completion.output_tokens
            usage.input_tokens += sum(count(one["content"]) for one in prompt) if told is None else told
            usage.output_tokens += count(completion.text) if answered is None else answered
            return completion.text

    def _seconds(self, deadline: float | None) -> float:
        return self._timeout if deadline is None else max(0.0, min(self._timeout, deadline - time.monotonic()))

    async def _once(self, prompt: Prompt, seconds: float) -> Completion:
        # A copy, because some models write into what they are given.
        messages: Prompt = [{"role": one["role"], "content": one["content"]} for one in prompt]
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                answer: Any
                if is_async(self._model):
                    answer = self._model(messages)
                else:
                    if self._worker is None:
                        self._worker = Worker("model")
                    answer = await self._worker.run(self._model, messages)
                if inspect.isawaitable(answer):
                    answer = await answer
        except TimeoutError as error:
            if not limit.expired():
                raise  # it gave up by itself
            raise BlockUnavailableError(f"{self._who} did not answer within {seconds:g} seconds.") from error
        completion = answer if isinstance(answer, Completion) else Completion(answer)
        if not isinstance(completion.text, str):
            raise BlockResultError(f"{self._who} answered with {type(completion.text).__name__}; it must return a str.")
        text = completion.text[:LONGEST_REPLY].encode("utf-8", "replace").decode("utf-8")
        return Completion(text, completion.input_tokens, completion.output_tokens)


def _name(llm: Any) -> str:
    if isinstance(llm, str):
        return llm
    for attribute in ("model_name", "model", "__qualname__"):
        name = getattr(llm, attribute, None)
        if isinstance(name, str) and name:
            return name
    return type(llm).__name__
