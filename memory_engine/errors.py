"""Everything that can go wrong, as one tree. The docstring of an error is its default message and says what to do.

MemoryEngineError
├── ConfigurationError            (also a ValueError)
│   ├── BlockDefinitionError
│   └── MissingExtraError         (also an ImportError)
├── InvalidMessageError           (also a ValueError)
│   └── MessageConflictError
├── MessageNotFoundError          (also a KeyError)
├── BudgetExceededError
├── TokenizerError
├── RenderError
├── ReadOnlyError
├── SessionOwnerError
├── WrongEventLoopError
├── ClosedError
├── DrainTimeoutError             (also a TimeoutError)
├── StoreError
│   ├── StoreBusyError
│   ├── StoreFullError
│   ├── StoreUnavailableError
│   ├── StoreUnreadableError
│   └── SchemaVersionError
└── BlockError
    ├── BlockUnavailableError
    ├── BlockTimeoutError         (also a TimeoutError)
    ├── BlockResultError
    └── BlockStateError
"""

from __future__ import annotations

import inspect


class MemoryEngineError(Exception):
    """The memory engine could not do what was asked."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or ""))

    def __str__(self) -> str:
        return str(self.args[0])


class ConfigurationError(MemoryEngineError, ValueError):
    """An argument of the memory is wrong; correct the call, nothing was opened or written."""


class BlockDefinitionError(ConfigurationError):
    """A memory block cannot be used as it is defined; correct its fields."""


class MissingExtraError(ConfigurationError, ImportError):
    """An optional package is missing; install the extra of `memory-engine-blocks` that the message names."""


class InvalidMessageError(MemoryEngineError, ValueError):
    """A message cannot be stored as it is; correct it, nothing was written."""


class MessageConflictError(InvalidMessageError):
    """A message with this id but other content is stored already; use a new id, or delete the stored one first."""


class MessageNotFoundError(MemoryEngineError, KeyError):
    """No message of this session has that id; look it up with `get_all()`."""


class BudgetExceededError(MemoryEngineError):
    """What may never be cut does not fit into the token budget; raise `token_limit` or shorten the largest contributors.

    `budget` and `needed` are tokens; `contributors` are (what, tokens) pairs, the largest first.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        budget: int = 0,
        needed: int = 0,
        contributors: tuple[tuple[str, int], ...] = (),
    ) -> None:
        if message is None:
            largest = ", ".join(f"{what} ({tokens} tokens)" for what, tokens in contributors[:5])
            message = (
                f"What may never be cut needs {needed} tokens, the budget is {budget}. Largest: {largest or 'nothing'}. "
                "Raise token_limit, lower reserved_tokens, or shorten these."
            )
        super().__init__(message)
        self.budget = budget
        self.needed = needed
        self.contributors = contributors


class TokenizerError(MemoryEngineError):
    """The tokenizer raised or did not return a count; nothing was written. Give a `tokenizer_fn` that counts any text."""


class RenderError(MemoryEngineError):
    """The renderer raised or did not return text; correct the function given as `renderer`."""


class ReadOnlyError(MemoryEngineError):
    """This memory is a read-only view; write through the memory that it was made of."""


class SessionOwnerError(MemoryEngineError):
    """This session belongs to another user; open it with the `user_id` it was created with."""


class WrongEventLoopError(MemoryEngineError):
    """This memory belongs to another event loop; create one `MemoryEngine` per event loop."""


class ClosedError(MemoryEngineError):
    """This memory is closed; create a new one on the same database, everything is still there."""


class DrainTimeoutError(MemoryEngineError, TimeoutError):
    """Deliveries were still pending when the time was over; they stay queued and go on later."""


class StoreError(MemoryEngineError):
    """The database refused an operation; nothing of it was written."""


class StoreBusyError(StoreError):
    """The database stayed locked by another writer; nothing was written. Retry, or raise `busy_timeout`."""


class StoreFullError(StoreError):
    """The disk of the database is full; nothing was written. Make room and retry."""


class StoreUnavailableError(StoreError):
    """The database cannot be reached, or the connection was lost. Retry when it is back, or raise `busy_timeout`."""


class StoreUnreadableError(StoreError):
    """The database cannot be opened or is not one of ours; check the URI, the file and its permissions."""


class SchemaVersionError(StoreError):
    """The database has another schema version; run `python -m memory_engine upgrade URI`, or update this package."""


class BlockError(MemoryEngineError):
    """A memory block failed; its messages stay queued and the receipt names the cause."""


class BlockUnavailableError(BlockError):
    """A service that a block needs is not available; the delivery waits and is retried until it is.

    `retry_after` are the seconds for which the service wants to be left alone, None when it did not say.
    """

    def __init__(self, message: str | None = None, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BlockTimeoutError(BlockError, TimeoutError):
    """A memory block took longer than its time limit."""


class BlockResultError(BlockError):
    """A memory block returned something that is not a str, a list of content blocks or a list of messages."""


class BlockStateError(BlockError):
    """A memory block holds state that cannot be saved; use JSON-able fields, `self.records`, or Field(exclude=True)."""
