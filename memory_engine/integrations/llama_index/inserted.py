"""What memory inserted, in messages that went through JSON: a web client keeps the history and sends it back."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage as Theirs
from llama_index.core.base.llms.types import TextBlock

from memory_engine.escaping import without_rendered
from memory_engine.messages import ChatMessage

SessionKey = tuple[str, str, str]
_REMEMBERED = 10_000


class Inserted:
    """Remembers what messages said that were handed out other than they are stored; the last ones of this process."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[SessionKey, str], ChatMessage | None] = OrderedDict()

    def note(self, session: SessionKey, given: Theirs, message: ChatMessage) -> None:
        """This was handed out for that; what memory inserted is not kept here."""
        own = [block for block in message.blocks if not block.origin]
        if len(own) == len(message.blocks) and not message.partial:
            return
        key = (session, _fingerprint(given))
        self._known[key] = message.model_copy(update={"blocks": own}) if own else None
        self._known.move_to_end(key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def find(self, session: SessionKey, messages: Sequence[Theirs]) -> list[ChatMessage | Theirs | None]:
        """For each its stored message where it is known here, else itself without memory's text; None if nothing is left."""
        found: list[ChatMessage | Theirs | None] = []
        for message in messages:
            key = (session, _fingerprint(message))
            if key not in self._known:
                found.append(without_text(message))
                continue
            known = self._known[key]
            # An example of a block may be what somebody says, too; before everything else it is memory's.
            is_first = len(messages) > 1 and all(one is None or one.role == "system" for one in found)
            found.append(known if known is not None or message.role == "system" or is_first else message)
        return found


def without_text(message: Theirs) -> Theirs | None:
    """The message without what the built-in renderer wrote, where that is certain; None if nothing is left.

    In a system message it is the last text, alone; in one of a user it is in front of what the user says.
    """
    blocks = list(message.blocks)
    if message.role == "system" and blocks and isinstance(blocks[-1], TextBlock) and not without_rendered(blocks[-1].text):
        left = blocks[:-1] if blocks[-1].text else blocks
        return message.model_copy(update={"blocks": left}) if left else None
    if message.role == "user" and blocks and isinstance(blocks[0], TextBlock):
        text = without_rendered(blocks[0].text)
        if text != blocks[0].text and (text or blocks[1:]):
            first = [TextBlock(text=text)] if text else []
            return message.model_copy(update={"blocks": [*first, *blocks[1:]]})
    return message


def _fingerprint(message: Theirs) -> str:
    try:
        return hashlib.sha256(message.model_dump_json().encode()).hexdigest()
    except (ValueError, TypeError):
        return ""  # What is no JSON was not handed out; it is refused a moment later, by name.
