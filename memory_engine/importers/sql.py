"""A table of messages in another library's database, read only, a few rows at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import TIMESTAMP, ColumnElement, LargeBinary, Text, cast, column, inspect, literal, or_, select, table
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from memory_engine.errors import ConfigurationError, StoreUnreadableError
from memory_engine.importers.address import read_only_engine

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

_PAGE = 500


@dataclass(frozen=True, slots=True)
class Columns:
    """Where in the table what stands. `order` is by what rows are sorted within a session; `row` names a row.

    `times` without an offset are in the time zone of the server, where it has one. Without `session` all rows are one ("").
    """

    row: str
    session: str | None
    data: str
    order: tuple[str, ...]
    more: tuple[str, ...] = ()
    times: tuple[str, ...] = ()


class SqlRows:
    """The rows of one table, by session, in order. It holds no lock while nobody reads, and writes nothing.

    Only the rows' names are held in memory (the table may have no index by session, and sorting it for each page would
    take the square of its size); the rows themselves are read by their primary key, 500 at a time.
    """

    def __init__(self, uri: str, name: str, *, schema: str | None = None) -> None:
        self.engine = read_only_engine(uri)
        self._name, self._schema = name, schema
        self._connection: AsyncConnection | None = None
        self._index: dict[str, list[Any]] | None = None

    async def columns(self) -> dict[str, set[str]]:
        """The names of the table's columns and indexes, and of the tables beside it.

        :raises ConfigurationError: there is no such table.
        :raises StoreUnreadableError: the database cannot be read.
        """

        def look(connection: Connection) -> dict[str, set[str]]:
            found = inspect(connection)
            if not found.has_table(self._name, schema=self._schema):
                known = ", ".join(found.get_table_names(schema=self._schema)[:20]) or "none"
                raise ConfigurationError(f"The source has no table {self._name!r}; its tables are: {known}. Use --table.")
            return {
                "tables": set(found.get_table_names(schema=self._schema)),
                "columns": {str(each["name"]) for each in found.get_columns(self._name, schema=self._schema)},
                "indexes": {str(each["name"]) for each in found.get_indexes(self._name, schema=self._schema)},
            }

        try:
            connection = await self._connected()
            found: dict[str, set[str]] = await connection.run_sync(look)
            await connection.rollback()
            return found
        except SQLAlchemyError as error:
            raise unreadable(error) from error

    async def sessions(self, columns: Columns) -> list[str]:
        """The names of the sessions, sorted."""
        return sorted(await self._indexed(columns))

    async def read(self, session: str, columns: Columns) -> AsyncIterator[Any]:
        """The rows of a session in order: their name, their data as text, the other columns asked for, the times."""
        names = (await self._indexed(columns)).get(session, [])
        row: ColumnElement[Any] = column(columns.row)
        times: list[ColumnElement[Any]] = [column(name) for name in columns.times]
        if self.engine.dialect.name == "postgresql":
            # That is how a default of CURRENT_TIMESTAMP became a time without an offset.
            times = [cast(time, TIMESTAMP(timezone=True)).label(name) for time, name in zip(times, columns.times, strict=True)]
        asked = (row, cast(column(columns.data), Text).label(columns.data), *map(column, columns.more), *times)
        statement = select(*asked).select_from(self._table(columns))
        for start in range(0, len(names), _PAGE):
            page = names[start : start + _PAGE]
            damaged = [name for name in page if _is_damaged(name)]
            named = [row == cast(literal(name.encode("utf-8", "surrogateescape"), LargeBinary), Text) for name in damaged]
            wanted = or_(row.in_([name for name in page if name not in damaged] if damaged else page), *named)
            found = {each[0]: each for each in await self._all(statement.where(wanted))}
            for name in page:
                if name in found:
                    yield found[name]

    async def aclose(self) -> None:
        if self._connection is not None:
            await self._connection.close()
        await self.engine.dispose()

    async def _indexed(self, columns: Columns) -> dict[str, list[Any]]:
        """The names of the rows of each session, in order."""
        if self._index is None:
            session: ColumnElement[str] = literal("") if columns.session is None else cast(column(columns.session), Text)
            row: ColumnElement[Any] = column(columns.row)
            statement = select(session, row).select_from(self._table(columns))
            index: dict[str, list[Any]] = {}
            connection = await self._connected()
            try:
                ordered = statement.order_by(*map(column, columns.order))
                result = await connection.stream(ordered, execution_options={"yield_per": 10_000})
                async for rows in result.partitions():
                    for name, row in rows:
                        index.setdefault("" if name is None else name, []).append(row)
                await connection.rollback()
            except SQLAlchemyError as error:
                raise unreadable(error) from error
            self._index = index
        return self._index

    def refresh(self) -> None:
        """Look for rows again."""
        self._index = None

    async def _all(self, statement: Any) -> Sequence[Row[Any]]:
        connection = await self._connected()
        try:
            rows = (await connection.execute(statement)).all()
            # No transaction stays open between pages: it would hold up those who write there.
            await connection.rollback()
        except SQLAlchemyError as error:
            raise unreadable(error) from error
        return rows

    def _table(self, columns: Columns) -> Any:
        named = (columns.row, columns.session, columns.data, *columns.order, *columns.more, *columns.times)
        return table(self._name, *[column(name) for name in dict.fromkeys(named) if name], schema=self._schema)

    async def _connected(self) -> AsyncConnection:
        if self._connection is None:
            try:
                self._connection = await _connect(self.engine)
            except (SQLAlchemyError, OSError, TypeError, ValueError) as error:
                # TypeError is what drivers say to a parameter of the address that they do not know.
                raise unreadable(error) from error
        return self._connection


async def _connect(engine: AsyncEngine) -> AsyncConnection:
    connection = await engine.connect()
    if engine.dialect.name == "postgresql":
        return await connection.execution_options(postgresql_readonly=True)
    raw = await connection.get_raw_connection()
    if engine.dialect.name == "sqlite" and raw.driver_connection is not None:
        # SQLite takes any bytes for text. One cell that is not UTF-8 must not keep all others from being read: the letters
        # that stand for such bytes are refused where messages are made.
        raw.driver_connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return connection


def _is_damaged(name: object) -> bool:
    """Whether the text has letters that stand for bytes that are not UTF-8."""
    return isinstance(name, str) and not name.isascii() and any("\udc80" <= letter <= "\udcff" for letter in name)


def unreadable(error: Exception) -> Exception:
    """The engine's error for one of the source's; without the statement, which may hold what people said."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return StoreUnreadableError(f"The source cannot be read: {type(cause).__name__}: {cause}")
