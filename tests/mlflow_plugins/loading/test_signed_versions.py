"""Signed bundles as versions: the signature travels, the registry takes it, and the native loaders check it."""

import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.store.artifact import artifact_repository_registry

from mlflow_plugins import flavor
from mlflow_plugins.checking.load_check import check_version
from mlflow_plugins.jobs.main import run_register
from mlflow_plugins.loading.handle import ModelHandle
from mlflow_plugins.registry.evidence import read_evidence
from plantmodels.bundle.layout import SIGNATURE_FILE
from plantmodels.bundle.signature import sign_bundle
from plantmodels.errors import RegistrationError, SignatureError
from plantmodels.serve.classifier import PlantClassifier

STORED = f"{flavor.BUNDLE_FOLDER}/{SIGNATURE_FILE}"


@pytest.fixture
def signed(verified_bundle: Path, signing_keys, tmp_path: Path) -> Path:
    bundle = Path(shutil.copytree(verified_bundle, tmp_path / "signed"))
    sign_bundle(bundle, signing_keys.private)
    return bundle


@pytest.fixture
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plantmodels.serve.loading.open_session", lambda *_, **__: pytest.fail("a session opened"))


def test_a_signed_bundle_is_registered_and_loads_by_its_key(signed: Path, signing_keys, leaf: bytes) -> None:
    version = run_register(signed, "plants", None)
    expected = PlantClassifier.load(signed, threads=1, public_key=signing_keys.public).predict([leaf])
    uri = f"models:/plants/{version.version}"

    assert flavor.load_model(uri, threads=1, public_key=signing_keys.public).predict([leaf]) == expected
    assert flavor.load_model(uri, threads=1).predict([leaf]) == expected
    assert mlflow.pyfunc.load_model(uri).get_raw_model().predict([leaf]) == expected


def test_load_check_takes_a_key(signed: Path, signing_keys, tmp_path: Path) -> None:
    flavor.save_model(signed, tmp_path / "model")

    assert f"signature    made with the key of {signing_keys.public}" in list(
        check_version(str(tmp_path / "model"), public_key=signing_keys.public)
    )
    with pytest.raises(SignatureError, match="not a signature of"):
        list(check_version(str(tmp_path / "model"), public_key=signing_keys.other_public))


@pytest.mark.usefixtures("no_session")
def test_other_keys_and_unsigned_versions_open_no_session(signed: Path, verified_bundle: Path, signing_keys) -> None:
    for bundle, key, match in (
        (signed, signing_keys.other_public, "not a signature of"),
        (verified_bundle, signing_keys.public, "not signed, there is no"),
    ):
        with mlflow.start_run():
            info = flavor.log_model(bundle, name="leaves")
        with pytest.raises(SignatureError, match=match):
            flavor.load_model(info.model_uri, public_key=key)
        with pytest.raises(SignatureError, match=match):
            PlantClassifier.load(bundle, public_key=key)


def test_the_signature_is_downloaded_where_it_is_asked_for_and_there(
    signed: Path, verified_bundle: Path, signing_keys, leaf: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow.start_run():
        uris = [flavor.log_model(bundle, name="leaves").model_uri for bundle in (signed, verified_bundle)]
    stored = {uri: artifact_repository_registry.get_artifact_repository(uri) for uri in uris}
    fetched: list[str] = []

    class Remote:
        """Artifacts that are not on this machine, of which one that is not there is an error."""

        def __init__(self, uri: str) -> None:
            self.list_artifacts = stored[uri].list_artifacts
            self.uri = uri

        def download_artifacts(self, name: str, dst_path: str) -> str:
            fetched.append(name)
            return str(stored[self.uri].download_artifacts(name, dst_path=dst_path))

    monkeypatch.setattr(artifact_repository_registry, "get_artifact_repository", Remote)
    assert flavor.load_model(uris[0], threads=1, public_key=signing_keys.public).predict([leaf])[0].error is None
    assert STORED in fetched
    fetched.clear()
    flavor.load_model(uris[0], threads=1)
    with pytest.raises(SignatureError, match="not signed, there is no"):
        flavor.load_model(uris[1], public_key=signing_keys.public)
    assert STORED not in fetched


def test_a_service_stays_on_a_signed_version(signed: Path, verified_bundle: Path, signing_keys, leaf: bytes) -> None:
    client = MlflowClient()
    with mlflow.start_run():
        models = [flavor.log_model(bundle, name="plants") for bundle in (signed, verified_bundle)]
    versions = [str(mlflow.register_model(model.model_uri, "plants").version) for model in models]
    client.set_registered_model_alias("plants", "production", versions[0])
    with ModelHandle("models:/plants@production", interval_s=0, public_key=signing_keys.public, threads=1) as handle:
        client.set_registered_model_alias("plants", "production", versions[1])
        with pytest.raises(SignatureError, match="not signed, there is no"):
            handle.refresh()
        assert handle.current.version == versions[0] and handle.predict([leaf])[0].error is None


def test_the_registrys_evidence_counts_the_signature(signed: Path, tmp_path: Path) -> None:
    flavor.save_model(signed, tmp_path / "model")
    before = read_evidence(str(tmp_path / "model"))
    digest = before.digest_model()
    (tmp_path / "model" / STORED).unlink()
    after = read_evidence(str(tmp_path / "model"))

    assert before.manifest_sha256 == after.manifest_sha256 and digest != after.digest_model()


def test_a_signature_that_is_truncated_on_its_way_is_not_registered(
    signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = mlflow.artifacts.download_artifacts

    def cut(**arguments: str) -> str:
        folder = str(download(**arguments))
        (Path(folder) / STORED).write_bytes(b"")
        return folder

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", cut)
    with pytest.raises(RegistrationError, match=r"manifest\.json\.sig was read back with other content"):
        run_register(signed, "plants", None)
    assert not MlflowClient().search_registered_models()
