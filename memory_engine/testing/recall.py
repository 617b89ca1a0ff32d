"""An assertion for test suites of those who use memory: "this fact must be in the context at 2,000 tokens"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from memory_engine.errors import ConfigurationError
from memory_engine.memory import Memory
from memory_engine.messages import ChatMessage
from memory_engine.reading import read_context
from memory_engine.receipt import Context
from memory_engine.session import Session
from memory_engine.window import Shown, Windows

_SHOWN = 1_500
"""Characters of the context that a failure shows; the beginning and the end of a longer one."""
_DRAIN = 60.0


async def assert_recalls(memory: Memory, question: str, expected: str | Sequence[str], *, tokens: int | None = 2000) -> None:
    """Fail unless `expected` (each of several texts) is in what `memory.get(question)` returns at `tokens` tokens.

        async def test_it_knows_the_allergy(memory):
            await assert_recalls(memory, "What may Ada not eat?", "allergic to hazelnuts", tokens=2_000)

    Everything that the model would read counts, history as well as sections; runs of white space count as one blank.
    Pending deliveries are waited for. The context is put together as under a `token_limit` of `tokens`, all of it for memory,
    but never more than this memory itself may return (None: just that). Nothing is flushed or archived for it: what no block
    has absorbed counts only as far as history shows it, so begin with `await memory.flush(final=True)` to test recall alone.

    :raises AssertionError: something is missing; it shows the question, the receipt, what the context says, and where in the
        session the missing text stands.
    :raises BudgetExceededError: what may never be cut does not fit into `tokens`.
    """
    wanted = [expected] if isinstance(expected, str) else list(expected)
    if not wanted or not all(isinstance(text, str) and text.strip() for text in wanted):
        raise ConfigurationError("expected is a text, or several, that must be in the context; an empty one always is.")
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
        raise ConfigurationError(f"tokens is a whole number from 1 up, or None for the memory's own limit, not {tokens!r}.")
    await memory.drain(_DRAIN)
    context = await _context_at(memory, question, tokens)
    read = _normal("\n".join(message.content for message in context.messages))
    missing = [text for text in wanted if _normal(text) not in read]
    if missing:
        raise AssertionError(_explanation(question, missing, context, await memory.get_all()))


class _Onlooker(Session):
    """A session that is only looked at: what a smaller budget leaves out is not archived for that."""

    async def advance(self, session: object, horizon: int) -> None:
        return None


async def _context_at(memory: Memory, question: str, tokens: int | None) -> Context:
    """The context as a memory with that limit would return it; of the memory itself nothing is changed."""
    await memory._engine._ready()
    session = memory._session
    own = session.core.settings
    budget = own.budget if tokens is None else min(tokens, own.budget)
    # A view is cached for one budget: windows of its own.
    core = replace(
        session.core,
        settings=replace(own, token_limit=budget, reserved_tokens=0),
        windows=Windows(),
        background=set(),
        unawaited=set(),
    )
    tenant, session_id, user_id, metadata = session.identity
    onlooker = _Onlooker(core, tenant=tenant, session_id=session_id, user_id=user_id, metadata=metadata)
    context = await read_context(onlooker, question, {}, Shown())
    await core.settle()
    return context


def _normal(text: str) -> str:
    """Without differences in white space, and with a `<` that was defused in a section as it was written."""
    return " ".join(text.replace("&lt;", "<").split())


def _explanation(question: str, missing: Sequence[str], context: Context, stored: Sequence[ChatMessage]) -> str:
    receipt = context.receipt
    lines = [f"Not recalled at {receipt.budget:,} tokens: {', '.join(map(repr, missing))}", f"question: {question}"]
    lines += [f"{text!r} {_whereabouts(text, stored)}" for text in missing]
    lines += ["", str(receipt), "", "context:"]
    lines += [_shortened(f"[{message.role}] {message.content}") for message in context.messages] or ["(nothing)"]
    return "\n".join(lines)


def _whereabouts(text: str, stored: Sequence[ChatMessage]) -> str:
    """Where the session says it, if it does; then it is the retrieval or the budget that failed."""
    places = [number for number, message in enumerate(stored) if _normal(text) in _normal(message.content)]
    if not places:
        return f"stands in none of the session's {len(stored):,} messages"
    what = f"message {places[0]}" if len(places) == 1 else f"{len(places)} messages, first in message {places[0]}"
    return f"stands in {what} of {len(stored):,}; if that was not flushed, no block has it: `await memory.flush(final=True)`"


def _shortened(text: str) -> str:
    if len(text) <= _SHOWN:
        return text
    half = _SHOWN // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters …\n{text[-half:]}"
