"""Fixtures of the MLflow edge: bundles with chosen gate values, and saved models."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from plantmodels.bundle.detector import read_detector, write_detector
from plantmodels.bundle.layout import DETECTOR_FILE
from plantmodels.bundle.manifest import write_manifest
from tests.fixtures.rows import write_values


@pytest.fixture(autouse=True)
def _own_mlflow(embedded_mlflow: str) -> None:
    """Give every test of the plugins its own tracking store."""


@pytest.fixture(scope="session")
def judged_bundle(tmp_path_factory: pytest.TempPathFactory, verified_bundle: Path) -> Callable[..., Path]:
    """`judged_bundle(ood_recall=0.5)`: the verified bundle with these gate values; all other gates pass."""

    def build(**measured: float) -> Path:
        bundle = Path(shutil.copytree(verified_bundle, tmp_path_factory.mktemp("judged") / "models"))
        write_values(bundle, **measured)
        return bundle

    return build


@pytest.fixture(scope="session")
def good_bundle(judged_bundle) -> Path:
    return judged_bundle()


@pytest.fixture(scope="session")
def bad_bundle(judged_bundle) -> Path:
    return judged_bundle(ood_recall=0.5)


@pytest.fixture(scope="session")
def lenient_bundle(tmp_path_factory: pytest.TempPathFactory, tiny_bundle) -> Path:
    """The tiny bundle with a threshold that rejects every image, so that an answer shows which bundle gave it."""
    bundle = Path(shutil.copytree(tiny_bundle.bundle, tmp_path_factory.mktemp("lenient") / "models"))
    detector = read_detector(bundle / DETECTOR_FILE)
    write_detector(bundle / DETECTOR_FILE, dataclasses.replace(detector, threshold=-1e9))
    write_manifest(bundle)
    return bundle


@pytest.fixture
def leaf(tiny_bundle) -> bytes:
    """One encoded validation leaf."""
    return _read_leaf(tiny_bundle.data)


def _read_leaf(data: Path) -> bytes:
    return next(path for path in sorted(data.glob("val/*/*")) if path.suffix == ".jpg").read_bytes()


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory, tiny_bundle) -> Path:
    """The tiny bundle as a model folder with an input example; read-only."""
    from mlflow_plugins import flavor

    path = tmp_path_factory.mktemp("saved") / "model"
    flavor.save_model(tiny_bundle.bundle, path, input_example=_read_leaf(tiny_bundle.data))
    return path


@pytest.fixture
def model(saved_model: Path, tmp_path: Path) -> Path:
    """A private copy of the saved model folder, to attack."""
    return Path(shutil.copytree(saved_model, tmp_path / "model"))
