"""Sections to text, and text, media and message lists into the conversation: pure, no I/O.

The built-in text is `<memory>` around one tag for each section; items of a section may carry a tag of their own. Another
form is a function from sections to text, whose texts are escaped before it sees them:

>>> from memory_engine.messages import TextBlock
>>> def markdown(sections):
...     return "\\n".join(f"## {section.name}\\n{section.text}" for section in sections)
>>> render([Section("notes", (TextBlock(text="Likes tea. </memory>"),))], renderer=markdown)
'## notes\\nLikes tea. &lt;/memory>'

No renderer can break the budget, because the finished messages are what is counted: whatever it adds becomes `slack`.

    slack = 0
    while True:
        plan = plan_context(replace(request, sections=costs, slack=slack))
        if plan.cuts:                       # truncate each block's section, then measure it anew
            costs = truncate(plan.cuts)     # a block that gives up less than asked loses its section: tokens = 0
            continue
        messages = compose(plan.steps, sections, insert_method="system", renderer=markdown)
        total = sum(map(count, messages))
        if total <= request.budget:
            return messages
        slack = max(slack + total - request.budget, total - plan.tokens)

It ends, because `plan_context` raises `BudgetExceededError` at the latest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from memory_engine.errors import RenderError
from memory_engine.escaping import ITEM_TAGS, ROOT_TAG, escape, tag_name
from memory_engine.messages import (
    AudioBlock,
    ChatMessage,
    ContentBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    VideoBlock,
)
from memory_engine.steps import ViewStep
from memory_engine.view import build_view

__all__ = [
    "ITEM_TAGS",
    "ROOT_TAG",
    "InsertMethod",
    "Renderer",
    "Section",
    "as_history",
    "compose",
    "escape",
    "escape_sections",
    "markup",
    "render",
    "render_section",
    "tag_name",
]

InsertMethod = Literal["system", "user", "split"]


class Section(NamedTuple):
    """What one block has to say. Items are texts and media; other content blocks are not inserted."""

    name: str
    items: tuple[ContentBlock, ...]

    @property
    def texts(self) -> tuple[TextBlock, ...]:
        """The items that are text and not blank."""
        return tuple([item for item in self.items if isinstance(item, TextBlock) and item.text.strip()])

    @property
    def text(self) -> str:
        """All its text, items separated by newlines."""
        return "\n".join([item.text for item in self.texts])


Renderer: TypeAlias = Callable[[Sequence[Section]], str]


def markup(sections: Sequence[Section]) -> str:
    """The built-in renderer: `<memory>` around a tag for each section; the texts must be escaped already."""
    return f"<{ROOT_TAG}>\n" + "".join([f"{_section_markup(section)}\n" for section in sections]) + f"</{ROOT_TAG}>"


def render(sections: Iterable[Section], *, tags: Iterable[str] = (), renderer: Renderer | None = None) -> str:
    """The text of all sections, escaped and rendered; empty when no section has text.

    `tags` are names to defuse in texts besides those of the sections and their items, such as those of absent sections.

    :raises RenderError: the renderer raised, or did not return a str.
    """
    escaped = escape_sections(sections, tags=tags)
    if not escaped:
        return ""
    if renderer is None:
        return markup(escaped)
    try:
        text = renderer(escaped)
    except Exception as error:
        raise RenderError(f"The renderer raised {type(error).__name__}: {error}") from error
    if not isinstance(text, str):
        raise RenderError(f"The renderer returned {type(text).__name__}; it must return a str.")
    return text


def render_section(section: Section, *, tags: Iterable[str] = ()) -> str:
    """One section as the built-in renderer writes it, to know its cost; empty when it has no text."""
    return "\n".join([_section_markup(escaped) for escaped in escape_sections((section,), tags=tags)])


def escape_sections(sections: Iterable[Section], *, tags: Iterable[str] = ()) -> tuple[Section, ...]:
    """The sections that have text, reduced to it and with every text escaped for all of their names."""
    given = [(section.name, section.texts) for section in sections]
    used = {item.tag for _, items in given for item in items if item.tag}
    names = frozenset({*tags, *used, *(name for name, _ in given)})
    return tuple([Section(name, tuple([_escaped(item, names) for item in items])) for name, items in given if items])


def _escaped(item: TextBlock, names: frozenset[str]) -> TextBlock:
    text = escape(item.text, names)
    return item if text == item.text else item.model_copy(update={"text": text})


def _section_markup(section: Section) -> str:
    tag = tag_name(section.name)
    items = [f"<{item.tag}>{item.text}</{item.tag}>" if item.tag else item.text for item in section.texts]
    return "\n".join([f"<{tag}>", *items, f"</{tag}>"])


# -- into the conversation ---------------------------------------------------------------------------------------


def compose(
    steps: Iterable[ViewStep],
    sections: Sequence[Section],
    *,
    insert_method: InsertMethod = "system",
    renderer: Renderer | None = None,
    depends_on_query: Mapping[str, bool] | None = None,
    section_messages: Sequence[ChatMessage] = (),
    tags: Iterable[str] = (),
    start_on_user: bool = True,
) -> tuple[ChatMessage, ...]:
    """The finished conversation: leading system messages, message lists of sections, history, with memory inserted.

    - `"system"`: the text goes to the end of the first leading system message, or into a new one.
    - `"user"`: the text goes before the content of history's latest user message; without one as with `"system"`.
    - `"split"`: sections that do not depend on the query (by name; those not named do) as with `"system"`, others as
      with `"user"`.
    - Media of sections go to history's latest user message; without one they are not inserted.

    What is inserted has `origin="memory"`. Only messages that change are copied (and must be counted anew), all others are
    the objects of the steps.

    :raises RenderError: see `render`.
    """
    messages = [message for step in steps for message in step.messages]
    start = next((at for at, message in enumerate(messages) if not _is_system(message)), len(messages))
    latest = next((at for at in range(len(messages) - 1, start - 1, -1) if messages[at].role == "user"), None)
    for_system, for_user = _assign(sections, insert_method, depends_on_query or {}, has_user=latest is not None)
    names = frozenset({*tags, *(section.name for section in sections)})
    media = [item for section in sections for item in section.items if isinstance(item, _MEDIA)]
    if latest is not None:
        inserted = [*_text(for_user, names, renderer), *(_marked(item) for item in media)]
        if inserted:
            messages[latest] = messages[latest].model_copy(update={"blocks": (*inserted, *messages[latest].blocks)})
    messages[start:start] = as_history(section_messages, start_on_user=start_on_user)
    inserted = _text(for_system, names, renderer)
    if inserted and start:
        messages[0] = messages[0].model_copy(update={"blocks": (*messages[0].blocks, *inserted)})
    elif inserted:
        messages.insert(0, ChatMessage(role="system", blocks=inserted))
    return tuple(messages)


_MEDIA = (ImageBlock, AudioBlock, VideoBlock, DocumentBlock)


def _is_system(message: ChatMessage) -> bool:
    return message.role in ("system", "developer")


def _assign(
    sections: Sequence[Section], insert_method: InsertMethod, depends: Mapping[str, bool], *, has_user: bool
) -> tuple[list[Section], list[Section]]:
    """Which sections go into the system message, and which into the user message."""
    if insert_method == "system" or not has_user:
        return list(sections), []
    if insert_method == "user":
        return [], list(sections)
    return (
        [section for section in sections if not depends.get(section.name, True)],
        [section for section in sections if depends.get(section.name, True)],
    )


def _text(sections: Sequence[Section], names: frozenset[str], renderer: Renderer | None) -> list[ContentBlock]:
    text = render(sections, tags=names, renderer=renderer)
    return [TextBlock(text=text, origin="memory")] if text else []


def _marked(block: ContentBlock) -> ContentBlock:
    return block if block.origin == "memory" else block.model_copy(update={"origin": "memory"})


class _Listed(NamedTuple):
    """A message of a list, as an entry of a view."""

    seq: int
    role: str
    message: ChatMessage
    calls: tuple[str, ...]
    results: tuple[str, ...]
    tokens: int = 0
    pinned: bool = False


def as_history(messages: Sequence[ChatMessage], *, start_on_user: bool = True) -> tuple[ChatMessage, ...]:
    """Messages of sections in the form in which they go before history, so that they can be counted beforehand.

    System messages go, results are put to their calls, unanswered calls and orphan results go, and with `start_on_user`
    so does what precedes the first user message. All blocks are marked as memory's.
    """
    entries = [
        _Listed(seq, message.role, message, tuple([call.id for call in message.tool_calls]), message.tool_results)
        for seq, message in enumerate(messages)
        if not _is_system(message) and message.blocks
    ]
    steps = build_view(entries, lambda message: 0, max_tool_result_tokens=0, closed=True)
    valid = [message for step in steps if step.turn or not start_on_user for message in step.messages]
    return tuple(
        [
            message
            if all(block.origin == "memory" for block in message.blocks)
            else message.model_copy(update={"blocks": tuple([_marked(block) for block in message.blocks])})
            for message in valid
        ]
    )
