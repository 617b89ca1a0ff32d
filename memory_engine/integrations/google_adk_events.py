"""What the events of a session of Google's Agent Development Kit tell: `google_adk` stores it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from google.adk.events import Event
from google.genai import types

__all__ = ["Told", "contents_beside", "live_events", "story_of", "tell", "with_beside"]

_OTHER_AGENT = "For context:"
"""So the kit begins what it tells an agent of another one's words."""


@dataclass(frozen=True, slots=True)
class Told:
    """An event as it is told."""

    event: Event | None
    """None: later events have all of it."""
    stale: tuple[str, ...] = ()
    """The ids under which it was told before other events brought later results for its calls."""
    by: frozenset[str] = frozenset()
    """The runs which did."""


def live_events(events: Sequence[Event]) -> tuple[list[Event], list[Event]]:
    """The events that count, and those that `rewind_async` took back."""
    live: list[Event] = []
    gone: list[Event] = []
    for event in events:
        before = event.actions.rewind_before_invocation_id if event.actions else None
        if before:
            start = next((at for at, known in enumerate(live) if known.invocation_id == before), len(live))
            gone += live[start:]
            del live[start:]
        else:
            live.append(event)
    return live, gone


def tell(events: Sequence[Event]) -> list[Told]:
    """The events that say something, with one result for each call: the last.

    A tool that takes long, or waits for the user, gives a preliminary result first; the kit's own requests have the last.
    """
    told: list[Told] = []
    later: dict[str, str] = {}
    for event in reversed(events):
        if not _says_something(event):
            continue
        results = {str(response.id) for response in event.get_function_responses() if response.id}
        waiting = results & {*event.actions.requested_tool_confirmations, *event.actions.requested_auth_configs}
        late = (results - waiting) & later.keys()
        versions = [event.id, *[f"{event.id}:{number}" for number in range(1, len(late))]] if late else []
        by = frozenset(later[call] for call in late)
        told.append(Told(_without(event, waiting | late, f"{event.id}:{len(late)}" if late else event.id), tuple(versions), by))
        later |= dict.fromkeys(results - waiting, event.invocation_id)
        # Before its call, the id means another one.
        for call in event.get_function_calls():
            later.pop(str(call.id), None)
    return told[::-1]


def story_of(told: Sequence[Event], run_id: str) -> list[Event]:
    """What the run has said; one that began with results of tools goes on with the run that called them."""
    story: list[Event] = []
    for at, event in enumerate(told):
        if event.invocation_id != run_id:
            continue
        results = _result_ids(event)
        caller = next((place for place in range(at - 1, -1, -1) if results & _call_ids(told[place])), None)
        if caller is not None and told[caller].invocation_id != run_id and all(e is not told[caller] for e in story):
            calls = _call_ids(told[caller])
            others = [e for e in told[caller + 1 : at] if calls & _result_ids(e)]
            story = [*story_of(told[: caller + 1], told[caller].invocation_id), *others, *story]
        elif caller is not None and event.author == "user":
            # The kit leaves out what was said between a call and the result that the application gave later.
            end = next(place for place, e in enumerate(story, 1) if e is told[caller])
            story[end:] = [e for e in story[end:] if _result_ids(e)]
        story.append(event)
    return story


def contents_beside(contents: Sequence[types.Content], events: Iterable[Event]) -> list[tuple[types.Content, int | None]]:
    """The contents of a request that are none of the session's, each with how many of those stand behind it.

    That is None for those before all others. They are instructions, artifacts, what was searched: no event has them.
    """
    parts = [part for event in events if event.content for part in event.content.parts or []]
    texts = {part.text for part in parts if part.text}
    others = [part for part in parts if not part.text]
    own = [_is_of_session(content, texts, others) for content in contents]
    return [
        (content, sum(own[at:]) if any(own[:at]) else None)
        for at, content in enumerate(contents)
        if not own[at] and content.parts
    ]


def with_beside(contents: Sequence[types.Content], beside: Sequence[tuple[types.Content, int | None]]) -> list[types.Content]:
    """The contents with those that stand beside them at their places."""
    placed = list(contents)
    for content, behind in reversed([item for item in beside if item[1] is not None]):
        at = max(0, len(contents) - (behind or 0))
        while 0 < at < len(contents) and any(part.function_response for part in contents[at].parts or []):
            at -= 1  # not between calls and results
        placed.insert(at, content)
    return [*[content for content, behind in beside if behind is None], *placed]


def _is_of_session(content: types.Content, texts: Collection[str | None], others: Sequence[types.Part]) -> bool:
    parts = content.parts or []
    if content.role != "user" or any(part.function_response or part.function_call for part in parts):
        return True
    if parts and (parts[0].text or "").startswith(_OTHER_AGENT):
        return True
    return any(part.text in texts if part.text else part in others for part in parts)


def _result_ids(event: Event) -> set[str | None]:
    return {response.id for response in event.get_function_responses() if response.id}


def _call_ids(event: Event) -> set[str | None]:
    return {call.id for call in event.get_function_calls() if call.id}


def _says_something(event: Event) -> bool:
    """Not a piece of a stream, nor what the kit asks of the application, nor a change of state alone."""
    if event.partial or event.content is None or not event.content.parts:
        return False
    names = list(_names(event))
    return not names or not all(name.startswith("adk_") for name in names)


def _names(event: Event) -> Iterator[str]:
    for part in event.content.parts or [] if event.content else []:
        step = part.function_call or part.function_response
        if step is not None:
            yield step.name or ""


def _without(event: Event, calls: Collection[str], new_id: str) -> Event | None:
    """The event without the results of these calls; None if nothing is left."""
    if not calls or event.content is None:
        return event
    parts = [p for p in event.content.parts or [] if not (p.function_response and p.function_response.id in calls)]
    content = event.content.model_copy(update={"parts": parts})
    return event.model_copy(update={"id": new_id, "content": content}) if parts else None
