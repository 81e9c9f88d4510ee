"""A query that is compiled once and asked of the database's driver itself.

Every request about a model that is not guarded pays for such a query first. SQLAlchemy's own way takes three times as
long: 0.045 ms on sqlite, where MLflow deletes an alias in 0.8 ms.
"""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import sqlalchemy


class Lookup:
    """A query for one row or a few."""

    def __init__(self, engine: sqlalchemy.Engine, query: Any) -> None:
        """Compile a query of plain columns for a database."""
        self._engine = engine
        self._query = query
        compiled = query.compile(dialect=engine.dialect)
        self._text, self._constants, self._order = str(compiled), dict(compiled.params), compiled.positiontup
        self._names = [column.key for column in query.selected_columns]

    def find(self, parameters: Mapping[str, object]) -> Any:
        """Return the first row; None if there is none, or if no row can hold such values.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database does not answer.
        """
        return next(iter(self.find_all(parameters)), None)

    def find_all(self, parameters: Mapping[str, object]) -> Sequence[Any]:
        """Return all rows; none if no row can hold such values.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database does not answer.
        """
        try:
            try:
                return self._ask_driver(parameters)
            except self._engine.dialect.loaded_dbapi.Error:  # SQLAlchemy knows what each driver's errors mean
                with self._engine.connect() as connection:
                    return connection.execute(self._query, dict(parameters)).all()
        except (ValueError, OverflowError, sqlalchemy.exc.DataError):
            return []  # a lone surrogate, a null character or too large a number

    def _ask_driver(self, parameters: Mapping[str, object]) -> list[Any]:
        values: Any = {**self._constants, **parameters}
        if self._order is not None:
            values = tuple(values[name] for name in self._order)
        connection = self._engine.raw_connection()
        try:
            cursor = connection.cursor()
            cursor.execute(self._text, values)
            rows = cursor.fetchall()
            return [SimpleNamespace(**dict(zip(self._names, row, strict=True))) for row in rows]
        finally:
            connection.close()
