"""Stored messages as a model may see them: steps of finished copies that make a valid conversation. Pure, no I/O.

Most messages are shown as they are, with the token count they were stored with. Copies are made only where a result is too
long or a call was never answered; they carry `partial=True` and the id of the message they stand for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from memory_engine.messages import ChatMessage, TextBlock, ThinkingBlock, ToolCallBlock, ToolResultBlock
from memory_engine.steps import Entry, Group, ViewStep, group, last_user_seq

__all__ = ["CopyCache", "Count", "ShownEntry", "ViewStep", "build_view", "extend_view", "shorten", "shortener"]


class ShownEntry(Entry, Protocol):
    """An entry together with its message."""

    @property
    def message(self) -> ChatMessage: ...


E = TypeVar("E", bound=ShownEntry)
Count: TypeAlias = Callable[[ChatMessage], int]
CopyCache: TypeAlias = dict[tuple[object, ...], tuple[ChatMessage, int]]
"""Finished copies by what they depend on: the message's seq, the call ids kept, the limit. The caller keeps it small."""


def build_view(
    entries: Iterable[E],
    count: Count,
    *,
    max_tool_result_tokens: int,
    turn_seq: int | None = None,
    horizon: int = 0,
    closed: bool = False,
    cache: CopyCache | None = None,
) -> tuple[ViewStep, ...]:
    """The visible steps of the entries (which are in the order of `seq`), finished and counted.

    - Results follow their call directly, in the order of the calls, however late they came; but none from `horizon` on
      follows a call from before it.
    - Duplicate and orphan results are hidden, and so are open calls: those without a result at or after the newest user
      message (`turn_seq`, if it is not among the entries). In earlier turns, or with `closed`, a message loses the calls
      that were never answered; it disappears when nothing else is in it.
    - Tool results above `max_tool_result_tokens` are shortened. That depends on the message alone, so it never changes.
    - An unchanged message keeps its identity and its stored count. `count` is asked for copies only; `cache` saves
      making them again.
    """
    rows = entries if isinstance(entries, Sequence) else tuple(entries)
    closed_before = max(last_user_seq(rows), -1 if turn_seq is None else turn_seq)
    if closed and rows:
        closed_before = rows[-1].seq + 1
    copies = _Copies(count, max_tool_result_tokens, {} if cache is None else cache)
    steps: list[ViewStep] = []
    turn = 0
    for unit in group(rows, horizon=horizon):
        if isinstance(unit, Group):
            if unit.hidden or unit.is_open(closed_before):
                continue
            step = _calls_step(unit, turn, copies)
            if step is not None:
                steps.append(step)
        else:
            turn += unit.role == "user"
            steps.append(_plain_step(unit, turn))
    return tuple(steps)


def extend_view(view: tuple[ViewStep, ...], entries: Sequence[E]) -> tuple[ViewStep, ...] | None:
    """The view with new plain messages behind it, or None when they may change what is before them.

    That is the case for calls and results; the caller sees to it that no call is open, which a user message would close.
    """
    steps: list[ViewStep] = []
    turn = view[-1].turn if view else 0
    for entry in entries:
        if entry.calls or entry.results:
            return None
        steps.append(_plain_step(entry, turn := turn + (entry.role == "user")))
    return (*view, *steps)


def _plain_step(entry: ShownEntry, turn: int) -> ViewStep:
    tokens = entry.tokens
    role = entry.role
    return ViewStep((entry.seq,), (entry.message,), (tokens,), turn, entry.pinned, role == "user", role, tokens)


def _calls_step(unit: Group[E], turn: int, copies: _Copies) -> ViewStep | None:
    first, *rest = unit.entries
    if len(rest) == 1 == len(unit.pairs) == len(first.calls) == len(rest[0].results):
        result, cost = copies.result(rest[0], rest[0].results)
        tokens = (first.tokens, cost)
        return ViewStep(
            (first.seq, rest[0].seq), (first.message, result), tokens, turn, False, False, first.role, tokens[0] + cost
        )
    shown: list[tuple[ChatMessage, int]] = []
    if len(unit.pairs) == len(rest) == len(first.calls) and all([len(entry.results) == 1 for entry in rest]):
        if len(rest) > 1:
            rest.sort(key=lambda entry: first.calls.index(entry.results[0]))
        shown.append((first.message, first.tokens))
        shown += [copies.result(entry, entry.results) for entry in rest]
    else:
        for entry in unit.entries:
            if entry.calls:
                shown += _exchange(unit, entry, copies)
    if not shown:
        return None
    messages, costs = zip(*shown, strict=True)
    seqs = tuple([entry.seq for entry in unit.entries])
    return ViewStep(seqs, messages, costs, turn, False, False, messages[0].role, sum(costs))


def _exchange(unit: Group[E], caller: E, copies: _Copies) -> list[tuple[ChatMessage, int]]:
    """One calling message of a group without its unanswered calls, then the results of the others."""
    answers = {pair.call_id: pair.result_seq for pair in unit.pairs if pair.call_seq == caller.seq}
    kept = tuple([call_id for call_id in caller.calls if call_id in answers])
    shown = [copies.caller(caller, kept)]
    by_seq = {entry.seq: entry for entry in unit.entries}
    for seq in dict.fromkeys(answers[call_id] for call_id in kept):
        shown.append(copies.result(by_seq[seq], tuple([call_id for call_id in kept if answers[call_id] == seq])))
    return [item for item in shown if item is not None]


class _Copies:
    """Messages as they are shown, with their counts; copies come from the cache when they were made before."""

    __slots__ = ("_cache", "_count", "_limit")

    def __init__(self, count: Count, limit: int, cache: CopyCache) -> None:
        self._count = count
        self._limit = limit
        self._cache = cache

    def caller(self, entry: ShownEntry, kept: tuple[str, ...]) -> tuple[ChatMessage, int] | None:
        """An assistant message with these calls only; None when nothing worth showing is left."""
        if len(kept) == len(entry.calls):
            return entry.message, entry.tokens
        key = (entry.seq, kept)
        copy = self._cache.get(key)
        if copy is None:
            message = entry.message
            blocks = [block for block in message.blocks if not isinstance(block, ToolCallBlock) or block.id in kept]
            if all(_is_blank(block) for block in blocks):
                return None
            changed = message.model_copy(update={"blocks": tuple(blocks), "partial": True})
            copy = self._cache[key] = (changed, self._count(changed))
        return copy

    def result(self, entry: ShownEntry, kept: tuple[str, ...]) -> tuple[ChatMessage, int]:
        """A tool message with its results of these calls only, not longer than the limit."""
        whole = len(kept) == len(entry.results)
        if whole and entry.tokens <= self._limit:
            return entry.message, entry.tokens
        key = (entry.seq, kept, self._limit)
        copy = self._cache.get(key)
        if copy is None:
            message, tokens = entry.message, entry.tokens
            if not whole:
                blocks = [b for b in message.blocks if not isinstance(b, ToolResultBlock) or b.tool_call_id in kept]
                message = message.model_copy(update={"blocks": tuple(blocks), "partial": True})
                tokens = self._count(message)
            if tokens > self._limit:
                message = shorten(message, self._limit, self._count, tokens=tokens)
                tokens = self._count(message)
            copy = self._cache[key] = (message, tokens)
        return copy


def _is_blank(block: object) -> bool:
    return isinstance(block, ThinkingBlock) or (isinstance(block, TextBlock) and not block.text.strip())


# -- shortening --------------------------------------------------------------------------------------------------

# The line end behind a marker may be the one before the next. Longer numbers are not ours, and `int` may refuse them.
_MARKER = re.compile(r"\n\[… ([0-9]{1,18}) tokens left out …\](?=\n)")
_BARE_MARKER = "[…]"
_ROUNDS = 12
_CLOSE_ENOUGH = 0.97
# No tokenizer in use makes more than a few characters of one token on average; it keeps giant texts from being counted.
_MAX_CHARACTERS_PER_TOKEN = 16


class _Part(NamedTuple):
    """A text that may be cut: where it is, what stands before and after the cut, tokens that are missing already."""

    at: int
    head: str
    tail: str
    missing: int

    @property
    def size(self) -> int:
        return len(self.head) + len(self.tail) if self.missing else len(self.head)


def shorten(message: ChatMessage, max_tokens: int, count: Count, *, tokens: int | None = None) -> ChatMessage:
    """A copy that counts at most `max_tokens`, its tool results and assistant texts cut in the middle.

    A marker says about how many tokens are missing. User and system messages, calls and media are never cut; when what
    remains is above the limit the copy is the smallest possible. A message that fits, or cannot get smaller, is returned
    itself. `tokens` is its count, if known.
    """
    before = count(message) if tokens is None else tokens
    parts = _parts(message)
    if before <= max_tokens or not parts:
        return message
    rate = before / max(1, sum(part.size for part in parts))
    best, cost = _smallest(message, parts, rate, count, before)
    if cost >= max_tokens:
        return best
    low, low_cost = 0, cost
    longest = max(part.size for part in parts)
    high = min(longest, _MAX_CHARACTERS_PER_TOKEN * max_tokens)
    high_cost = before * high / longest
    for round_ in range(_ROUNDS):
        if high - low <= 1 or low_cost >= _CLOSE_ENOUGH * max_tokens:
            break
        middle = (low + high) // 2
        if round_ % 3 != 2 and high_cost > low_cost:  # interpolate, but halve now and then
            middle = low + int((high - low) * 0.99 * (max_tokens - low_cost) / (high_cost - low_cost))
        middle = min(max(middle, low + 1), high - 1)
        copy = _cut(message, parts, middle, rate)
        cost = count(copy)
        if cost <= max_tokens:
            low, low_cost, best = middle, cost, copy
        else:
            high, high_cost = middle, cost
    return best


def shortener(count: Count, cache: CopyCache | None = None) -> Callable[[ChatMessage, int], tuple[ChatMessage, int]]:
    """`shorten` in the form that `budget.ContextRequest` takes: (message, limit) -> (copy, its tokens)."""
    known: CopyCache = {} if cache is None else cache

    def shorten_to(message: ChatMessage, max_tokens: int) -> tuple[ChatMessage, int]:
        copy = shorten(message, max_tokens, count)
        return copy, count(copy)

    def cached(message: ChatMessage, max_tokens: int) -> tuple[ChatMessage, int]:
        if message.id is None:
            return shorten_to(message, max_tokens)
        calls = tuple([call.id for call in message.tool_calls])
        key = (message.id, message.partial, calls, message.tool_results, max_tokens)
        if key not in known:
            known[key] = shorten_to(message, max_tokens)
        return known[key]

    return cached


def _parts(message: ChatMessage) -> list[_Part]:
    """The texts that may be cut. In a copy that was cut before, the cut is found again and only grows."""
    parts = []
    for index, block in enumerate(message.blocks):
        if isinstance(block, ToolResultBlock):
            text = block.content
        elif isinstance(block, TextBlock) and message.role in ("assistant", "tool"):
            text = block.text
        else:
            continue
        parts.append(_Part(index, *(_halves(text) if message.partial else (text, text, 0))))
    return parts


def _halves(text: str) -> tuple[str, str, int]:
    """What stands before and after the cut, and the tokens missing there; all of a text that was not cut, twice, and 0.

    Markers may also be stored, as text of a tool that prints them or read a shortened result. That of a cut stands in the
    middle, as `_cut_text` keeps as much before it as after it, or one character more; two markers cannot stand there.
    """
    framed = f"\n{text}\n"  # a marker with nothing around it has no line ends of its own
    for found in _MARKER.finditer(framed):
        head, tail = framed[: found.start()], framed[found.end() + 1 :]
        if len(head) - len(tail) in (0, 1):
            return head[1:], tail[:-1], int(found[1])
    return text, text, 0


def _smallest(message: ChatMessage, parts: list[_Part], rate: float, count: Count, before: int) -> tuple[ChatMessage, int]:
    """The cheapest of the message itself and its copies with nothing but markers."""
    copies = [(before, 2, message)]
    for order, bare in enumerate((False, True)):
        copy = _cut(message, parts, 0, rate, bare=bare)
        copies.append((count(copy), order, copy))
    cost, _, best = min(copies, key=lambda item: item[:2])
    return best, cost


def _cut(message: ChatMessage, parts: list[_Part], level: int, rate: float, *, bare: bool = False) -> ChatMessage:
    """A copy in which each text keeps at most `level` of its characters."""
    blocks = list(message.blocks)
    for part in parts:
        if part.size > level:
            block = blocks[part.at]
            text = _cut_text(part, level, rate, bare=bare)
            if isinstance(block, ToolResultBlock):
                blocks[part.at] = block.model_copy(update={"content": text})
            elif len(text) < part.size or part.missing:
                blocks[part.at] = block.model_copy(update={"text": text})
    return message.model_copy(update={"blocks": tuple(blocks), "partial": True})


def _cut_text(part: _Part, level: int, rate: float, *, bare: bool) -> str:
    if bare:
        return _BARE_MARKER
    # Neither half can be too short for it: they are equal or differ by one, and together longer than the level.
    right = level // 2
    left = level - right
    missing = part.missing + max(1, round((part.size - level) * rate))
    text = f"{part.head[:left]}\n[… {missing} tokens left out …]\n{part.tail[len(part.tail) - right :]}"
    return text.strip("\n") if level == 0 else text
