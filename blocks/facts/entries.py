"""PURE: what is stored of facts, one record for each message that proves one, and how it is read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from memory_engine.block import Record

CURRENT, ENDED = "now:", "was:"
"""Beginnings of keys: a reader in a hurry reads what holds now, however long the history is."""

Row = tuple[Any, int | None, str | None]
"""Data, seq and session uid of a record."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A message that proves a fact. Without a message: somebody entered the fact by hand."""

    message_id: str | None = None
    session_uid: str | None = None
    seq: int | None = None

    @property
    def place(self) -> tuple[str, int]:
        """Where the message is; proofs are in this order."""
        return self.session_uid or "", -1 if self.seq is None else self.seq


Covers = Callable[[str | None, int | None], bool]
"""Whether messages that are erased include that seq of that session."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of what is known: a fact, or (without text) that one ended and nothing took its place.

    Versions of the same thing share a thread; the last one that there is holds. An entry in several threads, such as a
    merged fact, is a version of several things. So when the proofs of a version are erased, the others agree without it.
    """

    number: int
    text: str | None
    since: datetime
    threads: frozenset[int | str]
    proofs: tuple[Proof, ...]
    joint: frozenset[tuple[str, int]] = frozenset()
    """Of a merged fact: where the proofs are that its text was made of."""
    needs: int = 0
    """Of a merged fact: how many of these it takes, which is all; that some are erased can be told by their number."""
    field: str | None = None
    """Of a profile: which field this is the value of."""
    same: int | None = None
    """Of an end: the fact that said the same already."""

    @property
    def stands(self) -> bool:
        """Whether it is still proven: by every message of which it was merged, or by one that says all of it."""
        here = {proof.place for proof in self.proofs}
        return bool(here - self.joint) or len(here) == self.needs > 0

    def with_proofs(self, proofs: Iterable[Proof]) -> Entry:
        """The same, proven by these too."""
        known = {proof.place: proof for proof in (*proofs, *self.proofs)}
        return replace(self, proofs=tuple([known[place] for place in sorted(known)]))

    def without(self, covers: Covers) -> Entry:
        """The same without the proofs that are erased."""
        return replace(self, proofs=tuple([proof for proof in self.proofs if not covers(proof.session_uid, proof.seq)]))


def ended_key(number: int) -> str:
    """How the keys of a fact begin that does not hold any more."""
    return f"{ENDED}{number:08d}:"


def rows_of(entries: Iterable[Entry], current: Iterable[int]) -> dict[str, Row]:
    """The records of these entries by their keys. Each has all of an entry, so that it lasts as long as a proof of it."""
    now = frozenset(current)
    rows: dict[str, Row] = {}
    for entry in entries:
        about: dict[str, Any] = {
            "text": entry.text,
            "since": entry.since.isoformat(),
            "threads": sorted(entry.threads, key=str),
        }
        if entry.field is not None:
            about["field"] = entry.field
        if entry.same is not None:
            about["same"] = entry.same
        if entry.needs:
            about["needs"] = entry.needs
        for proof in entry.proofs:
            seq = "" if proof.seq is None else f"{proof.seq:012d}"
            key = f"{CURRENT if entry.number in now else ENDED}{entry.number:08d}:{proof.session_uid or ''}:{seq}"
            data = dict(about)
            if proof.message_id is not None:
                data["message"] = proof.message_id
            if proof.place in entry.joint:
                data["joint"] = True
            rows[key] = (data, proof.seq, proof.session_uid)
    return rows


def entries_of(records: Iterable[Record]) -> list[Entry]:
    """The entries that records are of, also those that do not stand any more."""
    told: dict[int, Mapping[str, Any]] = {}
    proofs: dict[int, list[Proof]] = {}
    joint: dict[int, list[tuple[str, int]]] = {}
    for record in records:
        number = int(record.key[len(CURRENT) :].partition(":")[0])
        proof = Proof(record.data.get("message"), record.session_uid, record.seq)
        proofs.setdefault(number, []).append(proof)
        told.setdefault(number, record.data)
        if record.data.get("joint"):
            joint.setdefault(number, []).append(proof.place)
    return [
        Entry(
            number,
            data["text"],
            datetime.fromisoformat(data["since"]),
            frozenset(data["threads"]),
            tuple(sorted(proofs[number], key=_place)),
            frozenset(joint.get(number, ())),
            data.get("needs", 0),
            data.get("field"),
            data.get("same"),
        )
        for number, data in sorted(told.items())
    ]


def _place(proof: Proof) -> tuple[str, int]:
    return proof.place
