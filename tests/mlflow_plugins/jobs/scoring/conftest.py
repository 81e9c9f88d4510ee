"""A registered version and images to score."""

import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_plugins import flavor


@pytest.fixture
def model(verified_bundle: Path) -> str:
    """The URI of a registered version, its alias production, in an embedded registry."""
    with mlflow.start_run():
        info = flavor.log_model(verified_bundle, name="plants")
    version = mlflow.register_model(info.model_uri, "plants")
    MlflowClient().set_registered_model_alias("plants", "production", version.version)
    return "models:/plants@production"


@pytest.fixture(scope="session")
def leaf_images(tmp_path_factory: pytest.TempPathFactory, tiny_bundle) -> Path:
    """The 45 val leaves in their awkward folders, one of them truncated and one empty, and files of no interest."""
    folder = Path(shutil.copytree(tiny_bundle.data / "val", tmp_path_factory.mktemp("leaf_images") / "in [1], {a}*"))
    leaves = sorted(folder.glob("*/*.jpg"))
    leaves[0].write_bytes(leaves[0].read_bytes()[:300])
    leaves[1].write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    return folder
