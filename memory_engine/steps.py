"""Messages grouped into steps, the smallest units that may be cut, moved or shown: pure, no I/O.

A step is one message, or an assistant message with tool calls together with the first result of each of its calls. The
rules for joining results to calls live in `group` alone; `arrange` (for flushing) and `view.build_view` both stand on it:

- A result joins the nearest earlier call with its id that is still unanswered, also across a user message.
- Every other result (its call unknown, answered already, or later) is a *hidden* step of its own.
- In a view no call that left the FIFO is answered by a result that is still in it, else what blocks have not absorbed
  yet would decide what the FIFO shows.
- One message with results for calls of several messages makes one step of all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from memory_engine.messages import ChatMessage


class Entry(Protocol):
    """What grouping and flushing need to know of a stored message; `store.MessageRow` is one."""

    @property
    def seq(self) -> int: ...
    @property
    def role(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def pinned(self) -> bool: ...
    @property
    def calls(self) -> tuple[str, ...]: ...
    @property
    def results(self) -> tuple[str, ...]: ...


E = TypeVar("E", bound=Entry)


class Pair(NamedTuple):
    """A call and its first result: the seq of the calling entry, the call's id, the seq of the answering entry."""

    call_seq: int
    call_id: str
    result_seq: int


class Step(NamedTuple):
    """The smallest unit that may be cut or moved. Entries are in the order of `seq`; `turn` 0 precedes any user message."""

    entries: tuple[Entry, ...]
    turn: int
    tokens: int
    open: bool = False
    """A call has no result yet and no later user message has closed it."""
    hidden: bool = False
    """A duplicate result, or one whose call is not among the entries: never shown, only delivered."""
    pairs: tuple[Pair, ...] = ()

    @property
    def answered(self) -> frozenset[str]:
        """The ids of the calls whose first result is in this step."""
        return frozenset(pair.call_id for pair in self.pairs)

    @property
    def first_seq(self) -> int:
        return self.entries[0].seq

    @property
    def last_seq(self) -> int:
        return self.entries[-1].seq

    @property
    def pinned(self) -> bool:
        return self.entries[0].pinned

    @property
    def is_user(self) -> bool:
        return self.entries[0].role == "user"


class ViewStep(NamedTuple):
    """A step as a model would see it: finished message copies with their token counts, one for each message.

    `seqs` are those of all stored messages it stands for, in order; `total` is the sum of `tokens`.
    """

    seqs: tuple[int, ...]
    messages: tuple[ChatMessage, ...]
    tokens: tuple[int, ...]
    turn: int
    pinned: bool
    is_user: bool
    role: str
    total: int


class Group(Generic[E]):
    """A step under construction: calls with what has answered them, or one hidden result."""

    __slots__ = ("entries", "hidden", "into", "pairs")

    def __init__(self, entry: E, *, hidden: bool = False) -> None:
        self.entries: list[E] = [entry]
        self.pairs: list[Pair] = []
        self.hidden = hidden
        self.into: Group[E] | None = None

    def root(self) -> Group[E]:
        unit = self
        while unit.into is not None:
            unit = unit.into
        return unit

    def merge(self, other: Group[E]) -> Group[E]:
        """Make two groups one, kept at the place of the earlier."""
        if other is self:
            return self
        first, second = (self, other) if self.entries[0].seq < other.entries[0].seq else (other, self)
        first.entries = sorted((*first.entries, *second.entries), key=lambda entry: entry.seq)
        first.pairs += second.pairs
        second.into = first
        return first

    def unanswered(self) -> Iterator[tuple[E, str]]:
        """Calls without a result, with the entry that makes them."""
        answered = {(pair.call_seq, pair.call_id) for pair in self.pairs}
        for entry in self.entries:
            for call_id in entry.calls:
                if (entry.seq, call_id) not in answered:
                    yield entry, call_id

    def is_open(self, closed_before: int) -> bool:
        """Does a call at or after `closed_before` wait for its result?"""
        if len(self.pairs) == len(self.entries) - 1 == len(self.entries[0].calls):
            return False  # the common case, one answer for each call, without building a set
        return any(entry.seq >= closed_before for entry, _ in self.unanswered())


def group(entries: Iterable[E], *, horizon: int = 0) -> list[E | Group[E]]:
    """The entries' steps in the order of their first entry; a plain entry stands for a step of its own.

    No result at or after `horizon` is joined to a call before it.
    """
    units: list[E | Group[E]] = []
    waiting: dict[str, list[tuple[Group[E], int]]] = {}
    merged = False
    archived = horizon > 0
    for entry in entries:
        if archived and entry.seq >= horizon:
            archived = False
            waiting.clear()
        if entry.calls:
            unit = Group(entry)
            units.append(unit)
            for call_id in entry.calls:
                waiting.setdefault(call_id, []).append((unit, entry.seq))
        elif entry.results:
            if _join(entry, waiting) is None:
                units.append(Group(entry, hidden=True))
            merged = merged or len(entry.results) > 1
        else:
            units.append(entry)
    if merged:
        return [unit for unit in units if not isinstance(unit, Group) or unit.into is None]
    return units


def _join(entry: E, waiting: dict[str, list[tuple[Group[E], int]]]) -> Group[E] | None:
    """Put a result to the calls it answers; None when there is no such call."""
    home: Group[E] | None = None
    for call_id in entry.results:
        stack = waiting.get(call_id)
        if stack:
            unit, call_seq = stack.pop()
            if unit.into is not None:
                unit = unit.root()
            home = unit if home is None else home.merge(unit)
            home.pairs.append(Pair(call_seq, call_id, entry.seq))
    if home is not None:
        home.entries.append(entry)
    return home


def arrange(entries: Iterable[Entry], *, closed: bool = False) -> tuple[Step, ...]:
    """The steps of the entries (which are in the order of `seq`), in the order of their first entry.

    With `closed` no call is open: nothing will answer it any more.
    """
    rows = entries if isinstance(entries, Sequence) else tuple(entries)
    closed_before = rows[-1].seq + 1 if closed and rows else last_user_seq(rows)
    steps: list[Step] = []
    turn = 0
    for unit in group(rows):
        if isinstance(unit, Group):
            tokens = sum(entry.tokens for entry in unit.entries)
            is_open = not unit.hidden and unit.is_open(closed_before)
            steps.append(Step(tuple(unit.entries), turn, tokens, is_open, unit.hidden, tuple(unit.pairs)))
        else:
            turn += unit.role == "user"
            steps.append(Step((unit,), turn, unit.tokens))
    return tuple(steps)


def last_user_seq(entries: Sequence[Entry]) -> int:
    """The seq of the newest user message, -1 without one."""
    for entry in reversed(entries):
        if entry.role == "user":
            return entry.seq
    return -1
