"""doctor: each thing that can be wrong with what is served is found, and says what mends it."""

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from plantmodels.bundle.layout import SPECIES_FILES
from tests.fixtures.registry import register_bundle, run_registry

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning")  # stages
NAME = "leaves"


@pytest.fixture
def client(embedded_mlflow: str) -> MlflowClient:
    mlflow.set_registry_uri(f"plantmodels:{embedded_mlflow}")
    return MlflowClient()


@pytest.fixture
def plain(embedded_mlflow: str) -> MlflowClient:
    """A client past the gate, as an ungated server on the same database would be."""
    return MlflowClient(registry_uri=embedded_mlflow)


def promote(client: MlflowClient, bundle) -> str:
    version = register_bundle(bundle)
    client.set_registered_model_alias(NAME, "production", version)
    return version


def examine() -> str:
    result = run_registry("doctor")
    assert result.exit_code == 1, result.output
    return result.stdout


def test_a_healthy_model_has_nothing_wrong(client, good_bundle) -> None:
    promote(client, good_bundle)
    register_bundle(good_bundle)
    client.transition_model_version_stage(NAME, "2", "Staging")
    result = run_registry("doctor")
    assert (result.exit_code, result.stdout) == (0, "leaves: nothing is wrong\n"), result.output
    assert run_registry("doctor", NAME).stdout == result.stdout


def test_a_model_that_is_not_guarded_is_not_examined(client, plain) -> None:
    plain.create_registered_model("other")
    assert run_registry("doctor").stdout == ""


def test_a_missing_model_is_named(client) -> None:
    result = run_registry("doctor", "nothing")
    assert result.exit_code == 1
    assert "Registered Model with name=nothing not found" in result.stderr


def test_stage_and_alias_that_disagree(client, plain, good_bundle) -> None:
    promote(client, good_bundle)
    plain.transition_model_version_stage(NAME, "1", "Archived")
    text = examine()
    assert "stage Production holds no version, and alias production names version 1" in text
    assert "→ run plantmodels-registry reconcile leaves" in text
    run_registry("reconcile", NAME)
    assert run_registry("doctor").exit_code == 0


def test_a_change_past_the_gate(client, plain, good_bundle) -> None:
    promote(client, good_bundle)
    register_bundle(good_bundle)
    plain.set_registered_model_alias(NAME, "production", "2")
    plain.transition_model_version_stage(NAME, "2", "Production", archive_existing_versions=True)
    assert (
        "version 2 is in Production, and by the audit it is version 1: somebody changed it past the gate" in examine()
    )
    run_registry("reconcile", NAME)
    assert run_registry("doctor").exit_code == 0


def test_files_that_are_missing_or_changed(client, good_bundle) -> None:
    promote(client, good_bundle)
    folder = Path(client.get_model_version_download_uri(NAME, "1").removeprefix("file://"))
    (code,) = folder.glob("code/**/classifier.py")
    code.write_text(code.read_text() + "\n# another\n")
    assert "version 1 (Production): its files are not those that were registered" in examine()
    (folder / "data/bundle" / SPECIES_FILES["int8"]).unlink()
    text = examine()
    assert f"version 1 (Production): missing: {SPECIES_FILES['int8']}" in text or "missing" in text
    assert "→ promote an older version, or register the bundle again and promote that" in text


def test_a_run_and_a_logged_model_that_were_deleted(client, good_bundle) -> None:
    promote(client, good_bundle)
    version = client.get_model_version(NAME, "1")
    client.delete_run(version.run_id)
    text = examine()
    assert f"its run {version.run_id} was deleted, so `mlflow gc` will remove its files" in text
    assert f"→ mlflow runs restore --run-id {version.run_id}" in text
    client.restore_run(version.run_id)
    client.delete_logged_model(client.search_logged_models(["0"])[0].model_id)
    assert "its logged model m-" in examine()


def test_a_gate_that_fails_today(client, good_bundle, tmp_path, monkeypatch, embedded_mlflow) -> None:
    from mlflow_plugins.registry.config import RegistryConfig
    from mlflow_plugins.registry.store import build_gated_store
    from plantmodels.report.policy import GatePolicy

    promote(client, good_bundle)
    strict = build_gated_store(embedded_mlflow, RegistryConfig(policy=GatePolicy(ood_recall_min=0.98)))
    monkeypatch.setattr(client._get_registry_client().store, "_answers", strict._answers)
    text = examine()
    assert "version 1 (Production): it would not be promoted today: ood_recall measured 97.00 %, limit ≥ 98 %" in text
    assert "plantmodels-registry waive leaves 1 ood_recall --reason …" in text


def test_a_waiver_that_was_withdrawn(client, bad_bundle) -> None:
    register_bundle(bad_bundle)
    client.set_model_version_tag(NAME, "1", "plantmodels.waive.ood_recall", "greenhouse only")
    client.set_registered_model_alias(NAME, "production", "1")
    assert run_registry("doctor").exit_code == 0
    client.delete_model_version_tag(NAME, "1", "plantmodels.waive.ood_recall")
    assert "it would not be promoted today: ood_recall measured 50.00 %" in examine()
