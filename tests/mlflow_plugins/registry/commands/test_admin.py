"""waive, audit, delete and reconcile, as a person types them, against a gated registry."""

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from tests.fixtures.registry import register_bundle, run_registry

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning")  # stages


@pytest.fixture
def client(embedded_mlflow: str) -> MlflowClient:
    mlflow.set_registry_uri(f"plantmodels:{embedded_mlflow}")
    return MlflowClient()


def production(client: MlflowClient) -> tuple[list[str], str | None]:
    versions = client.search_model_versions("name = 'leaves'")
    alias = client.get_registered_model("leaves").aliases.get("production")
    return [str(v.version) for v in versions if v.current_stage == "Production"], alias and str(alias)


def test_waive_names_the_gate_and_appears_in_the_audit(client, bad_bundle) -> None:
    register_bundle(bad_bundle)
    result = run_registry("waive", "leaves", 1, "ood_recall", "--reason", "greenhouse only")
    assert result.exit_code == 0, result.output
    assert "leaves version 1: ood_recall was waived by" in result.stdout
    lines = run_registry("audit", "leaves").stdout.splitlines()
    assert (
        len(lines) == 2
        and "allowed: " in lines[1]
        and " asked to waive ood_recall (version 1, manifest " in lines[1]
        and lines[1].endswith("greenhouse only")
    )


def test_waive_of_another_gate_is_one_line_of_error(client, bad_bundle) -> None:
    register_bundle(bad_bundle)
    result = run_registry("waive", "leaves", 1, "latency", "--reason", "x")
    assert result.exit_code == 1
    assert "latency is not a failed gate of this version; failed gates: ood_recall" in result.stderr
    assert "REFUSED" in run_registry("audit", "leaves").stdout


def test_waive_on_an_ungated_registry_leaves_no_tag(embedded_mlflow, bad_bundle) -> None:
    register_bundle(bad_bundle)
    result = run_registry("waive", "leaves", 1, "ood_recall", "--reason", "x")
    assert result.exit_code == 1
    assert "is not a gated registry, or you may not read 'leaves' there" in result.stderr
    assert not any("waive" in key for key in MlflowClient().get_model_version("leaves", "1").tags)


@pytest.mark.parametrize("command", ["audit", "reconcile"])
def test_a_missing_model_is_named(client, command) -> None:
    result = run_registry(command, "nothing")
    assert result.exit_code == 1
    assert "nothing" in result.stderr


def test_delete_of_a_version_in_production_needs_force(client, good_bundle) -> None:
    version = register_bundle(good_bundle)
    client.set_registered_model_alias("leaves", "production", version)
    result = run_registry("delete", "leaves", version)
    assert result.exit_code == 1
    assert "leaves version 1: refused to delete the version: it is in Production" in result.stderr
    result = run_registry("delete", "leaves", version, "--force")
    assert result.stdout == "leaves version 1 was deleted. It was taken out of Production first.\n"
    assert client.search_model_versions("name = 'leaves'") == []
    audit = run_registry("audit", "leaves").stdout
    assert "REFUSED" in audit and "asked to move to stage Archived" in audit and "asked to delete version 1" in audit


def test_delete_of_another_version_needs_no_force(client, good_bundle) -> None:
    register_bundle(good_bundle)
    assert run_registry("delete", "leaves", 1).stdout == "leaves version 1 was deleted.\n"


class Died(BaseException):
    """The server's process ends here."""


def dies(*arguments: object, **named: object) -> None:
    raise Died


def test_reconcile_completes_a_promotion(client, good_bundle, monkeypatch) -> None:
    first, second = register_bundle(good_bundle), register_bundle(good_bundle)
    client.transition_model_version_stage("leaves", first, "Production")
    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, "transition_model_version_stage", dies)
        with pytest.raises(Died):
            client.set_registered_model_alias("leaves", "production", second)
    assert production(client) == ([first], second)
    assert "version 2 is in Production now" in run_registry("reconcile", "leaves").stdout
    assert production(client) == ([second], second)
    assert "version 2 is in Production by stage and by alias" in run_registry("reconcile", "leaves").stdout


def test_reconcile_puts_back_what_was_half_taken_away(client, good_bundle, monkeypatch) -> None:
    version = register_bundle(good_bundle)
    client.transition_model_version_stage("leaves", version, "Production")
    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, "delete_registered_model_alias", dies)
        with pytest.raises(Died):
            client.transition_model_version_stage("leaves", version, "Archived")
    assert production(client) == ([], version)
    run_registry("reconcile", "leaves")
    assert production(client) == ([version], version)


def test_reconcile_gives_the_alias_to_what_was_promoted_before_the_gate(embedded_mlflow, client, good_bundle) -> None:
    versions = [register_bundle(good_bundle), register_bundle(good_bundle)]
    plain = MlflowClient(registry_uri=embedded_mlflow)
    for version in versions:
        plain.transition_model_version_stage("leaves", version, "Production")
    run_registry("reconcile", "leaves")
    assert production(client) == ([versions[1]], versions[1])


def test_reconcile_refuses_what_the_gates_refuse(embedded_mlflow, client, bad_bundle) -> None:
    version = register_bundle(bad_bundle)
    MlflowClient(registry_uri=embedded_mlflow).set_registered_model_alias("leaves", "production", version)
    result = run_registry("reconcile", "leaves")
    assert result.exit_code == 1
    assert "ood_recall measured 50.00 %" in result.stderr
