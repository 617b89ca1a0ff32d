"""Errors of models and services as the two that delivery knows: not available now (wait), or wrong (look at it)."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

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
    """The error to raise instead, about "The embedder x"; the caller raises it from the original one."""
    if isinstance(error, MemoryEngineError):
        return error
    what = f"{type(error).__name__}: {str(error)[:300]}"
    if any(_unavailable(cause) for cause in _causes(error)):
        return BlockUnavailableError(f"{who} is not available ({what}).")
    return BlockError(f"{who} failed ({what}).")


def asked_to_wait(error: BaseException) -> float | None:
    """Seconds after which the service that refused wants to be asked again, if it said so."""
    for cause in _causes(error):
        if isinstance(cause, BlockUnavailableError) and cause.retry_after is not None:
            return cause.retry_after
        headers = getattr(getattr(cause, "response", None), "headers", None)
        seconds = None if headers is None else retry_after(headers)
        if seconds is not None:
            return seconds
    return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """How many seconds the service asks to wait: a number, or a date."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    return max(0.0, seconds) if math.isfinite(seconds) else None


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
