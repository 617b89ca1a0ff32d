"""Anthropic's messages in and out: without loss, by the rules of its API, in the types of its SDK."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, get_args

import pytest
from anthropic.types import ContentBlockParam, Message, MessageParam, TextBlockParam
from anthropic.types.tool_result_block_param import Content as ResultContentParam
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from memory_engine import Memory
from memory_engine.blocks import StaticMemoryBlock
from memory_engine.errors import InvalidMessageError
from memory_engine.formats.anthropic import from_anthropic, to_anthropic
from memory_engine.messages import (
    AudioBlock,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    decode,
    encode,
)
from memory_engine.tokens import TokenCounter

Json = dict[str, Any]

ANY_MESSAGE: TypeAdapter[Any] = TypeAdapter(MessageParam)
ANY_BLOCK: TypeAdapter[Any] = TypeAdapter(ContentBlockParam)
ANY_RESULT_PART: TypeAdapter[Any] = TypeAdapter(ResultContentParam)
ANY_SYSTEM_BLOCK: TypeAdapter[Any] = TypeAdapter(TextBlockParam)


def check_request(system: Iterable[Json], messages: list[Json], *, first: str | None = "user") -> None:
    """What the SDK's types and the API's rules want of a request."""
    marks = 0
    for block in system:
        ANY_SYSTEM_BLOCK.validate_python(block)
        assert block["text"].strip()
        marks += "cache_control" in block
    roles = [message["role"] for message in messages]
    assert all(one != two for one, two in pairwise(roles)), roles
    assert first is None or roles[:1] == [first]
    for message in messages:
        ANY_MESSAGE.validate_python(message)
        assert message["content"]
        assert isinstance(message["content"], list) or message["content"].strip()
        kinds = []
        for block in message["content"] if isinstance(message["content"], list) else []:
            ANY_BLOCK.validate_python(block)
            kinds.append(block["type"])
            marks += block.get("cache_control") is not None
            assert block["type"] != "text" or block["text"].strip()
            parts = block.get("content", []) if block["type"] == "tool_result" else []
            for part in parts if isinstance(parts, list) else []:
                ANY_RESULT_PART.validate_python(part)
                assert part["type"] != "text" or part["text"].strip()
        results = kinds.count("tool_result")
        assert set(kinds[:results]) <= {"tool_result"}
    assert marks <= 4


PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
CONVERSATION: list[Json] = [
    {"role": "user", "content": [{"type": "text", "text": "What is this, and how warm is it there?"}, PICTURE]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "A picture of Rome.", "signature": "c2ln"},
            {"type": "redacted_thinking", "data": "ZW5j"},
            {"type": "text", "text": "Rome. Let me look."},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"town": "Rome", "day": None}},
            {"type": "tool_use", "id": "toolu_2", "name": "map", "input": {}, "caller": {"type": "direct"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "21 degrees"},
            {
                "type": "tool_result",
                "tool_use_id": "toolu_2",
                "content": [{"type": "text", "text": "A map:"}, PICTURE],
                "is_error": False,
            },
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ],
    },
    {
        "role": "assistant",
        "content": [
            {
                "type": "server_tool_use",
                "id": "srvtoolu_1",
                "name": "web_search",
                "input": {"query": "weather in Rome today, please"},
            },
            {
                "type": "web_search_tool_result",
                "tool_use_id": "srvtoolu_1",
                "content": [
                    {"type": "web_search_result", "title": "Weather", "url": "https://x", "encrypted_content": "e" * 300}
                ],
            },
            {
                "type": "text",
                "text": "It is warm.",
                "citations": [
                    {
                        "type": "web_search_result_location",
                        "cited_text": "warm",
                        "encrypted_index": "i",
                        "title": None,
                        "url": "https://x",
                    }
                ],
            },
        ],
    },
    {"role": "user", "content": "Thanks."},
]


def test_a_conversation_goes_in_and_out() -> None:
    messages = from_anthropic(CONVERSATION, system="You are kind.")
    assert [message.role for message in messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "user",
        "assistant",
        "user",
    ]
    assert messages[2].tool_calls[0] == ToolCallBlock(id="toolu_1", name="weather", arguments={"town": "Rome", "day": None})
    assert messages[2].blocks[:2] == (
        ThinkingBlock(text="A picture of Rome.", signature="c2ln"),
        ThinkingBlock(text="", signature="ZW5j", redacted=True),
    )
    assert messages[3] == ChatMessage(role="tool", blocks=[ToolResultBlock(tool_call_id="toolu_1", content="21 degrees")])
    assert messages[4].blocks[1] == ImageBlock(data="iVBORw0KGgo=", mime_type="image/png")
    restored = [decode(encode(message), id=None, created_at=None) for message in messages]
    system, out = to_anthropic(restored)
    assert system == [{"type": "text", "text": "You are kind."}]
    assert out == CONVERSATION
    check_request(system, out)


def test_a_response_goes_in_and_back_without_what_a_request_may_not_have() -> None:
    response = Message.model_validate(
        {
            "id": "msg_01",
            "type": "message",
            "role": "assistant",
            "model": "claude",
            "content": [
                {"type": "text", "text": "Hm.", "citations": None},
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": None}},
            ],
            "stop_reason": "tool_use",
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 2},
        }
    )
    (message,) = from_anthropic(response)
    assert message.id == "msg_01"
    assert message.metadata["anthropic"]["model"] == "claude"
    assert message.metadata["anthropic"]["usage"]["output_tokens"] == 2
    assert to_anthropic([message]).messages == [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Hm."},
                {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": None}},
            ],
        }
    ]
    assert from_anthropic([response]) == [message]
    # The SDK's block objects in a dict, as its own examples write it.
    assert from_anthropic({"role": "assistant", "content": response.content})[0].blocks == message.blocks


def test_roles_take_turns() -> None:
    messages = [
        ChatMessage(role="user", content="One."),
        ChatMessage(role="user", content="Two."),
        ChatMessage(role="assistant", content="First."),
        ChatMessage(
            role="assistant", blocks=[ToolCallBlock(id="a", name="f"), ToolCallBlock(id="b", name="g", arguments='{"x": 1}')]
        ),
        ChatMessage(role="tool", tool_call_id="a", content="done"),
        ChatMessage(role="tool", blocks=[ToolResultBlock(tool_call_id="b", content="", is_error=True)]),
        ChatMessage(role="user", content="Go on."),
        ChatMessage(role="developer", content="Stay calm."),
    ]
    system, out = to_anthropic(messages)
    check_request(system, out)
    assert system == [{"type": "text", "text": "Stay calm."}]
    assert [(message["role"], [block["type"] for block in message["content"]]) for message in out] == [
        ("user", ["text", "text"]),
        ("assistant", ["text", "tool_use", "tool_use"]),
        ("user", ["tool_result", "tool_result", "text"]),
    ]
    assert out[1]["content"][2]["input"] == {"x": 1}
    assert out[2]["content"][1] == {"type": "tool_result", "tool_use_id": "b", "content": "(no message)", "is_error": True}


def test_empty_texts_are_left_out() -> None:
    messages = [
        ChatMessage(role="system", content=" "),
        ChatMessage(role="user", content="Hi."),
        ChatMessage(role="assistant", content=""),
        *from_anthropic({"role": "assistant", "content": [{"type": "text", "text": "\n", "citations": []}]}),
        ChatMessage(role="assistant", blocks=[TextBlock(text=" "), ToolCallBlock(id="a", name="f")]),
        *from_anthropic(
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": ""}, PICTURE]}],
            }
        ),
    ]
    system, out = to_anthropic(messages)
    assert system == []
    check_request(system, out)
    assert [len(message["content"]) for message in out] == [3, 1, 1]  # "Hi." and two lists
    assert out[2]["content"][0]["content"] == [PICTURE]


def test_media() -> None:
    pdf = base64.b64encode(b"%PDF-1.7").decode()
    blocks = [
        ImageBlock(url="https://x/y.png"),
        ImageBlock(data="/9j/4AAQ"),
        ImageBlock(url="data:image/webp;base64,UklGRg=="),
        ImageBlock(data="R0lGODlh", mime_type="image/x-unknown"),
        DocumentBlock(data=pdf, title="a.pdf"),
        DocumentBlock(data=base64.b64encode(b"plain").decode(), mime_type="text/markdown"),
        DocumentBlock(url="https://x/a.pdf"),
        DocumentBlock(file_id="file_1"),
        DocumentBlock(data="QUJD", mime_type="application/zip", title="a.zip"),
        AudioBlock(data="QUJD"),
    ]
    _, out = to_anthropic([ChatMessage(role="user", blocks=blocks)])
    check_request([], out)
    assert out[0]["content"] == [
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": "/9j/4AAQ"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/webp", "data": "UklGRg=="}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": "R0lGODlh"}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": pdf}, "title": "a.pdf"},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "plain"}},
        {"type": "document", "source": {"type": "url", "url": "https://x/a.pdf"}},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "text", "text": "[a.zip]"},
        {"type": "text", "text": "[audio]"},
    ]
    tool = ChatMessage(role="tool", tool_call_id="a", blocks=[TextBlock(text="See:"), blocks[0]])
    assert to_anthropic([tool]).messages[0]["content"] == [
        {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "See:"}, out[0]["content"][0]]}
    ]


def test_ids_of_other_providers_stay_pairs() -> None:
    call = ChatMessage(role="assistant", blocks=[ToolCallBlock(id="chatcmpl:1/a", name="f", arguments="no json")])
    result = ChatMessage(role="tool", tool_call_id="chatcmpl:1/a", content="x")
    _, out = to_anthropic([call, result])
    use, answer = out[0]["content"][0], out[1]["content"][0]
    assert use["id"] == answer["tool_use_id"]
    assert use["id"].replace("_", "").isalnum()
    assert use["input"] == {"arguments": "no json"}


def test_shortened_copies_and_lost_calls() -> None:
    messages = from_anthropic(CONVERSATION)
    long = messages[1]
    copy = long.model_copy(update={"blocks": [b for b in long.blocks if getattr(b, "id", "") != "toolu_2"], "partial": True})
    (out,) = to_anthropic([copy]).messages
    assert out["content"] == CONVERSATION[1]["content"][:4]
    result = messages[3]
    copy = result.model_copy(
        update={"blocks": [result.blocks[0].model_copy(update={"content": "A m[…]"}), *result.blocks[1:]], "partial": True}
    )
    (out,) = to_anthropic([copy]).messages
    assert out["content"][0]["content"] == [{"type": "text", "text": "A m[…]"}, PICTURE]
    other = long.model_copy(update={"blocks": [TextBlock(text="Something else.")]})
    assert to_anthropic([other]).messages == [{"role": "assistant", "content": "Something else."}]


def test_reasoning_without_a_signature_stays_here() -> None:
    message = ChatMessage(role="assistant", blocks=[ThinkingBlock(text="Hm."), TextBlock(text="Yes.")])
    assert to_anthropic([message]).messages == [{"role": "assistant", "content": "Yes."}]


def marked(blocks: Iterable[Json]) -> list[bool]:
    return [block.get("cache_control") is not None for block in blocks]


def test_cache_marks() -> None:
    system_message = ChatMessage(
        role="system", blocks=[TextBlock(text="Be kind."), TextBlock(text="<memory>Tea.</memory>", origin="memory")]
    )
    thinking = ChatMessage(role="assistant", blocks=[TextBlock(text="Hm."), ThinkingBlock(text="So.", signature="s")])
    messages = [
        system_message,
        ChatMessage(role="user", content="One."),
        thinking,
        ChatMessage(role="user", content="Two."),
        ChatMessage(role="assistant", blocks=[ToolCallBlock(id="a", name="f")]),
        ChatMessage(role="tool", tool_call_id="a", content="x"),
    ]
    system, out = to_anthropic(messages, cache=True)
    check_request(system, out)
    assert marked(system) == [True, True]
    assert marked(out[1]["content"]) == [True, False]  # not the reasoning
    assert [out[0]["content"], out[2]["content"]] == ["One.", "Two."]
    assert marked(out[3]["content"]) == marked(out[4]["content"]) == [False]
    system, out = to_anthropic(messages, cache=["request", "system", "history", "instructions"], cache_ttl="1h")
    check_request(system, out)
    assert marked(out[-1]["content"]) == [True]
    assert system[0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    system, out = to_anthropic(messages, cache=["history"])
    assert marked(system) == [False, False]
    # The history mark stays where results and the newest request become one message.
    ended = [*messages, ChatMessage(role="user", content="Three.")]
    _, out = to_anthropic(ended, cache=True)
    assert marked(out[-1]["content"]) == [True, False]
    assert to_anthropic(messages, cache=False) == to_anthropic(messages)
    for wrong in (["end"], "system"):
        with pytest.raises(InvalidMessageError, match="instructions, system, history, request"):
            to_anthropic(messages, cache=wrong)


def test_marks_that_came_in_stay_within_what_the_api_takes() -> None:
    mark = {"type": "ephemeral"}
    messages = [
        message
        for n in range(6)
        for message in from_anthropic(
            [
                {"role": "user", "content": [{"type": "text", "text": f"{n}", "cache_control": mark}]},
                {"role": "assistant", "content": "Yes."},
            ]
        )
    ]
    system, out = to_anthropic(messages)
    check_request(system, out)
    assert [n for n in range(6) if marked(out[2 * n]["content"])[0]] == [2, 3, 4, 5]
    _, out = to_anthropic(messages, cache=True)
    assert sum(sum(marked(m["content"])) for m in out if isinstance(m["content"], list)) == 1


async def test_a_prefix_stays_the_same_while_a_conversation_grows() -> None:
    """What was marked as the end of history is a prefix of the next request."""
    rules = StaticMemoryBlock(name="rules", static_content="Be brief.")
    async with Memory.from_defaults("cache", token_limit=4_000, memory_blocks=[rules]) as memory:
        before: list[Json] = []
        for turn in range(5):
            await memory.put({"role": "user", "content": f"Question {turn}"})
            system, out = to_anthropic(await memory.get(), cache=True)
            check_request(system, out)
            assert marked(system) == [True]
            plain = to_anthropic(await memory.get()).messages
            assert plain[: len(before)] == before
            before = plain
            await memory.put(from_anthropic({"role": "assistant", "content": [{"type": "text", "text": f"Answer {turn}"}]})[0])


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": "tool", "content": "x"},
        {"role": "user"},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": {1}},
        "Hi.",
        [3],
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}] * 2},
    ],
)
def test_what_is_no_message_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidMessageError):
        from_anthropic(wrong)


# -- properties --------------------------------------------------------------------------------------------------

_text = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(str.strip)
_json = st.recursive(st.none() | st.booleans() | st.integers() | _text, lambda inner: st.lists(inner, max_size=2), max_leaves=4)
_inputs = st.dictionaries(_text, _json, max_size=2)
_mark = st.sampled_from([{}, {"cache_control": None}])
_base64 = st.binary(max_size=9).map(lambda data: base64.b64encode(data).decode())


def block_of(kind: str, **fields: Any) -> st.SearchStrategy[Json]:
    return st.tuples(st.fixed_dictionaries({"type": st.just(kind), **fields}), _mark).map(lambda pair: pair[0] | pair[1])


def one_of_dicts(*kinds: Json) -> st.SearchStrategy[Json]:
    return st.one_of(
        [
            st.fixed_dictionaries({k: v if isinstance(v, st.SearchStrategy) else st.just(v) for k, v in kind.items()})
            for kind in kinds
        ]
    )


_url = {"type": "url", "url": _text}
_file = {"type": "file", "file_id": _text}
texts = block_of("text", text=_text) | block_of("text", text=_text, citations=st.none() | st.just([]))
images = block_of("image", source=one_of_dicts({"type": "base64", "media_type": "image/png", "data": _base64}, _url, _file))
documents = block_of(
    "document",
    title=st.none() | _text,
    source=one_of_dicts(
        {"type": "base64", "media_type": "application/pdf", "data": _base64},
        {"type": "text", "media_type": "text/plain", "data": _text},
        {"type": "content", "content": st.lists(texts, max_size=2)},
        _url,
        _file,
    ),
)
searches = block_of("search_result", source=_text, title=_text, content=st.lists(texts, max_size=2))
parts = texts | images | documents | searches
thoughts = one_of_dicts(
    {"type": "thinking", "thinking": _text, "signature": _text}, {"type": "redacted_thinking", "data": _text}
)
future = st.dictionaries(_text, _json, max_size=3).map(lambda block: {**block, "type": "hologram"})
uploads = block_of("container_upload", file_id=_text)
server = block_of("server_tool_use", id=_text, name=st.just("web_search"), input=_inputs)


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    messages: list[Json] = []
    numbers = iter(range(1_000))
    answers: list[Json] = []
    for _ in range(draw(st.integers(1, 4))):
        user = [*answers, *draw(st.lists(parts | uploads | future, min_size=not answers, max_size=3))]
        plain = not answers and draw(st.booleans())
        messages.append({"role": "user", "content": draw(_text) if plain else user})
        said = draw(st.lists(thoughts | texts | server | future, min_size=1, max_size=3))
        ids = [f"toolu_{next(numbers)}" for _ in range(draw(st.integers(0, 2)))]
        said += [{"type": "tool_use", "id": id_, "name": "f", "input": draw(_inputs), **draw(_mark)} for id_ in ids]
        messages.append({"role": "assistant", "content": draw(_text) if not ids and draw(st.booleans()) else said})
        contents: st.SearchStrategy[Json] = st.just({}) | one_of_dicts(
            {"content": _text}, {"content": st.lists(parts, max_size=2)}, {"is_error": False}
        )
        answers = [{"type": "tool_result", "tool_use_id": id_, **draw(contents)} for id_ in ids]
    return messages


@given(conversation=conversations())
def test_conversations_are_kept_exactly(conversation: list[Json]) -> None:
    messages = [decode(encode(message), id=None, created_at=None) for message in from_anthropic(conversation)]
    assert to_anthropic(messages).messages == conversation


_id = st.sampled_from(["a", "b:c", "d"])
_ours = st.one_of(
    st.builds(
        lambda role, text: ChatMessage(role=role, content=text),
        st.sampled_from(["user", "assistant", "system", "developer"]),
        st.text(max_size=9),
    ),
    st.builds(
        lambda ids, arguments, text: ChatMessage(
            role="assistant", blocks=[TextBlock(text=text), *[ToolCallBlock(id=i, name="f", arguments=arguments) for i in ids]]
        ),
        st.lists(_id, unique=True),
        _inputs | st.text(max_size=5),
        st.text(max_size=3),
    ),
    st.builds(
        lambda i, text, error, media: ChatMessage(
            role="tool", blocks=[ToolResultBlock(tool_call_id=i, content=text, is_error=error), *media]
        ),
        _id,
        st.text(max_size=5),
        st.booleans(),
        st.lists(st.builds(lambda d: ImageBlock(data=d), _base64), max_size=1),
    ),
    st.builds(
        lambda blocks: ChatMessage(role="user", blocks=blocks),
        st.lists(st.builds(lambda u: ImageBlock(url=u), st.just("https://x")), max_size=2),
    ),
)


@given(messages=st.lists(_ours, max_size=8), cache=st.booleans())
def test_whatever_is_given_the_sdk_takes_what_comes_out(messages: list[ChatMessage], cache: bool) -> None:
    system, out = to_anthropic(messages, cache=cache)
    check_request(system, out, first=None)


def test_types_of_the_sdk_are_those_we_know() -> None:
    """When the SDK gets a new type of block, look whether it deserves more than being kept whole."""
    names = {kind.__name__.removesuffix("BlockParam") for kind in get_args(ContentBlockParam)}
    assert {"Text", "Image", "Document", "Thinking", "RedactedThinking", "ToolUse", "ToolResult"} <= names


def test_what_the_model_reads_is_counted() -> None:
    (message,) = from_anthropic(CONVERSATION[3])
    assert TokenCounter().message(message) >= TokenCounter().text("e" * 300) + TokenCounter().text(
        "weather in Rome today, please"
    )


def marks_in(value: object) -> int:
    if isinstance(value, dict):
        return (value.get("cache_control") is not None) + sum(map(marks_in, value.values()))
    return sum(map(marks_in, value)) if isinstance(value, list | tuple) else 0


@pytest.mark.parametrize("cache", [False, True])
def test_marks_inside_of_tool_results_are_counted_too(cache: bool) -> None:
    conversation: list[dict[str, Any]] = []
    for number in range(6):
        inner = [{"type": "text", "text": "found", "cache_control": {"type": "ephemeral"}}]
        conversation += [
            {"role": "user", "content": f"Question {number}"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": f"t{number}", "name": "look", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": f"t{number}", "content": inner}]},
            {"role": "assistant", "content": "Answer"},
        ]
    messages = from_anthropic([*conversation, {"role": "user", "content": "End"}], system="Be kind.")
    for _ in range(2):
        assert marks_in(to_anthropic(messages, cache=cache)) == (2 if cache else 4)
