"""Rows with any value replaced by any other: each gives a message that its library's adapter gives back, or a reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import BaseMessage, messages_from_dict, messages_to_dict
from llama_index.core.base.llms.types import ChatMessage as LlamaMessage

from memory_engine import ChatMessage
from memory_engine.errors import InvalidMessageError
from memory_engine.formats.openai_responses import to_openai_responses
from memory_engine.importers.langchain_messages import LangChainReader
from memory_engine.importers.llama_messages import LlamaIndexReader
from memory_engine.importers.openai_items import OpenAIItemsReader
from memory_engine.integrations.langchain import to_langchain
from memory_engine.integrations.llama_index import to_llama_index
from memory_engine.messages import decode, encode

LANGCHAIN: list[Any] = [
    {"type": "ai", "data": {
        "content": [
            {"type": "text", "text": "a"},
            {"type": "thinking", "thinking": "t", "signature": "s"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}},
            {"type": "tool_use", "id": "x", "name": "f", "input": {}},
            {"type": "reasoning", "summary": [{"text": "x"}]},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}},
        ],
        "tool_calls": [{"id": "x", "name": "f", "args": {"a": 1}}],
        "invalid_tool_calls": [{"id": "2", "name": "g", "args": "{", "error": "cut"}],
        "additional_kwargs": {"function_call": {"name": "f", "arguments": "{}"}},
        "response_metadata": {"a": [1]},
        "name": "n",
        "id": "i",
        "usage_metadata": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "input_token_details": {"cache_read": 1}},
    }},
    {"type": "ai", "data": {"content": "", "additional_kwargs": {
        "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]}}},
    {"type": "tool", "data": {"content": "r", "tool_call_id": "1", "status": "error", "artifact": {"a": 1}}},
    {"type": "tool", "data": {"content": [{"type": "text", "text": "x"}], "tool_call_id": "1"}},
    {"type": "tool", "data": {"content": [5, None, "x"], "tool_call_id": "1"}},
    {"type": "tool", "data": {"content": {"a": 1}, "tool_call_id": "1"}},
    {"type": "tool", "data": {"content": None, "tool_call_id": "1"}},
    {"type": "chat", "data": {"content": "x", "role": "pirate", "name": "n"}},
    {"type": "function", "data": {"content": "x", "name": "n"}},
    {"type": "system", "data": {"content": "x", "additional_kwargs": {"__openai_role__": "developer"}, "example": False}},
    {"type": "human", "data": {"content": [
        "x",
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA==", "filename": "f"}},
        {"type": "media", "mime_type": "audio/wav", "data": "AA=="},
    ]}},
]  # fmt: skip
LLAMA: list[Any] = [
    {"role": "assistant", "additional_kwargs": {"tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
                                                "name": "x"},
     "blocks": [
         {"block_type": "text", "text": "a"},
         {"block_type": "thinking", "content": "c", "num_tokens": 3, "additional_information": {"signature": "s"}},
         {"block_type": "tool_call", "tool_call_id": "2", "tool_name": "f", "tool_kwargs": {"a": 1}},
         {"block_type": "image", "image": "AA==", "image_mimetype": "image/png", "url": "http://x/y", "detail": "low"},
         {"block_type": "cache", "cache_control": {"type": "ephemeral", "ttl": "5m"}},
         {"block_type": "citation", "cited_content": {"block_type": "text", "text": "c"}, "source": "s", "title": "t",
          "additional_location_info": {"page": 1}},
     ]},
    {"role": "assistant", "additional_kwargs": {"function_call": {"name": "f", "arguments": "{}"}}, "blocks": []},
    {"role": "tool", "additional_kwargs": {"tool_call_id": "1", "name": "x"}, "blocks": [{"block_type": "text", "text": "r"}]},
    {"role": "user", "additional_kwargs": {}, "blocks": [
        {"block_type": "document", "data": "AA==", "document_mimetype": "application/pdf", "title": "t"},
        {"block_type": "document", "path": "/a/b.pdf", "document_mimetype": "application/pdf", "title": "t"},
        {"block_type": "video", "url": "http://x/v", "video_mimetype": "video/mp4", "fps": 2},
        {"block_type": "audio", "audio": "AA==", "format": "wav"},
        {"block_type": "citable", "title": "t", "source": "s", "content": [{"block_type": "text", "text": "c"}]},
    ]},
    {"role": "user", "content": "x"},
]  # fmt: skip
OPENAI: list[Any] = [
    {"role": "user", "content": "x"},
    {"role": "user", "content": [
        {"type": "input_text", "text": "a"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "auto"},
        {"type": "input_file", "file_data": "AA", "filename": "f"},
    ]},
    {"type": "message", "role": "assistant", "id": "m", "status": "completed",
     "content": [{"type": "output_text", "text": "a", "annotations": []}, {"type": "refusal", "refusal": "no"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "fc"},
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
    {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "e"},
    {"type": "computer_call", "call_id": "cc", "action": {"type": "click"}},
    {"type": "web_search_call", "id": "w", "action": {}},
    {"type": "item_reference", "id": "x"},
]  # fmt: skip

NUMBERS = st.integers() | st.floats()
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=5)
NAMES = ["text", "image", "tool_call", "tool", "ai", "thinking", "AA==", "10", "\ud800", "a\0b", "x" * 600, "["]
ADDRESSES = ["http://[bad", "data:image/png;base64,é", "data:image/png;base64,AA==", "//rel", "/a\0b"]
ODD = st.sampled_from([*NAMES, *ADDRESSES, 10**4200, [[[]]], {"type": []}, {"a": {"a": {}}}])
ANY = ODD | st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2), max_leaves=4
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values in it."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


PLACES = {id(rows): [(row, path) for row in rows for path in places(row)] for rows in (LANGCHAIN, LLAMA, OPENAI)}


def rows_like(rows: list[Any]) -> st.SearchStrategy[Any]:
    """The rows with any of their values replaced by another one."""

    def replaced(row_and_place: tuple[Any, tuple[Any, ...]], value: Any) -> Any:
        row, path = row_and_place
        if not path:
            return value
        changed = holder = copy.deepcopy(row)
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value
        return changed

    return st.builds(replaced, st.sampled_from(PLACES[id(rows)]), ANY)


def stored(message: ChatMessage) -> ChatMessage:
    """The message as a database gives it back."""
    encode(message).encode()
    return decode(encode(message), id="stored", created_at=None)


def equal(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


SETTINGS = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])


@SETTINGS
@given(row=rows_like(LANGCHAIN))
def test_a_row_of_langchain(row: Any) -> None:
    try:
        message = LangChainReader().message(json.dumps(row), "1")
    except InvalidMessageError:
        return
    back = to_langchain([stored(message)])
    try:
        theirs: list[BaseMessage] = messages_from_dict([copy.deepcopy(row)])
    except Exception:  # noqa: BLE001 - it raises what its own code happens to raise
        return
    back[0].id = theirs[0].id if back[0].id == "stored" else back[0].id
    if isinstance(row["data"].get("content"), dict):
        return  # LangChain writes a text for it, in an order of keys that JSON does not promise
    assert equal(messages_to_dict(back), messages_to_dict(theirs))


@SETTINGS
@given(row=rows_like(LLAMA))
def test_a_row_of_llama_index(row: Any) -> None:
    try:
        message = LlamaIndexReader().message(json.dumps(row), "1")
    except InvalidMessageError:
        return
    back = to_llama_index([stored(message)])
    try:
        theirs = LlamaMessage.model_validate(row)
    except Exception:  # noqa: BLE001 - it raises what its own code happens to raise
        return
    for ours, block in zip(back[0].blocks, theirs.blocks, strict=True):
        for guessed in ("image_mimetype", "video_mimetype", "document_mimetype", "format"):
            # It guesses them anew from the name of a file each time that it reads a row which has none.
            if getattr(ours, guessed, "") is None:
                setattr(block, guessed, None)
    assert equal([one.model_dump(mode="json") for one in back], [theirs.model_dump(mode="json")])


@SETTINGS
@given(rows=st.lists(rows_like(OPENAI) | st.sampled_from(OPENAI), max_size=4))
def test_rows_of_the_agents_sdk(rows: list[Any]) -> None:
    reader = OpenAIItemsReader()
    items = [item for number, row in enumerate(rows) for item in reader.read(json.dumps(row), str(number), None)]
    items += reader.end()
    bad = {int(item.row) for item in items if item.message is None}
    messages = [stored(item.message) for item in items if item.message is not None]
    assert equal(to_openai_responses(messages), [row for number, row in enumerate(rows) if number not in bad])
    assert len({item.row for item in items}) == len(items)


@pytest.mark.parametrize("text", ["[" * 5000, '{"a":' * 5000, "", "nul", b"\xff\xfe", None, b"\x00{", '{"type": NaN}'])
def test_what_is_no_row_at_all(text: Any) -> None:
    for read in (LangChainReader().message, LlamaIndexReader().message):
        with pytest.raises(InvalidMessageError):
            read(text, "1")
    (item,) = OpenAIItemsReader().read(text, "1", None)
    assert item.problem
