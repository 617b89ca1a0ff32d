"""Statements on the way of every put, run by the driver itself.

SQLAlchemy compiles them, once for each dialect; its own execution costs more than SQLite does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.sql.expression import Executable

Row = tuple[Any, ...]


class Prepared:
    """A statement whose parameters need no translation: texts, whole numbers, NULL. An INSERT fills `columns`."""

    def __init__(self, statement: Executable, *, columns: Sequence[str] | None = None) -> None:
        self._statement, self._columns = statement, columns
        self._compiled: dict[str, tuple[str, Callable[[Mapping[str, Any]], Row]]] = {}

    def first(self, connection: Connection, parameters: Mapping[str, Any]) -> Row | None:
        """The first row that it returns; it is run to its end."""
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


def _cursor(connection: Connection) -> Any:
    raw = connection.connection.dbapi_connection
    assert raw is not None
    return raw.cursor()
