"""The tool calls of a message that LangChain wrote, in any of the forms that it has had: pure, on JSON alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from memory_engine.content import ToolCallBlock
from memory_engine.formats.kept import checked_id
from memory_engine.importers.langchain_parts import Fields


class Calls:
    """The calls of one message: `blocks`, `ids` (LangChain's to ours), and the `layout` of what blocks have no field for.

    A call without an id is given one, which starts with `prefix`; `nameless` are its id and its name.
    """

    def __init__(self, prefix: str) -> None:
        self.blocks: list[ToolCallBlock] = []
        self.ids: dict[str, str] = {}
        self.layout: dict[str, Fields] = {}
        self.nameless: list[tuple[str, str]] = []
        self._prefix = prefix

    def read(self, valid: list[Fields], invalid: list[Fields], kwargs: Fields) -> None:
        """Take the calls; `function_call` is taken out of the `additional_kwargs`, where it comes back from the block."""
        if not valid and not invalid:
            valid, invalid = _older(kwargs.get("tool_calls"))
        for call in valid:
            self._add(call.get("id"), call["name"], call["args"], {})
        for broken in invalid:
            given, error = broken.get("args"), broken.get("error")
            noted = {"error": error} if given else {"error": error, "args": given}
            self._add(broken.get("id"), broken.get("name"), given or "", {"invalid": noted})
        function = kwargs.get("function_call")
        if isinstance(function, Mapping) and all(isinstance(function.get(key), str) for key in ("name", "arguments")):
            rest = {key: value for key, value in function.items() if key not in ("name", "arguments")}
            self._add(None, function["name"], function["arguments"], {"function": rest})
            del kwargs["function_call"]

    def _add(self, given: str | None, name: str | None, arguments: Any, extra: Fields) -> None:
        block_id = checked_id(given)
        if block_id is None or any(block.id == block_id for block in self.blocks):
            block_id = f"{self._prefix}-{len(self.blocks)}"
            extra["id"] = given
        if not given:
            self.nameless.append((block_id, name or ""))
        if checked_id(name) is None:
            extra["name"] = name
        self.blocks.append(ToolCallBlock(id=block_id, name=checked_id(name) or "unnamed", arguments=arguments))
        self.ids.setdefault(str(given), block_id)
        if extra:
            self.layout[block_id] = extra


def _older(calls: Any) -> tuple[list[Fields], list[Fields]]:
    """The calls in OpenAI's form, from which LangChain makes its own; none where it cannot."""
    valid: list[Fields] = []
    invalid: list[Fields] = []
    for call in calls if isinstance(calls, list) else ():
        body = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(body, Mapping) or not isinstance(body.get("arguments"), str) or "name" not in body:
            return [], []
        name = body["name"] if isinstance(body["name"], str) else ""
        made: Fields = {"id": call["id"] if isinstance(call.get("id"), str) else None, "name": name}
        try:
            arguments = json.loads(body["arguments"])
        except (ValueError, RecursionError):
            arguments = body["arguments"]
        if isinstance(arguments, Mapping) or not arguments:
            valid.append({**made, "args": arguments or {}})
        else:
            invalid.append({**made, "args": body["arguments"], "error": None})
    return valid, invalid
