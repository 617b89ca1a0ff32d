"""A model that makes facts of a conversation by rule, so that two runs can be compared, and writes down when it is asked."""

from __future__ import annotations

import asyncio
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

from chaos_blocks import QUICK, small_engine

from memory_engine import MemoryEngine
from memory_engine.blocks import FactExtractionMemoryBlock

SAID = re.compile(r'<message n="(\d+)"[^>]*>\n(.*?)\n</message>', re.DOTALL)
KNOWN = re.compile(r'<fact id="(f\d+)">(.*?)</fact>')
NAME = "facts"


def operate(prompt: Any) -> str:
    """Adds, corrects, withdraws and merges, as the sums of the texts say; every text is that of one message."""
    data = prompt[1]["content"]
    known = KNOWN.findall(data)
    operations: list[dict[str, Any]] = []
    for number, text in SAID.findall(data):
        dice = crc32(text.encode())
        about = {"text": " ".join(text.split()[:6]), "messages": [int(number)]}
        fact = known[dice % len(known)][0] if known else "f1"
        kind = dice // 7 % 10
        if kind < 4:
            operations.append({"op": "add", **about})
        elif kind < 7:
            operations.append({"op": "update", "fact": fact, **about})
        elif kind == 7:
            operations.append({"op": "retract", "fact": fact, "messages": about["messages"]})
    merges = []
    if "merges" in prompt[0]["content"]:
        pairs = list(zip(known[::2], known[1::2], strict=False))
        merges = [{"facts": [one[0], two[0]], "text": f"{one[1]} + {two[1]}"} for one, two in pairs[:3]]
    return json.dumps({"operations": operations, "merges": merges})


class Asked:
    """The model in a process that is going to be killed: slow, and it says that it is asked before it answers."""

    def __init__(self, calls: Path | None = None, slow: float = 0.0) -> None:
        self.calls, self.slow = calls, slow

    async def __call__(self, prompt: Any) -> str:
        if self.calls is not None:
            with self.calls.open("a") as file:
                file.write("asked\n")
        await asyncio.sleep(random.random() * self.slow)
        return operate(prompt)


def facts_engine(database: Path, *, slow: float = 0.0, scope: Any = "session", lease: float = 1.0) -> MemoryEngine:
    """An engine with a block for facts that has to condense now and then; its calls are counted beside the database.

    A lease that runs out on a slow machine costs a call, so it is longer than elsewhere, but not as long as a test.
    """
    model = Asked(calls_of(database), slow)
    block = FactExtractionMemoryBlock(name=NAME, llm=model, max_facts=8, scope=scope)
    return small_engine(database, [block], limits=replace(QUICK, lease=lease))  # type: ignore[list-item]


def calls_of(database: Path) -> Path:
    """Where the calls are written down."""
    return database.with_suffix(".calls")
