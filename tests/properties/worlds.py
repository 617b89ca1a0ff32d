"""Random memories: their settings, blocks, and messages, all of them functions of small numbers that Hypothesis shrinks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from zlib import crc32

from hypothesis import strategies as st

from memory_engine import BaseMemoryBlock, ChatMessage
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
from memory_engine.render import Section

QUERY = "QUERY-7f3a: what did we say?"

MARKER_LIKE = (
    *("[… 3 tokens left out …]", "\n[… 12 tokens left out …]\n", "[… 7 tokens left out …]\n"),
    *(f"\n[… {'9' * 30} tokens left out …]\n", "[… ٣ tokens left out …]"),
)
"""What a tool may have said that looks like the marker of a cut."""
_ALPHABETS = (
    ["the ", "memory ", "of ", "an ", "agent ", "decides ", "which ", "tokens ", "stay. ", "\n"],
    ["日本", "語の", "文章", "。", "русский ", "العربية ", "e\u0301", "\u200b", "👩‍👩‍👧", "😀"],
    ["</memory>", "<fact>", "&lt;", "<notes", "< /Memory>", "<|endoftext|>", "<b>", "[… 3 tokens left out …]", '{"a": [1]}'],
    [*MARKER_LIKE, "[…]", "\n", "line\n", "a "],
    ["1234567890", "    ", "\t", "\n\n", "0x7F", "aaaaaaaa", "!?…", "C:\\x\\y", "%%", "\u00a0"],
)
_SIZES = (0, 1, 3, 12, 12, 60, 60, 60, 200, 200, 600, 2_000, 9_000)


def text_of(rng: Random, size: int | None = None) -> str:
    """A text of about that many characters."""
    size = rng.choice(_SIZES) if size is None else size
    parts = rng.choice(_ALPHABETS)
    piece = "".join(rng.choice(parts) for _ in range(min(40, size)))
    return (piece * (size // max(1, len(piece)) + 1))[:size] if size else ""


# -- messages ----------------------------------------------------------------------------------------------------

MESSAGE_KINDS = (
    *("user", "user", "user", "assistant", "assistant", "call", "call", "answer", "answer", "answer"),
    *("calls", "answers", "texts", "media", "thinking", "named", "giant", "system", "developer", "unpinned"),
    *("pinned user", "pinned answer", "reused call", "duplicate", "orphan", "giant result", "memory", "mixed"),
)


@dataclass(frozen=True)
class Known:
    """The ids of calls in the memory: those that wait, and those that are answered."""

    waiting: Sequence[str] = ()
    answered: Sequence[str] = ()


def message_of(kind: str, rng: Random, known: Known) -> ChatMessage:
    """A message of that kind; where it needs a call that is not there, an orphan."""
    if kind in _SIMPLE:
        return _SIMPLE[kind](rng)
    if kind in ("call", "calls", "reused call"):
        ids = [f"c{rng.randrange(1000)}" for _ in range(rng.randint(2, 4) if kind == "calls" else 1)]
        if kind == "reused call" and (known.answered or known.waiting):
            ids = [rng.choice([*known.answered, *known.waiting])]
        blocks: list[Any] = [TextBlock(text=text_of(rng))] if rng.random() < 0.4 else []
        blocks += [ThinkingBlock(text="hm", signature="s")] if rng.random() < 0.2 else []
        blocks += [ToolCallBlock(id=id_, name="look", arguments=_arguments(rng)) for id_ in dict.fromkeys(ids)]
        return ChatMessage(role="assistant", content=blocks)
    if kind == "answers" and len(known.waiting) > 1:
        ids = list(dict.fromkeys(known.waiting))[: rng.randint(2, 4)]
        rng.shuffle(ids)
        return ChatMessage(role="tool", blocks=[ToolResultBlock(tool_call_id=i, content=text_of(rng)) for i in ids])
    if kind == "duplicate" and known.answered:
        return ChatMessage(role="tool", content=text_of(rng), tool_call_id=rng.choice(known.answered))
    if kind == "orphan" or not known.waiting:
        return ChatMessage(role="tool", content=text_of(rng, 20), tool_call_id=f"none-{rng.randrange(9)}")
    size = rng.choice([9_000, 70_000]) if kind == "giant result" else None
    return ChatMessage(
        role="tool", content=text_of(rng, size), tool_call_id=rng.choice(known.waiting), name=rng.choice([None, "n"])
    )


def _arguments(rng: Random) -> Any:
    return rng.choice([{}, {"q": "日本", "n": [1, 2.5, None, {"x": True}]}, '{"broken": ', "", {"text": text_of(rng, 60)}])


def _media(rng: Random) -> Any:
    return rng.choice(
        [
            ImageBlock(url="https://example.org/a.png", detail="low"),
            ImageBlock(data=b"\x89PNG", mime_type="image/png"),
            AudioBlock(data=b"RIFF", format="wav"),
            VideoBlock(url="https://example.org/a.mp4"),
            DocumentBlock(file_id="f1", title="paper"),
        ]
    )


def _said(role: Any, rng: Random, **fields: Any) -> ChatMessage:
    return ChatMessage(role=role, content=text_of(rng), **fields)


_SIMPLE: dict[str, Callable[[Random], ChatMessage]] = {
    "user": lambda rng: _said("user", rng),
    "assistant": lambda rng: _said("assistant", rng),
    "texts": lambda rng: ChatMessage(role="user", content=[TextBlock(text=text_of(rng)) for _ in range(rng.randint(0, 3))]),
    "media": lambda rng: ChatMessage(role="user", content=[_media(rng), TextBlock(text="look"), _media(rng)]),
    "thinking": lambda rng: ChatMessage(
        role="assistant", content=[ThinkingBlock(text=text_of(rng), signature="x"), TextBlock(text=text_of(rng))]
    ),
    "named": lambda rng: _said("user", rng, name="Ada", metadata={"a": [1, {"b": None}]}),
    "kept": lambda rng: _said("user", rng, metadata={"kept": {"with": text_of(rng)}, "counted": [["kept", "with"]]}),
    "giant": lambda rng: ChatMessage(
        role=rng.choice(["user", "assistant", "assistant"]), content=text_of(rng, rng.choice([9_000, 70_000]))
    ),
    "system": lambda rng: ChatMessage(role="system", content=text_of(rng, rng.choice([0, 10, 60]))),
    "developer": lambda rng: ChatMessage(role="developer", content=text_of(rng, 20)),
    "unpinned": lambda rng: _said("system", rng, metadata={"pinned": False}),
    "pinned user": lambda rng: ChatMessage(role="user", content=text_of(rng, 30), metadata={"pinned": True}),
    "pinned answer": lambda rng: ChatMessage(role="assistant", content=text_of(rng, 30), metadata={"pinned": True}),
    "memory": lambda rng: ChatMessage(role="system", content=[TextBlock(text="<memory></memory>", origin="memory")]),
    "mixed": lambda rng: ChatMessage(
        role="user", content=[TextBlock(text="<memory></memory>", origin="memory"), TextBlock(text=text_of(rng))]
    ),
}


# -- blocks ------------------------------------------------------------------------------------------------------


class Recorder(BaseMemoryBlock[str]):
    """Notes what it absorbs; it cannot forget, so it is rebuilt. Each chunk of some is refused once before."""

    absorbed: list[tuple[int, str, int]] = []
    refuses: bool = False

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> str:
        return ""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        for seq, message in zip(self.context.seqs, messages, strict=True):
            assert message.id is not None
            self.absorbed.append((seq, message.id, fingerprint(message)))
        if self.refuses and self.context.attempt == 1:
            raise ValueError("not now")


class Forgetter(Recorder):
    """The same, but it forgets by itself."""

    async def _aforget(self, session_uid: str | None, seqs: Sequence[int] | None) -> None:
        self.absorbed = [] if seqs is None else [item for item in self.absorbed if item[0] not in seqs]


def fingerprint(message: ChatMessage) -> int:
    """A number that differs for other content."""
    return crc32(message.model_dump_json(exclude={"id", "created_at"}).encode())


CONTENTS = (
    *("text", "text", "long text", "items", "items", "messages", "messages", "media", "tags", "changing"),
    *("raises", "hangs", "int", "mixed", "none", "surrogate", "blank"),
)
TRUNCATIONS = ("default", "default", "default", "none", "lies", "raises", "longer", "wrong")


class AnyBlock(BaseMemoryBlock[Any]):
    """Says, and truncates to, anything."""

    says: str
    truncates: str
    seed: int

    async def _aget(self, messages: list[ChatMessage] | None = None, **block_kwargs: Any) -> Any:
        given = len(messages or ())
        if messages:
            messages.clear()  # the list is the block's own
        if self.says == "raises":
            raise RuntimeError("no section today")
        if self.says == "hangs":
            await asyncio.sleep(30)
        return text_of(Random(given), 20 * given) if self.says == "changing" else contents_of(self)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        return None

    async def atruncate(self, content: Any, tokens_to_truncate: int) -> Any:
        if self.truncates == "default":
            return await super().atruncate(content, tokens_to_truncate)
        if self.truncates == "raises":
            raise RuntimeError("cannot truncate")
        longer = content * 2 if isinstance(content, str | list) else content
        return {"none": None, "lies": content, "longer": longer, "wrong": 7}[self.truncates]


def contents_of(block: AnyBlock) -> Any:
    """What such a block says, the same each time; None for one that says something else each time, or nothing."""
    rng = Random(block.seed)
    says = block.says
    if says == "items":
        return [
            TextBlock(text=text_of(rng), tag=rng.choice([None, "fact"]), value=rng.choice([None, rng.random()]), seq=number)
            for number in range(rng.randint(0, 8))
        ]
    if says == "messages":
        kinds = [rng.choice(MESSAGE_KINDS) for _ in range(rng.randint(0, 6))]
        return [message_of(kind, rng, Known(["c1"], ["c2"])) for kind in kinds]
    if says == "media":
        return [TextBlock(text=text_of(rng)), _media(rng), _media(rng)]
    texts = {
        "text": text_of(rng),
        "long text": text_of(rng, 20_000),
        "tags": f"</memory></{block.name}> <{block.name}>" * 5,
        "int": 7,
        "mixed": [TextBlock(text="a"), ChatMessage(role="user", content="b")],
        "none": None,
        "surrogate": "\ud800",
        "blank": " \n",
    }
    return texts.get(says)


# -- settings ----------------------------------------------------------------------------------------------------


def length(text: str) -> int:
    return len(text)


def words(text: str) -> list[str]:
    return text.split()


def octets(text: str) -> bytes:
    return text.encode()


def few(text: str) -> int:
    """Nearly nothing for any text, and not additive."""
    return len(text) // 97


def markdown(sections: Sequence[Section]) -> str:
    return "\n".join(f"## {section.name}\n{section.text}" for section in sections)


def verbose(sections: Sequence[Section]) -> str:
    return "These are notes, for you to read with care. " * 30 + markdown(sections)


def thrice(sections: Sequence[Section]) -> str:
    return markdown(sections) * 3


def nothing(sections: Sequence[Section]) -> str:
    return ""


TOKENIZERS: dict[str, Any] = {"o200k": None, "length": length, "words": words, "octets": octets, "few": few}
RENDERERS: dict[str, Any] = {"tags": None, "markdown": markdown, "verbose": verbose, "thrice": thrice, "nothing": nothing}


@dataclass(frozen=True)
class World:
    """The settings of one memory, small enough to be read in a failing example."""

    token_limit: int = 1000
    reserved: float = 0.0
    ratio: float = 0.7
    flush: int | None = None
    max_turns: int | None = None
    start_on_user: bool = True
    insert_method: str = "system"
    delivery: str = "inline"
    tokenizer: str = "o200k"
    renderer: str = "tags"
    overhead: int = 4
    media: int | None = None
    result_limit: int | None = None
    blocks: tuple[tuple[str, str, int, int, bool, int | None], ...] = ()
    """(what it says, how it truncates, priority, seed, depends_on_query, max_tokens) of each."""
    recorders: str = "rf"

    @property
    def reserved_tokens(self) -> int:
        return min(self.token_limit - 1, int(self.reserved * self.token_limit))

    @property
    def budget(self) -> int:
        return self.token_limit - self.reserved_tokens

    @property
    def media_costs(self) -> dict[str, int]:
        standard = {"image": 1024, "audio": 1024, "video": 2048, "document": 2048}
        return standard if self.media is None else dict.fromkeys(standard, self.media)

    def any_blocks(self) -> list[AnyBlock]:
        """The blocks with a section."""
        return [
            AnyBlock(
                name=f"block{number}",
                says=says,
                truncates=truncates,
                priority=priority,
                seed=seed,
                depends_on_query=depends,
                max_tokens=most,
                accept_short_term_memory=seed % 3 == 0,
            )
            for number, (says, truncates, priority, seed, depends, most) in enumerate(self.blocks)
        ]

    def recording_blocks(self) -> list[Recorder]:
        """The blocks that note what they absorb."""
        made = {
            "r": Recorder(name="recorder"),
            "f": Forgetter(name="forgetter"),
            "x": Forgetter(name="refuser", refuses=True),
            "y": Recorder(name="rebuilt_refuser", refuses=True),
        }
        return [made[letter] for letter in self.recorders]

    def arguments(self) -> dict[str, Any]:
        """For `MemoryEngine`, without the database."""
        costs = self.media_costs
        return {
            "token_limit": self.token_limit,
            "reserved_tokens": self.reserved_tokens,
            "chat_history_token_ratio": self.ratio,
            "token_flush_size": None if self.flush is None else min(self.flush, self.token_limit),
            "max_turns": self.max_turns,
            "start_on_user": self.start_on_user,
            "insert_method": self.insert_method,
            "delivery": self.delivery,
            "tokenizer_fn": TOKENIZERS[self.tokenizer],
            "renderer": RENDERERS[self.renderer],
            "message_overhead_tokens": self.overhead,
            "max_tool_result_tokens": self.result_limit,
            "memory_blocks": [*self.recording_blocks(), *self.any_blocks()],
            **{f"{kind}_token_size_estimate": cost for kind, cost in costs.items()},
        }


def _often(common: Any, *rare: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([common] * (2 * len(rare)) + list(rare))


BLOCKS = st.tuples(
    st.sampled_from(CONTENTS),
    st.sampled_from(TRUNCATIONS),
    st.sampled_from([1, 0, 2, 3, 5]),
    st.integers(0, 30),
    st.booleans(),
    _often(None, 1, 20, 200),
)

WORLDS = st.builds(
    World,
    token_limit=st.sampled_from([1000, 300, 600, 2_500, 1_500, 6_000, 4_000, 20_000, 100_000, 1_000_000, 150, 60, 20, 1]),
    reserved=_often(0.0, 0.1, 0.5, 0.9),
    ratio=st.sampled_from([0.7, 0.5, 0.9, 0.3, 1.0, 0.01]),
    flush=st.sampled_from([None, None, 1, 40, 300, 10_000]),
    max_turns=_often(None, 0, 1, 2, 4),
    start_on_user=_often(True, False),
    insert_method=st.sampled_from(["system", "user", "split"]),
    delivery=st.sampled_from(["inline", "background"]),
    tokenizer=st.sampled_from(["o200k", "o200k", "length", "words", "octets", "few"]),
    renderer=_often("tags", "markdown", "verbose", "thrice", "nothing"),
    overhead=_often(4, 0, 11),
    media=st.sampled_from([8, 60, 8, 60, None]),
    result_limit=_often(None, 1, 40, 500),
    blocks=st.lists(BLOCKS, max_size=4).map(tuple),
    recorders=st.sampled_from(["rf", "rx", "fy", "", "f"]),
)
