"""PURE: an entity, the texts that name it, and what becomes of the known ones when something new is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import log2
from typing import Any

from memory_engine.blocks.understanding.mentions import folded, head_of

Proof = tuple[str, int]
"""A session's uid and the seq of a message in it."""

MOST_ALIASES = 10
MOST_PROOFS = 20
MOST_FORMER = 10
"""So many earlier notes are kept of each."""
_WORTH_OF_PROOFS = 5.0
_PRONOUNS = (
    "i me my mine you your he him his she her hers it its we us our they them their this that these those here there who what "
    "someone something everyone one"
)
"""Words that a model may take for another name of somebody; they would be found in every text."""
_NO_NAMES = frozenset(_PRONOUNS.split())
_LONGEST_KEY = 200
"""Characters of a folded name: some characters fold to a whole phrase."""


@dataclass(frozen=True, slots=True)
class Entity:
    """What is known of a person, place or thing.

    `messages` are those that said it, the newest last, as (session uid, seq); at most 20 are kept. `seen` is the number of the
    delivery that mentioned it last. `former` are the notes that were replaced, the newest last; at most 10 are kept.
    """

    name: str
    text: str
    kind: str = ""
    aliases: tuple[str, ...] = ()
    messages: tuple[Proof, ...] = ()
    seen: int = 0
    former: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What is the same for every spelling of its name."""
        return _folded(self.name)

    @property
    def keys(self) -> set[str]:
        """Those of all its names."""
        return {self.key, *map(_folded, self.aliases)}

    @property
    def line(self) -> str:
        """How it is shown."""
        about = "; ".join([part for part in (self.kind, f"also {', '.join(self.aliases)}" if self.aliases else "") if part])
        return f"{self.name} ({about}): {self.text}" if about else f"{self.name}: {self.text}"

    def to_json(self) -> dict[str, Any]:
        """The data of its record."""
        return {
            "name": self.name,
            "text": self.text,
            "kind": self.kind,
            "aliases": list(self.aliases),
            "messages": [list(proof) for proof in self.messages],
            "seen": self.seen,
            "former": list(self.former),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entity:
        """The entity of a record."""
        proofs = tuple([(uid, seq) for uid, seq in data["messages"]])
        former = tuple(data.get("former", ()))
        return cls(data["name"], data["text"], data["kind"], tuple(data["aliases"]), proofs, data["seen"], former)


Names = tuple[tuple[Entity, tuple[tuple[str, str], ...]], ...]
"""Entities with the folded forms of all their names, each with its first word."""


@lru_cache(maxsize=16_384)
def _folded(name: str) -> str:
    return folded(name)


def names_of(entities: Iterable[Entity]) -> Names:
    """What is looked for in texts."""
    return tuple([(entity, tuple([(key, head_of(key)) for key in sorted(entity.keys)])) for entity in entities])


def is_name(text: str) -> bool:
    """Whether a text can name an entity: it has a letter or digit, is no pronoun, and not longer than a key may be."""
    key = _folded(text)
    return any(char.isalnum() for char in key) and key not in _NO_NAMES and len(key) <= _LONGEST_KEY


def merged(known: Mapping[str, Entity], found: Iterable[Entity], *, most_new: int | None = None) -> dict[str, Entity]:
    """The known entities, by key, with what was found: new texts in place of old ones, names and messages added.

    One that is found under an alias of a known entity, or with its name as an alias, is that entity, under its known name. A
    name that belongs to another entity does not become an alias. Of those that are new, `most_new` are taken.
    """
    entities = dict(known)
    owners: dict[str, str] = {}
    for key, entity in entities.items():
        for name in entity.keys - {key}:
            owners.setdefault(name, key)
    # A name of its own comes before an alias.
    owners.update({key: key for key in entities})
    for one in found:
        # By its name, else by one of its aliases that is somebody's name.
        place = owners.get(one.key) or next((name for name in map(_folded, one.aliases) if name in entities), None)
        if place is None and most_new is not None and len(entities) - len(known) >= most_new:
            continue
        key = place or one.key
        if place is None:
            entities[key] = replace(one, aliases=_distinct(one.aliases, owners, key))
        else:
            names = [*entities[key].aliases, one.name, *one.aliases]
            entities[key] = _rewritten(entities[key], one, _distinct(names, owners, key))
        for name in entities[key].keys:
            owners.setdefault(name, key)
    return entities


def _rewritten(old: Entity, new: Entity, aliases: tuple[str, ...]) -> Entity:
    former = old.former if new.text == old.text else (*old.former, old.text)[-MOST_FORMER:]
    return Entity(
        name=old.name,
        text=new.text,
        kind=new.kind or old.kind,
        aliases=aliases,
        messages=tuple(dict.fromkeys([*old.messages, *new.messages]))[-MOST_PROOFS:],
        seen=new.seen,
        former=former,
    )


def kept(entities: Mapping[str, Entity], most: int) -> dict[str, Entity]:
    """At most so many: those that were mentioned last stay, and longer those of which more messages told.

    So a flood of names that are mentioned once does not carry off what is known well.
    """

    def worth(entity: Entity) -> float:
        return entity.seen + _WORTH_OF_PROOFS * log2(max(1, len(entity.messages)))

    ranked = sorted(entities.values(), key=lambda entity: (-worth(entity), entity.key))[:most]
    return {entity.key: entity for entity in ranked}


def newest(entities: Mapping[str, Entity], most: int) -> dict[str, Entity]:
    """Those that were mentioned last, at most so many, in that order."""
    ordered = sorted(kept(entities, most).values(), key=lambda entity: (-entity.seen, entity.key))
    return {entity.key: entity for entity in ordered}


def _distinct(names: Sequence[str], owners: Mapping[str, str], key: str) -> tuple[str, ...]:
    """Those names, once each, that belong to nobody else and are not the entity's own."""
    distinct: dict[str, str] = {}
    for name in names:
        if is_name(name) and _folded(name) != key and owners.get(_folded(name), key) == key:
            distinct.setdefault(_folded(name), name)
    return tuple(distinct.values())[:MOST_ALIASES]
