"""Tool calls of LangChain's messages as blocks, and back: valid ones, those with broken arguments, and `function_call`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage
from pydantic import ValidationError

from memory_engine.content import MAX_ID_LENGTH
from memory_engine.errors import InvalidMessageError
from memory_engine.messages import ChatMessage, ToolCallBlock, invalid_message

Json = dict[str, Any]

_NAMELESS = "unnamed"
_UNKNOWN = "unknown-call"


def known_id(value: object) -> str:
    """The id by which we know a call: its own, or one made of it where ours may not look like that."""
    if not isinstance(value, str) or not value:
        return _UNKNOWN
    if len(value) <= MAX_ID_LENGTH and "\0" not in value:
        return value
    return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"


def thaw(value: Any) -> Any:
    """A changeable copy: what goes out belongs to the caller."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    return [thaw(item) for item in value] if isinstance(value, list) else value


class Calls:
    """The calls of one message: `blocks`, `ids` (theirs to ours), and the `layout` of what blocks have no field for."""

    def __init__(self) -> None:
        self.blocks: list[ToolCallBlock] = []
        self.ids: dict[str, str] = {}
        self.layout: dict[str, Json] = {}

    @classmethod
    def of(cls, message: AIMessage, kwargs: Json) -> Calls:
        """The calls of the message; a `function_call` is taken out of `kwargs`, its additional keywords.

        :raises InvalidMessageError: the arguments of a call are no JSON.
        """
        calls = cls()
        for call in message.tool_calls:
            calls._add(call, call["args"], {})
        for broken in message.invalid_tool_calls:
            text = broken["args"] or ""
            noted = {"error": broken["error"]} if text else {"error": broken["error"], "args": broken["args"]}
            calls._add(broken, text, {"invalid": noted})
        function = kwargs.get("function_call")
        if isinstance(function, Mapping) and all(isinstance(function.get(key), str) for key in ("name", "arguments")):
            rest = {key: value for key, value in function.items() if key not in ("name", "arguments")}
            old: Json = {"id": f"function:{function['name']}", "name": function["name"]}
            calls._add(old, function["arguments"], {"function": rest})
            del kwargs["function_call"]
        return calls

    def _add(self, call: Mapping[str, Any], arguments: Any, extra: Json) -> None:
        given, name = call.get("id"), call.get("name")
        block_id, number = known_id(given), 1
        while any(block.id == block_id for block in self.blocks):
            number += 1
            block_id = f"{known_id(given)[: MAX_ID_LENGTH - 12]}#{number}"
        if block_id != given:
            extra["id"] = given
        if not isinstance(name, str) or known_id(name) != name:
            extra["name"] = name
            name = _NAMELESS
        try:
            self.blocks.append(ToolCallBlock(id=block_id, name=name, arguments=arguments))
        except ValidationError as error:
            raise invalid_message(error) from error
        except RecursionError as error:
            raise InvalidMessageError("The arguments of a tool call are nested too deep.") from error
        self.ids.setdefault(str(given), block_id)
        if extra:
            self.layout[block_id] = extra


def calls_out(message: ChatMessage, layout: Mapping[str, Json], kwargs: Json) -> Json:
    """`tool_calls`, `invalid_tool_calls` and `additional_kwargs` for a message's calls; `kwargs` may be changed.

    Arguments that are text become a call when they are a JSON object, else a call that is invalid.
    """
    valid: list[Json] = []
    invalid: list[Json] = []
    for block in message.tool_calls:
        extra = layout.get(block.id, {})
        if "function" in extra:
            kwargs["function_call"] = {**extra["function"], "name": extra.get("name", block.name), "arguments": block.arguments}
            continue
        call = {"name": extra.get("name", block.name), "id": extra.get("id", block.id)}
        arguments = block.arguments if "invalid" in extra else _parsed(block.arguments)
        if isinstance(arguments, Mapping):
            valid.append({**call, "args": thaw(arguments), "type": "tool_call"})
        else:
            noted = extra.get("invalid", {"error": "The arguments are no JSON object."})
            invalid.append({**call, "args": arguments, **noted, "type": "invalid_tool_call"})
    raw = kwargs.get("tool_calls")
    if message.partial and isinstance(raw, list):
        # Left in, LangChain would read the calls from here that the view has left out.
        kept = {call["id"] for call in (*valid, *invalid)}
        kwargs["tool_calls"] = [call for call in raw if isinstance(call, dict) and call.get("id") in kept]
    return {"tool_calls": valid, "invalid_tool_calls": invalid, "additional_kwargs": kwargs}


def _parsed(arguments: Mapping[str, Any] | str) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments
