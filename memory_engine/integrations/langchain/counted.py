"""What of `metadata["langchain"]` goes out to a model and therefore costs tokens: pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from memory_engine.integrations.langchain.calls import Json, thaw
from memory_engine.messages import ToolCallBlock

Path = tuple[str | int, ...]

_ARGUMENTS = ("input", "args", "arguments", "partial_json")
_OF_CALLS = {"type", "id", "call_id", "name", "index", *_ARGUMENTS}
"""What a part that repeats a call says of it, in the forms of the providers."""


def counted_paths(extras: Json, calls: Sequence[ToolCallBlock], ids: Mapping[str, str]) -> Iterator[Path]:
    """The paths within `extras`. What repeats a call is counted with the call; `ids` are theirs to ours.

    Not counted is what no provider is sent: response_metadata, usage_metadata, an artifact, an error of LangChain's.
    """
    blocks = {block.id: block for block in calls}
    yield from _of_keywords(extras.get("additional_kwargs", {}), blocks, ids)
    for place, entry in enumerate(extras.get("content", ())):
        if isinstance(entry, Mapping) and "frame" in entry and not _repeats(entry["frame"], blocks.get(entry.get("call", ""))):
            yield "content", place, "frame"
    for block_id, layout in extras.get("calls", {}).items():
        for key in ("id", "name", "function"):
            if layout.get(key):
                yield "calls", block_id, key
    for key in ("role", "name", "tool_call_id"):
        if extras.get(key):
            yield (key,)


def _of_keywords(kwargs: Json, blocks: Mapping[str, ToolCallBlock], ids: Mapping[str, str]) -> Iterator[Path]:
    if all(value is None for value in kwargs.values()):
        return
    raw = kwargs.get("tool_calls")
    repeated = [_repeats(_flat(call), blocks.get(_our_id(call, ids))) for call in raw] if isinstance(raw, list) else []
    if not any(repeated):
        yield ("additional_kwargs",)
        return
    for key, value in kwargs.items():
        if key != "tool_calls" and value is not None:
            yield "additional_kwargs", key
    for place, is_repeated in enumerate(repeated):
        if not is_repeated:
            yield "additional_kwargs", "tool_calls", place


def _our_id(call: Any, ids: Mapping[str, str]) -> str:
    return ids.get(str(call.get("id")), "") if isinstance(call, Mapping) else ""


def _flat(call: Any) -> Any:
    """A call in OpenAI's form with its name and arguments beside its id."""
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        return call
    return {**{key: value for key, value in call.items() if key != "function"}, **call["function"]}


def _repeats(frame: Any, block: ToolCallBlock | None) -> bool:
    if block is None or not isinstance(frame, Mapping) or not frame.keys() <= _OF_CALLS:
        return False
    arguments = thaw(block.arguments)
    given = [frame[key] for key in _ARGUMENTS if frame.get(key)]
    return frame.get("name") == block.name and all(_parsed(value) == _parsed(arguments) for value in given)


def _parsed(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
