"""PURE: how much a fact is worth in a context, and which facts a model is shown when there are more than it should read."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import log, log1p

from memory_engine.blocks.facts.entries import Entry

_WORD = re.compile(r"\w+")


def worths(entries: Sequence[Entry], about: str = "") -> list[float]:
    """What each is worth, larger is better: the later and the oftener proven, and the more rare words of `about` it has.

    Without `about` it does not depend on the query.
    """
    words = [frozenset(_WORD.findall((entry.text or "").casefold())) for entry in entries]
    wanted = frozenset(_WORD.findall(about.casefold()))
    shared = Counter(word for own in words for word in own & wanted)
    # A word that every fact has tells nothing; no list of such words knows every language.
    rarity = {word: log((1 + len(entries)) / count) for word, count in shared.items()}
    most = sum(rarity.values()) or 1.0
    return [
        (rank + 1) / len(entries) + 0.25 * log1p(len(entry.proofs)) + 2.0 * sum(rarity[word] for word in own & wanted) / most
        for rank, (entry, own) in enumerate(zip(entries, words, strict=True))
    ]


def best(entries: Sequence[Entry], most: int, about: str = "") -> list[Entry]:
    """At most so many of the facts, those of the greatest worth, in their order."""
    if len(entries) <= most:
        return list(entries)
    ranked = sorted(zip(worths(entries, about), entries, strict=True), key=lambda pair: (-pair[0], pair[1].number))
    return sorted([entry for _, entry in ranked[:most]], key=lambda entry: entry.number)
