"""The content parts that LangChain, OpenAI and Anthropic write, as our content blocks: pure, on JSON alone."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from memory_engine.errors import InvalidMessageError

Fields = dict[str, Any]

_DATA_URI = re.compile(r"data:([!-+\--~]{1,255});base64,([\x00-\x7f]*)")
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "text-plain": "text"}
_MEDIA = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "computer_screenshot": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "video",
    "video_url": "video",
    "file": "document",
    "input_file": "document",
    "document": "document",
    "text-plain": "document",
}
_URLS = ("url", "image_url", "audio_url", "video_url", "file_url")
_DATA = ("data", "base64", "file_data")
_MIME_TYPES = ("mime_type", "media_type", "mimetype")


def read_content(content: object) -> tuple[list[Fields], Fields]:
    """The blocks of a message's content, and under the position of each part what the blocks have no field for.

    A part that is no content of ours (a search that a provider ran, a cache point) is kept there whole.

    :raises InvalidMessageError: it is neither text nor a list of parts.
    """
    if content is None:
        return [], {}
    if isinstance(content, str):
        return [text_block(content)], {}
    if not isinstance(content, Iterable) or isinstance(content, Mapping | bytes):
        raise InvalidMessageError(f"its content is neither text nor a list of parts but {type(content).__name__}")
    blocks: list[Fields] = []
    kept: Fields = {}
    for index, part in enumerate(content):
        block, rest = _read_part(part)
        if block is not None:
            blocks.append(block)
        if rest:
            kept[str(index)] = rest
    return blocks, kept


def text_block(text: object) -> Fields:
    """The fields of a text block."""
    return {"type": "text", "text": text}


def thinking_block(text: object, *, signature: object = None, redacted: bool = False) -> Fields:
    """The fields of a block with a model's reasoning; `signature` is what the provider signed or encrypted it with."""
    return {"type": "thinking", "text": text or "", "redacted": redacted, "signature": signature}


def call_block(call_id: str, name: object, arguments: object) -> Fields:
    """The fields of a tool call."""
    if not isinstance(arguments, str | Mapping):
        arguments = {} if arguments is None else {"input": arguments}
    return {"type": "tool_call", "id": call_id, "name": name, "arguments": arguments}


def media_block(kind: str, source: Mapping[str, Any]) -> Fields | None:
    """The fields of a block of that kind; None when `source` has neither an address nor data.

    `source` has some of `url`, `data`, `file_id`, `mime_type`, `detail`, `format` and `title`.
    """
    values = {name: value for name, value in source.items() if isinstance(value, str) and value}
    if (match := _DATA_URI.fullmatch(values.get("url", ""))) or (match := _DATA_URI.fullmatch(values.get("data", ""))):
        values.pop("url", None)
        values["mime_type"], values["data"] = match.groups()
    found = next((name for name in ("data", "url", "file_id") if name in values), None)
    if found is None:
        return None
    # Only documents may be known by the provider's id.
    kind = "document" if found == "file_id" else kind
    names = {"image": ("detail",), "audio": ("format",), "document": ("title",)}.get(kind, ())
    return {"type": kind, found: values[found]} | {name: values[name] for name in ("mime_type", *names) if name in values}


def _read_part(part: object) -> tuple[Fields | None, Any]:
    if isinstance(part, str):
        return text_block(part), None
    if not isinstance(part, Mapping):
        raise InvalidMessageError(f"a part of its content is neither text nor an object but {type(part).__name__}")
    kind = part.get("type")
    if not isinstance(kind, str):
        return None, dict(part)
    text = part.get(_TEXTS.get(kind, ""))
    if isinstance(text, str):
        rest = _without(part, {text})
        return text_block(text), None if rest == {"type": "text"} else rest
    block = _read_thinking(kind, part) or _read_media(kind, part)
    if block is None:
        return None, dict(part)
    taken = {value for name, value in block.items() if name in ("text", "data", "url", "file_id", "signature") and value}
    taken |= {f"data:{block.get('mime_type')};base64,{block.get('data')}"}
    return block, _without(part, taken)


def _read_thinking(kind: str, part: Mapping[str, Any]) -> Fields | None:
    if kind == "thinking":
        return thinking_block(part.get("thinking"), signature=part.get("signature"))
    if kind == "redacted_thinking":
        return thinking_block("", signature=part.get("data"), redacted=True)
    if kind != "reasoning":
        return None
    return read_reasoning(part)


def read_reasoning(part: Mapping[str, Any]) -> Fields:
    """The fields of the block for a reasoning part of OpenAI or LangChain."""
    texts = [part["reasoning"]] if isinstance(part.get("reasoning"), str) else []
    for name in ("summary", "content"):
        pieces = part.get(name)
        if isinstance(pieces, list):
            texts += [piece["text"] for piece in pieces if isinstance(piece, Mapping) and isinstance(piece.get("text"), str)]
    signature = part.get("encrypted_content") or part.get("signature")
    signature = signature if isinstance(signature, str) else None
    return thinking_block("\n".join(texts), signature=signature, redacted=bool(signature) and not texts)


def _read_media(kind: str, part: Mapping[str, Any]) -> Fields | None:
    body = dict(part)
    for name in (kind, "source", "file"):
        inner = part.get(name)
        if isinstance(inner, Mapping):
            body |= inner
    if kind == "media" and isinstance(body.get("mime_type"), str):
        ours = body["mime_type"].partition("/")[0]
        ours = ours if ours in ("image", "audio", "video") else "document"
    elif kind in _MEDIA:
        ours = _MEDIA[kind]
    else:
        return None
    source = {
        "url": _first(body, _URLS),
        "data": _first(body, _DATA),
        "file_id": body.get("file_id") or (body.get("id") if body.get("source_type") == "id" else None),
        "mime_type": _first(body, _MIME_TYPES),
        "title": body.get("filename") or body.get("title"),
    }
    return media_block(ours, {**body, **source})


def _first(body: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((body[name] for name in names if isinstance(body.get(name), str)), None)


def _without(value: Any, taken: Collection[str]) -> Any:
    """What is left of a part when what stands in the block is taken out of it."""
    if isinstance(value, Mapping):
        kept = {name: _without(item, taken) for name, item in value.items() if not (isinstance(item, str) and item in taken)}
        return {name: item for name, item in kept.items() if item is not None and item not in ([], {})}
    return [_without(item, taken) for item in value] if isinstance(value, list) else value
