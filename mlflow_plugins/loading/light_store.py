"""Where a version lies in a store on this machine, found without importing MLflow.

`import mlflow` takes a second and 165 MB, most of it for libraries that a lookup never touches. So an SQLite store and
plain folders are read directly here. Whatever this module does not know for sure (a server, another database, a
schema of another MLflow, settings that it does not read, a URI that names nothing) is None: ask MLflow, which then
answers or raises. Where MLflow is imported already nothing would be saved, and its settings may differ from the
environment's, so that is None, too.

>>> find_version("models:/plant-disease@production")  # doctest: +SKIP
StoredVersion(name='plant-disease', version='3', folder=PosixPath('/srv/mlruns/1/models/m-0123/artifacts'))
"""

import os
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlparse

from mlflow_plugins.loading.mlmodel import DESCRIPTION_FILE

KNOWN_SCHEMA: Final = "dc11669786a5"
"""Revision of MLflow 3.17.2's database, whose tables the queries below are written for."""

_SQLITE: Final = "sqlite:///"
_TRACKING: Final = "MLFLOW_TRACKING_URI"
_REGISTRY: Final = "MLFLOW_REGISTRY_URI"
_UNREAD_SETTINGS: Final = ("MLFLOW_ENABLE_WORKSPACES", "MLFLOW_WORKSPACE")
_UNREAD_MODULES: Final = ("mlflow", "pyspark")
"""Imported, they may hold another registry's address than the environment."""

_STAGES: Final = {stage.lower(): stage for stage in ("None", "Staging", "Production", "Archived")}
_LATEST: Final = "latest"

_VERSION: Final = (
    "SELECT v.version, v.storage_location, v.source FROM model_versions v {join} WHERE v.workspace = 'default' "
    "AND v.name = ? AND v.current_stage != 'Deleted_Internal' AND {condition} ORDER BY v.version DESC LIMIT 1"
)
_ALIASES: Final = (
    "JOIN registered_model_aliases a ON a.workspace = v.workspace AND a.name = v.name AND a.version = v.version"
)
_LOGGED: Final = (
    "SELECT NULL, artifact_location, NULL FROM logged_models WHERE model_id = ? AND lifecycle_stage = 'active'"
)


@dataclass(frozen=True)
class StoredVersion:
    """A model folder, and the registered version that it is, if it is one."""

    name: str | None
    version: str | None
    folder: Path


def find_version(model_uri: str) -> StoredVersion | None:
    """The model folder that a `models:/` URI, a `file:` URI or a path names; None where MLflow must be asked."""
    if any(name in sys.modules for name in _UNREAD_MODULES):
        return None
    scheme = urlparse(model_uri).scheme
    found = _ask(model_uri) if scheme == "models" else (None, None, model_uri)
    folder = None if found is None else local_folder(found[2])
    if found is None or folder is None or not (folder / DESCRIPTION_FILE).is_file():
        return None
    return StoredVersion(found[0], found[1], folder)


def local_folder(location: str) -> Path | None:
    """The folder of artifacts that a path or a `file:` URI names; None for another place."""
    parts = urlparse(location)
    if parts.netloc or parts.params or parts.query or parts.fragment or parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path)) if os.name == "posix" else None  # drive letters are MLflow's business


def _ask(model_uri: str) -> tuple[str | None, str | None, str] | None:
    """Registered name, version and address of its artifacts."""
    query, database = _query(model_uri), _database()
    if query is None or database is None:
        return None
    name, sql, values = query
    try:
        with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            if connection.execute("SELECT version_num FROM alembic_version").fetchall() != [(KNOWN_SCHEMA,)]:
                return None
            row = connection.execute(sql, values).fetchone()
    except (sqlite3.Error, OverflowError):
        return None
    if row is None or not (row[1] or row[2]):
        return None
    return name, None if row[0] is None else str(row[0]), str(row[1] or row[2])


def _query(model_uri: str) -> tuple[str | None, str, tuple[str | int, ...]] | None:
    """Registered name, SQL and its values."""
    parts = urlparse(model_uri, allow_fragments=False)
    names = parts.path.removeprefix("/").split("/")
    if parts.netloc or parts.params or parts.query or not parts.path.startswith("/") or not all(names):
        return None
    if len(names) == 2:
        name, wanted = names
        if wanted.isdecimal() and wanted.isascii():
            return name, _VERSION.format(join="", condition="v.version = ?"), (name, int(wanted))
        if wanted.lower() == _LATEST:
            return name, _VERSION.format(join="", condition="1"), (name,)
        if stage := _STAGES.get(wanted.lower()):
            return name, _VERSION.format(join="", condition="v.current_stage = ?"), (name, stage)
    if len(names) != 1:
        return None
    name, at, alias = names[0].rpartition("@")
    if not at:
        return None, _LOGGED, (names[0],)
    if not name or not alias.strip() or alias.lower() == _LATEST:
        return None
    return name, _VERSION.format(join=_ALIASES, condition="a.alias = ?"), (name, alias)


def _database() -> Path | None:
    """The file of the SQLite store that the environment names for both runs and registry."""
    address = os.environ.get(_TRACKING, "")
    unread = any(os.environ.get(name) for name in _UNREAD_SETTINGS)
    if unread or os.environ.get(_REGISTRY, "") not in ("", address) or not address.startswith(_SQLITE):
        return None
    path = address.removeprefix(_SQLITE)
    return None if not path or set(path) & set("?%#") or path.startswith((":", "file:")) else Path(path)
