"""Statements on the way of every put, run by the driver itself where the connection is ours.

SQLAlchemy compiles them, once for each dialect; its own execution costs more than SQLite does. On an engine of the user's it
executes them too, so that whoever listens to it hears them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.sql.expression import Executable

Row = tuple[Any, ...]
OURS = "memory_engine_owns"
"""The execution option of engines that nobody else has."""


class Prepared:
    """A statement with parameters of these names that need no translation: texts, whole numbers, NULL.

    A row is the values of its parameters in the order of `names`; of an INSERT, `names` are the columns that it fills.
    """

    def __init__(self, statement: Executable, names: Sequence[str], *, inserts: bool = False) -> None:
        self._statement, self._names = statement, tuple(names)
        self._inserts = inserts
        self._compiled: dict[str, tuple[str, Callable[[Row], Row]]] = {}

    def all(self, connection: Connection, row: Row) -> list[Row]:
        """The rows that it returns."""
        if not _is_ours(connection):
            return [tuple(found) for found in connection.execute(self._statement, self._named(row)).all()]
        text, ordered = self._for(connection)
        cursor = _cursor(connection)
        try:
            cursor.execute(text, ordered(row))
            found = cursor.fetchall()
        finally:
            cursor.close()
        return found if not found or type(found[0]) is tuple else [tuple(each) for each in found]

    def first(self, connection: Connection, row: Row) -> Row | None:
        """The first row that it returns; it is run to its end."""
        found = self.all(connection, row)
        return found[0] if found else None

    def run(self, connection: Connection, rows: Sequence[Row]) -> None:
        """Run it once for each row."""
        if not _is_ours(connection):
            connection.execute(self._statement, [self._named(row) for row in rows] if len(rows) > 1 else self._named(rows[0]))
            return
        text, ordered = self._for(connection)
        cursor = _cursor(connection)
        try:
            if len(rows) == 1:
                cursor.execute(text, ordered(rows[0]))
            else:
                cursor.executemany(text, [ordered(row) for row in rows])
        finally:
            cursor.close()

    def _named(self, row: Row) -> dict[str, Any]:
        return dict(zip(self._names, row, strict=True))

    def _for(self, connection: Connection) -> tuple[str, Callable[[Row], Row]]:
        """The text for that database, and what puts a row into its order."""
        known = self._compiled.get(connection.dialect.name)
        if known is None:
            columns = self._names if self._inserts else None
            compiled = self._statement.compile(dialect=connection.dialect, column_keys=columns)  # type: ignore[attr-defined]
            known = self._compiled[connection.dialect.name] = (str(compiled), _order(compiled, self._names))
        return known


def _order(compiled: Any, names: tuple[str, ...]) -> Callable[[Row], Row]:
    """What makes the driver's parameters of a row: its values, and the statement's constants, by position."""
    # A parameter that stands in several places is one of several positions in one dialect, and one position in another.
    positions = tuple(compiled.positiontup)
    constants = {name: value for name, value in compiled.params.items() if name not in names}
    if positions == names:
        return lambda row: row
    places = [(*names, *constants).index(name) for name in positions]
    if len(places) == 1:
        (place,) = places
        return lambda row: (row[place],)
    pick, fixed = itemgetter(*places), tuple(constants.values())
    return (lambda row: pick(row + fixed)) if fixed else pick


def _is_ours(connection: Connection) -> bool:
    return OURS in connection.get_execution_options()


def _cursor(connection: Connection) -> Any:
    raw = connection.connection.dbapi_connection
    assert raw is not None
    return raw.cursor()
