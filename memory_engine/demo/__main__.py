"""`python -m memory_engine.demo`: all of Apollo 13 through a memory of 4,000 tokens."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from memory_engine.blocks.models import OpenAICompatibleModel
from memory_engine.demo.drawing import Screen
from memory_engine.demo.play import play, second_start

_SMALLEST = 1_000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when all that it shows holds, 1 when not, 2 for wrong arguments, 130 when it was stopped."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.token_limit < _SMALLEST:
        parser.error(f"--token-limit is at least {_SMALLEST}")
    if options.limit is not None and options.limit < 1:
        parser.error("--limit is at least 1")
    if options.keep is not None and (options.keep.exists() or not options.keep.parent.is_dir()):
        parser.error(f"--keep: {options.keep} exists already, or its folder does not; name a new file")
    try:
        return _run(options)
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped.\n")
        return 130
    except BrokenPipeError:
        # Whoever read the output (a pager, `head`) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(options: argparse.Namespace) -> int:
    if options.second_start:
        path, question = options.second_start
        sys.stdout.write(json.dumps(asyncio.run(second_start(Path(path), options.token_limit, question))))
        return 0
    screen = Screen()
    llm = None
    if options.llm_url is not None:
        key = os.environ.get(options.llm_key) if options.llm_key else None
        llm = OpenAICompatibleModel(options.llm_model, base_url=options.llm_url, api_key=key)
    with tempfile.TemporaryDirectory(prefix="apollo13-") as folder:
        path = options.keep or Path(folder) / "memory.db"
        held = asyncio.run(play(screen, path.absolute(), token_limit=options.token_limit, limit=options.limit, llm=llm))
    if options.keep is not None:
        screen.line(("kept         ", "dim"), str(options.keep))
    if not held:
        screen.line(("Something that has to hold does not: see ✗ and the totals.", "bad"))
    return 0 if held else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m memory_engine.demo", description=__doc__)
    parser.add_argument("--limit", type=int, metavar="N", help="play the first N utterances only (default: all 10,876)")
    parser.add_argument("--keep", type=Path, metavar="PATH", help="keep the SQLite file there (default: a temporary folder)")
    parser.add_argument("--token-limit", type=int, default=4_000, metavar="N", help="tokens of a context (default: 4000)")
    parser.add_argument(
        "--llm-url", metavar="URL", help="an OpenAI-compatible endpoint for facts and summary (default: a script)"
    )
    parser.add_argument("--llm-model", default="default", metavar="NAME", help="the model there")
    parser.add_argument("--llm-key", metavar="VARIABLE", help="the environment variable that holds its API key")
    parser.add_argument("--second-start", nargs=2, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
