"""The names of LangChain's `ConversationBufferMemory` on top of a `Memory`, for chains that take `memory=`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, get_buffer_string
from pydantic import Field

from memory_engine.integrations.langchain.history import MemoryChatMessageHistory
from memory_engine.integrations.langchain.missing import needs
from memory_engine.integrations.langchain.sync import close, run_sync
from memory_engine.memory import Memory

with needs("langchain_classic"):
    from langchain_classic.base_memory import BaseMemory


class ConversationMemory(BaseMemory):
    """A drop-in for `ConversationBufferMemory(...)` with a budget, a database and memory blocks behind it.

    `buffer` is the budgeted context: the newest messages and, as a system message before them, what the blocks know. The
    value of `load_memory_variables`' input is what the blocks search with. The asynchronous methods are the real ones; the
    others may be called where `sync` says, and `close()` closes a memory that was used so.
    """

    memory: Memory = Field(exclude=True, repr=False)
    memory_key: str = "history"
    input_key: str | None = None
    output_key: str | None = None
    return_messages: bool = False
    human_prefix: str = "Human"
    ai_prefix: str = "AI"

    @property
    def memory_variables(self) -> list[str]:
        """The keys that this memory adds to a chain's inputs."""
        return [self.memory_key]

    # -- asynchronous ----------------------------------------------------------------------------------------------

    async def abuffer(self) -> Any:
        """The context: messages with `return_messages`, else a text."""
        return await self.abuffer_as_messages() if self.return_messages else await self.abuffer_as_str()

    async def abuffer_as_messages(self) -> list[BaseMessage]:
        """The context as messages."""
        return await self._messages(None)

    async def abuffer_as_str(self) -> str:
        """The context as a text of lines such as `Human: ...`."""
        return self._text(await self._messages(None))

    async def aload_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """`{memory_key: the context}` for a chain's inputs."""
        messages = await self._messages(self._query(inputs))
        return {self.memory_key: messages if self.return_messages else self._text(messages)}

    async def asave_context(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Store a turn: what was asked and what was answered, in one transaction.

        :raises ValueError: several keys could be meant; set `input_key` or `output_key`.
        """
        question, answer = inputs[self._input_key(inputs)], outputs[self._output_key(outputs)]
        said = question if isinstance(question, BaseMessage) else HumanMessage(content=question)
        replied = answer if isinstance(answer, BaseMessage) else AIMessage(content=answer)
        await MemoryChatMessageHistory(self.memory).aadd_messages([said, replied])

    async def aclear(self) -> None:
        """Delete the session's messages with everything derived from them."""
        await self.memory.reset()

    # -- from synchronous code -------------------------------------------------------------------------------------

    @property
    def buffer(self) -> Any:
        """The context: messages with `return_messages`, else a text."""
        return run_sync(self.memory, self.abuffer)

    @property
    def buffer_as_messages(self) -> list[BaseMessage]:
        """The context as messages."""
        return run_sync(self.memory, self.abuffer_as_messages)

    @property
    def buffer_as_str(self) -> str:
        """The context as a text of lines such as `Human: ...`."""
        return run_sync(self.memory, self.abuffer_as_str)

    def load_memory_variables(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """`{memory_key: the context}` for a chain's inputs."""
        return run_sync(self.memory, lambda: self.aload_memory_variables(inputs))

    def save_context(self, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        """Store a turn; see `asave_context`."""
        run_sync(self.memory, lambda: self.asave_context(inputs, outputs))

    def clear(self) -> None:
        """Delete the session's messages with everything derived from them."""
        run_sync(self.memory, self.aclear)

    def close(self) -> None:
        """Close the memory, if it was used from synchronous code."""
        close(self.memory)

    # -- helpers ---------------------------------------------------------------------------------------------------

    async def _messages(self, query: str | None) -> list[BaseMessage]:
        return await MemoryChatMessageHistory(self.memory, query=query).aget_messages()

    def _text(self, messages: list[BaseMessage]) -> str:
        return get_buffer_string(messages, human_prefix=self.human_prefix, ai_prefix=self.ai_prefix)

    def _input_key(self, inputs: Mapping[str, Any]) -> str:
        if self.input_key is not None:
            return self.input_key
        keys = [key for key in inputs if key not in (*self.memory_variables, "stop")]
        if len(keys) != 1:
            raise ValueError(f"One input key expected got {keys}; set input_key.")
        return keys[0]

    def _output_key(self, outputs: Mapping[str, Any]) -> str:
        if self.output_key is not None:
            return self.output_key
        if len(outputs) == 1:
            return next(iter(outputs))
        if "output" not in outputs:
            raise ValueError(f"One output key expected got {list(outputs)}; set output_key.")
        warnings.warn(f"Of the output keys {list(outputs)} 'output' is stored; set output_key.", stacklevel=4)
        return "output"

    def _query(self, inputs: Mapping[str, Any]) -> str | None:
        """What the blocks search with, where the inputs say it."""
        try:
            value = inputs[self._input_key(inputs)]
        except (KeyError, ValueError):
            return None
        return value if isinstance(value, str) else None
