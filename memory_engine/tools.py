"""Memory as tools that a model calls by itself: to remember, to search what is remembered, and to forget.

The tools belong to one memory: whose memory it is cannot be said in their arguments. What goes wrong comes back as text that
the model can act on, never as an exception.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from memory_engine.errors import ConfigurationError, MemoryEngineError
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage

log = logging.getLogger("memory_engine.tools")

_LONGEST = 2_000
"""Characters of a text to remember or to look for; a model that wants more is repeating the conversation."""
_SHOWN = 500
"""Characters of each result of a search."""
_MOST = 20
_SEARCHED = 2_000
"""The newest archived messages that are searched where no block recalls messages."""


@runtime_checkable
class RemembersFacts(Protocol):
    """A block that keeps facts by hand, as `FactExtractionMemoryBlock` does; each fact has an `id` and a `text`."""

    async def remember(self, text: str) -> Any:
        """Keep a text as a fact and return it."""

    async def forget_fact(self, fact: str, *, erase: bool = False) -> bool:
        """End a fact by its id, with `erase` without a trace; whether there was one."""

    async def facts(self) -> Sequence[Any]:
        """The facts that hold."""


@runtime_checkable
class KeepsDocuments(Protocol):
    """A block that recalls messages and documents, as `VectorMemoryBlock` does."""

    async def search(self, query: str, *, limit: int = 10) -> Sequence[Any]:
        """What the query finds, best first."""

    async def add_documents(self, texts: Sequence[str], metadata: Mapping[str, Any] | None = None) -> list[str]:
        """Keep texts that are no conversation; their ids."""

    async def remove_documents(self, documents: Sequence[str] | None = None) -> int:
        """Forget documents by id; how many there were."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: what a model reads of it, and the function behind it. `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: dict[str, Any]
    run: Callable[..., Awaitable[str]]

    async def __call__(self, **arguments: Any) -> str:
        """The result as text; an error is text that begins with "Error:"."""
        return await self.call(arguments)

    async def call(self, arguments: str | Mapping[str, Any] | None) -> str:
        """The same with the arguments as a model wrote them: JSON, or the object that it stands for."""
        try:
            return await self.run(**self._checked(arguments))
        except (_WrongArgumentsError, MemoryEngineError) as error:
            return f"Error: {error}"
        except Exception:
            # What other code's errors say is not for a model: it may hold addresses and names.
            log.exception("the tool %r failed", self.name)
            return "Error: the memory failed; this was not done."

    def to_openai(self) -> dict[str, Any]:
        """For `tools=` of OpenAI's chat completions, and everything that took over its form."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}

    def to_anthropic(self) -> dict[str, Any]:
        """For `tools=` of Anthropic's messages."""
        return {"name": self.name, "description": self.description, "input_schema": self.parameters}

    def _checked(self, arguments: str | Mapping[str, Any] | None) -> dict[str, Any]:
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError) as error:
                raise _WrongArgumentsError(f"the arguments are no JSON ({error})") from None
        if not isinstance(arguments, Mapping | None):
            raise _WrongArgumentsError("the arguments are a JSON object")
        given, known = dict(arguments or {}), self.parameters["properties"]
        if unknown := sorted(set(given) - set(known)):
            raise _WrongArgumentsError(f"there is no argument {unknown[0]!r}; there are {', '.join(known)}")
        if missing := [name for name in self.parameters["required"] if name not in given]:
            raise _WrongArgumentsError(f"the argument {missing[0]!r} is missing")
        return {name: _value(name, value, known[name]) for name, value in given.items()}


class _WrongArgumentsError(Exception):
    """Arguments that a model should correct."""


def as_tools(memory: Memory, *, erase: bool = False) -> list[Tool]:
    """`remember`, `search_memory` and `forget` for this memory; a read-only view has `search_memory` alone.

    Texts are remembered by the first block that keeps facts (`FactExtractionMemoryBlock`), else as documents of the first
    one that recalls (`VectorMemoryBlock`). Without such a block there is no `remember`. Searching uses the blocks that recall,
    else the words of facts and of the newest 2,000 archived messages. What is forgotten of facts stays in their history, unless
    `erase`. Of messages, those that left the FIFO can be forgotten, but no instructions and nothing that is pinned.
    """
    tools = _Tools(memory, erase)
    given = [
        Tool(
            "search_memory",
            "Search what was said before and what is remembered. Use it when the answer may have come up earlier.",
            _schema(
                {
                    "query": {"type": "string", "description": "What to look for, as a question or in key words."},
                    "limit": {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": _MOST,
                        "description": "How many results; 5 if left out.",
                    },
                },
                required=["query"],
            ),
            tools.search,
        )
    ]
    if memory.is_read_only:
        return given
    if tools.can_remember:
        given.insert(
            0,
            Tool(
                "remember",
                "Remember something for later conversations: a fact, a preference, a decision. One at a time.",
                _schema(
                    {"text": {"type": "string", "maxLength": tools.longest, "description": "What to remember."}},
                    required=["text"],
                ),
                tools.remember,
            ),
        )
    given.append(
        Tool(
            "forget",
            "Forget something that is remembered, when the user wants that or it is wrong. Takes an id of search_memory.",
            _schema({"id": {"type": "string", "description": 'The id of a result, such as "f12".'}}, required=["id"]),
            tools.forget,
        )
    )
    return given


def _schema(properties: dict[str, Any], *, required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _value(name: str, value: Any, schema: Mapping[str, Any]) -> Any:
    if schema["type"] == "integer":
        # Models write numbers as text, and whole numbers with a point.
        try:
            number = int(float(value)) if not isinstance(value, bool) and float(value) == int(float(value)) else None
        except (TypeError, ValueError, OverflowError):
            number = None
        if number is None:
            raise _WrongArgumentsError(f"{name} is a whole number, not {value!r:.80}")
        return min(max(number, schema["minimum"]), schema["maximum"])
    if not isinstance(value, str) or not value.strip():
        raise _WrongArgumentsError(f"{name} is a text that is not blank")
    longest = schema.get("maxLength", _LONGEST)
    if len(value) > longest:
        raise _WrongArgumentsError(f"{name} has {len(value):,} characters; {longest:,} are allowed")
    return value.encode("utf-8", "replace").decode("utf-8").strip()


class _Tools:
    """The functions behind the tools of one memory."""

    def __init__(self, memory: Memory, erase: bool) -> None:
        self._memory, self._erase = memory, erase
        self._facts = [name for name, block in memory.blocks.items() if _keeps_facts(block)]
        self._recall = [name for name, block in memory.blocks.items() if isinstance(block, KeepsDocuments)]
        self._profiles = [name for name, block in memory.blocks.items() if getattr(block, "profile_schema", None) is not None]

    @property
    def can_remember(self) -> bool:
        return bool(self._facts or self._recall)

    @property
    def longest(self) -> int:
        """How many characters a text to remember may have."""
        return int(getattr(self._memory.blocks[self._facts[0]], "longest_fact", _LONGEST)) if self._facts else _LONGEST

    async def remember(self, text: str) -> str:
        if self._facts:
            keeper: Any
            async with self._memory.block(self._facts[0]) as keeper:
                try:
                    fact = await keeper.remember(text)
                except ValueError as error:
                    raise _WrongArgumentsError(str(error)) from error
            return f"Remembered as {self._id(self._facts[0], fact.id)}."
        if not self._recall:
            raise ConfigurationError("This memory has no block that remembers texts.")
        block: Any = await self._memory.block(self._recall[0])
        (document,) = await block.add_documents([text])
        return f"Remembered as d:{document}."

    async def search(self, query: str, limit: int = 5) -> str:
        facts, messages = await self._found_facts(query, limit), await self._found_messages(query, limit)
        # Half for each, and what one does not need for the other.
        share = max(limit - len(messages), (limit + 1) // 2)
        found = [*facts[:share], *messages][:limit]
        return "\n".join(found) if found else "Nothing was found."

    async def forget(self, id: str) -> str:  # noqa: A002 - the name that the model sees
        block: Any
        kind, _, rest = id.partition(":")
        if kind == "d" and rest:
            for name in self._recall:
                block = await self._memory.block(name)
                if await block.remove_documents([rest]):
                    return f"Forgot {id}."
        elif kind == "m" and rest:
            if await self._may_go(rest) and await self._memory.delete([rest]):
                return f"Forgot {id} and what was derived from it."
        else:
            for name in self._facts:
                fact = id if len(self._facts) == 1 else rest if kind == name else None
                if fact is None:
                    continue
                async with self._memory.block(name) as block:
                    if await block.forget_fact(fact, erase=self._erase):
                        return f"Forgot {id}."
        raise _WrongArgumentsError(f"nothing has the id {id!r:.80}; use one that search_memory showed")

    async def _may_go(self, message_id: str) -> bool:
        """Whether a model may delete that message: one that left the FIFO, and that nobody pinned or gave as an instruction."""
        found = await self._memory._session.archived(message_id)
        return found is not None and not found.pinned and found.role in ("user", "assistant", "tool")

    # -- searching -------------------------------------------------------------------------------------------

    async def _found_facts(self, query: str, limit: int) -> list[str]:
        known: list[tuple[str | None, str]] = []
        for name in self._facts:
            block: Any = await self._memory.block(name)
            known += [(self._id(name, fact.id), fact.text) for fact in await block.facts()]
        for name in self._profiles:
            block = await self._memory.block(name)
            known += [(None, f"{fact.field}: {fact.text}") for fact in await block.facts()]
        best = await _best(query, [text for _, text in known], limit)
        return [_line(*known[place]) for place in best]

    def _id(self, block: str, fact: str) -> str:
        """The id that a model sees; each of several blocks counts its facts from 1."""
        return fact if len(self._facts) == 1 else f"{block}:{fact}"

    async def _found_messages(self, query: str, limit: int) -> list[str]:
        if not self._recall:
            archived = await self._memory.get_all(archived=True, last=_SEARCHED)
            said = [message for message in archived if message.role in ("user", "assistant") and message.content.strip()]
            best = await _best(query, [message.content for message in said], limit)
            return [_line(f"m:{said[place].id}", _told(said[place])) for place in best]
        lines: list[str] = []
        for name in self._recall:
            block: Any = await self._memory.block(name)
            for hit in await block.search(query, limit=limit):
                lines.append(await self._hit(block, hit))
        return lines[:limit]

    async def _hit(self, block: Any, hit: Any) -> str:
        item = hit.item
        if item.document is not None:
            return _line(f"d:{item.document}", item.text)
        messages = await block.originals(item.session_uid, item.seq, (item.last_seq or item.seq) + 1)
        ids = [message.id for _, message in messages if message.id]
        # Messages of other sessions are shown by a block of a wider scope, but are not this memory's to delete.
        own = item.session_uid == block.context.session_uid and ids
        when = f"{item.at:%Y-%m-%d %H:%M} " if item.at is not None else ""
        return _line(f"m:{ids[0]}" if own else None, f"{when}{item.name or item.role}: {item.text}")


def _keeps_facts(block: object) -> bool:
    # A block with a schema keeps a profile, to which no sentence can be added.
    return isinstance(block, RemembersFacts) and getattr(block, "profile_schema", None) is None


async def _best(query: str, texts: Sequence[str], limit: int) -> list[int]:
    """The places of the texts that share words with a query, best first."""
    if not texts:
        return []
    from memory_engine.blocks.vector.lexical import best_texts

    return await asyncio.to_thread(best_texts, query, texts, limit)


def _told(message: ChatMessage) -> str:
    when = f"{message.created_at:%Y-%m-%d %H:%M} " if message.created_at is not None else ""
    return f"{when}{message.name or message.role}: {message.content}"


def _line(id: str | None, text: str) -> str:  # noqa: A002
    told = " ".join(text.split())
    told = told if len(told) <= _SHOWN else f"{told[:_SHOWN]}…"
    return f"[{id}] {told}" if id else f"[-] {told}"
