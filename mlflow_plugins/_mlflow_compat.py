"""Every private name of MLflow that this package uses; no other module uses any.

Found in MLflow 3.17.2; `tests/mlflow_plugins/test_mlflow_compat.py` fails when one of them moves.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlflow.entities.model_registry.model_version_stages import (
    STAGE_ARCHIVED,
    STAGE_DELETED_INTERNAL,
    STAGE_PRODUCTION,
    STAGE_STAGING,
    get_canonical_stage,
)
from mlflow.prompt.constants import _PROMPT_SOURCE_PLACEHOLDERS, IS_PROMPT_TAG_KEY
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry, get_artifact_repository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.utils.file_utils import local_file_uri_to_path

if TYPE_CHECKING:
    import sqlalchemy  # a service without a database has none

__all__ = [
    "DELETED_STAGE",
    "PROMPT_SOURCES",
    "PROMPT_TAG",
    "STAGE_ARCHIVED",
    "STAGE_PRODUCTION",
    "STAGE_STAGING",
    "S3Folder",
    "check_registered_name",
    "download_file",
    "find_local_folder",
    "find_s3_folder",
    "find_tracking_engine",
    "get_canonical_stage",
    "get_connect_arguments",
    "get_registry_tables",
    "get_store_class",
    "get_tracking_tables",
    "get_workspace",
    "is_prompt",
    "is_serving",
    "locate_artifacts",
    "parse_models_uri",
    "prepare_for_many_requests",
    "read_authenticated_user",
]

PROMPT_SOURCES: Final = _PROMPT_SOURCE_PLACEHOLDERS
"""What MLflow writes as the source of a prompt version, which has no artifacts."""

PROMPT_TAG: Final = IS_PROMPT_TAG_KEY
"""Marks a prompt. If one version of a model has this tag, MLflow's search leaves out all versions of the model."""

DELETED_STAGE: Final = STAGE_DELETED_INTERNAL
"""Stage of a deleted version, whose row stays in the database."""

_HEADERS_S: Final = 5.0
"""Seconds for which the headers of a request are kept; a plugin may renew a token in them."""

_BASIC_AUTH: Final = "mlflow.server.auth:authenticate_request_basic_auth"
_HANDLERS: Final = "mlflow.server.handlers"
_AUTH: Final = "mlflow.server.auth"


def get_store_class() -> type[Any]:
    """Return the class of MLflow's own registry store for a database."""
    from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
    from mlflow.store.model_registry.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore

    return WorkspaceAwareSqlAlchemyStore if MLFLOW_ENABLE_WORKSPACES.get() else SqlAlchemyStore


def get_workspace(store: Any) -> str:
    """Return the workspace of the present request; without workspaces, the only one that there is."""
    return str(store._get_active_workspace())


def get_registry_tables() -> "dict[str, sqlalchemy.Table]":
    """Return MLflow's tables of registered models by their names, such as `registered_models`."""
    from mlflow.store.model_registry.dbmodels import models

    found = (
        models.SqlRegisteredModel,
        models.SqlRegisteredModelTag,
        models.SqlRegisteredModelAlias,
        models.SqlModelVersion,
        models.SqlModelVersionTag,
    )
    return {model.__table__.name: model.__table__ for model in found}


def get_connect_arguments(url: "sqlalchemy.URL") -> dict[str, str]:
    """Return the arguments with which MLflow connects to a database: its certificates for MySQL."""
    from mlflow.environment_variables import MLFLOW_MYSQL_SSL_CA, MLFLOW_MYSQL_SSL_CERT, MLFLOW_MYSQL_SSL_KEY

    if url.get_backend_name() != "mysql":
        return {}
    certificates = {
        "ssl_ca": MLFLOW_MYSQL_SSL_CA.get(),
        "ssl_cert": MLFLOW_MYSQL_SSL_CERT.get(),
        "ssl_key": MLFLOW_MYSQL_SSL_KEY.get(),
    }
    return {name: path for name, path in certificates.items() if path}


def check_registered_name(name: str) -> None:
    """Refuse a name that MLflow's registry refuses.

    Raises:
        MlflowException: says what the name must not contain.
    """
    from mlflow.utils.validation import _validate_model_name

    _validate_model_name(name)


def parse_models_uri(source: str) -> tuple[str | None, str | None, str | None]:
    """Return model id, registered name and version that a `models:/` URI names; None for each that it lacks."""
    from mlflow.store.artifact.utils.models import _parse_model_uri

    parsed = _parse_model_uri(source)
    return parsed.model_id, parsed.name, parsed.version


def find_tracking_engine() -> "sqlalchemy.Engine | None":
    """Return the engine of the tracking store's database; None if it has none, or one with workspaces."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracking._tracking_service.utils import _get_store

    store = _get_store()
    return store.engine if type(store) is SqlAlchemyStore else None  # with workspaces it must look whose run it is


def get_tracking_tables() -> "dict[str, sqlalchemy.Table]":
    """Return MLflow's tables of runs and logged models by their names, `runs` and `logged_models`."""
    from mlflow.store.tracking.dbmodels import models

    return {model.__table__.name: model.__table__ for model in (models.SqlRun, models.SqlLoggedModel)}


def find_local_folder(uri: str) -> Path | None:
    """Return the folder of artifacts that a path or a `file:` URI names; None for all other places.

    It makes no repository of MLflow's, which starts a pool of threads.
    """
    scheme = "file" if uri.startswith("file:") else "" if uri.startswith("/") else None
    repositories = _artifact_repository_registry.get_registered_artifact_repositories()
    return Path(local_file_uri_to_path(uri)) if repositories.get(scheme) is LocalArtifactRepository else None


def locate_artifacts(uri: str) -> tuple[Any, str, Path | None]:
    """Return where artifacts lie: the repository, the path in it, and their folder if they are on this machine.

    A server that proxies artifacts cannot ask itself over HTTP, so the destination that it writes to is used.
    """
    handlers = sys.modules.get(_HANDLERS)
    if handlers is not None and handlers._is_servable_proxied_run_artifact_root(uri):
        repository = handlers._get_artifact_repo_mlflow_artifacts()
        proxied: str = handlers._get_proxied_run_artifact_destination_path(uri)
        path: str = handlers._get_workspace_scoped_repo_path_if_enabled(proxied)
    else:
        repository, path = get_artifact_repository(uri), ""
    if isinstance(repository, LocalArtifactRepository):
        return repository, path, Path(repository.artifact_dir, path)
    return repository, path, None


@dataclass(frozen=True)
class S3Folder:
    """A folder of artifacts in a bucket.

    Attributes:
        client: boto3's client.
        bucket: name of the bucket.
        prefix: what the key of every file in the folder begins with; ends with "/", or is empty.
        arguments: further arguments of every request.
    """

    client: Any
    bucket: str
    prefix: str
    arguments: Mapping[str, Any]


def is_prompt(model: Any) -> bool:
    """Return whether a registered model is a prompt; its `tags` do not say."""
    return PROMPT_TAG in model._tags


def find_s3_folder(repository: Any, path: str) -> S3Folder | None:
    """Return where a folder of a repository lies in S3; None if the repository is not one of S3."""
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    if not isinstance(repository, S3ArtifactRepository):
        return None
    bucket, root = repository.parse_s3_compliant_uri(repository.artifact_uri)
    prefix = "/".join(part for part in (root.strip("/"), path.strip("/")) if part)
    owner = repository._bucket_owner_params
    return S3Folder(repository._get_s3_client(), bucket, f"{prefix}/" if prefix else "", owner)


def is_serving() -> bool:
    """Return whether this process is answering a request as an MLflow server."""
    import flask

    return flask.has_request_context()


def read_authenticated_user() -> str | None:
    """Return the user of the present request, if MLflow's basic-auth app has checked the password."""
    import flask

    auth = sys.modules.get(_AUTH)
    if auth is None or auth.auth_config.authorization_function != _BASIC_AUTH or not flask.has_request_context():
        return None  # another authorization function may not check the header that holds the name
    return None if flask.request.authorization is None else flask.request.authorization.username


def download_file(repository: HttpArtifactRepository, name: str, target: Path) -> None:
    """Download one file of a repository without asking the server first whether it is a folder."""
    repository._download_file(name, str(target))


@contextmanager
def prepare_for_many_requests(connections: int) -> Iterator[None]:
    """Let MLflow's client keep many connections to a server open, and ask for its own headers seldom.

    By default it keeps 10 connections, and for each request it tries five times in vain to import Databricks' packages.
    This changes the whole process: a caller must not let two such blocks overlap.

    Args:
        connections: most connections to keep. A larger MLFLOW_HTTP_POOL_MAXSIZE stays as it is.
    """
    from mlflow.environment_variables import MLFLOW_HTTP_POOL_MAXSIZE
    from mlflow.tracking.request_header import registry
    from mlflow.utils import request_utils

    resolve, before = registry.resolve_request_headers, MLFLOW_HTTP_POOL_MAXSIZE.get_raw()
    known: tuple[float, dict[str, str]] = (-_HEADERS_S, {})

    def resolve_seldom(request_headers: Mapping[str, str] | None = None) -> dict[str, str]:
        nonlocal known
        if time.monotonic() - known[0] >= _HEADERS_S:
            known = time.monotonic(), resolve()  # type: ignore[no-untyped-call]
        return {**known[1], **(request_headers or {})}

    MLFLOW_HTTP_POOL_MAXSIZE.set(max(connections, MLFLOW_HTTP_POOL_MAXSIZE.get()))
    request_utils._cached_get_request_session.cache_clear()  # a session keeps the number that it began with
    registry.resolve_request_headers = resolve_seldom
    try:
        yield
    finally:
        registry.resolve_request_headers = resolve
        if before is None:
            MLFLOW_HTTP_POOL_MAXSIZE.unset()
        else:
            os.environ[MLFLOW_HTTP_POOL_MAXSIZE.name] = before
        request_utils._cached_get_request_session.cache_clear()
