"""`light_store`: MLflow's own answer for every URI of a local store, and none at all where it cannot be sure."""

import os
import sqlite3
from pathlib import Path
from urllib.parse import urlparse

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

from mlflow_plugins import _mlflow_compat
from mlflow_plugins.loading import light_store
from mlflow_plugins.loading.light_store import find_version, local_folder

NAME = "plants of Ürzig"


@pytest.fixture(autouse=True)
def _as_if_mlflow_were_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light_store, "_UNREAD_MODULES", ())


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Five versions: 1 archived, 2 and 3 in production, 3 with an alias, 4 deleted, 5 in no stage."""
    client, folders = MlflowClient(), {}
    client.create_registered_model(NAME)
    for version in "12345":
        folders[version] = tmp_path / f"model {version} %"
        folders[version].mkdir()
        (folders[version] / "MLmodel").write_text("flavors: {}")
        source = str(folders[version]) if version == "2" else folders[version].as_uri()
        client.create_model_version(NAME, source)
    with pytest.warns(FutureWarning):
        for version, stage in (("1", "Archived"), ("2", "Production"), ("3", "Production")):
            client.transition_model_version_stage(NAME, version, stage)
    client.set_registered_model_alias(NAME, "champion", "3")
    client.delete_model_version(NAME, "4")
    return folders


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("suffix", "version"),
    [
        ("/1", "1"),
        ("/2", "2"),
        ("/02", "2"),
        ("@champion", "3"),
        ("/Production", "3"),
        ("/pRODUCTION", "3"),
        ("/Archived", "1"),
        ("/None", "5"),
        ("/latest", "5"),
        ("/LATEST", "5"),
    ],
)
def test_it_answers_as_mlflow_does(folders: dict[str, Path], suffix: str, version: str) -> None:
    uri = f"models:/{NAME}{suffix}"
    found = find_version(uri)
    assert found is not None and (found.name, found.version, found.folder) == (NAME, version, folders[version])
    if suffix != "/02":  # MLflow repeats the version as it was written
        assert _mlflow_compat.resolve_models_uri(uri) == (NAME, version)
    assert local_folder(ModelsArtifactRepository.get_underlying_uri(uri)) == found.folder


def test_a_logged_model_has_no_version() -> None:
    model = mlflow.initialize_logged_model(name="leaves")
    folder = Path(urlparse(model.artifact_location).path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "MLmodel").touch()
    found = find_version(f"models:/{model.model_id}")
    assert found is not None and (found.name, found.version, found.folder) == (None, None, folder)
    MlflowClient().delete_logged_model(model.model_id)
    assert find_version(f"models:/{model.model_id}") is None


@pytest.mark.parametrize(
    "uri",
    [f"models:/{NAME}{suffix}" for suffix in ("/4", "/6", "/9999999999999999999999", "/Staging", "/Nowhere", "@nobody")]
    + [f"models:/{NAME}{suffix}" for suffix in ("@Champion", "@latest", "@", "/", "/1/data", "/1?x", "/1;x", "/²")]
    + ["models:/", "models:", "models://host/a/1", "models:/@champion", "models:/m-0123", "models:/nobody/1"]
    + ["runs:/0123/model", "s3://bucket/model", "file://host/model", "", "/no/such/folder"],
)
def test_whatever_names_nothing_is_left_to_mlflow(folders: dict[str, Path], uri: str) -> None:
    assert find_version(uri) is None


def test_folders_need_no_store(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for uri in (str(folders["1"]).replace("%", "%25"), folders["1"].as_uri()):
        found = find_version(uri)
        assert found is not None and found.folder == folders["1"]


@pytest.mark.parametrize(
    "settings",
    [
        {"MLFLOW_TRACKING_URI": ""},
        {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"},
        {"MLFLOW_TRACKING_URI": "sqlite:///"},
        {"MLFLOW_TRACKING_URI": "sqlite:///:memory:"},
        {"MLFLOW_TRACKING_URI": "sqlite:////no/such/file.db"},
        {"MLFLOW_REGISTRY_URI": "sqlite:////no/such/file.db"},
        {"MLFLOW_ENABLE_WORKSPACES": "true"},
    ],
)
def test_other_settings_are_left_to_mlflow(folders, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    assert find_version(f"models:/{NAME}/1") is not None
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert find_version(f"models:/{NAME}/1") is None


def test_an_imported_mlflow_is_asked(folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(light_store, "_UNREAD_MODULES", ("mlflow",))
    assert find_version(f"models:/{NAME}/1") is None


def test_artifacts_elsewhere_and_folders_without_a_model_are_left_to_mlflow(folders: dict[str, Path]) -> None:
    MlflowClient().create_model_version(NAME, "s3://bucket/model")
    assert find_version(f"models:/{NAME}/6") is None
    (folders["1"] / "MLmodel").unlink()
    assert find_version(f"models:/{NAME}/1") is None


def test_another_schema_is_left_to_mlflow(folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")
    with sqlite3.connect(old) as source, sqlite3.connect(tmp_path / "copy.db") as copy:
        source.backup(copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'copy.db'}")
    assert find_version(f"models:/{NAME}/1") is not None
    copy.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
    copy.commit()
    assert find_version(f"models:/{NAME}/1") is None
    copy.execute("DROP TABLE alembic_version")
    copy.commit()
    assert find_version(f"models:/{NAME}/1") is None
    copy.close()
    source.close()
    (tmp_path / "copy.db").write_bytes(b"no database" * 99)
    assert find_version(f"models:/{NAME}/1") is None
