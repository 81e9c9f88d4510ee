"""Every MLflow name that is not public, used here and nowhere else.

Found in MLflow 3.17.2; `tests/mlflow_plugins/test_mlflow_compat.py` fails when one of them moves.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from mlflow import MlflowClient
from mlflow.entities.model_registry.model_version_stages import (
    STAGE_ARCHIVED,
    STAGE_PRODUCTION,
    STAGE_STAGING,
    get_canonical_stage,
)
from mlflow.exceptions import MlflowException
from mlflow.prompt.constants import _PROMPT_SOURCE_PLACEHOLDERS, IS_PROMPT_TAG_KEY
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

__all__ = [
    "PROMPT_SOURCES",
    "PROMPT_TAG",
    "STAGE_ARCHIVED",
    "STAGE_PRODUCTION",
    "STAGE_STAGING",
    "get_canonical_stage",
    "is_serving",
    "locate_artifacts",
    "parse_models_uri",
    "read_authenticated_user",
    "resolve_models_uri",
    "rest_store_arguments",
    "store_class",
]

PROMPT_SOURCES: Final = _PROMPT_SOURCE_PLACEHOLDERS
"""What MLflow writes as the source of a prompt's version, which has no artifacts."""

PROMPT_TAG: Final = IS_PROMPT_TAG_KEY
"""MLflow's search of model versions leaves out a whole model of which one version has it."""

_BASIC_AUTH: Final = "mlflow.server.auth:authenticate_request_basic_auth"
_HANDLERS: Final = "mlflow.server.handlers"
_AUTH: Final = "mlflow.server.auth"


def store_class(inner_uri: str) -> type[Any]:
    """The class of MLflow's own registry store for a database or a REST server."""
    if inner_uri.startswith(("http://", "https://")):
        from mlflow.store.model_registry.rest_store import RestStore

        return RestStore
    from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
    from mlflow.store.model_registry.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore

    return WorkspaceAwareSqlAlchemyStore if MLFLOW_ENABLE_WORKSPACES.get() else SqlAlchemyStore


def rest_store_arguments(inner_uri: str) -> tuple[Callable[[], Any]]:
    """What `RestStore` is made from."""
    from mlflow.utils.credentials import get_default_host_creds

    return (partial(get_default_host_creds, inner_uri),)


def parse_models_uri(source: str) -> tuple[str | None, str | None, str | None]:
    """Model id, registered name and version of a `models:/` URI."""
    from mlflow.store.artifact.utils.models import _parse_model_uri

    parsed = _parse_model_uri(source)
    return parsed.model_id, parsed.name, parsed.version


def resolve_models_uri(uri: str) -> tuple[str, str]:
    """Registered name and version that a `models:/name@alias`, `/name/stage` or `/name/version` means now.

    Raises:
        MlflowException: no such version, or no URI of a registered model.
    """
    from mlflow.store.artifact.utils.models import get_model_name_and_version

    found = get_model_name_and_version(MlflowClient(), uri)
    if len(found) != 2:
        raise MlflowException.invalid_parameter_value(f"{uri} names no version of a registered model")
    version = MlflowClient().get_model_version(*found)  # of a version in the URI nothing was asked so far
    return str(version.name), str(version.version)


def locate_artifacts(uri: str) -> tuple[Any, str, Path | None]:
    """Where artifacts lie: a repository, the path in it, and the folder on this machine if it is one.

    A server that proxies artifacts cannot ask itself over HTTP, so its own destination is used.
    """
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    handlers = sys.modules.get(_HANDLERS)
    if handlers is not None and handlers._is_servable_proxied_run_artifact_root(uri):
        repository = handlers._get_artifact_repo_mlflow_artifacts()
        path: str = handlers._get_proxied_run_artifact_destination_path(uri)
    else:
        repository, path = get_artifact_repository(uri), ""
    if isinstance(repository, LocalArtifactRepository):
        return repository, path, Path(repository.artifact_dir, path)
    return repository, path, None


def is_serving() -> bool:
    """Whether this process is answering a request as an MLflow server."""
    import flask

    return flask.has_request_context()


def read_authenticated_user() -> str | None:
    """The user of the present request, if MLflow's basic-auth app checked who it is."""
    import flask

    auth = sys.modules.get(_AUTH)
    if auth is None or auth.auth_config.authorization_function != _BASIC_AUTH or not flask.has_request_context():
        return None  # another function may not look at the header from which the name is read
    return None if flask.request.authorization is None else flask.request.authorization.username
