"""What a context must be, worked out from the documented rules alone: nothing here uses the engine's planner or view."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from memory_engine.messages import ChatMessage, TextBlock, ToolCallBlock, ToolResultBlock

SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class Kept:
    """A stored message as the database has it."""

    seq: int
    message: ChatMessage
    pinned: bool


@dataclass(frozen=True)
class Counter:
    """The cost of a message as the documentation of the tokens says it."""

    text: Callable[[str], int]
    overhead: int
    media: Mapping[str, int]

    def __call__(self, message: ChatMessage) -> int:
        cost = self.overhead
        for label in (message.name, message.tool_call_id):
            cost += self.text(label) if label else 0
        if "kept" in message.metadata:
            cost += self.text(message.metadata["kept"]["with"])
        texts: list[str] = []
        for block in message.blocks:
            fields = block.model_dump()
            if fields["type"] == "text":
                texts.append(fields["text"])
            elif fields["type"] == "tool_call":
                given = fields["arguments"]
                arguments = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
                cost += self.text(fields["id"]) + self.text(fields["name"]) + self.text(arguments)
            elif fields["type"] == "tool_result":
                cost += self.text(fields["tool_call_id"]) + self.text(fields["content"])
            elif fields["type"] == "thinking":
                cost += self.text(fields["text"]) + self.text(fields.get("signature") or "")
            else:
                cost += self.media[fields["type"]]
        apart = sum(self.text(text) for text in texts)
        return cost + (max(apart, self.text("\n".join(texts))) if len(texts) > 1 else apart)

    def all(self, messages: Iterable[ChatMessage]) -> int:
        return sum(self(message) for message in messages)


def is_memory(message: ChatMessage) -> bool:
    """Whether memory itself made the message."""
    return bool(message.blocks) and all(block.origin == "memory" for block in message.blocks)


def bare(message: ChatMessage) -> ChatMessage:
    """The message without what memory inserted."""
    kept = tuple(block for block in message.blocks if block.origin is None)
    return message if len(kept) == len(message.blocks) else message.model_copy(update={"blocks": kept})


# -- the conversation is valid -----------------------------------------------------------------------------------


def check_valid(messages: Sequence[ChatMessage], *, start_on_user: bool) -> None:
    """Each result directly behind its call, each call with all its results; a user message comes first."""
    rest = list(messages)
    while rest and rest[0].role in SYSTEM:
        rest.pop(0)
    others = [message for message in rest if message.role not in SYSTEM]
    if start_on_user and others:
        assert others[0].role == "user", f"history starts with {others[0].role}"
    while rest:
        message = rest.pop(0)
        assert message.role != "tool", f"the result {message.tool_results} does not follow its call"
        waiting = [call.id for call in message.tool_calls]
        while waiting:
            assert rest, f"the calls {waiting} have no results"
            answer = rest.pop(0)
            assert answer.role == "tool", f"the calls {waiting} have no results before {answer.role}"
            for call_id in answer.tool_results:
                assert call_id in waiting, f"the result {call_id} is a duplicate or follows another call"
                waiting.remove(call_id)


# -- steps -------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Piece:
    """Messages that stand or fall together, with the answers to their calls by (seq of the caller, call id)."""

    members: list[Kept]
    answers: dict[tuple[int, str], int] = field(default_factory=dict)
    hidden: bool = False
    """A result that answers nothing."""

    @property
    def first(self) -> int:
        return self.members[0].seq

    def missing(self, since: int) -> bool:
        """Whether a call at or after that seq waits for its result."""
        return any(
            member.seq >= since and (member.seq, call.id) not in self.answers
            for member in self.members
            for call in member.message.tool_calls
        )


def pieces_of(entries: Sequence[Kept]) -> list[Piece]:
    """Calls joined with the first results that follow them, everything else by itself; in order."""
    pieces: list[Piece] = []
    for entry in entries:
        homes: list[Piece] = []
        answered: list[tuple[int, str]] = []
        for call_id in entry.message.tool_results:
            found = _latest_waiting(pieces, call_id, answered)
            if found is not None:
                piece, caller = found
                answered.append((caller, call_id))
                homes += [piece] if piece not in homes else []
        if not homes:
            pieces.append(Piece([entry], hidden=entry.message.role == "tool"))
            continue
        members = sorted((m for piece in homes for m in piece.members), key=lambda m: m.seq)
        joined = Piece([*members, entry])
        for piece in homes:
            joined.answers |= piece.answers
        joined.answers |= dict.fromkeys(answered, entry.seq)
        place = min(pieces.index(piece) for piece in homes)
        pieces[place] = joined
        pieces = [piece for piece in pieces if piece not in homes]
    return pieces


def _latest_waiting(pieces: list[Piece], call_id: str, taken: list[tuple[int, str]]) -> tuple[Piece, int] | None:
    best: tuple[Piece, int] | None = None
    for piece in pieces:
        for member in piece.members:
            place = (member.seq, call_id)
            if any(call.id == call_id for call in member.message.tool_calls) and place not in {*piece.answers, *taken}:
                best = (piece, member.seq) if best is None or member.seq > best[1] else best
    return best


def visible_pieces(entries: Sequence[Kept], turn_seq: int | None) -> tuple[list[Piece], set[int]]:
    """The pieces that may be shown, and the seqs that the documented rules hide."""
    users = [entry.seq for entry in entries if entry.message.role == "user"]
    # Without a turn nothing waits for an answer any more.
    since = 1 << 62 if turn_seq is None else max([turn_seq, *users])
    hidden: set[int] = set()
    shown = []
    for piece in pieces_of(entries):
        seqs = {member.seq for member in piece.members}
        if piece.hidden or piece.missing(since):
            hidden |= seqs
            continue
        gone = {member.seq for member in piece.members if _is_nothing(member, piece)}
        hidden |= gone
        if gone != seqs:
            shown.append(piece)
    return shown, hidden


def _is_nothing(member: Kept, piece: Piece) -> bool:
    """A message that consists of calls which were never answered, and of nothing that is worth showing."""
    calls = member.message.tool_calls
    if not calls or any((member.seq, call.id) in piece.answers for call in calls):
        return False
    rest = [block for block in member.message.blocks if not isinstance(block, ToolCallBlock)]
    return all(block.type == "thinking" or (block.type == "text" and not block.text.strip()) for block in rest)


# -- what may never be cut ---------------------------------------------------------------------------------------


def shown_of(piece: Piece) -> list[ChatMessage]:
    """The messages of a piece as they are shown, in order."""
    by_seq = {member.seq: member.message for member in piece.members}
    shown: list[ChatMessage] = []
    for member in piece.members:
        message = member.message
        if message.role == "tool" or _is_nothing(member, piece):
            continue
        kept = [call.id for call in message.tool_calls if (member.seq, call.id) in piece.answers]
        shown.append(_with(message, lambda block, kept=kept: not isinstance(block, ToolCallBlock) or block.id in kept))
        answers: dict[int, list[str]] = {}
        for call_id in kept:
            answers.setdefault(piece.answers[member.seq, call_id], []).append(call_id)
        for seq, ids in answers.items():
            kept_result = lambda block, ids=ids: not isinstance(block, ToolResultBlock) or block.tool_call_id in ids  # noqa: E731
            shown.append(_with(by_seq[seq], kept_result))
    return shown


def _with(message: ChatMessage, wanted: Callable[..., bool]) -> ChatMessage:
    blocks = tuple(block for block in message.blocks if wanted(block))
    return message if len(blocks) == len(message.blocks) else message.model_copy(update={"blocks": blocks, "partial": True})


def smallest(message: ChatMessage, count: Counter) -> ChatMessage:
    """The message with tool results and assistant texts as short as they may become."""
    if message.role not in ("assistant", "tool"):
        return message
    blocks = []
    for block in message.blocks:
        if isinstance(block, ToolResultBlock) and block.content:
            blocks.append(block.model_copy(update={"content": "[…]"}))
        elif isinstance(block, TextBlock) and block.text:
            blocks.append(block.model_copy(update={"text": "[…]"}))
        else:
            blocks.append(block)
    short = message.model_copy(update={"blocks": tuple(blocks)})
    return min(message, short, key=count)
