"""Evidence recall: of the turns that answer a question, how many are in the context that `get` returns at a budget?

    python benchmarks/recall.py [--locomo PATH] [--transcript FILE --questions FILE] [--quick] [--out FOLDER]

No model judges anything. What is measured, on which data, and how to use it on conversations of one's own is in
benchmarks/RECALL.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.contenders import Unavailable
from benchmarks.environment import environment
from benchmarks.recall_contenders import LangChain, LlamaIndex
from benchmarks.recall_data import Conversation, Dataset, Question, apollo13, lengthened, locomo, normal, own, with_unrelated
from benchmarks.recall_systems import EMBEDDINGS, Embedding, Fifo, Recall, Returned, System
from benchmarks.timing import collector_off, table

_PACKAGES = (
    "sqlalchemy",
    "numpy",
    "PyStemmer",
    "wordllama",
    "onnxruntime",
    "llama-index-core",
    "langchain-classic",
    "langchain-core",
)

BUDGETS = (1_000, 2_000, 4_000, 8_000)
RATIOS = (0.1, 0.7)
SYSTEMS = ("fifo", "lexical", "wordllama", "minilm", "llamaindex", "langchain")
OWN_SYSTEMS = SYSTEMS[:4]
QUICK_QUESTIONS = 10

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `embeddings` are those of the other libraries' systems; ours name theirs."""

    budgets: tuple[int, ...] = BUDGETS
    ratios: tuple[float, ...] = RATIOS
    systems: tuple[str, ...] = SYSTEMS
    embeddings: tuple[str, ...] = ("minilm",)
    put: bool = False
    """Whether questions are put as messages, and `get` is called without a query."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One question asked: which of its evidence was there (`strictly`: without alternatives), and what it took."""

    question: Question
    conversation: str
    found: tuple[bool, ...]
    strictly: tuple[bool, ...]
    tokens: int
    recalled: int
    seconds: float
    embedding: float

    @property
    def share(self) -> float:
        return sum(self.found) / len(self.found)


@dataclass(slots=True)
class Row:
    """All answers of one system at one budget on one dataset. `ratio` is None where there is no such setting."""

    dataset: str
    system: str
    ratio: float | None
    budget: int
    answers: list[Answer] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    """Seconds of the first question after opening, with cold caches."""

    def of(self, kind: str) -> list[Answer]:
        return [answer for answer in self.answers if answer.question.kind == kind]

    @property
    def recall(self) -> float:
        """The mean over the questions of the share of their evidence that was found, in %."""
        return _percent(answer.share for answer in self.of("answerable"))

    @property
    def all_found(self) -> float:
        return _percent(all(answer.found) for answer in self.of("answerable"))

    @property
    def silent(self) -> float:
        """The share of the questions with an answer for which nothing was recalled, in %."""
        return _percent(answer.recalled == 0 for answer in self.of("answerable"))

    @property
    def violations(self) -> int:
        return sum(answer.tokens > self.budget for answer in self.answers)


def _percent(values: Iterable[float]) -> float:
    given = list(values)
    return 100 * statistics.fmean(given) if given else math.nan


# -- set-up ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """A system to measure, with the ratio it is measured at."""

    ratio: float | None
    system: System


def entries(plan: Plan) -> tuple[list[Entry], list[str]]:
    """The systems of a plan, and why some are missing."""
    embeddings: dict[str, Embedding | None] = {}
    notes: list[str] = []

    def embedding(name: str) -> Embedding | None:
        if name not in embeddings:
            try:
                embeddings[name] = EMBEDDINGS[name]()
            except Unavailable as error:
                embeddings[name] = None
                notes.append(f"without the embedding {name}: it {error}")
        return embeddings[name]

    found: list[Entry] = []
    for ratio, maker in _makers(plan, embedding):
        try:
            found.append(Entry(ratio, maker()))
        except Unavailable as error:
            notes.append(f"a system was left out: it {error}")
    return found, list(dict.fromkeys(notes))


def _makers(plan: Plan, embedding: Callable[[str], Embedding | None]) -> Iterator[tuple[float | None, Callable[[], System]]]:
    wanted = plan.systems
    if "fifo" in wanted and not plan.put:
        yield None, Fifo
    for ratio in plan.ratios:
        yield from _ours(plan, ratio, embedding)
        if plan.put:
            continue  # the others' answers to a question that was put are another measurement
        models = [model for name in plan.embeddings if (model := embedding(name)) is not None] if _others(plan) else []
        for model in models:
            if "llamaindex" in wanted:
                yield ratio, partial(LlamaIndex, ratio, model)
                yield ratio, partial(LlamaIndex, ratio, model, tuned=True)
            if "langchain" in wanted:
                # With its defaults it has no share for history: measured once.
                if ratio == plan.ratios[0]:
                    yield None, partial(LangChain, ratio, model)
                yield ratio, partial(LangChain, ratio, model, tuned=True)


def _ours(
    plan: Plan, ratio: float, embedding: Callable[[str], Embedding | None]
) -> Iterator[tuple[float | None, Callable[[], System]]]:
    if "lexical" in plan.systems:
        yield ratio, partial(Recall, ratio, put=plan.put)
    for name in EMBEDDINGS:
        if name in plan.systems and (model := embedding(name)) is not None:
            yield ratio, partial(Recall, ratio, model, put=plan.put)


def _others(plan: Plan) -> bool:
    return bool({"llamaindex", "langchain"} & set(plan.systems))


# -- measuring ---------------------------------------------------------------------------------------------------------


async def measure(dataset: Dataset, plan: Plan, systems: Sequence[Entry], say: Say) -> list[Row]:
    """Every system on every conversation of a dataset at every budget."""
    rows: list[Row] = []
    for entry in systems:
        started = time.perf_counter()
        names = {way: label(entry.system, way) for way in entry.system.ways}
        of_system = [Row(dataset.name, name, entry.ratio, budget) for name in names.values() for budget in plan.budgets]
        found = {(row.system, row.budget): row for row in of_system}
        for conversation in dataset.conversations:
            await entry.system.prepare(conversation)
            try:
                for budget in plan.budgets:
                    await entry.system.limit(budget)
                    for way, name in names.items():
                        entry.system.use(way)
                        await _ask(conversation, entry.system, found[name, budget])
            finally:
                await entry.system.close()
        rows += of_system
        seconds = time.perf_counter() - started
        for name in names.values():
            line = " / ".join(f"{found[name, budget].recall:.1f}" for budget in plan.budgets)
            ratio = "" if entry.ratio is None else f", ratio {entry.ratio}"
            say(f"{dataset.name}: {name}{ratio}: {line} ({seconds:.0f} s)")
    return rows


def label(system: System, way: str) -> str:
    """How a system is called in the tables; "ours, MiniLM", "LlamaIndex tuned, MiniLM"."""
    name = f"{system.name} {way}".rstrip()
    return name if system.embedding is None else f"{name}, {system.embedding.name}"


async def _ask(conversation: Conversation, system: System, row: Row) -> None:
    texts = [normal(turn.text) for turn in conversation.turns]
    # Unmeasured, but noted: what a process that has just started pays once.
    row.first.append((await system.ask(conversation.questions[0].text)).seconds)
    with collector_off():
        for question in conversation.questions:
            returned = await system.ask(question.text)
            row.answers.append(judge(question, conversation.name, texts, returned))


def judge(question: Question, conversation: str, texts: Sequence[str], returned: Returned) -> Answer:
    """Which evidence is in the returned context: a turn is when its whole text is."""
    context = normal(returned.text)
    present = [[texts[index] in context for index in group] for group in question.evidence]
    return Answer(
        question,
        conversation,
        found=tuple(any(group) for group in present),
        strictly=tuple(group[0] for group in present),
        tokens=returned.tokens,
        recalled=returned.recalled,
        seconds=returned.seconds,
        embedding=returned.embedding,
    )


async def run(
    plan: Plan, datasets: Sequence[Dataset], say: Say, save: Callable[[list[Row], list[str]], None] | None = None
) -> tuple[list[Row], list[str]]:
    """The whole benchmark: one row for each system, ratio and budget on each dataset, and notes.

    `save` is given what there is after each system: some take hours, and what is measured should not be lost with them.
    """
    systems, notes = entries(plan)
    rows: list[Row] = []
    places = {dataset.name: place for place, dataset in enumerate(datasets)}
    for entry in systems:
        for dataset in datasets:
            rows += await measure(dataset, plan, [entry], say)
        rows.sort(key=lambda row: places[row.dataset])
        if save is not None:
            save(rows, [*notes, *falling(rows)])
    for dataset in datasets:
        if dropped := sum(conversation.dropped for conversation in dataset.conversations):
            notes.append(f"{dataset.name}: {dropped} turns of evidence were left out, their text does not identify them")
    return rows, notes + falling(rows)


def falling(rows: Sequence[Row]) -> list[str]:
    """Where a larger budget found less, which should not happen."""
    notes = []
    for before, after in pairwise(rows):
        same = (before.dataset, before.system, before.ratio) == (after.dataset, after.system, after.ratio)
        if not same or before.budget >= after.budget:
            continue
        if after.recall < before.recall - 1e-9:
            change = f"from {before.recall:.1f} to {after.recall:.1f}"
            notes.append(f"{after.dataset}: recall of {after.system} fell {change} between {before.budget} and {after.budget}")
        if lost := _lost(before, after):
            what = f"{lost} of {len(after.answers)} answers lack evidence that was there at {before.budget}"
            notes.append(f"{after.dataset}: {after.system} at {after.budget}: {what}")
    return notes


def _lost(before: Row, after: Row) -> int:
    """Of how many questions a turn was found with the smaller budget and is not with the larger one."""
    pairs = zip(before.answers, after.answers, strict=True)
    return sum(any(was and not now for was, now in zip(one.found, other.found, strict=True)) for one, other in pairs)


# -- reporting ---------------------------------------------------------------------------------------------------------


def report(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """For each dataset: recall against budget, then what it cost, then what was inserted where there was no answer."""
    parts = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        of_set = [row for row in rows if row.dataset == dataset]
        asked = len(of_set[0].of("answerable"))
        parts.append(f"{dataset}: {asked} questions\n\n{_recall_table(of_set)}")
        parts.append(_cost_table(of_set))
        for kind in ("adversarial", "unrelated"):
            if any(row.of(kind) for row in of_set):
                parts.append(_inserted_table(of_set, kind))
    if notes:
        parts.append("\n".join(f"note: {note}" for note in notes))
    return "\n\n".join(parts)


def _lines(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each system and ratio, with their label."""
    for system, ratio in dict.fromkeys((row.system, row.ratio) for row in rows):
        name = system if ratio is None else f"{system}, ratio {ratio:g}"
        yield name, [row for row in rows if (row.system, row.ratio) == (system, ratio)]


def _recall_table(rows: Sequence[Row]) -> str:
    budgets = list(dict.fromkeys(row.budget for row in rows))
    head = ["evidence recall, %", *(f"{budget:,}" for budget in budgets), "all evidence, %", "nothing, %", "over budget"]
    body = [
        [
            name,
            *(f"{row.recall:.1f}" for row in line),
            "/".join(f"{row.all_found:.0f}" for row in line),
            "/".join(f"{row.silent:.1f}" for row in line),
            f"{sum(row.violations for row in line)} of {sum(len(row.answers) for row in line)}",
        ]
        for name, line in _lines(rows)
    ]
    return table(head, body)


def _cost_table(rows: Sequence[Row]) -> str:
    head = ["cost", "budget", "tokens", "most", "median ms", "p95 ms", "first ms", "without embedder: median", "p95"]
    body = []
    for name, line in _lines(rows):
        for row in line:
            tokens = [answer.tokens for answer in row.answers]
            whole = _milliseconds([answer.seconds for answer in row.answers])
            bare = _milliseconds([answer.seconds - answer.embedding for answer in row.answers])
            first = 1000 * statistics.median(row.first)
            numbers = [f"{value:.1f}" for value in (*whole, first, *bare)]
            body.append([name, f"{row.budget:,}", f"{statistics.fmean(tokens):,.0f}", f"{max(tokens):,}", *numbers])
    return table(head, body)


def _inserted_table(rows: Sequence[Row], kind: str) -> str:
    """What was recalled for questions without an answer; the best is nothing at all."""
    budgets = list(dict.fromkeys(row.budget for row in rows))
    count = len(rows[0].of(kind))
    head = [f"{kind}, {count}: tokens recalled", *(f"{budget:,}" for budget in budgets), "nothing inserted, %"]
    body = []
    for name, line in _lines(rows):
        means = [statistics.fmean(answer.recalled for answer in row.of(kind)) for row in line]
        nothing = [_percent(answer.recalled == 0 for answer in row.of(kind)) for row in line]
        body.append([name, *(f"{mean:,.0f}" for mean in means), "/".join(f"{share:.0f}" for share in nothing)])
    return table(head, body)


def _milliseconds(seconds: Sequence[float]) -> tuple[float, float]:
    """Median and 95th percentile."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, math.ceil(0.95 * len(ordered)) - 1)]
    return 1000 * statistics.median(ordered), 1000 * p95


def as_json(plan: Plan, rows: Sequence[Row], notes: Sequence[str]) -> dict[str, Any]:
    """Everything that was measured, with what it was measured on."""
    return {
        "benchmark": "recall",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(_PACKAGES),
        "plan": asdict(plan),
        "results": [_row_json(row) for row in rows],
        "notes": list(notes),
    }


def _row_json(row: Row) -> dict[str, Any]:
    answerable = row.of("answerable")
    found = [found for answer in answerable for found in answer.found]
    tokens = [answer.tokens for answer in row.answers]
    median, p95 = _milliseconds([answer.seconds for answer in row.answers])
    bare_median, bare_p95 = _milliseconds([answer.seconds - answer.embedding for answer in row.answers])
    categories = dict.fromkeys(answer.question.category for answer in answerable)
    return {
        "dataset": row.dataset,
        "system": row.system,
        "ratio": row.ratio,
        "budget": row.budget,
        "questions": len(answerable),
        "recall": _rounded(row.recall),
        "recall_strict": _rounded(_percent(sum(a.strictly) / len(a.strictly) for a in answerable)),
        "recall_over_evidence": _rounded(_percent(found)),
        "all_evidence": _rounded(row.all_found),
        "nothing_recalled": _rounded(row.silent),
        "by_category": {
            name: _rounded(_percent(a.share for a in answerable if a.question.category == name)) for name in categories if name
        },
        "tokens": _rounded(statistics.fmean(tokens)),
        "most_tokens": max(tokens),
        "violations": row.violations,
        "asked": len(row.answers),
        "median_ms": _rounded(median),
        "p95_ms": _rounded(p95),
        "median_ms_without_embedder": _rounded(bare_median),
        "p95_ms_without_embedder": _rounded(bare_p95),
        "first_ms": _rounded(1000 * statistics.median(row.first)),
        "unanswerable": {kind: _inserted(row.of(kind)) for kind in ("adversarial", "unrelated") if row.of(kind)},
    }


def _inserted(answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "questions": len(answers),
        "recalled_tokens": _rounded(statistics.fmean(answer.recalled for answer in answers)),
        "nothing_inserted": _rounded(_percent(answer.recalled == 0 for answer in answers)),
    }


def details(rows: Sequence[Row]) -> Iterator[str]:
    """A JSON line for each answer, to look at what was not found."""
    for row in rows:
        for answer in row.answers:
            line = {
                "dataset": row.dataset,
                "system": row.system,
                "ratio": row.ratio,
                "budget": row.budget,
                "conversation": answer.conversation,
                "question": answer.question.text,
                "kind": answer.question.kind,
                "category": answer.question.category,
                "evidence": answer.question.evidence,
                "found": answer.found,
                "tokens": answer.tokens,
                "recalled": answer.recalled,
            }
            yield json.dumps(line, ensure_ascii=False)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 3)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--locomo", type=Path, metavar="PATH", help="LoCoMo as JSON; not part of this project (CC BY-NC)")
    parser.add_argument("--transcript", type=Path, metavar="FILE", help="a conversation of your own; needs --questions")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="what is asked about it, with the evidence")
    parser.add_argument("--no-apollo", action="store_true", help="without the Apollo 13 transcript")
    parser.add_argument("--systems", default="", help=f"some of {','.join(SYSTEMS)}; default all, with --quick ours")
    parser.add_argument(
        "--embeddings", default="minilm", help="of the other libraries: minilm, wordllama (default: %(default)s)"
    )
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)), help="token limits (default: %(default)s)")
    parser.add_argument(
        "--ratio", default="", help="chat_history_token_ratio, several with commas (default 0.1,0.7; quick 0.1)"
    )
    parser.add_argument(
        "--ask",
        choices=("query", "put"),
        default="query",
        help="give get() the question, or put it as a message before (ours only)",
    )
    parser.add_argument("--long", action="store_true", help="questions within the instructions of benchmarks/instructions.txt")
    parser.add_argument("--quick", action="store_true", help="ours only, few questions: under a minute")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write recall.txt, recall.json and recall.png there")
    parser.add_argument("--details", type=Path, metavar="PATH", help="write a JSON line for each question asked")
    return parser.parse_args(given)


def plan_of(options: argparse.Namespace) -> Plan:
    systems = tuple(_listed(options.systems)) or (OWN_SYSTEMS if options.quick else SYSTEMS)
    embeddings = tuple(_listed(options.embeddings))
    for what, names, known in (("system", systems, SYSTEMS), ("embedding", embeddings, tuple(EMBEDDINGS))):
        if unknown := [name for name in names if name not in known]:
            raise SystemExit(f"there is no {what} {unknown[0]!r}; there are {', '.join(known)}")
    try:
        budgets = tuple(sorted(int(budget) for budget in _listed(options.budgets)))
        ratios = tuple(float(ratio) for ratio in _listed(options.ratio)) or (RATIOS[:1] if options.quick else RATIOS)
    except ValueError as error:
        raise SystemExit(f"budgets are whole numbers and ratios numbers, separated by commas ({error})") from error
    if not budgets or budgets[0] < 1 or not all(0 < ratio <= 1 for ratio in ratios):
        raise SystemExit("budgets are from 1 up, ratios over 0 and up to 1")
    return Plan(budgets, ratios, systems, embeddings, put=options.ask == "put")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def datasets_of(options: argparse.Namespace) -> list[Dataset]:
    """What was asked for: the transcript of one's own alone, else Apollo 13 and, where it is, LoCoMo."""
    if (options.transcript is None) != (options.questions is None):
        raise SystemExit("--transcript and --questions belong together")
    found = []
    if options.locomo is not None:
        found.append(locomo(options.locomo))
    if options.transcript is not None:
        found.append(own(options.transcript, options.questions))
    elif not options.no_apollo:
        found.append(apollo13())
    if options.quick:
        found = [dataset.part(conversations=1, questions=QUICK_QUESTIONS) for dataset in found]
    found = [with_unrelated(dataset, limit=QUICK_QUESTIONS if options.quick else None) for dataset in found]
    if options.long:
        found = [lengthened(dataset) for dataset in found]
    if not any(conversation.questions for dataset in found for conversation in dataset.conversations):
        raise SystemExit("there is nothing to measure: no dataset, or no question whose evidence can be measured")
    return found


def write(folder: Path, text: str, data: dict[str, Any], say: Say) -> None:
    """Tables, JSON and, where matplotlib is installed, the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recall.txt").write_text(text + "\n", encoding="utf-8")
    (folder / "recall.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    from benchmarks.recall_plot import plot

    try:
        plot(data["results"], folder / "recall.png")
    except Unavailable as error:
        say(f"no plot: it {error}")


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(given)
    logging.basicConfig(level=logging.WARNING)
    plan, datasets = plan_of(options), datasets_of(options)

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def save(rows: list[Row], notes: list[str]) -> None:
        if options.out:
            write(options.out, report(rows, notes), as_json(plan, rows, notes), say)

    rows, notes = asyncio.run(run(plan, datasets, say, save))
    if not rows:
        raise SystemExit("\n".join(notes))
    print(report(rows, notes))
    save(rows, notes)
    if options.details:
        options.details.write_text("".join(f"{line}\n" for line in details(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
