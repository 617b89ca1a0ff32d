"""What holds for every block that asks a model: hands do not wait for it, prompts and time are bounded, calls are counted."""

from __future__ import annotations

import asyncio
import json
import math
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from memory_engine import ChatMessage, Limits, Memory, MemoryEngine, ToolCallBlock, ToolResultBlock
from memory_engine.blocks import EntityMemoryBlock, FactExtractionMemoryBlock, SummaryMemoryBlock
from memory_engine.errors import BlockStateError
from memory_engine.testing import ScriptedLLM

pytestmark = pytest.mark.asyncio

LIMITS = Limits(get=10.0, delivery=60.0, first_retry=0.01, last_retry=0.03, max_attempts=2, lease=20.0, poll=0.05)
PATIENCE = 30.0
REPLIES = {
    FactExtractionMemoryBlock: json.dumps({"operations": [{"op": "add", "text": "likes tea", "messages": [1]}]}),
    SummaryMemoryBlock: "They like tea.",
    EntityMemoryBlock: json.dumps({"entities": [{"name": "Ada", "text": "likes tea", "messages": [1]}]}),
}
KINDS = pytest.mark.parametrize("kind", list(REPLIES), ids=lambda kind: kind.__name__)


@asynccontextmanager
async def engine_of(folder: Path, *blocks: Any, limits: Limits = LIMITS, **settings: Any) -> AsyncIterator[MemoryEngine]:
    uri = f"sqlite+aiosqlite:///{folder / 'memory.db'}"
    async with MemoryEngine(async_database_uri=uri, memory_blocks=blocks, limits=limits, **settings) as engine:
        yield engine


async def tell(memory: Memory, *messages: Any) -> None:
    await memory.put_messages([{"role": "user", "content": m} if isinstance(m, str) else m for m in messages])
    await memory.flush(final=True)


async def known(block: Any) -> Any:
    if isinstance(block, FactExtractionMemoryBlock):
        return [fact.text for fact in await block.facts()]
    return block.summary if isinstance(block, SummaryMemoryBlock) else [entity.text for entity in await block.entities()]


class Hanging:
    """A model that answers when it may."""

    def __init__(self, *replies: str) -> None:
        self.replies, self.prompts = list(replies), list[Any]()
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, prompt: Any) -> str:
        self.prompts.append(prompt)
        self.asked.set()
        await self.go_on.wait()
        return self.replies.pop(0)


# -- by hand ---------------------------------------------------------------------------------------------------------


async def test_an_agent_remembers_and_forgets_while_the_model_is_asked(tmp_path: Path) -> None:
    """Nothing waits for the model, and what comes of its answer fits what was changed meanwhile."""
    answer = [
        {"op": "add", "text": "plays chess", "messages": [1]},
        {"op": "update", "fact": "f1", "text": "lives in Rome", "messages": [1]},
        {"op": "update", "fact": "f2", "text": "likes coffee", "messages": [1]},
        {"op": "retract", "fact": "f3", "messages": [1]},
    ]
    llm = Hanging(json.dumps({"operations": answer}))
    async with engine_of(tmp_path, FactExtractionMemoryBlock(llm=llm)) as engine:
        memory = engine.session("one")
        tools = {tool.name: tool for tool in memory.as_tools()}
        for text in ("lives in Paris", "likes tea", "has a cat", "has a dog"):
            await tools["remember"](text=text)
        await tell(memory, "I moved to Rome, drink coffee now, play chess, and gave the cat away.")
        await asyncio.wait_for(llm.asked.wait(), PATIENCE)
        assert await tools["remember"](text="speaks Latin") == "Remembered as f5."
        assert await tools["forget"](id="f2") == "Forgot f2."
        assert "speaks Latin" in repr(await memory.get()) and "likes tea" not in repr(await memory.get())
        assert not llm.go_on.is_set()
        llm.go_on.set()
        await memory.drain(PATIENCE)
        block: Any = await memory.block("ExtractedFacts")
        assert sorted(await known(block)) == ["has a dog", "likes coffee", "lives in Rome", "plays chess", "speaks Latin"]
        assert len({fact.id for fact in await block.history()}) == len(await block.history())
        assert (len(llm.prompts), block.model_calls) == (1, 1)


async def test_a_rebuild_while_the_model_is_asked_asks_anew(tmp_path: Path) -> None:
    llm = Hanging(*[REPLIES[SummaryMemoryBlock]] * 3)
    async with engine_of(tmp_path, SummaryMemoryBlock(llm=llm)) as engine:
        memory = engine.session("one")
        await tell(memory, "I like tea.")
        await asyncio.wait_for(llm.asked.wait(), PATIENCE)
        await (await memory.block("ConversationSummary")).rebuild()
        llm.go_on.set()
        await memory.drain(PATIENCE)
        block: Any = await memory.block("ConversationSummary")
        assert (block.summary, len(await block.versions())) == ("They like tea.", 1)
        assert [message.content for message in await block.expand()] == ["I like tea."]


@KINDS
async def test_a_rebuild_does_not_forget_what_was_spent(kind: Any, tmp_path: Path) -> None:
    llm = ScriptedLLM(otherwise=REPLIES[kind])
    async with engine_of(tmp_path, kind(name="b", llm=llm)) as engine:
        memory = engine.session("one")
        await tell(memory, "Ada likes tea.")
        await memory.drain(PATIENCE)
        before: Any = await memory.block("b")
        knew = await known(before)
        await (await memory.block("b")).rebuild()
        await memory.drain(PATIENCE)
        after: Any = await memory.block("b")
        assert (before.model_calls, after.model_calls) == (1, 2)
        assert after.model_input_tokens > before.model_input_tokens and await known(after) == knew


# -- time ------------------------------------------------------------------------------------------------------------


@KINDS
async def test_a_slow_model_that_talks_nonsense_is_given_up_visibly(kind: Any, tmp_path: Path) -> None:
    """Its second answer comes too late for the delivery, each time: this must not go on for ever."""

    async def slowly(prompt: Any) -> str:
        await asyncio.sleep(0.5)
        return "" if kind is SummaryMemoryBlock else "I would rather not."

    limits = Limits(get=10.0, delivery=0.9, first_retry=0.01, last_retry=0.02, max_attempts=2, lease=20.0, poll=0.05)
    async with engine_of(tmp_path, kind(name="b", llm=slowly, llm_timeout=0.7), limits=limits) as engine:
        memory = engine.session("one")
        await tell(memory, "Ada likes tea.")
        await memory.drain(PATIENCE)
        receipt = (await memory.context()).receipt
        assert [(parked.block, parked.attempts) for parked in receipt.parked] == [("b", 2)]
        assert "no usable reply" in receipt.parked[0].error and "llm_timeout" in receipt.parked[0].error


@KINDS
async def test_a_model_slower_than_a_delivery_may_take_is_waited_for(kind: Any, tmp_path: Path) -> None:
    seconds = [5.0]

    async def model(prompt: Any) -> str:
        await asyncio.sleep(seconds[0])
        return REPLIES[kind]

    limits = Limits(get=10.0, delivery=0.3, first_retry=0.01, last_retry=0.02, max_attempts=2, lease=20.0, poll=0.05)
    async with engine_of(tmp_path, kind(name="b", llm=model), limits=limits) as engine:
        memory = engine.session("one")
        await tell(memory, "Ada likes tea.")
        while (await memory.context()).receipt.source("b").usage is None or not _failed(await memory.context()) > 3:
            await asyncio.sleep(0.05)
        seconds[0] = 0.0
        await memory.drain(PATIENCE)
        context = await memory.context()
        usage = context.receipt.source("b").usage
        assert not context.receipt.parked and "tea" in repr(await known(await memory.block("b")))
        assert usage is not None and usage.calls == usage.failed + 1


def _failed(context: Any) -> int:
    usage = context.receipt.source("b").usage
    return 0 if usage is None else int(usage.failed)


# -- calls -----------------------------------------------------------------------------------------------------------


@KINDS
async def test_turns_cost_no_more_calls_than_flushes(kind: Any, tmp_path: Path, soak: bool) -> None:
    """At most ceil(flushed tokens / token_flush_size) for each block, and one more for each answer that cannot be used.

    1,000 turns with `--soak`.
    """
    asked = Counter[str]()

    def model(prompt: Any) -> str:
        again = len(prompt) > 2
        asked["again" if again else "first"] += 1
        wrong = asked["first"] % 7 == 0 and not again
        return ("word " * 600 if kind is SummaryMemoryBlock else "Let me think.") if wrong else REPLIES[kind]

    block = kind(name="b", llm=ScriptedLLM(otherwise=model))
    async with engine_of(tmp_path, block, token_limit=4_000, token_flush_size=400) as engine:
        memory = engine.session("one")
        for number in range(1_000 if soak else 250):
            said = f"{number}: we talk about this and that, and about tea and coffee. " * 2
            await memory.put_messages([{"role": "user", "content": said}, {"role": "assistant", "content": said}])
        await memory.drain(PATIENCE)
        usage = (await memory.context()).receipt.source("b").usage
    with closing(sqlite3.connect(tmp_path / "memory.db")) as connection:
        [(flushed,)] = connection.execute("SELECT SUM(tokens) FROM memory_flushes").fetchall()
    assert usage is not None and usage.calls == asked.total()
    assert 20 < asked["first"] <= math.ceil(flushed / 400) and asked["again"] == asked["first"] // 7
    print(f"\n{kind.__name__}: {flushed:,} tokens flushed, {asked['first']} calls and {asked['again']} more")


# -- prompts ---------------------------------------------------------------------------------------------------------


def step(results: int, size: int) -> list[ChatMessage]:
    """One step: so many calls, and as many results of so many characters."""
    calls = [ToolCallBlock(id=f"c{number}", name="read", arguments={}) for number in range(results)]
    pages = [f"page {number} begins. " + "lorem ipsum " * (size // 12) + f" page {number} ends." for number in range(results)]
    return [
        ChatMessage(role="user", content="Read all pages, Ada likes tea."),
        ChatMessage(role="assistant", blocks=calls),
        *(ChatMessage(role="tool", tool_call_id=f"c{number}", content=page) for number, page in enumerate(pages)),
        ChatMessage(role="assistant", content="I have read them."),
    ]


@KINDS
@pytest.mark.parametrize("limit", [None, 2_000])
async def test_a_step_of_any_size_makes_one_prompt_that_a_model_can_read(kind: Any, limit: int | None, tmp_path: Path) -> None:
    llm = ScriptedLLM(otherwise=REPLIES[kind])
    async with engine_of(tmp_path, kind(name="b", llm=llm, max_input_tokens=limit)) as engine:
        memory = engine.session("one")
        await tell(memory, *step(60, 20_000))
        await memory.drain(PATIENCE)
        [text] = [
            prompt[1]["content"]
            for prompt in llm.prompts
            if "page" in prompt[1]["content"] and "begins" in prompt[1]["content"]
        ]
        count = engine._core.counter.text
        assert 0.7 * (limit or 32_000) < count(text) < (limit or 32_000) + 200
        shown = [number for number in range(60) if f"page {number} begins" in text and f"page {number} ends" in text]
        assert shown == list(range(60)) if limit is None else {0, 59} <= set(shown)
        notes = (await memory.context()).receipt.source("b").notes
        assert any(
            f"{60 if limit is None else 61} messages the model was given only the beginning and the end" in note
            for note in notes
        )


async def test_large_chunks_are_given_whole(tmp_path: Path) -> None:
    """Who has large chunks wants large prompts; nothing is left out of messages that are not long themselves."""
    llm = ScriptedLLM(otherwise=REPLIES[FactExtractionMemoryBlock])
    settings = {"token_limit": 200_000, "token_flush_size": 60_000}
    async with engine_of(tmp_path, FactExtractionMemoryBlock(name="b", llm=llm), **settings) as engine:
        memory = engine.session("one")
        await tell(memory, *(f"{number}: " + "we talk about this and that " * 100 for number in range(100)))
        await memory.drain(PATIENCE)
        assert [prompt[1]["content"].count("<message ") for prompt in llm.prompts] == [100]
        assert "characters left out" not in llm.prompts[0][1]["content"]


async def test_what_waits_for_a_summary_is_not_more_than_one_prompt(tmp_path: Path) -> None:
    llm = ScriptedLLM(otherwise="They talked.")
    block = SummaryMemoryBlock(llm=llm, summarize_every=100, max_input_tokens=1_000)
    async with engine_of(tmp_path, block) as engine:
        memory = engine.session("one")
        for number in range(12):
            await tell(memory, f"{number}: " + "we talk about this and that " * 30)
            await memory.drain(PATIENCE)
        assert 2 <= len(llm.prompts) <= 4
        assert "characters left out" not in repr(llm.prompts)
        bound: Any = await memory.block("ConversationSummary")
        expanded = [message.content for message in await bound.expand()]
        waiting = [message.content for message in await memory.get_all()][len(expanded) :]
        assert [text.partition(":")[0] for text in [*expanded, *waiting]] == [str(number) for number in range(12)]
        assert not bound.shortened_messages


# -- what a review found ---------------------------------------------------------------------------------------------


@KINDS
async def test_nothing_that_is_held_in_memory_outlives_its_user(kind: Any, tmp_path: Path) -> None:
    """A scope without any state has version 0, and so has one that was deleted."""
    llm = ScriptedLLM(otherwise=REPLIES[kind])
    async with engine_of(tmp_path, kind(name="b", llm=llm, scope="user")) as engine:
        memory = engine.session("one", user_id="ada")
        early: Any = await memory.block("b")
        await memory.get("Does Ada like tea?")
        await tell(memory, "Ada likes tea.")
        await memory.drain(PATIENCE)
        await known(early)
        assert "likes tea" in repr(await memory.get("Ada?")) or kind is SummaryMemoryBlock
        await memory.delete([str(message.id) for message in await memory.get_all()])
        await memory.drain(PATIENCE)
        if kind is FactExtractionMemoryBlock:
            assert await early.facts() == await early.history() == []
        await tell(memory, "Ada likes tea.")
        await memory.drain(PATIENCE)
        await engine.delete_user("ada")
        await engine.drain(PATIENCE)
        new = engine.session("two", user_id="ada")
        assert "tea" not in repr(await new.get("Does Ada drink?"))
        assert not await known(await new.block("b")) and not await known(early)


async def test_a_delivery_comes_through_between_ever_new_changes(tmp_path: Path) -> None:
    async def model(prompt: Any) -> str:
        await asyncio.sleep(0.05)
        return REPLIES[FactExtractionMemoryBlock]

    async with engine_of(tmp_path, FactExtractionMemoryBlock(name="b", llm=model, scope="user")) as engine:
        memories = [engine.session(f"s{n}", user_id="ada") for n in range(3)]
        done = asyncio.Event()

        async def change(memory: Memory, who: int) -> None:
            number = 0
            while not done.is_set():
                async with memory.block("b") as block:
                    await block.remember(f"{who} {number}")  # type: ignore[attr-defined]
                number += 1

        changing = [asyncio.create_task(change(memory, who)) for who, memory in enumerate(memories[1:])]
        await tell(memories[0], "I like tea.")
        await memories[0].drain(PATIENCE)
        done.set()
        await asyncio.gather(*changing)
        assert "likes tea" in await known(await memories[0].block("b"))


async def test_putting_inside_a_change_by_hand_does_not_wait_for_itself(tmp_path: Path) -> None:
    llm = ScriptedLLM(otherwise=REPLIES[FactExtractionMemoryBlock])
    async with engine_of(tmp_path, FactExtractionMemoryBlock(name="b", llm=llm), delivery="inline") as engine:
        memory = engine.session("one")
        await memory.put({"role": "user", "content": "before"})
        async with memory.block("b") as block:
            await block.remember("by hand")  # type: ignore[attr-defined]
            await asyncio.wait_for(tell(memory, "I like tea."), PATIENCE)
            with pytest.raises(BlockStateError, match="would wait for itself"):
                await memory.drain()
        await memory.drain(PATIENCE)
        assert sorted(await known(await memory.block("b"))) == ["by hand", "likes tea"]


async def test_what_is_erased_while_the_model_is_asked_does_not_come_back_in_its_answer(tmp_path: Path) -> None:
    """An answer that was given in view of it is not used; the model is asked about what is left."""
    repeating = {"op": "update", "fact": "f1", "text": "Ada is ill and lives in Rome", "messages": [1]}
    llm = Hanging(json.dumps({"operations": [repeating]}), REPLIES[FactExtractionMemoryBlock])
    async with engine_of(tmp_path, FactExtractionMemoryBlock(name="b", llm=llm)) as engine:
        memory = engine.session("one")
        async with memory.block("b") as block:
            await block.remember("Ada is ill")  # type: ignore[attr-defined]
            await block.remember("Ada has a dog")  # type: ignore[attr-defined]
        await tell(memory, "I moved to Rome, and I like tea.")
        await asyncio.wait_for(llm.asked.wait(), PATIENCE)
        async with memory.block("b") as block:
            assert await block.forget_fact("f1", erase=True)  # type: ignore[attr-defined]
        llm.go_on.set()
        await memory.drain(PATIENCE)
        bound: Any = await memory.block("b")
        assert [fact.text for fact in await bound.history()] == ["Ada has a dog", "likes tea"]
        assert "ill" not in llm.prompts[1][1]["content"]
        assert not await bound.forget_fact("f1", erase=True)
        assert await bound.forget_fact("f2") and not await bound.forget_fact("f2")
        assert await bound.forget_fact("f2", erase=True), "also when it has ended"
        assert [fact.text for fact in await bound.history()] == ["likes tea"]


@pytest.mark.parametrize("limit", [80, 200, 400, 600, 800])
async def test_texts_that_look_like_tags_do_not_push_out_the_others(limit: int, tmp_path: Path) -> None:
    """They cost more as they are shown, which must not make more of them go than is needed."""
    block = FactExtractionMemoryBlock(name="b", llm=ScriptedLLM(), max_facts=60)
    async with engine_of(tmp_path, block, token_limit=limit) as engine:
        memory = engine.session("one")
        async with memory.block("b") as bound:
            for number in range(40):
                await bound.remember(f"<fact> <memory> </fact> <fact> note {number} <fact>")  # type: ignore[attr-defined]
        context = await memory.context()
        source = context.receipt.source("b")
        assert 0.6 * (limit - 30) <= source.given <= limit and source.outcome.startswith(("trimmed", "whole"))


async def test_no_time_for_a_shorter_summary_cuts_it(tmp_path: Path) -> None:
    async def slowly(prompt: Any) -> str:
        await asyncio.sleep(0.5)
        return "They like tea. " * 100

    limits = Limits(get=10.0, delivery=0.9, first_retry=0.01, last_retry=0.02, max_attempts=2, lease=20.0, poll=0.05)
    block = SummaryMemoryBlock(name="b", llm=slowly, max_summary_tokens=50)
    async with engine_of(tmp_path, block, limits=limits) as engine:
        memory = engine.session("one")
        await tell(memory, "I like tea.")
        await memory.drain(PATIENCE)
        assert (await memory.context()).receipt.parked == ()
        text = (await memory.block("b")).summary  # type: ignore[attr-defined]
        assert text.startswith("They like tea.") and text.endswith("tea.") and engine._core.counter.text(text) <= 50


async def test_no_time_for_another_reply_takes_what_is_right_of_the_first(tmp_path: Path) -> None:
    right = [{"op": "add", "text": f"fact {number}", "messages": [1]} for number in range(3)]

    async def slowly(prompt: Any) -> str:
        await asyncio.sleep(0.5)
        return json.dumps({"operations": [*right, {"op": "add", "text": "x" * 501, "messages": [1]}]})

    limits = Limits(get=10.0, delivery=0.9, first_retry=0.01, last_retry=0.02, max_attempts=2, lease=20.0, poll=0.05)
    async with engine_of(tmp_path, FactExtractionMemoryBlock(name="b", llm=slowly), limits=limits) as engine:
        memory = engine.session("one")
        await tell(memory, "I like tea.")
        await memory.drain(PATIENCE)
        assert await known(await memory.block("b")) == ["fact 0", "fact 1", "fact 2"]
        assert (await memory.context()).receipt.parked == ()


@pytest.mark.parametrize("form", ["dicts", "blocks", "named"])
async def test_what_memorys_own_tools_return_is_not_learned(form: str, tmp_path: Path) -> None:
    """In every form in which callers store the results of tools; other tools' results are."""
    llm = ScriptedLLM(otherwise=REPLIES[FactExtractionMemoryBlock])
    call = {"type": "function", "function": {"name": "search_memory", "arguments": "{}"}}
    other = {"type": "function", "function": {"name": "weather", "arguments": '{"in": "Graz"}'}}
    results = {
        "dicts": {"role": "tool", "tool_call_id": "c", "content": "[f1] Ada is old."},
        "blocks": ChatMessage(role="tool", blocks=[ToolResultBlock(tool_call_id="c", content="[f1] Ada is old.")]),
        "named": {"role": "tool", "tool_call_id": "c", "name": "search_memory", "content": "[f1] Ada is old."},
    }
    async with engine_of(tmp_path, FactExtractionMemoryBlock(name="b", llm=llm)) as engine:
        memory = engine.session("one")
        await tell(
            memory,
            "What do you know?",
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c", **call}]},
            results[form],
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c", **other}]},
            {"role": "tool", "tool_call_id": "c", "content": "It rains in Graz."},
            {"role": "assistant", "content": "It rains."},
        )
        await memory.drain(PATIENCE)
        text = repr(llm.prompts)
        assert "Ada is old" not in text and "search_memory" not in text
        assert "calls weather" in text and "It rains in Graz." in text
