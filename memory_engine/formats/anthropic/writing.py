"""Our messages as a request to Anthropic's API."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from memory_engine.content import AnyBlock
from memory_engine.errors import InvalidMessageError
from memory_engine.formats.anthropic.blocks import KEY, dump_plain, is_empty, valid_id
from memory_engine.formats.kept import Fields, mapping, put_together
from memory_engine.messages import ChatMessage, TextBlock, ToolResultBlock

CachePoint = Literal["instructions", "system", "history", "request"]

_POINTS: tuple[CachePoint, ...] = ("instructions", "system", "history", "request")
_MARKS = 4
"""The API refuses more cache marks in one request."""


class AnthropicRequest(NamedTuple):
    """What `client.messages.create(system=…, messages=…)` takes."""

    system: list[dict[str, Any]]
    """Text blocks; may be empty."""
    messages: list[dict[str, Any]]


def to_anthropic(
    messages: Iterable[ChatMessage],
    *,
    cache: bool | Collection[CachePoint] = False,
    cache_ttl: Literal["5m", "1h"] | None = None,
) -> AnthropicRequest:
    """The messages as the arguments `system` and `messages` of a request.

    `cache` sets marks (`cache_control`) where a prefix ends that the next request will begin with. True stands for the
    first three; give a collection of names for others, at most all four:

    - `"instructions"`: the end of the system blocks before the first one that memory inserted.
    - `"system"`: the end of all system blocks. What memory inserts there may change from turn to turn, and what follows
      is then not read from the cache: with `insert_method="split"` only sections that do not depend on the query are there.
    - `"history"`: the last block before the newest user message.
    - `"request"`: the last block of all, for an agent that takes several steps on one request.

    With `cache`, marks that came in with messages are left out; without, the newest four of them are kept. `cache_ttl` is
    how long entries live, None for the API's own choice.

    :raises InvalidMessageError: `cache` names a point that does not exist.
    """
    points = _points(cache)
    everything = list(messages)
    system = [pair for message in everything if message.role in ("system", "developer") for pair in _system_blocks(message)]
    talk = [message for message in everything if message.role not in ("system", "developer")]
    newest = max((at for at, message in enumerate(talk) if message.role == "user"), default=0)
    before, after = ([pair for m in part for pair in _role_and_blocks(m)] for part in (talk[:newest], talk[newest:]))
    instructions = [block for block, inserted in system]
    stable = next((at for at, (_, inserted) in enumerate(system) if inserted), len(system))
    parts: dict[CachePoint, list[Fields]] = {
        "instructions": instructions[:stable],
        "system": instructions,
        "history": [block for _, blocks, _ in before for block in blocks],
        "request": [block for _, blocks, _ in (*before, *after) for block in blocks],
    }
    if points:
        for block in _bearers([*instructions, *parts["request"]]):
            block.pop("cache_control", None)
        mark = {"type": "ephemeral"} | ({"ttl": cache_ttl} if cache_ttl else {})
        for point in points:
            _mark(parts[point], mark)
    else:
        bearers = _bearers([*instructions, *parts["request"]])
        marked = [block for block in bearers if block.get("cache_control") is not None]
        for block in marked[:-_MARKS]:
            del block["cache_control"]
    return AnthropicRequest(instructions, _merged([*before, *after]))


def _system_blocks(message: ChatMessage) -> list[tuple[Fields, bool]]:
    """The text blocks of a system message, each with whether memory inserted it."""
    own = [block for block in message.blocks if block.origin is None]
    inserted = [block for block in message.blocks if block.origin]
    pairs = [(block, False) for block in _dump(message, own)] + [(block, True) for block in dump_plain(message.role, inserted)]
    return [(block, mark) for block, mark in pairs if block.get("type") == "text" and not is_empty(block)]


def _role_and_blocks(message: ChatMessage) -> list[tuple[str, list[Fields], bool]]:
    """The message's role and blocks, and whether its content is a list even of a single text; nothing if it is empty."""
    inserted = [block for block in message.blocks if block.origin]
    own = [block for block in message.blocks if block.origin is None]
    if not own:
        inserted, own = [], inserted
    blocks = [*dump_plain(message.role, inserted), *_dump(message, own)]
    blocks = [_without_empty(block) for block in blocks if not is_empty(block)]
    as_list = bool(mapping(message.metadata.get(KEY)).get("as_list"))
    return [("assistant" if message.role == "assistant" else "user", blocks, as_list)] if blocks else []


def _dump(message: ChatMessage, blocks: Sequence[AnyBlock]) -> list[Fields]:
    kept = put_together(mapping(message.metadata.get(KEY)).get("content"), blocks)
    if kept is not None:
        return [_with_valid_ids(block) for block in kept if block is not None]
    if message.tool_call_id is not None:
        result = ToolResultBlock(tool_call_id=message.tool_call_id, content="")
        texts = [block for block in blocks if isinstance(block, TextBlock)]
        if len(texts) == len(blocks) == 1:
            return dump_plain("tool", [result.model_copy(update={"content": texts[0].text})])
        return dump_plain("tool", [result, *blocks])
    return dump_plain(message.role, blocks)


def _with_valid_ids(block: Fields) -> Fields:
    kind = {"tool_use": "id", "tool_result": "tool_use_id"}.get(str(block.get("type")))
    return block if kind is None else {**block, kind: valid_id(str(block[kind]))}


def _without_empty(block: Fields) -> Fields:
    """A tool result without empty texts inside."""
    content = block.get("content")
    if block.get("type") != "tool_result" or not isinstance(content, list):
        return block
    parts = [part for part in content if not (isinstance(part, dict) and is_empty(part))]
    return {**block, "content": parts}


def _merged(pairs: Sequence[tuple[str, list[Fields], bool]]) -> list[Fields]:
    """One message for all blocks of one role in a row, results first."""
    merged: list[Fields] = []
    for role, blocks, as_list in pairs:
        if merged and merged[-1]["role"] == role:
            before = merged[-1]["content"]
            merged[-1]["content"] = [*_as_blocks(before), *blocks]
        elif not as_list and len(blocks) == 1 and blocks[0].keys() == {"type", "text"} and blocks[0]["type"] == "text":
            merged.append({"role": role, "content": blocks[0]["text"]})
        else:
            merged.append({"role": role, "content": blocks})
    for message in merged:
        if message["role"] == "user" and isinstance(message["content"], list):
            message["content"].sort(key=lambda block: block.get("type") != "tool_result")
    return merged


def _as_blocks(content: str | list[Fields]) -> list[Fields]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _points(cache: bool | Collection[CachePoint]) -> Sequence[CachePoint]:
    if isinstance(cache, bool):
        return _POINTS[:3] if cache else ()
    unknown = sorted({str(point) for point in ([cache] if isinstance(cache, str) else cache)} - set(_POINTS))
    if unknown or isinstance(cache, str):
        raise InvalidMessageError(f"cache is True, False or a collection of {', '.join(_POINTS)}; not {unknown or cache!r}.")
    return [point for point in _POINTS if point in cache]


def _bearers(blocks: Sequence[Fields]) -> list[Fields]:
    """Everything that may have a mark, in order: what is inside of tool results too."""
    bearers: list[Fields] = []
    for block in blocks:
        inner = block.get("content")
        bearers += [part for part in inner if isinstance(part, dict)] if isinstance(inner, list) else []
        bearers.append(block)
    return bearers


def _mark(blocks: Sequence[Fields], mark: Fields) -> None:
    """Mark the last block that can bear it: reasoning cannot."""
    for block in reversed(blocks):
        if block.get("type") not in ("thinking", "redacted_thinking"):
            block["cache_control"] = dict(mark)
            return
