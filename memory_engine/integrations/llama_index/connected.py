"""Which session of which engine a memory is: plain JSON, and the connection that it holds as long as it lives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Literal, Self, TypeVar

from llama_index.core.memory.types import BaseMemory
from pydantic import Field, PrivateAttr, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from memory_engine import Memory
from memory_engine.errors import ClosedError
from memory_engine.integrations.llama_index import engines
from memory_engine.integrations.llama_index.engines import Connection, User

R = TypeVar("R")


class Connected(BaseMemory):
    """A session by name, and its engine by name. Copies, and what comes out of a serialized one, hold the same engine."""

    session_id: str
    engine: str
    user_id: str | None = None
    tenant: str = ""
    on_write: Literal["do", "raise", "ignore"] = "do"
    arguments: dict[str, Any] = Field(default_factory=dict)
    needs: dict[str, str] = Field(default_factory=dict)

    _handle: Memory | None = PrivateAttr(default=None)
    _connection: Connection | None = PrivateAttr(default=None)
    _user: User | None = PrivateAttr(default=None)

    def model_post_init(self, _: object, /) -> None:
        # Held from the beginning: the one that this is a copy of may go before this is used.
        self._connection = engines.find(self.engine)

    @property
    def handle(self) -> Memory:
        """The memory of ours behind it; only for the event loop of its engine, `acall` is for any.
        Raises `ConfigurationError` when no engine has that name here."""
        return self._connected()[1]

    async def acall(self, work: Callable[[Memory], Awaitable[R]]) -> R:
        """What `work` returns for the memory of ours behind this one: `await memory.acall(lambda handle: handle.pop())`.

        It runs in the event loop of the engine, which is another than the caller's for a memory of `from_defaults`.
        """
        connection, handle = self._connected()
        return await connection.call(lambda: work(handle))

    async def aclose(self, *, timeout: float = 30.0) -> None:
        """Let pending deliveries end (at most `timeout` seconds). The last memory of an engine that `from_defaults` opened
        closes it. Idempotent."""
        connection, self._connection = self._connection, None
        handle, self._handle = self._handle, None
        if connection is None or connection.closed:
            return
        user, self._user = self._user, None
        if user is not None:
            await engines.release(connection, user, timeout)
        elif handle is not None:
            await connection.call(partial(handle.aclose, timeout=timeout), connect=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _own(self, connection: Connection) -> None:
        """Count as one of those for whose sake the engine is open."""
        self._connection, self._user = connection, User()
        connection.users.add(self._user)
        self._handle = connection.engine.session(self.session_id, user_id=self.user_id, tenant=self.tenant)

    def _connected(self) -> tuple[Connection, Memory]:
        found = engines.find(self.engine)
        if found is None:
            if not self._opens_again:
                raise engines.lost(self.engine, self.needs)
            found = engines.open_engine(self.arguments, self.engine)
        if found.closed:
            raise ClosedError(f"The engine {self.engine!r} is closed; register one that is open under this name.")
        if self._handle is None or self._handle.engine is not found.engine:
            handle = found.engine.session(self.session_id, user_id=self.user_id, tenant=self.tenant)
            self._handle = handle if self.on_write == "do" else handle.read_only(on_write=self.on_write)
        self._connection = found
        return found, self._handle

    @property
    def _opens_again(self) -> bool:
        """Whether what JSON can carry is enough to open the engine."""
        return not self.needs and bool(self.arguments.get("async_database_uri"))

    def _wait(self, work: Callable[[], Awaitable[R]], method: str) -> R:
        return self._connected()[0].wait(work, method)

    # -- copies ----------------------------------------------------------------------------------------------

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._user = None
        return copied

    def __deepcopy__(self, memo: Mapping[int, Any] | None = None) -> Self:
        return self.__copy__()  # The engine is shared: what is copied is which session it is.

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Replaces LlamaIndex's of the same name."""
        self._keep()
        return {**handler(self), "class_name": self.class_name()}

    def __getstate__(self) -> dict[str, Any]:
        self._keep()
        fields_set = set(self.model_fields_set)
        nothing: dict[str, Any] = {"__pydantic_extra__": None, "__pydantic_private__": None}
        return {"__dict__": dict(self.__dict__), "__pydantic_fields_set__": fields_set, **nothing}

    def _keep(self) -> None:
        """What is serialized holds nothing: an engine that nobody could open again has to stay for it."""
        if self._connection is not None and not self._opens_again:
            engines.keep(self._connection)
