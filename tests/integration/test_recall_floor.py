"""What is recalled in small scopes, in those whose items are alike, and for short questions of other languages."""

from __future__ import annotations

from typing import Any

import pytest

from memory_engine import Memory
from memory_engine.blocks import VectorMemoryBlock
from memory_engine.blocks.embedders import WordLlamaEmbedder
from memory_engine.blocks.vector.ranking import Floor

EMBEDDER = WordLlamaEmbedder()


async def recalled(texts: list[str], question: str, **options: Any) -> str:
    """What the messages of a user bring back for a question."""
    block = VectorMemoryBlock(name="recall", priority=1, **options)
    async with Memory.from_defaults("one", token_limit=6_000, memory_blocks=[block]) as memory:
        for text in texts:
            await memory.put({"role": "user", "content": text})
        await memory.flush(final=True)
        await memory.drain()
        return "\n".join(message.content for message in await memory.get(question))


BLOOD = ["My blood type is AB negative and I am allergic to penicillin.", "Thanks, noted."]
PARCELS = [f"Parcel {n} for customer Ada has left the depot in Graz, truck {n * 7 % 97}." for n in range(100)]
DOSES = [f"Day {n}: slept {n % 4 + 5} hours, took 5 mg ramipril after breakfast." for n in range(40)]


@pytest.mark.parametrize("embed_model", [None, EMBEDDER], ids=["words", "wordllama"])
@pytest.mark.parametrize(
    ("texts", "question", "expected"),
    [
        (BLOOD, "What is my blood type?", BLOOD[0]),
        (BLOOD[:1], "What is my blood type?", BLOOD[0]),
        (PARCELS, "In which truck is parcel 57?", PARCELS[57]),
        (DOSES, "How much ramipril do I take?", "5 mg ramipril"),
        (DOSES * 5, "What do I take after breakfast?", "5 mg ramipril"),
    ],
)
async def test_what_was_said_is_found(texts: list[str], question: str, expected: str, embed_model: Any) -> None:
    assert expected in await recalled(texts, question, embed_model=embed_model)


@pytest.mark.parametrize("embed_model", [None, EMBEDDER], ids=["words", "wordllama"])
@pytest.mark.parametrize("texts", [BLOOD, BLOOD[:1], PARCELS, DOSES], ids=["two", "one", "parcels", "doses"])
@pytest.mark.parametrize(
    "question", ["How many moons does Jupiter have?", "Explain quantum tunnelling.", "Who built Chartres?"]
)
async def test_what_nobody_spoke_of_is_not(texts: list[str], question: str, embed_model: Any) -> None:
    assert await recalled(texts, question, embed_model=embed_model) == ""


async def test_without_a_floor_everything_is_shown_the_least_similar_too() -> None:
    for texts in (BLOOD[:1], BLOOD):
        shown = await recalled(texts, "Who built Chartres?", embed_model=EMBEDDER, floor=None, least_score=0.0)
        assert all(text in shown for text in texts)


async def test_a_floor_may_ask_for_more() -> None:
    strict = Floor(pair=1.0, single=1.0, topic=1.0)
    assert await recalled(DOSES, "How much ramipril do I take?", floor=strict) == ""


@pytest.mark.parametrize(
    ("language", "text", "question"),
    [
        ("swedish", "Nyckeln ligger under den blå krukan.", "Var är nyckeln?"),
        ("danish", "Nøglen ligger under den blå urtepotte.", "Hvor er nøglen?"),
        ("norwegian", "Nøkkelen ligger under den blå krukken.", "Hvor er nøkkelen?"),
        ("finnish", "Avain on sinisen ruukun alla.", "Missä avain on?"),
        ("russian", "Ключ лежит под ковром.", "Куда положили ключ?"),
        ("english", "Ключ лежит под ковром.", "Куда положили ключ?"),
        ("none", "Klucz leży pod wycieraczką.", "Gdzie jest klucz?"),
        ("english", "Klucz leży pod wycieraczką.", "Gdzie jest klucz?"),
        ("turkish", "Anahtar paspasın altında.", "Anahtar nerede?"),
    ],
)
async def test_short_questions_find_their_answer_in_many_languages(language: str, text: str, question: str) -> None:
    filler = [f"Message {n} tells of {n} other things." for n in range(40)]
    assert text in await recalled([*filler[:20], text, *filler[20:]], question, language=language)
