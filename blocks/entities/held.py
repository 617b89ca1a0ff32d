"""What a process knows of entities without asking the database again, each scope good for exactly one version."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from memory_engine.blocks.entities.entity import Entity
from memory_engine.blocks.understanding.mentions import head_of

Names = tuple[tuple[Entity, tuple[tuple[str, str], ...]], ...]
"""Entities with the folded forms of all their names, each with its first word."""


def names_of(entities: Iterable[Entity]) -> Names:
    """Folding takes longer than looking for a name: it is done once."""
    return tuple([(entity, tuple([(key, head_of(key)) for key in sorted(entity.keys)])) for entity in entities])


@dataclass
class Held:
    """The names of the scopes used last, at most `size` for each database."""

    size: int = 256
    _scopes: WeakKeyDictionary[object, OrderedDict[tuple[str, str], tuple[int, Names]]] = field(
        default_factory=WeakKeyDictionary
    )

    def get(self, database: object, scope: str, block: str, version: int) -> Names | None:
        """What that scope had at that version, if it is held."""
        scopes = self._scopes.get(database, OrderedDict())
        found = scopes.get((scope, block))
        if found is None or found[0] != version:
            return None
        scopes.move_to_end((scope, block))
        return found[1]

    def put(self, database: object, scope: str, block: str, version: int, names: Names) -> None:
        """Hold what was read after that version was seen; it may be newer, never older."""
        scopes = self._scopes.setdefault(database, OrderedDict())
        scopes[scope, block] = (version, names)
        scopes.move_to_end((scope, block))
        while len(scopes) > self.size:
            scopes.popitem(last=False)
