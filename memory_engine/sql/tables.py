"""The tables of the store, under a prefix of the user's choice. Their version is `SCHEMA_VERSION`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    func,
    literal_column,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from memory_engine.errors import ConfigurationError

SCHEMA_VERSION = 1

_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")

_BIG = BigInteger().with_variant(Integer(), "sqlite")
# Ids are compared and sorted by code point everywhere; only then is a range of keys the same as a literal prefix.
_KEY = Text().with_variant(String(collation="C"), "postgresql")


class epoch_seconds(FunctionElement[float]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock: seconds since 1970 UTC."""

    type = Float()
    inherit_cache = True


@compiles(epoch_seconds, "sqlite")
def _sqlite_clock(element: epoch_seconds, compiler: SQLCompiler, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(epoch_seconds, "postgresql")
def _postgresql_clock(element: epoch_seconds, compiler: SQLCompiler, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


class rows_as_json(FunctionElement[str]):  # noqa: N801
    """An aggregate: the rows' columns as the text of a JSON array of arrays."""

    type = Text()
    inherit_cache = True


@compiles(rows_as_json, "sqlite")
def _sqlite_rows(element: rows_as_json, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_group_array(json_array({compiler.process(element.clauses, **kw)}))"


@compiles(rows_as_json, "postgresql")
def _postgresql_rows(element: rows_as_json, compiler: SQLCompiler, **kw: Any) -> str:
    return f"coalesce(json_agg(json_build_array({compiler.process(element.clauses, **kw)})), '[]')::text"


class is_one_of(FunctionElement[Any]):  # noqa: N801
    """Whether a column has one of the few values of a select, which are known before any row is looked at."""

    # Not Boolean(), which would become "… = 1" on SQLite, and no index could answer that.
    type = NullType()
    inherit_cache = True


@compiles(is_one_of, "sqlite")
def _sqlite_one_of(element: is_one_of, compiler: SQLCompiler, **kw: Any) -> str:
    column, values = element.clauses
    return f"{compiler.process(column, **kw)} IN {compiler.process(values, **kw)}"


@compiles(is_one_of, "postgresql")
def _postgresql_one_of(element: is_one_of, compiler: SQLCompiler, **kw: Any) -> str:
    # What IN asks for may be read as a join, for which a planner may prefer to read the whole table.
    column, values = element.clauses
    return f"{compiler.process(column, **kw)} = ANY (ARRAY{compiler.process(values, **kw)})"


@dataclass(frozen=True, slots=True)
class Tables:
    """All tables of one prefix."""

    metadata: MetaData
    schema: Table
    sessions: Table
    messages: Table
    flushes: Table
    cursors: Table
    leases: Table
    states: Table
    records: Table
    parked: Table
    erasures: Table

    @property
    def names(self) -> frozenset[str]:
        return frozenset(table.name for table in self.metadata.sorted_tables)


def is_pinned(messages: Any) -> ColumnElement[bool]:
    """Whether a message is pinned; written as the index is, which a plan for any parameters could not use otherwise."""
    pinned: ColumnElement[bool] = messages.c.pinned == literal_column("1")
    return pinned


WIDE = "g:"
"""How the keys of tenants' scopes begin, which many sessions feed."""


def is_wide(cursors: Any) -> ColumnElement[bool]:
    """Whether a cursor's scope is a tenant's; written as the indexes are."""
    start = func.substr(cursors.c.scope_key, literal_column("1"), literal_column(str(len(WIDE))))
    wide: ColumnElement[bool] = start == literal_column(f"'{WIDE}'")
    return wide


def is_of_scope(cursors: Any, scope_key: Any) -> ColumnElement[bool]:
    """Whether a cursor that is found by its session is of that scope; no plan goes by the scope, which may have many."""
    same: ColumnElement[bool] = cursors.c.scope_key.concat(literal_column("''")) == scope_key
    return same


def wide_key(cursors: Any) -> Any:
    """What follows in the key of a tenant's scope. Only the index of what waits in wide scopes begins with it, so that no plan
    takes the one that holds what does not wait, too.
    """
    return func.substr(cursors.c.scope_key, literal_column(str(len(WIDE) + 1)))


def erases(tables: Tables) -> ColumnElement[bool]:
    """Whether an order erases anything: without seqs, it only tells a block that its scope is a new one."""
    return tables.erasures.c.seqs.is_distinct_from("[]")


def make_tables(prefix: str) -> Tables:
    """The tables whose names start with `prefix`.

    :raises ConfigurationError: the prefix could not start a name.
    """
    if not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(f"table_prefix consists of letters, digits and '_', not {prefix!r}.")
    metadata = MetaData()
    schema = Table(f"{prefix}schema", metadata, Column("version", Integer, primary_key=True, autoincrement=False))
    return Tables(
        metadata,
        schema,
        _sessions(prefix, metadata),
        _messages(prefix, metadata),
        _flushes(prefix, metadata),
        _cursors(prefix, metadata),
        _leases(prefix, metadata),
        _states(prefix, metadata),
        _records(prefix, metadata),
        _parked(prefix, metadata),
        _erasures(prefix, metadata),
    )


def _required(name: str, kind: Any = _BIG, **options: Any) -> Column[Any]:
    return Column(name, kind, nullable=False, **options)


def _sessions(prefix: str, metadata: MetaData) -> Table:
    # The first 18 columns are the fields of `SessionRow`, in its order.
    table = Table(
        f"{prefix}sessions",
        metadata,
        Column("pk", _BIG, primary_key=True, autoincrement=True),
        _required("uid", _KEY),
        _required("epoch"),
        _required("tenant", _KEY),
        Column("user_id", _KEY),
        _required("session_id", _KEY),
        _required("next_seq"),
        _required("horizon"),
        Column("turn_seq", _BIG),
        _required("active_tokens"),
        _required("active_turns"),
        _required("pinned_tokens"),
        _required("version"),
        _required("revision"),
        _required("tokenizer", Text()),
        _required("created_at"),
        _required("updated_at"),
        _required("metadata", Text()),
        _required("messages"),
        sqlite_autoincrement=True,
    )
    Index(f"{prefix}sessions_id", table.c.tenant, table.c.session_id, unique=True)
    Index(f"{prefix}sessions_user", table.c.tenant, table.c.user_id, table.c.session_id)
    Index(f"{prefix}sessions_uid", table.c.uid, unique=True)
    return table


def _messages(prefix: str, metadata: MetaData) -> Table:
    table = Table(
        f"{prefix}messages",
        metadata,
        Column("session_pk", _BIG, primary_key=True, autoincrement=False),
        Column("seq", _BIG, primary_key=True, autoincrement=False),
        _required("message_id", _KEY),
        _required("role", Text()),
        _required("pinned", SmallInteger()),
        _required("tokens"),
        _required("data", Text()),
        _required("created_at"),
        Column("calls", Text()),
        Column("results", Text()),
    )
    Index(f"{prefix}messages_id", table.c.session_pk, table.c.message_id, unique=True)
    pinned = is_pinned(table)
    Index(f"{prefix}messages_pinned", table.c.session_pk, table.c.seq, sqlite_where=pinned, postgresql_where=pinned)
    return table


def _flushes(prefix: str, metadata: MetaData) -> Table:
    return Table(
        f"{prefix}flushes",
        metadata,
        Column("session_pk", _BIG, primary_key=True, autoincrement=False),
        Column("end_seq", _BIG, primary_key=True, autoincrement=False),
        _required("tokens"),
    )


def _cursors(prefix: str, metadata: MetaData) -> Table:
    table = Table(
        f"{prefix}block_cursors",
        metadata,
        Column("session_pk", _BIG, primary_key=True, autoincrement=False),
        Column("block", _KEY, primary_key=True),
        _required("scope_key", _KEY),
        _required("cursor"),
        _required("target"),
        _required("start_seq"),
        _required("attempts"),
        _required("next_attempt_at", Float()),
        Column("last_error", Text()),
    )
    # Each row that waits is in one of the two; most are in none.
    pending = table.c.cursor < table.c.target
    places: tuple[tuple[str, tuple[Any, ...], Any], ...] = (
        ("pending", (table.c.block, table.c.next_attempt_at, table.c.session_pk), pending & ~is_wide(table)),
        ("wide", (table.c.block, wide_key(table), table.c.next_attempt_at, table.c.session_pk), pending & is_wide(table)),
    )
    for name, columns, where in places:
        Index(f"{prefix}block_cursors_{name}", *columns, sqlite_where=where, postgresql_where=where)
    Index(f"{prefix}block_cursors_scope", table.c.scope_key, table.c.block)
    return table


def _leases(prefix: str, metadata: MetaData) -> Table:
    return Table(
        f"{prefix}block_leases",
        metadata,
        Column("scope_key", _KEY, primary_key=True),
        Column("block", _KEY, primary_key=True),
        Column("purpose", _KEY, primary_key=True),
        _required("owner", Text()),
        _required("token", Text()),
        _required("until", Float()),
    )


def _states(prefix: str, metadata: MetaData) -> Table:
    return Table(
        f"{prefix}block_states",
        metadata,
        Column("scope_key", _KEY, primary_key=True),
        Column("block", _KEY, primary_key=True),
        _required("version"),
        _required("deleted_version"),
        _required("format", Integer()),
        _required("state", Text()),
    )


def _records(prefix: str, metadata: MetaData) -> Table:
    table = Table(
        f"{prefix}block_records",
        metadata,
        Column("scope_key", _KEY, primary_key=True),
        Column("block", _KEY, primary_key=True),
        Column("key", _KEY, primary_key=True),
        _required("data", Text()),
        Column("blob", LargeBinary()),
        Column("session_uid", _KEY),
        Column("seq", _BIG),
        _required("version"),
    )
    Index(f"{prefix}block_records_version", table.c.scope_key, table.c.block, table.c.version)
    Index(f"{prefix}block_records_session", table.c.session_uid, table.c.seq)
    return table


def _parked(prefix: str, metadata: MetaData) -> Table:
    table = Table(
        f"{prefix}parked",
        metadata,
        Column("id", _BIG, primary_key=True, autoincrement=True),
        _required("session_pk"),
        _required("block", _KEY),
        _required("scope_key", _KEY),
        _required("from_seq"),
        _required("to_seq"),
        _required("error", Text()),
        _required("attempts"),
        Column("redeliver_at", Float()),
        sqlite_autoincrement=True,
    )
    Index(f"{prefix}parked_session", table.c.session_pk, table.c.block)
    Index(f"{prefix}parked_scope", table.c.scope_key, table.c.block)
    Index(f"{prefix}parked_due", table.c.block, table.c.redeliver_at, table.c.id)
    return table


def _erasures(prefix: str, metadata: MetaData) -> Table:
    # `session_id` is that of the erased session: workers that serve one session find its erasures by it.
    table = Table(
        f"{prefix}erasures",
        metadata,
        Column("id", _BIG, primary_key=True, autoincrement=True),
        _required("tenant", _KEY),
        _required("block", _KEY),
        _required("scope_key", _KEY),
        Column("session_uid", _KEY),
        Column("seqs", Text()),
        Column("session_id", _KEY),
        _required("due_at", Float()),
        _required("attempts"),
        Column("last_error", Text()),
        sqlite_autoincrement=True,
    )
    Index(f"{prefix}erasures_due", table.c.block, table.c.due_at, table.c.id)
    Index(f"{prefix}erasures_scope", table.c.scope_key, table.c.block)
    Index(f"{prefix}erasures_session", table.c.tenant, table.c.session_id, table.c.block)
    return table
