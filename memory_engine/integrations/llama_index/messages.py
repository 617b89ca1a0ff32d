"""Chat messages of LlamaIndex, in and out, both ways without loss.

What a `ChatMessage` of ours has no field for is kept in `metadata["llama_index"]`: `role` where it has another name,
`additional_kwargs`, `blocks` (for each of their content blocks what ours cannot say), `calls` (the ids of tool calls that
stood in `additional_kwargs`) and `no_id` (a tool result that named no call); `metadata["counted"]` names what of it costs
tokens. What a view shortened or left out comes from our blocks, not from there. Open files become base64 text, and other
values that are not JSON what LlamaIndex's own JSON says.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any
from uuid import uuid4

from llama_index.core.base.llms import types as theirs
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from memory_engine.content import TextBlock, ToolCallBlock, ToolResultBlock
from memory_engine.errors import InvalidMessageError
from memory_engine.integrations.llama_index.content import Entry, dump, is_id, read_block, thaw, write_block, write_kept
from memory_engine.integrations.llama_index.counted import counted
from memory_engine.messages import ChatMessage, invalid_message
from memory_engine.tokens import COUNTED

Theirs = theirs.ChatMessage
KEY = "llama_index"
_ROLES = {"function": "tool", "chatbot": "assistant", "model": "assistant"}


def from_llama_index(messages: Iterable[Theirs]) -> list[ChatMessage]:
    """Our messages for theirs, one for each. Calls without an id get one, and so do the results that follow, in their order.

    :raises InvalidMessageError: one of them holds what cannot be kept exactly; the error says what.
    """
    unnamed: deque[str] = deque()
    return [_read(message, unnamed) for message in messages]


def to_llama_index(messages: Iterable[ChatMessage]) -> list[Theirs]:
    """Their messages for ours, new objects at every call; a message that answers several calls gives one for each."""
    return [item for message in messages for item in _write(message)]


# -- in ------------------------------------------------------------------------------------------------------


def _read(message: Theirs, unnamed: deque[str]) -> ChatMessage:
    role = theirs.MessageRole(message.role).value
    kept: dict[str, Any] = {} if role not in _ROLES else {"role": role}
    fields: dict[str, Any] = {"role": _ROLES.get(role, role)}
    try:
        kwargs = _plain_kwargs(message)
        _read_names(fields, kwargs, kept, unnamed)
        _read_blocks(message, fields, kwargs, kept, unnamed)
        if kwargs:
            kept["additional_kwargs"] = kwargs
        if kept:
            paths = [[KEY, *path] for path in counted(kept, fields["blocks"])]
            fields["metadata"] = {KEY: kept} | ({COUNTED: paths} if paths else {})
        return ChatMessage(**fields)
    except ValidationError as error:
        raise invalid_message(error) from error
    except (PydanticSerializationError, RecursionError, TypeError, ValueError) as error:
        raise InvalidMessageError(f"This message of LlamaIndex cannot be kept as JSON: {error}.") from error


def _plain_kwargs(message: Theirs) -> dict[str, Any]:
    if not message.additional_kwargs:
        return {}
    kwargs: dict[str, Any] = dump(message, include={"additional_kwargs"})["additional_kwargs"]
    # Made into blocks when the message was constructed; as JSON, reading it again would fail in LlamaIndex.
    kwargs.pop("images", None)
    return kwargs


def _read_names(fields: dict[str, Any], kwargs: dict[str, Any], kept: dict[str, Any], unnamed: deque[str]) -> None:
    if is_id(kwargs.get("name")):
        fields["name"] = kwargs.pop("name")
    if fields["role"] != "tool":
        return
    if is_id(kwargs.get("tool_call_id")):
        fields["tool_call_id"] = kwargs.pop("tool_call_id")
    else:
        # Without any call it stays an answer to nothing: kept, given to blocks, and never shown.
        fields["tool_call_id"] = unnamed.popleft() if unnamed else _new_id()
        kept["no_id"] = True


def _read_blocks(
    message: Theirs, fields: dict[str, Any], kwargs: dict[str, Any], kept: dict[str, Any], unnamed: deque[str]
) -> None:
    blocks: list[Any] = []
    entries: list[Entry] = []
    ids: list[str] = []
    for block in message.blocks:
        if isinstance(block, theirs.ToolCallBlock) and fields["role"] == "assistant":
            entry = _read_call(block, blocks, ids, unnamed)
        else:
            entry = read_block(block, blocks)
        entries.append(entry)
    if fields["role"] == "assistant":
        calls = _read_old_calls(kwargs, blocks, ids, unnamed)
        if calls:
            kept["calls"] = calls
    if "calls" in kept or any(entry.keys() - {"call"} for entry in entries):
        kept["blocks"] = entries
    fields["blocks"] = blocks


def _read_call(block: theirs.ToolCallBlock, blocks: list[Any], ids: list[str], unnamed: deque[str]) -> Entry:
    call_id = block.tool_call_id
    extra: dict[str, Any] = {}
    if not is_id(call_id) or call_id in ids:
        extra["tool_call_id"] = call_id
        call_id = _new_id()
        unnamed.append(call_id)
    name = block.tool_name
    if not is_id(name):
        extra["tool_name"], name = name, "unknown"
    ids.append(str(call_id))
    arguments = dump(block, include={"tool_kwargs"})["tool_kwargs"]
    blocks.append(ToolCallBlock(id=call_id, name=name, arguments=arguments))
    return {"call": call_id} | ({"extra": extra} if extra else {})


def _read_old_calls(kwargs: Mapping[str, Any], blocks: list[Any], ids: list[str], unnamed: deque[str]) -> list[str]:
    """Blocks for calls in the form that came before `ToolCallBlock`; their ids in our form, in their order."""
    found: list[str] = []
    for call in _old_calls(kwargs):
        body = call.get("function")
        body = body if isinstance(body, Mapping) else call
        call_id, name, arguments = call.get("id"), body.get("name"), body.get("arguments")
        if not is_id(call_id):
            call_id = _new_id()
            unnamed.append(call_id)
        found.append(call_id)
        if call_id not in ids:  # many integrations write them in both forms
            ids.append(call_id)
            arguments = arguments if isinstance(arguments, str | Mapping) else {}
            blocks.append(ToolCallBlock(id=call_id, name=name if is_id(name) else "unknown", arguments=arguments))
    return found


def _old_calls(kwargs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    calls = kwargs.get("tool_calls")
    if calls is None and kwargs.get("function_call") is not None:
        calls = [kwargs["function_call"]]
    listed = isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)
    return calls if listed and calls else []


def _new_id() -> str:
    return f"call-{uuid4().hex}"


# -- out -----------------------------------------------------------------------------------------------------


def _write(message: ChatMessage) -> list[Theirs]:
    kept = message.metadata.get(KEY)
    kept = kept if isinstance(kept, Mapping) else {}
    results = [block for block in message.blocks if isinstance(block, ToolResultBlock)]
    if results:
        return _write_results(message, results)
    kwargs: dict[str, Any] = thaw(kept.get("additional_kwargs") or {})
    if message.name is not None:
        kwargs["name"] = message.name
    if message.tool_call_id is not None and not kept.get("no_id"):
        kwargs["tool_call_id"] = message.tool_call_id
    if "calls" in kept:
        _leave_out_calls(kwargs, kept["calls"], {call.id for call in message.tool_calls})
    return [_made(kept.get("role") or message.role, _write_blocks(message, kept), kwargs)]


def _write_results(message: ChatMessage, results: list[ToolResultBlock]) -> list[Theirs]:
    items = [_made("tool", [theirs.TextBlock(text=b.content)], {"tool_call_id": b.tool_call_id}) for b in results]
    # Their messages have no place beside a result: the last one takes what else there is.
    items[-1].blocks += [write_block(block, {}) for block in message.blocks if not isinstance(block, ToolResultBlock)]
    return items


def _made(role: str, blocks: list[Any], kwargs: dict[str, Any]) -> Theirs:
    # Not validated again: that would read pictures, and guess what was left open.
    return Theirs.model_construct(role=theirs.MessageRole(role), blocks=blocks, additional_kwargs=kwargs)


def _write_blocks(message: ChatMessage, kept: Mapping[str, Any]) -> list[Any]:
    entries = kept.get("blocks")
    if entries is None:
        return [write_block(block, {}) for block in message.blocks]
    own = {entry["call"] for entry in entries if "call" in entry}
    old = set(kept.get("calls") or ()) - own
    blocks = deque(block for block in message.blocks if not (isinstance(block, ToolCallBlock) and block.id in old))
    written = _restore(entries, blocks)
    return written + [write_block(block, {}) for block in blocks]


def _restore(entries: Iterable[Entry], blocks: deque[Any]) -> list[Any]:
    """Their blocks as they were, with what our blocks say now. What memory inserted is in nobody's entry."""
    written: list[Any] = []
    for entry in entries:
        while blocks and blocks[0].origin:
            written.append(write_block(blocks.popleft(), {}))
        if "kept" in entry:
            written.append(write_kept(entry["kept"]))
        elif "nested" in entry:
            written.append(write_kept(entry["outer"], _restore(entry["nested"], blocks)))
        elif "call" in entry:
            # A view leaves out calls that were never answered.
            if blocks and isinstance(blocks[0], ToolCallBlock) and blocks[0].id == entry["call"]:
                written.append(write_block(blocks.popleft(), entry))
        elif blocks:
            written.append(_restore_shown(blocks.popleft(), entry))
    return written


def _restore_shown(block: Any, entry: Entry) -> Any:
    if "shown" not in entry:
        return write_block(block, entry)
    unchanged = isinstance(block, TextBlock) and block.text == json.dumps(entry["shown"], ensure_ascii=False, sort_keys=True)
    return write_kept(entry["shown"]) if unchanged else write_block(block, {})


def _leave_out_calls(kwargs: dict[str, Any], ids: Iterable[str], left: set[str]) -> None:
    """Without the calls that the view left out."""
    if kwargs.get("tool_calls") is None:
        if not left:
            kwargs.pop("function_call", None)
        return
    kwargs["tool_calls"] = [call for call, call_id in zip(kwargs["tool_calls"], ids, strict=True) if call_id in left]
    if not kwargs["tool_calls"]:
        del kwargs["tool_calls"]
