"""What this process last saw of sessions and block states, kept so that what is unchanged is not read again."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile

from memory_engine.messages import ChatMessage
from memory_engine.rows import message_of
from memory_engine.steps import arrange
from memory_engine.store import AppendResult, MessageRow, SessionRow, StateRow, StateVersion, Store
from memory_engine.view import CopyCache, ViewStep, extend_view


@dataclass(frozen=True, slots=True)
class WindowEntry:
    """A stored message with what the planner needs to know of it."""

    seq: int
    role: str
    tokens: int
    pinned: bool
    calls: tuple[str, ...]
    results: tuple[str, ...]
    message: ChatMessage


def entry_of(row: MessageRow, message: ChatMessage | None = None) -> WindowEntry:
    """The entry of a row; `message` saves decoding it."""
    return WindowEntry(row.seq, row.role, row.tokens, row.pinned, row.calls, row.results, message or message_of(row))


@dataclass(slots=True)
class Window:
    """What a session's FIFO shows at one version. `view` and `lagging` are filled by the first reader."""

    uid: str
    revision: int
    next_seq: int
    horizon: int
    turn_seq: int | None
    entries: tuple[WindowEntry, ...]
    view: tuple[ViewStep, ...] | None = None
    lag_from: int | None = None
    copies: CopyCache = field(default_factory=dict)
    moved: frozenset[str | None] = frozenset()
    """The ids of messages that stand behind all others, see `with_run`."""
    moved_from: int | None = None
    """Up to here, what stands before them may be flushed; None when nothing was moved."""

    @property
    def open_from(self) -> int | None:
        """The first seq of an active call that still waits for its result, if any."""
        if self.turn_seq is None:
            return None
        tail = [entry for entry in self.entries if entry.seq >= self.turn_seq]
        if not any(entry.calls for entry in tail):
            return None
        return min((step.first_seq for step in arrange(tail) if step.open), default=None)

    def at(self, session: SessionRow) -> bool:
        """Whether this is exactly that version of the session."""
        return (
            self.next_seq == session.next_seq
            and self.horizon == session.horizon
            and self.turn_seq == session.turn_seq
            and self.grows_into(session)
        )

    def grows_into(self, session: SessionRow) -> bool:
        """Whether that version follows from this one by appending and flushing alone."""
        same = self.uid == session.uid and self.revision == session.revision
        return same and self.next_seq <= session.next_seq and self.horizon <= session.horizon


def with_run(window: Window, own: Sequence[ChatMessage], costs: Sequence[int]) -> Window:
    """The window as the model of one run should see it: what the run has said (`own`) stands behind everything else.

    Messages of `own` may be in the window, archived, or not stored yet. A step of the window moves as a whole; when the
    run's request is not among them, with all of its turn. Pinned messages stay where they are.
    """
    stored = {entry.message.id: entry for entry in window.entries}
    at = {entry.seq: entry for entry in window.entries}
    steps = [step for step in arrange(window.entries) if not step.pinned]
    step_of = {entry.seq: step for step in steps for entry in step.entries}
    has_request = any(message.role == "user" for message in own)
    behind: dict[object, WindowEntry] = {}
    for message, tokens in zip(own, costs, strict=True):
        entry = stored.get(message.id) if message.id is not None else None
        if entry is None:
            calls = tuple([call.id for call in message.tool_calls])
            new = WindowEntry(-1, message.role, tokens, message.pinned, calls, message.tool_results, message)
            behind[message.id or id(message)] = new
        elif (step := step_of.get(entry.seq)) is not None:
            moving = [step] if has_request else [other for other in steps if other.turn == step.turn]
            behind.update({at[each.seq].message.id: at[each.seq] for each in chain(*(part.entries for part in moving))})
    entries = [entry for entry in window.entries if entry.message.id not in behind]
    turn_seq = window.turn_seq
    for seq, entry in enumerate(behind.values(), start=window.next_seq):
        entries.append(replace(entry, seq=seq))
        turn_seq = seq if entry.role == "user" else turn_seq
    first = min((entry.seq for entry in behind.values() if entry.seq >= 0), default=window.next_seq)
    is_torn = any(step.first_seq < first <= step.last_seq for step in steps)
    return replace(
        window,
        entries=tuple(entries),
        turn_seq=turn_seq,
        view=None,
        lag_from=None,
        copies={},
        moved=frozenset(entry.message.id for entry in behind.values()),
        moved_from=0 if is_torn else first,
    )


class Windows:
    """The windows of the sessions used last, by the session's uid: at most `size`, and of `messages` in all but for the last.

    A message takes some 2.5 kB, so that windows take some 80 MB at most.

    A uid is random and never used again, so an entry can be outdated but never another session's.
    """

    def __init__(self, size: int = 1024, messages: int = 32_768) -> None:
        self._size, self._most = size, messages
        self._windows: OrderedDict[str, Window] = OrderedDict()
        self._messages = 0

    def forget(self, uid: str) -> None:
        """Drop the window of a session whose messages changed."""
        window = self._windows.pop(uid, None)
        if window is not None:
            self._messages -= len(window.entries)

    async def read(self, store: Store, session: SessionRow) -> Window:
        """The window at that version: from memory, by the rows that are new, or whole."""
        cached = self._windows.get(session.uid)
        if cached is not None and cached.at(session):
            self._windows.move_to_end(session.uid)
            return cached
        if cached is not None and cached.grows_into(session):
            new: Sequence[MessageRow] = ()
            if cached.next_seq < session.next_seq:
                new = await store.visible_rows(session, after_seq=cached.next_seq - 1)
            entries = (*cached.entries, *(entry_of(row) for row in new))
            return self._keep(session, entries, cached.copies)
        rows = await store.visible_rows(session)
        return self._keep(session, tuple(entry_of(row) for row in rows), {})

    def appended(self, result: AppendResult, stored: Sequence[ChatMessage]) -> None:
        """Note our own put, if the window was up to date before it; `stored` are the messages of its rows."""
        session, rows = result.session, result.appended
        cached = self._windows.get(session.uid)
        if cached is None or not cached.grows_into(session) or cached.next_seq != session.next_seq - len(rows):
            return
        messages = {row.seq: message for row, message in zip(result.rows, stored, strict=True)}
        new = tuple(entry_of(row, messages.get(row.seq)) for row in rows)
        window = self._keep(session, (*cached.entries, *new), cached.copies)
        unmoved = cached.horizon == session.horizon and cached.lag_from is None
        if unmoved and cached.view is not None and cached.open_from is None:
            window.view = extend_view(cached.view, new)

    def _keep(self, session: SessionRow, entries: tuple[WindowEntry, ...], copies: CopyCache) -> Window:
        horizon, turn_seq = session.horizon, session.turn_seq
        if entries and entries[0].seq < horizon:
            kept = {turn_seq, _head(entries, horizon)}
            entries = tuple(e for e in entries if e.seq >= horizon or e.pinned or e.seq in kept)
        if len(copies) > 2 * len(entries) + 64:
            copies = {}
        window = Window(session.uid, session.revision, session.next_seq, horizon, turn_seq, entries, copies=copies)
        newest = self._windows.get(session.uid)
        # A slower reader must not put an older version in place of a newer one.
        if newest is None or newest.revision < session.revision or newest.next_seq <= session.next_seq:
            self.forget(session.uid)
            self._windows[session.uid] = window
            self._messages += len(entries)
            while len(self._windows) > 1 and (len(self._windows) > self._size or self._messages > self._most):
                self.forget(next(iter(self._windows)))
        return window


def _head(entries: Sequence[WindowEntry], horizon: int) -> int | None:
    """The user message of a turn that the horizon cuts: what is left of the turn cannot be shown without it."""
    head = None
    for entry in entries:
        if entry.seq >= horizon and not entry.pinned:
            return None if entry.role == "user" else head
        if entry.role == "user" and entry.seq < horizon:
            head = entry.seq
    return None


class Shown:
    """What a handle returned last, to say how much of the next context is the same."""

    __slots__ = ("_hashes", "_messages")

    def __init__(self) -> None:
        self._messages: tuple[ChatMessage, ...] = ()
        self._hashes = array("q")

    def note(self, messages: Sequence[ChatMessage]) -> None:
        """This is what it returned now."""
        self._messages, self._hashes = tuple(messages), array("q")

    def shrink(self) -> None:
        """Keep a number for each message, instead of the message."""
        self._hashes.extend(map(hash, self._messages))
        self._messages = ()

    def unchanged(self, messages: Sequence[ChatMessage]) -> int:
        """With how many of the same messages these begin."""
        if self._hashes:
            pairs = zip(map(hash, messages), self._hashes, strict=False)
            return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        pairs_of_messages = zip(messages, self._messages, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1] or pair[0] == pair[1], pairs_of_messages))


class RecentlyShown:
    """Bounds what handles keep of what they returned: whole messages only the `size` of them that were used last."""

    def __init__(self, size: int = 1024) -> None:
        self._size = size
        self._recent: OrderedDict[int, Shown] = OrderedDict()

    def note(self, shown: Shown, messages: Sequence[ChatMessage]) -> None:
        """Note what a handle returned."""
        shown.note(messages)
        self._recent[id(shown)] = shown
        self._recent.move_to_end(id(shown))
        if len(self._recent) > self._size:
            self._recent.popitem(last=False)[1].shrink()


class KnownSessions:
    """The rows of the sessions written last, as they were then, for handles that are made for one request each.

    Whoever writes with one compares it with what is stored.
    """

    def __init__(self, size: int = 16_384) -> None:
        self._size = size
        self._rows: OrderedDict[tuple[str, str], SessionRow] = OrderedDict()

    def get(self, name: tuple[str, str]) -> SessionRow | None:
        """The row of the session of that tenant and id."""
        return self._rows.get(name)

    def note(self, row: SessionRow) -> None:
        """Keep a row."""
        name = (row.tenant, row.session_id)
        self._rows[name] = row
        self._rows.move_to_end(name)
        if len(self._rows) > self._size:
            self._rows.popitem(last=False)


class StateCache:
    """Saved fields of the (scope, block) pairs used last, each good for exactly one version."""

    def __init__(self, size: int = 4096) -> None:
        self._size = size
        self._rows: OrderedDict[tuple[str, str], StateRow] = OrderedDict()

    async def read(self, store: Store, version: StateVersion) -> StateRow:
        """The state at that version or a newer one."""
        pair = (version.scope_key, version.block)
        row = self._rows.get(pair)
        if row is None or row.version != version.version:
            row = await store.read_state(*pair)
            self._rows[pair] = row
            while len(self._rows) > self._size:
                self._rows.popitem(last=False)
        self._rows.move_to_end(pair)
        return row
