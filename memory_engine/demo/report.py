"""What the demo draws: the receipt of a moment, the second start, and the totals."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from memory_engine import ChatMessage, Context, Receipt
from memory_engine.demo.drawing import Piece, Screen, bar
from memory_engine.demo.transcript import Moment
from memory_engine.receipt import SourceReceipt

_HISTORY = ("▓", "third")
_SECTIONS = (("▒", "first"), ("█", "second"), ("░", "fourth"))
_FRAME = ("│", "dim")
_NAMES = 14
_STORY = 34
_QUOTE_LINES = 3


@dataclass
class Totals:
    """What one run adds up to; tokens and seconds."""

    messages: int = 0
    tokens_seen: int = 0
    tokens_kept: int = 0
    most: int = 0
    budget: int = 0
    contexts: int = 0
    over_budget: int = 0
    setup: float = 0.0
    playing: float = 0.0
    waiting: float = 0.0
    second_start: float = 0.0
    recalled: str = ""
    recalling: float = 0.0
    understood: str = ""
    understanding: float = 0.0
    file_size: int = 0
    puts: list[float] = field(default_factory=list)
    gets: list[float] = field(default_factory=list)

    def noted(self, context: Context) -> None:
        """Add a context that was taken."""
        receipt = context.receipt
        self.contexts += 1
        self.over_budget += receipt.tokens > receipt.budget
        self.most = max(self.most, receipt.tokens)
        self.budget, self.tokens_kept = receipt.budget, receipt.tokens
        self.gets.append(receipt.latency)


@dataclass(frozen=True, slots=True)
class Check:
    """Something that has to hold, and what was found."""

    label: str
    found: str
    holds: bool


def draw_moment(screen: Screen, moment: Moment, context: Context, played: int, total: int) -> None:
    """The receipt of a moment: what fills the token limit, and where what was asked for is found in it."""
    history = [message for message in context.messages if message.role in ("user", "assistant")]
    screen.rule(f"{mission_time(history[-1:])}  {moment.title}", f"{played:,} of {total:,}")
    row(screen, "asked", moment.question)
    screen.line()
    _draw_receipt(screen, context.receipt, played)
    screen.line()
    if history:
        row(screen, "first", *quote(history[0]))
        row(screen, "latest", *quote(history[-1]))
    for name, text in _findings(context, history, moment.words):
        row(screen, name, text, lines=_QUOTE_LINES)
    for trouble in _troubles(context.receipt):
        screen.line((trouble, "bad"))
    screen.line()


def _draw_receipt(screen: Screen, receipt: Receipt, played: int) -> None:
    """One bar for each source, each beginning where the one before ended, then all of them on the same scale."""
    sources = sorted((source for source in receipt.sources if source.given), key=lambda source: source.kind == "history")
    rows = [(source.name, source.given, _story(source, played)) for source in sources]
    rows.append(("frame", receipt.tokens - sum(source.given for source in sources), "tags around the sections"))
    looks = [_HISTORY if source.kind == "history" else _SECTIONS[i % len(_SECTIONS)] for i, source in enumerate(sources)]
    looks.append(_FRAME)
    width = max(8, screen.width - _NAMES - _STORY)
    before = 0
    for (name, given, story), look in zip(rows, looks, strict=True):
        if given > 0:
            pieces = bar([(before, " ", ""), (given, *look)], receipt.budget, width)
            screen.line(f"{name:<{_NAMES}}", *pieces, f" {given:>6,} ", (story, "dim"))
            before += given
    parts = [(given, *look) for (_, given, _), look in zip(rows, looks, strict=True)]
    share = 100 * receipt.tokens / receipt.budget
    total = f" {receipt.tokens:>6,} of {receipt.budget:,} tokens, {share:.0f} %"
    screen.line((f"{'context':<{_NAMES}}", "bold"), *bar(parts, receipt.budget, width), (total, "bold"))


def row(screen: Screen, name: str, *pieces: Piece, lines: int = 1) -> None:
    """A line with its name in front; a single text may take more `lines`."""
    text = pieces[0]
    if lines == 1 or not isinstance(text, str):
        screen.line((f"{name:<{_NAMES}}", "dim"), *pieces)
        return
    wrapped = textwrap.wrap(text, screen.width - _NAMES, max_lines=lines, placeholder=" …")
    for index, line in enumerate(wrapped):
        screen.line((f"{name if not index else '':<{_NAMES}}", "dim"), line)


def draw_checks(screen: Screen, title: str, right: str, checks: Sequence[Check]) -> None:
    """Each check with what was found."""
    screen.rule(title, right)
    for check in checks:
        mark: Piece = ("✓ ", "good") if check.holds else ("✗ ", "bad")
        for index, line in enumerate(textwrap.wrap(check.found, screen.width - _NAMES - 2)):
            start = (mark, f"{check.label:<{_NAMES}}") if not index else (" " * (_NAMES + 2),)
            screen.line(*start, (line, "" if check.holds else "bad"))
    screen.line()


def draw_totals(screen: Screen, totals: Totals) -> None:
    """Messages, tokens seen and kept, times."""
    ratio = totals.tokens_seen / max(1, totals.tokens_kept)
    all_time = totals.setup + totals.playing + totals.waiting + totals.second_start + totals.recalling
    all_time += totals.understanding
    rate = totals.messages / max(totals.playing, 1e-9)
    budget = (
        f"{totals.contexts:,} contexts taken, the largest {totals.most:,} of {totals.budget:,} tokens, "
        f"{totals.over_budget} over"
    )
    spent = (
        f"{all_time:.1f} s: playing {totals.playing:.1f}, waiting for blocks {totals.waiting:.1f}, "
        f"second start {totals.second_start:.1f}, recall {totals.recalling:.1f}, "
        f"understanding {totals.understanding:.1f}, set-up {totals.setup:.1f}"
    )
    rows = (
        ("messages", f"{totals.messages:,} in {len(totals.puts):,} puts, one for each minute, {rate:,.0f} messages a second"),
        ("tokens seen", f"{totals.tokens_seen:,}"),
        ("tokens kept", f"{totals.tokens_kept:,} in the last context, 1 of {ratio:,.0f} that were seen"),
        ("budget", budget),
        ("recall", totals.recalled),
        ("understood", totals.understood),
        ("put", _times(totals.puts)),
        ("get", _times(totals.gets)),
        ("file", f"{totals.file_size / 1e6:.1f} MB, SQLite"),
        ("time", spent),
    )
    screen.rule("Totals")
    for name, text in rows:
        row(screen, name, text, lines=4)


def mission_time(messages: Sequence[ChatMessage]) -> str:
    """The mission time of the last of these messages."""
    return str(messages[-1].metadata.get("t", "")) if messages else "000:00:00"


def _story(source: SourceReceipt, played: int) -> str:
    if source.kind == "section":
        return "whole" if source.asked <= source.given else f"of {source.asked:,}, cut to fit"
    return f"the last {source.messages:,} of {played:,}" if source.messages < played else f"all {played:,}"


def quote(message: ChatMessage) -> tuple[Piece, ...]:
    return f"{message.metadata.get('t', '')} ", (f"{message.name or message.role} ", "bold"), f"“{message.content}”"


def _findings(context: Context, history: Sequence[ChatMessage], words: Sequence[str]) -> list[tuple[str, str]]:
    """For each word the line of the log that the context holds, or else the latest message that says it."""
    lines = [line for message in context.messages for line in message.content.splitlines()]
    found: list[tuple[str, str]] = []
    for word in words:
        logged = next((line for line in lines if line.startswith(f"- {word}, ")), None)
        said = next((message for message in reversed(history) if word.lower() in message.content.lower()), None)
        if logged is not None:
            found.append(("log", logged.removeprefix("- ")))
        elif said is not None:
            found.append(("history", f"{word}: {said.metadata.get('t', '')} {said.name} “{said.content}”"))
    return found


def _troubles(receipt: Receipt) -> list[str]:
    errors = [f"{source.name}: {source.error}" for source in receipt.sources if source.error]
    return errors + [f"{item.block} parked: {item.error}" for item in receipt.parked]


def _times(seconds: Sequence[float]) -> str:
    ordered = sorted(seconds)
    slowest = ordered[int(len(ordered) * 0.99)]
    return f"median {statistics.median(ordered) * 1000:.1f} ms, 99 % within {slowest * 1000:.1f} ms"
