"""`python -m memory_engine import`: its arguments, and the way from them to an import."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from memory_engine.errors import ConfigurationError
from memory_engine.importers.source import Source

_HELP = "bring the history of another library over; without --apply it only looks"


def add_import(commands: Any) -> None:
    """Add the command to those of the program."""
    parser: argparse.ArgumentParser = commands.add_parser("import", help=_HELP, description=_HELP)
    parser.add_argument("uri", metavar="URI", help="the source: a path, or an address such as postgresql://... or redis://...")
    parser.add_argument("--from", dest="kind", required=True, choices=sorted(_SOURCES), help="what wrote it")
    parser.add_argument("--to", metavar="URI", help="our database, such as sqlite+aiosqlite:///memory.db")
    parser.add_argument("--apply", action="store_true", help="do it; without this it is a dry run")
    parser.add_argument("--only", action="append", default=[], metavar="SESSION", help="this session alone; may be repeated")
    parser.add_argument("--skip", action="store_true", help="leave out what cannot be brought over")
    parser.add_argument("--append", action="store_true", help="also behind messages that a session has already")
    parser.add_argument("--flush", action="store_true", help="archive everything: the sessions are at their end")
    parser.add_argument("--unpin-system", action="store_true", help="let system messages leave the view like others")
    parser.add_argument("--all", action="store_true", help="show every session")
    here = parser.add_argument_group("where it goes")
    here.add_argument("--tenant", default="", help="the tenant of the sessions")
    here.add_argument("--user-id", metavar="TEMPLATE", help="whose they are: a name, or with {session} or {user_id} in it")
    here.add_argument("--session-pattern", metavar="REGEX", help="its named groups may stand in --user-id")
    here.add_argument("--session-prefix", default="", metavar="TEXT", help="in front of the session ids of the source")
    here.add_argument("--table-prefix", default="memory_", metavar="PREFIX", help="of our tables")
    here.add_argument("--token-limit", type=int, default=30_000, help="that of the application: it decides what is archived")
    here.add_argument("--history-ratio", type=float, default=0.7, help="the application's chat_history_token_ratio")
    there = parser.add_argument_group("where it comes from")
    there.add_argument("--table", help="the table of messages, if it has another name than usual")
    there.add_argument("--schema", help="its schema")
    there.add_argument("--session-column", help="langchain-sql: the column that names the session")
    there.add_argument("--status", choices=("active", "archived"), help="llama-index: only these")
    there.add_argument("--key-prefix", help="langchain-redis: what is in front of the session's name in keys")
    there.add_argument("--encoding", help="langchain-file: if it is not UTF-8")
    there.add_argument("--memories", metavar="SESSION", help="mem0-history: bring its memories over, too, into this session")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Carry the command out: 0 when everything was brought over and verified, or could be; else 1. 130 when interrupted.

    :raises MemoryEngineError: it could not begin.
    """
    if options.apply and not options.to:
        raise ConfigurationError("--apply needs --to, the database that the history goes to.")
    try:
        return asyncio.run(_run(options))
    except KeyboardInterrupt:
        went = "What is written stays; the same command again goes on from there." if options.apply else "Nothing was written."
        sys.stderr.write(f"Interrupted. {went}\n")
        return 128 + signal.SIGINT


async def _run(options: argparse.Namespace) -> int:
    from memory_engine.importers.address import check_apart
    from memory_engine.importers.report import Progress, plan_lines, say
    from memory_engine.importers.run import Target, make_plan

    target = Target(
        tenant=options.tenant,
        user_id=options.user_id,
        session_prefix=options.session_prefix,
        session_pattern=options.session_pattern,
        only=tuple(options.only),
        unpin_system=options.unpin_system,
    )
    async with aclosing(_source(options)) as source:
        if options.to:
            check_apart(options.uri, options.to, tables=source.tables, table_prefix=options.table_prefix)
        with Progress("reading", None) as progress:
            plan = await make_plan(source, target, step=progress.step)
        say(*plan_lines(plan, source.order, every=options.all))
        left = plan.refused if not options.skip else 0
        if not options.apply:
            say("This was a dry run, nothing was written: --apply brings it over.")
        if left:
            say("Sessions with rows that cannot be brought over are left out: correct these, or leave them out with --skip.")
        written = not options.apply or await _apply(options, source, target, plan)
        return int(bool(left) or not written)


async def _apply(options: argparse.Namespace, source: Source, target: Any, plan: Any) -> bool:
    """Whether everything that was to be written is there."""
    from memory_engine.engine import MemoryEngine
    from memory_engine.importers.report import Progress, outcome_lines, say
    from memory_engine.importers.run import bring_over

    chosen = [each for each in plan.sessions if each.messages and not each.blocked and (options.skip or not each.refused)]
    if not chosen:
        say("Nothing was written: there is no message to bring over.")
        return True
    engine = MemoryEngine(
        async_database_uri=options.to,
        table_prefix=options.table_prefix,
        token_limit=options.token_limit,
        chat_history_token_ratio=options.history_ratio,
        # There are no blocks here: those of the application learn from what was archived when it starts.
        delivery="worker",
    )
    outcomes = []
    async with engine:
        with Progress("importing", sum(session.messages for session in chosen)) as progress:
            for session in chosen:
                done = await bring_over(
                    engine, source, session, target, append=options.append, flush=options.flush, step=progress.step
                )
                outcomes.append(done)
    say(*outcome_lines(outcomes))
    return not any(outcome.state in ("refused", "different") for outcome in outcomes)


def _source(options: argparse.Namespace) -> Any:
    make, names = _SOURCES[options.kind]
    given = {name: getattr(options, name) for name in _OPTIONS if getattr(options, name) is not None}
    if foreign := sorted(set(given) - set(names)):
        wrong = ", ".join("--" + name.replace("_", "-") for name in foreign)
        raise ConfigurationError(f"{options.kind} has no use for {wrong}.")
    return make(options.uri, **given)


def _llama_index(uri: str, **given: str) -> Source:
    from memory_engine.importers.llama_index import LlamaIndexJson, LlamaIndexSql

    if "://" not in uri and Path(uri).suffix == ".json":
        if given:
            raise ConfigurationError("A JSON file of LlamaIndex has no tables, and no status.")
        return LlamaIndexJson(uri)
    return LlamaIndexSql(uri, **given)


def _langchain_sql(uri: str, **given: str) -> Source:
    from memory_engine.importers.langchain_sql import LangChainSql

    return LangChainSql(uri, **given)


def _langchain_file(uri: str, **given: str) -> Source:
    from memory_engine.importers.langchain_file import LangChainFile

    return LangChainFile(uri, **given)


def _langchain_redis(uri: str, **given: str) -> Source:
    from memory_engine.importers.langchain_redis import LangChainRedis

    return LangChainRedis(uri, **given)


def _openai_sessions(uri: str, **given: str) -> Source:
    from memory_engine.importers.openai_sessions import OpenAISessions

    return OpenAISessions(uri, **given)


def _mem0_history(uri: str, **given: str) -> Source:
    from memory_engine.importers.mem0_history import Mem0History

    return Mem0History(uri, **given)


_SOURCES: Mapping[str, tuple[Callable[..., Source], tuple[str, ...]]] = {
    "llama-index": (_llama_index, ("table", "schema", "status")),
    "langchain-sql": (_langchain_sql, ("table", "schema", "session_column")),
    "langchain-file": (_langchain_file, ("encoding",)),
    "langchain-redis": (_langchain_redis, ("key_prefix",)),
    "openai-sessions": (_openai_sessions, ("table", "schema")),
    "mem0-history": (_mem0_history, ("memories",)),
}
"""What makes a source of each kind, and which of the options it takes."""
_OPTIONS = ("table", "schema", "session_column", "status", "key_prefix", "encoding", "memories")
