"""Tags as a server gets them: in a container of protobuf's messages, which is no list."""

from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.model_registry_pb2 import CreateModelVersion, CreateRegisteredModel, ModelVersionTag
from mlflow.protos.model_registry_pb2 import RegisteredModelTag as ModelTag

from mlflow_plugins import flavor
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.store import build_gated_store

RESERVED = [".gates", "plantmodels.not_read", "plantmodels.guarded", "plantmodels.when_registered.model_sha256"]


@pytest.fixture
def store(embedded_mlflow: str) -> Any:
    return build_gated_store(embedded_mlflow, RegistryConfig(guarded=("plant-*",)))


def of_version(**tags: str) -> Any:
    return CreateModelVersion(tags=[ModelVersionTag(key=key, value=value) for key, value in tags.items()]).tags


def of_model(**tags: str) -> Any:
    return CreateRegisteredModel(tags=[ModelTag(key=key, value=value) for key, value in tags.items()]).tags


def test_the_tags_of_a_guarded_version_are_kept(store: Any, good_bundle: Path, tmp_path: Path) -> None:
    flavor.save_model(good_bundle, tmp_path / "model")
    store.create_registered_model("plant-disease", of_model(team="greenhouse"))
    store.create_model_version("plant-disease", str(tmp_path / "model"), None, of_version(git_commit="abc"))

    assert store.get_registered_model("plant-disease").tags["team"] == "greenhouse"
    tags = store.get_model_version("plant-disease", "1").tags
    assert tags["git_commit"] == "abc" and tags[".gates"].startswith("passed")


@pytest.mark.parametrize("name", ["plant-disease", "other"])
@pytest.mark.parametrize("key", RESERVED)
def test_reserved_tags_are_refused(store: Any, good_bundle: Path, tmp_path: Path, name: str, key: str) -> None:
    with pytest.raises(MlflowException, match="are reserved for the registry"):
        store.create_registered_model(name, of_model(**{key: "passed"}))
    store.create_registered_model(name)
    source = tmp_path / "model"
    if name == "plant-disease":
        flavor.save_model(good_bundle, source)
    with pytest.raises(MlflowException, match="are reserved for the registry"):
        store.create_model_version(name, str(source), None, of_version(**{key: "passed"}))
    assert store.search_model_versions(f"name = '{name}'") == []


def test_a_listed_name_cannot_be_a_prompt(store: Any) -> None:
    with pytest.raises(MlflowException, match="this name is guarded, so it cannot be a prompt"):
        store.create_registered_model("plant-disease", of_model(**{"mlflow.prompt.is_prompt": "true"}))
