"""PURE: which messages a summary stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Span = tuple[str, int, int]
"""A session's uid, the seq of the first message, and that behind the last."""


def joined(spans: Sequence[Span], more: Iterable[Span]) -> list[Span]:
    """The spans with more of them, as few as say the same; those of a session in order, sessions as they first came."""
    sessions: dict[str, list[tuple[int, int]]] = {}
    for uid, start, end in (*spans, *more):
        sessions.setdefault(uid, []).append((start, end))
    merged: list[Span] = []
    for uid, parts in sessions.items():
        begin, stop = None, -1
        for start, end in sorted(parts):
            if begin is None:
                begin, stop = start, end
            elif start <= stop:
                stop = max(stop, end)
            else:
                merged.append((uid, begin, stop))
                begin, stop = start, end
        if begin is not None:
            merged.append((uid, begin, stop))
    return merged
