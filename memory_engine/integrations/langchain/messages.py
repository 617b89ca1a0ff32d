"""LangChain's messages, in and out, without loss.

What a `ChatMessage` has no field for is kept in `metadata["langchain"]`; texts, media, reasoning and calls always come from
the blocks, so a message that memory shortened goes out shortened. Calls with broken arguments (`invalid_tool_calls`) and the
old `function_call` are calls here too, with the text that the model wrote. What of that metadata a model reads again is
counted (additional keywords, a part's title, context or citations): `metadata["counted"]` names it.

On the way out, what memory inserted is noted in `response_metadata["memory_engine"]`, which no provider is sent, so that the
way in recognises it: memory never remembers itself. Values that JSON does not have (an artifact that is a data frame) are
left out and named in `metadata["langchain"]["left_out"]`; in what a model reads they are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    message_chunk_to_message,
)
from langchain_core.messages import ChatMessage as LangChainChatMessage

from memory_engine.errors import InvalidMessageError
from memory_engine.integrations.langchain.calls import calls_out, thaw
from memory_engine.integrations.langchain.incoming import KEY, MARK, OPENAI_ROLE, ROLES, Json, Reader
from memory_engine.integrations.langchain.parts import parts_of
from memory_engine.messages import ChatMessage, TextBlock, ToolResultBlock
from memory_engine.tokens import COUNTED


def from_langchain(messages: Iterable[BaseMessage]) -> list[ChatMessage]:
    """Our messages for LangChain's, one for each; chunks count as whole messages.

    :raises InvalidMessageError: one of them cannot be kept exactly; the error says what to correct.
    """
    return [message_from_langchain(message) for message in messages]


def to_langchain(messages: Iterable[ChatMessage]) -> list[BaseMessage]:
    """LangChain's messages for ours, made anew for the caller; one that answers several calls gives one for each."""
    return [item for message in messages for item in _split(message)]


def message_from_langchain(message: BaseMessage) -> ChatMessage:
    """Our message for one of LangChain's, under the same id.

    :raises InvalidMessageError: it is a `RemoveMessage` or no message, or it has text that cannot be stored.
    """
    if not isinstance(message, BaseMessage):
        raise InvalidMessageError(f"A message of LangChain is expected, not {type(message).__name__}; see convert_to_messages.")
    message = message_chunk_to_message(message)
    kind = message.type
    if kind == "remove":
        raise InvalidMessageError(
            "RemoveMessage tells a graph to change its state and is no message; to forget one: memory.delete([id])."
        )
    if kind not in ROLES and kind != "chat":
        raise InvalidMessageError(f"Messages of type {kind!r:.80} are unknown; known are chat, {', '.join(ROLES)}.")
    return Reader(message, kind).message()


def message_to_langchain(message: ChatMessage) -> BaseMessage:
    """LangChain's message for one of ours.

    :raises InvalidMessageError: it answers several calls, each of which needs a message of its own: use `to_langchain`.
    """
    items = _split(message)
    if len(items) != 1:
        raise InvalidMessageError(f"This message answers {len(items)} tool calls; use to_langchain([message]).")
    return items[0]


# -- out -------------------------------------------------------------------------------------------------------


def _split(message: ChatMessage) -> list[BaseMessage]:
    results = [block for block in message.blocks if isinstance(block, ToolResultBlock)]
    if not results:
        return [_message(message)]
    items: list[BaseMessage] = []
    others = tuple([block for block in message.blocks if not isinstance(block, ToolResultBlock)])
    for place, block in enumerate(results):
        last = place == len(results) - 1
        # LangChain has no place beside a result; the last one takes what else the message holds.
        blocks = (TextBlock(text=block.content), *(others if last else ()))
        single = message.model_copy(update={"blocks": blocks, "tool_call_id": block.tool_call_id})
        item = cast(ToolMessage, _message(single, status="error" if block.is_error else "success"))
        if len(results) > 1 and message.id is not None:
            item.id = f"{message.id}:{block.tool_call_id}"
            item.response_metadata = {**item.response_metadata, MARK: {"part_of": message.id}}
        items.append(item)
    return items


def _message(message: ChatMessage, *, status: str | None = None) -> BaseMessage:
    noted = message.metadata.get(KEY)
    extras: Json = thaw(noted) if isinstance(noted, Mapping) else {}
    content, mark = _content(message, extras.get("content"))
    others = _other_metadata(message)
    mark |= {"metadata": others} if others else {}
    mark |= {"partial": True} if message.partial else {}
    kwargs = extras.get("additional_kwargs", {})
    if message.role == "developer" and kwargs.get(OPENAI_ROLE) != "developer":
        kwargs[OPENAI_ROLE] = "developer"
    fields: Json = {
        "content": content,
        "additional_kwargs": kwargs,
        "response_metadata": extras.get("response_metadata", {}) | ({MARK: mark} if mark else {}),
        "name": extras.get("name", message.name),
        "id": extras.get("id", message.id),
        **extras.get("fields", {}),
    }
    kind = extras.get("type")
    if kind == "chat":
        return LangChainChatMessage(role=extras["role"], **fields)
    if kind == "function":
        return FunctionMessage(**fields | {"name": fields["name"] or ""})
    if message.role == "tool":
        answers = extras.get("tool_call_id", message.tool_call_id)
        return ToolMessage(
            tool_call_id=answers,
            artifact=extras.get("artifact"),
            status=status if status == "error" else extras.get("status", "success"),
            **fields,
        )
    if message.role == "assistant":
        return AIMessage(
            **fields | calls_out(message, extras.get("calls", {}), kwargs), usage_metadata=extras.get("usage_metadata")
        )
    return HumanMessage(**fields) if message.role == "user" else SystemMessage(**fields)


def _other_metadata(message: ChatMessage) -> Json:
    """What did not come from LangChain; what is counted of that which did is found again on the way in."""
    others = {key: thaw(value) for key, value in message.metadata.items() if key != KEY}
    paths = others.pop(COUNTED, None)
    if isinstance(paths, list):
        paths = [path for path in paths if not (isinstance(path, list) and path[:1] == [KEY])]
    return others | ({COUNTED: paths} if paths else {})


def _content(message: ChatMessage, layout: Sequence[Any] | None) -> tuple[str | list[Any], Json]:
    """The content, and the mark for what memory inserted into it."""
    blocks = [block for block in message.blocks if not isinstance(block, ToolResultBlock)]
    said = [block for block in blocks if block.origin is None]
    whole = {"whole": True} if blocks and not said else {}
    shown = [block for block in blocks if block.type not in ("tool_call", "thinking")]
    if layout is None and all(isinstance(block, TextBlock) for block in shown):
        texts = cast(list[TextBlock], shown)
        return "\n".join([block.text for block in texts]), dict(whole) or _marked_texts(texts)
    parts, inserted = parts_of(blocks, () if layout is None else layout)
    string = layout is None and all(isinstance(block, TextBlock) for block in said)
    mark: Json = {"parts": inserted} | ({"string": True} if string else {}) if inserted else {}
    return parts, dict(whole) or mark


def _marked_texts(texts: Sequence[TextBlock]) -> Json:
    """The inserted texts with the line ends that joined them to what was said."""
    first = next((place for place, block in enumerate(texts) if block.origin is None), 0)
    inserted = [(place, block.text) for place, block in enumerate(texts) if block.origin is not None]
    pieces = [f"{text}\n" if place < first else f"\n{text}" for place, text in inserted]
    if pieces and len(pieces) == len(texts):  # what was said are calls
        pieces[0] = texts[0].text
    return {"texts": pieces} if pieces else {}
