"""`OpenAIAgentsSession`: the SDK's `Session` protocol on a `Memory`."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from agents import RunConfig
from agents.memory import SessionSettings
from agents.run import CallModelData, ModelInputData

from memory_engine.errors import ConfigurationError
from memory_engine.formats.openai_responses import dump_marked, from_openai_responses, to_openai_responses
from memory_engine.integrations.openai_agents.items import (
    REPLACES,
    copies_of,
    fingerprint,
    is_rendered,
    kept_of,
    newest,
    role_of,
    steps_of,
)
from memory_engine.integrations.openai_agents.runs import SessionKey, is_being_answered, note_run
from memory_engine.messages import ChatMessage

if TYPE_CHECKING:
    from agents.items import TResponseInputItem

    from memory_engine.memory import Memory
    from memory_engine.receipt import Context

_SECTIONS = 1_024
"""So many of memory's own items that were handed out are known again when they come back."""

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
            return [*sections, *newest(history, limit - len(sections))]
        return newest(items, limit)

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Commit items in one transaction; the items of one response are kept together.

        :raises InvalidMessageError: an item is not JSON; nothing was written.
        :raises ConfigurationError: an item is encrypted, so that nobody can see what belongs together or fits.
        """
        if any(isinstance(item, Mapping) and "__enc__" in item for item in items):
            raise ConfigurationError("EncryptedSession hides from memory what it has to read; encrypt the database instead.")
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
                await self.memory.put_messages(copies_of(message, rest))
            earlier = kept_of(message).get(REPLACES)
            await self.memory.delete([message.id or "", *([earlier] if isinstance(earlier, str) else [])])
            if last:
                return cast("TResponseInputItem", last[0])
        return None

    async def clear_session(self) -> None:
        """Delete all items of the session, with everything derived from them."""
        await self.memory.reset()

    # -- the new input as the query --------------------------------------------------------------------------

    def run_config(self, **settings: Any) -> RunConfig:
        """A `RunConfig` with these settings, in which `recall_input` merges history and new input, and `fit_input` holds the
        budget at every request to a model."""
        return RunConfig(**{"session_input_callback": self.recall_input, "call_model_input_filter": self.fit_input, **settings})

    async def fit_input(self, data: CallModelData[Any]) -> ModelInputData:
        """A `call_model_input_filter`: what a run says itself makes room for its newest step by leaving out older steps."""
        pairs = [(item, self._is_section(item)) for item in data.model_data.input]
        kept = [item for item, _ in self._fit(pairs, self.memory.budget)]
        return ModelInputData(input=kept, instructions=data.model_data.instructions)

    async def recall_input(
        self, history: list[TResponseInputItem], new_input: list[TResponseInputItem]
    ) -> list[TResponseInputItem]:
        """A `session_input_callback` that looks into memory with the new input as the query.

        The SDK's protocol does not tell a session what is asked. Without this, blocks that search are asked with the
        newest message that is stored. An input with which history ends already, because the run it began failed, is not
        added a second time.
        """
        query = from_openai_responses([item for item in new_input if role_of(item) == "user"])
        context = await self.memory.context(query or None)
        sections = [pair for pair in self._pairs(context) if pair[1]]
        talk = [(item, False) for item in history if not self._is_section(item)]
        kept = [item for item, is_section in self._fit([*sections, *talk], context.receipt.budget) if not is_section]
        asked = json.dumps(new_input, sort_keys=True, default=str)
        is_asked_again = kept[-len(new_input) :] == new_input and all(role_of(item) == "user" for item in new_input)
        if new_input and is_asked_again and not is_being_answered(self._key, asked):
            kept = kept[: -len(new_input)]
            new_input = history[-len(new_input) :]
        note_run(self._key, asked)
        first = [item for item, _ in sections if role_of(item) != "user"]
        return [*first, *kept, *(item for item, _ in sections if role_of(item) == "user"), *new_input]

    # -- helpers ---------------------------------------------------------------------------------------------

    def _pairs(self, context: Context) -> list[_Pair]:
        """All items of a context; the sections among them are known again from now on."""
        marked = [pair for message in context.messages for pair in dump_marked(message)]
        pairs = [(cast("TResponseInputItem", item), is_section) for item, is_section in marked]
        for item, is_section in pairs:
            if is_section and (known := fingerprint(item)) is not None:
                self._handed_out[known] = None
                self._handed_out.move_to_end(known)
        while len(self._handed_out) > _SECTIONS:
            self._handed_out.popitem(last=False)
        return pairs

    def _is_section(self, item: object) -> bool:
        return isinstance(item, Mapping) and (fingerprint(item) in self._handed_out or is_rendered(item))

    @property
    def _key(self) -> SessionKey:
        return id(self.memory.engine), self.memory.tenant, self.session_id

    def _fit(self, pairs: list[_Pair], budget: int) -> list[_Pair]:
        """The items without the oldest steps, where they cost more than the messages that they come from.

        A provider counts something for each item; the engine counts it once for all items of one response.
        """
        items = [item for item, _ in pairs]
        costs = [self.memory.count_tokens(from_openai_responses([item])) for item in items]
        excess = sum(costs) - budget
        if excess <= 0:
            return pairs
        fixed = {at for at, (item, is_section) in enumerate(pairs) if is_section or role_of(item) in ("system", "developer")}
        request = max((at for at, item in enumerate(items) if role_of(item) == "user" and at not in fixed), default=-1)
        started = False
        gone: set[int] = set()
        for step in [step for step in steps_of(items) if step.start not in fixed][:-1]:
            begins = role_of(items[step.start]) == "user"
            if request not in step and (excess > 0 or not (started or begins)):
                gone.update(step)
                excess -= sum(costs[step.start : step.stop])
            else:
                started = started or begins
        return [pair for at, pair in enumerate(pairs) if at not in gone]
