"""VectorMemoryBlock in whole memories on SQLite: what it finds, shows, costs, survives and forgets."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_engine import BlockUnavailableError, ChatMessage, Limits, Memory, MemoryEngine
from memory_engine.blocks import Hit, RecordsVectorStore, VectorMemoryBlock
from memory_engine.blocks.vector.ranking import Floor, Weights
from memory_engine.blocks.vector.store import Item, Scope
from memory_engine.blocks.vector.transcript import speaker
from memory_engine.errors import BudgetExceededError
from memory_engine.messages import ContentBlock, TextBlock, ToolCallBlock
from memory_engine.testing import FakeClock, FakeEmbedder
from memory_engine.tokens import TokenCounter

QUICK = Limits(first_retry=0.01, last_retry=0.05, lease=5.0, poll=0.05)
PATIENCE = 60.0

FACT = "My sister Wilhelmina is allergic to hazelnuts, so please no praline at the party."
TALK = [
    "Good morning, how was the weekend by the lake?",
    FACT,
    "Noted.",
    "The spare key to the boathouse lies under the blue flowerpot.",
    "I will remember that.",
    "Our train to Lisbon leaves on Friday at a quarter past nine.",
    "Platform seven, as always.",
    "The dentist moved my appointment to the ninth of May.",
]
SMALL_TALK = [f"Then I walked the dog for {n} minutes and listened to the radio." for n in range(60)]


@asynccontextmanager
async def engine_of(
    folder: Path, *blocks: VectorMemoryBlock, file: str = "memory.db", **options: Any
) -> AsyncIterator[MemoryEngine]:
    uri = f"sqlite+aiosqlite:///{folder / file}"
    options = {"limits": QUICK, **options}
    async with MemoryEngine(async_database_uri=uri, memory_blocks=blocks or [VectorMemoryBlock()], **options) as engine:
        yield engine


async def tell(memory: Memory, *texts: str, **fields: Any) -> list[str]:
    """Users and assistants say these texts in turn, and everything leaves the history."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": text, **fields} for n, text in enumerate(texts)]
    stored = await memory.put_messages(messages)
    await memory.flush(final=True)
    await memory.drain(PATIENCE)
    return [message.id or "" for message in stored]


async def bound(memory: Memory, name: str = "RetrievedMessages") -> VectorMemoryBlock:
    block = await memory.block(name)
    assert isinstance(block, VectorMemoryBlock)
    return block


async def section(memory: Memory, query: Any = None, name: str = "RetrievedMessages") -> str:
    """What stands in the block's tags, "" without a section."""
    text = "\n".join(message.content for message in await memory.get(query))
    found = re.search(rf"<{name}>\n(.*?)\n</{name}>", text, re.DOTALL)
    return found[1] if found else ""


async def best(memory: Memory, query: str) -> str:
    hits = await (await bound(memory)).search(query)
    return hits[0].item.text if hits else ""


async def item_texts(memory: Memory, name: str = "RetrievedMessages") -> list[str]:
    """Every record of an item."""
    block = await bound(memory, name)
    return [record.data["text"] async for page in block.records.pages("item:") for record in page]


# -- what it shows ---------------------------------------------------------------------------------------------------


async def test_a_fact_comes_back_after_it_left_the_history(tmp_path: Path) -> None:
    clock = FakeClock()
    async with engine_of(tmp_path, clock=clock) as engine:
        memory = engine.session("one")
        await tell(memory, *TALK)
        clock.advance(86_400)
        await tell(memory, *SMALL_TALK)
        context = await memory.context("Is anybody allergic to hazelnuts?")
        [system] = context.messages
        assert system.role == "system"
        assert FACT in system.content
        assert "[2025-01-01 00:00]" in system.content
        assert context.receipt.source("RetrievedMessages").error is None


async def test_it_is_told_in_the_order_in_which_it_was_said(tmp_path: Path) -> None:
    clock = FakeClock()
    block = VectorMemoryBlock(least_score=0.0)
    async with engine_of(tmp_path, block, clock=clock) as engine:
        memory = engine.session("one")
        for text in ("The zebra is late.", "A zebra and a giraffe met.", "Giraffe, giraffe, giraffe and zebra."):
            await tell(memory, text)
            clock.advance(1200)
        told = await section(memory, "giraffe zebra")
        assert told == (
            "[2025-01-01 00:00]\nuser: The zebra is late.\n"
            "[2025-01-01 00:20]\nuser: A zebra and a giraffe met.\n"
            "[2025-01-01 00:40]\nuser: Giraffe, giraffe, giraffe and zebra."
        )


async def test_what_the_history_shows_is_left_out(tmp_path: Path) -> None:
    async with engine_of(tmp_path, token_limit=600) as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "The code of the locker is zebra-7719."})
        for n in range(12):
            await memory.put({"role": "assistant", "content": f"Step {n} of opening the locker: " + "turn it again. " * 8})
        await memory.drain(PATIENCE)
        assert any("zebra-7719" in text for text in await item_texts(memory)), "it was flushed"
        messages = await memory.get("What is the code of the locker, zebra?")
        assert "\n".join(message.content for message in messages).count("zebra-7719") == 1


@pytest.mark.parametrize(
    "question",
    ["How many moons does Jupiter have?", "What is the capital of Assyria?", "Explain quantum tunnelling.", "?!", "and the of"],
)
async def test_nothing_is_inserted_for_what_nobody_spoke_of(tmp_path: Path, question: str) -> None:
    async with engine_of(tmp_path) as engine:
        memory = engine.session("one")
        await tell(memory, *TALK, *SMALL_TALK)
        assert await memory.get(question) == []


async def test_without_a_query_the_recent_messages_are_one(tmp_path: Path) -> None:
    async with engine_of(tmp_path) as engine:
        memory = engine.session("one")
        await tell(memory, *TALK, *SMALL_TALK)
        await memory.put({"role": "user", "content": "Where is the spare key to the boathouse?"})
        assert "blue flowerpot" in await section(memory)
        call = ToolCallBlock(id="1", name="look_up", arguments={"what": "keys"})
        await memory.put(ChatMessage(role="assistant", blocks=[TextBlock(text="Let me see."), call]))
        await memory.put({"role": "tool", "tool_call_id": "1", "content": "no keys are known to this tool"})
        assert "blue flowerpot" in await section(memory), "the question is still what is being answered"


async def test_what_the_latest_messages_are_about_is_part_of_the_query(tmp_path: Path) -> None:
    async with engine_of(tmp_path) as engine:
        memory = engine.session("one")
        await tell(memory, *TALK, *SMALL_TALK)
        await memory.put({"role": "user", "content": "I am looking for the spare key to the boathouse."})
        await memory.put({"role": "assistant", "content": "Did you look everywhere?"})
        await memory.put({"role": "user", "content": "Yes!"})
        assert "blue flowerpot" in await section(memory)
    async with engine_of(tmp_path, VectorMemoryBlock(retrieval_context_window=1)) as engine:
        assert await section(engine.session("one")) == ""


async def test_a_question_without_words_finds_nothing(tmp_path: Path) -> None:
    async with engine_of(tmp_path) as engine:
        memory = engine.session("one")
        await tell(memory, *TALK)
        for query in ("", "   ", "🚀"):
            assert await section(memory, query) == ""
            assert await (await bound(memory)).search(query) == []


async def test_search_says_how_well_each_item_was_found(tmp_path: Path) -> None:
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=FakeEmbedder())) as engine:
        memory = engine.session("one")
        await tell(memory, *TALK)
        hits = await (await bound(memory)).search("the spare key to the boathouse", limit=3)
        assert len(hits) == 3
        assert hits[0].item.text == TALK[3]
        assert (hits[0].item.seq, hits[0].item.session_id) == (3, "one")
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert hits[0].lexical > 0
        assert 0 < (hits[0].dense or 0) <= 1.01


# -- what it may be told ---------------------------------------------------------------------------------------------


async def test_at_most_so_many_items(tmp_path: Path) -> None:
    async with engine_of(tmp_path, VectorMemoryBlock(similarity_top_k=2, least_score=0.0)) as engine:
        memory = engine.session("one")
        await tell(memory, *(f"The zebra number {n} eats grass." for n in range(20)))
        assert (await section(memory, "zebra grass")).count("zebra number") == 2


async def test_items_are_written_as_one_likes(tmp_path: Path) -> None:
    block = VectorMemoryBlock(format_template="- {role}/{name}/{session_id}: {text}", time_format="")
    async with engine_of(tmp_path, block) as engine:
        memory = engine.session("one")
        await tell(memory, "The zebra eats grass.", name="Ada")
        assert await section(memory, "zebra grass") == "- user/Ada/one: The zebra eats grass."


@pytest.mark.parametrize("template", ["no field", "{text} {unknown}", "{speaker}", "{0}", "{text} {text.__class__}"])
def test_a_template_that_cannot_be_filled_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="format_template"):
        VectorMemoryBlock(format_template=template)


def test_a_store_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="vector_store must be a VectorStore"):
        VectorMemoryBlock(vector_store="http://localhost:6333")


async def test_postprocessors_decide_on_what_is_shown(tmp_path: Path) -> None:
    asked: list[str] = []

    def without_lions(query: str, hits: list[Hit]) -> list[Hit]:
        asked.append(query)
        return [hit for hit in hits if "lion" not in hit.item.text]

    async def only_one(query: str, hits: list[Hit]) -> list[Hit]:
        await asyncio.sleep(0)
        return hits[:1]

    block = VectorMemoryBlock(postprocessors=[without_lions, only_one], time_format="")
    async with engine_of(tmp_path, block) as engine:
        memory = engine.session("one")
        await tell(memory, "The lion, the zebra, the grass.", "A zebra eats grass.", "The grass of the zebra grows.")
        told = await section(memory, "zebra lion grass")
        assert asked == ["zebra lion grass"]
        assert len(told.splitlines()) == 1
        assert "lion" not in told
        [hit] = await (await bound(memory)).search("zebra lion grass")
        assert hit.item.text in told


async def test_a_postprocessor_that_fails_leaves_the_section_out(tmp_path: Path) -> None:
    def broken(query: str, hits: list[Hit]) -> list[Hit]:
        raise RuntimeError("no reranker")

    async with engine_of(tmp_path, VectorMemoryBlock(postprocessors=[broken])) as engine:
        memory = engine.session("one")
        await tell(memory, *TALK)
        context = await memory.context("Who is allergic to hazelnuts?")
        assert "no reranker" in (context.receipt.source("RetrievedMessages").error or "")


async def test_old_items_may_count_less(tmp_path: Path) -> None:
    clock = FakeClock()
    block = VectorMemoryBlock(weights=Weights(half_life=7.0), similarity_top_k=1, time_format="")
    async with engine_of(tmp_path, block, clock=clock) as engine:
        memory = engine.session("one")
        await tell(memory, "I live in Turin now, in a flat.")
        clock.advance(30 * 86_400)
        await tell(memory, "I live in Genoa now, in a house with a garden.")
        assert await best(memory, "Where do I live now?") == "I live in Genoa now, in a house with a garden."


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A folder with a memory of long and short messages, in two blocks."""

    async def fill() -> None:
        async with engine_of(tmp_path, VectorMemoryBlock(), VectorMemoryBlock(name="second")) as engine:
            memory = engine.session("one")
            await tell(memory, *LONG_AND_SHORT, *TALK)
            await memory.put({"role": "user", "content": "And the zebra?"})

    asyncio.run(fill())
    return tmp_path


# -- what it may cost ------------------------------------------------------------------------------------------------


LONG_AND_SHORT = [f"The zebra number {n} lives near the boathouse." + " It grazes." * (n % 7 * 9) for n in range(30)]


@given(
    st.integers(40, 3_000),
    st.none() | st.integers(1, 800),
    st.sampled_from(["zebra", "Tell me everything about the zebra number 7 and the boathouse.", None]),
    st.sampled_from(["system", "user", "split"]),
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_budget_is_ever_exceeded(filled: Path, limit: int, max_tokens: int | None, query: str | None, method: str) -> None:
    counter = TokenCounter()

    async def run() -> None:
        blocks = [VectorMemoryBlock(max_tokens=max_tokens), VectorMemoryBlock(name="second", priority=1, max_tokens=max_tokens)]
        async with engine_of(filled, *blocks, token_limit=limit, insert_method=method) as engine:
            try:
                context = await engine.session("one").context(query)
            except BudgetExceededError:
                assert limit < 100
                return
            assert sum(await counter.count_messages(context.messages)) <= limit
            shown = "\n".join(message.content for message in context.messages)
            for source in context.receipt.sources:
                assert source.error is None
                found = re.search(rf"<{source.name}>\n(.*?)\n</{source.name}>", shown, re.DOTALL)
                if max_tokens is not None and found is not None:
                    assert counter.text(found[1]) <= max_tokens

    asyncio.run(run())


def shown(content: Sequence[ContentBlock]) -> list[str]:
    """The lines of a section."""
    return "\n".join(block.text for block in content if isinstance(block, TextBlock)).splitlines()


@pytest.mark.parametrize("asked", [1, 7, 40, 100, 250])
async def test_as_few_items_as_possible_make_room(tmp_path: Path, asked: int) -> None:
    async with engine_of(tmp_path, VectorMemoryBlock(time_format="", least_score=0.0)) as engine:
        memory = engine.session("one")
        texts = [f"The zebra number {n} eats grass." + " It is green." * (n % 5) for n in range(20)]
        await tell(memory, *texts)
        block = await bound(memory)
        content = await block._aget([ChatMessage(role="user", content="zebra grass green")])
        worth = {f"{speaker(item)}: {item.text}": value for item, value in block._section._shown}
        before = shown(content)
        assert set(before) == set(worth)
        size = block.context.count("\n".join(before))
        left = await block.atruncate(content, asked)
        after = shown(left or [])
        assert block.context.count("\n".join(after)) <= size - asked
        dropped = [text for text in before if text not in after]
        assert dropped and after == [text for text in before if text in after], "the order stays"
        assert max(worth[text] for text in dropped) < min((worth[text] for text in after), default=1)
        last = max(dropped, key=lambda text: worth[text])
        with_it = "\n".join(text for text in before if text in after or text == last)
        assert block.context.count(with_it) > size - asked, "one item less would not have been enough"


async def test_everything_can_be_asked_for(tmp_path: Path) -> None:
    async with engine_of(tmp_path) as engine:
        memory = engine.session("one")
        await tell(memory, *TALK)
        block = await bound(memory)
        content = await block._aget([ChatMessage(role="user", content="hazelnuts praline")])
        assert content
        assert await block.atruncate(content, 100_000) is None


async def test_two_blocks_share_the_room_by_priority(tmp_path: Path) -> None:
    first = VectorMemoryBlock(name="first", priority=1, least_score=0.0)
    second = VectorMemoryBlock(name="second", priority=2, least_score=0.0)
    async with engine_of(tmp_path, first, second, token_limit=700) as engine:
        memory = engine.session("one")
        await tell(memory, *(f"The zebra number {n} eats green grass by the lake." for n in range(60)))
        one, two = await section(memory, "zebra grass", "first"), await section(memory, "zebra grass", "second")
        assert len(one.splitlines()) > 25
        assert len(two.splitlines()) < len(one.splitlines())


# -- what it is told -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "talk", "questions"),
    [
        (
            "german",
            [
                "Meine Schwester wohnt seit März in Freiburg.",
                "Schön, gefällt es ihr dort?",
                "Ja. Übrigens: Der Schlüssel liegt unter dem Blumentopf.",
                "Das merke ich mir.",
                "Unser Zug fährt am Freitag um neun.",
                "Am Samstag kochen wir Kartoffelsuppe.",
            ],
            {"Wo sind die Schlüssel?": 2, "In welcher Stadt wohnt die Schwester?": 0, "Wann fahren unsere Züge?": 4},
        ),
        (
            "english",
            [
                "我昨天养了一只猫，它的名字叫豆豆。",
                "真可爱！",
                "我妹妹对花生过敏。",
                "好的，我记住了。",
                "下周五我们坐火车去上海。",
                "祝你旅途愉快。",
            ],
            {"我的猫叫什么名字？": 0, "谁对花生过敏？": 2, "我们什么时候去上海？": 4},
        ),
        (
            "english",
            [
                "先週から猫を飼っています。名前はモモです。",
                "かわいいですね。",
                "妹はピーナッツのアレルギーがあります。",
                "わかりました。",
                "来週の金曜日に京都へ行きます。",
                "楽しんでください。",
            ],
            {"猫の名前は何ですか？": 0, "誰がピーナッツのアレルギーですか？": 2, "いつ京都に行きますか？": 4},
        ),
        (
            "english",
            TALK,
            {
                "Who in the family is allergic to hazelnuts?": 1,
                "Where do I find the key of the boathouse?": 3,
                "When does the train to Lisbon leave?": 5,
                "When is my appointment with the dentist?": 7,
            },
        ),
    ],
    ids=["german", "chinese", "japanese", "english"],
)
@pytest.mark.parametrize("default", [True, False])
async def test_facts_are_found_by_their_words_in(
    tmp_path: Path, language: str, talk: list[str], questions: dict[str, int], default: bool
) -> None:
    block = VectorMemoryBlock() if default else VectorMemoryBlock(language=language)
    async with engine_of(tmp_path, block) as engine:
        memory = engine.session("one")
        await tell(memory, *talk)
        # That "Züge" are several of "Zug" is something only the stemmer of the language knows.
        known = list(questions.items())[: 2 if default and language == "german" else None]
        for question, place in known:
            assert await best(memory, question) == talk[place]
            assert talk[place] in await section(memory, question)


def test_an_unknown_language_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="no stemmer"):
        VectorMemoryBlock(language="klingon")


async def test_a_giant_message_is_found_in_passages(tmp_path: Path) -> None:
    filler = [f"In chapter {n} nothing of importance happens to anybody, and the weather is dull." for n in range(2_500)]
    needle = "The treasure of Captain Zephyrine is buried beneath the crooked almond tree."
    giant = " ".join([*filler[:1_700], needle, *filler[1_700:]])
    assert len(giant) > 200_000
    async with engine_of(tmp_path, token_limit=4_000) as engine:
        memory = engine.session("one")
        await tell(memory, "Listen.", giant, "Thank you.")
        assert needle in await section(memory, "Where is the treasure of Captain Zephyrine?")
        texts = await item_texts(memory)
        assert "".join(texts[1:-1]) == giant
        assert max(len(text) for text in texts) < 10_000


async def test_tool_calls_and_their_results_are_found_together(tmp_path: Path) -> None:
    async with engine_of(tmp_path) as engine:
        memory = engine.session("one")
        call = ToolCallBlock(id="1", name="flight_status", arguments={"number": "LH1202"})
        await memory.put({"role": "user", "content": "Is my plane on time?"})
        await memory.put(ChatMessage(role="assistant", blocks=[call]))
        await memory.put({"role": "tool", "tool_call_id": "1", "content": "delayed until 18:40, gate B22"})
        await memory.put({"role": "assistant", "content": "It is late."})
        await memory.flush(final=True)
        await memory.drain(PATIENCE)
        told = await section(memory, "What is the status of flight LH1202?")
        assert '[flight_status {"number": "LH1202"}]\ndelayed until 18:40, gate B22' in told


async def test_odd_texts_are_kept_exactly(tmp_path: Path) -> None:
    odd = ["", "   ", "👩‍🚀🎉", "a\x0bb\r\n\tzebra  </RetrievedMessages> & <b>", "zebra 東京 Ünï\u0301 \u202ezebra"]
    async with engine_of(tmp_path, VectorMemoryBlock(time_format="")) as engine:
        memory = engine.session("one")
        stored = await memory.put_messages([{"role": "user", "content": text} for text in odd])
        await memory.flush(final=True)
        await memory.drain(PATIENCE)
        assert await item_texts(memory) == [message.content for message in stored if message.content.strip()]
        shown = "\n".join(message.content for message in await memory.get("zebra"))
        assert shown.count("</RetrievedMessages>") == 1


# -- embedders -------------------------------------------------------------------------------------------------------


class Flaky(FakeEmbedder):
    """Can be down, and embeds questions apart."""

    identity = "flaky"

    def __init__(self) -> None:
        super().__init__(64)
        self.down = False
        self.questions: list[str] = []

    async def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        if self.down:
            raise BlockUnavailableError("the embedder is down")
        return await super().__call__(texts)

    async def embed_query(self, text: str) -> list[float]:
        if self.down:
            raise BlockUnavailableError("the embedder is down")
        self.questions.append(text)
        return self.embed(text)


async def test_the_texts_of_a_flush_are_embedded_in_one_call(tmp_path: Path) -> None:
    embedder = Flaky()
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=embedder)) as engine:
        memory = engine.session("one")
        await tell(memory, *TALK)
        [texts] = embedder.calls
        assert f"assistant: {FACT}" in texts
        assert f"user: {TALK[0]}\nassistant: {FACT}\nuser: Noted." in texts
        await tell(memory, "And the oven?")
        assert embedder.calls[1][-1].startswith(f"user: {TALK[6]}\nassistant: {TALK[7]}\nuser: And"), "also across flushes"


async def test_a_question_is_embedded_by_itself_and_once(tmp_path: Path) -> None:
    embedder = Flaky()
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=embedder)) as engine:
        memory = engine.session("one")
        await tell(memory, *TALK)
        for _ in range(3):
            assert FACT in await section(memory, "Who is allergic to hazelnuts?")
        assert embedder.questions == ["Who is allergic to hazelnuts?"]
        assert len(embedder.calls) == 1


async def test_while_the_embedder_is_down_nothing_fails_and_nothing_is_lost(tmp_path: Path) -> None:
    embedder = Flaky()
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=embedder)) as engine:
        memory = engine.session("one")
        await tell(memory, *TALK)
        embedder.down = True
        await memory.put_messages([{"role": "user", "content": "The password of the router is xylophone-42."}])
        await memory.flush(final=True)
        context = await memory.context("Who is allergic to hazelnuts and praline?")
        source = context.receipt.source("RetrievedMessages")
        assert any(FACT in message.content for message in context.messages), "by words alone"
        assert source.error is None
        assert any("words alone" in note for note in source.notes)
        assert (await engine.pending()).deliveries > 0
        embedder.down = False
        await memory.drain(PATIENCE)
        assert "xylophone-42" in await section(memory, "What is the password of the router?")
        assert not (await memory.context("router")).receipt.source("RetrievedMessages").notes


async def test_a_slow_embedder_does_not_hold_up_a_get(tmp_path: Path) -> None:
    class Slow(Flaky):
        async def embed_query(self, text: str) -> list[float]:
            await asyncio.sleep(60)
            return self.embed(text)

    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=Slow(), embed_timeout=0.05)) as engine:
        memory = engine.session("one")
        await tell(memory, *TALK)
        context = await memory.context("Who is allergic to hazelnuts and praline?")
        assert any(FACT in message.content for message in context.messages)
        assert any("too slow" in note for note in context.receipt.source("RetrievedMessages").notes)


async def test_the_model_in_the_package_knows_synonyms(tmp_path: Path) -> None:
    from memory_engine.blocks.embedders import WordLlamaEmbedder

    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=WordLlamaEmbedder())) as engine:
        memory = engine.session("one")
        await tell(memory, "We adopted a puppy from the shelter.", "How lovely!", "The car needs new tyres.", "Again?")
        assert await best(memory, "Which pet dogs do I have?") == "We adopted a puppy from the shelter."


async def test_another_model_is_noticed_and_rebuilt_while_serving(tmp_path: Path) -> None:
    class Other(FakeEmbedder):
        identity = "other"

    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=Flaky())) as engine:
        memory = engine.session("one")
        await tell(memory, *TALK)
        await (await bound(memory)).add_documents(["The library of Alexandria was in Egypt."])
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=Other(32))) as engine:
        memory = engine.session("one")
        context = await memory.context("Who is allergic to hazelnuts and praline?")
        assert any(FACT in message.content for message in context.messages)
        assert any("rebuild()" in note for note in context.receipt.source("RetrievedMessages").notes)
        await (await bound(memory)).rebuild()
        await memory.get("Who is allergic to hazelnuts and praline?")
        await memory.drain(PATIENCE)
        context = await memory.context("Who is allergic to hazelnuts and praline?")
        assert any(FACT in message.content for message in context.messages)
        assert not context.receipt.source("RetrievedMessages").notes
        assert "Alexandria" in await section(memory, "Where was the library of Alexandria?")
        assert sorted(await item_texts(memory)) == sorted([*TALK, "The library of Alexandria was in Egypt."])
        assert (await bound(memory)).stored_items == len(TALK) + 1


async def test_what_is_told_while_another_model_waits_to_be_rebuilt_is_kept(tmp_path: Path) -> None:
    class Other(FakeEmbedder):
        identity = "other"

    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=Flaky())) as engine:
        await tell(engine.session("one"), *TALK)
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=Other(32))) as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "The password of the router is xylophone-42."})
        await memory.flush(final=True)
        await (await bound(memory)).rebuild()
        await memory.redeliver()
        await memory.drain(PATIENCE)
        assert "xylophone-42" in await section(memory, "What is the password of the router?")
        assert len(await item_texts(memory)) == len(TALK) + 1


# -- restarts, other processes, other scopes -------------------------------------------------------------------------


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    for embed_model in (None, FakeEmbedder()):
        name = f"{embed_model is None}.db"
        async with engine_of(tmp_path, VectorMemoryBlock(embed_model=embed_model), file=name) as engine:
            memory = engine.session("one")
            await tell(memory, *TALK)
            before = await section(memory, "Where is the spare key to the boathouse?")
            assert before
        async with engine_of(tmp_path, VectorMemoryBlock(embed_model=embed_model), file=name) as engine:
            assert await section(engine.session("one"), "Where is the spare key to the boathouse?") == before


async def test_another_engine_sees_what_the_first_one_absorbs_and_erases(tmp_path: Path) -> None:
    # One store object for both, as two processes have one each: caches must not depend on who wrote.
    async with engine_of(tmp_path) as one, engine_of(tmp_path) as two:
        here, there = one.session("s"), two.session("s")
        ids = await tell(here, *TALK)
        assert FACT in await section(there, "allergic hazelnuts")
        await tell(there, "Wilhelmina is allergic to walnuts as well.")
        assert "walnuts" in await section(here, "allergic walnuts")
        await here.delete([ids[1]])
        for memory in (here, there):
            assert FACT not in await section(memory, "allergic hazelnuts praline")
        await here.drain(PATIENCE)
        for memory in (here, there):
            assert FACT not in await section(memory, "allergic hazelnuts praline")
            assert "walnuts" in await section(memory, "allergic walnuts")
        await there.reset()
        await there.drain(PATIENCE)
        for memory in (here, there):
            assert await section(memory, "allergic walnuts hazelnuts praline") == ""


@pytest.mark.parametrize("embedded", [False, True])
async def test_what_is_erased_is_gone(tmp_path: Path, embedded: bool) -> None:
    embedder = FakeEmbedder() if embedded else None
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=embedder)) as engine:
        memory = engine.session("one")
        ids = await tell(memory, *TALK)
        await memory.delete([ids[3]])
        await memory.drain(PATIENCE)
        assert await item_texts(memory) == TALK[:3] + TALK[4:]
        await memory.pop()
        await memory.drain(PATIENCE)
        assert await item_texts(memory) == TALK[:3] + TALK[4:7]
        await memory.rewind(ids[4])
        await memory.drain(PATIENCE)
        assert await item_texts(memory) == TALK[:3]
        assert (await bound(memory)).stored_items == 3
        assert not (await memory.context("hazelnuts praline")).receipt.source("RetrievedMessages").notes
        await memory.reset()
        await memory.drain(PATIENCE)
        assert await item_texts(memory) == []
        assert (await bound(memory)).stored_items == 0
        await tell(memory, *TALK)
        block = await bound(memory)
        await engine.delete_session("one")
        await engine.drain(PATIENCE)
        assert await block.records.count() == 0


async def test_the_neighbours_of_what_was_erased_are_embedded_anew(tmp_path: Path) -> None:
    embedder = Flaky()
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=embedder)) as engine:
        memory = engine.session("one")
        ids = await tell(memory, *TALK)
        vectors = {record.data["text"]: record.blob for record in await (await bound(memory)).records.list("item:")}
        embedder.calls.clear()
        await memory.delete([ids[1]])
        await memory.drain(PATIENCE)
        again = [text for texts in embedder.calls for text in texts]
        assert f"user: {TALK[0]}\nuser: {TALK[2]}" in again
        assert not any("Wilhelmina" in text for text in again)
        after = {record.data["text"]: record.blob for record in await (await bound(memory)).records.list("item:")}
        assert {text for text in after if after[text] != vectors[text]} == {TALK[2], TALK[3]}
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=Flaky()), file="without.db") as engine:
        other = engine.session("one")
        await other.put_messages(
            [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(TALK) if n != 1]
        )
        await other.flush(final=True)
        await other.drain(PATIENCE)
        fresh = {record.data["text"]: record.blob for record in await (await bound(other)).records.list("item:")}
        assert fresh == after, "as if it had never been said"


@pytest.mark.parametrize("together", [400, 25])
async def test_the_neighbours_of_many_erased_messages_are_embedded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr("memory_engine.blocks.vector.entries._TOGETHER", together)
    told = [f"Parcel {n} left the {place}." for n in range(50) for place in ("depot", "harbour")]
    read: list[tuple[int, int]] = []

    class Counting(RecordsVectorStore):
        async def items(self, scope: Scope, session_uid: str, from_seq: int, to_seq: int) -> Sequence[Item]:
            read.append((from_seq, to_seq))
            return await super().items(scope, session_uid, from_seq, to_seq)

    embedder = Flaky()
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=embedder, vector_store=Counting())) as engine:
        memory = engine.session("one")
        ids = await tell(memory, *told)
        embedder.calls.clear()
        read.clear()
        await memory.delete(ids[::2])
        await memory.drain(PATIENCE)
        assert (len(read), len(embedder.calls)) == ((1, 1) if together == 400 else (5, 4)), "not one for each"
        after = {record.data["text"]: record.blob for record in await (await bound(memory)).records.list("item:")}
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=Flaky()), file="without.db") as engine:
        other = engine.session("one")
        await other.put_messages([{"role": "assistant", "content": text} for text in told[1::2]])
        await other.flush(final=True)
        await other.drain(PATIENCE)
        fresh = {record.data["text"]: record.blob for record in await (await bound(other)).records.list("item:")}
    assert fresh == after, "as if they had never been said"


async def test_a_user_is_known_in_all_sessions_and_to_nobody_else(tmp_path: Path) -> None:
    block = VectorMemoryBlock(scope="user")
    async with engine_of(tmp_path, block) as engine:
        one, two = engine.session("one", user_id="ada"), engine.session("two", user_id="ada")
        others = [
            engine.session("three", user_id="bob"),
            engine.session("one", user_id="ada", tenant="south"),
        ]
        await tell(one, *TALK)
        assert FACT in await section(two, "allergic hazelnuts")
        for other in others:
            assert await section(other, "allergic hazelnuts") == ""
        await tell(two, "Wilhelmina is allergic to walnuts as well.")
        told = await section(engine.session("four", user_id="ada"), "allergic hazelnuts walnuts")
        assert told.index("hazelnuts") < told.index("walnuts")
        await engine.delete_session("one")
        await engine.drain(PATIENCE)
        assert await item_texts(two) == ["Wilhelmina is allergic to walnuts as well."]
        await engine.delete_user("ada")
        await engine.drain(PATIENCE)
        fresh = engine.session("five", user_id="ada")
        assert await section(fresh, "allergic walnuts") == ""
        assert await (await bound(fresh)).search("allergic walnuts") == []
        assert await item_texts(fresh) == []
        await tell(fresh, *TALK[:2])
        assert await item_texts(fresh) == TALK[:2]
        assert await best(fresh, "allergic walnuts hazelnuts") == FACT


async def test_a_tenant_that_is_deleted_is_forgotten(tmp_path: Path) -> None:
    async with engine_of(tmp_path, VectorMemoryBlock(scope="global")) as engine:
        north, south = engine.session("one", tenant="north"), engine.session("one", tenant="south")
        for memory in (north, south):
            await tell(memory, *TALK)
            assert FACT in await section(memory, "allergic hazelnuts")
        await engine.delete_tenant("north")
        await engine.drain(PATIENCE)
        assert await section(north, "allergic hazelnuts") == ""
        assert await item_texts(north) == []
        assert FACT in await section(south, "allergic hazelnuts")


async def test_two_databases_with_the_same_users_share_nothing(tmp_path: Path) -> None:
    block = VectorMemoryBlock(scope="user", vector_store=RecordsVectorStore())
    async with engine_of(tmp_path, block, file="a.db") as a, engine_of(tmp_path, block, file="b.db") as b:
        one, other = a.session("one", user_id="ada"), b.session("one", user_id="ada")
        await tell(one, *TALK)
        await tell(other, "I am allergic to walnuts, not to anything else.")
        assert "walnuts" not in await section(one, "allergic hazelnuts walnuts")
        assert "hazelnuts" not in await section(other, "allergic hazelnuts walnuts")


async def test_two_users_at_the_same_time(tmp_path: Path) -> None:
    async with engine_of(tmp_path, VectorMemoryBlock(scope="user"), token_limit=400, token_flush_size=50) as engine:

        async def talk(user: str, animal: str) -> None:
            memory = engine.session(f"of {user}", user_id=user)
            for n in range(25):
                await memory.put({"role": "user", "content": f"My {animal} number {n} likes the green grass by the lake."})
                await memory.put({"role": "assistant", "content": f"So the {animal} grazes."})
                shown = "\n".join(message.content for message in await memory.get("Which animals like green grass?"))
                assert animal in shown
                assert ({"zebra", "llama"} - {animal}).pop() not in shown

        await asyncio.gather(talk("ada", "zebra"), talk("bob", "llama"))
        await engine.drain(PATIENCE)
        assert await best(engine.session("of ada", user_id="ada"), "zebra number 3") == (
            "My zebra number 3 likes the green grass by the lake."
        )


# -- knowledge -------------------------------------------------------------------------------------------------------

ALEXANDRIA = "The Great Library of Alexandria in Egypt was one of the largest libraries of the ancient world. "
KNOWLEDGE = [
    ALEXANDRIA + "It was part of the Mouseion, a place of learning dedicated to the Muses. " * 3,
    "The lighthouse of the harbour guided ships and was counted among the wonders. " * 3,
    "Papyrus scrolls were copied from every ship that came into the port. " * 3,
]


async def test_knowledge_is_found_and_stays_when_a_session_is_reset(tmp_path: Path) -> None:
    async with engine_of(tmp_path, VectorMemoryBlock(scope="user", similarity_top_k=1)) as engine:
        memory = engine.session("one", user_id="ada")
        ids = await (await bound(memory)).add_documents(KNOWLEDGE, {"source": "book"})
        assert len(set(ids)) == 3
        told = await section(memory, "Where was the Library of Alexandria located?")
        assert "Egypt" in told
        assert "[" not in told, "documents have no time"
        assert await section(memory, "What is the capital of France?") == ""
        await tell(memory, *TALK)
        await memory.reset()
        await memory.drain(PATIENCE)
        assert "Egypt" in await section(memory, "Where was the Library of Alexandria located?")
        await engine.delete_session("one")
        await engine.drain(PATIENCE)
        other = engine.session("two", user_id="ada")
        assert "Egypt" in await section(other, "Where was the Library of Alexandria located?")
        [hit] = await (await bound(other)).search("lighthouse harbour", limit=1)
        assert (hit.item.kind, hit.item.document, hit.item.metadata) == ("document", ids[1], {"source": "book"})
        await engine.delete_user("ada")
        await engine.drain(PATIENCE)
        assert await (await bound(engine.session("three", user_id="ada"))).records.count() == 0


async def test_knowledge_of_a_session_outlives_its_messages_but_not_the_session(tmp_path: Path) -> None:
    async with engine_of(tmp_path) as engine:
        memory = engine.session("one")
        await (await bound(memory)).add_documents(KNOWLEDGE)
        ids = await tell(memory, *TALK)
        await memory.rewind(ids[0])
        await memory.drain(PATIENCE)
        assert "Egypt" in await section(memory, "Where was the Library of Alexandria located?")
        await memory.reset()
        await memory.drain(PATIENCE)
        assert "Egypt" in await section(memory, "Where was the Library of Alexandria located?")
        await engine.delete_session("one")
        await engine.drain(PATIENCE)
        assert await section(memory, "Where was the Library of Alexandria located?") == ""


async def test_a_text_with_an_id_of_its_own_is_replaced(tmp_path: Path) -> None:
    async with engine_of(tmp_path) as engine:
        memory = engine.session("one")
        block = await bound(memory)
        long = "The zebra eats grass in the morning. " * 100
        assert await block.add_documents([long, "Lions sleep."], [{"id": "animals"}, {"id": 7}]) == ["animals", "7"]
        assert await block.add_documents("Zebras eat hay now.", {"id": "animals"}) == ["animals"]
        assert sorted(await item_texts(memory)) == ["Lions sleep.", "Zebras eat hay now."]
        assert (await bound(memory)).stored_items == 2
        assert await best(memory, "What do zebras eat?") == "Zebras eat hay now."
        assert await block.remove_documents(["animals", "unknown"]) == 1
        assert await item_texts(memory) == ["Lions sleep."]
        assert await (await bound(memory)).remove_documents() == 1
        assert await (await bound(memory)).records.count() == 0
        assert (await bound(memory)).stored_items == 0


async def test_one_metadata_for_all_or_one_for_each(tmp_path: Path) -> None:
    async with engine_of(tmp_path) as engine:
        block = await bound(engine.session("one"))
        with pytest.raises(ValueError, match="2 texts with 1 metadata"):
            await block.add_documents(["a", "b"], [{}])
        assert await block.add_documents([]) == []
        with pytest.raises(ValueError, match="2 texts cannot share the id 'same'"):
            await block.add_documents(["The first zebra.", "The second zebra."], {"id": "same"})
        both = [{"id": "same"}, {"id": "same"}]
        assert await block.add_documents(["The first zebra. " * 200, "The second zebra."], both) == ["same", "same"]
        assert await item_texts(engine.session("one")) == ["The second zebra."]


async def test_the_passages_of_many_documents_are_embedded_together(tmp_path: Path) -> None:
    embedder = FakeEmbedder()
    async with engine_of(tmp_path, VectorMemoryBlock(embed_model=embedder)) as engine:
        memory = engine.session("one")
        await (await bound(memory)).add_documents([f"The zebra number {n}." for n in range(150)])
        assert len(embedder.calls) <= 4
        embedder.calls.clear()
        await (await bound(memory)).rebuild()
        await memory.drain(PATIENCE)
        assert len(embedder.calls) <= 4
        assert len(await item_texts(memory)) == 150


async def test_thousands_of_passages_leave_the_history_alone(tmp_path: Path) -> None:
    block = VectorMemoryBlock(max_tokens=300)
    async with engine_of(tmp_path, block, token_limit=2_000) as engine:
        memory = engine.session("one")
        await memory.put_messages([{"role": "user", "content": "What grows there?"}, {"role": "assistant", "content": "Rye."}])
        await (await bound(memory)).add_documents(
            [f"Field {n} of the estate carries barley, rye and oats." for n in range(3_000)]
        )
        context = await memory.context("What is on field 2321 of the estate?")
        assert [message.content for message in context.messages if message.role != "system"] == ["What grows there?", "Rye."]
        assert "Field 2321 of" in context.messages[0].content
        assert context.receipt.source("RetrievedMessages").given <= 340
        assert len(await memory.get_all()) == 2
        assert await (await bound(memory)).remove_documents() == 3_000
        assert await (await bound(memory)).records.count() == 0


async def test_what_is_knowledge_may_be_shown_without_a_floor(tmp_path: Path) -> None:
    for floor, shown in ((Floor(), False), (None, True)):
        async with engine_of(tmp_path, VectorMemoryBlock(floor=floor), file=f"{shown}.db") as engine:
            memory = engine.session("one")
            await tell(memory, *TALK)
            assert bool(await section(memory, "When did the emperor of Assyria leave the palace in Nineveh?")) is shown


# -- rows of other libraries -----------------------------------------------------------------------------------------


async def test_a_favourite_colour_is_remembered_beyond_the_window(tmp_path: Path) -> None:
    async with engine_of(tmp_path, max_turns=2) as engine:
        memory = engine.session("one")
        for said, answer in [
            ("My favorite color is blue.", "Nice."),
            ("I have a cat.", "Sweet."),
            ("It rains.", "Again."),
            ("I am tired.", "Sleep well."),
        ]:
            await memory.put_messages([{"role": "user", "content": said}, {"role": "assistant", "content": answer}])
        assert "blue" not in "\n".join(message.content for message in await memory.get("Good night."))
        await memory.flush(final=True)
        await memory.drain(PATIENCE)
        assert "blue" in await section(memory, "what is my favorite color")


async def test_two_blocks_keep_knowledge_and_conversation_apart(tmp_path: Path) -> None:
    knowledge = VectorMemoryBlock(name="knowledge", accept_short_term_memory=False, max_tokens=120)
    talk = VectorMemoryBlock(name="talk", max_tokens=500)
    async with engine_of(tmp_path, knowledge, talk) as engine:
        memory = engine.session("one")
        await (await bound(memory, "knowledge")).add_documents(KNOWLEDGE)
        await tell(memory, "I once saw the library of Alexandria in a dream about Egypt.")
        question = "What about the library of Alexandria in Egypt?"
        assert "dream" not in await section(memory, question, "knowledge")
        assert "Mouseion" in await section(memory, question, "knowledge")
        assert await section(memory, question, "talk") != ""
        assert "Mouseion" not in await section(memory, question, "talk")
        assert (await memory.context(question)).receipt.source("knowledge").given <= 160
