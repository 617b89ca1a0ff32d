"""What a process made of records, kept so that a scope is not read again for each context: good for exactly one version."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from memory_engine.block import BlockContext, Records

T = TypeVar("T")
_Place = tuple[str, str]
"""A scope key and the name of a block."""


@dataclass
class Held(Generic[T]):
    """What was made of the scopes used last, at most `size` for each database. Nobody may change it."""

    size: int = 256
    _scopes: WeakKeyDictionary[object, OrderedDict[_Place, tuple[int, T]]] = field(default_factory=WeakKeyDictionary)

    def get(self, records: Records, context: BlockContext, block: str) -> T | None:
        """What was made of the records at the version of the context, if it is held."""
        if not _is_reader(records, context):
            return None
        scopes, place = self._scopes.get(records.database, OrderedDict()), (context.scope_key, block)
        found = scopes.get(place)
        if found is None or found[0] != context.state_version:
            return None
        scopes.move_to_end(place)
        return found[1]

    def put(self, records: Records, context: BlockContext, block: str, made: T) -> T:
        """Hold what was made of records read after that version was seen; they may be newer, never older. Returns it."""
        if _is_reader(records, context):
            scopes, place = self._scopes.setdefault(records.database, OrderedDict()), (context.scope_key, block)
            scopes[place] = (context.state_version, made)
            scopes.move_to_end(place)
            while len(scopes) > self.size:
                scopes.popitem(last=False)
        return made


def _is_reader(records: Records, context: BlockContext) -> bool:
    """Only the copies of a `get`, whose version is the one of that moment, and not while something is being erased.

    Version 0 is that of a scope without any state, to which one returns that is deleted: the only one that comes twice.
    """
    now = context.tokens_available is not None and context.state_version > 0
    return now and not records.writable and not context.erasing
