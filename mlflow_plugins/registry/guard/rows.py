"""Rows of MLflow's own tables, as the database stores them.

A database may find a row by another spelling than the stored one: MariaDB ignores case and accents. So the gate asks
which row a request means, and uses the stored spelling from there on.
"""

import fnmatch
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import sqlalchemy
from mlflow.entities.model_registry import ModelVersion, ModelVersionTag
from sqlalchemy import bindparam, func, literal, or_, select, union_all

from mlflow_plugins._mlflow_compat import DELETED_STAGE, get_registry_tables
from mlflow_plugins.registry.guard.lookup import Lookup
from mlflow_plugins.registry.tags import GUARDED_TAG, ID_TAG, UNREAD_TAG
from plantmodels.foreign_text import fit_encoding

_EXACT_DIALECTS: Final = frozenset({"sqlite", "postgresql"})
"""Databases that take two names for one only if they are the same characters."""


_COLUMN: Final = ("table_schema", "table_name", "column_name", "character_set_name")


@dataclass(frozen=True)
class StoredModel:
    """A registered model as the database stores it.

    Attributes:
        name: its name, in the stored spelling.
        is_marked: whether the registry has seen our flavor under this name.
    """

    name: str
    is_marked: bool


@dataclass(frozen=True)
class StoredIdentity:
    """What tells a registered model from others that have or had its name.

    Attributes:
        name: its name, in the stored spelling.
        creation_time: when it was made, in milliseconds.
        identity: its identity in the registry's tables; None if it has none yet.
    """

    name: str
    creation_time: int | None
    identity: str | None


@dataclass(frozen=True)
class StoredVersion:
    """A version as the database stores it.

    Attributes:
        name: name of its model, in the stored spelling.
        version: its number.
        source: what it was registered from.
        location: URI of its files.
        is_marked: whether the registry has seen our flavor under this name.
        is_unread: whether it was registered as ours although its files could not be read.
    """

    name: str
    version: str
    source: str | None
    location: str | None
    is_marked: bool
    is_unread: bool


class Rows:
    """Looks up rows of one registry, each with a single short query."""

    def __init__(self, engine: sqlalchemy.Engine, workspace: Callable[[], str]) -> None:
        """Take the database's engine, and a function that returns the workspace of the present request."""
        self._engine = engine
        self.get_workspace = workspace
        self._is_exact = engine.dialect.name in _EXACT_DIALECTS
        self._tables = get_registry_tables()
        model, alias = self._tables["registered_models"], self._tables["registered_model_aliases"]
        self._models = Lookup(engine, _select_model(self._tables))
        self._versions = Lookup(engine, _select_version(self._tables))
        self._whole_versions = Lookup(engine, _select_whole_version(self._tables))
        self._version_tags = Lookup(engine, _select_version_tags(self._tables))
        self._latest_in_stage = Lookup(engine, _select_latest_in_stage(self._tables))
        self._aliases = Lookup(engine, _select_alias(alias))
        self._identities = Lookup(engine, _select_identity(self._tables))
        self._descriptions = Lookup(engine, _filter(select(model.c.description), model, "name"))

    def find_model(self, name: object) -> StoredModel | None:
        """Return the registered model that a request means; None if there is none."""
        found = self._find(self._models, name=name)
        return None if found is None else StoredModel(found.name, bool(found.is_marked))

    def find_version(self, name: object, version: Any) -> StoredVersion | None:
        """Return the version that a request means; None if there is none."""
        try:
            number = int(version)
        except (TypeError, ValueError, OverflowError):
            return None
        found = self._find(self._versions, name=name, version=number)
        if found is None:
            return None
        location = found.storage_location or found.source
        return StoredVersion(
            found.name, str(number), found.source, location, bool(found.is_marked), bool(found.is_unread)
        )

    def read_version(self, name: str, version: str) -> ModelVersion | None:
        """Return what MLflow's `get_model_version` does, in a fifth of its time; None if there is no such version."""
        asked = {"name": name, "version": int(version), "workspace": self.get_workspace()}
        rows = self._whole_versions.find_all(asked)
        if not rows:
            return None
        columns = {key: value for key, value in vars(rows[0]).items() if key != "alias"}
        tags = [ModelVersionTag(tag.key, tag.value) for tag in self._version_tags.find_all(asked)]
        return ModelVersion(**columns, tags=tags, aliases=[row.alias for row in rows if row.alias is not None])

    def find_alias(self, name: str, alias: str) -> str | None:
        """Return the stored spelling of the alias that a request means; None if the model has no such alias."""
        found = self._find(self._aliases, name=name, alias=alias)
        return None if found is None else str(found.alias)

    def find_aliased(self, name: str, alias: str) -> str | None:
        """Return the version that an alias of a model names; None if the model has no such alias."""
        found = self._find(self._aliases, name=name, alias=alias)
        return None if found is None else str(found.version)

    def find_latest_in_stage(self, name: str, stage: str) -> str | None:
        """Return the highest version of a model in a stage; None if there is none."""
        found = self._find(self._latest_in_stage, name=name, stage=stage)
        return None if found is None or found.version is None else str(found.version)

    def find_identity(self, name: str) -> StoredIdentity | None:
        """Return what tells the model that has a name now from others; None if there is none."""
        found = self._find(self._identities, name=name)
        return None if found is None else StoredIdentity(found.name, found.creation_time, found.identity)

    def read_description(self, name: str) -> str | None:
        """Return the description of a registered model, without its versions; None if it has none."""
        found = self._find(self._descriptions, name=name)
        return None if found is None else found.description

    def write_description(self, name: str, text: str) -> None:
        """Change the description of a registered model; MLflow's own method reads all its versions as well."""
        model = self._tables["registered_models"]
        whose = (model.c.workspace == self.get_workspace(), model.c.name == name)
        values = {"description": text, "last_updated_time": round(1000 * time.time())}
        with self._engine.begin() as connection:
            if self._engine.dialect.name == "sqlite":  # wait for another process's transaction, as MLflow does
                connection.exec_driver_sql("PRAGMA busy_timeout = 20000")
            connection.execute(model.update().where(*whose).values(values))

    def fit(self, text: str) -> str:
        """Return a text as a tag of the database can hold it: MySQL's and MariaDB's tables may be latin1.

        Our own signs become ASCII everywhere. What else a latin1 table has no character for is escaped.
        """
        return fit_encoding(text, self._encoding)

    @cached_property
    def _encoding(self) -> str:
        """Python's name for the characters that the values of tags may have."""
        if self._engine.dialect.name not in ("mysql", "mariadb"):
            return "utf-8"
        column = sqlalchemy.table("columns", *map(sqlalchemy.column, _COLUMN), schema="information_schema").c
        is_values = (column.table_name == "model_version_tags", column.column_name == "value")
        query = select(column.character_set_name).where(column.table_schema == self._engine.url.database, *is_values)
        with self._engine.connect() as connection:
            name = connection.execute(query).scalar()
        return {"utf8mb4": "utf-8", "latin1": "cp1252"}.get(str(name), "ascii")

    def list_in_stage(self, name: str, *stages: str) -> dict[int, str]:
        """Return the versions of a model that are in one of the stages, and their stages."""
        version = self._tables["model_versions"]
        query = _filter(select(version.c.version, version.c.current_stage), version, "name")
        with self._engine.connect() as connection:
            asked = query.where(version.c.current_stage.in_(stages)).order_by(version.c.version)
            rows = connection.execute(asked, {"name": name, "workspace": self.get_workspace()})
            return {row.version: row.current_stage for row in rows}

    def list_models(self) -> list[StoredModel]:
        """Return every registered model of the workspace."""
        model = self._tables["registered_models"]
        query = _filter(select(model.c.name, _is_marked(self._tables, model)), model).order_by(model.c.name)
        with self._engine.connect() as connection:
            rows = connection.execute(query, {"workspace": self.get_workspace()})
            return [StoredModel(row.name, bool(row.is_marked)) for row in rows]

    def takes_for_alias(self, alias: str, known: str) -> bool:
        """Return whether the database takes an alias for a known one."""
        if self._is_exact or alias.isascii():  # without accents, no collation finds more than `fold` does
            return alias == known
        return self._matches(self._tables["registered_model_aliases"].c.alias, alias, [known])

    def takes_for_name(self, name: str, patterns: Iterable[str]) -> bool:
        """Return whether the database takes a name for one that a pattern with `*` and `?` matches."""
        return not self._is_exact and self._matches(self._tables["registered_models"].c.name, name, patterns)

    def takes_for_tag(self, key: str, pattern: str) -> bool:
        """Return whether the database takes a tag's name for one that a pattern with `*` and `?` matches."""
        if self._is_exact or key.isascii():
            return fnmatch.fnmatchcase(key, pattern)
        return self._matches(self._tables["model_version_tags"].c.key, key, [pattern])

    def _matches(self, column: Any, text: str, patterns: Iterable[str]) -> bool:
        """Compare a text with patterns by the collation of a column."""
        typed = union_all(select(column.label("text")).where(sqlalchemy.false()), select(literal(text)))
        values = typed.subquery("typed")
        likes = [values.c.text.like(_translate_pattern(pattern), escape="|") for pattern in patterns]
        equals = [values.c.text == pattern for pattern in patterns if not set(pattern) & set("*?[")]
        query = select(func.count()).select_from(values).where(or_(*likes, *equals))
        with self._engine.connect() as connection:
            return bool(connection.execute(query).scalar())

    def _find(self, lookup: Lookup, **parameters: object) -> Any:
        if not isinstance(parameters["name"], str):
            return None
        return lookup.find({**parameters, "workspace": self.get_workspace()})


_Tables = dict[str, sqlalchemy.Table]


def _select_model(tables: _Tables) -> Any:
    model = tables["registered_models"]
    return _filter(select(model.c.name, _is_marked(tables, model)), model, "name")


def _select_version(tables: _Tables) -> Any:
    version, tag = tables["model_versions"], tables["model_version_tags"]
    unread = _has_row(tag, tag.c.key == UNREAD_TAG, *_same(tag, version, "workspace", "name", "version"))
    columns = (version.c.name, version.c.source, version.c.storage_location)
    found = select(*columns, _is_marked(tables, version), unread.label("is_unread"))
    return _filter(found, version, "name", "version").where(version.c.current_stage != DELETED_STAGE)


def _select_whole_version(tables: _Tables) -> Any:
    """Select the columns of MLflow's `ModelVersion`, in one row for each alias, or in one without an alias."""
    version, alias = tables["model_versions"], tables["registered_model_aliases"]
    names_version = sqlalchemy.and_(*_same(alias, version, "workspace", "name", "version"))
    row = version.c
    times = row.creation_time.label("creation_timestamp"), row.last_updated_time.label("last_updated_timestamp")
    told = row.name, row.version, row.description, row.user_id, row.current_stage, row.source, row.run_id, row.run_link
    state = row.status, row.status_message, row.workspace, alias.c.alias
    found = select(*times, *told, *state).select_from(version.outerjoin(alias, names_version))
    return _filter(found, version, "name", "version").where(row.current_stage != DELETED_STAGE)


def _select_version_tags(tables: _Tables) -> Any:
    tag = tables["model_version_tags"]
    return _filter(select(tag.c.key, tag.c.value), tag, "name", "version")


def _select_latest_in_stage(tables: _Tables) -> Any:
    version = tables["model_versions"]
    latest = select(func.max(version.c.version).label("version")).where(version.c.current_stage == bindparam("stage"))
    return _filter(latest, version, "name")


def _select_alias(alias: sqlalchemy.Table) -> Any:
    return _filter(select(alias.c.alias, alias.c.version), alias, "name", "alias")


def _select_identity(tables: _Tables) -> Any:
    model, tag = tables["registered_models"], tables["registered_model_tags"]
    is_identity = sqlalchemy.and_(tag.c.key == ID_TAG, *_same(tag, model, "workspace", "name"))
    columns = select(model.c.name, model.c.creation_time, tag.c.value.label("identity"))
    return _filter(columns.select_from(model.outerjoin(tag, is_identity)), model, "name")


def _filter(query: Any, table: sqlalchemy.Table, *columns: str) -> Any:
    """Return the query limited to the workspace, and to the rows whose columns equal the parameters of these names."""
    return query.where(*(table.c[name] == bindparam(name) for name in ("workspace", *columns)))


def _is_marked(tables: _Tables, table: sqlalchemy.Table) -> sqlalchemy.Label[bool]:
    tag = tables["registered_model_tags"]
    return _has_row(tag, tag.c.key == GUARDED_TAG, *_same(tag, table, "workspace", "name")).label("is_marked")


def _same(table: sqlalchemy.Table, other: sqlalchemy.Table, *columns: str) -> list[Any]:
    return [table.c[name] == other.c[name] for name in columns]


def _has_row(table: sqlalchemy.Table, *conditions: Any) -> sqlalchemy.Exists:
    return select(literal(1)).select_from(table).where(*conditions).exists()


def _translate_pattern(pattern: str) -> str:
    """Return the SQL form of a pattern with `*` and `?`."""
    escaped = "".join(f"|{character}" if character in "%_|" else character for character in pattern)
    return escaped.replace("*", "%").replace("?", "_")
