"""The settings of a memory as one validated value; every wrong argument is refused here, with what to do instead."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TypeGuard, get_args

from memory_engine.errors import ConfigurationError
from memory_engine.render import Renderer

InsertMethod = Literal["system", "user", "split"]
DeliveryMode = Literal["background", "inline", "worker"]
OnBlockError = Literal["skip", "raise"]
TokenizerFn = Callable[[str], "int | Sized"]


class Clock(Protocol):
    """Where times of messages and sessions come from. Order and leases never depend on it."""

    def now(self) -> datetime:
        """The time now, aware."""


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Limits:
    """Time limits and retries; durations in seconds.

    `get` bounds each block's `_aget` and `atruncate`; `delivery` bounds one `_aput`. A failed delivery waits
    `first_retry`, then twice as long each time up to `last_retry`; after `max_attempts` failures that are not an
    unavailable service, the chunk is parked. A lease that its owner stopped renewing ends after `lease`.
    """

    get: float = 5.0
    delivery: float = 300.0
    first_retry: float = 1.0
    last_retry: float = 300.0
    max_attempts: int = 8
    lease: float = 30.0
    poll: float = 5.0
    concurrency: int = 8

    def __post_init__(self) -> None:
        for name in ("get", "delivery", "first_retry", "last_retry", "lease", "poll"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value < math.inf:
                raise ConfigurationError(f"limits.{name} is a positive number of seconds, not {value!r}.")
        for name in ("max_attempts", "concurrency"):
            _check_int(f"limits.{name}", getattr(self, name), least=1)


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides over budget, view and delivery of one memory; sizes in tokens."""

    token_limit: int
    chat_history_token_ratio: float
    token_flush_size: int
    insert_method: InsertMethod
    reserved_tokens: int
    delivery: DeliveryMode
    on_block_error: OnBlockError
    max_turns: int | None
    start_on_user: bool
    max_tool_result_tokens: int
    renderer: Renderer | None
    limits: Limits

    @property
    def budget(self) -> int:
        """What the messages of one `get` may cost."""
        return self.token_limit - self.reserved_tokens

    @property
    def history_share(self) -> int:
        """What history may cost before the FIFO flushes."""
        return int(self.chat_history_token_ratio * self.budget)


def make_settings(
    *,
    token_limit: int,
    chat_history_token_ratio: float,
    token_flush_size: int | None,
    insert_method: str,
    reserved_tokens: int,
    delivery: str,
    on_block_error: str,
    max_turns: int | None,
    start_on_user: bool,
    max_tool_result_tokens: int | None,
    renderer: Renderer | None,
    limits: Limits | None,
) -> Settings:
    """Validated settings; raises `ConfigurationError`."""
    _check_int("token_limit", token_limit, least=1)
    _check_int("reserved_tokens", reserved_tokens, least=0)
    if reserved_tokens >= token_limit:
        raise ConfigurationError(
            f"reserved_tokens ({reserved_tokens}) leaves nothing of token_limit ({token_limit}); lower it."
        )
    if not _is_number(chat_history_token_ratio) or not 0 < chat_history_token_ratio <= 1:
        raise ConfigurationError(f"chat_history_token_ratio is a number over 0 and up to 1, not {chat_history_token_ratio!r}.")
    if token_flush_size is None:
        token_flush_size = max(1, token_limit // 10)
    _check_int("token_flush_size", token_flush_size, least=1)
    if token_flush_size > token_limit:
        raise ConfigurationError(f"token_flush_size ({token_flush_size}) exceeds token_limit ({token_limit}); lower it.")
    if max_turns is not None:
        _check_int("max_turns", max_turns, least=0)
    share = int(chat_history_token_ratio * (token_limit - reserved_tokens))
    if max_tool_result_tokens is None:
        max_tool_result_tokens = max(1, share // 4)
    _check_int("max_tool_result_tokens", max_tool_result_tokens, least=1)
    if not isinstance(start_on_user, bool):
        raise ConfigurationError(f"start_on_user is True or False, not {start_on_user!r}.")
    if renderer is not None and not callable(renderer):
        raise ConfigurationError("renderer is a function that makes text of sections, or None for the built-in one.")
    if limits is not None and not isinstance(limits, Limits):
        raise ConfigurationError(f"limits is a memory_engine.settings.Limits, not {limits!r}.")
    return Settings(
        token_limit=token_limit,
        chat_history_token_ratio=float(chat_history_token_ratio),
        token_flush_size=token_flush_size,
        insert_method=_choice("insert_method", insert_method, InsertMethod),
        reserved_tokens=reserved_tokens,
        delivery=_choice("delivery", delivery, DeliveryMode),
        on_block_error=_choice("on_block_error", on_block_error, OnBlockError),
        max_turns=max_turns,
        start_on_user=start_on_user,
        max_tool_result_tokens=max_tool_result_tokens,
        renderer=renderer,
        limits=limits or Limits(),
    )


def check_sizes(**sizes: object) -> None:
    """Refuse what cannot be a number of tokens."""
    for name, size in sizes.items():
        _check_int(name, size, least=0)


def check_seconds(name: str, value: object) -> float:
    """A finite number of seconds from 0 up."""
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ConfigurationError(f"{name} is a number of seconds from 0 up, not {value!r:.80}.")
    return float(value)


def check_timeout(value: object) -> None:
    """Refuse what is neither None (no limit) nor a number of seconds."""
    if value is not None:
        check_seconds("timeout", value)


def check_parts(*, tokenizer_fn: object, clock: object, store: object) -> None:
    """Refuse what cannot count, tell the time, or store."""
    if tokenizer_fn is not None and not callable(tokenizer_fn):
        raise ConfigurationError(f"tokenizer_fn is a function from text to its number of tokens, not {tokenizer_fn!r:.80}.")
    if clock is not None and not callable(getattr(clock, "now", None)):
        raise ConfigurationError(f"clock has a method now() that returns an aware datetime; {clock!r:.80} has none.")
    if store is not None and not callable(getattr(store, "append", None)):
        raise ConfigurationError(f"store is a memory_engine.store.Store, not {store!r:.80}.")


def check_database(
    *, async_database_uri: object, async_engine: object, table_prefix: object, sqlite_synchronous: object, busy_timeout: object
) -> None:
    """Refuse values of the wrong type; what they say is checked by the store."""
    if async_database_uri is not None and async_engine is not None:
        raise ConfigurationError("Give either async_database_uri or async_engine.")
    if async_engine is not None and not hasattr(async_engine, "sync_engine"):
        raise ConfigurationError(
            f"async_engine is an AsyncEngine, as sqlalchemy.ext.asyncio.create_async_engine makes it, not {async_engine!r:.80}."
        )
    for name, text in (("table_prefix", table_prefix), ("sqlite_synchronous", sqlite_synchronous)):
        if not isinstance(text, str):
            raise ConfigurationError(f"{name} is a text, not {text!r:.80}.")
    check_seconds("busy_timeout", busy_timeout)


def check_id(what: str, value: object, *, empty: bool = False) -> str:
    """A text that may serve as an id in every database: 1 to 1,000 characters (or none), no NUL, no lone surrogate."""
    if not isinstance(value, str) or len(value) > 1000 or "\x00" in value or (not value and not empty):
        raise ConfigurationError(f"{what} is a text of 1 to 1,000 characters without NUL, not {value!r:.80}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigurationError(
            f"{what} {value!r:.80} has a lone surrogate, which no database keeps; clean the text."
        ) from error
    return value


def check_names(names: Sequence[str]) -> None:
    """Refuse two blocks that would share tag and state; names that differ in case only would share the tag."""
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            raise ConfigurationError(f"Two memory blocks are called {name!r}; give each a name of its own.")
        if name.lower() in {"memory", "history", "pinned"}:
            raise ConfigurationError(f"A memory block cannot be called {name!r}, the engine uses that name itself.")
        seen.add(name.lower())


def _check_int(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name} is a whole number from {least} up, not {value!r}.")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _choice(name: str, value: object, literal: Any) -> Any:
    if value not in get_args(literal):
        raise ConfigurationError(f"{name} is one of {', '.join(map(repr, get_args(literal)))}, not {value!r}.")
    return value
