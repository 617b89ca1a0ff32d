"""`python -m memory_engine`: maintenance of databases, workers that deliver for agents in other processes, imports."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence

from memory_engine.errors import MemoryEngineError
from memory_engine.importers.command import add_import


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed. Wrong arguments exit with 2."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except MemoryEngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m memory_engine", description="Maintenance, delivery and import of memories."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    upgrade = commands.add_parser("upgrade", help="bring the tables of a database to the version this package needs")
    upgrade.add_argument("uri", metavar="URI", help="such as sqlite+aiosqlite:///memory.db")
    upgrade.add_argument("--table-prefix", default="memory_", metavar="PREFIX")
    upgrade.set_defaults(run=_upgrade)
    worker = commands.add_parser("worker", help="deliver what waits for the memory blocks of an application")
    worker.add_argument("--app", required=True, metavar="MODULE:ENGINE", help="a MemoryEngine, or a function that makes one")
    worker.add_argument("--once", action="store_true", help="end when nothing is due any more, for a scheduler")
    worker.add_argument("--grace", type=float, default=30.0, metavar="SECONDS", help="for what runs when it is told to end")
    worker.set_defaults(run=_worker)
    add_import(commands)
    return parser


def _worker(options: argparse.Namespace) -> int:
    from memory_engine.worker import run_worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(run_worker(options.app, once=options.once, grace=options.grace))
    return 0


def _upgrade(options: argparse.Namespace) -> int:
    from memory_engine.sql.schema import upgrade_database

    before, after = asyncio.run(upgrade_database(options.uri, table_prefix=options.table_prefix))
    if before == after:
        print(f"The database has schema version {after} already.")
    elif before == 0:
        print(f"Created the tables of schema version {after}.")
    else:
        print(f"Upgraded from schema version {before} to {after}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
