"""Each of MLflow's private names is still where `_mlflow_compat` looks for it, and means what we take it for."""

import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import flask
import pytest
import sqlalchemy
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from mlflow.store.model_registry.sqlalchemy_workspace_store import WorkspaceAwareSqlAlchemyStore

from mlflow_plugins import _mlflow_compat as compat
from mlflow_plugins.registry.store import GatedStoreMixin

OVERRIDDEN = [
    name
    for name, value in vars(GatedStoreMixin).items()
    if inspect.isfunction(value) and not name.startswith("_") and name != "install_gate"
]


@pytest.mark.parametrize("base", [SqlAlchemyStore, WorkspaceAwareSqlAlchemyStore])
@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_methods_take_the_arguments_of_mlflows_methods(base: type, name: str) -> None:
    theirs = list(inspect.signature(getattr(base, name)).parameters)
    ours = inspect.signature(getattr(GatedStoreMixin, name)).parameters.values()
    named = [parameter.name for parameter in ours if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    passes_on = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in ours)
    assert named == (theirs[: len(named)] if passes_on else theirs)


def test_every_writing_method_of_mlflows_store_is_overridden_or_known_to_be_harmless() -> None:
    """A method that MLflow adds must be looked at: may a version reach Production by it?"""
    seen_to = {
        *OVERRIDDEN,
        "update_registered_model",  # a description
        "update_model_version",  # a description
        "copy_model_version",  # comes back to create_model_version
        "link_prompt_version_to_run",
        "link_prompt_version_to_model",
        "link_prompts_to_trace",
        "set_prompt_version_tag",
        "delete_prompt_version_tag",
    }
    verbs = ("create_", "update_", "set_", "delete_", "rename_", "transition_", "copy_", "restore_", "move_", "link_")
    words = ("webhook", "prompt")
    writing = {
        name for name in dir(SqlAlchemyStore) if name.startswith(verbs) and not any(word in name for word in words)
    }
    assert writing - seen_to == set()


def test_workspaces_decide_which_store_class_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compat.get_store_class() is SqlAlchemyStore
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")
    assert compat.get_store_class() is WorkspaceAwareSqlAlchemyStore


def test_a_store_without_workspaces_has_one(embedded_mlflow: str) -> None:
    assert compat.get_workspace(SqlAlchemyStore(embedded_mlflow)) == "default"


def test_the_tables_of_registered_models_have_the_columns_that_are_read() -> None:
    columns = {name: set(table.columns.keys()) for name, table in compat.get_registry_tables().items()}
    assert columns["registered_models"] >= {"workspace", "name", "creation_time"}
    assert columns["registered_model_tags"] >= {"workspace", "name", "key", "value"}
    assert columns["registered_model_aliases"] >= {"workspace", "name", "alias", "version"}
    assert columns["model_versions"] >= {"workspace", "name", "version", "current_stage", "storage_location"}
    told = {"creation_time", "last_updated_time", "description", "user_id", "status", "status_message"}
    assert columns["model_versions"] >= told | {"source", "run_id", "run_link"}
    assert columns["model_version_tags"] >= {"workspace", "name", "version", "key", "value"}


def test_certificates_of_mysql_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_MYSQL_SSL_CA", "ca.pem")
    assert compat.get_connect_arguments(sqlalchemy.make_url("mysql+pymysql://host/a")) == {"ssl_ca": "ca.pem"}
    assert compat.get_connect_arguments(sqlalchemy.make_url("postgresql://host/a")) == {}


@pytest.mark.parametrize(
    ("source", "parsed"),
    [
        ("models:/m-0123456789abcdef0123456789abcdef", ("m-0123456789abcdef0123456789abcdef", None, None)),
        ("models:/leaves/3", (None, "leaves", "3")),
    ],
)
def test_models_uris_are_parsed(source: str, parsed: tuple[str | None, ...]) -> None:
    assert compat.parse_models_uri(source) == parsed


def test_the_placeholder_of_prompts_is_known() -> None:
    assert "dummy-source" in compat.PROMPT_SOURCES


def test_local_artifacts_are_found_in_place(tmp_path: Path) -> None:
    assert compat.locate_artifacts(tmp_path.as_uri())[2] == tmp_path


def test_local_folders_are_found_without_a_repository(tmp_path: Path) -> None:
    assert compat.find_local_folder(tmp_path.as_uri()) == tmp_path == compat.find_local_folder(str(tmp_path))
    assert compat.find_local_folder("s3://bucket/a") is compat.find_local_folder("a/relative") is None


def test_the_tracking_database_has_the_columns_that_are_read(
    embedded_mlflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = compat.find_tracking_engine()
    assert engine is not None and str(engine.url) == embedded_mlflow
    columns = {name: set(table.columns.keys()) for name, table in compat.get_tracking_tables().items()}
    assert columns["runs"] >= {"run_uuid", "experiment_id", "artifact_uri"}
    assert columns["logged_models"] >= {"model_id", "artifact_location", "status", "lifecycle_stage"}
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._get_store", SimpleNamespace)
    assert compat.find_tracking_engine() is None


def test_a_server_finds_its_own_artifacts_without_http(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_DESTINATION", str(tmp_path))
    from mlflow.server import handlers

    monkeypatch.setattr(handlers, "_artifact_repo", None)
    assert compat.locate_artifacts("mlflow-artifacts:/1/models/m-1")[2] == tmp_path / "1/models/m-1"


def test_the_user_is_known_only_if_basic_auth_checked_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not compat.is_serving()
    with flask.Flask("test").test_request_context(headers={"Authorization": "Basic YWRhOng="}):
        assert compat.is_serving()
        monkeypatch.delitem(sys.modules, "mlflow.server.auth", raising=False)
        assert compat.read_authenticated_user() is None  # nobody checked the password
        for function, user in (("mlflow.server.auth:authenticate_request_basic_auth", "ada"), ("sso:check", None)):
            config = SimpleNamespace(authorization_function=function)
            monkeypatch.setitem(sys.modules, "mlflow.server.auth", SimpleNamespace(auth_config=config))
            assert compat.read_authenticated_user() == user
