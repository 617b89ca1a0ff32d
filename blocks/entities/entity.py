"""PURE: an entity, the texts that name it, and what becomes of the known ones when something new is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from memory_engine.blocks.understanding.mentions import folded, mentions

Proof = tuple[str, int]
"""A session's uid and the seq of a message in it."""

MOST_ALIASES = 10
MOST_PROOFS = 20
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
    delivery that mentioned it last.
    """

    name: str
    text: str
    kind: str = ""
    aliases: tuple[str, ...] = ()
    messages: tuple[Proof, ...] = ()
    seen: int = 0

    @property
    def key(self) -> str:
        """What is the same for every spelling of its name."""
        return folded(self.name)

    @property
    def keys(self) -> set[str]:
        """Those of all its names."""
        return {self.key, *map(folded, self.aliases)}

    @property
    def line(self) -> str:
        """How it is shown."""
        about = "; ".join([part for part in (self.kind, f"also {', '.join(self.aliases)}" if self.aliases else "") if part])
        return f"{self.name} ({about}): {self.text}" if about else f"{self.name}: {self.text}"

    def named_in(self, text: str) -> bool:
        """Whether a folded text has one of its names."""
        return any(mentions(text, key) for key in self.keys)

    def to_json(self) -> dict[str, Any]:
        """The data of its record."""
        return {
            "name": self.name,
            "text": self.text,
            "kind": self.kind,
            "aliases": list(self.aliases),
            "messages": [list(proof) for proof in self.messages],
            "seen": self.seen,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entity:
        """The entity of a record."""
        proofs = tuple([(uid, seq) for uid, seq in data["messages"]])
        return cls(data["name"], data["text"], data["kind"], tuple(data["aliases"]), proofs, data["seen"])


def is_name(text: str) -> bool:
    """Whether a text can name an entity: it has a letter or digit, is no pronoun, and not longer than a key may be."""
    key = folded(text)
    return any(char.isalnum() for char in key) and key not in _NO_NAMES and len(key) <= _LONGEST_KEY


def merged(known: Mapping[str, Entity], found: Iterable[Entity]) -> dict[str, Entity]:
    """The known entities, by key, with what was found: new texts in place of old ones, names and messages added.

    One that is found under an alias of a known entity, or with its name as an alias, is that entity, under its known name. A
    name that belongs to another entity does not become an alias.
    """
    entities = dict(known)
    for one in found:
        old = _same(entities, one)
        rest = [other for key, other in entities.items() if old is None or key != old.key]
        taken = set().union(*(other.keys for other in rest)) if rest else set()
        if old is None:
            entities[one.key] = replace(one, aliases=_distinct(one.aliases, taken | {one.key}))
            continue
        names = [*old.aliases, one.name, *one.aliases]
        entities[old.key] = Entity(
            name=old.name,
            text=one.text,
            kind=one.kind or old.kind,
            aliases=_distinct(names, taken | {old.key}),
            messages=tuple(dict.fromkeys([*old.messages, *one.messages]))[-MOST_PROOFS:],
            seen=one.seen,
        )
    return entities


def newest(entities: Mapping[str, Entity], most: int) -> dict[str, Entity]:
    """Those that were mentioned last, at most so many."""
    kept = sorted(entities.values(), key=lambda entity: (-entity.seen, entity.key))[:most]
    return {entity.key: entity for entity in kept}


def _same(entities: Mapping[str, Entity], one: Entity) -> Entity | None:
    if one.key in entities:
        return entities[one.key]
    by_alias = next((entity for entity in entities.values() if one.key in entity.keys), None)
    return by_alias or next((entities[key] for key in map(folded, one.aliases) if key in entities), None)


def _distinct(names: Sequence[str], taken: set[str]) -> tuple[str, ...]:
    kept: dict[str, str] = {}
    for name in names:
        if is_name(name) and folded(name) not in taken:
            kept.setdefault(folded(name), name)
    return tuple(kept.values())[:MOST_ALIASES]
