"""A model in S3 is read with few requests, in parallel, and nothing is believed that may have changed."""

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_plugins import flavor
from mlflow_plugins._mlflow_compat import find_s3_folder, locate_artifacts
from mlflow_plugins.registry.artifacts import s3
from mlflow_plugins.registry.evidence import EvidenceError, has_flavor, read_evidence
from plantmodels.bundle.layout import SPECIES_FILES

moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")

NAME = "plant-disease"
READ = 7
"""Files that say what a model is: MLmodel, manifest, metadata, heads list, detector, report and image rows."""


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    """The address of an S3 server in this process."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The URI of a new bucket."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3_server)
    uri = f"s3://bucket-{time.time_ns()}"
    folder = find_s3_folder(locate_artifacts(uri)[0], "")
    assert folder is not None
    folder.client.create_bucket(Bucket=folder.bucket)
    monkeypatch.setattr(s3, "_known", {})
    return uri


@pytest.fixture
def requests(bucket: str) -> Iterator[list[tuple[str, str]]]:
    """Method and path of every request that MLflow's client of S3 sends."""
    client, sent = find_s3_folder(locate_artifacts(bucket)[0], "").client, []  # type: ignore[union-attr]

    def note(request: Any, **_: object) -> None:
        sent.append((request.method, request.url))

    client.meta.events.register("before-send.s3", note, unique_id="test")
    yield sent
    client.meta.events.unregister("before-send.s3", unique_id="test")


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every object for old enough to be remembered."""
    monkeypatch.setattr(s3, "_SETTLED", timedelta(days=-1))


@pytest.fixture
def upload(bucket: str, tmp_path: Path) -> Callable[[Path], str]:
    """Store a bundle as a model in the bucket; returns the model's URI."""

    def store(bundle: Path) -> str:
        flavor.save_model(bundle, tmp_path / "model")
        uri = f"{bucket}/{time.time_ns()}/model"
        locate_artifacts(uri)[0].log_artifacts(str(tmp_path / "model"))
        return uri

    return store


def test_the_same_files_have_the_same_digest_in_s3(upload, good_bundle, tmp_path):
    uri = upload(good_bundle)
    assert has_flavor(uri)
    assert read_evidence(uri).digest_model() == read_evidence(str(tmp_path / "model")).digest_model()


def test_unchanged_objects_are_not_downloaded_again(upload, good_bundle, requests, settled, tmp_path):
    uri, files = upload(good_bundle), sum(path.is_file() for path in (tmp_path / "model").rglob("*"))
    del requests[:]
    first = read_evidence(uri).digest_model()
    assert len(requests) == 1 + files
    del requests[:]
    assert read_evidence(uri).digest_model() == first
    assert len(requests) <= 1 + READ


def test_gates_are_judged_before_other_files_are_downloaded(upload, bad_bundle, requests):
    uri = upload(bad_bundle)
    del requests[:]
    assert read_evidence(uri).report is not None
    assert len(requests) <= 1 + READ


def test_a_young_object_is_not_remembered(upload, good_bundle, monkeypatch):
    """It could change again within the same second, and an ETag is an MD5, which somebody can prepare."""
    uri = upload(good_bundle)
    monkeypatch.setattr(s3, "_SETTLED", timedelta(hours=1))
    read_evidence(uri).digest_model()
    assert s3._known == {}


def test_a_changed_object_is_noticed(upload, good_bundle, settled, tmp_path):
    uri = upload(good_bundle)
    read_evidence(uri).digest_model()
    path = tmp_path / "model/data/bundle" / SPECIES_FILES["int8"]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    locate_artifacts(uri)[0].log_artifact(str(path), "data/bundle")
    with pytest.raises(EvidenceError, match=f"changed: {SPECIES_FILES['int8']}"):
        read_evidence(uri).digest_model()


@pytest.mark.parametrize("name", ["data/../../x", "..", "a//b", "./a", "code/.."])
def test_a_key_that_leaves_the_folder_is_refused_at_once(upload, good_bundle, requests, monkeypatch, name):
    uri = upload(good_bundle)
    folder = find_s3_folder(*locate_artifacts(uri)[:2])
    pages = [{"Contents": [{"Key": folder.prefix + name, "Size": 1, "ETag": "x", "LastModified": None}]}]
    monkeypatch.setattr(folder.client, "get_paginator", lambda _: PagesOf(pages))
    del requests[:]
    with pytest.raises(EvidenceError, match="is not a plain name inside the model folder"):
        read_evidence(uri)
    assert len(requests) == 0


class PagesOf:
    """Stands for boto3's paginator."""

    def __init__(self, pages: list[dict[str, Any]]) -> None:
        self._pages = pages

    def paginate(self, **_: object) -> list[dict[str, Any]]:
        return self._pages


def log(bundle: Path, bucket: str) -> str:
    experiment = mlflow.create_experiment(f"e{time.time_ns()}", artifact_location=bucket)
    with mlflow.start_run(experiment_id=experiment):
        return f"models:/{flavor.log_model(bundle, name='m', tags={'sha256.class_order': '0'}).model_id}"


def test_versions_in_s3_are_gated(embedded_mlflow, bucket, good_bundle, bad_bundle):
    mlflow.set_registry_uri(f"plantmodels:{embedded_mlflow}")
    client = MlflowClient()
    good, bad = (str(mlflow.register_model(log(b, bucket), NAME).version) for b in (good_bundle, bad_bundle))
    client.set_registered_model_alias(NAME, "production", good)
    with pytest.raises(MlflowException, match="ood_recall"):
        client.set_registered_model_alias(NAME, "production", bad)
    assert str(client.get_model_version_by_alias(NAME, "production").version) == good


def test_a_version_of_ours_that_cannot_be_read_says_so(embedded_mlflow, bucket, good_bundle, s3_server, monkeypatch):
    mlflow.set_registry_uri(f"plantmodels:{embedded_mlflow}")
    client, source = MlflowClient(), log(good_bundle, bucket)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")  # from now on, the server reaches nothing
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    registered = mlflow.register_model(source, NAME)
    assert "its files cannot be read" in registered.tags["plantmodels.not_read"]
    with pytest.raises(MlflowException, match="refused to set alias production: its files cannot be read"):
        client.set_registered_model_alias(NAME, "production", registered.version)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", s3_server)
    client.set_registered_model_alias(NAME, "production", registered.version)


def test_models_of_others_that_cannot_be_read_are_promoted(embedded_mlflow, bucket, monkeypatch):
    mlflow.set_registry_uri(f"plantmodels:{embedded_mlflow}")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    client = MlflowClient()
    client.create_registered_model(NAME)
    for source in (f"{bucket}/m", "gs://nothing/m", "nothing://here", "/no/such/folder"):
        version = client.create_model_version(NAME, source)
        assert version.tags == {}
        client.set_registered_model_alias(NAME, "production", version.version)
        assert str(client.get_model_version_by_alias(NAME, "production").version) == str(version.version)
