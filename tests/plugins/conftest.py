"""Fixtures: a tracking server and registry of a test's own, and one verified tiny bundle."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from plantmodels.verify.policy import read_policy
from plantmodels.verify.run import verify_bundle


@pytest.fixture(autouse=True)
def embedded_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """sqlite tracking and registry and a local artifact folder, all below the test's own folder."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(None)
    yield uri
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="session")
def verified_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bundle) -> Path:
    """A copy of the tiny bundle with its gate report; read-only."""
    bundle = Path(shutil.copytree(tiny_bundle.bundle, tmp_path_factory.mktemp("verified") / "models"))
    verify_bundle(
        bundle,
        tiny_bundle.data,
        checkpoint=tiny_bundle.checkpoint,
        non_plants=tiny_bundle.non_plants,
        policy=read_policy(None),
    )
    return bundle


@pytest.fixture
def leaf(tiny_bundle) -> bytes:
    """One encoded validation leaf."""
    return next(path for path in sorted(tiny_bundle.data.glob("val/*/*")) if path.suffix == ".jpg").read_bytes()
