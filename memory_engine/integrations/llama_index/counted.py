"""What of `metadata["llama_index"]` costs tokens: all that is handed out again and may reach the provider of a model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from memory_engine.content import ToolCallBlock
from memory_engine.integrations.llama_index.content import Entry

Path = list[Any]
_OURS_ALONE = frozenset({"path", "path_is_text", "by_path"})
"""Of a file, the content reaches the provider, not where it lies."""
_OF_CALLS = frozenset({"id", "type", "function", "name", "arguments"})


def counted(kept: Mapping[str, Any], blocks: Sequence[Any]) -> list[Path]:
    """Paths into what is kept of a message beside these blocks of ours, for `metadata["counted"]`."""
    return [*_of_kwargs(kept, blocks), *_of_entries(kept.get("blocks") or (), ["blocks"])]


def _of_entries(entries: Iterable[Entry], path: Path) -> Iterator[Path]:
    for at, entry in enumerate(entries):
        for kind in ("extra", "kept"):
            yield from ([*path, at, kind, key] for key in sorted(entry.get(kind, {}).keys() - _OURS_ALONE))
        if "outer" in entry:
            yield [*path, at, "outer"]
            yield from _of_entries(entry["nested"], [*path, at, "nested"])


def _of_kwargs(kept: Mapping[str, Any], blocks: Sequence[Any]) -> Iterator[Path]:
    kwargs = kept.get("additional_kwargs") or {}
    if "calls" not in kept:
        if kwargs:
            yield ["additional_kwargs"]
        return
    is_list = kwargs.get("tool_calls") is not None
    name = "tool_calls" if is_list else "function_call"
    # What our blocks say is counted there. Of one call in both forms a provider is sent one.
    said = {block.id: block for block in blocks if isinstance(block, ToolCallBlock)}
    calls = kwargs[name] if is_list else [kwargs[name]]
    for at, (call, call_id) in enumerate(zip(calls, kept["calls"], strict=True)):
        if not _says(said.pop(call_id, None), call):
            yield ["additional_kwargs", name, *([at] if is_list else [])]
    yield from (["additional_kwargs", key] for key in sorted(kwargs.keys() - {name}))


def _says(block: ToolCallBlock | None, call: Mapping[str, Any]) -> bool:
    """Whether the block says all that this call in the older form does."""
    body = call.get("function", call)
    if block is None or not isinstance(body, Mapping) or not {*call, *body} <= _OF_CALLS:
        return False
    return body.get("name") == block.name and _same(body.get("arguments"), block.arguments)


def _same(arguments: Any, said: Any) -> bool:
    if isinstance(arguments, str) and not isinstance(said, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return False
    return bool(arguments == said)
