"""Blocks that were written for LlamaIndex, as blocks of ours."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any, cast
from uuid import uuid4

from llama_index.core.base.llms.types import ChatMessage as TheirMessage
from llama_index.core.memory.memory import BaseMemoryBlock as TheirBlock
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import BaseComponent
from pydantic import BaseModel, Field

from memory_engine.block import BaseMemoryBlock
from memory_engine.content import TextBlock
from memory_engine.errors import BlockDefinitionError, BlockResultError, BlockStateError
from memory_engine.integrations.llama_index.content import read_block, write_block
from memory_engine.integrations.llama_index.messages import from_llama_index, to_llama_index
from memory_engine.messages import ChatMessage

_BASE = frozenset(TheirBlock.model_fields)
_FACT = re.compile(r"<fact>(.*?)</fact>", re.DOTALL)
_FACTS = re.compile(r"(?:<fact>(?:(?!<fact>).)*?</fact>\s*)+", re.DOTALL)
_VALUES = (type(None), str, int, float, bytes, Enum)


class LlamaIndexBlock(BaseMemoryBlock[Any]):
    """A block of LlamaIndex's `BaseMemoryBlock`, used as one of ours: `LlamaIndexBlock(block=their_block)`.

    Name, description, priority and `accept_short_term_memory` are those of the block unless given. Its fields that hold
    plain values (JSON, or pydantic models) are its state: what `_aput` changes in them is saved for the scope and restored,
    exactly once for each message. Fields that hold models, stores and other components are shared and never saved. The
    block object itself is never changed, so that it may serve any number of sessions.

    As `session_id` it is given an id of the scope (session, user or all), which nobody else's scope has: what it writes to an
    outside store under this id is found there again, and by nobody else. It happens at least once. When messages are erased the
    block begins anew, absorbs what is left, and has another id: what it wrote before stays in the store and is not found.

    :raises BlockDefinitionError: `block` is no block of LlamaIndex.
    """

    block: Any = Field(exclude=True)
    state: dict[str, Any] = Field(default_factory=dict)
    generation: str = ""
    """Given by the first delivery and gone with the rest of the state: without it a block that was rebuilt would find what
    it had written before, erased messages among it, and find twice what it absorbs again."""

    def __init__(self, block: TheirBlock[Any], **fields: Any) -> None:
        if not isinstance(block, TheirBlock):
            raise BlockDefinitionError(f"LlamaIndexBlock wraps a block of LlamaIndex, not {block!r:.80}.")
        given = {name: getattr(block, name) for name in ("description", "priority", "accept_short_term_memory")}
        given["name"] = re.sub(r"[^A-Za-z0-9_.-]", "_", re.sub(r"^[^A-Za-z]+", "", block.name))[:64]
        super().__init__(**{"block": block} | given | fields)

    async def _aget(self, messages: Sequence[ChatMessage] | None = None, **block_kwargs: Any) -> Any:
        theirs = to_llama_index(messages or ())
        content = await self._copy().aget(theirs, **block_kwargs | {"session_id": self._scope_id})
        return _ours(self.name, content)

    async def _aput(self, messages: Sequence[ChatMessage]) -> None:
        self.generation = self.generation or uuid4().hex
        block = self._copy()
        before = _plain(block)
        private = self.block.__pydantic_private__ or {}
        await block.aput(to_llama_index(messages), from_short_term_memory=True, session_id=self._scope_id)
        for name, value in (block.__pydantic_private__ or {}).items():
            if _is_plain(value) and value != private.get(name):
                raise BlockStateError(f"The private attribute {name!r} of block {self.name!r} changed and would be lost.")
        self.state = self.state | {name: value for name, value in _plain(block).items() if before.get(name) != value}

    async def atruncate(self, content: Any, tokens_to_truncate: int) -> Any:
        """What the block's own `atruncate` leaves; one that has none of its own is shortened as ours are."""
        if type(self.block).atruncate is TheirBlock.atruncate:
            return await super().atruncate(content, tokens_to_truncate)
        left = await self._copy().atruncate(_theirs(content), tokens_to_truncate)
        return None if left is None else _ours(self.name, left)

    @property
    def _scope_id(self) -> str:
        return hashlib.sha256(f"{self.context.scope_key}\0{self.generation}".encode()).hexdigest()[:32]

    def _copy(self) -> TheirBlock[Any]:
        """Their block with what is saved, whose fields may be changed."""
        block: TheirBlock[Any] = self.block.model_copy()
        for name in _own_fields(block):
            value = getattr(block, name)
            block.__dict__[name] = copy.deepcopy(value) if _is_plain(value) else copy.copy(value) if _is_list(value) else value
        private = block.__pydantic_private__ or {}
        private.update({name: copy.deepcopy(value) for name, value in private.items() if _is_plain(value)})
        for name, value in self.state.items():
            if name in type(block).model_fields:
                type(block).__pydantic_validator__.validate_assignment(block, name, value)
        return block


def as_block(block: Any) -> BaseMemoryBlock[Any]:
    """A block of ours: itself, or a wrapper around one of LlamaIndex's; the engine refuses anything else by name."""
    return LlamaIndexBlock(block) if isinstance(block, TheirBlock) else cast("BaseMemoryBlock[Any]", block)


def _own_fields(block: TheirBlock[Any]) -> list[str]:
    return [name for name, field in type(block).model_fields.items() if name not in _BASE and not field.exclude]


def _plain(block: TheirBlock[Any]) -> dict[str, Any]:
    """The JSON of the fields that hold plain values."""
    names = {name for name in _own_fields(block) if _is_plain(getattr(block, name))}
    dumped: dict[str, Any] = block.model_dump(mode="json", include=names, warnings="error")
    return dumped


def _is_plain(value: object) -> bool:
    """Whether JSON can hold it: no client, model, store, template or function, and nothing that contains one."""
    if isinstance(value, _VALUES) or value.__class__.__module__ in ("datetime", "uuid", "decimal"):
        return True
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    if isinstance(value, BaseModel) and not isinstance(value, BaseComponent | BasePromptTemplate):
        return all(map(_is_plain, value.__dict__.values()))
    return False


def _is_list(value: object) -> bool:
    return isinstance(value, list | dict | set)


def _ours(name: str, content: Any) -> Any:
    if not content:
        return ""
    if isinstance(content, str):
        # Inside of a text, tags of ours are made harmless; the facts of their block are items.
        return [TextBlock(text=fact, tag="fact") for fact in _FACT.findall(content)] if _FACTS.fullmatch(content) else content
    if isinstance(content, list) and all(isinstance(item, TheirMessage) for item in content):
        return from_llama_index(content)
    if not isinstance(content, list):
        raise BlockResultError(f"Block {name!r} returned {type(content).__name__}; a str or a list is expected.")
    blocks: list[Any] = []
    for item in content:
        read_block(item, blocks)
    return blocks


def _theirs(content: Any) -> Any:
    if isinstance(content, str):
        return content
    if all(isinstance(item, ChatMessage) for item in content):
        return to_llama_index(content)
    return [write_block(item, {}) for item in content]
