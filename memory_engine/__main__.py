"""`python -m memory_engine`: maintenance of databases."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from memory_engine.errors import MemoryEngineError


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
    parser = argparse.ArgumentParser(prog="python -m memory_engine", description="Maintenance of memory databases.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    upgrade = commands.add_parser("upgrade", help="bring the tables of a database to the version this package needs")
    upgrade.add_argument("uri", metavar="URI", help="such as sqlite+aiosqlite:///memory.db")
    upgrade.add_argument("--table-prefix", default="memory_", metavar="PREFIX")
    upgrade.set_defaults(run=_upgrade)
    return parser


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
