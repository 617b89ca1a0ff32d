"""Messages of LangChain, in and out: of every class and form, equal afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    messages_from_dict,
    messages_to_dict,
)
from langchain_core.messages import ChatMessage as LangChainChatMessage

from memory_engine import ChatMessage, Memory
from memory_engine.errors import InvalidMessageError
from memory_engine.integrations.langchain import (
    from_langchain,
    message_from_langchain,
    message_to_langchain,
    to_langchain,
)
from memory_engine.messages import TextBlock, ToolCallBlock, ToolResultBlock, decode, encode
from memory_engine.tokens import TokenCounter

CALL = {"name": "weather", "args": {"town": "Graz", "days": [1, 2]}, "id": "c1", "type": "tool_call"}
BROKEN = {"name": "add", "args": '{"first": 1,', "id": "c2", "error": "cut off", "type": "invalid_tool_call"}
USAGE = {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13, "input_token_details": {"cache_read": 3}}
GIF = "R0lGODlhAQABAAAAACwAAAAAAQABAAA="

EXAMPLES: dict[str, BaseMessage] = {
    "system": SystemMessage("Be brief.", id="s1", additional_kwargs={"__openai_role__": "developer"}),
    "human": HumanMessage("Hi", name="ada", id="h1"),
    "ai": AIMessage(
        "Let me look.",
        id="a1",
        tool_calls=[CALL],
        invalid_tool_calls=[BROKEN],
        usage_metadata=USAGE,
        response_metadata={"model_name": "m", "logprobs": None},
        additional_kwargs={"refusal": None},
    ),
    "raw calls": AIMessage(
        "",
        additional_kwargs={
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Graz"}'}}]
        },
    ),
    "old call": AIMessage("", additional_kwargs={"function_call": {"name": "f", "arguments": "{}", "more": 1}}),
    "tool": ToolMessage("No", tool_call_id="c1", name="weather", status="error", artifact={"rows": [[1, None], [2.5, "x"]]}),
    "tool with parts": ToolMessage(
        ["No", {"type": "image", "base64": GIF, "mime_type": "image/gif"}], tool_call_id="c", status="error"
    ),
    "function": FunctionMessage(name="f", content="result", id="f1"),
    "chat": LangChainChatMessage(role="moderator", content="Order!", id="m1"),
    "multimodal": HumanMessage(
        [
            "What is this?",
            {"type": "text", "text": "Look:", "cache_control": {"type": "ephemeral"}},
            {"type": "image_url", "image_url": {"url": f"data:image/gif;base64,{GIF}", "detail": "low"}},
            {"type": "image_url", "image_url": "https://example.org/a.png"},
            {"type": "image", "source_type": "base64", "data": GIF, "mime_type": "image/gif", "metadata": {"x": 1}},
            {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": GIF}},
            {"type": "audio", "base64": GIF, "mime_type": "audio/wav", "id": "lc_1"},
            {"type": "input_audio", "input_audio": {"data": GIF, "format": "wav"}},
            {"type": "video", "url": "https://example.org/a.mp4"},
            {"type": "file", "file_id": "file-1", "extras": {"a": 1}},
            {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{GIF}", "filename": "a.pdf"}},
            {"type": "document", "source": {"type": "text", "data": "Plain.", "media_type": "text/plain"}},
            {"type": "text-plain", "text": "Some notes", "mime_type": "text/plain", "title": "Notes"},
            {"type": "non_standard", "value": {"deep": [1, {"er": None}]}},
            {"text": "of no type"},
        ]
    ),
    "reasoning": AIMessage(
        [
            {"type": "reasoning", "reasoning": "Hm.", "extras": {"signature": "x"}},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "thinking", "thinking": "Well.", "signature": "sig"},
            {"type": "redacted_thinking", "data": "encrypted"},
            {"type": "text", "text": "Yes", "annotations": [{"type": "citation", "url": "https://example.org"}]},
            {"type": "tool_use", "id": "c1", "name": "weather", "input": {"town": "Graz", "days": [1, 2]}},
            {"type": "server_tool_call", "name": "search", "args": {"q": "x"}, "id": "srv"},
            {"type": "server_tool_result", "tool_call_id": "srv", "status": "success", "output": "found"},
        ],
        tool_calls=[CALL],
        response_metadata={"output_version": "v1"},
    ),
    "empty": HumanMessage(""),
    "empty list": AIMessage([]),
    "own fields": HumanMessage("Hi", example=True, priority=3),
    "odd ids": AIMessage(
        "x",
        id="x" * 600,
        name="",
        tool_calls=[{**CALL, "id": None}, {**CALL, "id": None}, {**CALL, "id": "", "name": ""}, {**CALL, "id": "y" * 700}],
        invalid_tool_calls=[{"name": None, "args": None, "id": None, "error": None, "type": "invalid_tool_call"}],
    ),
}


def as_json(messages: list[BaseMessage]) -> Any:
    return json.loads(json.dumps(messages_to_dict(messages)))


def stored(message: ChatMessage) -> ChatMessage:
    """The message as a database gives it back."""
    return decode(encode(message), id=message.id, created_at=None)


@pytest.mark.parametrize("name", EXAMPLES)
def test_json_of_every_class_is_equal_after_the_round_trip(name: str) -> None:
    message = EXAMPLES[name]
    before = as_json([message])
    (back,) = to_langchain([stored(ours) for ours in from_langchain([message])])
    assert as_json([back]) == before == as_json([message])
    assert type(back) is type(message) and back == message
    assert messages_from_dict(as_json([back])) == [message]
    # And what is handed out may be changed without changing anything else.
    ours = message_from_langchain(message)
    changed = message_to_langchain(ours)
    changed.additional_kwargs["new"] = 1
    changed.response_metadata["new"] = {}
    if isinstance(changed.content, list):
        changed.content.append("more")
        for part in changed.content:
            if isinstance(part, dict):
                part["new"] = 1
    assert as_json([message_to_langchain(ours)]) == before


# -- generated messages ------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.none() | texts
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, values, max_size=3)
kinds = st.sampled_from(
    [
        "text",
        "image",
        "image_url",
        "audio",
        "input_audio",
        "video",
        "file",
        "document",
        "reasoning",
        "thinking",
        "tool_use",
        "x",
    ]
)
sources = st.dictionaries(
    st.sampled_from(
        ["url", "data", "base64", "file_id", "text", "type", "source", "image_url", "file", "thinking", "signature"]
    ),
    texts | objects | st.sampled_from([GIF, f"data:image/gif;base64,{GIF}", "https://example.org/a.png", "c1"]),
    max_size=4,
)
parts = texts | st.builds(
    lambda kind, source, more: more | source | {"type": kind} if kind else more | source, st.none() | kinds, sources, objects
)
contents = texts | st.lists(parts, max_size=4)
calls = st.builds(lambda name, args, call: {"name": name, "args": args, "id": call}, texts, objects, names)
broken = st.builds(
    lambda name, args, call, error: {"name": name, "args": args, "id": call, "error": error}, names, names, names, names
)
usages = st.builds(
    lambda a, b: {"input_tokens": a, "output_tokens": b, "total_tokens": a + b}, st.integers(0, 999), st.integers(0, 999)
)
common: dict[str, Any] = {
    "content": contents,
    "id": names,
    "name": names,
    "additional_kwargs": objects,
    "response_metadata": objects,
}
generated = st.one_of(
    st.builds(HumanMessage, **common),
    st.builds(SystemMessage, **common),
    st.builds(LangChainChatMessage, role=texts | st.sampled_from(["user", "assistant", "system"]), **common),
    st.builds(FunctionMessage, **common | {"name": texts}),
    st.builds(
        AIMessage,
        tool_calls=st.lists(calls, max_size=3),
        invalid_tool_calls=st.lists(broken, max_size=2),
        usage_metadata=st.none() | usages,
        **common,
    ),
    st.builds(ToolMessage, tool_call_id=texts, artifact=values, status=st.sampled_from(["success", "error"]), **common),
)


@given(message=generated)
def test_generated_messages_are_equal_after_the_round_trip(message: BaseMessage) -> None:
    before = as_json([message])
    ours = message_from_langchain(message)
    back = message_to_langchain(stored(ours))
    assert back == message and as_json([back]) == before
    # The same once more, so that giving back what was handed out is recognised.
    assert encode(message_from_langchain(back)) == encode(ours)
    assert message_from_langchain(back).id == ours.id


@settings(max_examples=20)
@given(message=generated, data=st.data())
def test_what_memory_inserts_is_recognised(message: BaseMessage, data: st.DataObject) -> None:
    ours = message_from_langchain(message)
    inserted = [
        TextBlock(text=text, origin="memory") for text in data.draw(st.lists(texts.filter(str.strip), min_size=1, max_size=2))
    ]
    before = data.draw(st.booleans())
    if ours.role == "tool":
        return
    shown = ours.model_copy(update={"blocks": (*inserted, *ours.blocks) if before else (*ours.blocks, *inserted)})
    back = message_from_langchain(message_to_langchain(shown))
    said = [block for block in back.blocks if block.origin is None]
    if ours.blocks:
        assert said == list(ours.blocks) and back.metadata == ours.metadata
    else:
        assert said == []


# -- rules -------------------------------------------------------------------------------------------------------


def test_calls_and_results_are_first_class() -> None:
    call, answer = from_langchain([EXAMPLES["ai"], EXAMPLES["tool"]])
    assert [(block.id, block.name, block.arguments) for block in call.tool_calls] == [
        ("c1", "weather", {"town": "Graz", "days": [1, 2]}),
        ("c2", "add", '{"first": 1,'),
    ]
    (block,) = answer.blocks
    assert isinstance(block, ToolResultBlock) and (block.tool_call_id, block.is_error) == ("c1", True)
    old, result = from_langchain([EXAMPLES["old call"], EXAMPLES["function"]])
    assert old.tool_calls[0].id == result.tool_call_id == "function:f"


def test_roles() -> None:
    roles = {name: message_from_langchain(message).role for name, message in EXAMPLES.items()}
    assert roles["system"] == "developer" and roles["human"] == "user" and roles["ai"] == "assistant"
    assert roles["tool"] == roles["function"] == "tool" and roles["chat"] == "user"
    assert message_from_langchain(LangChainChatMessage(role="assistant", content="x")).role == "assistant"
    developer = message_to_langchain(ChatMessage(role="developer", content="x"))
    assert isinstance(developer, SystemMessage) and message_from_langchain(developer).role == "developer"


def test_chunks_count_as_messages() -> None:
    chunk = AIMessageChunk("Hel") + AIMessageChunk("lo", tool_calls=[]) + AIMessageChunk("", id="a1")
    (back,) = to_langchain(from_langchain([chunk]))
    assert back == AIMessage("Hello", id=back.id) and type(back) is AIMessage
    assert type(to_langchain(from_langchain([HumanMessageChunk("x")]))[0]) is HumanMessage


def test_what_is_no_message_is_refused() -> None:
    with pytest.raises(InvalidMessageError, match=r"memory\.delete"):
        message_from_langchain(RemoveMessage(id="x"))
    with pytest.raises(InvalidMessageError, match="dict"):
        message_from_langchain({"role": "user", "content": "x"})
    with pytest.raises(InvalidMessageError, match="other"):
        message_from_langchain(BaseMessage(content="x", type="other"))
    with pytest.raises(InvalidMessageError, match=r"content\[0\].*bytes"):
        message_from_langchain(HumanMessage([{"type": "image", "image": {"bytes": b"x"}}]))
    with pytest.raises(InvalidMessageError, match="surrogate"):
        message_from_langchain(HumanMessage("\ud800"))
    with pytest.raises(InvalidMessageError, match="arguments"):
        message_from_langchain(AIMessage("", tool_calls=[{"name": "f", "args": {"x": {1, 2}}, "id": "c"}]))


def test_what_json_does_not_have_is_left_out_by_name() -> None:
    message = ToolMessage("42", tool_call_id="c1", artifact={"frame": object()}, response_metadata={"at": b"x", "ok": 1})
    ours = message_from_langchain(message)
    assert ours.metadata["langchain"]["left_out"] == ["response_metadata.at", "artifact"]
    back = message_to_langchain(ours)
    assert isinstance(back, ToolMessage) and back.artifact is None and back.response_metadata == {"ok": 1}


def test_a_shortened_copy_goes_out_shortened() -> None:
    raw = [{"id": n, "type": "function", "function": {"name": "weather", "arguments": "{}"}} for n in ("c1", "c2")]
    part = {"type": "tool_use", "name": "weather", "input": {}}
    message = AIMessage(
        [{"type": "text", "text": "A long answer", "index": 0}, part | {"id": "c1"}, part | {"id": "c2"}],
        tool_calls=[{"name": "weather", "args": {}, "id": "c1"}, {"name": "weather", "args": {}, "id": "c2"}],
        additional_kwargs={"tool_calls": raw},
        id="a1",
    )
    ours = message_from_langchain(message)
    blocks = (
        TextBlock(text="A […] answer"),
        *(block for block in ours.blocks if isinstance(block, ToolCallBlock) and block.id == "c2"),
    )
    back = message_to_langchain(ours.model_copy(update={"blocks": blocks, "partial": True}))
    assert isinstance(back, AIMessage)
    assert back.content == [{"type": "text", "text": "A […] answer", "index": 0}, part | {"id": "c2"}]
    assert [call["id"] for call in back.tool_calls] == ["c2"] and back.additional_kwargs["tool_calls"] == raw[1:]
    assert message_from_langchain(back).partial and message_from_langchain(back).id == "a1"
    # Without any call left none comes back through the raw ones.
    back = message_to_langchain(ours.model_copy(update={"blocks": blocks[:1], "partial": True}))
    assert isinstance(back, AIMessage) and back.tool_calls == []
    # A part that was JSON and was cut becomes text.
    odd = message_from_langchain(ToolMessage([{"type": "odd", "rows": list(range(500))}], tool_call_id="c1"))
    cut = odd.model_copy(update={"blocks": (TextBlock(text='{"rows": [1, […]'),), "partial": True})
    assert message_to_langchain(cut).content == [{"type": "text", "text": '{"rows": [1, […]'}]


def test_parts_cost_what_they_say() -> None:
    count = TokenCounter().message
    rows = {"type": "odd", "rows": list(range(500))}
    assert count(message_from_langchain(HumanMessage([rows]))) >= TokenCounter().text(json.dumps(rows["rows"]))
    image = HumanMessage([{"type": "image", "base64": GIF * 5_000, "mime_type": "image/gif"}])
    assert count(message_from_langchain(image)) < 1_100


def test_messages_that_did_not_come_from_langchain() -> None:
    ours = [
        ChatMessage.from_openai({"role": "user", "content": "Hi", "id": "u1", "metadata": {"topic": "tea"}}),
        ChatMessage(
            role="assistant",
            blocks=[
                {"type": "thinking", "text": "Hm."},
                {"type": "text", "text": "One"},
                {"type": "text", "text": "Two"},
                {"type": "tool_call", "id": "c1", "name": "f", "arguments": '{"x": 1}'},
                {"type": "tool_call", "id": "c2", "name": "f", "arguments": "{x"},
            ],
        ),
        ChatMessage(
            role="tool",
            blocks=[
                ToolResultBlock(tool_call_id="c1", content="1"),
                ToolResultBlock(tool_call_id="c2", content="2", is_error=True),
            ],
            id="t",
        ),
        ChatMessage(
            role="user", blocks=[{"type": "text", "text": "See"}, {"type": "image", "url": "https://example.org/a.png"}]
        ),
    ]
    user, assistant, one, two, picture = to_langchain(ours)
    assert message_from_langchain(user) == ours[0]
    assert assistant.content == "One\nTwo" and isinstance(assistant, AIMessage)
    assert [call["args"] for call in assistant.tool_calls] == [{"x": 1}]
    assert [call["args"] for call in assistant.invalid_tool_calls] == ["{x"]
    assert isinstance(one, ToolMessage) and isinstance(two, ToolMessage)
    assert (one.tool_call_id, one.content, one.status, one.id) == ("c1", "1", "success", "t:c1")
    assert (two.tool_call_id, two.content, two.status, two.id) == ("c2", "2", "error", "t:c2")
    assert picture.content == [{"type": "text", "text": "See"}, {"type": "image", "url": "https://example.org/a.png"}]
    with pytest.raises(InvalidMessageError, match="2 tool calls"):
        message_to_langchain(ours[2])


async def test_a_conversation_with_tools_is_equal_after_a_restart(tmp_path: Path) -> None:
    said = [
        HumanMessage("How is it?", id="1"),
        AIMessage("", tool_calls=[{"name": "weather", "args": {"a": 1}, "id": "c1"}], id="2"),
        ToolMessage("No forecast", tool_call_id="c1", status="error", id="3"),
        AIMessage("I cannot say.", id="4"),
    ]
    uri = f"sqlite+aiosqlite:///{tmp_path}/memory.db"
    async with Memory.from_defaults("a21", async_database_uri=uri) as memory:
        await memory.put_messages(from_langchain(said))
    async with Memory.from_defaults("a21", async_database_uri=uri) as memory:
        assert to_langchain(await memory.get()) == said
        assert to_langchain(await memory.get_all()) == said
