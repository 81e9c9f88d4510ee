"""`plantmodels-registry check`, and `waive --until`, as a person types them."""

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from plantmodels.bundle.layout import SPECIES_FILES
from tests.fixtures.registry import register_bundle, run_registry

OOD_RECALL = "ood_recall measured 50.00 %, limit ≥ 95 %"


@pytest.fixture
def client(embedded_mlflow: str) -> MlflowClient:
    mlflow.set_registry_uri(f"plantmodels:{embedded_mlflow}")
    return MlflowClient()


def test_check_says_that_a_version_would_be_promoted(client, good_bundle) -> None:
    result = run_registry("check", "leaves", register_bundle(good_bundle))
    assert (result.exit_code, result.stdout) == (0, "leaves version 1 would be promoted\n")


def test_check_gives_the_reasons_of_a_refusal_and_changes_nothing(client, bad_bundle) -> None:
    version = register_bundle(bad_bundle)
    before = run_registry("audit", "leaves").stdout, client.get_model_version("leaves", version).tags
    result = run_registry("check", "leaves", version)
    assert (result.exit_code, result.stdout) == (1, f"leaves version 1 would be refused: {OOD_RECALL}\n")
    assert (run_registry("audit", "leaves").stdout, client.get_model_version("leaves", version).tags) == before


def test_check_knows_waivers(client, bad_bundle) -> None:
    version = register_bundle(bad_bundle)
    run_registry("waive", "leaves", version, "ood_recall", "--reason", "greenhouse only")
    assert run_registry("check", "leaves", version).exit_code == 0


def test_check_reads_the_files(client, good_bundle) -> None:
    version = register_bundle(good_bundle)
    place = Path(client.get_model_version_download_uri("leaves", version).removeprefix("file://"))
    (place / "data/bundle" / SPECIES_FILES["int8"]).unlink()
    result = run_registry("check", "leaves", version)
    assert result.exit_code == 1
    assert result.stdout.startswith("leaves version 1 would be refused: ")
    assert f"missing: {SPECIES_FILES['int8']}" in result.stdout


def test_check_uses_the_limits_of_the_registry(client, good_bundle, tmp_path, monkeypatch) -> None:
    version, policy = register_bundle(good_bundle), tmp_path / "strict.toml"
    policy.write_text((Path(__file__).parents[3] / "gates.toml").read_text().replace("0.95", "0.98"))
    monkeypatch.setenv("PLANTMODELS_POLICY", str(policy))
    mlflow.set_registry_uri(f"{mlflow.get_registry_uri()}?timeout=30")  # another address: MLflow keeps its stores
    result = run_registry("check", "leaves", version)
    assert result.exit_code == 1
    assert "ood_recall measured 97.00 %, limit ≥ 98 %" in result.stdout


def test_check_of_a_version_that_the_gates_do_not_apply_to(client, tmp_path) -> None:
    client.create_registered_model("leaves")
    client.create_model_version("leaves", str(tmp_path))
    assert run_registry("check", "leaves", 1).stdout == "leaves version 1 would be promoted\n"


def test_check_of_what_is_not_there_is_one_line(client, good_bundle) -> None:
    register_bundle(good_bundle)
    for arguments, match in ((("leaves", "7"), "7"), (("nothing", "1"), "nothing"), (("leaves", "x"), "x")):
        result = run_registry("check", *arguments)
        assert result.exit_code == 1 and match in result.stderr and result.stderr.count("\n") == 1


def test_check_needs_a_gated_registry(embedded_mlflow, good_bundle) -> None:
    result = run_registry("check", "leaves", register_bundle(good_bundle))
    assert result.exit_code == 1
    assert "is not a gated registry" in result.stderr


def test_waive_until_a_day(client, bad_bundle) -> None:
    version = register_bundle(bad_bundle)
    result = run_registry(
        "waive", "leaves", version, "ood_recall", "--reason", "greenhouse only", "--until", "2036-12-31"
    )
    assert result.exit_code == 0, result.output
    assert " until 2036-12-31T23:59:59Z: greenhouse only" in result.stdout
    assert "asked to waive ood_recall" in run_registry("audit", "leaves").stdout
    assert "until 2036-12-31T23:59:59Z: greenhouse only" in run_registry("audit", "leaves").stdout


@pytest.mark.parametrize("until", ["tomorrow", "31.12.2036"])
def test_an_end_that_is_no_time_is_wrong_use(client, bad_bundle, until) -> None:
    result = run_registry(
        "waive", "leaves", register_bundle(bad_bundle), "ood_recall", "--reason", "x", "--until", until
    )
    assert result.exit_code == 2
    assert f"'{until}' is not a time such as" in result.stderr


def test_delete_with_force_takes_a_protected_alias_away(client, good_bundle, monkeypatch) -> None:
    monkeypatch.setenv("PLANTMODELS_ALIASES", "champion")  # before the registry is opened
    version = register_bundle(good_bundle)
    client.set_registered_model_alias("leaves", "champion", version)
    refused = run_registry("delete", "leaves", version)
    assert refused.exit_code == 1
    assert "refused to delete the version: it has the alias champion; take it out first" in refused.stderr
    assert run_registry("delete", "leaves", version, "--force").stdout == "leaves version 1 was deleted.\n"
    assert "asked to delete alias champion" in run_registry("audit", "leaves").stdout
