"""Summaries and entities with a model whose answers depend on the prompt alone, and which writes down every call."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from chaos_blocks import QUICK, small_engine

from memory_engine import BaseMemoryBlock, MemoryEngine
from memory_engine.blocks.entities.block import EntityMemoryBlock
from memory_engine.blocks.summary.block import SummaryMemoryBlock

LIMITS = replace(QUICK, lease=1.5)
"""Longer than a busy machine takes to renew a lease, so that no call is repeated but for a kill."""

_MESSAGE = re.compile(r'<message n="(\d+)"[^>]*>\n(.*?)\n</message>', re.DOTALL)


class Loud:
    """A model that takes up to `slow` seconds; each call is a line in the file `log`, with the block and what was asked."""

    def __init__(self, block: str, log: Path, slow: float = 0.0) -> None:
        self.block, self.log, self.slow = block, log, slow

    async def __call__(self, prompt: Any) -> str:
        data = prompt[1]["content"]
        said = [text for _, text in _MESSAGE.findall(data)]
        known = data.partition("<conversation>")[0]
        asked = hashlib.sha256(json.dumps([known, said]).encode()).hexdigest()
        with self.log.open("a") as file:
            file.write(f"{self.block} {asked}\n")
        if self.slow:
            await asyncio.sleep(random.random() * self.slow)
        return self.answer(data, asked)

    def answer(self, data: str, asked: str) -> str:
        """A chain: each summary names everything that went into it, in this order and these parts."""
        before = re.search(r"Messages: (\d+)", data.partition("<conversation>")[0])
        count = len(_MESSAGE.findall(data)) + (int(before[1]) if before else 0)
        return f"Messages: {count}. All of them: {asked}."


class Noting(Loud):
    """Notes words of the conversation, each with a count of the messages that had it."""

    def answer(self, data: str, asked: str) -> str:
        known = {one["name"]: one["text"] for one in map(json.loads, re.findall(r"^\{.*\}$", data, re.MULTILINE))}
        notes: dict[str, dict[str, Any]] = {}
        for number, text in _MESSAGE.findall(data):
            for word in re.findall(r"[a-z]{4,}", text):
                one = notes.setdefault(word, {"name": word, "text": known.get(word, "0 times"), "messages": []})
                one["text"] = f"{int(one['text'].split()[0]) + 1} times"
                one["messages"].append(int(number))
        return json.dumps({"entities": list(notes.values())})


def thinking(log: Path, slow: float = 0.0) -> list[BaseMemoryBlock[Any]]:
    """The blocks, of the scope of a session: there every run has the same order."""
    return [
        SummaryMemoryBlock(name="each", llm=Loud("each", log, slow), priority=1),
        SummaryMemoryBlock(name="some", llm=Loud("some", log, slow), priority=2, summarize_every=3, keep_versions=2),
        EntityMemoryBlock(name="who", llm=Noting("who", log, slow), priority=3, max_entities=15),
    ]


def thinking_engine(database: Path, log: Path, slow: float = 0.0) -> MemoryEngine:
    """An engine that flushes often, with these blocks."""
    return small_engine(database, thinking(log, slow), limits=LIMITS)  # type: ignore[arg-type]


def calls(log: Path) -> Counter[str]:
    """How often each call was made."""
    return Counter(log.read_text().splitlines())
