"""The store contract for SQLite (in a file, in memory) and PostgreSQL, each by its URI and through an engine of the user's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from memory_engine.sql import SqlStore
from memory_engine.store import Store
from memory_engine.testing.store_contract import StoreContract

Factory = Callable[[], Awaitable[Store]]


class TestSqliteFile(StoreContract):
    @pytest.fixture
    def store_factory(self, tmp_path: Path) -> Factory:
        async def make() -> Store:
            return SqlStore(f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}")

        return make


class TestSqliteInMemory(StoreContract):
    shared = False

    @pytest.fixture
    def store_factory(self) -> Factory:
        async def make() -> Store:
            return SqlStore(None)

        return make


class TestGivenEngine(StoreContract):
    @pytest.fixture
    async def store_factory(self, tmp_path: Path) -> AsyncIterator[Factory]:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'memory.db'}")

        async def make() -> Store:
            return SqlStore(async_engine=engine, table_prefix="own_")

        yield make
        await engine.dispose()


@pytest.mark.soak  # both parts of it are tested above
class TestGivenEngineInMemory(StoreContract):
    shared = False

    @pytest.fixture
    async def store_factory(self) -> AsyncIterator[Factory]:
        engine = create_async_engine("sqlite+aiosqlite://")

        async def make() -> Store:
            return SqlStore(async_engine=engine)

        yield make
        await engine.dispose()


class TestPostgreSQL(StoreContract):
    @pytest.fixture
    def store_factory(self, postgres_uri: str) -> Factory:
        async def make() -> Store:
            return SqlStore(postgres_uri)

        return make


class TestGivenPostgreSQLEngine(StoreContract):
    @pytest.fixture
    async def store_factory(self, postgres_uri: str) -> AsyncIterator[Factory]:
        engine = create_async_engine(postgres_uri, pool_size=5)

        async def make() -> Store:
            return SqlStore(async_engine=engine, table_prefix="own_")

        yield make
        await engine.dispose()
