"""LangChain's `RedisChatMessageHistory` (langchain_community): a list for each conversation, the newest message first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from memory_engine.errors import ConfigurationError, MissingExtraError, StoreUnreadableError
from memory_engine.importers.langchain_messages import LangChainReader
from memory_engine.importers.source import Item, SourceSession, read_item

_PAGE = 500


class LangChainRedis:
    """The conversations under a prefix of keys. It sends SCAN and LRANGE, nothing that changes anything, not even an expiry.

    A session's name is its key without the prefix; LangChain writes no mark between them, so "message_store:" also finds
    what an application with the prefix "message_store:eu:" wrote. A message is known by its distance from the oldest, which
    stays when newer ones come.
    """

    kind = "langchain-redis"
    order = "their place in the list from its end, because LangChain puts each message at the front"
    tables: tuple[str, ...] = ()

    def __init__(self, url: str, *, key_prefix: str = "message_store:") -> None:
        try:
            from redis.asyncio import Redis
        except ImportError as error:
            needed = "langchain-redis needs the package redis; pip install 'memory-engine-blocks[redis]'."
            raise MissingExtraError(needed) from error
        try:
            self._client: Any = Redis.from_url(url)
        except ValueError as error:
            raise ConfigurationError(f"The source is an address such as redis://localhost:6379/0: {error}") from error
        self._prefix = key_prefix

    async def sessions(self) -> list[SourceSession]:
        from redis.exceptions import RedisError

        pattern = "".join(f"\\{letter}" if letter in "*?[]\\^-" else letter for letter in self._prefix)
        try:
            keys = {key async for key in self._client.scan_iter(match=f"{pattern}*", count=1000, _type="list")}
        except RedisError as error:
            raise StoreUnreadableError(f"The source cannot be read: {type(error).__name__}: {error}") from error
        prefix = self._prefix.encode()
        # A key that is no UTF-8 stays apart from all others, and can be named.
        return [
            SourceSession(key[len(prefix) :].decode("utf-8", "backslashreplace"), {"key": key.hex()}) for key in sorted(keys)
        ]

    async def read(self, session: SourceSession) -> AsyncIterator[Item]:
        from redis.exceptions import RedisError

        reader = LangChainReader()
        key, place = bytes.fromhex(session.fields["key"]), 0
        while True:
            try:
                # From the end, so that what is put at the front meanwhile moves nothing.
                page = await self._client.lrange(key, -(place + _PAGE), -(place + 1))
            except RedisError as error:
                raise StoreUnreadableError(f"The source cannot be read: {type(error).__name__}: {error}") from error
            for text in reversed(page):
                yield read_item(str(place), partial(reader.message, text, str(place)))
                place += 1
            if len(page) < _PAGE:
                return

    async def notes(self) -> list[str]:
        return ["Redis notes no times: the messages get that of the import."]

    async def aclose(self) -> None:
        await self._client.aclose()
