"""Putting a context together: one query, all blocks at once, then plan, cut, compose and count until it fits."""

from __future__ import annotations

import operator
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from memory_engine.budget import ContextPlan, ContextRequest, history_floor, plan_context, section_room
from memory_engine.errors import BudgetExceededError, InvalidMessageError
from memory_engine.messages import ChatMessage, coerce
from memory_engine.receipt import Context, LeftOutMessages, ParkedReceipt, Receipt, SourceReceipt
from memory_engine.render import compose
from memory_engine.sections import SectionRead, Sections
from memory_engine.session import Core, Session
from memory_engine.store import BlockTarget, Cursor, SessionRow, Snapshot, scope_key
from memory_engine.view import ViewStep, build_view, shortener
from memory_engine.window import Shown, Window, WindowEntry, entry_of, with_run

_ROUNDS = 100
"""More rounds than any real memory needs; each makes sections cheaper or the plan tighter."""

Query = str | ChatMessage | Mapping[str, Any] | Sequence["ChatMessage | Mapping[str, Any] | str"] | None


@dataclass(slots=True)
class _Turn:
    """What one `get` works with."""

    session: Session
    row: SessionRow | None
    snapshot: Snapshot
    view: tuple[ViewStep, ...]
    request: ContextRequest
    moved_from: int | None


async def read_context(
    session: Session,
    query: Query,
    block_kwargs: Mapping[str, Any],
    previous: Shown,
    own: Sequence[ChatMessage] = (),
) -> Context:
    """The context of a session now; `previous` is what this handle returned last, `own` what a run has said, stored or not."""
    started = time.perf_counter()
    core = session.core
    asked = as_query(query)
    with core.telemetry.span("memory_engine.get"):
        turn = await _look(session, own)
        sections = Sections(core, session, turn.row, turn.snapshot)
        if core.definitions:
            shown = frozenset(history_floor(turn.request))
            await sections.read(
                history=[message for step in turn.view for message in step.messages],
                query=asked,
                shown=shown,
                shown_messages=tuple([m for step in turn.view if step.seqs[0] in shown for m in step.messages]),
                room=section_room(turn.request),
                block_kwargs=block_kwargs,
            )
        plan, messages, tokens = await _fit(turn, sections)
    receipt = _receipt(turn, sections, plan, messages, tokens, previous, time.perf_counter() - started)
    core.telemetry.got(receipt)
    flush_to = plan.flush_to if plan.flush_to is None or turn.moved_from is None else min(plan.flush_to, turn.moved_from)
    if flush_to is not None and turn.row is not None and flush_to > turn.row.horizon:
        # What is neither shown nor absorbed must reach the blocks; the agent does not wait for that.
        core.soon(session.advance(turn.row, flush_to))
    return Context(messages=list(messages), receipt=receipt)


def as_query(query: Query) -> tuple[ChatMessage, ...] | None:
    """The query as messages; a text counts as a user's. Raises `InvalidMessageError`."""
    if query is None:
        return None
    if isinstance(query, str):
        return (ChatMessage(role="user", content=query),) if query else None
    if isinstance(query, ChatMessage | Mapping):
        return (coerce(query),)
    if isinstance(query, Sequence):
        parts = [ChatMessage(role="user", content=part) if isinstance(part, str) else coerce(part) for part in query]
        return tuple(parts) or None
    raise InvalidMessageError(f"The query of get is a text, a message or a list of messages, not {type(query).__name__}.")


async def _look(session: Session, own: Sequence[ChatMessage]) -> _Turn:
    core, settings = session.core, session.core.settings
    snapshot = await core.store.snapshot(session.spec, known=session.known)
    row = snapshot.session
    if row is not None and row.tokenizer != session.spec.tokenizer:
        row = await session.recount()
        snapshot = replace(snapshot, session=row)
    session.known = row
    if row is not None and await _missing_cursors(session, row, snapshot):
        snapshot = await core.store.snapshot(session.spec, known=row)
        core.worker.wake()
    window = await core.windows.read(core.store, row) if row is not None else None
    if own:
        window = with_run(window or Window("", 0, 0, 0, None, ()), own, await core.counter.count_messages(own))
    view = await _view(core, row, window, snapshot.cursors) if window is not None else ()
    request = ContextRequest(
        budget=settings.budget,
        ratio=settings.chat_history_token_ratio,
        steps=view,
        horizon=row.horizon if row else 0,
        turn_seq=window.turn_seq if window else None,
        sections=(),
        max_turns=settings.max_turns,
        start_on_user=settings.start_on_user,
        shorten=shortener(core.counter.message, window.copies if window else None),
        open_from=window.open_from if window else None,
    )
    return _Turn(session, row, snapshot, view, request, window.moved_from if window else None)


async def _missing_cursors(session: Session, row: SessionRow, snapshot: Snapshot) -> bool:
    """Give blocks that are new to this session their cursors; whether there were any."""
    known = {(cursor.block, cursor.scope_key) for cursor in snapshot.cursors}
    wanted = {(target.name, _scope_of(target, row)) for target in session.spec.receivers}
    if row.horizon == 0 or wanted <= known:
        return False
    await session.core.store.ensure_cursors(row, session.spec)
    return True


def _scope_of(target: BlockTarget, row: SessionRow) -> str:
    return scope_key(target.scope, tenant=row.tenant, user_id=row.user_id, session_uid=row.uid)


async def _view(core: Core, row: SessionRow | None, window: Window, cursors: Sequence[Cursor]) -> tuple[ViewStep, ...]:
    """The visible steps: the FIFO, and before it what left it but is not absorbed by every block yet."""
    pending = [cursor.cursor for cursor in cursors if cursor.cursor < min(cursor.target, window.horizon)]
    lag_from = min(pending) if pending else None
    if window.view is not None and window.lag_from == lag_from:
        return window.view
    entries = window.entries
    if lag_from is not None and row is not None:
        rows = await core.store.archived_rows(row, from_seq=lag_from, max_tokens=core.settings.budget)
        archived = [entry for entry in map(entry_of, rows) if entry.message.id not in window.moved]
        merged = {entry.seq: entry for entry in (*archived, *entries)}
        entries = tuple(merged[seq] for seq in sorted(merged))
    entries = await _recounted(core, window, entries)
    limit = core.settings.max_tool_result_tokens
    view = build_view(
        entries,
        core.counter.message,
        max_tool_result_tokens=limit,
        turn_seq=window.turn_seq,
        horizon=window.horizon,
        closed=window.turn_seq is None,
        cache=window.copies,
    )
    window.view, window.lag_from = view, lag_from
    return view


async def _recounted(core: Core, window: Window, entries: tuple[WindowEntry, ...]) -> tuple[WindowEntry, ...]:
    """The entries with archived ones counted here: only active messages are recounted when the tokenizer changes."""
    old = {e.seq: e for e in entries if e.seq < window.horizon and not e.pinned and e.seq != window.turn_seq}
    if not old:
        return entries
    cache = window.copies
    new = [entry for seq, entry in old.items() if ("archived", seq) not in cache]
    counts = await core.counter.count_messages([entry.message for entry in new])
    cache.update({("archived", entry.seq): (entry.message, count) for entry, count in zip(new, counts, strict=True)})
    return tuple(replace(e, tokens=cache["archived", e.seq][1]) if e.seq in old else e for e in entries)


async def _fit(turn: _Turn, sections: Sections) -> tuple[ContextPlan, tuple[ChatMessage, ...], list[int]]:
    """Plan, cut, compose and count until the finished messages fit; raises `BudgetExceededError`."""
    core, settings = turn.session.core, turn.session.core.settings
    request, needed = turn.request, 0
    if not any(step.is_user and (step.pinned or settings.max_turns != 0) for step in turn.view):
        sections.leave_out_media()
    for round_ in range(_ROUNDS):
        request = replace(request, sections=sections.costs())
        try:
            plan = plan_context(request)
        except BudgetExceededError:
            # Without a current request no user message has to be shown, and media only go with one.
            if request.turn_seq is not None or not sections.leave_out_media():
                raise
            request = replace(request, slack=0)
            continue
        if plan.cuts:
            for cut in plan.cuts:
                await sections.cut(cut.name, cut.tokens, cut.reason, wholly=2 * round_ > _ROUNDS)
            # What rendering added depended on what was cut; kept, it could leave no room for what may never be cut.
            request = replace(request, slack=0)
            continue
        if not any(step.is_user for step in plan.steps) and sections.leave_out_media():
            continue
        messages = compose(
            plan.steps,
            sections.rendered(),
            insert_method=settings.insert_method,
            renderer=settings.renderer,
            depends_on_query={name: block.depends_on_query for name, block in core.definitions.items()},
            section_messages=sections.messages(),
            tags=core.definitions,
            start_on_user=settings.start_on_user,
        )
        tokens = _count(core, plan.steps, messages)
        needed = sum(tokens)
        if needed <= settings.budget:
            return plan, messages, tokens
        # What rendering adds to the plan; a plan with room to spare would not notice the excess alone.
        request = replace(request, slack=max(request.slack + needed - settings.budget, needed - plan.tokens))
    contributors = sorted(((read.name, read.tokens) for read in sections.reads), key=lambda pair: -pair[1])
    raise BudgetExceededError(budget=settings.budget, needed=needed, contributors=tuple(contributors))


def _count(core: Core, steps: Sequence[ViewStep], messages: Sequence[ChatMessage]) -> list[int]:
    """The cost of each finished message: stored counts for those that are shown as stored, new ones for the others."""
    shown = [message for step in steps for message in step.messages]
    costs = [cost for step in steps for cost in step.tokens]
    if len(shown) == len(messages) and all(map(operator.is_, shown, messages)):
        return costs
    known = dict(zip(map(id, shown), costs, strict=True))
    return [known[id(message)] if id(message) in known else core.counter.message(message) for message in messages]


# -- the account -------------------------------------------------------------------------------------------------


def _receipt(
    turn: _Turn,
    sections: Sections,
    plan: ContextPlan,
    messages: Sequence[ChatMessage],
    tokens: Sequence[int],
    previous: Shown,
    latency: float,
) -> Receipt:
    settings = turn.session.core.settings
    total = sum(tokens)
    return Receipt(
        session_id=turn.session.spec.session_id,
        token_limit=settings.token_limit,
        reserved_tokens=settings.reserved_tokens,
        budget=settings.budget,
        tokens=total,
        sources=(*_history_sources(turn, plan), *(_section_source(read) for read in sections.reads)),
        left_out=tuple(LeftOutMessages(item.seqs, item.tokens, item.reason) for item in plan.left_out),
        shortened=tuple(plan.shortened),
        parked=tuple(
            ParkedReceipt(chunk.block, chunk.from_seq, chunk.to_seq, chunk.attempts, chunk.error)
            for chunk in turn.snapshot.parked
        ),
        prefix_unchanged=sum(tokens[: previous.unchanged(messages)]),
        latency=latency,
        notes=_notes(turn),
    )


def _history_sources(turn: _Turn, plan: ContextPlan) -> list[SourceReceipt]:
    view, shown = turn.view, plan.steps
    sources = []
    if any(step.pinned for step in view):
        sources.append(_history_source("pinned", [s for s in view if s.pinned], [s for s in shown if s.pinned]))
        view, shown = tuple([s for s in view if not s.pinned]), tuple([s for s in shown if not s.pinned])
    sources.append(_history_source("history", view, shown))
    return sources


def _history_source(name: Literal["pinned", "history"], asked: Sequence[ViewStep], given: Sequence[ViewStep]) -> SourceReceipt:
    wanted = sum([step.total for step in asked])
    got = wanted if given is asked else sum([step.total for step in given])
    outcome = "whole" if wanted == got else "left out the oldest" if len(given) < len(asked) else "shortened"
    count = sum([len(step.messages) for step in given])
    return SourceReceipt(name, name, wanted, got, count, outcome=outcome)


def _section_source(read: SectionRead) -> SourceReceipt:
    return SourceReceipt(
        name=read.name,
        kind="section",
        asked=read.asked,
        given=read.tokens,
        messages=len(read.messages),
        priority=read.definition.priority,
        outcome=read.outcome,
        latency=read.latency,
        error=read.error,
        lag=read.lag,
        attempts=read.attempts,
        notes=() if read.bound is None else tuple(read.bound.context.notes),
        usage=read.bound.context.usage if read.bound is not None and read.bound.context.usage.calls else None,
    )


def _notes(turn: _Turn) -> tuple[str, ...]:
    if turn.row is None:
        return ("this session has no messages yet",)
    return ()
