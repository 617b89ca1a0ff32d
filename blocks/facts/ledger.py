"""PURE: the facts of one scope, and what may happen to them. Nothing here can lose a fact without leaving its version."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from memory_engine.blocks.facts.entries import Covers, Entry, Proof

MOST_JOINT = 100
"""The most proofs of a merged fact: each is a record, and all of them are written again with every merge."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact as users see it. `valid_to` None: it holds.

    `proofs` are the messages that prove it; `superseded_by` is the id of the fact that took its place, None when it holds or
    was withdrawn. Times are aware, in UTC: when the messages were said.
    """

    id: str
    text: str
    proofs: tuple[Proof, ...]
    valid_from: datetime
    valid_to: datetime | None = None
    superseded_by: str | None = None
    field: str | None = None
    """The field of the profile that `text` is the JSON of; None for a fact in words."""


def fact_id(number: int) -> str:
    """How a fact is called in prompts and results."""
    return f"f{number}"


def same_words(text: str) -> str:
    """What two texts share that say the same in the same words, whatever their case, blanks and full stops are."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(". ")


class Ledger:
    """Facts with their versions. It may be given only those that hold, or all that there were.

    Every change is a new version, so each of them can be taken back by erasing the messages that it came from.
    """

    def __init__(self, entries: Iterable[Entry], next_number: int) -> None:
        self.entries = {entry.number: entry for entry in entries if entry.stands}
        self.next_number = max([next_number, *[number + 1 for number in self.entries]])
        self._current = self._find_current()
        self._numbers = {self._identity(entry): entry.number for entry in self.current}

    @property
    def current(self) -> list[Entry]:
        """The facts that hold, oldest first."""
        return [self.entries[number] for number in sorted(self._current)]

    def holds(self, number: int) -> bool:
        """Whether there is such a fact and it holds."""
        return number in self._current

    def values(self) -> dict[str, Entry]:
        """The fields of a profile that have a value."""
        return {entry.field: entry for entry in self.current if entry.field is not None}

    # -- changes ---------------------------------------------------------------------------------------------

    def add(self, text: str, proofs: Sequence[Proof], since: datetime, *, field: str | None = None) -> int:
        """A new fact; one that is known in these words gets more proofs instead. Returns its number."""
        known = self._known(text, field)
        if known is not None:
            self.entries[known] = self.entries[known].with_proofs(proofs)
            return known
        # What is said of a field after it was emptied is about the same thing again.
        thread = self.next_number if field is None else field
        return self._append(text, frozenset([thread]), proofs, since, field=field)

    def update(self, number: int, text: str, proofs: Sequence[Proof], since: datetime) -> int:
        """Another text takes the place of a fact that holds. Returns the number of that text."""
        entry = self.entries[number]
        known = self._known(text, entry.field)
        if known is not None:
            self.entries[known] = self.entries[known].with_proofs(proofs)
            if known != number:
                self._withdraw(number, proofs, since, same=known)
            return known
        self._end(number)
        return self._append(text, entry.threads, proofs, since, field=entry.field)

    def retract(self, number: int, proofs: Sequence[Proof], since: datetime) -> None:
        """A fact that holds does so no longer, and nothing takes its place."""
        self._withdraw(number, proofs, since, same=None)

    def merge(self, numbers: Sequence[int], text: str, since: datetime) -> int | None:
        """One fact takes the place of several that hold, with all of their proofs.

        It says what each of them said, so it ends as soon as one of these proofs is erased; the others hold again then.
        Returns its number, or None when that would be too much, or another fact says the same already.
        """
        merged = [self.entries[number] for number in numbers]
        proofs = {proof.place: proof for entry in merged for proof in entry.proofs}
        known = self._known(text, None)
        if len(proofs) > MOST_JOINT or (known is not None and known not in numbers):
            return None
        for number in numbers:
            self._end(number)
        threads = frozenset[int | str]().union(*[entry.threads for entry in merged])
        return self._append(text, threads, list(proofs.values()), since, joint=frozenset(proofs))

    def erase(self, covers: Covers) -> None:
        """Without all that these messages alone prove. What they had ended holds again."""
        left = [entry.without(covers) for entry in self.entries.values()]
        self.entries = {entry.number: entry for entry in left if entry.stands}
        texts = {thread for entry in self.entries.values() if entry.text is not None for thread in entry.threads}
        # An end of nothing is of no use.
        self.entries = {n: entry for n, entry in self.entries.items() if entry.text is not None or entry.threads & texts}
        self._current = self._find_current()
        self._join()

    def _join(self) -> None:
        """What holds again may have been said anew meanwhile: then the new version is proven by both."""
        self._numbers = {}
        for entry in self.current:
            before = self._numbers.get(self._identity(entry))
            if before is not None:
                old = self.entries[before]
                joined = replace(entry, threads=entry.threads | old.threads).with_proofs(old.proofs)
                self.entries[entry.number] = joined
                self._current.discard(before)
            self._numbers[self._identity(entry)] = entry.number

    def drop(self, number: int) -> None:
        """Remove a fact with every version of the same things, as if nobody had said them."""
        threads = self.entries[number].threads
        doomed = [entry.number for entry in self.entries.values() if entry.threads & threads]
        for each in doomed:
            del self.entries[each]
        self._current = self._find_current()
        self._join()

    # -- history ---------------------------------------------------------------------------------------------

    def facts(self) -> list[Fact]:
        """All versions, oldest first, with what became of them."""
        following = self._following()
        return [_fact(entry, following.get(entry.number), self.entries) for entry in self._texts()]

    def _texts(self) -> list[Entry]:
        return [self.entries[number] for number in sorted(self.entries) if self.entries[number].text is not None]

    def _following(self) -> dict[int, Entry]:
        """The next version of each entry that has one."""
        last: dict[int | str, Entry] = {}
        following: dict[int, Entry] = {}
        for number in sorted(self.entries, reverse=True):
            entry = self.entries[number]
            later = [last[thread] for thread in entry.threads if thread in last]
            if later:
                following[number] = min(later, key=lambda one: one.number)
            last.update(dict.fromkeys(entry.threads, entry))
        return following

    # -- helpers ---------------------------------------------------------------------------------------------

    def _find_current(self) -> set[int]:
        last: dict[int | str, int] = {}
        for entry in self.entries.values():
            for thread in entry.threads:
                last[thread] = max(last.get(thread, 0), entry.number)
        return {
            entry.number
            for entry in self.entries.values()
            if entry.text is not None and all([last[thread] == entry.number for thread in entry.threads])
        }

    def _identity(self, entry: Entry) -> tuple[str | None, str]:
        return entry.field, same_words(entry.text or "") if entry.field is None else entry.text or ""

    def _known(self, text: str, field: str | None) -> int | None:
        return self._numbers.get((field, same_words(text) if field is None else text))

    def _end(self, number: int) -> None:
        self._current.discard(number)
        identity = self._identity(self.entries[number])
        if self._numbers.get(identity) == number:
            del self._numbers[identity]

    def _withdraw(self, number: int, proofs: Sequence[Proof], since: datetime, *, same: int | None) -> None:
        self._end(number)
        self._append(None, self.entries[number].threads, proofs, since, same=same)

    def _append(
        self,
        text: str | None,
        threads: frozenset[int | str],
        proofs: Sequence[Proof],
        since: datetime,
        *,
        field: str | None = None,
        same: int | None = None,
        joint: frozenset[tuple[str, int]] = frozenset(),
    ) -> int:
        number = self.next_number
        self.next_number += 1
        entry = Entry(number, text, since, threads, (), joint, len(joint), field, same).with_proofs(proofs)
        self.entries[number] = entry
        if text is not None:
            self._current.add(number)
            self._numbers[self._identity(entry)] = number
        return number


def _fact(entry: Entry, following: Entry | None, entries: dict[int, Entry]) -> Fact:
    fact = Fact(fact_id(entry.number), entry.text or "", entry.proofs, entry.since, field=entry.field)
    if following is None:
        return fact
    by = following.number if following.text is not None else following.same
    return Fact(
        fact.id,
        fact.text,
        fact.proofs,
        fact.valid_from,
        max(following.since, entry.since),
        None if by is None or by not in entries else fact_id(by),
        fact.field,
    )
