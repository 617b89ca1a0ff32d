"""The budget, counted a second time on LangChain's own messages: everything in them that a model may read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.messages import ChatMessage as LangChainChatMessage

from memory_engine import Memory
from memory_engine.errors import BudgetExceededError
from memory_engine.integrations.langchain import (
    MemoryChatMessageHistory,
    from_langchain,
    message_from_langchain,
    message_to_langchain,
)
from memory_engine.tokens import TokenCounter

LONG = "word " * 700
LIMIT = 600
PER_MESSAGE, PER_PART = 12, 12
"""Tokens of JSON around what a message, and a part or call of it, says: names of fields, brackets, types."""
CALL = {"name": "weather", "args": {"town": "Graz"}, "id": "c1"}
RAW = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Graz"}'}}
PART = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"town": "Graz"}}
RESULT = ToolMessage("Sunny", tool_call_id="c1")


def tokens_of(messages: Sequence[BaseMessage]) -> int:
    """The tokens of the JSON of contents, keywords, calls and roles, less what is around them."""
    total = 0
    for message in messages:
        parts = message.content if isinstance(message.content, list) else []
        raw = message.additional_kwargs.get("tool_calls", [])
        said = [message.content, message.additional_kwargs, getattr(message, "role", "")]
        if not raw and not any(isinstance(part, dict) and "input" in part for part in parts):
            said.append(getattr(message, "tool_calls", []))
        total += sum(TokenCounter().text(json.dumps(value, ensure_ascii=False)) for value in said)
        total -= PER_MESSAGE + PER_PART * (len(parts) + len(raw))
    return total


async def check(said: Sequence[BaseMessage]) -> int:
    """What is said is stored and shown within the budget, also after the next question. Returns how many are shown then."""
    async with Memory.from_defaults("budget", token_limit=LIMIT) as memory:
        history = MemoryChatMessageHistory(memory)
        await history.aadd_messages([HumanMessage("Hi"), *said])
        try:
            assert tokens_of(await history.aget_messages()) <= LIMIT
        except BudgetExceededError:
            assert tokens_of(said) > LIMIT // 2
        await history.aadd_messages([HumanMessage("And now?")])
        shown = await history.aget_messages()
    assert shown[-1].content == "And now?" and tokens_of(shown) <= LIMIT
    return len(shown)


CASES: dict[str, list[BaseMessage]] = {
    "reasoning_content": [AIMessage("x", additional_kwargs={"reasoning_content": LONG})],
    "reasoning": [AIMessage("x", additional_kwargs={"reasoning": {"summary": [{"type": "summary_text", "text": LONG}]}})],
    "keywords of a user": [HumanMessage("x", additional_kwargs={"foo": LONG})],
    "context of a document": [
        HumanMessage([{"type": "document", "source": {"type": "url", "url": "http://x"}, "title": "t", "context": LONG}])
    ],
    "title of a file": [HumanMessage([{"type": "text-plain", "text": "x", "title": LONG}])],
    "citations": [AIMessage([{"type": "text", "text": "x", "citations": [{"cited_text": LONG}]}])],
    "annotations": [AIMessage([{"type": "text", "text": "x", "annotations": [{"type": "citation", "cited_text": LONG}]}])],
    "extras": [AIMessage([{"type": "text", "text": "x", "extras": {"foo": LONG}}])],
    "extras of reasoning": [AIMessage([{"type": "reasoning", "reasoning": "Hm.", "extras": {"encrypted": LONG}}, "x"])],
    "a summary of reasoning": [AIMessage([{"type": "reasoning", "id": "r", "summary": [{"text": LONG}]}, "x"])],
    "a key": [AIMessage("x", additional_kwargs={LONG: None, "x": 1})],
    "a role": [LangChainChatMessage("x", role=LONG)],
    "a raw call that says something else": [
        AIMessage(
            "",
            tool_calls=[CALL],
            additional_kwargs={"tool_calls": [{**RAW, "function": {"name": "weather", "arguments": LONG}}]},
        ),
        RESULT,
    ],
    "a raw call with more in it": [
        AIMessage("", tool_calls=[CALL], additional_kwargs={"tool_calls": [{**RAW, "extra_content": LONG}], "foo": 1}),
        RESULT,
    ],
    "keywords beside a raw call": [
        AIMessage("", tool_calls=[CALL], additional_kwargs={"tool_calls": [RAW], "reasoning_content": LONG}),
        RESULT,
    ],
    "a part of a call that says something else": [
        AIMessage([{**PART, "input": {"town": LONG}}], tool_calls=[CALL]),
        RESULT,
    ],
    "a part of a call with more in it": [AIMessage([{**PART, "caller": LONG}], tool_calls=[CALL]), RESULT],
    "keywords of a result": [
        AIMessage("", tool_calls=[CALL]),
        ToolMessage("Sunny", tool_call_id="c1", additional_kwargs={"foo": LONG}),
    ],
    "an old call with more in it": [
        AIMessage("", additional_kwargs={"function_call": {"name": "f", "arguments": "{}", "more": LONG}}),
        LangChainChatMessage("x", role="assistant"),
    ],
}


@pytest.mark.parametrize("name", CASES)
async def test_what_goes_out_beside_texts_is_counted(name: str) -> None:
    said = CASES[name]
    assert await check(said) < 2 + len(said), "it is too long to be shown"
    # A copy that was handed out costs the same.
    for ours in from_langchain(said):
        count = TokenCounter().message
        assert count(message_from_langchain(message_to_langchain(ours))) == count(ours)


async def test_what_no_provider_is_sent_costs_nothing() -> None:
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    said = [
        AIMessage("x", tool_calls=[CALL], response_metadata={"logprobs": LONG}, usage_metadata=usage),
        ToolMessage("Sunny", tool_call_id="c1", artifact={"rows": LONG}),
        AIMessage("y", additional_kwargs={"refusal": None}),
    ]
    assert await check(said) == 5
    assert all("counted" not in message.metadata for message in from_langchain(said))


async def test_what_repeats_a_call_is_counted_once() -> None:
    count = TokenCounter().message
    long = {**CALL, "args": {"town": LONG}}
    raw = {**RAW, "function": {"name": "weather", "arguments": json.dumps({"town": LONG})}}
    plain = count(message_from_langchain(AIMessage("", tool_calls=[long])))
    for message in (
        AIMessage("", tool_calls=[long], additional_kwargs={"tool_calls": [raw]}),
        AIMessage([{**PART, "input": {"town": LONG}}], tool_calls=[long]),
        AIMessage([{**PART, "input": {}, "partial_json": json.dumps({"town": LONG})}], tool_calls=[long]),
    ):
        assert count(message_from_langchain(message)) == plain


# -- generated messages ------------------------------------------------------------------------------------------

texts = st.sampled_from(["", "x", "some words", "https://example.org/a.png", LONG])
keys = st.sampled_from(["text", "title", "context", "extras", "url", "data", "source", "input", "args", "thinking", "foo"])
values = st.recursive(
    texts | st.integers(0, 9) | st.none(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=2),
    max_leaves=4,
)
kinds = st.sampled_from(["text", "image", "document", "file", "reasoning", "thinking", "tool_use", "refusal", "other"])
parts = texts | st.builds(lambda kind, more: more | {"type": kind}, kinds, st.dictionaries(keys, values, max_size=3))
contents = texts | st.lists(parts, max_size=3)
keywords = st.dictionaries(st.sampled_from(["reasoning_content", "refusal", "audio", "foo"]), values, max_size=2)
exchanges = st.builds(
    lambda content, kwargs, args, result, more: [
        AIMessage(content, additional_kwargs=kwargs, tool_calls=[{**CALL, "args": args}]),
        ToolMessage(result, tool_call_id="c1", additional_kwargs=more),
    ],
    contents,
    keywords,
    st.dictionaries(keys, values, max_size=2),
    contents,
    keywords,
)
single = st.builds(
    lambda kind, content, kwargs: [kind(content, additional_kwargs=kwargs)],
    st.sampled_from([AIMessage, HumanMessage]),
    contents,
    keywords,
)
conversations: st.SearchStrategy[list[BaseMessage]] = st.lists(st.one_of(single, exchanges), min_size=1, max_size=4).map(
    lambda said: [message for step in said for message in step]
)


@given(said=conversations)
async def test_generated_conversations_stay_within_the_budget(said: list[BaseMessage]) -> None:
    await check(_with_calls_apart(said))


def _with_calls_apart(said: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Each call with an id of its own."""
    apart: list[Any] = []
    for place, message in enumerate(said):
        if isinstance(message, AIMessage):
            calls = [{**call, "id": f"c{place}"} for call in message.tool_calls]
            apart.append(message.model_copy(update={"tool_calls": calls}))
        elif isinstance(message, ToolMessage):
            apart.append(message.model_copy(update={"tool_call_id": f"c{place - 1}"}))
        else:
            apart.append(message)
    return apart
