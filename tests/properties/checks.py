"""What is asked of every context, and of every `BudgetExceededError`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import oracle
from oracle import SYSTEM, Kept, Piece
from worlds import QUERY, RENDERERS, contents_of

from memory_engine import BudgetExceededError, ChatMessage
from memory_engine.messages import ContentBlock, TextBlock, ToolCallBlock, encode
from memory_engine.receipt import Context
from memory_engine.render import Section, as_history, compose
from memory_engine.steps import ViewStep
from memory_engine.store import SessionRow, Snapshot

if TYPE_CHECKING:
    from machine import Machine

_MARKER = re.compile(r"\n\[… \d+ tokens left out …\](?=\n)")
"""The line end behind it stays, as it may be the one before another: what is stored may look like markers too."""
_ALONE = re.compile(r"\[…\]|\[… \d+ tokens left out …\]")
_WRAPPER = 90
"""Tokens (here maybe characters) that the built-in rendering may add to the sections' own costs."""


class Check:
    """One context against the promises."""

    def __init__(self, machine: Machine, snapshot: Snapshot, entries: Sequence[Kept], context: Context) -> None:
        self.world, self.count = machine.world, machine.count
        self.row, self.entries = snapshot.session, entries
        known = {cursor.block for cursor in snapshot.cursors}
        blocks = [*self.world.recording_blocks(), *self.world.any_blocks()]
        self.lagging = any(block.accept_short_term_memory and block.name not in known for block in blocks)
        # Of every block: one that accepts no more still receives what was flushed before.
        self.lagging = self.lagging or any(cursor.cursor != cursor.target for cursor in snapshot.cursors)
        # A block that is rebuilt after an erasure begins anew.
        self.lagging = self.lagging or any(state.pending_erasures for state in snapshot.states)
        self.messages, self.receipt = list(context.messages), context.receipt
        self.by_id = {entry.message.id: entry for entry in entries}
        self.history = [message for message in self.messages if message.id in self.by_id]
        self.shown = {self.by_id[message.id].seq for message in self.history}

    def all(self) -> None:
        self.budget()
        self.conversation()
        self.provenance()
        self.order()
        self.kept_in_view()
        self.nothing_is_lost()
        self.account()

    def of_run(self, own: Sequence[ChatMessage]) -> None:
        """What holds although the messages of a run stand behind the others: none of them twice, the run's request last."""
        self.budget()
        self.conversation()
        ids = [message.id for message in self.messages if message.id is not None]
        assert len(ids) == len(set(ids)), "a message is shown twice"
        users = [message for message in self.messages if message.role == "user" and message.id is not None]
        if own and own[0].role == "user" and not own[0].pinned and self.world.max_turns != 0:
            assert users[-1].id == own[0].id, "another request is the last one"

    def budget(self) -> None:
        total = self.count.all(self.messages)
        assert total == self.receipt.tokens, f"{total} tokens, the receipt says {self.receipt.tokens}"
        assert total <= self.world.budget == self.receipt.budget, f"{total} tokens of {self.world.budget}"

    def conversation(self) -> None:
        oracle.check_valid(self.messages, start_on_user=self.world.start_on_user)
        assert all(QUERY not in message.content for message in self.messages), "the query is in the result"
        assert len({id(message) for message in self.messages}) == len(self.messages)

    def provenance(self) -> None:
        """Each message is a stored one, whole or marked as shortened; everything else is marked as memory's."""
        users = [place for place, message in enumerate(self.messages) if message.role == "user" and message.id]
        for place, message in enumerate(self.messages):
            if message.id is None or message.id not in self.by_id:
                assert oracle.is_memory(message), f"{message!r:.200} is neither stored nor memory's"
                continue
            if any(block.origin for block in message.blocks):
                inside = place == 0 if message.role in SYSTEM else place == users[-1]
                assert inside, "memory was inserted in another place"
            stored, shown = self.by_id[message.id].message, oracle.bare(message)
            if message.partial:
                check_part(shown, stored)
            else:
                assert encode(shown) == encode(stored) and shown.created_at == stored.created_at

    def order(self) -> None:
        repeated = [message for message in self.history if self.history.count(message) > 1]
        assert not repeated, "a message is shown twice"
        ids = [message.id for message in self.history if len(message.tool_results) == 0]
        assert len(ids) == len(set(ids)), "a message is shown twice"
        several = {seq for piece in oracle.pieces_of(self.entries) if _callers(piece) > 1 for seq in _seqs(piece)}
        seqs = [self.by_id[message.id].seq for message in self.history if message.role != "tool"]
        seqs = [seq for seq in seqs if seq not in several]
        assert seqs == sorted(seqs), "the order is another"

    def kept_in_view(self) -> None:
        """Pinned system and user messages, and the request that is being answered."""
        for entry in self.entries:
            if entry.pinned and entry.message.role in (*SYSTEM, "user"):
                assert entry.seq in self.shown, f"the pinned {entry.message.role} message {entry.seq} is missing"
        if self.row is not None and self.row.turn_seq is not None and self.world.max_turns != 0:
            assert self.row.turn_seq in self.shown, "the current request is missing"

    def nothing_is_lost(self) -> None:
        """What is active or pinned is shown, or reported as left out, or hidden by the documented rules."""
        if self.row is None:
            assert not self.history
            return
        horizon, turn = self.row.horizon, self.row.turn_seq
        archive = [entry.seq for entry in self.entries if entry.message.role == "user" and entry.seq < horizon]
        heads = {turn, *archive[-1:]}
        visible = [entry for entry in self.entries if entry.seq >= horizon or entry.pinned or entry.seq in heads]
        _, hidden = oracle.visible_pieces(visible, turn)
        _, hidden_of_all = oracle.visible_pieces(self.entries, turn)
        left_out = {seq for item in self.receipt.left_out for seq in item.seqs}
        assert not left_out & self.shown, "both shown and left out"
        missing = {entry.seq for entry in visible if entry.seq >= horizon or entry.pinned}
        missing -= self.shown | left_out | hidden | hidden_of_all
        assert not missing, f"{sorted(missing)} are neither shown nor accounted for"
        assert not self.shown & hidden & hidden_of_all, "something hidden is shown"
        if not self.lagging:
            assert self.shown <= {entry.seq for entry in visible}, "what is archived and absorbed is shown"

    def account(self) -> None:
        sources = {source.name: source for source in self.receipt.sources}
        for name, pinned in (("pinned", True), ("history", False)):
            own = [oracle.bare(m) for m in self.history if self.by_id[m.id].pinned is pinned]
            given, number = (sources[name].given, sources[name].messages) if name in sources else (0, 0)
            assert (given, number) == (self.count.all(own), len(own)), f"the account of {name} is wrong"
        sections = [source for source in self.receipt.sources if source.kind == "section"]
        assert all(source.given >= 0 for source in sections)
        rest = self.receipt.rendering
        if not any(source.given for source in sections):
            assert rest == 0, f"{rest} tokens come from nowhere"
        elif self.world.renderer == "tags" and self.world.tokenizer in ("o200k", "length"):
            wrapper = _WRAPPER + self.world.overhead + 4 * len(sections)
            assert -4 * len(sections) <= rest <= wrapper, f"{rest} tokens come from nowhere"
        assert 0 <= self.receipt.prefix_unchanged <= self.receipt.tokens


def check_part(shown: ChatMessage, stored: ChatMessage) -> None:
    """A shortened copy: a part of the stored message, with every cut marked."""
    assert shown.role == stored.role in ("assistant", "tool"), f"a {stored.role} message was shortened"
    assert (shown.name, shown.tool_call_id, shown.metadata) == (stored.name, stored.tool_call_id, stored.metadata)
    rest = list(stored.blocks)
    for block in shown.blocks:
        while (
            type(rest[0]) is not type(block) or getattr(rest[0], "id", 0) != getattr(block, "id", 0) or _answer(rest[0], block)
        ):
            gone = rest.pop(0)
            assert gone.type in ("tool_call", "tool_result"), f"a {gone.type} block is missing"
        whole = rest.pop(0)
        if block == whole:
            continue
        text, full = (block.text, whole.text) if isinstance(block, TextBlock) else (block.content, whole.content)
        assert _is_cut(text, full), "a cut is not marked"
    assert all(isinstance(block, ToolCallBlock) or block.type == "tool_result" for block in rest)


def _is_cut(text: str, full: str) -> bool:
    """Whether the text is the other's beginning, one marker, and the other's end; as much of the one as of the other."""
    if _ALONE.fullmatch(text):
        return True
    cuts = [(text[: found.start()], text[found.end() + 1 :]) for found in _MARKER.finditer(text)]
    return any(
        full.startswith(head) and full.endswith(tail) and len(head) + len(tail) < len(full) and len(head) - len(tail) in (0, 1)
        for head, tail in cuts
    )


def _answer(whole: ContentBlock, block: ContentBlock) -> bool:
    return getattr(whole, "tool_call_id", 0) != getattr(block, "tool_call_id", 0)


def _callers(piece: Piece) -> int:
    return sum(bool(member.message.tool_calls) for member in piece.members)


def _seqs(piece: Piece) -> list[int]:
    return [member.seq for member in piece.members]


class Exceeded:
    """Whether what may never be cut really did not fit."""

    def __init__(self, machine: Machine, row: SessionRow | None, entries: Sequence[Kept]) -> None:
        self.machine, self.world, self.count = machine, machine.world, machine.count
        self.row, self.entries = row, entries

    def check(self, error: BudgetExceededError) -> None:
        assert error.budget == self.world.budget < error.needed
        assert error.contributors and error.contributors[0][0] in str(error)
        assert all(a[1] >= b[1] for a, b in zip(error.contributors, error.contributors[1:], strict=False))
        if any(priority == 0 and (most or says == "changing") for says, _, priority, _, _, most in self.world.blocks):
            return  # how much of it stays is the block's secret
        least = self.least()
        cost = self.count.all(least)
        assert cost > self.world.budget, (
            f"budget {self.world.budget}, but {cost} tokens are enough: "
            f"{[(m.role, m.id and m.id[-4:], self.count(m)) for m in least]}; error: {error}"
        )

    def least(self) -> tuple[ChatMessage, ...]:
        """The conversation with nothing but what may never be cut, as short as it may become."""
        steps = [
            _step(piece, [oracle.smallest(message, self.count) for message in oracle.shown_of(piece)]) for piece in self.fixed()
        ]
        sections, lists = [], list[ChatMessage]()
        for block in self.world.any_blocks():
            content = contents_of(block)
            if block.priority or block.says in ("int", "mixed", "none", "surrogate", "raises", "hangs", "blank"):
                continue
            if isinstance(content, str):
                content = [TextBlock(text=content)]
            if any(isinstance(item, ChatMessage) for item in content):
                lists += as_history(content, start_on_user=self.world.start_on_user)
            else:
                sections.append(Section(block.name, tuple(content)))
        return compose(
            steps,
            [section for section in sections if section.items],
            insert_method=self.world.insert_method,
            renderer=RENDERERS[self.world.renderer],
            depends_on_query={block.name: block.depends_on_query for block in self.world.any_blocks()},
            section_messages=lists,
            tags=[block.name for block in self.machine.engines[0]._core.definitions.values()],
            start_on_user=self.world.start_on_user,
        )

    def fixed(self) -> list[Piece]:
        """Pinned messages, and of the turn that is being answered its user message and its newest step."""
        row = self.row
        if row is None:
            return []
        users = [entry.seq for entry in self.entries if entry.message.role == "user"]
        below = [seq for seq in users if seq < row.horizon][-1:]
        entries = [e for e in self.entries if e.seq >= row.horizon or e.pinned or e.seq in (row.turn_seq, *below)]
        pieces, _ = oracle.visible_pieces(entries, row.turn_seq)
        kept = [piece for piece in pieces if piece.members[0].pinned]
        if self.world.max_turns != 0:
            newest = [p for p in pieces if p.members[-1].seq >= row.horizon and not p.members[0].pinned][-1:]
            heads = {row.turn_seq} | {max([seq for seq in users if seq <= piece.first], default=None) for piece in newest}
            kept += [p for p in pieces if (p in newest or p.first in heads) and p not in kept]
        return sorted(kept, key=lambda piece: piece.first)


def _step(piece: Piece, messages: Sequence[ChatMessage]) -> ViewStep:
    first = piece.members[0]
    role = first.message.role
    return ViewStep(tuple(_seqs(piece)), tuple(messages), (0,) * len(messages), 0, first.pinned, role == "user", role, 0)
