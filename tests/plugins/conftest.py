"""Fixtures of the MLflow edge: one verified tiny bundle."""

import shutil
from pathlib import Path

import pytest

from plantmodels.verify.policy import read_policy
from plantmodels.verify.run import verify_bundle


@pytest.fixture(autouse=True)
def _own_mlflow(embedded_mlflow: str) -> None:
    """Every test of the plugins has a tracking server of its own."""


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
