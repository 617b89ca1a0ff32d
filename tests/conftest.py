"""How much the tests do: reduced numbers by default, the full ones with `--soak`."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("soak", settings.get_profile("default"), max_examples=2_000)


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
