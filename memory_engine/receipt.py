"""What a turn's context consists of and why: plain data, and a `str()` that a person can read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from memory_engine.messages import ChatMessage
from memory_engine.usage import Usage

SourceKind = Literal["pinned", "history", "section"]
_BAR = 30


@dataclass(frozen=True, slots=True)
class SourceReceipt:
    """One source of the context. Tokens; seconds; `outcome` says in words what happened and why.

    `asked` is what the source would have cost whole, `given` what it costs in the context. `lag` counts the flushed
    messages that a block has not absorbed yet (they stay visible in history as far as the budget allows). `notes` are what
    a block has to say about its section, `usage` what its model was asked so far for this scope.
    """

    name: str
    kind: SourceKind
    asked: int = 0
    given: int = 0
    messages: int = 0
    priority: int | None = None
    outcome: str = "whole"
    latency: float = 0.0
    error: str | None = None
    lag: int = 0
    attempts: int = 0
    notes: tuple[str, ...] = ()
    usage: Usage | None = None

    @property
    def trimmed(self) -> int:
        """How many tokens of the source are not in the context."""
        return max(0, self.asked - self.given)


@dataclass(frozen=True, slots=True)
class LeftOutMessages:
    """Stored messages that the context does not show although they were candidates; `reason` in words."""

    seqs: tuple[int, ...]
    tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class ParkedReceipt:
    """A chunk that a block refused too often. It waits, visible here, for `redeliver()`."""

    block: str
    from_seq: int
    to_seq: int
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """The account of one `get`: `tokens` of `budget` (= `token_limit - reserved_tokens`) were used.

    `prefix_unchanged` is how many tokens at the beginning are the same as in this handle's `get` before: what a
    provider's prompt cache can reuse. `latency` is seconds for the whole call.
    """

    session_id: str
    token_limit: int
    reserved_tokens: int
    budget: int
    tokens: int
    sources: tuple[SourceReceipt, ...] = ()
    left_out: tuple[LeftOutMessages, ...] = ()
    shortened: tuple[int, ...] = ()
    parked: tuple[ParkedReceipt, ...] = ()
    prefix_unchanged: int = 0
    latency: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def rendering(self) -> int:
        """The tokens that no source accounts for: the tag around all sections, a message for them, a renderer's text."""
        return self.tokens - sum([source.given for source in self.sources])

    def source(self, name: str) -> SourceReceipt:
        """The source of that name ("history", "pinned", or a block's name). Raises `KeyError`."""
        for source in self.sources:
            if source.name == name:
                return source
        raise KeyError(name)

    def as_dict(self) -> dict[str, Any]:
        """The receipt as JSON-able data, for logs and dashboards."""
        return {name: _plain(getattr(self, name)) for name in (*self.__dataclass_fields__, "rendering")}

    def __str__(self) -> str:
        share = 100 * self.tokens / self.budget if self.budget > 0 else 0.0
        used = f"{self.tokens:,} of {self.budget:,} tokens ({share:.0f} %)"
        unchanged = f"{self.prefix_unchanged:,} tokens of prefix unchanged"
        lines = [f"{self.session_id}: {used}, {self.latency * 1000:.1f} ms, {unchanged}"]
        width = max((len(source.name) for source in self.sources), default=0)
        lines += [self._source_line(source, width) for source in self.sources]
        if self.rendering:
            lines.append(f"  {'':<{width}} {'':<{_BAR}} {self.rendering:>7,} for rendering")
        if self.reserved_tokens:
            lines.append(f"  reserved for the caller: {self.reserved_tokens:,} of {self.token_limit:,} tokens")
        lines += [f"  left out: {_seqs(item.seqs)}, {item.tokens:,} tokens: {item.reason}" for item in self.left_out]
        if self.shortened:
            lines.append(f"  shortened: {_seqs(self.shortened)}")
        lines += [
            f"  parked: {item.block} refused seq {item.from_seq} to {item.to_seq - 1} {item.attempts} times: {item.error}"
            for item in self.parked
        ]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _source_line(self, source: SourceReceipt, width: int) -> str:
        filled = round(_BAR * source.given / self.budget) if self.budget > 0 else 0
        bar = ("█" * min(filled, _BAR)).ljust(_BAR, "·")
        line = f"  {source.name:<{width}} {bar} {source.given:>7,} of {source.asked:>7,}"
        if source.priority is not None:
            line += f"  priority {source.priority}, {source.latency * 1000:.1f} ms"
        if source.kind != "section":
            line += f"  {source.messages} messages"
        if source.outcome != "whole":
            line += f"  {source.outcome}"
        if source.lag:
            line += f"  {source.lag} messages not absorbed yet"
        if source.error:
            attempts = f", {source.attempts} attempt{'s' if source.attempts > 1 else ''}" if source.attempts else ""
            line += f"  ({source.error}{attempts})"
        if source.usage is not None:
            used = source.usage
            line += f"  {used.calls} model calls, {used.input_tokens:,} tokens in, {used.output_tokens:,} out"
        if source.notes:
            line += f"  ({'; '.join(source.notes)})"
        return line


@dataclass(frozen=True, slots=True)
class Context:
    """What `memory.context()` returns: the messages to send, and the account of them."""

    messages: list[ChatMessage]
    receipt: Receipt = field(repr=False)


def _seqs(seqs: tuple[int, ...]) -> str:
    if not seqs:
        return "no messages"
    span = f"seq {seqs[0]}" if len(seqs) == 1 else f"seq {min(seqs)} to {max(seqs)}"
    return f"{len(seqs)} message{'s' if len(seqs) > 1 else ''} ({span})"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value
