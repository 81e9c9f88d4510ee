"""audit and production, as a person types them."""

import json

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

from mlflow_plugins.registry import audit
from mlflow_plugins.registry.commands.history import parse_time
from tests.fixtures.databases import ON_EVERY_DATABASE
from tests.fixtures.registry import register_bundle, run_registry

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning")  # stages
NAME = "leaves"


@pytest.fixture
def client(registry_database: str) -> MlflowClient:
    mlflow.set_registry_uri(f"plantmodels:{registry_database}")
    return MlflowClient()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """`clock(11)`: it is 11 o'clock on 24 November 2026, and a microsecond later at each look."""
    ticks = iter(range(10_000))

    def set_hour(hour: int) -> None:
        monkeypatch.setattr(audit, "read_clock", lambda: f"2026-11-24T{hour:02}:00:00.{next(ticks):06}Z")

    set_hour(9)
    return set_hour


def actions(*arguments: object) -> list[str]:
    result = run_registry("audit", NAME, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return [decision["action"] for decision in json.loads(result.stdout)]


@ON_EVERY_DATABASE
def test_production_at_a_time_says_version_user_gates_and_waivers(client, clock, good_bundle, bad_bundle) -> None:
    first, second = register_bundle(good_bundle), register_bundle(bad_bundle)
    clock(10)
    client.set_registered_model_alias(NAME, "production", first)
    clock(11)
    client.set_registered_model_alias(NAME, "production", first)
    clock(12)
    for gate in ("ood_recall", "no_regression"):
        client.set_model_version_tag(NAME, second, f"plantmodels.waive.{gate}", "greenhouse only")
    client.transition_model_version_stage(NAME, second, "Production")
    clock(13)
    client.delete_registered_model_alias(NAME, "production")

    assert run_registry("production", NAME, "--at", "2026-11-24T09:59").stdout.startswith(
        "leaves: nothing had ever been in Production at 2026-11-24T09:59"
    )
    lines = run_registry("production", NAME, "--at", "2026-11-24T11:30").stdout.splitlines()
    assert lines[0] == "leaves: version 1 was in Production at 2026-11-24T11:30:00.000000Z"
    assert lines[1].startswith("  since     2026-11-24T10:00:00.")
    assert lines[3] == "  allowed   all gates passed, uncertain: ood_precision, ood_recall, false_alarms"
    text = run_registry("production", NAME, "--at", "2026-11-24T12:30").stdout
    assert "version 2 was in Production" in text
    assert ": greenhouse only\n" in text and "ood_recall was waived by " in text
    assert "  gate      ood_recall: failed, 50.00 %, limit ≥ 95 %" in text
    now = run_registry("production", NAME).stdout
    assert "nothing was in Production" in now and "since     2026-11-24T13:00:00." in now
    assert (
        json.loads(run_registry("production", NAME, "--at", "2026-11-24T12:30", "--json").stdout)["version"] == second
    )


@ON_EVERY_DATABASE
def test_the_audit_survives_deletion_and_a_new_name(client, clock, good_bundle) -> None:
    version = register_bundle(good_bundle)
    client.delete_model_version(NAME, version)
    client.rename_registered_model(NAME, "old leaves")
    client.delete_registered_model("old leaves")
    assert actions() == ["register a version", "delete version 1", "rename leaves to old leaves"]
    register_bundle(good_bundle)  # a new model of the same name
    assert actions()[3:] == ["register a version"]
    client.rename_registered_model(NAME, "new leaves")
    text = run_registry("audit", "new leaves").stdout
    assert [line.split(" asked to ")[1].split(" (")[0].split(":")[0] for line in text.splitlines()] == [
        "register a version",
        "rename leaves to new leaves",
    ]


def test_the_audit_of_a_version_and_of_a_time(client, clock, good_bundle) -> None:
    register_bundle(good_bundle)
    clock(10)
    register_bundle(good_bundle)
    client.set_registered_model_alias(NAME, "production", "2")
    clock(11)
    client.set_registered_model_alias(NAME, "production", "1")
    assert actions("--version", 1) == ["register a version", "set alias production"]
    assert actions("--since", "2026-11-24T10:30") == ["set alias production"]
    assert actions("--until", "2026-11-24T10:59") == ["register a version"] * 2 + ["set alias production"]
    assert actions("--since", "2026-11-25") == []
    assert len(actions("--until", "2026-11-24")) == 4


def test_a_long_audit_comes_in_pages(client, good_bundle, monkeypatch) -> None:
    register_bundle(good_bundle)
    log = build_log(client)
    for number in range(25):
        log.record(NAME, None, f"count {number}", allowed=True, reason="")
    monkeypatch.setattr(
        "mlflow_plugins.registry.commands.history.DecisionQuery",
        lambda *args, **named: audit.DecisionQuery(*args, **{"limit": 7, **named}),
    )
    assert actions()[1:] == [f"count {number}" for number in range(25)]


def build_log(client: MlflowClient) -> audit.AuditLog:
    return client._get_registry_client().store._audit


class Died(BaseException):
    """The server's process ends here."""


@pytest.mark.parametrize("step", ["set_registered_model_alias", "transition_model_version_stage"])
def test_a_promotion_that_was_cut_off_did_not_happen_and_is_named(client, clock, good_bundle, monkeypatch, step):
    first, second = register_bundle(good_bundle), register_bundle(good_bundle)
    client.set_registered_model_alias(NAME, "production", first)
    clock(10)

    def dies(*arguments: object, **named: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(SqlAlchemyStore, step, dies)
        with pytest.raises(Died):
            client.set_registered_model_alias(NAME, "production", second)
    text = run_registry("production", NAME, "--at", "2026-11-24T10:30").stdout
    assert "version 1 was in Production" in text
    assert "version 2 was allowed into Production, and the server stopped before the change was complete" in text
    clock(11)
    run_registry("reconcile", NAME)
    served = first if step == "set_registered_model_alias" else second
    assert f"version {served} was in Production" in run_registry("production", NAME, "--at", "2026-11-24T11:30").stdout


def test_an_end_that_was_not_written_is_written_by_reconcile(client, good_bundle, monkeypatch) -> None:
    version = register_bundle(good_bundle)

    def dies(*arguments: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(audit.AuditLog, "confirm", dies)
        with pytest.raises(Died):
            client.set_registered_model_alias(NAME, "production", version)
    assert "nothing had ever been in Production" in run_registry("production", NAME).stdout
    assert "and by the audit from now on" in run_registry("reconcile", NAME).stdout
    assert "version 1 was in Production" in run_registry("production", NAME).stdout
    with monkeypatch.context() as patch:
        patch.setattr(audit.AuditLog, "confirm", dies)
        with pytest.raises(Died):
            client.delete_registered_model_alias(NAME, "production")
    assert "no version is in Production" in run_registry("reconcile", NAME).stdout
    assert "nothing was in Production" in run_registry("production", NAME).stdout


def test_nothing_is_carried_out_if_the_decision_cannot_be_written(client, good_bundle, monkeypatch) -> None:
    version = register_bundle(good_bundle)
    engine = client._get_registry_client().store.engine
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE plantmodels_decisions RENAME TO hidden")
    with pytest.raises(MlflowException, match="plantmodels_decisions") as raised:
        client.set_registered_model_alias(NAME, "production", version)
    assert raised.value.error_code == "TEMPORARILY_UNAVAILABLE"
    assert client.get_registered_model(NAME).aliases == {}


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "10:00", ""])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time such as 2026-11-24T10:00"):
        parse_time(text)
    assert run_registry("production", NAME, "--at", text).exit_code == 2


@pytest.mark.parametrize("command", ["audit", "production", "doctor"])
def test_a_registry_without_the_gate_is_named(embedded_mlflow: str, command: str) -> None:
    mlflow.search_experiments()  # makes the database: without one, that is the error
    result = run_registry(command, NAME)
    assert result.exit_code == 1
    assert "is not a gated registry, or you may not read 'leaves' there" in result.stderr
