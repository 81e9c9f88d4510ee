"""The tables in which the registry keeps its decisions, stamps, waivers and approvals. Rows are only ever added.

They are made when a store is built on a database for the first time; several servers may start at once. MLflow's own
tables are not changed.

>>> sorted(METADATA.tables)  # doctest: +NORMALIZE_WHITESPACE
['plantmodels_approvals', 'plantmodels_decisions', 'plantmodels_outcomes', 'plantmodels_schema', 'plantmodels_stamps',
'plantmodels_waivers']
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, String, Table, Text

from mlflow_plugins._mlflow_compat import get_connect_arguments
from mlflow_plugins.registry.locks import RegistryLocks
from plantmodels.errors import RegistryError
from plantmodels.extras import describe_missing

SCHEMA_VERSION: Final = 1
"""Version of the tables below. It is written into `plantmodels_schema`."""

METADATA: Final = MetaData()
"""The registry's tables, and none of MLflow's."""


def _make_table(name: str, *items: Column[Any] | Index) -> Table:
    """Return one of the registry's tables. Names and reasons may hold any character, whatever MySQL's default is."""
    return Table(name, METADATA, *items, mysql_charset="utf8mb4", mariadb_charset="utf8mb4")


def _number() -> Column[int]:
    """Return the column that numbers the rows of a table in the order in which they were written."""
    return Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)


def _model() -> tuple[Column[str], Column[str]]:
    """Return the columns that say which registered model a row is about, whatever its name is today."""
    return Column("workspace", String(63), nullable=False), Column("model_id", String(32), nullable=False)


SCHEMA: Final = _make_table("plantmodels_schema", Column("version", Integer, primary_key=True))
"""One row for each version that the tables have had."""

DECISIONS: Final = _make_table(
    "plantmodels_decisions",
    _number(),
    *_model(),  # model_id is empty if the model did not exist
    Column("name", String(256), nullable=False),  # of the model, when the decision was made
    Column("version", Integer),  # None: the decision is about the whole model
    Column("at", String(27), nullable=False),  # UTC, ISO 8601 with microseconds: it sorts as text
    Column("user", String(256)),
    Column("action", Text, nullable=False),
    Column("allowed", Boolean, nullable=False),
    Column("reason", Text, nullable=False),
    Column("manifest_sha256", String(64)),
    Column("gates", Text),  # JSON: what each gate measured; None if the gates were not asked
    Column("production", Integer),  # version that this puts into Production; 0: none; None: it changes nothing there
    Column("old_tag", String(250)),  # tag that held the decision before there were tables
    Index("plantmodels_decisions_by_name", "workspace", "name", "at"),
    Index("plantmodels_decisions_by_model", "model_id", "at"),
)
"""Every decision, allowed or refused, written before it is carried out."""

OUTCOMES: Final = _make_table(
    "plantmodels_outcomes",
    Column("decision_id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    Column("at", String(27), nullable=False),
)
"""Decisions about Production that were carried out. One that is missing was cut off by a crash."""

STAMPS: Final = _make_table(
    "plantmodels_stamps",
    _number(),
    *_model(),
    Column("version", Integer, nullable=False),
    Column("at", String(27), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("model_sha256", String(64), nullable=False),
    Column("gates", Text, nullable=False),
    Index("plantmodels_stamps_by_version", "model_id", "version"),
)
"""What a version's files were when it was registered. A version's first row counts."""

WAIVERS: Final = _make_table(
    "plantmodels_waivers",
    _number(),
    *_model(),
    Column("version", Integer, nullable=False),
    Column("gate", String(64), nullable=False),
    Column("at", String(27), nullable=False),
    Column("user", String(256)),
    Column("withdrawn", Boolean, nullable=False),
    Column("measured", String(32)),  # the number as Python writes it, which is exact on every database
    Column("manifest_sha256", String(64)),
    Column("reason", Text),
    Column("until", String(27)),  # None: the waiver has no end
    Index("plantmodels_waivers_by_gate", "model_id", "version", "gate"),
)
"""Waivers granted and withdrawn. A gate's last row counts."""


APPROVALS: Final = _make_table(
    "plantmodels_approvals",
    _number(),
    *_model(),
    Column("alias", String(255), nullable=False),
    Column("version", Integer, nullable=False),
    Column("at", String(27), nullable=False),
    Column("user", String(256)),  # None: the requests before this row were carried out
    Column("model_sha256", String(64), nullable=False),
    Column("state", Text, nullable=False),  # why the gates let the version through, with all waivers
    Index("plantmodels_approvals_by_alias", "model_id", "alias"),
)
"""Requests for promotions that several users must ask for."""


class Records:
    """The registry's tables in one database."""

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        """Take the database's engine. `create` makes the tables."""
        self._engine = engine

    @classmethod
    def open(cls, engine: sqlalchemy.Engine, database_uri: str | None) -> "Records":
        """Return the tables of a registry, made if they were missing.

        Args:
            engine: MLflow's engine, which is used if there is no other database.
            database_uri: address of another database for the tables (`PLANTMODELS_DATABASE_URI`).

        Raises:
            RegistryError: the tables were made by a newer version of plantmodels, or the address is not one.
        """
        if database_uri:
            engine = connect(database_uri)
        records = cls(engine)
        records.create()
        return records

    @contextmanager
    def begin(self) -> Iterator[sqlalchemy.Connection]:
        """Open a transaction, which is committed at the end of the block.

        Raises:
            MlflowException: TEMPORARILY_UNAVAILABLE; the database cannot be reached or written. Clients try again.
        """
        try:
            with self._engine.begin() as connection:
                if self._engine.dialect.name == "sqlite":  # wait for another process's transaction, as MLflow does
                    connection.exec_driver_sql("PRAGMA busy_timeout = 20000")
                yield connection
        except (sqlalchemy.exc.OperationalError, sqlalchemy.exc.TimeoutError) as error:
            raise MlflowException(str(error), error_code=TEMPORARILY_UNAVAILABLE) from error

    def create(self) -> None:
        """Make the tables that are missing. One server at a time does so.

        Raises:
            RegistryError: the tables were made by a newer version of plantmodels.
        """
        if self._read_version() == SCHEMA_VERSION:
            return
        with RegistryLocks(self._engine).hold("plantmodels_schema"):
            if self._read_version() is None:
                METADATA.create_all(self._engine)
                with self.begin() as connection:  # last, so that a crash before it leaves nothing that counts as made
                    connection.execute(SCHEMA.insert().values(version=SCHEMA_VERSION))

    def _read_version(self) -> int | None:
        """Return the version of the tables; None if they were not made, or not all of them.

        Raises:
            RegistryError: it is newer than this code.
        """
        if not sqlalchemy.inspect(self._engine).has_table(SCHEMA.name):
            return None
        with self.begin() as connection:
            found = connection.execute(sqlalchemy.select(sqlalchemy.func.max(SCHEMA.c.version))).scalar()
        if found is not None and found > SCHEMA_VERSION:
            raise RegistryError(
                f"{self._engine.url}: the tables plantmodels_* have version {found}, and this plantmodels knows "
                f"version {SCHEMA_VERSION}; install the version of plantmodels that made them, or a newer one"
            )
        return found


def connect(database_uri: str) -> sqlalchemy.Engine:
    """Return an engine for the address of a database.

    Raises:
        RegistryError: it is not the address of a database, or its driver is not installed.
    """
    try:
        url = sqlalchemy.make_url(database_uri)
        return sqlalchemy.create_engine(url, pool_pre_ping=True, connect_args=get_connect_arguments(url))
    except (sqlalchemy.exc.ArgumentError, ImportError) as error:
        cause = (isinstance(error, ImportError) and describe_missing(error)) or error
        raise RegistryError(
            f"PLANTMODELS_DATABASE_URI must be the address of a database, such as postgresql://host/name: {cause}"
        ) from error
