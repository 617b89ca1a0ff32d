"""PURE: what a reply may change. It is about these messages and the facts it was shown, and it cannot end many at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from memory_engine.blocks.facts.entries import Proof
from memory_engine.blocks.facts.ledger import Ledger
from memory_engine.blocks.facts.replies import Add, Merge, Operation, Retract, Update

MOST_MERGED = 5
"""How many facts one merge takes at most."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What proves something in this delivery: its messages by the numbers that the model knows, and when they were said."""

    proofs: Mapping[int, Proof]
    times: Mapping[int, datetime]

    def proven(self, numbers: Iterable[int]) -> tuple[list[Proof], datetime] | None:
        """The messages of these numbers, and when the first of them was said; None when none of them is of this chunk."""
        known = [number for number in numbers if number in self.proofs]
        if not known:
            return None
        return [self.proofs[number] for number in known], min(self.times[number] for number in known)

    @property
    def end(self) -> datetime:
        """When its last message was said."""
        return max(self.times.values())


def most_ended(current: int) -> int:
    """How many facts one chunk may withdraw: who says "forget everything" is not obeyed at once, of three facts one stays."""
    return 1 if current < 3 else max(2, current // 5)


def most_updated(current: int) -> int:
    """How many facts one chunk may replace; people move and change jobs at once, and the history keeps what was."""
    return max(5, current // 4)


def apply(ledger: Ledger, operations: Sequence[Operation], chunk: Chunk, *, shown: Iterable[int], most_new: int) -> list[str]:
    """Carry out the operations that make sense, in their order. Returns why the others were ignored, without their texts.

    A shown fact that does not hold any more was ended or erased while the model was asked. What takes its place is new then.
    """
    known = frozenset(shown)
    gone = frozenset([number for number in known if not ledger.holds(number)])
    left = {Retract: most_ended(len(ledger.current)), Update: most_updated(len(ledger.current)), Add: most_new}
    ignored: list[str] = []
    for place, operation in enumerate(operations, 1):
        proven = chunk.proven(operation.messages)
        if proven is None:
            ignored.append(f"operation {place} names no message of the chunk")
            continue
        orphaned = isinstance(operation, Update) and operation.fact in gone
        if not isinstance(operation, Add) and not orphaned and not (operation.fact in known and ledger.holds(operation.fact)):
            ignored.append(f"operation {place} is about f{operation.fact}, which is no fact that holds and was shown")
            continue
        if not left[type(operation)]:
            ignored.append(f"operation {place} is one {type(operation).__name__.lower()} more than one chunk may bring")
            continue
        left[type(operation)] -= 1
        if isinstance(operation, Retract):
            ledger.retract(operation.fact, *proven)
        elif isinstance(operation, Update) and not orphaned:
            ledger.update(operation.fact, operation.text, *proven)
        else:
            ledger.add(operation.text, *proven)
    return ignored


def condense(ledger: Ledger, merges: Sequence[Merge], *, shown: Iterable[int], max_facts: int, since: datetime) -> list[str]:
    """Carry out the merges that make sense, until there is room again. Returns why the others were ignored.

    What is not merged stays as it is. So a reply cannot lose a fact, and merges end at four fifths of `max_facts`.
    """
    known = frozenset(shown)
    least = max(1, max_facts * 4 // 5)
    ignored: list[str] = []
    for place, merge in enumerate(merges, 1):
        count = len(merge.facts)
        if not 2 <= count <= MOST_MERGED:
            ignored.append(f"merge {place} is of {count} facts")
        elif not all([fact in known and ledger.holds(fact) for fact in merge.facts]):
            ignored.append(f"merge {place} is about a fact that does not hold or was not shown")
        elif len(ledger.current) - (count - 1) < least:
            ignored.append(f"merge {place} is not needed, there is room")
        elif ledger.merge(merge.facts, merge.text, since) is None:
            ignored.append(f"merge {place} has too many proofs, or says what another fact says")
    return ignored
