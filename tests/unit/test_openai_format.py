from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from memory_engine.errors import InvalidMessageError
from memory_engine.formats.openai import from_openai, to_openai
from memory_engine.messages import (
    AudioBlock,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    VideoBlock,
)

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}


def test_a_conversation_with_tools_goes_in_and_out() -> None:
    conversation: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Bern?", "name": "ada"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "assistant", "content": "It is sunny."},
    ]
    messages = from_openai(conversation)
    assert messages[2].tool_calls == (ToolCallBlock(id="c1", name="weather", arguments='{"city": "Bern"}'),)
    assert messages[3] == ChatMessage(role="tool", tool_call_id="c1", content="sunny")
    assert not any(message.metadata for message in messages)
    assert to_openai(messages) == conversation


def test_parts_become_blocks() -> None:
    content = [
        {"type": "text", "text": "See:"},
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,QUJD", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "mp3"}},
        {"type": "video_url", "video_url": {"url": "https://x/y.mp4"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD"}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ]
    message = ChatMessage.from_openai({"role": "user", "content": content})
    assert message.blocks == (
        TextBlock(text="See:"),
        ImageBlock(data="QUJD", mime_type="image/jpeg", detail="low"),
        ImageBlock(url="https://x/y.png"),
        AudioBlock(data="QUJD", format="mp3"),
        VideoBlock(url="https://x/y.mp4"),
        DocumentBlock(data="QUJD", mime_type="application/pdf", title="a.pdf"),
        DocumentBlock(file_id="file-1"),
    )
    assert not message.metadata
    assert message.to_openai() == {"role": "user", "content": content}


def test_unknown_keys_are_kept_where_they_were() -> None:
    value: dict[str, Any] = {
        "role": "assistant",
        "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
        "refusal": "no",
        "annotations": [{"type": "url_citation"}],
        "reasoning_content": "thinking",
        "tool_calls": [{**CALL, "extra_content": {"signature": "s"}}],
    }
    message = ChatMessage.from_openai(value)
    assert message.metadata["openai"]["refusal"] == "no"
    assert message.blocks[0] == ThinkingBlock(text="thinking")
    assert message.to_openai() == value


def test_keys_without_a_value_are_left_out() -> None:
    nothing = {"refusal": None, "audio": None, "function_call": None, "tool_calls": None, "name": None}
    message = ChatMessage.from_openai({"role": "assistant", "content": "x", **nothing})
    assert message == ChatMessage(role="assistant", content="x")


def test_identity_and_metadata_are_taken_over() -> None:
    message = ChatMessage.from_openai({"role": "user", "content": "x", "id": "m1", "metadata": {"k": 1}, "extra": True})
    assert message.id == "m1" and message.metadata == {"k": 1, "openai": {"extra": True}}
    assert message.to_openai() == {"role": "user", "content": "x", "extra": True}


def test_objects_of_the_sdk_are_taken_too() -> None:
    class Function(BaseModel):
        name: str
        arguments: str

    class Call(BaseModel):
        id: str
        function: Function
        type: str = "function"

    class Message(BaseModel):
        role: str = "assistant"
        content: str | None = None
        refusal: str | None = None
        tool_calls: list[Call] | None = None

    call = Call(id="c1", function=Function(name="weather", arguments='{"city": "Bern"}'))
    assert ChatMessage.from_openai(Message(tool_calls=[call])).to_openai()["tool_calls"] == [CALL]


def test_several_results_make_several_dicts() -> None:
    results = [ToolResultBlock(tool_call_id="1", content="a"), ToolResultBlock(tool_call_id="2", content="b")]
    message = ChatMessage(role="tool", blocks=[*results, ImageBlock(url="u")])
    assert to_openai([message]) == [
        {"role": "tool", "tool_call_id": "1", "content": "a"},
        {
            "role": "tool",
            "tool_call_id": "2",
            "content": [{"type": "text", "text": "b"}, {"type": "image_url", "image_url": {"url": "u"}}],
        },
    ]
    with pytest.raises(InvalidMessageError, match=r"to_openai\(\[message\]\)"):
        message.to_openai()
    single = ChatMessage(role="tool", blocks=results[:1])
    assert single.to_openai() == {"role": "tool", "tool_call_id": "1", "content": "a"}


def test_arguments_that_are_a_dict_go_out_as_json_text() -> None:
    message = ChatMessage(role="assistant", blocks=[ToolCallBlock(id="c1", name="weather", arguments={"city": "Bern"})])
    assert message.to_openai() == {"role": "assistant", "content": None, "tool_calls": [CALL]}


def test_inserted_memory_is_part_of_the_text_and_does_not_move_unknown_keys() -> None:
    inserted = TextBlock(text="<memory/>", origin="memory")
    system = ChatMessage(role="system", blocks=[TextBlock(text="Be brief."), inserted])
    assert system.to_openai() == {"role": "system", "content": "Be brief.\n<memory/>"}
    part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    user = ChatMessage.from_openai({"role": "user", "content": [part]})
    user = user.model_copy(update={"blocks": (inserted, *user.blocks)})
    assert user.to_openai()["content"] == [{"type": "text", "text": "<memory/>"}, part]


def test_media_of_our_own_find_a_form() -> None:
    blocks = [
        ImageBlock(data=b"x"),
        AudioBlock(data="QUJD", mime_type="audio/mpeg"),
        AudioBlock(url="u"),
        VideoBlock(data="QUJD"),
        DocumentBlock(url="u", title="t"),
        DocumentBlock(data="QUJD"),
    ]
    assert ChatMessage(role="user", blocks=blocks).to_openai()["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,eA=="}},
        {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "mp3"}},
        {"type": "audio_url", "audio_url": {"url": "u"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,QUJD"}},
        {"type": "file", "file": {"file_url": "u", "filename": "t"}},
        {"type": "file", "file": {"file_data": "QUJD"}},
    ]


def test_reasoning_from_elsewhere_is_left_out() -> None:
    message = ChatMessage(role="assistant", blocks=[ThinkingBlock(text="hm", signature="s"), TextBlock(text="x")])
    assert message.to_openai() == {"role": "assistant", "content": "x"}


def test_what_goes_out_belongs_to_the_caller() -> None:
    message = ChatMessage.from_openai({"role": "user", "content": "x", "extra": {"a": [1]}})
    message.to_openai()["extra"]["a"].append(2)
    assert message.to_openai()["extra"] == {"a": [1]}


def test_metadata_of_another_shape_is_no_obstacle() -> None:
    for metadata in ({"openai": 5}, {"openai": {"_layout": [1]}}, {"openai": {"_layout": {"calls": 1, "parts": [2]}}}):
        assert ChatMessage(role="user", content="x", metadata=metadata).to_openai() == {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("hi", "a dict with 'role' and 'content', not str"),
        ({"role": "user"}, "no 'content'; its keys are 'role'"),
        ({"content": "x"}, "role"),
        ({"role": "user", "content": 5}, "'content' must be text"),
        ({"role": "user", "content": ["x"]}, r"content\[0\] must be a dict"),
        ({"role": "user", "content": [{"type": "hologram"}]}, r"content\[0\] is of the unknown type 'hologram'"),
        ({"role": "user", "content": [{"type": ["x"]}]}, "unknown type"),
        ({"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "x", "input": {}}]}, "from_anthropic"),
        ({"role": "user", "content": [{"type": "text"}]}, "must be text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "needs a dict under 'image_url'"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "exactly one source"),
        ({"role": "user", "content": "\ud800"}, "lone surrogate"),
        ({"role": "assistant", "tool_calls": {}}, "'tool_calls' must be a list"),
        ({"role": "assistant", "tool_calls": ["x"]}, r"tool_calls\[0\] must be a dict"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}, "needs 'id'"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "type": "magic", "magic": {}}]}, "needs 'id' and 'function'"),
        ({"role": "assistant", "tool_calls": [{"id": "1", "function": {}}]}, "name"),
        ({"role": "assistant", "tool_calls": [CALL, CALL]}, "same call id"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "belong to role 'assistant'"),
        ({"role": "tool", "content": "x"}, "tool_call_id"),
        ({"role": "function", "name": "f", "content": "x"}, "tool_calls"),
        ({"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}}, "old form"),
        ({"role": "user", "content": "x", "extra": object()}, "of type object"),
        ({"role": "user", "content": "x", "metadata": 5}, "metadata"),
    ],
)
def test_what_is_no_message_is_refused(value: object, reason: str) -> None:
    with pytest.raises(InvalidMessageError, match=reason):
        ChatMessage.from_openai(value)
