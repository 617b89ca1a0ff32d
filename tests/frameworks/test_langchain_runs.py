"""Several runs of one session at once, agents inside of agents, and what an erased session is given by a state."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import langchain_agents
import pytest
from langchain_agents import AGENTS, CONFIG, ScriptedModel
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from scenario import FILLER, Call, Reply, engine_at, problems_of

from memory_engine.messages import ChatMessage

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite+aiosqlite:///{tmp_path}/memory.db"


def say(text: str, id: str | None = None) -> dict[str, Any]:
    return {"messages": [HumanMessage(text, id=id)]}


# -- several runs at once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("token_limit", [500, 3_000])
@pytest.mark.parametrize("kind", AGENTS)
async def test_each_of_several_runs_reads_its_own_request_last(
    kind: str, token_limit: int, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four runs go through three tools side by side, while others begin and end in between."""
    asked: ContextVar[str] = ContextVar("asked")
    runs, steps = 4, 3
    barrier = asyncio.Barrier(runs)
    problems: list[str] = []

    def reply_to(sent: Sequence[ChatMessage]) -> Reply:
        question = asked.get()
        problems.extend(problems_of(sent, token_limit))
        start = max(at for at, message in enumerate(sent) if message.role == "user")
        if sent[start].content != question:
            problems.append(f"{question} is shown {sent[start].content} last")
        said = [call.id for message in sent[start:] for call in message.tool_calls]
        heard = [result for message in sent[start:] for result in message.tool_results]
        made = taken[question]
        if said != heard or said[-1:] != made[-1:] or not set(said) <= set(made):
            problems.append(f"{question} is shown {said} and {heard} of {made}")
        if any(message.content for message in sent[start + 1 :] if message.role == "assistant"):
            problems.append(f"{question} is shown an answer of another")
        if question.startswith("Other") or len(made) == steps:
            return Reply(f"Answer to {question}")
        made.append(f"{question[:5]}-{len(made)}")
        return Reply(calls=(Call(made[-1], "wait", {"for_what": question}),))

    @tool
    async def wait(for_what: str) -> str:
        """Wait for the other runs."""
        if await barrier.wait() == 0:  # one of them
            await ask(f"Other {for_what} {len(taken[for_what])} {FILLER}")
        await barrier.wait()
        return f"Waited for {for_what}."

    async def ask(question: str) -> str:
        asked.set(question)
        taken.setdefault(question, [])
        return (await agent.ainvoke(say(question), CONFIG))["messages"][-1].content  # type: ignore[no-any-return]

    taken: dict[str, list[str]] = {}
    monkeypatch.setattr(langchain_agents, "TOOLS", [wait])
    async with engine_at(uri, token_limit=token_limit, reserved_tokens=100, token_flush_size=50) as engine:
        agent = AGENTS[kind](ScriptedModel(reply_to=reply_to), engine)
        questions = [f"Run {number}?" for number in range(runs)]
        answers = await asyncio.gather(*[asyncio.create_task(ask(question)) for question in questions])
        assert problems == []
        assert answers == [f"Answer to {question}" for question in questions]
        stored = await engine.session("trip").get_all()
        assert sorted(call.id for message in stored for call in message.tool_calls) == sorted(
            call for calls in taken.values() for call in calls
        )
        assert len({message.id for message in stored}) == len(stored) == runs * (2 * steps + 2) + 2 * steps
