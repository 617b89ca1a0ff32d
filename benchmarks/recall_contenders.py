"""LlamaIndex's and LangChain's memories with vector search, given the same texts, embeddings and tokenizer.

Their messages have no field for who speaks (LlamaIndex) or no use for it (LangChain), so the speaker's name goes before the
text, or they could not know what our messages say. Vectors are searched exactly and in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal

from benchmarks.recall_data import Conversation, Turn
from benchmarks.recall_systems import COUNTER, SESSION, Embedding, System, needed
from memory_engine import ChatMessage

MARGIN = 0.8
"""How much of the room for recall the tuned contenders aim at. They choose a number of results, not of tokens, and what they
find is longer than the average: more would find more, and exceed the budget more often."""

KEPT = "kept to the budget"


class LlamaIndex(System):
    """LlamaIndex's `Memory` with its `VectorMemoryBlock`, one `aput` for each message.

    - defaults: as its guide constructs it; the block has priority 0, which means that it is never truncated.
    - kept to the budget: priority 1, with which its memory truncates, that is drops, a block for which there is no room.
    - tuned: one vector for each turn instead of each 3,000 tokens, searched with the question alone instead of the last five
      messages, and as many results as the room holds on average.
    """

    def __init__(self, ratio: float, embedding: Embedding, *, tuned: bool = False) -> None:
        self._memory_module = needed("llama_index.core.memory", "llama-index-core")
        self._llms = needed("llama_index.core.llms", "llama-index-core")
        self.name = "LlamaIndex"
        self.ways = ("tuned",) if tuned else ("defaults", KEPT)
        self.embedding = embedding
        self._embed_model = _llama_embedding(embedding)
        self._ratio, self._tuned = ratio, tuned
        self._memory: Any = None

    async def prepare(self, conversation: Conversation) -> None:
        self._conversation = conversation

    async def limit(self, budget: int) -> None:
        await self._end()
        store = _llama_store()
        tuned = self._tuned
        block_class = self._memory_module.VectorMemoryBlock
        self._block = block = (_question_only(block_class) if tuned else block_class)(
            vector_store=store,
            embed_model=self._embed_model,
        )
        self._memory = self._memory_module.Memory.from_defaults(
            session_id=SESSION,
            token_limit=budget,
            chat_history_token_ratio=self._ratio,
            memory_blocks=[block],
            tokenizer_fn=_tokens,
            **({"token_flush_size": 1} if tuned else {}),
        )
        for turn in self._conversation.turns:
            await self._memory.aput(self._llms.ChatMessage(role=turn.role, content=turn.spoken))
        if tuned:
            sizes = [COUNTER.text(node.text) for node in store.nodes]
            block.similarity_top_k = results_for(budget, self._ratio, sizes)

    async def _get(self, question: str) -> tuple[Sequence[ChatMessage], int]:
        returned = await self._memory.aget(input=question)
        messages = [ChatMessage(role=message.role.value, content=message.content or "") for message in returned]
        return messages, sum(COUNTER.message(message) for message in messages if message.role == "system")

    def use(self, way: str) -> None:
        self._block.priority = int(way == KEPT)

    async def close(self) -> None:
        await self._end()

    async def _end(self) -> None:
        if self._memory is not None:
            # It offers no way to close; its engine is reached through the session factory that it uses itself.
            factory, _ = await self._memory.sql_store._initialize()
            await factory.kw["bind"].dispose()
        self._memory = None


@lru_cache(maxsize=65_536)
def _tokens(text: str) -> range:
    """What its memory takes the length of, at every put again for the whole queue; the tokens themselves are not used."""
    return range(COUNTER.text(text))


def results_for(budget: int, ratio: float, sizes: Sequence[int]) -> int:
    """How many results of the average size the room beside the history holds, with a margin."""
    average = sum(sizes) / max(1, len(sizes))
    return max(1, int(MARGIN * budget * (1 - ratio) / max(1.0, average)))


def _question_only(base: Any) -> Any:
    class QuestionOnly(base):  # type: ignore[misc]
        """Searches with the last message, the question: with `retrieval_context_window=1` it would take all of them."""

        async def _aget(self, messages: Any = None, **block_kwargs: Any) -> str:
            return str(await super()._aget(messages[-1:] if messages else messages, **block_kwargs))

    return QuestionOnly


def _llama_embedding(embedding: Embedding) -> Any:
    base = needed("llama_index.core.embeddings", "llama-index-core").BaseEmbedding

    class Shared(base):  # type: ignore[misc, valid-type]
        """The shared embedding as LlamaIndex wants it."""

        def _get_text_embedding(self, text: str) -> list[float]:
            return [float(value) for value in embedding.embed([text])[0]]

        def _get_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return self._get_text_embedding(query)

        async def _aget_text_embedding(self, text: str) -> list[float]:
            return self._get_text_embedding(text)

    return Shared(model_name=embedding.name)


def _llama_store() -> Any:
    """Exact search in memory. LlamaIndex's own in-memory store keeps no texts, which its block requires."""
    import numpy as np

    types = needed("llama_index.core.vector_stores.types", "llama-index-core")
    base = types.BasePydanticVectorStore

    class Exact(base):  # type: ignore[misc, valid-type]
        """The nodes of one session."""

        stores_text: bool = True
        nodes: list[Any] = []  # noqa: RUF012 - pydantic copies defaults
        rows: list[Any] = []  # noqa: RUF012

        @property
        def client(self) -> Any:
            return None

        def add(self, nodes: Sequence[Any], **_: Any) -> list[str]:
            self.nodes.extend(nodes)
            self.rows.extend(np.asarray(node.embedding, dtype=np.float32) for node in nodes)
            return [node.node_id for node in nodes]

        def delete(self, ref_doc_id: str, **_: Any) -> None:
            raise NotImplementedError

        def query(self, query: Any, **_: Any) -> Any:
            if not self.nodes:
                return types.VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
            scores = np.stack(self.rows) @ np.asarray(query.query_embedding, dtype=np.float32)
            best = np.argsort(-scores, kind="stable")[: query.similarity_top_k]
            nodes = [self.nodes[index] for index in best]
            similarities = [float(scores[index]) for index in best]
            return types.VectorStoreQueryResult(nodes=nodes, similarities=similarities, ids=[node.node_id for node in nodes])

    return Exact()


class LangChain(System):
    """LangChain's `ConversationVectorStoreTokenBufferMemory` over its `InMemoryVectorStore`.

    - defaults: as its documentation constructs it, the buffer as large as the budget and five results beside it.
    - tuned: the buffer has the history's share of the budget, and as many results as the rest holds on average.

    It stores pairs of a user's and an assistant's message; turns of the same speaker in a row are one message here. Each pair
    is stamped with the time of the conversation rather than of the run.
    """

    def __init__(self, ratio: float, embedding: Embedding, *, tuned: bool = False) -> None:
        distribution = "langchain-classic"
        self._memory_class = needed(
            "langchain_classic.memory.vectorstore_token_buffer_memory", distribution
        ).ConversationVectorStoreTokenBufferMemory
        self._store_class = needed("langchain_core.vectorstores", distribution).InMemoryVectorStore
        self._llm = _langchain_counter()
        self.name = "LangChain"
        self.ways = ("tuned",) if tuned else ("defaults",)
        self.embedding = embedding
        self._embeddings = _langchain_embedding(embedding)
        self._ratio, self._tuned = ratio, tuned

    async def prepare(self, conversation: Conversation) -> None:
        self._pairs = list(pairs(conversation.turns))

    async def limit(self, budget: int) -> None:
        store = self._store_class(self._embeddings)
        retriever = store.as_retriever(search_kwargs={"k": 5})
        tuned = self._tuned
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated, with nothing of the kind in its place
            self._memory = self._memory_class(
                llm=self._llm,
                retriever=retriever,
                max_token_limit=int(self._ratio * budget) if tuned else budget,
                return_messages=True,
            )
            self._memory._timestamps = stamps = _Stamps()
            for asked, answered, at in self._pairs:
                stamps.now = at
                self._memory.save_context({"input": asked}, {"output": answered})
        if tuned:
            sizes = [COUNTER.text(entry["text"]) for entry in store.store.values()]
            retriever.search_kwargs["k"] = results_for(budget, self._ratio, sizes)

    async def _get(self, question: str) -> tuple[Sequence[ChatMessage], int]:
        returned = self._memory.load_memory_variables({"input": question})["history"]
        roles: dict[str, Literal["system", "user", "assistant"]] = {"system": "system", "human": "user", "ai": "assistant"}
        messages = [ChatMessage(role=roles[message.type], content=str(message.content)) for message in returned]
        return messages, sum(COUNTER.message(message) for message in messages if message.role == "system")

    async def close(self) -> None:
        """Nothing is open."""


class _Stamps(list[datetime]):
    """Times of pairs: whatever time is appended, the conversation's is noted."""

    now = datetime(1970, 1, 1, tzinfo=UTC)

    def append(self, _: datetime) -> None:
        super().append(self.now)


def pairs(turns: Sequence[Turn]) -> list[tuple[str, str, datetime]]:
    """What the user said, what was answered, and when; an empty text where one of the two is missing."""
    said = [(role, list(group)) for role, group in groupby(turns, key=lambda turn: turn.role)]
    found = []
    asked: list[Turn] = []
    for role, group in said:
        if role == "user":
            asked = group
        else:
            found.append((asked, group))
            asked = []
    if asked:
        found.append((asked, []))
    stamp = datetime(1970, 1, 1, tzinfo=UTC)
    return [(_joined(a), _joined(b), (a or b)[0].at or stamp) for a, b in found]


def _joined(turns: Sequence[Turn]) -> str:
    return "\n".join(turn.spoken for turn in turns)


def _langchain_counter() -> Any:
    base = needed("langchain_core.language_models.fake_chat_models", "langchain-classic").FakeListChatModel

    class Counting(base):  # type: ignore[misc, valid-type]
        """A model that is only asked what messages cost."""

        known: dict[str, int] = {}  # noqa: RUF012 - pydantic copies defaults

        def get_num_tokens_from_messages(self, messages: Sequence[Any], tools: Any = None) -> int:
            return sum(self._tokens(str(message.content)) for message in messages)

        def _tokens(self, text: str) -> int:
            if text not in self.known:
                self.known[text] = COUNTER.message(ChatMessage(role="user", content=text))
            return self.known[text]

    return Counting(responses=[])


def _langchain_embedding(embedding: Embedding) -> Any:
    base = needed("langchain_core.embeddings", "langchain-classic").Embeddings

    class Shared(base):  # type: ignore[misc, valid-type]
        """The shared embedding as LangChain wants it."""

        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [[float(value) for value in row] for row in embedding.embed(texts)]

        def embed_query(self, text: str) -> list[float]:
            return self.embed_documents([text])[0]

    return Shared()
