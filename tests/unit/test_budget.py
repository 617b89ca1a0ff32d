"""Examples of what `budget` decides: grouping into steps, flushes and their chunks, what a context shows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from memory_engine.budget import (
    OVER_BUDGET,
    OVER_MAX_TURNS,
    WITHOUT_USER_MESSAGE,
    ContextPlan,
    ContextRequest,
    SectionCost,
    ViewStep,
    arrange,
    history_floor,
    plan_chunks,
    plan_complete_turns,
    plan_context,
    plan_flush,
    section_room,
)
from memory_engine.errors import BudgetExceededError
from memory_engine.messages import ChatMessage


@dataclass(frozen=True)
class Row:
    seq: int
    role: str
    tokens: int = 10
    pinned: bool = False
    calls: tuple[str, ...] = ()
    results: tuple[str, ...] = ()


def rows(script: str, tokens: int = 10) -> list[Row]:
    """`u` user, `a` assistant, `s` pinned system, `c:x+y` a call of x and y, `r:x` a result for x; a number sets the cost."""
    roles = {"u": "user", "a": "assistant", "s": "system", "c": "assistant", "r": "tool"}
    made = []
    for seq, word in enumerate(script.split()):
        kind, _, rest = word.partition(":")
        ids, _, cost = rest.partition("=")
        names = tuple(ids.split("+")) if ids else ()
        calls, results = (names, ()) if kind == "c" else ((), names)
        made.append(Row(seq, roles[kind], int(cost or tokens), kind == "s", calls, results))
    return made


def shape(script: str, *, closed: bool = False) -> list[str]:
    """Steps as text: the seqs, then `o` for open and `h` for hidden."""
    return [
        "-".join(str(entry.seq) for entry in step.entries) + "o" * step.open + "h" * step.hidden
        for step in arrange(rows(script), closed=closed)
    ]


class TestArrange:
    def test_a_call_and_its_results_are_one_step(self) -> None:
        assert shape("u c:x+y r:y r:x a") == ["0", "1-2-3", "4"]

    def test_a_call_without_a_result_is_open_until_the_next_user_message(self) -> None:
        assert shape("u c:x+y r:x") == ["0", "1-2o"]
        assert shape("u c:x+y r:x u") == ["0", "1-2", "3"]
        assert shape("u c:x", closed=True) == ["0", "1"]

    def test_a_late_result_joins_its_call_across_a_user_message(self) -> None:
        assert shape("u c:x u a r:x") == ["0", "1-4", "2", "3"]

    def test_results_without_a_waiting_call_are_hidden(self) -> None:
        assert shape("u r:x c:x r:x r:x") == ["0", "1h", "2-3", "4h"]

    def test_a_reused_id_belongs_to_the_nearest_unanswered_call(self) -> None:
        assert shape("u c:x r:x u c:x r:x") == ["0", "1-2", "3", "4-5"]
        assert shape("u c:x u c:x r:x") == ["0", "1", "2", "3-4"]

    def test_one_message_answering_two_calls_ties_them_together(self) -> None:
        steps = arrange(rows("u c:x c:y a r:x+y"))
        assert [tuple(entry.seq for entry in step.entries) for step in steps] == [(0,), (1, 2, 4), (3,)]
        assert steps[1].answered == {"x", "y"}
        assert steps[1].tokens == 30

    def test_turns_count_user_messages(self) -> None:
        assert [step.turn for step in arrange(rows("s a u a u"))] == [0, 0, 1, 1, 2]


def flush(script: str, *, threshold: int, size: int = 1, max_turns: int | None = None, horizon: int = 0) -> int | None:
    every = rows(script)
    users = [row.seq for row in every if row.role == "user"]
    active = [row for row in every if row.seq >= horizon]
    return plan_flush(
        active,
        threshold=threshold,
        flush_size=size,
        active_tokens=sum(row.tokens for row in active if not row.pinned),
        max_turns=max_turns,
        active_turns=sum(row.role == "user" for row in active),
        horizon=horizon,
        turn_seq=users[-1] if users else None,
    )


class TestPlanFlush:
    def test_nothing_happens_at_the_threshold(self) -> None:
        assert flush("u a u a", threshold=40) is None

    def test_whole_turns_leave_until_the_rest_fits_and_enough_is_gone(self) -> None:
        assert flush("u a u a u a", threshold=50) == 2
        assert flush("u a u a u a", threshold=50, size=30) == 4

    def test_all_complete_turns_leave_before_the_current_one_is_touched(self) -> None:
        assert flush("u a u a a a", threshold=50, size=30) == 2
        assert flush("u a u a a a", threshold=25, size=1) == 4

    def test_the_newest_step_stays_whatever_it_costs(self) -> None:
        assert flush("u a:=900", threshold=50) is None
        assert flush("u:=900", threshold=50) is None
        assert flush("u:=900 a", threshold=50) == 1
        assert flush("u a u c:x r:x=900", threshold=50) == 2

    def test_an_open_call_of_the_current_turn_stays_and_all_behind_it(self) -> None:
        assert flush("u c:x r:x c:y a a a", threshold=20) == 3

    def test_an_open_call_of_an_earlier_turn_may_leave(self) -> None:
        assert flush("u c:x u a", threshold=30) == 2

    def test_a_late_result_is_never_parted_from_its_call(self) -> None:
        assert flush("u c:x u a r:x a a a", threshold=30) == 5

    def test_pinned_messages_weigh_nothing(self) -> None:
        assert flush("s:=900 u a", threshold=30) is None
        assert flush("s:=900 u a u a", threshold=30) == 3

    def test_surplus_turns_leave_without_a_flush_size(self) -> None:
        assert flush("u a u a u a", threshold=900, size=50, max_turns=2) == 2
        assert flush("u a u a u a", threshold=900, size=50, max_turns=0) == 4

    def test_a_turn_that_began_below_the_horizon_goes_on_leaving_step_by_step(self) -> None:
        assert flush("u a a a a a", threshold=20, horizon=2) == 4

    def test_a_conversation_without_user_messages(self) -> None:
        assert flush("a a a a", threshold=20) == 2
        assert flush("s s", threshold=0) is None
        assert plan_flush([], threshold=0, flush_size=1, active_tokens=0, horizon=0) is None

    def test_results_nobody_waits_for_leave_too(self) -> None:
        assert flush("u r:x r:x u", threshold=20) == 3


class TestPlanCompleteTurns:
    @pytest.mark.parametrize(
        ("script", "complete", "final"),
        [
            ("", None, None),
            ("s", None, None),
            ("u a", None, 2),
            ("u a u a", 2, 4),
            ("a a", None, 2),
            ("s u a u", 3, 4),
            ("u c:x u r:x", None, 4),
            ("u a u c:x u r:x", 2, 6),
        ],
    )
    def test_horizon(self, script: str, complete: int | None, final: int | None) -> None:
        assert plan_complete_turns(rows(script)) == complete
        assert plan_complete_turns(rows(script), final=True) == final


class TestPlanChunks:
    def test_parts_are_about_equal(self) -> None:
        assert plan_chunks(rows("u a u a u a u a"), flush_size=20) == (2, 4, 6, 8)
        assert plan_chunks(rows("u a u a u a u a"), flush_size=39) == (4, 8)
        assert plan_chunks(rows("u a u"), flush_size=100) == (3,)

    def test_steps_are_not_split(self) -> None:
        assert plan_chunks(rows("u c:x r:x c:y r:y a"), flush_size=10) == (1, 3, 5, 6)
        assert plan_chunks(rows("u c:x u a r:x"), flush_size=10) == (1, 5)

    def test_pinned_and_system_messages_weigh_nothing(self) -> None:
        assert plan_chunks(rows("s:=900 u a s:=900"), flush_size=10) == (2, 4)

    def test_a_giant_step_stays_whole(self) -> None:
        assert plan_chunks(rows("u a:=1000 u"), flush_size=100) == (1, 2, 3)

    def test_nothing(self) -> None:
        assert plan_chunks([], flush_size=10) == ()


def view(script: str, tokens: int = 10) -> tuple[ViewStep, ...]:
    """View steps for a script of `u`, `a`, `s` and `p` (pinned user message) and `q` (pinned assistant)."""
    roles = {"u": "user", "a": "assistant", "s": "system", "p": "user", "q": "assistant"}
    steps = []
    turn = 0
    for seq, word in enumerate(script.split()):
        kind, _, cost = word.partition("=")
        role = roles[kind]
        turn += role == "user"
        total = int(cost or tokens)
        message = ChatMessage.model_validate({"role": role, "content": "x" * total, "id": str(seq)})
        steps.append(ViewStep((seq,), (message,), (total,), turn, kind in "spq", role == "user", role, total))
    return tuple(steps)


def shorten(message: ChatMessage, limit: int) -> tuple[ChatMessage, int]:
    kept = min(len(message.content), max(limit, 12))
    return message.model_copy(update={"content": "y" * kept, "partial": True}), kept


def request(script: str, budget: int, **fields: object) -> ContextRequest:
    steps = view(script)
    users = [step.seqs[0] for step in steps if step.is_user]
    base = ContextRequest(budget, 0.5, steps, 0, users[-1] if users else None, shorten=shorten)
    return replace(base, **fields)  # type: ignore[arg-type]


def seqs(plan: ContextPlan) -> list[int]:
    return [seq for step in plan.steps for seq in step.seqs]


class TestPlanContext:
    def test_everything_fits(self) -> None:
        asked = request("s u a u", 100, sections=(SectionCost("facts", 1, 60),))
        plan = plan_context(asked)
        assert plan.steps == asked.steps
        assert (plan.cuts, plan.left_out, plan.flush_to, plan.tokens) == ((), (), None, 100)

    def test_older_turns_are_left_out_wholly_and_without_holes(self) -> None:
        plan = plan_context(request("u u a=40 u a u", 45))
        assert seqs(plan) == [3, 4, 5]
        assert [(out.seqs, out.tokens, out.reason) for out in plan.left_out] == [((0, 1, 2), 60, OVER_BUDGET)]
        assert plan.flush_to == 3

    def test_without_start_on_user_single_steps_are_left_out(self) -> None:
        assert seqs(plan_context(request("u a u a u", 40, start_on_user=False))) == [1, 2, 3, 4]

    def test_in_the_current_turn_the_user_message_and_the_newest_steps_stay(self) -> None:
        plan = plan_context(request("u a u a a a a", 45))
        assert seqs(plan) == [2, 4, 5, 6]
        assert plan.flush_to == 4

    def test_flush_to_stops_at_open_calls(self) -> None:
        assert plan_context(request("u a u a a a a", 30, open_from=4)).flush_to == 4
        assert plan_context(request("u a u a a a a", 30, open_from=0)).flush_to is None

    def test_pinned_messages_stay_in_their_place(self) -> None:
        assert seqs(plan_context(request("s u a s u a u", 45))) == [0, 3, 6]
        assert seqs(plan_context(request("s p q u a u", 40))) == [0, 1, 2, 5]

    def test_a_pinned_assistant_message_cannot_come_first(self) -> None:
        plan = plan_context(request("u q u a u", 30))
        assert seqs(plan) == [4]
        assert plan.left_out[-1].reason in (OVER_BUDGET, WITHOUT_USER_MESSAGE)

    def test_history_starts_at_a_user_message(self) -> None:
        plan = plan_context(request("s a a u a", 900))
        assert seqs(plan) == [0, 3, 4]
        assert [(out.seqs, out.reason) for out in plan.left_out] == [((1, 2), WITHOUT_USER_MESSAGE)]
        assert plan.flush_to == 3
        assert seqs(plan_context(request("s a a u a", 900, start_on_user=False))) == [0, 1, 2, 3, 4]

    def test_no_user_message_at_all(self) -> None:
        plan = plan_context(request("s a a", 900))
        assert (seqs(plan), plan.flush_to) == ([0], 2)
        assert seqs(plan_context(request("a a a", 25, start_on_user=False))) == [1, 2]
        assert seqs(plan_context(request("", 0))) == []

    def test_max_turns(self) -> None:
        plan = plan_context(request("s u a u a u", 900, max_turns=2))
        assert seqs(plan) == [0, 3, 4, 5]
        assert [(out.seqs, out.reason) for out in plan.left_out] == [((1, 2), OVER_MAX_TURNS)]
        assert plan.flush_to == 3
        assert seqs(plan_context(request("s u a u", 900, max_turns=0))) == [0]
        assert seqs(plan_context(request("s u a u", 900, max_turns=2))) == [0, 1, 2, 3]

    def test_a_budget_for_nothing(self) -> None:
        assert plan_context(request("", 0)).steps == ()
        for budget in (0, -5):
            with pytest.raises(BudgetExceededError):
                plan_context(request("u", budget))
        with pytest.raises(BudgetExceededError):
            plan_context(request("", -5))

    def test_the_error_names_the_largest_contributors(self) -> None:
        with pytest.raises(BudgetExceededError) as caught:
            plan_context(request("s=50 u=90 a=20", 100, sections=(SectionCost("core", 0, 60),), slack=3))
        assert caught.value.contributors[:3] == (
            ("user message, seq 1", 90),
            ("section 'core'", 60),
            ("pinned system message, seq 0", 50),
        )
        assert caught.value.needed == 50 + 90 + 12 + 60 + 3  # with the answer as short as it can be

    def test_what_is_fixed_is_shortened_as_a_last_resort(self) -> None:
        plan = plan_context(request("u a=500", 100))
        assert plan.tokens == 100
        assert plan.shortened == (1,)
        assert plan.steps[1].messages[0].partial

    def test_the_largest_are_shortened_first(self) -> None:
        base = view("u=10 a=50 a=60")
        together = base[1]._replace(seqs=(1, 2), messages=base[1].messages + base[2].messages, tokens=(50, 60), total=110)
        plan = plan_context(request("", 110, steps=(base[0], together), turn_seq=0))
        assert plan.steps[1].tokens == (50, 50)

    def test_without_a_way_to_shorten_it_is_an_error(self) -> None:
        with pytest.raises(BudgetExceededError):
            plan_context(request("u a=500", 100, shorten=None))


class TestSections:
    costs = (
        SectionCost("core", 0, 20),
        SectionCost("facts", 1, 30),
        SectionCost("notes", 2, 30),
        SectionCost("vectors", 2, 30),
    )

    def test_the_largest_priority_number_is_cut_first_and_zero_never(self) -> None:
        plan = plan_context(request("u a u a u", 100, sections=self.costs))
        assert [(cut.name, cut.tokens) for cut in plan.cuts] == [("vectors", 30), ("notes", 30)]
        assert plan.steps == ()
        fitted = plan_context(request("u a u a u", 100, sections=self.costs[:2]))
        assert (fitted.cuts, fitted.tokens) == ((), 100)
        over = plan_context(request("u a u a u", 30, sections=self.costs))
        assert [cut.name for cut in over.cuts] == ["vectors", "notes", "facts"]

    def test_sections_may_use_what_history_does_not_need(self) -> None:
        assert plan_context(request("u", 100, sections=(SectionCost("facts", 1, 90),))).cuts == ()
        assert plan_context(request("u", 100, sections=(SectionCost("facts", 1, 91),))).cuts[0].tokens == 1

    def test_history_may_use_what_sections_do_not_need(self) -> None:
        assert seqs(plan_context(request("u=30 u=30 u=30", 100, sections=(SectionCost("facts", 1, 10),)))) == [0, 1, 2]

    def test_sections_of_priority_zero_push_history_out(self) -> None:
        plan = plan_context(request("u a u a u", 50, sections=(SectionCost("core", 0, 40),)))
        assert seqs(plan) == [4]

    def test_slack_is_kept_free(self) -> None:
        asked = request("u a u a u", 90, sections=(SectionCost("facts", 1, 40),))
        assert plan_context(asked).tokens == 90
        assert seqs(plan_context(replace(asked, slack=5))) == [2, 3, 4]  # history was above its share
        assert plan_context(replace(asked, slack=9)).cuts[0].tokens == 4

    def test_sections_only(self) -> None:
        assert plan_context(request("", 50, sections=(SectionCost("facts", 0, 50),))).tokens == 50

    def test_room_and_floor(self) -> None:
        asked = request("s u a u a u", 60)
        assert section_room(asked) == 60 - 10 - 30
        assert history_floor(asked) == (0, 3, 4, 5)
        fits = request("s u a u", 100)
        assert (section_room(fits), history_floor(fits)) == (60, (0, 1, 2, 3))


class TestLagging:
    def test_lagging_turns_use_only_what_is_left_over(self) -> None:
        asked = request("u a u a u a", 100, horizon=4)
        assert seqs(plan_context(asked)) == [0, 1, 2, 3, 4, 5]
        plan = plan_context(replace(asked, sections=(SectionCost("facts", 3, 55),)))
        assert (plan.cuts, seqs(plan), plan.flush_to) == ((), [2, 3, 4, 5], None)

    def test_lagging_steps_of_the_current_turn_come_back_one_by_one(self) -> None:
        assert seqs(plan_context(request("u u a a a a", 45, horizon=4, turn_seq=1))) == [1, 3, 4, 5]

    def test_an_archived_user_message_leads_the_active_rest_of_its_turn(self) -> None:
        asked = request("u a a a u a", 45, horizon=3, turn_seq=4)
        assert seqs(plan_context(asked)) == [0, 3, 4, 5]
        assert seqs(plan_context(replace(asked, budget=55))) == [0, 2, 3, 4, 5]
        assert seqs(plan_context(replace(asked, budget=35))) == [4, 5]

    def test_lagging_steps_without_their_user_message_are_left_out(self) -> None:
        plan = plan_context(request("a a u a", 900, horizon=2))
        assert (seqs(plan), plan.flush_to) == ([2, 3], None)

    def test_everything_is_archived(self) -> None:
        assert seqs(plan_context(request("u a u a", 20, horizon=4, turn_seq=None))) == [2, 3]
