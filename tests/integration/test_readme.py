"""Every Python block of the README and of docs/ runs as it stands, in a process and a folder of its own, warnings as errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL), start=1
    )
]


INTEGRATIONS = ("agent_framework", "google_adk", "langchain", "llama_index", "openai_agents", "pydantic_ai")


class Model(BaseHTTPRequestHandler):
    """OpenAI's and Anthropic's APIs: it asks for the first tool that it is offered, then says what the tool said."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        reply = as_anthropic(asked) if self.path.endswith("/messages") else as_openai(asked)
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are no news."""


def as_openai(asked: dict[str, Any]) -> dict[str, Any]:
    newest = asked["messages"][-1]
    message: dict[str, Any] = {"role": "assistant", "content": f"I am told: {newest['content']}"}
    if newest["role"] == "user" and asked.get("tools"):
        function = {"name": asked["tools"][0]["function"]["name"], "arguments": json.dumps({"town": "Turin"})}
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call-1", "type": "function", "function": function}],
        }
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": asked["model"], "choices": [choice]}


def as_anthropic(asked: dict[str, Any]) -> dict[str, Any]:
    (newest,) = content if isinstance(content := asked["messages"][-1]["content"], list) else [{"type": "text"}]
    said: dict[str, Any] = {"type": "text", "text": f"I am told: {newest.get('content')}"}
    if newest["type"] == "text":
        said = {"type": "tool_use", "id": "call-1", "name": asked["tools"][0]["name"], "input": {"town": "Turin"}}
    usage = {"input_tokens": 1, "output_tokens": 1}
    reply = {"id": f"message-{len(asked['messages'])}", "type": "message", "role": "assistant", "model": asked["model"]}
    return reply | {"content": [said], "stop_reason": said["type"], "stop_sequence": None, "usage": usage}


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    """The address of such a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Model) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_readme_has_examples() -> None:
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("block", BLOCKS)
def test_example_runs(block: str, tmp_path: Path, model: str) -> None:
    script = tmp_path / "example.py"
    script.write_text(block, encoding="utf-8")
    # Frameworks warn of themselves.
    strict = [] if "memory_engine.integrations" in block else ["-W", "error"]
    keys = {
        "OPENAI_BASE_URL": f"{model}/v1",
        "OPENAI_API_KEY": "none",
        "ANTHROPIC_BASE_URL": model,
        "ANTHROPIC_API_KEY": "none",
    }
    done = subprocess.run(
        [sys.executable, *strict, str(script)],
        cwd=tmp_path,
        env={**os.environ, **keys},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or "print" not in block


def test_the_loop_of_an_agent_is_short() -> None:
    loops = [param.values[0] for param in BLOCKS if "memory.turn(" in str(param.values[0])]
    assert len(loops) == 2 and all(len(str(loop).splitlines()) < 40 for loop in loops)


def test_the_readme_shows_every_integration() -> None:
    shown = [str(param.values[0]) for param in BLOCKS if str(param.id).startswith("README")]
    assert [name for name in INTEGRATIONS if not any(f"integrations.{name} import" in block for block in shown)] == []


def test_the_two_commands_are_shown() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in text
    assert "make test" in text
