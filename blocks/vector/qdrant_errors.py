"""PURE: what the errors of a Qdrant client mean, whichever way it talks to the server."""

from __future__ import annotations

import sqlite3
from typing import Literal


class MissingError(Exception):
    """The collection does not exist."""


Verdict = Literal["missing", "passing", "down", "refused", "unknown"]

_GRPC: dict[str, Verdict] = {
    "NOT_FOUND": "missing",
    "UNAVAILABLE": "passing",
    "DEADLINE_EXCEEDED": "passing",
    "RESOURCE_EXHAUSTED": "passing",
    "ABORTED": "passing",
    "INTERNAL": "passing",
    "UNKNOWN": "passing",
}


def judge(error: Exception) -> tuple[Verdict, float]:
    """What an error means, and how many seconds the server asks to wait.

    By what errors carry, not by their classes: those moved between versions of qdrant-client, and grpc has its own.
    """
    asked = getattr(error, "retry_after_s", None)
    if asked is not None:
        return "passing", float(asked)
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return _judge_status(status, getattr(error, "content", b"")), 0.0
    code = getattr(error, "code", None)
    if callable(code):
        return _GRPC.get(getattr(code(), "name", ""), "refused"), 0.0
    source = getattr(error, "source", None)
    if source is not None:
        # Not understood is a ValueError (of pydantic); everything else there is httpx.
        return ("refused" if isinstance(source, ValueError) else "passing"), 0.0
    return _judge_local(error), 0.0


def _judge_status(status: int, content: bytes) -> Verdict:
    if status in {408, 429} or status >= 500:
        return "passing"
    if status == 404:
        # A proxy or a wrong path says 404 as well; taking that for an empty store would start a rebuild.
        return "missing" if b"Not found: Collection" in content or b"doesn't exist" in content else "down"
    return "refused"


def _judge_local(error: Exception) -> Verdict:
    if isinstance(error, ValueError):
        text = str(error)
        return "missing" if text.startswith("Collection ") and text.endswith(" not found") else "refused"
    if isinstance(error, (OSError, TimeoutError)):
        return "passing"
    # A closed local client, or its file.
    return "down" if isinstance(error, (RuntimeError, sqlite3.Error)) else "unknown"


def told(error: Exception) -> str:
    return f"{str(error) or repr(error)!s:.500}"
