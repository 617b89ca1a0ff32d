"""A part of a conversation in another process: nothing is left of the first but its database."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from scenario import Script

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, importlib, json, sys
module, function, uri, start, stop, settings = sys.argv[1:]
talk = getattr(importlib.import_module(module), function)
script = asyncio.run(talk(uri, range(int(start), int(stop)), **json.loads(settings)))
print(json.dumps([script.seen, script.recalled, script.problems]))
"""


async def talk_elsewhere(talk: Callable[..., Awaitable[Script]], uri: str, turns: range, **settings: Any) -> Script:
    """What `await talk(uri, turns, **settings)` returns in a process of its own; `talk` stands at the top of its module."""
    source = Path(inspect.getfile(talk))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (source.parent, Path(__file__).parent, ROOT)))}
    arguments = [source.stem, talk.__name__, uri, str(turns.start), str(turns.stop), json.dumps(settings)]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = await asyncio.to_thread(subprocess.run, command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    seen, recalled, problems = json.loads(done.stdout.splitlines()[-1])
    return Script(seen=seen, recalled=recalled, problems=problems)
