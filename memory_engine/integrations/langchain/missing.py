"""A clear error for a package of LangChain that is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from memory_engine.errors import MissingExtraError

_EXTRAS = {"langchain_classic": "langchain-classic"}


@contextmanager
def needs(package: str) -> Iterator[None]:
    """Around imports of `package`: what is missing is named with the extra that brings it.

    :raises MissingExtraError: the package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        extra = _EXTRAS.get(package, "langchain")
        raise MissingExtraError(f"This needs the package {package}; pip install 'memory-engine-blocks[{extra}]'.") from error
