"""Statements on the way of every put, run by the driver itself where the connection is ours.

SQLAlchemy compiles them, once for each dialect; its own execution costs more than SQLite does. On an engine of the user's it
executes them too, so that whoever listens to it hears them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.sql.expression import Executable

Row = tuple[Any, ...]
OURS = "memory_engine_owns"
"""The execution option of engines that nobody else has."""


class Prepared:
    """A statement whose parameters need no translation: texts, whole numbers, NULL. An INSERT fills `columns`."""

    def __init__(self, statement: Executable, *, columns: Sequence[str] | None = None) -> None:
        self._statement, self._columns = statement, columns
        self._compiled: dict[str, tuple[str, Callable[[Mapping[str, Any]], Row]]] = {}

    def first(self, connection: Connection, parameters: Mapping[str, Any]) -> Row | None:
        """The first row that it returns; it is run to its end."""
        if not _is_ours(connection):
            found = connection.execute(self._statement, parameters).first()
            return None if found is None else tuple(found)
        text, values_of = self._for(connection)
        cursor = _cursor(connection)
        try:
            cursor.execute(text, values_of(parameters))
            rows = cursor.fetchall()
        finally:
            cursor.close()
        return tuple(rows[0]) if rows else None

    def run(self, connection: Connection, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Run it once for each of the parameters."""
        if not _is_ours(connection):
            connection.execute(self._statement, list(parameters) if len(parameters) > 1 else parameters[0])
            return
        text, values_of = self._for(connection)
        values = [values_of(each) for each in parameters]
        cursor = _cursor(connection)
        try:
            if len(values) == 1:
                cursor.execute(text, values[0])
            else:
                cursor.executemany(text, values)
        finally:
            cursor.close()

    def _for(self, connection: Connection) -> tuple[str, Callable[[Mapping[str, Any]], Row]]:
        """The text for that database, and what puts parameters into its order."""
        known = self._compiled.get(connection.dialect.name)
        if known is None:
            compiled = self._statement.compile(dialect=connection.dialect, column_keys=self._columns)  # type: ignore[attr-defined]
            names, constants = tuple(compiled.positiontup), dict(compiled.params)

            def values_of(parameters: Mapping[str, Any]) -> Row:
                return tuple([parameters[name] if name in parameters else constants[name] for name in names])

            known = self._compiled[connection.dialect.name] = (str(compiled), values_of)
        return known


def _is_ours(connection: Connection) -> bool:
    return OURS in connection.get_execution_options()


def _cursor(connection: Connection) -> Any:
    raw = connection.connection.dbapi_connection
    assert raw is not None
    return raw.cursor()
