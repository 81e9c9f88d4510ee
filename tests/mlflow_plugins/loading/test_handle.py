"""`ModelHandle`: it follows an alias, and nothing that goes wrong takes the model from a service."""

import dataclasses
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_plugins import flavor
from mlflow_plugins.loading import handle
from mlflow_plugins.loading.handle import ModelHandle
from plantmodels.bundle.layout import SPECIES_FILES
from plantmodels.errors import BundleError, ManifestMismatchError
from plantmodels.serve.classifier import PlantClassifier
from tests.fixtures.registry import promote, register_bundle

NAME = "plants"
URI = f"models:/{NAME}@production"


@pytest.fixture
def versions(verified_bundle: Path, lenient_bundle: Path) -> tuple[str, str]:
    """Two registered versions, the first in production."""
    pair = register_bundle(verified_bundle, NAME), register_bundle(lenient_bundle, NAME)
    promote(pair[0], NAME)
    return pair


def artifact_of(version: str, name: str) -> Path:
    uri = MlflowClient().get_model_version_download_uri("plants", version)
    return Path(urlparse(uri).path, flavor.BUNDLE_FOLDER, name)


def test_the_handle_follows_the_alias(versions, leaf: bytes, wait_for: Callable[..., None]) -> None:
    with ModelHandle(URI, interval_s=0.05, threads=1) as watching:
        assert watching.current.version == versions[0] and watching.predict([leaf])[0].rejected is False
        promote(versions[1], NAME)
        wait_for(lambda: watching.current.version == versions[1])
        assert watching.predict([leaf])[0].rejected is True
        promote(versions[0], NAME)
        wait_for(lambda: watching.current.version == versions[0])
        assert watching.failure is None
    promote(versions[1], NAME)
    assert watching.current.version == versions[0], "it is closed"
    assert watching.predict([leaf])[0].rejected is False, "and still answers"


def test_a_request_ends_on_the_version_that_it_began_with(versions, leaf: bytes) -> None:
    handle_ = ModelHandle(URI, interval_s=0, threads=1)

    def images():
        yield leaf
        promote(versions[1], NAME)
        assert handle_.refresh()
        yield leaf

    assert [row.rejected for row in handle_.predict(images())] == [False, False]
    assert handle_.predict([leaf])[0].rejected
    assert not handle_.refresh()


def test_the_old_version_is_freed(versions) -> None:
    handle_ = ModelHandle(URI, interval_s=0, threads=1)
    old = weakref.ref(handle_.current.classifier)
    promote(versions[1], NAME)
    handle_.refresh()
    gc.collect()
    assert old() is None


def test_a_damaged_version_never_takes_over(versions, leaf: bytes, wait_for: Callable[..., None]) -> None:
    whole = artifact_of(versions[1], SPECIES_FILES["int8"]).read_bytes()
    artifact_of(versions[1], SPECIES_FILES["int8"]).write_bytes(whole[:-1])
    with ModelHandle(URI, interval_s=0.05, threads=1) as watching:
        promote(versions[1], NAME)
        wait_for(lambda: watching.failure is not None)
        assert isinstance(watching.failure, ManifestMismatchError) and SPECIES_FILES["int8"] in str(watching.failure)
        assert watching.current.version == versions[0] and watching.predict([leaf])[0].rejected is False
        with pytest.raises(ManifestMismatchError):
            watching.refresh()
        artifact_of(versions[1], SPECIES_FILES["int8"]).write_bytes(whole)
        wait_for(lambda: watching.current.version == versions[1])
        wait_for(lambda: watching.failure is None)


def test_a_version_that_answers_nan_never_takes_over(versions, leaf: bytes, monkeypatch) -> None:
    handle_ = ModelHandle(URI, interval_s=0, threads=1)
    promote(versions[1], NAME)
    with monkeypatch.context() as patch:
        patch.setattr("plantmodels.bundle.detector.OODDetector.score", lambda self, rows: np.full(len(rows), np.nan))
        with pytest.raises(BundleError, match="models:/plants/2: answers a grey image with"):
            handle_.refresh()
    assert handle_.current.version == versions[0] and handle_.predict([leaf])[0].error is None


def test_a_registry_that_is_gone_changes_nothing(versions, leaf: bytes, wait_for, monkeypatch, caplog) -> None:
    tries = []

    def gone(uri: str) -> tuple[str, str]:
        tries.append(uri)
        raise MlflowException("the registry is gone")

    with ModelHandle(URI, interval_s=0.01, threads=1) as watching:
        with monkeypatch.context() as patch:
            patch.setattr(handle, "_resolve_models_uri", gone)
            wait_for(lambda: len(tries) > 3)
            assert watching.predict([leaf])[0].error is None and "gone" in str(watching.failure)
        wait_for(lambda: watching.failure is None)
    assert caplog.text.count("the registry is gone") <= 1, "the same failure is told once"


def test_bad_arguments_are_refused(versions) -> None:
    with pytest.raises(ValueError, match="interval_s must be at least 0, got -1"):
        ModelHandle(URI, interval_s=-1)
    with pytest.raises(MlflowException, match="alias nobody not found"):
        ModelHandle("models:/plants@nobody")
    with pytest.raises(MlflowException, match="does not name a version of a registered model"):
        ModelHandle("models:/m-0123")


@pytest.mark.slow
def test_eight_threads_and_a_move_of_the_alias(versions, tiny_bundle, verified_bundle, lenient_bundle) -> None:
    """20,000 predictions; every answer is that of one of the two versions, and never of the old one after the new."""
    images = [path.read_bytes() for path in sorted(tiny_bundle.data.glob("val/*/*.jpg"))]
    expected = [PlantClassifier.load(bundle, threads=1).predict(images) for bundle in (verified_bundle, lenient_bundle)]
    handle_ = ModelHandle(URI, interval_s=0, threads=1)
    done, halfway = [0] * 8, threading.Event()

    def ask(worker: int) -> list[int]:
        seen = []
        for i in range(2500):
            which = (worker + i) % len(images)
            row = handle_.predict([images[which]])[0]
            answers = [version[which] for version in expected]
            assert row.ood_score == pytest.approx(answers[0].ood_score, rel=1e-12)
            row = dataclasses.replace(row, ood_score=answers[0].ood_score)
            seen.append(answers.index(row))
            done[worker] += 1
            if sum(done) > 10_000:
                halfway.set()
        return seen

    with ThreadPoolExecutor(8) as pool:
        workers = [pool.submit(ask, worker) for worker in range(8)]
        assert halfway.wait(1200)
        promote(versions[1], NAME)
        assert handle_.refresh()
        seen = [worker.result() for worker in workers]
    assert sum(map(len, seen)) == 20_000
    assert all(order == sorted(order) for order in seen)
    assert all({0, 1} == set(order) for order in seen)
