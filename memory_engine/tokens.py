"""What text and messages cost in tokens: with tiktoken's o200k_base, shipped and loaded on first use, or a function given."""

from __future__ import annotations

import asyncio
import hashlib
import json
import lzma
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import lru_cache, partial
from importlib.resources import files
from inspect import iscoroutine
from itertools import accumulate, pairwise
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple

from memory_engine.errors import TokenizerError
from memory_engine.messages import (
    AudioBlock,
    ChatMessage,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    ToolResultBlock,
    VideoBlock,
)

if TYPE_CHECKING:
    from tiktoken import Encoding

__all__ = ["BIG_TEXT", "COUNTED", "TokenCounter"]

COUNTED = "counted"
"""The key in a message's metadata that names what of the metadata is counted."""

BIG_TEXT = 65_536
"""Characters above which a text is counted in pieces (by o200k_base) and off the event loop."""

_VOCABULARY = 199_998
_SPECIAL = {"<|endoftext|>": 199_999, "<|endofprompt|>": 200_018}
_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)

# Where that pattern always ends a match, whatever comes before or after: cutting there changes no count.
_BOUNDARY = re.compile(r"\S(?= )|[^\W_](?=[\s,.;:!?()\[\]{}<>=+*/\"。、，！？])|[A-Za-z](?=[0-9])|[0-9](?=[A-Za-z])")
_TAIL = 2_048
_LONG_LINE = 2_000
_LINES_KEPT = 4_096
"""The counts of so many lines of up to so many characters are remembered."""
_CUT_ALLOWANCE = 8
"""Tokens added for a cut elsewhere, where the parts may cost less than the whole."""

_PROBES = (
    "",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "日本語 русский العربية 😀",
    '{"a": [1, 2.5, null]}\n\n',
)

_NOT_OURS = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)

_encoding: Encoding | None = None
_loading = threading.Lock()


class TokenCounter:
    """Counts texts and messages.

    `tokenizer_fn` takes a text and returns its number of tokens, or its tokens; it may be called from other threads. The
    default is o200k_base: exact up to `BIG_TEXT` characters and an upper bound above, without network or cache. The other
    arguments are tokens: `message_overhead` for each message, the rest for each piece of media, whatever its size.
    """

    def __init__(
        self,
        tokenizer_fn: Callable[[str], int | Sized] | None = None,
        *,
        message_overhead: int = 4,
        image: int = 1024,
        audio: int = 1024,
        video: int = 2048,
        document: int = 2048,
    ) -> None:
        self._tokenizer_fn = tokenizer_fn
        self._overhead = message_overhead
        self._media: Mapping[type, int] = {ImageBlock: image, AudioBlock: audio, VideoBlock: video, DocumentBlock: document}
        self._identity: str | None = None
        self.text: Callable[[str], int] = _count_o200k if tokenizer_fn is None else partial(_count_with, tokenizer_fn)
        """The tokens of a text. Raises TokenizerError: the tokenizer raised, or returned neither a count nor tokens."""

    def message(self, message: ChatMessage) -> int:
        """The tokens of a message with everything that a model reads of it.

        Metadata costs nothing, but for what `metadata["counted"]` names: a list of paths (lists of keys) to what adapters keep
        there and send to the model all the same, such as `[["llama_index", "additional_kwargs"]]`.

        :raises TokenizerError: the tokenizer raised, or returned neither a count nor tokens.
        """
        return self._cost(self._parts(message))

    async def text_async(self, text: str) -> int:
        """`text`, off the event loop when it takes long."""
        if len(text) > BIG_TEXT or not self._ready:
            return await asyncio.to_thread(self.text, text)
        return self.text(text)

    async def count_messages(self, messages: Sequence[ChatMessage]) -> list[int]:
        """`message` of each, off the event loop when it takes long."""
        if len(messages) == 1 and self._ready and (text := _only_text(messages[0])) is not None:
            return [self._overhead + self.text(text)]
        parts = [self._parts(message) for message in messages]
        if sum(part.characters for part in parts) > BIG_TEXT or not self._ready:
            return await asyncio.to_thread(self._costs, parts)
        return self._costs(parts)

    @property
    def identity(self) -> str:
        """Equal for counters that count alike: the tokenizer's name and its counts of fixed probes, and the sizes given.

        :raises TokenizerError: the tokenizer raised, or returned neither a count nor tokens.
        """
        if self._identity is None:
            counts = [*map(self.text, _PROBES), self._overhead, *self._media.values()]
            digest = hashlib.sha256(json.dumps(counts).encode()).hexdigest()[:16]
            self._identity = f"{_name(self._tokenizer_fn)}:{digest}"
        return self._identity

    @property
    def _ready(self) -> bool:
        return self._tokenizer_fn is not None or _encoding is not None

    def _parts(self, message: ChatMessage) -> _Parts:
        fixed, texts = self._overhead, []
        others = [text for text in (message.name, message.tool_call_id) if text]
        for block in message.blocks:
            if isinstance(block, TextBlock):
                texts.append(block.text)
            elif type(block) in self._media:
                fixed += self._media[type(block)]
            else:
                others += _texts_of(block)
        if message.metadata:
            others += _kept_texts(message.metadata)
        return _Parts(fixed, texts, others)

    def _cost(self, parts: _Parts) -> int:
        count, texts = self.text, parts.texts
        tokens = parts.fixed + sum(map(count, parts.others))
        if len(texts) < 2:
            return tokens + sum(map(count, texts))
        # A provider may join the texts or keep them apart, and either may cost more.
        return tokens + max(count("\n".join(texts)), sum(map(count, texts)))

    def _costs(self, parts: Iterable[_Parts]) -> list[int]:
        return [self._cost(part) for part in parts]


class _Parts(NamedTuple):
    """What of a message is counted: a fixed cost, the texts of its text blocks, and other texts."""

    fixed: int
    texts: list[str]
    others: list[str]

    @property
    def characters(self) -> int:
        return sum(map(len, self.texts)) + sum(map(len, self.others))


def _only_text(message: ChatMessage) -> str | None:
    """The text of a message that is nothing but one text of a common size."""
    blocks = message.blocks
    if len(blocks) != 1 or message.name or message.tool_call_id or type(block := blocks[0]) is not TextBlock:
        return None
    if message.metadata and COUNTED in message.metadata:
        return None
    return block.text if len(block.text) <= BIG_TEXT else None


def _kept_texts(metadata: Mapping[str, Any]) -> Iterator[str]:
    """What the model reads of what adapters keep; a path that leads nowhere is none."""
    paths = metadata.get(COUNTED)
    for path in paths if isinstance(paths, list) else ():
        value: Any = metadata
        try:
            for key in path:
                value = value[key]
        except (KeyError, IndexError, TypeError):
            continue
        yield value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _texts_of(block: ContentBlock) -> tuple[str, ...]:
    if isinstance(block, ToolCallBlock):
        arguments = block.arguments
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        return (block.id, block.name, text)
    if isinstance(block, ToolResultBlock):
        return (block.tool_call_id, block.content)
    if isinstance(block, ThinkingBlock):
        return (block.text, block.signature or "")
    raise TypeError(f"{type(block).__name__} has no cost")


def _count_with(tokenizer_fn: Callable[[str], int | Sized], text: str) -> int:
    try:
        return _as_count(tokenizer_fn(text))
    except (*_NOT_OURS, TokenizerError):
        raise
    except BaseException as error:  # a tokenizer written in Rust raises its PanicException
        raise _failed(tokenizer_fn, error) from error


def _as_count(result: object) -> int:
    if iscoroutine(result):
        result.close()
        raise TokenizerError("tokenizer_fn is asynchronous; give a plain function from text to its number of tokens.")
    if isinstance(result, Mapping):
        raise TokenizerError(
            "tokenizer_fn returned a mapping; return the tokens in it, such as `tokenizer(text)['input_ids']`."
        )
    if isinstance(result, bool) or not (isinstance(result, Sized) or hasattr(result, "__index__")):
        raise TokenizerError(f"tokenizer_fn returned {result!r:.100}; it must return a number of tokens, or the tokens.")
    count = len(result) if isinstance(result, Sized) else index(result)
    if count < 0:
        raise TokenizerError(f"tokenizer_fn returned {count}; a number of tokens is never negative.")
    return int(count)


def _failed(tokenizer_fn: object, error: BaseException) -> TokenizerError:
    return TokenizerError(
        f"The tokenizer {_name(tokenizer_fn)} raised {type(error).__name__}: {error!s:.500}. Nothing was written; "
        "give a tokenizer_fn that counts any text."
    )


def _name(tokenizer_fn: object) -> str:
    """The qualified name of a function, or of the class of another callable."""
    if tokenizer_fn is None:
        return "tiktoken.o200k_base"
    while isinstance(tokenizer_fn, partial):
        tokenizer_fn = tokenizer_fn.func
    named = tokenizer_fn if hasattr(tokenizer_fn, "__qualname__") else type(tokenizer_fn)
    return f"{getattr(named, '__module__', None) or '?'}.{getattr(named, '__qualname__', '?')}"[:200]


def _count_o200k(text: str) -> int:
    encoding = _encoding or _load()
    try:
        if len(text) <= BIG_TEXT:
            if "\n" not in text:
                return _count_line(text)
            return sum(map(_count_line, _lines(text)))
        return sum(len(encoding.encode_ordinary(text[start:end])) + extra for start, end, extra in _pieces(text))
    except _NOT_OURS:
        raise
    except BaseException as error:
        raise _failed(None, error) from error


def _lines(text: str) -> Iterator[str]:
    """The text in pieces that end with lines."""
    start = end = 0
    for line in text.split("\n"):
        # White space and slashes may be taken in by the match that a line ends with; all else begins a new one.
        if end and line and line[0] != "/" and not line[0].isspace():
            yield text[start:end]
            start = end
        end += len(line) + 1
    yield text[start:]


def _count_line(line: str) -> int:
    return _remembered(line) if len(line) <= _LONG_LINE else _count_once(line)


def _count_once(line: str) -> int:
    return len((_encoding or _load()).encode_ordinary(line))


# What a section shows is counted by its block, as a section, in its message and again when it is cut: always the same lines.
_remembered = lru_cache(maxsize=_LINES_KEPT)(_count_once)


def _pieces(text: str) -> Iterator[tuple[int, int, int]]:
    """(start, end, tokens to add) of pieces of at most `BIG_TEXT` characters."""
    start = 0
    while len(text) - start > BIG_TEXT:
        limit = start + BIG_TEXT
        cut = _last_boundary(text, limit - _TAIL, limit) or _last_boundary(text, start, limit - _TAIL)
        end = cut or limit
        yield start, end, 0 if cut else _CUT_ALLOWANCE
        start = end
    yield start, len(text), 0


def _last_boundary(text: str, start: int, end: int) -> int | None:
    # `finditer(text, start, end)` would hide the character at `end` from the look-ahead.
    return max((start + found.end() for found in _BOUNDARY.finditer(text[start : end + 1])), default=None)


def _load() -> Encoding:
    """o200k_base from the ranks in `memory_engine/data` (0.1 to 0.2 seconds, once in a process)."""
    global _encoding  # noqa: PLW0603  (one encoding for the whole process)
    with _loading:
        if _encoding is None:
            from tiktoken import Encoding

            _encoding = Encoding("o200k_base", pat_str=_PATTERN, mergeable_ranks=_ranks(), special_tokens=_SPECIAL)
    return _encoding


def _ranks() -> dict[bytes, int]:
    """The tokens of o200k_base and their ranks; `tools/make_ranks.py` made the file."""
    raw = lzma.decompress(files("memory_engine.data").joinpath("o200k_base.xz").read_bytes())
    ends = accumulate(raw[:_VOCABULARY], initial=_VOCABULARY)
    return {raw[start:end]: rank for rank, (start, end) in enumerate(pairwise(ends))}
