"""`OpenAIAgentsSession`: a memory as the session of OpenAI's Agents SDK (`pip install 'memory-engine-blocks[openai-agents]'`).

    session = OpenAIAgentsSession(engine.session("chat-1"))
    result = await Runner.run(agent, "Hello", session=session, run_config=session.run_config())

The SDK asks for the history once, at the beginning of a run, and adds the new input and its own items to it while it runs:
reserve what these, the instructions and the tools need with `reserved_tokens`.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from memory_engine.errors import MissingExtraError
from memory_engine.formats.openai_responses import (
    KEPT,
    call_id_of,
    dump_marked,
    from_openai_responses,
    is_output,
    to_openai_responses,
)
from memory_engine.messages import ChatMessage

try:
    from agents import RunConfig
    from agents.memory import SessionSettings
except ImportError as error:
    raise MissingExtraError(
        "OpenAIAgentsSession needs OpenAI's Agents SDK; pip install 'memory-engine-blocks[openai-agents]'."
    ) from error

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

    from memory_engine.memory import Memory
    from memory_engine.receipt import Context

__all__ = ["OpenAIAgentsSession"]

_SECTIONS = 1_024
"""So many of memory's own items that were handed out are known again when they come back."""
_REPLACES = "replaces"

_Pair = tuple["TResponseInputItem", bool]
"""An item, and whether it is a section that memory inserted."""


class OpenAIAgentsSession:
    """The SDK's `Session` protocol on a `Memory`: what is added is kept exactly, what is read fits the token budget.

    - `get_items` returns what `Memory.get` returns, as items: memory's sections (a system message, by default) and as much
      of the newest history as fits, never a call without its output, nor an output without its call.
    - `add_items` commits all items or none. What memory itself had inserted is not stored when it comes back.
    - A run that failed is gone on with by `Runner.run(agent, [], session=session)`: its input is in the session. With
      `run_config()`, the same input given again is recognised as well.

    The memory is yours: close it, or its engine. Several runs, objects and processes may use one session at the same time.
    """

    def __init__(self, memory: Memory, *, session_settings: SessionSettings | None = None) -> None:
        self.memory = memory
        self.session_id = memory.session_id
        self.session_settings: SessionSettings | None = session_settings or SessionSettings()
        self._handed_out: OrderedDict[str, None] = OrderedDict()

    # -- the protocol ----------------------------------------------------------------------------------------

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """What the model should read now, oldest first; with a `limit` only the newest of these items, at most so many.

        Outputs whose calls are beyond the limit go as well. A limit below the number of items leaves out memory's
        sections, which come first, unless it is that of `session_settings`: then they are among the items counted.

        :raises BudgetExceededError: what may never be cut does not fit.
        """
        settings = self.session_settings
        configured = settings.limit if settings is not None else None
        limit = configured if limit is None else limit
        context = await self.memory.context()
        pairs = self._pairs(context)
        overhead = self.memory.count_tokens([ChatMessage(role="user")])
        if context.receipt.tokens + overhead * (len(pairs) - len(context.messages)) > context.receipt.budget:
            pairs = self._fit(pairs, context.receipt.budget)
        items = [item for item, _ in pairs]
        if limit is None or limit >= len(items):
            return items
        sections = [item for item, is_section in pairs if is_section]
        if limit == configured and 0 < len(sections) < limit:
            history = [item for item, is_section in pairs if not is_section]
            return [*sections, *_newest(history, limit - len(sections))]
        return _newest(items, limit)

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Commit items in one transaction; the items of one response are kept together.

        :raises InvalidMessageError: an item is not JSON; nothing was written.
        """
        new = [item for item in items if not self._is_section(item)]
        if new:
            await self.memory.put_messages(from_openai_responses(new))

    async def pop_item(self) -> TResponseInputItem | None:
        """Delete the newest item, with everything derived from it, and return it; None when there is none."""
        while stored := await self.memory.get_all(last=1):
            message = stored[0]
            items = to_openai_responses([message])
            rest, last = items[:-1], items[-1:]
            if rest:
                # First what stays: when the process dies in between, an item is still there, not another one lost.
                await self.memory.put_messages(_copies(message, rest))
            earlier = _kept(message).get(_REPLACES)
            await self.memory.delete([message.id or "", *([earlier] if isinstance(earlier, str) else [])])
            if last:
                return cast("TResponseInputItem", last[0])
        return None

    async def clear_session(self) -> None:
        """Delete all items of the session, with everything derived from them."""
        await self.memory.reset()

    # -- the new input as the query --------------------------------------------------------------------------

    def run_config(self, **settings: Any) -> RunConfig:
        """A `RunConfig` with these settings, in which `recall_input` merges history and new input."""
        return RunConfig(**{"session_input_callback": self.recall_input, **settings})

    async def recall_input(
        self, history: list[TResponseInputItem], new_input: list[TResponseInputItem]
    ) -> list[TResponseInputItem]:
        """A `session_input_callback` that looks into memory with the new input as the query.

        The SDK's protocol does not tell a session what is asked. Without this, blocks that search are asked with the
        newest message that is stored. An input with which history ends already, because the run it began failed, is not
        added a second time.
        """
        query = from_openai_responses([item for item in new_input if _role(item) == "user"])
        context = await self.memory.context(query or None)
        sections = [pair for pair in self._pairs(context) if pair[1]]
        talk = [(item, False) for item in history if not self._is_section(item)]
        kept = [item for item, is_section in self._fit([*sections, *talk], context.receipt.budget) if not is_section]
        if new_input and kept[-len(new_input) :] == new_input and all(_role(item) == "user" for item in new_input):
            kept = kept[: -len(new_input)]
            new_input = history[-len(new_input) :]
        first = [item for item, _ in sections if _role(item) != "user"]
        return [*first, *kept, *(item for item, _ in sections if _role(item) == "user"), *new_input]

    # -- helpers ---------------------------------------------------------------------------------------------

    def _pairs(self, context: Context) -> list[_Pair]:
        """All items of a context; the sections among them are known again from now on."""
        marked = [pair for message in context.messages for pair in dump_marked(message)]
        pairs = [(cast("TResponseInputItem", item), is_section) for item, is_section in marked]
        for item, is_section in pairs:
            if is_section and (fingerprint := _fingerprint(item)) is not None:
                self._handed_out[fingerprint] = None
                self._handed_out.move_to_end(fingerprint)
        while len(self._handed_out) > _SECTIONS:
            self._handed_out.popitem(last=False)
        return pairs

    def _is_section(self, item: object) -> bool:
        return isinstance(item, Mapping) and _fingerprint(item) in self._handed_out

    def _fit(self, pairs: list[_Pair], budget: int) -> list[_Pair]:
        """The items without the oldest steps, where they cost more than the messages that they come from.

        A provider counts something for each item; the engine counts it once for all items of one response.
        """
        items = [item for item, _ in pairs]
        costs = [self.memory.count_tokens(from_openai_responses([item])) for item in items]
        excess = sum(costs) - budget
        if excess <= 0:
            return pairs
        fixed = {at for at, (item, is_section) in enumerate(pairs) if is_section or _role(item) in ("system", "developer")}
        request = max((at for at, item in enumerate(items) if _role(item) == "user" and at not in fixed), default=-1)
        started = False
        gone: set[int] = set()
        for step in [step for step in _steps(items) if step.start not in fixed][:-1]:
            begins = _role(items[step.start]) == "user"
            if request not in step and (excess > 0 or not (started or begins)):
                gone.update(step)
                excess -= sum(costs[step.start : step.stop])
            else:
                started = started or begins
        return [pair for at, pair in enumerate(pairs) if at not in gone]


def _role(item: object) -> str | None:
    return cast("str | None", cast("Mapping[str, Any]", item).get("role"))


def _newest(items: list[TResponseInputItem], limit: int) -> list[TResponseInputItem]:
    """The last `limit` items, without outputs whose calls are not among them."""
    tail = items[len(items) - limit :] if limit > 0 else []
    calls = {call_id_of(_plain(item)) for item in tail if not is_output(_plain(item))}
    return [item for item in tail if not is_output(_plain(item)) or call_id_of(_plain(item)) in calls]


def _steps(items: Sequence[TResponseInputItem]) -> list[range]:
    """Where the items of one step are: a message, or what one response said and called, with the outputs of the calls."""
    starts = []
    for at, item in enumerate(items):
        before = items[at - 1] if at else None
        after_others = before is None or _role(before) in ("user", "system", "developer") or is_output(_plain(before))
        if at == 0 or _role(item) in ("user", "system", "developer") or (after_others and not is_output(_plain(item))):
            starts.append(at)
    return [range(start, end) for start, end in pairwise([*starts, len(items)])]


def _plain(item: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", item)


def _kept(message: ChatMessage) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", message.metadata.get(KEPT) or {})


def _copies(message: ChatMessage, items: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """The message with these of its items only, as messages that stand for it from now on."""
    copies = []
    for number, copy in enumerate(from_openai_responses(items)):
        metadata = {**message.metadata, KEPT: {**_kept(copy), _REPLACES: message.id}}
        changes = {"id": f"{message.id}:{len(items)}:{number}"[-512:], "created_at": message.created_at, "metadata": metadata}
        copies.append(copy.model_copy(update=changes))
    return copies


def _fingerprint(item: Mapping[str, Any]) -> str | None:
    """Equal for messages with the same role and texts, whatever form their content has; None where there is no text."""
    role, content = item.get("role"), item.get("content")
    parts = [{"text": content}] if isinstance(content, str) else content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    known = [text for text in texts if isinstance(text, str)]
    return json.dumps([role, len(parts), "\n".join(known)]) if role and known else None
