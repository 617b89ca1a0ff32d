"""Foreign JSON objects taken apart into content blocks and put together again, exactly.

Taking an object apart moves its texts, media and calls into blocks; what is left of it is kept, with the place that each block
was taken from. Putting it together fills these places from the blocks, so that a text that was shortened in between comes out
shortened. Types that are not known are taken apart as well: long texts and media become blocks, the rest a block of JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from memory_engine.content import AnyBlock
from memory_engine.errors import InvalidMessageError
from memory_engine.formats.openai import _DATA_URI
from memory_engine.frozen import freeze_json
from memory_engine.messages import (
    AudioBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    VideoBlock,
)

__all__ = [
    "Fields",
    "Path",
    "TakenApart",
    "as_object",
    "as_text",
    "checked_id",
    "is_base64",
    "mapping",
    "put_together",
    "split_uri",
    "thaw",
]

_WORDS, _LONG = 40, 200
"""Characters from which a text with spaces, and any text, becomes a block of its own inside of what we do not know."""

Fields = dict[str, Any]
Path = tuple[str | int, ...]


def as_object(value: object, what: str, *, leave_out_none: bool = False) -> Fields:
    """The dict (or the SDK's object) as a dict of JSON values that is the caller's own.

    :raises InvalidMessageError: it is neither, or JSON cannot give it back exactly.
    """
    dump = getattr(value, "model_dump", None)
    options = {"exclude_none": True} if leave_out_none else {"exclude_unset": True}
    source = value if isinstance(value, Mapping) or dump is None else dump(mode="json", **options)
    if not isinstance(source, Mapping):
        raise InvalidMessageError(f"{what} is a dict, not {type(value).__name__}.")
    try:
        return cast(Fields, thaw(freeze_json(source)))
    except ValueError as error:
        raise InvalidMessageError(f"{what} cannot be stored: {error}.") from None


@dataclass(slots=True)
class TakenApart:
    """A JSON object as blocks, and what is left of it."""

    whole: Fields
    blocks: list[AnyBlock] = field(default_factory=list)
    places: list[list[str | int]] = field(default_factory=list)
    call_id: str | None = None
    """The id of the call that it makes."""
    left: Any = None

    def __post_init__(self) -> None:
        self.left = self.whole

    def take(self, block: AnyBlock, how: str = "none", path: Path = ()) -> None:
        """The value at `path` becomes a block; `how` says what of the block gives it back (see `_VALUES`)."""
        self.blocks.append(block)
        self.places.append([how, *path])
        if how != "none":
            self.left = _put(self.left, path, None)

    def take_uri(self, uri: str, path: Path, kind: type[ImageBlock | AudioBlock | VideoBlock | DocumentBlock]) -> None:
        """An address, or media in a data URI, becomes a block of that kind."""
        mime_type, data = split_uri(uri)
        if data is None:
            self.take(kind(url=uri), "url", path)
        else:
            self.take(kind(mime_type=mime_type, data=data), "uri", path)

    def take_unknown(self, path: Path = (), *, images: Sequence[Path] = ()) -> None:
        """Long texts and media of the value at `path` become blocks, what is left of it one of JSON.

        That one is a thinking block: counted, but neither shortened nor shown as something that was said. `images` are
        the places of base64 texts.
        """
        inner = TakenApart(_get(self.left, path))
        for leaf, text in list(_leaves(inner.left, ())):
            mime_type, data = split_uri(text)
            if data is not None:
                inner.take_uri(text, leaf, _media_class(mime_type or ""))
            elif leaf in images and is_base64(text):
                inner.take(ImageBlock(data=text), "data", leaf)
            elif _is_prose(text, leaf[-1]):
                inner.take(TextBlock(text=text), "text", leaf)
        self.take(ThinkingBlock(text=as_text(inner.left)), "json", path)
        for block, (how, *leaf_path) in zip(inner.blocks, inner.places, strict=True):
            self.blocks.append(block)
            self.places.append([how, *path, *leaf_path])

    @property
    def entry(self) -> Fields:
        """What has to be kept beside the blocks."""
        return {"at": self.places, "left": self.left} | ({} if self.call_id is None else {"call": self.call_id})


def put_together(entries: object, blocks: Sequence[AnyBlock]) -> list[Fields | None] | None:
    """The objects with these blocks put back into them; None for one whose call is missing.

    None instead of a list: these are not the blocks that were taken from them.
    """
    if not isinstance(entries, list):
        return None
    remaining = list(blocks)
    objects: list[Fields | None] = []
    for entry in entries:
        if "call" in entry and not (
            remaining and isinstance(first := remaining[0], ToolCallBlock) and first.id == entry["call"]
        ):
            objects.append(None)
            continue
        count = len(entry["at"])
        whole = _fill(entry, remaining[:count])
        if whole is None:
            return None
        objects.append(whole)
        remaining = remaining[count:]
    return None if remaining else objects


def _fill(entry: Mapping[str, Any], blocks: Sequence[AnyBlock]) -> Fields | None:
    whole = thaw(entry["left"])
    if len(blocks) < len(entry["at"]):
        return None
    for (how, *path), block in zip(entry["at"], blocks, strict=True):
        if how != "none":
            try:
                whole = _put(whole, tuple(path), _VALUES[how](block))
            except (AttributeError, ValueError, TypeError, LookupError):
                return None
    return whole if isinstance(whole, dict) else None


def _text_of(block: AnyBlock) -> str:
    if isinstance(block, ToolResultBlock):
        return block.content
    if isinstance(block, ToolCallBlock):
        return block.arguments if isinstance(block.arguments, str) else as_text(block.arguments)
    return cast(TextBlock | ThinkingBlock, block).text


_VALUES: dict[str, Callable[[Any], Any]] = {
    "text": _text_of,
    "json": lambda block: json.loads(_text_of(block)),
    "signature": lambda block: block.signature,
    "uri": lambda block: f"data:{block.mime_type};base64,{block.data}",
    "data": lambda block: block.data,
    "url": lambda block: block.url,
    "file_id": lambda block: block.file_id,
}
"""For each way in which a value was taken: how the block gives it back."""


def split_uri(uri: str) -> tuple[str | None, str | None]:
    """The media type and the base64 text of a data URI; two None for any other text."""
    found = _DATA_URI.fullmatch(uri)
    return (found[1], found[2]) if found and is_base64(found[2]) else (None, None)


def is_base64(value: object) -> bool:
    """Whether a media block takes it as its data."""
    return isinstance(value, str) and value.isascii() and not value.startswith("data:")


def checked_id(value: object) -> str | None:
    """The value if it can be an id or a name of ours."""
    return value if isinstance(value, str) and 0 < len(value) <= 512 and "\0" not in value else None


def digest(text: str) -> str:
    """Equal for equal texts; to know later whether somebody changed one."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def as_text(value: object) -> str:
    """The JSON of a value."""
    return json.dumps(value, ensure_ascii=False)


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a dict, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def thaw(value: Any) -> Any:
    """A changeable copy of a JSON value."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    return [thaw(item) for item in value] if isinstance(value, list) else value


def _media_class(mime_type: str) -> type[ImageBlock | AudioBlock | VideoBlock | DocumentBlock]:
    kinds: dict[str, type[ImageBlock | AudioBlock | VideoBlock]] = {
        "image": ImageBlock,
        "audio": AudioBlock,
        "video": VideoBlock,
    }
    return kinds.get(mime_type.partition("/")[0]) or DocumentBlock


def _is_prose(text: str, key: str | int) -> bool:
    """Whether a text may be shortened: ids, addresses and what is encrypted may not."""
    if isinstance(key, str) and (key in ("id", "url", "signature") or key.endswith(("_id", "_url")) or "encrypted" in key):
        return False
    return len(text) >= _LONG or (len(text) >= _WORDS and " " in text)


def _leaves(value: object, path: Path) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str) and path:
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))


def _get(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def _put(value: Any, path: Path, new: Any) -> Any:
    """A copy of `value` with `new` at `path`; only what is on the way there is copied."""
    if not path:
        return new
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _put(copy[path[0]], path[1:], new)
    return copy
