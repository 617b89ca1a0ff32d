"""Errors of models and services as the two that delivery knows: not available now (wait), or wrong (look at it)."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from memory_engine import BlockUnavailableError
from memory_engine.errors import BlockError, MemoryEngineError

UNAVAILABLE_NAMES = frozenset(
    {
        "APIConnectionError",
        "APITimeoutError",
        "ClientConnectionError",
        "ConnectError",
        "ConnectTimeout",
        "ConnectionError",
        "DeadlineExceeded",
        "EndpointConnectionError",
        "InternalServerError",
        "NetworkError",
        "RateLimitError",
        "ReadTimeout",
        "ResourceExhausted",
        "ServerTimeoutError",
        "ServiceUnavailable",
        "ThrottlingException",
        "Timeout",
        "TimeoutException",
        "TooManyRequests",
        "TransportError",
        "URLError",
    }
)
"""Classes of clients (openai, httpx, requests, aiohttp, google, botocore) by name, so that none has to be imported."""


def unavailable_status(status: int) -> bool:
    """Whether a request that was answered so may succeed later."""
    return status in {408, 425, 429} or (status >= 500 and status != 501)


def translate(error: Exception, who: str) -> MemoryEngineError:
    """The error to raise instead; the caller raises it from the original one."""
    if isinstance(error, MemoryEngineError):
        return error
    what = f"{type(error).__name__}: {str(error)[:300]}"
    if any(_unavailable(cause) for cause in _causes(error)):
        return BlockUnavailableError(f"The embedder {who} is not available ({what}).")
    return BlockError(f"The embedder {who} failed ({what}).")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from: retrying libraries wrap what happened."""
    for _ in range(5):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _unavailable(error: BaseException) -> bool:
    status = _status(error)
    if status is not None:
        return unavailable_status(status)
    if isinstance(error, (ConnectionError, TimeoutError, socket.gaierror)):
        return True
    return any(base.__name__ in UNAVAILABLE_NAMES for base in type(error).__mro__)


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    for holder, name in ((error, "status_code"), (error, "status"), (response, "status_code"), (error, "code")):
        value = getattr(holder, name, None)
        if isinstance(value, int) and 100 <= value < 600:
            return value
    return None
