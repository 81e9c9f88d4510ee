"""Every private name of MLflow that this package uses; no other module uses any.

Found in MLflow 3.17.2; `tests/mlflow_plugins/test_mlflow_compat.py` fails when one of them moves.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, LoggedModelStatus
from mlflow.entities.model_registry.model_version_stages import (
    STAGE_ARCHIVED,
    STAGE_DELETED_INTERNAL,
    STAGE_PRODUCTION,
    STAGE_STAGING,
    get_canonical_stage,
)
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import _PROMPT_SOURCE_PLACEHOLDERS, IS_PROMPT_TAG_KEY
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

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
    "find_logged_model",
    "find_run",
    "find_s3_folder",
    "get_canonical_stage",
    "get_connect_arguments",
    "get_registry_tables",
    "get_store_class",
    "get_workspace",
    "is_prompt",
    "is_serving",
    "locate_artifacts",
    "parse_models_uri",
    "read_authenticated_user",
    "resolve_models_uri",
]

PROMPT_SOURCES: Final = _PROMPT_SOURCE_PLACEHOLDERS
"""What MLflow writes as the source of a prompt version, which has no artifacts."""

PROMPT_TAG: Final = IS_PROMPT_TAG_KEY
"""Marks a prompt. If one version of a model has this tag, MLflow's search leaves out all versions of the model."""

DELETED_STAGE: Final = STAGE_DELETED_INTERNAL
"""Stage of a deleted version, whose row stays in the database."""

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


def find_logged_model(model_id: str) -> tuple[str, bool]:
    """Return the location of a logged model's files, and whether its upload was finished.

    Where the tracking store is a database, this asks for the one row. MLflow's client reads tags, params and metrics as
    well, which takes longer than the registration of a version.

    Raises:
        MlflowException: there is no such model.
    """
    from mlflow.store.tracking.dbmodels.models import SqlLoggedModel
    from sqlalchemy import select

    row = SqlLoggedModel.__table__.c
    query = select(row.artifact_location, row.status).where(
        row.model_id == model_id, row.lifecycle_stage == LifecycleStage.ACTIVE
    )
    found = _find_row(query)
    if found is not None:
        return found.artifact_location, found.status == LoggedModelStatus.READY.to_int()
    model = MlflowClient().get_logged_model(model_id)
    return model.artifact_location, model.status == LoggedModelStatus.READY


def find_run(run_id: str) -> tuple[str, str]:
    """Return the experiment of a run, and the location of its artifacts.

    Where the tracking store is a database, this asks for the one row. MLflow's client reads params, metrics and data
    sets as well.

    Raises:
        MlflowException: there is no such run.
    """
    from mlflow.store.tracking.dbmodels.models import SqlRun
    from sqlalchemy import select

    row = SqlRun.__table__.c
    found = _find_row(select(row.experiment_id, row.artifact_uri).where(row.run_uuid == run_id))
    if found is not None:
        return str(found.experiment_id), found.artifact_uri
    run = MlflowClient().get_run(run_id).info
    return run.experiment_id, run.artifact_uri


def _find_row(query: Any) -> Any:
    """Return the first row that a query finds in the tracking database; None if there is none, or no plain database."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracking._tracking_service.utils import _get_store

    store = _get_store()
    if type(store) is not SqlAlchemyStore:  # one with workspaces must look whose run it is
        return None
    with store.engine.connect() as connection:
        return connection.execute(query).first()


def resolve_models_uri(uri: str) -> tuple[str, str]:
    """Return the registered name and version that a `models:/` URI means now.

    Args:
        uri: `models:/name@alias`, `models:/name/stage` or `models:/name/version`.

    Raises:
        MlflowException: there is no such version, or the URI does not name a registered model.
    """
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    found = get_model_name_and_version(MlflowClient(), uri)
    if len(found) != 2:
        raise MlflowException.invalid_parameter_value(f"{uri} does not name a version of a registered model")
    version = MlflowClient().get_model_version(*found)  # a version that the URI names was not looked up so far
    return str(version.name), str(version.version)


def locate_artifacts(uri: str) -> tuple[Any, str, Path | None]:
    """Return where artifacts lie: the repository, the path in it, and their folder if they are on this machine.

    A server that proxies artifacts cannot ask itself over HTTP, so the destination that it writes to is used.
    """
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

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
