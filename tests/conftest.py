"""How much the tests do: reduced numbers by default, of random examples always the same, the full ones with `--soak`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from itertools import count

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import make_url

from memory_engine.sql import SqlStore
from memory_engine.testing.postgres import PostgresServer

settings.register_profile(
    "default", max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("soak", settings.get_profile("default"), max_examples=2_000, derandomize=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", default=False, help="run everything with its full numbers")
    parser.addoption("--llm", action="store_true", default=False, help="run tests/llm with a small model on this machine")


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("soak" if config.getoption("--soak") else "default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--soak"):
        return
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(pytest.mark.skip(reason="only with --soak"))


@pytest.fixture(scope="session")
def soak(pytestconfig: pytest.Config) -> bool:
    """Whether the full numbers are asked for."""
    return bool(pytestconfig.getoption("--soak"))


@pytest.fixture(scope="session")
def scale(soak: bool) -> int:
    """By how much a test multiplies its reduced numbers: 1, or 20 with `--soak`."""
    return 20 if soak else 1


_numbers = count(1)


class Databases:
    """Makes databases on a PostgreSQL server, each a copy of one that has our tables already (`own_` and the usual prefix)."""

    def __init__(self, uri: str) -> None:
        self._uri = make_url(uri)
        self._template = f"template_{os.getpid()}"
        self._made: list[str] = []

    def make(self) -> str:
        """The address of a new one."""
        if not self._made:
            self._execute(f"CREATE DATABASE {self._template}")
            self._made.append(self._template)
            asyncio.run(self._create_tables(self.address(self._template)))
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {self._template}")
        self._made.append(name)
        return self.address(name)

    def address(self, name: str) -> str:
        """The address of a database of that name."""
        return self._uri.set(database=name).render_as_string(hide_password=False)

    def drop(self) -> None:
        """Drop them all."""
        for name in reversed(self._made):
            self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def _create_tables(self, uri: str) -> None:
        for prefix in ("memory_", "own_"):
            store = SqlStore(uri, table_prefix=prefix)
            await store.connect()
            await store.aclose()

    def _execute(self, statement: str) -> None:
        asyncio.run(_execute(self._uri.set(drivername="postgresql").render_as_string(hide_password=False), statement))


async def _execute(address: str, statement: str) -> None:
    import asyncpg

    connection = await asyncpg.connect(address)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Databases]:
    """A PostgreSQL server: that of `TEST_DATABASE_URI`, else one of our own for as long as the tests run."""
    given = os.environ.get("TEST_DATABASE_URI")
    if given:
        databases = Databases(given)
        yield databases
        databases.drop()
        return
    with PostgresServer() as server:
        yield Databases(server.uri())


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server of this test's own, which may crash it."""
    with PostgresServer() as server:
        server.execute("CREATE DATABASE memory")
        yield server


@pytest.fixture
def postgres_uri(postgres: Databases) -> str:
    """The address of a PostgreSQL database of this test's own, with our tables in it."""
    return postgres.make()
