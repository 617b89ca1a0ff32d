from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from pydantic import ValidationError

from memory_engine.errors import InvalidMessageError
from memory_engine.messages import (
    AudioBlock,
    ChatMessage,
    DocumentBlock,
    FrozenDict,
    FrozenList,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    coerce,
    decode,
    encode,
    freeze_json,
    without_memory,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def stored(message: ChatMessage) -> ChatMessage:
    return decode(encode(message), id=message.id, created_at=message.created_at)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


# -- construction --------------------------------------------------------------------------------------------


def test_content_and_blocks_make_the_same_message() -> None:
    message = ChatMessage(role="user", content="hi")
    assert message == ChatMessage(role="user", blocks=[TextBlock(text="hi")])
    assert message == ChatMessage(role="user", content=[{"type": "text", "text": "hi"}])
    assert message.content == "hi"


def test_content_joins_the_text_blocks() -> None:
    blocks = [TextBlock(text="a"), ImageBlock(url="http://x/y.png"), ThinkingBlock(text="hm"), TextBlock(text="b")]
    assert ChatMessage(role="assistant", blocks=blocks).content == "a\nb"


def test_no_content_means_no_blocks_and_empty_text_is_text() -> None:
    assert ChatMessage(role="assistant", content=None).blocks == ()
    assert ChatMessage(role="assistant").blocks == ()
    assert ChatMessage(role="assistant", content="").blocks == (TextBlock(text=""),)


def test_positional_arguments_are_refused_with_the_right_call() -> None:
    with pytest.raises(TypeError, match=r"ChatMessage\(role=\.\.\., content=\.\.\.\)"):
        ChatMessage("user", "hi")
    with pytest.raises(TypeError, match=r"TextBlock\(text=\.\.\.\)"):
        TextBlock("hi")
    with pytest.raises(TypeError, match=r"ImageBlock\(url=\.\.\.\)"):
        ImageBlock("http://x")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"role": "robot", "content": "x"}, "'system', 'developer', 'user', 'assistant' or 'tool'"),
        ({"content": "x"}, "role"),
        ({"role": "user", "content": 5}, "content must be text"),
        ({"role": "user", "content": b"x"}, "content must be text"),
        ({"role": "user", "content": "a", "blocks": []}, "not both"),
        ({"role": "user", "contents": "a"}, "contents"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "from_openai"),
        ({"role": "user", "content": "\ud83d"}, "lone surrogate"),
        ({"role": "user", "content": "x", "id": ""}, "1 to 512"),
        ({"role": "user", "content": "x", "id": "a\0"}, "NUL"),
        ({"role": "user", "content": "x", "id": "x" * 513}, "512"),
        ({"role": "user", "content": "x", "name": "\udfff"}, "lone surrogate"),
        ({"role": "user", "content": "x", "id": 7}, "must be text"),
        ({"role": "user", "content": "x", "created_at": datetime(2026, 1, 1)}, "timezone"),
        ({"role": "user", "content": "x", "created_at": datetime.min.replace(tzinfo=timezone(timedelta(hours=5)))}, "years 1"),
        ({"role": "user", "content": "x", "metadata": {"pinned": 1}}, "True or False"),
        ({"role": "user", "content": "x", "metadata": [1]}, "must be a dict"),
        ({"role": "user", "content": "x", "metadata": {"a": {"b": [0, {1}]}}}, r"\['a'\]\['b'\]\[1\] is of type set"),
        ({"role": "user", "content": "x", "metadata": {1: 2}}, "JSON keys are text"),
        ({"role": "user", "content": "x", "metadata": {"a": float("nan")}}, "nan, which JSON does not have"),
        ({"role": "user", "content": "x", "metadata": {"a": float("inf")}}, "inf"),
        ({"role": "user", "content": "x", "metadata": {"a": 10**4000}}, "4000 digits"),
        ({"role": "user", "content": "x", "metadata": {"a": "\ud800"}}, "lone surrogate"),
        ({"role": "user", "content": "x", "metadata": {"a": nested(100)}}, "100 levels"),
        ({"role": "user", "content": "x", "tool_call_id": "1"}, "belongs to role 'tool'"),
        ({"role": "tool", "content": "x"}, "needs either"),
        ({"role": "tool", "blocks": [ToolResultBlock(tool_call_id="1", content="")], "tool_call_id": "1"}, "needs either"),
        ({"role": "user", "blocks": [ToolResultBlock(tool_call_id="1", content="")]}, "results belong to role 'tool'"),
        ({"role": "user", "blocks": [ToolCallBlock(id="1", name="f")]}, "calls belong to role 'assistant'"),
        ({"role": "assistant", "blocks": [ToolCallBlock(id="1", name="f")] * 2}, "same call id"),
        ({"role": "tool", "blocks": [ToolResultBlock(tool_call_id="1", content="")] * 2}, "same call id"),
        ({"role": "assistant", "blocks": [ToolCallBlock(id="1", name="f")], "metadata": {"pinned": True}}, "cannot be pinned"),
        ({"role": "tool", "tool_call_id": "1", "content": "", "metadata": {"pinned": True}}, "cannot be pinned"),
        ({"role": "user", "content": [{"type": "image"}]}, "exactly one source"),
        ({"role": "user", "content": [{"type": "image", "url": "u", "data": "AA"}]}, "exactly one source"),
        ({"role": "user", "content": [{"type": "image", "data": "data:image/png;base64,AA"}]}, "without a 'data:"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "tag": "a b>"}]}, "pattern"),
        ({"role": "user", "content": [{"type": "image", "data": "AA", "mime_type": "a,b"}]}, "pattern"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "value": float("inf")}]}, "finite"),
    ],
)
def test_wrong_messages_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        ChatMessage(**fields)
    if "contents" not in fields and "tool_calls" not in fields:
        with pytest.raises(InvalidMessageError, match=reason):
            coerce({"content": None, **fields} if "blocks" not in fields else fields)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.extend([loop, loop])
    with pytest.raises(ValidationError, match="contains itself"):
        ChatMessage(role="user", content="x", metadata={"loop": loop})


def test_errors_do_not_repeat_the_text() -> None:
    with pytest.raises(ValidationError) as caught:
        ChatMessage(role="user", content="my secret \ud800")
    assert "secret" not in str(caught.value)


def test_times_are_kept_in_utc() -> None:
    local = NOW.astimezone(timezone(timedelta(hours=-7)))
    message = ChatMessage(role="user", content="x", created_at=local)
    assert message.created_at == NOW and message.created_at.tzinfo is UTC


def test_enums_become_their_values() -> None:
    class Roles(StrEnum):
        USER = "user"

    class Levels(IntEnum):
        HIGH = 3

    message = ChatMessage(role=Roles.USER, content=Roles.USER, metadata={"a": Levels.HIGH, "b": (Roles.USER, True)})
    assert type(message.role) is str and type(message.content) is str
    assert type(message.metadata["a"]) is int and type(message.metadata["b"][0]) is str and message.metadata["b"][1] is True
    assert stored(message) == message


def test_bytes_of_media_become_base64() -> None:
    assert ImageBlock(data=b"\x00\xff", mime_type="image/png").data == "AP8="


def test_a_file_may_be_named_by_its_id_at_the_provider() -> None:
    assert DocumentBlock(file_id="file-1").url is None


# -- immutability --------------------------------------------------------------------------------------------


def test_nothing_of_a_message_can_be_changed() -> None:
    arguments: dict[str, Any] = {"list": [1, {"deep": [2]}]}
    metadata: dict[str, Any] = {"tags": ["a"]}
    call = ToolCallBlock(id="1", name="f", arguments=arguments)
    message = ChatMessage(role="assistant", blocks=[call], metadata=metadata)
    arguments["list"][1]["deep"].append(3)
    metadata["tags"].append("b")
    assert message.tool_calls[0].arguments == {"list": [1, {"deep": [2]}]} and message.metadata == {"tags": ["a"]}
    with pytest.raises(ValidationError, match="frozen"):
        message.role = "user"
    with pytest.raises(ValidationError, match="frozen"):
        del message.role
    with pytest.raises(ValidationError, match="frozen"):
        call.id = "2"


DICT_CHANGES: list[Callable[[Any], Any]] = [
    lambda d: d.__setitem__("a", 1),
    lambda d: d.__delitem__("a"),
    lambda d: d.__ior__({"a": 1}),
    lambda d: d.update(a=1),
    lambda d: d.setdefault("b", 1),
    lambda d: d.pop("a"),
    lambda d: d.popitem(),
    lambda d: d.clear(),
]
LIST_CHANGES: list[Callable[[Any], Any]] = [
    lambda v: v.__setitem__(0, 1),
    lambda v: v.__delitem__(0),
    lambda v: v.__iadd__([1]),
    lambda v: v.__imul__(2),
    lambda v: v.append(1),
    lambda v: v.extend([1]),
    lambda v: v.insert(0, 1),
    lambda v: v.pop(),
    lambda v: v.remove(1),
    lambda v: v.clear(),
    lambda v: v.sort(),
    lambda v: v.reverse(),
]


@pytest.mark.parametrize("change", DICT_CHANGES)
def test_a_frozen_dict_cannot_be_changed(change: Callable[[Any], Any]) -> None:
    value = FrozenDict({"a": [1]})
    with pytest.raises(TypeError, match="cannot be changed"):
        change(value)
    value.__init__({"b": 2})  # type: ignore[misc]
    assert value == {"a": [1]} and type(value["a"]) is FrozenList


@pytest.mark.parametrize("change", LIST_CHANGES)
def test_a_frozen_list_cannot_be_changed(change: Callable[[Any], Any]) -> None:
    value = FrozenList([1, {"a": 1}])
    with pytest.raises(TypeError, match="cannot be changed"):
        change(value)
    value.__init__([2])  # type: ignore[misc]
    assert value == [1, {"a": 1}] and type(value[1]) is FrozenDict


def test_frozen_values_look_like_json_to_everybody() -> None:
    value = freeze_json({"b": (1, None), "a": {}})
    assert value == {"a": {}, "b": [1, None]} and list(value) == ["a", "b"]
    assert json.loads(json.dumps(value)) == value
    assert type(value | {"c": 1}) is dict
    assert hash(value) == hash(freeze_json({"a": {}, "b": [1, None]}))


def test_copies_and_pickles_are_equal_and_frozen() -> None:
    message = ChatMessage(role="user", content="x", metadata={"a": [{"b": 1}]}, id="1", created_at=NOW)
    assert copy.copy(message) is message and copy.deepcopy(message) is message and message.model_copy() is message
    twin = pickle.loads(pickle.dumps(message))
    assert twin == message and hash(twin) == hash(message)
    assert type(twin.metadata) is FrozenDict and type(twin.metadata["a"]) is FrozenList


def test_changed_copies_are_validated_and_frozen() -> None:
    message = ChatMessage(role="user", content="x", id="1")
    tags = ["a"]
    changed = message.model_copy(update={"metadata": {"tags": tags}, "partial": True})
    tags.append("b")
    assert changed.metadata == {"tags": ["a"]} and changed.partial and changed.id == "1" and changed.blocks is not None
    assert message.model_copy(update={"content": "y"}).content == "y"
    with pytest.raises(ValidationError):
        message.model_copy(update={"role": "tool"})


def test_a_subclass_cannot_smuggle_in_what_is_not_stored() -> None:
    class Noted(TextBlock):
        note: str = "n"

    class NotedMessage(ChatMessage):
        note: str = "n"

    with pytest.raises(ValidationError, match="note"):
        ChatMessage(role="user", blocks=[Noted(text="x")])
    with pytest.raises(InvalidMessageError, match="note"):
        coerce(NotedMessage(role="user", content="x"))


# -- JSON ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0",
        "a\0b",
        "\u2028\u2029\x7f\x1f",
        "👩‍👩‍👧‍👦 é e\u0301",
        "שלום \u202eabc\u202c",
        '"\\\n\r\t',
        "\ufeff",
        "\U0010ffff",
    ],
)
def test_text_comes_back_as_it_was(text: str) -> None:
    message = ChatMessage(role="user", content=text, metadata={text: text})
    assert stored(message) == message and stored(message).content == text
    assert ChatMessage.model_validate_json(message.model_dump_json()) == message


def test_ten_megabytes_come_back_as_they_were() -> None:
    text = "ünd so weiter\0 👍 " * 600_000
    message = ChatMessage(role="user", content=text)
    assert len(text.encode()) > 10_000_000 and stored(message).content == text
    assert len(str(message)) < 200


def test_encode_is_canonical() -> None:
    first = ChatMessage(role="user", content="x", metadata={"b": 1, "a": {"d": 1, "c": 2}}, id="1", created_at=NOW)
    second = ChatMessage(role="user", content="x", metadata={"a": {"c": 2, "d": 1}, "b": 1}, id="2", partial=True)
    assert encode(first) == encode(second)
    assert encode(first) == '{"blocks":[{"text":"x","type":"text"}],"metadata":{"a":{"c":2,"d":1},"b":1},"role":"user"}'


def test_all_fields_of_a_message_take_part_in_its_json_except_identity() -> None:
    base = ChatMessage(role="user", content="x")
    for update in ({"role": "system"}, {"content": "y"}, {"name": "n"}, {"metadata": {"a": 1}}):
        assert encode(base.model_copy(update=update)) != encode(base)
    for block in (TextBlock(text="x", tag="fact"), TextBlock(text="x", value=0.0), TextBlock(text="x", origin="memory")):
        assert encode(ChatMessage(role="user", blocks=[block])) != encode(base)


def test_the_order_of_keys_is_the_same_before_and_after_storing() -> None:
    message = ChatMessage(role="assistant", blocks=[ToolCallBlock(id="1", name="f", arguments={"b": 1, "a": 2})])
    assert json.dumps(message.tool_calls[0].arguments) == json.dumps(stored(message).tool_calls[0].arguments)


def test_dumps_leave_out_none_but_keep_null_in_metadata() -> None:
    message = ChatMessage(role="user", content="x", metadata={"a": None})
    expected = {"role": "user", "blocks": [{"type": "text", "text": "x"}], "metadata": {"a": None}}
    assert json.loads(message.model_dump_json()) == expected
    dumped = message.model_dump()
    assert type(dumped["metadata"]) is dict and ChatMessage.model_validate(dumped) == message


def test_a_shortened_copy_stays_one_when_dumped() -> None:
    copy = ChatMessage(role="user", content="x", partial=True)
    assert ChatMessage.model_validate_json(copy.model_dump_json()) == copy
    assert encode(copy) == encode(ChatMessage(role="user", content="x"))


def test_a_decoded_message_is_as_good_as_a_new_one() -> None:
    blocks = [ThinkingBlock(text="", signature="s", redacted=True), ToolCallBlock(id="1", name="f", arguments={"a": [{}]})]
    message = ChatMessage(role="assistant", blocks=blocks, metadata={"k": [1]}, id="i", created_at=NOW, name="n")
    twin = stored(message)
    assert twin == message and repr(twin) == repr(message) and hash(twin) == hash(message)
    assert twin.model_dump_json() == message.model_dump_json() and pickle.loads(pickle.dumps(twin)) == message
    assert type(twin.metadata["k"]) is FrozenList and type(twin.tool_calls[0].arguments) is FrozenDict
    assert twin.model_copy(update={"name": None}).name is None


def test_encode_refuses_what_was_built_around_validation() -> None:
    with pytest.raises(InvalidMessageError, match="Build it with ChatMessage"):
        encode(ChatMessage.model_construct(role="user", blocks=(), metadata={"a": object()}, name=None, tool_call_id=None))


def test_the_json_schema_can_be_made() -> None:
    assert "metadata" in ChatMessage.model_json_schema()["properties"]


# -- what messages say about themselves ----------------------------------------------------------------------


def test_equality_is_by_fields() -> None:
    assert ChatMessage(role="user", content="x") == ChatMessage(role="user", content="x")
    assert ChatMessage(role="user", content="x") != ChatMessage(role="user", content="x", id="1")
    assert ChatMessage(role="user", content="x") != ChatMessage(role="system", content="x")


def test_pinned() -> None:
    assert ChatMessage(role="system", content="x").pinned and ChatMessage(role="developer", content="x").pinned
    assert not ChatMessage(role="user", content="x").pinned
    assert ChatMessage(role="user", content="x", metadata={"pinned": True}).pinned
    assert not ChatMessage(role="system", content="x", metadata={"pinned": False}).pinned


def test_tool_calls_and_results() -> None:
    calls = (ToolCallBlock(id="1", name="f"), ToolCallBlock(id="2", name="g", arguments="{not json"))
    message = ChatMessage(role="assistant", blocks=[TextBlock(text="t"), *calls])
    assert message.tool_calls == calls and message.tool_results == ()
    assert ChatMessage(role="tool", tool_call_id="1", content="r").tool_results == ("1",)
    results = [ToolResultBlock(tool_call_id=i, content="r") for i in ("2", "1")]
    assert ChatMessage(role="tool", blocks=results).tool_results == ("2", "1")


def test_str_is_short_and_readable() -> None:
    assert str(ChatMessage(role="user", content="hi")) == "user: hi"
    call = ToolCallBlock(id="1", name="weather", arguments={"q": "x" * 1000})
    assert str(ChatMessage(role="assistant", blocks=[TextBlock(text="I look."), call])) == "assistant: I look. [call weather]"
    assert str(ChatMessage(role="user", blocks=[AudioBlock(data="AA" * 500)])) == "user: [audio]"
    result = ToolResultBlock(tool_call_id="1", content="sunny")
    assert str(ChatMessage(role="tool", blocks=[result])) == "tool: [result] sunny"
    assert len(str(ChatMessage(role="user", content="x" * 10_000))) < 200


# -- coerce, without_memory ----------------------------------------------------------------------------------


def test_coerce_takes_messages_and_dicts() -> None:
    message = ChatMessage(role="user", content="hi")
    assert coerce(message) is message
    assert coerce({"role": "user", "content": "hi"}) == message
    assert coerce(message.model_dump()) == message
    assert coerce(json.loads(message.model_dump_json())) == message
    assert coerce({"role": "user", "content": "hi", "id": "1", "created_at": NOW.isoformat()}).created_at == NOW


def test_coerce_recognises_openai_dicts() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = coerce({"role": "assistant", "content": None, "tool_calls": [call], "id": "mine"})
    assert message.tool_calls == (ToolCallBlock(id="1", name="f", arguments="{}"),) and message.id == "mine"
    image = {"type": "image_url", "image_url": {"url": "http://x/y.png"}}
    assert coerce({"role": "user", "content": [image]}).blocks == (ImageBlock(url="http://x/y.png"),)


def test_coerce_does_not_change_what_it_gets() -> None:
    source: dict[str, Any] = {"role": "user", "content": "x", "metadata": {"a": [1]}}
    before = copy.deepcopy(source)
    message = coerce(source)
    source["metadata"]["a"].append(2)
    assert before["metadata"] == message.metadata and set(source) == set(before)


@pytest.mark.parametrize(
    "value", ["hi", None, 5, ["user", "hi"], {"role": "user"}, {"role": "user", "contnet": "x"}, {}, {1: 2}]
)
def test_coerce_says_what_to_do(value: object) -> None:
    with pytest.raises(InvalidMessageError, match="content"):
        coerce(value)


def test_without_memory() -> None:
    plain = ChatMessage(role="user", content="x", id="1")
    assert without_memory(plain) is plain
    inserted = TextBlock(text="<memory>", origin="memory")
    assert without_memory(plain.model_copy(update={"blocks": (inserted, *plain.blocks)})) == plain
    assert without_memory(ChatMessage(role="system", blocks=[inserted])) is None
    empty = ChatMessage(role="assistant", content=None)
    assert without_memory(empty) is empty


# -- cost ----------------------------------------------------------------------------------------------------
