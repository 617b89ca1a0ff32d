"""Whatever a message accepts comes back from its JSON exactly."""

from __future__ import annotations

import json
import math
from datetime import UTC
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from memory_engine.errors import InvalidMessageError
from memory_engine.formats import openai
from memory_engine.messages import (
    AudioBlock,
    ChatMessage,
    ContentBlock,
    DocumentBlock,
    FrozenDict,
    FrozenList,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    VideoBlock,
    coerce,
    decode,
    encode,
    freeze_json,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**4000) + 1, max_value=10**4000 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8
)
objects = st.dictionaries(text, json_values, max_size=3)
base64_text = st.binary(max_size=20)
marks: dict[str, st.SearchStrategy[Any]] = {
    "origin": st.none() | st.just("memory"),
    "value": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "seq": st.none() | st.integers(0, 2**63),
}
source = st.fixed_dictionaries({"url": text}) | st.fixed_dictionaries(
    {"data": base64_text, "mime_type": st.none() | st.from_regex(r"\A[!-+\--~]{1,20}\Z")}
)


def media(cls: Any, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(lambda given, **rest: cls(**given, **rest), source, **marks, **more)


texts = st.builds(TextBlock, text=text, tag=st.none() | st.from_regex(r"\A[A-Za-z][A-Za-z0-9_-]{0,10}\Z"), **marks)
thinking = st.builds(ThinkingBlock, text=text, signature=st.none() | text, redacted=st.booleans(), **marks)
calls = st.builds(ToolCallBlock, id=ids, name=ids, arguments=objects | text, **marks)
results = st.builds(ToolResultBlock, tool_call_id=ids, content=text, is_error=st.booleans(), **marks)
media_blocks = (
    media(ImageBlock, detail=st.none() | ids)
    | media(AudioBlock, format=st.none() | ids)
    | media(VideoBlock)
    | media(DocumentBlock, title=st.none() | text)
    | st.builds(DocumentBlock, file_id=ids)
)


def unique(blocks: st.SearchStrategy[Any], field: str, **size: int) -> st.SearchStrategy[list[Any]]:
    return st.lists(blocks, max_size=3, unique_by=lambda block: getattr(block, field), **size)


common: dict[str, st.SearchStrategy[Any]] = {
    "id": st.none() | ids,
    "name": st.none() | ids,
    "created_at": st.none() | st.datetimes(timezones=st.just(UTC)),
    "metadata": objects.filter(lambda value: "pinned" not in value),
}
plain_blocks = st.lists(texts | media_blocks | thinking, max_size=4)
messages = (
    st.builds(ChatMessage, role=st.sampled_from(["system", "developer", "user", "assistant"]), blocks=plain_blocks, **common)
    | st.builds(
        lambda a, b, **rest: ChatMessage(role="assistant", blocks=[*a, *b], **rest), plain_blocks, unique(calls, "id"), **common
    )
    | st.builds(ChatMessage, role=st.just("tool"), blocks=plain_blocks, tool_call_id=ids, **common)
    | st.builds(ChatMessage, role=st.just("tool"), blocks=unique(results, "tool_call_id", min_size=1), **common)
)


def identical(first: Any, second: Any) -> bool:
    """Equal, of the same types, and with keys in the same order, all the way down (1 is not 1.0, 0.0 is not -0.0)."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return list(first) == list(second) and all(identical(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(identical, first, second))
    if isinstance(first, (ChatMessage, *ContentBlock.__origin__.__args__)):
        return identical(first.__dict__, second.__dict__)
    if isinstance(first, float):
        return first == second and math.copysign(1, first) == math.copysign(1, second)
    return bool(first == second)


@given(messages)
def test_encode_and_decode_are_exact(message: ChatMessage) -> None:
    data = encode(message)
    back = decode(data, id=message.id, created_at=message.created_at)
    assert identical(back, message) and back == message and hash(back) == hash(message)
    assert encode(back) == data
    data.encode()


@given(messages)
def test_dumps_are_exact(message: ChatMessage) -> None:
    assert identical(ChatMessage.model_validate_json(message.model_dump_json()), message)
    assert identical(ChatMessage.model_validate(message.model_dump()), message)
    assert identical(coerce(json.loads(message.model_dump_json())), message)


@given(messages, messages)
def test_equal_json_means_equal_content(first: ChatMessage, second: ChatMessage) -> None:
    same = {"id": None, "created_at": None}
    if encode(first) == encode(second):
        assert first.model_copy(update=same) == second.model_copy(update=same)


@given(messages, st.none() | ids, st.booleans())
def test_json_does_not_depend_on_identity(message: ChatMessage, message_id: str | None, partial: bool) -> None:
    other = message.model_copy(update={"id": message_id, "created_at": None, "partial": partial})
    assert encode(other) == encode(message)


def only_frozen(value: Any) -> bool:
    if isinstance(value, dict):
        return type(value) is FrozenDict and all(only_frozen(item) for item in value.values())
    if isinstance(value, list):
        return type(value) is FrozenList and all(only_frozen(item) for item in value)
    return not isinstance(value, (set, bytearray))


@given(messages)
def test_everything_inside_is_frozen(message: ChatMessage) -> None:
    for each in (message, decode(encode(message), id=None, created_at=None)):
        assert only_frozen(each.metadata) and type(each.blocks) is tuple
        assert all(only_frozen(call.arguments) for call in each.tool_calls)


anything = st.recursive(
    scalars | st.text() | st.floats() | st.binary(max_size=3) | st.just(object()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=8,
)


@given(anything)
def test_a_value_is_kept_exactly_or_refused(value: Any) -> None:
    try:
        frozen = freeze_json(value)
    except ValueError:
        return
    assert only_frozen(frozen) and identical(freeze_json(json.loads(json.dumps(frozen))), frozen)


@given(st.text())
def test_text_is_kept_exactly_or_refused(content: str) -> None:
    try:
        message = ChatMessage(role="user", content=content)
    except ValidationError as error:
        assert "lone surrogate" in str(error)
        return
    assert decode(encode(message), id=None, created_at=None).content == content


# -- OpenAI --------------------------------------------------------------------------------------------------

present = scalars.filter(lambda value: value is not None) | st.lists(text, max_size=2)
unknown = st.dictionaries(st.sampled_from(["cache_control", "annotations", "x"]), present, max_size=2)


def with_unknown(known: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda extra, fields: {**extra, **fields}, unknown, known)


def part(kind: str, body: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return with_unknown(st.fixed_dictionaries({"type": st.just(kind), kind: body}))


urls = text | st.binary(max_size=10).map(lambda data: "data:image/png;base64," + data.hex())
parts = (
    part("text", text)
    | part("image_url", with_unknown(st.fixed_dictionaries({"url": urls}, optional={"detail": ids})))
    | part("video_url", with_unknown(st.fixed_dictionaries({"url": urls})))
    | part("audio_url", st.fixed_dictionaries({"url": urls}))
    | part("input_audio", with_unknown(st.fixed_dictionaries({"data": st.just("QUJD"), "format": ids})))
    | part(
        "file",
        with_unknown(st.fixed_dictionaries({"file_data": st.just("data:application/pdf;base64,QUJD"), "filename": text})),
    )
    | part("file", st.fixed_dictionaries({"file_id": ids}))
)
contents = text | st.lists(parts, max_size=3)
function_calls = st.fixed_dictionaries(
    {"type": st.just("function"), "id": ids, "function": st.fixed_dictionaries({"name": ids, "arguments": text})}
)
custom_calls = st.fixed_dictionaries(
    {"type": st.just("custom"), "id": ids, "custom": st.fixed_dictionaries({"name": ids, "input": text})}
)
tool_calls = st.lists(with_unknown(function_calls | custom_calls), min_size=1, max_size=3, unique_by=lambda call: call["id"])
openai_dicts = with_unknown(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user"]), "content": contents}, optional={"name": ids}
    )
    | st.fixed_dictionaries({"role": st.just("tool"), "content": contents, "tool_call_id": ids})
    | st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": st.none() | text | st.lists(parts | part("refusal", text), max_size=3)},
        optional={"tool_calls": tool_calls, "refusal": text, "reasoning_content": text, "name": ids},
    )
)


@given(openai_dicts)
def test_openai_dicts_come_out_as_they_went_in(value: dict[str, Any]) -> None:
    message = ChatMessage.from_openai(value)
    assert message.to_openai() == value
    back = decode(encode(message), id=None, created_at=None)
    assert back == message and back.to_openai() == value
    assert coerce(value).content == message.content


@given(st.lists(messages, max_size=3))
def test_every_message_has_an_openai_form_that_is_json(conversation: list[ChatMessage]) -> None:
    dumped = openai.to_openai(conversation)
    assert json.loads(json.dumps(dumped)) == dumped
    again = openai.from_openai(dumped)
    assert [call.id for m in again for call in m.tool_calls] == [call.id for m in conversation for call in m.tool_calls]
    assert [i for m in again for i in m.tool_results] == [i for m in conversation for i in m.tool_results]


@given(
    role=st.sampled_from(["system", "developer", "user", "assistant", "tool", "nobody", "", None]),
    content=st.one_of(st.text(), st.text(st.characters(max_codepoint=127)), st.none(), st.integers(), st.just("\ud800")),
)
def test_a_plain_dict_is_read_as_any_other(role: Any, content: Any) -> None:
    """The short way gives what validation gives, or leaves it to validation."""
    plain = {"role": role, "content": content}
    try:
        expected: ChatMessage | None = ChatMessage.model_validate(plain)
    except ValidationError:
        expected = None
    if expected is None:
        with pytest.raises(InvalidMessageError):
            coerce(plain)
        return
    found = coerce(plain)
    assert found == expected and found.model_dump() == expected.model_dump()
    assert found.model_fields_set == expected.model_fields_set
    assert [block.model_fields_set for block in found.blocks] == [block.model_fields_set for block in expected.blocks]
    assert encode(found) == encode(expected) and hash(found) == hash(expected)
