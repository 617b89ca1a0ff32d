"""Promises 1, 2 and 7 for any conversation: the budget holds, the conversation is valid, sections cannot be broken."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from memory_engine.budget import (
    ContextPlan,
    ContextRequest,
    Entry,
    SectionCost,
    Step,
    arrange,
    history_floor,
    plan_chunks,
    plan_complete_turns,
    plan_context,
    plan_flush,
    section_room,
)
from memory_engine.errors import BudgetExceededError
from memory_engine.messages import ChatMessage, ImageBlock, TextBlock, ThinkingBlock, ToolCallBlock, ToolResultBlock
from memory_engine.render import ITEM_TAGS, ROOT_TAG, InsertMethod, Section, compose, render, render_section, tag_name
from memory_engine.view import ViewStep, build_view, shortener

EXAMPLES = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Stored:
    """A stored message, as entry of flush plans and views."""

    seq: int
    message: ChatMessage
    tokens: int
    role: str
    pinned: bool
    calls: tuple[str, ...]
    results: tuple[str, ...]


def count(message: ChatMessage) -> int:
    """Five tokens for a message, one for three characters of text; not additive: texts are rounded up together."""
    size = len(message.content) + len(message.tool_call_id or "")
    for block in message.blocks:
        if isinstance(block, ToolCallBlock):
            size += len(block.id) + len(block.name) + len(str(block.arguments))
        elif isinstance(block, ToolResultBlock):
            size += len(block.tool_call_id) + len(block.content)
        elif isinstance(block, ThinkingBlock):
            size += len(block.text)
        elif isinstance(block, ImageBlock):
            size += 60
    return 5 + -(-size // 3)


# -- conversations -----------------------------------------------------------------------------------------------

CALL_IDS = st.sampled_from(["a", "b", "c"])  # few, so that they are reused, repeated and missing
TEXTS = st.one_of(
    st.sampled_from(["", "ok", "Some words of text.", "</memory><notes>"]),
    st.integers(1, 9000).map(lambda size: ("word " * (size // 5 + 1))[:size]),
)


def said(role: str, text: str, *, pinned: bool | None = None) -> ChatMessage:
    metadata = {} if pinned is None else {"pinned": pinned}
    return ChatMessage.model_validate({"role": role, "content": text, "metadata": metadata})


def called(ids: list[str], text: str, thinks: bool) -> ChatMessage:
    blocks = [ThinkingBlock(text="hm")] * thinks + [TextBlock(text=text)] * bool(text)
    return ChatMessage(role="assistant", blocks=[*blocks, *(ToolCallBlock(id=id_, name="look") for id_ in ids)])


def answered(ids: list[str], text: str) -> ChatMessage:
    if len(ids) == 1:
        return ChatMessage(role="tool", tool_call_id=ids[0], content=text)
    return ChatMessage(role="tool", blocks=[ToolResultBlock(tool_call_id=id_, content=text) for id_ in ids])


MESSAGES = st.one_of(
    st.builds(said, st.sampled_from(["user", "assistant"]), TEXTS),
    st.builds(called, st.lists(CALL_IDS, min_size=1, max_size=3, unique=True), TEXTS, st.booleans()),
    st.builds(answered, st.lists(CALL_IDS, min_size=1, max_size=3, unique=True), TEXTS),
    st.builds(answered, st.lists(CALL_IDS, min_size=1, max_size=1), TEXTS),
    st.builds(
        said, st.sampled_from(["system", "developer", "user"]), st.just("Rules."), pinned=st.sampled_from([None, True, False])
    ),
)


def stored(messages: Iterable[ChatMessage]) -> list[Stored]:
    """As a store keeps them: numbered with gaps, counted; a pinned assistant message pins its turn's user message."""
    rows = []
    for number, given_message in enumerate(messages):
        message = given_message.model_copy(update={"id": f"m{number}"})
        calls = tuple(call.id for call in message.tool_calls)
        rows.append(Stored(2 * number, message, count(message), message.role, message.pinned, calls, message.tool_results))
    return rows


CONVERSATIONS = st.lists(MESSAGES, max_size=25).map(stored)


def request_of(rows: Sequence[Stored], horizon: int, lag_from: int, **fields: object) -> ContextRequest:
    """The request for what the store shows at a horizon, with lagging messages from `lag_from`."""
    users = [row.seq for row in rows if row.role == "user"]
    turn_seq = users[-1] if users else None
    shown = [row for row in rows if row.seq >= min(horizon, lag_from) or row.pinned or row.seq == turn_seq]
    steps = build_view(shown, count, max_tool_result_tokens=200, turn_seq=turn_seq)
    opened = [step.first_seq for step in arrange(shown) if step.open]
    base = ContextRequest(0, 0.7, steps, horizon, turn_seq, open_from=min(opened, default=None), shorten=shortener(count))
    return replace(base, **fields)  # type: ignore[arg-type]


SECTIONS = st.lists(
    st.builds(
        lambda name, priority, text, tag: (Section(name, (TextBlock(text=text, tag=tag), ImageBlock(url="x:y"))), priority),
        st.sampled_from(["notes", "facts", "user_facts"]),
        st.integers(0, 3),
        TEXTS.filter(bool),
        st.sampled_from([None, "fact"]),
    ),
    max_size=3,
    unique_by=lambda pair: pair[0].name,
)


def fitted(
    request: ContextRequest, sections: dict[Section, int], insert_method: InsertMethod
) -> tuple[ContextPlan, tuple[ChatMessage, ...]]:
    """What a caller does: plan, cut, plan, compose, count, and again with the excess as slack."""
    left = dict(sections)
    slack = 0
    for _ in range(200):
        costs = [SectionCost(section.name, priority, count_text(section)) for section, priority in left.items()]
        plan = plan_context(replace(request, sections=costs, slack=slack))
        for cut in plan.cuts:
            section = next(each for each in left if each.name == cut.name)
            priority = left.pop(section)
            assert priority > 0
            shorter = section.text[: -cut.tokens * 3 - 40]
            if shorter.strip():
                left[Section(section.name, (TextBlock(text=shorter),))] = priority
        if plan.cuts:
            continue
        messages = compose(plan.steps, list(left), insert_method=insert_method, start_on_user=request.start_on_user)
        excess = sum(map(count, messages)) - request.budget
        if excess <= 0:
            return plan, messages
        slack += excess
    raise AssertionError("no end")


def count_text(section: Section) -> int:
    return count(said("user", render_section(section)))


def assert_valid(messages: Sequence[ChatMessage], *, start_on_user: bool) -> None:
    """Results directly behind their call, each once, none missing; a user message first."""
    queue = deque(messages)
    started = False
    while queue:
        message = queue.popleft()
        assert message.role != "tool", "a result without its call"
        if message.role not in ("system", "developer"):
            assert started or not start_on_user or message.role == "user"
            started = True
        waiting = [call.id for call in message.tool_calls]
        while waiting:
            assert queue and queue[0].role == "tool", "a call without its result"
            for call_id in queue.popleft().tool_results:
                waiting.remove(call_id)


@EXAMPLES
@given(
    rows=CONVERSATIONS,
    at=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    budget=st.integers(-5, 3000),
    ratio=st.floats(0, 1),
    max_turns=st.one_of(st.none(), st.integers(0, 3)),
    start_on_user=st.booleans(),
    sections=SECTIONS,
    insert_method=st.sampled_from(["system", "user", "split"]),
)
def test_budget_holds_and_the_conversation_is_valid(
    *,
    rows: list[Stored],
    at: tuple[int, int],
    budget: int,
    ratio: float,
    max_turns: int | None,
    start_on_user: bool,
    sections: list[tuple[Section, int]],
    insert_method: InsertMethod,
) -> None:
    request = request_of(rows, max(at), min(at), budget=budget, ratio=ratio, max_turns=max_turns, start_on_user=start_on_user)
    try:
        plan, messages = fitted(request, dict(sections), insert_method)
    except BudgetExceededError as error:
        assert error.needed > error.budget == budget
        assert_needed(request, sections)
        return
    assert sum(map(count, messages)) <= budget
    assert_valid(messages, start_on_user=start_on_user)
    assert_complete(request, plan)


def assert_needed(request: ContextRequest, sections: Sequence[tuple[Section, int]]) -> None:
    """The error is only raised when little more than what may never be cut is above the budget."""
    never = [count_text(section) for section, priority in sections if priority == 0]
    steps = [step for step in request.steps if step.pinned or step.seqs[0] == request.turn_seq]
    newest = [step for step in request.steps if step.turn == request.steps[-1].turn][-1:]
    most = sum(step.total for step in {*steps, *newest}) + sum(never)
    assert most + 60 * (len(never) + 3) > request.budget


def assert_complete(request: ContextRequest, plan: ContextPlan) -> None:
    """Every step is shown or accounted for; the pinned and the current request are shown; order is kept."""
    shown = [seq for step in plan.steps for seq in step.seqs]
    left_out = [seq for out in plan.left_out for seq in out.seqs]
    assert sorted([*shown, *left_out]) == sorted(seq for step in request.steps for seq in step.seqs)
    assert all(a.seqs[0] < b.seqs[0] for a, b in pairwise(plan.steps))
    for step in request.steps:
        if step.pinned and (step.role in ("system", "developer", "user") or not request.start_on_user):
            assert step.seqs[0] in shown
        if step.seqs[0] == request.turn_seq and request.max_turns != 0:
            assert step.seqs[0] in shown
    if plan.flush_to is not None:
        assert_flushable(request, plan, set(shown))


def assert_flushable(request: ContextRequest, plan: ContextPlan, shown: set[int]) -> None:
    """Flushing takes nothing from sight, splits nothing, and keeps open calls."""
    assert plan.flush_to is not None and plan.flush_to > request.horizon
    assert request.open_from is None or plan.flush_to <= request.open_from
    for step in request.steps:
        active = step.seqs[-1] >= request.horizon and not step.pinned
        gone = step.seqs[-1] < plan.flush_to
        assert gone or step.seqs[0] >= plan.flush_to or step.seqs[0] < request.horizon
        assert not (active and gone and step.seqs[0] in shown) or step.seqs[0] == request.turn_seq


@EXAMPLES
@given(rows=CONVERSATIONS, at=st.integers(0, 50), budget=st.integers(0, 3000), used=st.floats(0, 1))
def test_the_floor_is_shown_whatever_sections_use(rows: list[Stored], at: int, budget: int, used: float) -> None:
    request = request_of(rows, at, at, budget=budget)
    room = section_room(request)
    try:
        plan = plan_context(replace(request, sections=[SectionCost("any", 1, int(used * room))]))
    except BudgetExceededError:
        return
    assert plan.cuts == ()
    assert set(history_floor(request)) <= {seq for step in plan.steps for seq in step.seqs}


@EXAMPLES
@given(rows=CONVERSATIONS, budget=st.integers(0, 3000))
def test_plans_are_deterministic(rows: list[Stored], budget: int) -> None:
    def outcome() -> object:
        try:
            return plan_context(request_of(rows, 0, 0, budget=budget))
        except BudgetExceededError as error:
            return error.contributors

    assert outcome() == outcome()


# -- flushing ----------------------------------------------------------------------------------------------------


def straddlers(steps: Iterable[Step], cut: int) -> list[Step]:
    return [step for step in steps if step.first_seq < cut <= step.last_seq]


@EXAMPLES
@given(
    rows=CONVERSATIONS,
    threshold=st.integers(0, 2000),
    flush_size=st.integers(1, 500),
    max_turns=st.one_of(st.none(), st.integers(0, 4)),
)
def test_flushes_of_a_growing_conversation(rows: list[Stored], threshold: int, flush_size: int, max_turns: int | None) -> None:
    horizon = 0
    turn_seq = None
    for number, row in enumerate(rows, start=1):
        turn_seq = row.seq if row.role == "user" else turn_seq
        active = [entry for entry in rows[:number] if entry.seq >= horizon]
        tokens = sum(entry.tokens for entry in active if not entry.pinned)
        turns = sum(entry.role == "user" for entry in active)
        cut = plan_flush(
            active,
            threshold=threshold,
            flush_size=flush_size,
            active_tokens=tokens,
            max_turns=max_turns,
            active_turns=turns,
            horizon=horizon,
            turn_seq=turn_seq,
        )
        over = tokens > threshold or (max_turns is not None and turns > max_turns)
        steps = arrange(active)
        if cut is None:
            assert tokens <= threshold or not could_flush(steps, turn_seq)
            continue
        assert over and horizon < cut <= row.seq
        assert straddlers(steps, cut) == []
        assert all(step.first_seq >= cut for step in steps if step.open)
        newest = [step for step in steps if not step.hidden and not step.pinned][-1:]
        assert all(step.first_seq >= cut for step in newest)
        gone = [entry for entry in active if entry.seq < cut]
        if turn_seq is not None and cut > turn_seq >= horizon:
            assert sum(entry.tokens for entry in active if entry.seq < turn_seq and not entry.pinned) < tokens - threshold or (
                straddlers(steps, turn_seq)
            )
        assert_chunks(gone, flush_size)
        horizon = cut


def could_flush(steps: Sequence[Step], turn_seq: int | None) -> bool:
    """Is there a horizon that would take something, besides the current user message alone?"""
    newest = [step.first_seq for step in steps if not step.hidden and not step.pinned][-1:]
    opened = [step.first_seq for step in steps if step.open][:1]
    limit = min([*newest, *opened], default=10**9)
    if turn_seq is not None and turn_seq >= steps[0].first_seq:
        starts = [step.first_seq for step in steps if step.is_user or step.first_seq > turn_seq]
    else:
        starts = [step.first_seq for step in steps]
    for start in starts:
        taken = [step for step in steps if step.first_seq < start and not step.pinned]
        useful = any(step.first_seq != turn_seq for step in taken)
        if start <= limit and useful and not straddlers(steps, start):
            return True
    return False


def assert_chunks(rows: Sequence[Stored], flush_size: int) -> None:
    ends = plan_chunks(rows, flush_size=flush_size)
    assert ends[-1] == rows[-1].seq + 1
    assert list(ends) == sorted(set(ends))
    weight = sum(row.tokens for row in rows if not row.pinned and row.role not in ("system", "developer"))
    assert len(ends) <= max(1, weight // flush_size)
    steps = arrange(rows, closed=True)
    assert all(straddlers(steps, end) == [] for end in ends)
    parts = [[row for row in rows if start <= row.seq < end] for start, end in pairwise((0, *ends))]
    assert [row for part in parts for row in part] == list(rows)
    assert all(parts)


@EXAMPLES
@given(rows=CONVERSATIONS.filter(bool), flush_size=st.integers(1, 2000))
def test_chunks_cover_a_flush_and_split_no_step(rows: list[Stored], flush_size: int) -> None:
    assert_chunks(rows, flush_size)


@EXAMPLES
@given(rows=CONVERSATIONS)
def test_complete_turns(rows: list[Stored]) -> None:
    steps = arrange(rows)
    cut = plan_complete_turns(rows)
    users = [row.seq for row in rows if row.role == "user"]
    if cut is not None:
        assert cut in users and straddlers(steps, cut) == []
        assert all(not step.open or step.first_seq >= cut for step in steps)
    final = plan_complete_turns(rows, final=True)
    assert final == (rows[-1].seq + 1 if any(not row.pinned for row in rows) else None)


@EXAMPLES
@given(rows=CONVERSATIONS, closed=st.booleans())
def test_steps_hold_every_entry_once_and_pair_every_call_once(rows: list[Stored], closed: bool) -> None:
    steps = arrange(rows, closed=closed)
    assert sorted(entry.seq for step in steps for entry in step.entries) == [row.seq for row in rows]
    firsts = [step.first_seq for step in steps]
    assert firsts == sorted(firsts)
    for step in steps:
        assert len(set(step.pairs)) == len(step.pairs) == len({(p.result_seq, p.call_id) for p in step.pairs})
        assert all(pair.call_seq < pair.result_seq for pair in step.pairs)
        assert not (closed and step.open)


@EXAMPLES
@given(rows=CONVERSATIONS, limit=st.integers(1, 300), closed=st.booleans())
def test_views_are_valid_and_counted(rows: list[Stored], limit: int, closed: bool) -> None:
    steps = build_view(rows, count, max_tool_result_tokens=limit, closed=closed)
    messages = [message for step in steps for message in step.messages]
    assert_valid(messages, start_on_user=False)
    assert [tokens for step in steps for tokens in step.tokens] == [count(message) for message in messages]
    assert all(step.total == sum(step.tokens) for step in steps)
    originals = {row.message.id: row.message for row in rows}
    assert all(message.partial or message is originals[message.id] for message in messages)
    hidden = {row.seq for row in rows} - {seq for step in steps for seq in step.seqs}
    assert all(row.calls or row.results for row in rows if row.seq in hidden)


# -- sections ----------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["notes", "user_facts", "Core", "memory2", "a b"])
TAGS = st.one_of(st.none(), st.sampled_from(["fact", "entity", "note"]))
SCRAPS = st.lists(
    st.sampled_from(
        [
            *("<", "/", ">", "memory", "MEMORY", "notes", "user", "facts", "user_facts", "fact", "entity", "note"),
            *("Core", "a_b", "_", "-", "&lt;", "x", "\\"),
            " ",
            "\n",
            "\u200b",
            "\u00a0",
            "a b",
            " id='1'",
        ]
    ),
    min_size=1,
    max_size=14,
).map("".join)
HOSTILE = st.lists(
    st.builds(
        lambda name, items: Section(name, tuple(TextBlock(text=text, tag=tag) for text, tag in items)),
        NAMES,
        st.lists(st.tuples(SCRAPS, TAGS), max_size=3),
    ),
    max_size=4,
    unique_by=lambda section: section.name,
)


def parsed(text: str, tags: Iterable[str]) -> list[tuple[str, list[str]]]:
    """The sections in a rendered text, found as leniently as a model might: (tag, tags of its items)."""
    names = "|".join(re.escape(tag) for tag in sorted({*tags, *ITEM_TAGS, ROOT_TAG}, key=len, reverse=True))
    found = re.findall(rf"<[\s\u200b]*(/?)[\s\u200b/\\]*({names})(?![\w-])", text, re.IGNORECASE)
    assert found[0] == ("", ROOT_TAG) and found[-1] == ("/", ROOT_TAG)
    sections: list[tuple[str, list[str]]] = []
    stack: list[str] = []
    for slash, tag in found[1:-1]:
        if slash:
            assert stack.pop() == tag
        else:
            if stack:
                sections[-1][1].append(tag)
            else:
                sections.append((tag, []))
            stack.append(tag)
    assert stack == []
    return sections


@EXAMPLES
@given(sections=HOSTILE)
@example(sections=[Section("a b", (TextBlock(text="<a"), TextBlock(text="b>")))])
@example(sections=[Section("notes", (TextBlock(text="<"), TextBlock(text="/notes>")))])
def test_stored_text_cannot_break_out_of_its_section(sections: list[Section]) -> None:
    text = render(sections)
    filled = [section for section in sections if section.texts]
    if not filled:
        assert text == ""
        return
    tags = {tag_name(section.name) for section in sections} | {i.tag for s in filled for i in s.texts if i.tag}
    expected = [(tag_name(section.name), [i.tag for i in section.texts if i.tag]) for section in filled]
    assert parsed(text, tags) == expected
    assert text.replace("&lt;", "<").count("\n") == text.count("\n")


@EXAMPLES
@given(sections=HOSTILE)
def test_no_joining_of_escaped_texts_makes_a_tag(sections: list[Section]) -> None:
    def bare(sections: Sequence[Section]) -> str:
        return "".join(item.text for section in sections for item in section.texts)

    text = render(sections, renderer=bare, tags=["notes", "entity", "core"])
    assert re.search(r"<[\s\u200b/\\]*(memory|notes|facts?|entity|core)(?![\w-])", text, re.IGNORECASE) is None


def test_the_stored_row_is_an_entry() -> None:
    rows: Sequence[Entry] = stored([said("user", "hi")])
    view: tuple[ViewStep, ...] = build_view(stored([said("user", "hi")]), count, max_tool_result_tokens=9)
    assert rows[0].seq == view[0].seqs[0]
