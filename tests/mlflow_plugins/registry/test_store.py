"""The gated registry on sqlite and PostgreSQL: what it allows, what it refuses, and what it leaves to MLflow."""

import shutil
import threading
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_plugins import flavor
from mlflow_plugins.registry import audit
from mlflow_plugins.registry.audit import read_clock
from mlflow_plugins.registry.commands.history import find_production, list_decisions
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.store import build_gated_store
from mlflow_plugins.registry.tags import GATES_TAG, GUARDED_TAG, MANIFEST_TAG, WAIVE_TAG
from plantmodels.bundle.layout import MANIFEST_FILE, SPECIES_FILES
from plantmodels.bundle.manifest import digest_file
from plantmodels.report.policy import GatePolicy
from tests.fixtures.databases import ON_EVERY_DATABASE

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning")  # stages

NAME = "plant-disease"


@pytest.fixture
def registry_uri(registry_database: str) -> str:
    """A database of the test's own, by MLflow's address for it."""
    return registry_database


@pytest.fixture
def client(registry_uri: str) -> MlflowClient:
    """A client whose registry is the gated one."""
    mlflow.set_registry_uri(f"plantmodels:{registry_uri}")
    return MlflowClient()


def log(bundle: Path) -> str:
    with mlflow.start_run():
        return f"models:/{flavor.log_model(bundle, name='m').model_id}"


def register(bundle: Path, name: str = NAME) -> str:
    return str(mlflow.register_model(log(bundle), name).version)


def folder_of(client: MlflowClient, version: str) -> Path:
    return Path(client.get_model_version_download_uri(NAME, version).removeprefix("file://"))


def served(client: MlflowClient) -> tuple[list[str], str | None]:
    """Versions in stage Production, and the version of alias production."""
    stage = [
        str(v.version) for v in client.search_model_versions(f"name = '{NAME}'") if v.current_stage == "Production"
    ]
    alias = client.get_registered_model(NAME).aliases.get("production")
    return stage, None if alias is None else str(alias)


def refused(match: str) -> Any:
    return pytest.raises(MlflowException, match=match)


def by_stage(client: MlflowClient, version: str) -> None:
    client.transition_model_version_stage(NAME, version, "Production")


def by_alias(client: MlflowClient, version: str) -> None:
    client.set_registered_model_alias(NAME, "production", version)


PROMOTIONS = pytest.mark.parametrize("promote", [by_stage, by_alias])


@ON_EVERY_DATABASE
@PROMOTIONS
def test_a_good_version_is_promoted_by_stage_and_alias_together(client, good_bundle, promote):
    version = register(good_bundle)
    promote(client, version)
    assert served(client) == ([version], version)


@PROMOTIONS
def test_a_failed_gate_is_refused_with_its_limit_and_measured_value(client, bad_bundle, promote):
    version = register(bad_bundle)
    with refused(r"ood_recall measured 50.00 %, limit ≥ 95 %") as error:
        promote(client, version)
    assert error.value.error_code == "PERMISSION_DENIED"
    assert served(client) == ([], None)


def test_staging_is_refused_as_well(client, bad_bundle):
    version = register(bad_bundle)
    with refused("refused to promote to stage Staging: ood_recall"):
        client.transition_model_version_stage(NAME, version, "staging")


@ON_EVERY_DATABASE
@pytest.mark.parametrize("alias", ["Production", "PRODUCTION", "ｐroduction"])
def test_other_spellings_of_the_alias_are_refused(client, good_bundle, alias):
    version = register(good_bundle)
    with refused("this alias must be written 'production'"):
        client.set_registered_model_alias(NAME, alias, version)


@ON_EVERY_DATABASE
@PROMOTIONS
def test_an_older_version_replaces_a_newer_one(client, good_bundle, promote):
    first, second = register(good_bundle), register(good_bundle)
    promote(client, second)
    promote(client, first)
    assert served(client) == ([first], first)
    assert client.get_model_version(NAME, second).current_stage == "Archived"


@ON_EVERY_DATABASE
def test_leaving_production_takes_the_alias_away(client, good_bundle):
    version = register(good_bundle)
    by_stage(client, version)
    client.transition_model_version_stage(NAME, version, "Archived")
    assert served(client) == ([], None)


@ON_EVERY_DATABASE
def test_deleting_the_alias_archives_the_version(client, good_bundle):
    version = register(good_bundle)
    by_alias(client, version)
    client.delete_registered_model_alias(NAME, "production")
    assert served(client) == ([], None)
    assert client.get_model_version(NAME, version).current_stage == "Archived"


@PROMOTIONS
def test_a_version_in_production_is_not_deleted(client, good_bundle, promote):
    version = register(good_bundle)
    promote(client, version)
    with refused(
        "version 1: refused to delete the version: it is in Production; take it out first, "
        "or use `plantmodels-registry delete plant-disease 1 --force`"
    ):
        client.delete_model_version(NAME, version)
    assert served(client) == ([version], version)


@ON_EVERY_DATABASE
def test_deleting_a_version_leaves_its_audit(client, good_bundle):
    version = register(good_bundle)
    by_stage(client, version)
    client.transition_model_version_stage(NAME, version, "Archived")
    client.delete_model_version(NAME, version)
    actions = [decision.action for decision in list_decisions(NAME)]
    assert actions == [
        "register a version",
        "promote to stage Production",
        "move to stage Archived",
        f"delete version {version}",
    ]


@ON_EVERY_DATABASE
def test_a_version_registered_before_the_gate_is_guarded_from_its_promotion_on(
    registry_uri, client, good_bundle, bad_bundle
):
    """As after `make demo`, which writes into the database without a gated server."""
    plain = MlflowClient(registry_uri=registry_uri)
    plain.create_registered_model(NAME)
    good, other, bad = (
        plain.create_model_version(NAME, log(b)).version for b in (good_bundle, good_bundle, bad_bundle)
    )
    with refused("ood_recall measured 50.00 %"):
        by_alias(client, bad)
    by_alias(client, good)
    assert served(client) == ([str(good)], str(good))
    assert (
        client.get_model_version(NAME, good).tags[GATES_TAG]
        == "passed, uncertain: ood_precision, ood_recall, false_alarms"
    )
    client.delete_registered_model_alias(NAME, "production")
    assert served(client) == ([], None)

    target, source = folder_of(client, good), folder_of(client, other)
    shutil.rmtree(target)
    shutil.copytree(source, target)
    with refused("not those that were registered"):
        by_stage(client, good)


@ON_EVERY_DATABASE
def test_a_model_in_production_is_not_deleted_whole(client, good_bundle):
    version = register(good_bundle)
    by_alias(client, version)
    with refused("version 1 is in Production; take it out first"):
        client.delete_registered_model(NAME)
    client.delete_registered_model_alias(NAME, "production")
    client.delete_registered_model(NAME)
    assert client.search_registered_models() == []


@ON_EVERY_DATABASE
def test_the_server_stamps_what_it_read(client, good_bundle, bad_bundle):
    tags = client.get_model_version(NAME, register(good_bundle)).tags
    assert tags[GATES_TAG] == "passed, uncertain: ood_precision, ood_recall, false_alarms"
    assert tags[MANIFEST_TAG] == digest_file(good_bundle / MANIFEST_FILE).sha256
    failed = client.get_model_version(NAME, register(bad_bundle)).tags[GATES_TAG]
    assert failed == "failed: ood_recall measured 50.00 %, limit >= 95 %"  # not every database holds a ≥
    assert client.get_registered_model(NAME).tags[GUARDED_TAG] == "true"


def test_forged_tags_at_creation_are_refused(client, bad_bundle):
    with refused("'plantmodels.gates'"):
        mlflow.register_model(log(bad_bundle), NAME, tags={GATES_TAG: "passed"})
    with refused("'plantmodels.guarded'"):
        client.create_registered_model("other", tags={GUARDED_TAG: "false"})


@ON_EVERY_DATABASE
def test_reserved_tags_cannot_be_changed_or_deleted(client, bad_bundle):
    version = register(bad_bundle)
    for call in (
        lambda: client.set_model_version_tag(NAME, version, GATES_TAG, "passed"),
        lambda: client.delete_model_version_tag(NAME, version, GATES_TAG),
        lambda: client.set_model_version_tag(NAME, version, "Plantmodels.x", "1"),
        lambda: client.set_registered_model_tag(NAME, GUARDED_TAG, "false"),
        lambda: client.delete_registered_model_tag(NAME, GUARDED_TAG),
    ):
        with refused("reserved for the registry"):
            call()


def test_a_file_changed_after_registration_is_refused(client, good_bundle):
    version = register(good_bundle)
    path = folder_of(client, version) / "data/bundle" / SPECIES_FILES["int8"]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with refused(f"changed: {SPECIES_FILES['int8']}"):
        by_stage(client, version)


def test_a_missing_file_is_refused(client, good_bundle):
    version = register(good_bundle)
    (folder_of(client, version) / "data/bundle" / SPECIES_FILES["int8"]).unlink()
    with refused(f"missing: {SPECIES_FILES['int8']}"):
        by_alias(client, version)


def test_changed_code_is_refused(client, good_bundle):
    version = register(good_bundle)
    (path,) = folder_of(client, version).glob("code/**/classifier.py")
    path.write_text(path.read_text() + "\n# another\n")
    with refused("not those that were registered"):
        by_stage(client, version)


def test_a_bundle_swapped_as_a_whole_is_refused(client, bad_bundle, good_bundle):
    """Manifest, report and MLmodel agree with each other, but they are not what was registered."""
    version, other = register(bad_bundle), register(good_bundle)
    target, source = folder_of(client, version), folder_of(client, other)
    shutil.rmtree(target)
    shutil.copytree(source, target)
    with refused("not those that were registered"):
        by_stage(client, version)


def test_artifacts_that_are_gone_are_refused(client, good_bundle):
    version = register(good_bundle)
    shutil.rmtree(folder_of(client, version))
    with refused("refused to promote to stage Production: .*no such folder in the artifact store"):
        by_stage(client, version)


def test_an_unfinished_upload_is_not_registered(client, good_bundle):
    from mlflow.entities import LoggedModelStatus

    uri = log(good_bundle)
    client.finalize_logged_model(uri.removeprefix("models:/"), LoggedModelStatus.FAILED)
    with refused("not READY"):
        mlflow.register_model(uri, NAME)
    assert client.search_model_versions(f"name = '{NAME}'") == []


def test_a_bundle_with_a_missing_file_is_not_registered(client, good_bundle):
    uri = log(good_bundle)
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    (folder / "data/bundle" / SPECIES_FILES["fp16"]).unlink()
    with refused("missing: swin-species.onnx"):
        mlflow.register_model(uri, NAME)


def test_a_bundle_never_verified_is_registered_and_not_promoted(client, tiny_bundle):
    version = register(tiny_bundle.bundle)
    assert client.get_model_version(NAME, version).tags[GATES_TAG] == "never verified"
    with refused("it was never verified"):
        by_stage(client, version)


def test_copies_of_failed_versions_are_refused(client, bad_bundle, good_bundle):
    register(bad_bundle, "trial")
    with refused("ood_recall measured 50.00 %"):
        client.copy_model_version("models:/trial/1", NAME)
    register(good_bundle, "trial")
    copied = client.copy_model_version("models:/trial/2", NAME)
    by_stage(client, copied.version)
    assert served(client) == ([str(copied.version)], str(copied.version))


def test_another_flavor_cannot_be_put_into_a_guarded_model(client, good_bundle):
    register(good_bundle)
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(name="other", python_model=Echo(), pip_requirements=[])
    with refused("does not describe a plantmodels bundle"):
        mlflow.register_model(info.model_uri, NAME)


class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str], params=None) -> list[str]:
        return model_input


@ON_EVERY_DATABASE
def test_a_rename_into_a_configured_name_is_checked(registry_uri, client, bad_bundle, good_bundle, monkeypatch):
    version = register(bad_bundle)
    store = build_gated_store(registry_uri, RegistryConfig(guarded=("prod-*",)))
    with refused("refused to rename plant-disease to Prod-plants: ood_recall"):
        store.rename_registered_model(NAME, "Prod-plants")
    client.delete_model_version(NAME, version)
    register(good_bundle)
    assert store.rename_registered_model(NAME, "prod-plants").name == "prod-plants"


def test_the_registry_has_limits_of_its_own(registry_uri, client, good_bundle):
    version = register(good_bundle)
    store = build_gated_store(registry_uri, RegistryConfig(policy=GatePolicy(ood_recall_min=0.98)))
    with refused("ood_recall measured 97.00 %, limit ≥ 98 %"):
        store.transition_model_version_stage(NAME, version, "Production", False)


# waivers


def waive(client: MlflowClient, version: str, gate: str, reason: str = "only greenhouse images") -> None:
    client.set_model_version_tag(NAME, version, f"{WAIVE_TAG}{gate}", reason)


@ON_EVERY_DATABASE
def test_a_waived_gate_lets_this_version_through(client, bad_bundle):
    version, other = register(bad_bundle), register(bad_bundle)
    waive(client, version, "ood_recall")
    by_stage(client, version)
    assert served(client) == ([version], version)
    shown = client.get_model_version(NAME, version).tags[f"{WAIVE_TAG}ood_recall"]
    assert shown.startswith("waived by ") and shown.endswith(": only greenhouse images")
    with refused("ood_recall"):
        by_stage(client, other)


def test_a_waiver_is_void_once_the_measured_value_changes(client, bad_bundle, judged_bundle, registry_uri):
    version = register(bad_bundle)
    waive(client, version, "ood_recall")
    other = register(judged_bundle(ood_recall=0.4))
    value = client.get_model_version(NAME, version).tags[f"{WAIVE_TAG}ood_recall"]
    plain = MlflowClient(registry_uri=registry_uri)  # past the gate, as an ungated server would be
    plain.set_model_version_tag(NAME, other, f"{WAIVE_TAG}ood_recall", value)
    with refused("ood_recall measured 40.00 %"):
        by_stage(client, other)


@ON_EVERY_DATABASE
def test_a_waiver_can_be_withdrawn(client, bad_bundle):
    version = register(bad_bundle)
    waive(client, version, "ood_recall")
    client.delete_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall")
    with refused("ood_recall"):
        by_stage(client, version)


def test_integrity_is_never_waived(client, judged_bundle):
    version = register(judged_bundle(heads_complete=2.0))
    with refused("can never be waived"):
        waive(client, version, "heads_complete")
    with refused("heads_complete measured 2, limit 0 problems"):
        by_stage(client, version)


@pytest.mark.parametrize(
    ("gate", "reason", "message"),
    [
        ("latency", "fine", "latency is not a failed gate of this version; failed gates: ood_recall"),
        ("ood_recall", " ", "a waiver needs a reason of 1 to 1000 characters"),
        ("ood_recall", "x" * 1001, "a waiver needs a reason of 1 to 1000 characters"),
    ],
)
def test_waivers_of_another_gate_or_without_a_reason_are_refused(client, bad_bundle, gate, reason, message):
    version = register(bad_bundle)
    with refused(message):
        waive(client, version, gate, reason)


def test_waivers_can_be_limited_to_users(registry_uri, client, bad_bundle, monkeypatch):
    from mlflow.entities.model_registry import ModelVersionTag

    version = register(bad_bundle)
    store = build_gated_store(registry_uri, RegistryConfig(waiver_users=("ada",)))
    tag = ModelVersionTag(f"{WAIVE_TAG}ood_recall", "fine")

    def log_in(user: str) -> None:
        for module in ("audit", "waivers"):
            monkeypatch.setattr(f"mlflow_plugins.registry.{module}.read_user", lambda: user)

    log_in("bob")
    with refused("bob may not waive gates; allowed users: ada"):
        store.set_model_version_tag(NAME, version, tag)
    log_in("ada")
    store.set_model_version_tag(NAME, version, tag)
    store.transition_model_version_stage(NAME, version, "Production", False)
    decisions = list_decisions(NAME, version=version)
    assert [(d.user, d.allowed) for d in decisions if d.user in ("ada", "bob")] == [
        ("bob", False),
        ("ada", True),
        ("ada", True),
    ]


# audit and concurrency


@ON_EVERY_DATABASE
def test_versions_cannot_be_hidden_from_a_rename(registry_uri, client, bad_bundle):
    """MLflow's search leaves out models with a prompt tag, and takes a name with a quote for a filter."""
    store = build_gated_store(registry_uri, RegistryConfig(guarded=("prod-*",)))
    register(bad_bundle, "evil' AND run_id = 'none")
    with refused("ood_recall"):
        store.rename_registered_model("evil' AND run_id = 'none", "prod-1")
    version = register(bad_bundle)
    with refused("a guarded model cannot be a prompt"):
        client.set_model_version_tag(NAME, version, "mlflow.prompt.is_prompt", "true")
    with refused("a guarded model cannot be a prompt"):
        client.set_registered_model_tag(NAME, "mlflow.prompt.is_prompt", "true")
    with refused("cannot be a prompt|Prompts cannot be registered"):
        client.create_model_version(NAME, log(bad_bundle), tags={"mlflow.prompt.is_prompt": "true"})


def test_nothing_ungated_stays_in_production_when_a_name_becomes_guarded(client, good_bundle):
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(name="other", python_model=Echo(), pip_requirements=[])
    mlflow.register_model(info.model_uri, NAME)
    client.transition_model_version_stage(NAME, "1", "Production")
    with refused("refused to register a version: version 1 is in Production; take it out first"):
        register(good_bundle)
    client.transition_model_version_stage(NAME, "1", "Archived")
    version = register(good_bundle)
    by_alias(client, version)
    assert served(client) == ([version], version)


@ON_EVERY_DATABASE
def test_a_model_in_production_keeps_its_name(client, good_bundle):
    version = register(good_bundle)
    by_alias(client, version)
    with refused("refused to rename plant-disease to old: version 1 is in Production"):
        client.rename_registered_model(NAME, "old")
    client.delete_registered_model_alias(NAME, "production")
    client.rename_registered_model(NAME, "old")
    actions = [(decision.name, decision.action) for decision in list_decisions("old")]
    assert actions[2:] == [(NAME, "rename plant-disease to old"), (NAME, "delete alias production"), *actions[4:]]
    assert [decision.action for decision in list_decisions(NAME)] == [action for _, action in actions]


@pytest.mark.parametrize("prefix", ["Models:/", " models:/", "MODELS:/"])
def test_other_spellings_of_a_models_uri_are_refused(client, good_bundle, prefix):
    client.create_registered_model(NAME)
    source = log(good_bundle).replace("models:/", prefix)
    with refused("must start with 'models:/'"):
        client._get_registry_client().create_model_version(NAME, source, run_id=None)


def test_nothing_stays_in_the_stage_once_a_half_promoted_alias_goes(registry_uri, client, good_bundle):
    first, second = register(good_bundle), register(good_bundle)
    by_alias(client, first)
    MlflowClient(registry_uri=registry_uri).set_registered_model_alias(NAME, "production", second)  # as if cut off
    client.delete_registered_model_alias(NAME, "production")
    assert served(client) == ([], None)


def test_a_long_reason_fits_the_audit_of_a_deleted_version(client, judged_bundle):
    version = register(judged_bundle(ood_recall=0.5, ood_precision=0.5, latency=900.0, int8_accuracy=0.05, parity=0.5))
    for gate in ("ood_recall", "ood_precision", "false_alarms", "latency", "int8_accuracy", "parity"):
        waive(client, version, gate, "x" * 1000)
    by_alias(client, version)
    client.delete_registered_model_alias(NAME, "production")
    client.delete_model_version(NAME, version)


def test_a_prompt_placeholder_cannot_enter_a_guarded_model(registry_uri, client, good_bundle):
    version = register(good_bundle)
    by_alias(client, version)
    with refused("refused to register a version: no such folder in the artifact store"):
        client.create_model_version(NAME, "dummy-source")
    plain = MlflowClient(registry_uri=registry_uri)  # past the gate
    empty = plain.create_model_version(NAME, "dummy-source").version
    for promote in (by_alias, by_stage):
        with refused(f"version {empty}: refused to"):
            promote(client, empty)
    assert served(client) == ([version], version)


@ON_EVERY_DATABASE
def test_every_decision_is_written_down(client, good_bundle, bad_bundle):
    first, second = register(good_bundle), register(bad_bundle)
    by_stage(client, first)
    with refused("ood_recall"):
        by_alias(client, second)
    decisions = list_decisions(NAME)
    assert [(d.version, d.action, d.allowed) for d in decisions] == [
        (first, "register a version", True),
        (second, "register a version", True),
        (first, "promote to stage Production", True),
        (second, "set alias production", False),
    ]
    assert decisions[2].manifest_sha256 == digest_file(good_bundle / MANIFEST_FILE).sha256
    assert "REFUSED" in decisions[3].to_sentence()


@ON_EVERY_DATABASE
def test_a_clock_that_runs_back_loses_no_decision_and_no_order(client, good_bundle, monkeypatch):
    version = register(good_bundle)
    hours = iter("2222211110000")
    monkeypatch.setattr(audit, "read_clock", lambda: f"2026-11-25T0{next(hours)}:00:00.000000Z")
    for _ in range(3):
        by_alias(client, version)
        client.delete_registered_model_alias(NAME, "production")
    assert [(d.action, d.at[12]) for d in list_decisions(NAME)[1:]] == [
        (action, hour)
        for (action, hour) in zip(["set alias production", "delete alias production"] * 3, "222110", strict=True)
    ]
    assert served(client) == ([], None)


@ON_EVERY_DATABASE
@pytest.mark.slow
def test_promotions_at_the_same_time_end_in_one_state(client, good_bundle):
    versions = [register(good_bundle), register(good_bundle)]

    def work(version: str) -> None:
        own = MlflowClient()
        for turn in range(10):
            (by_stage if turn % 2 else by_alias)(own, version)

    threads = [threading.Thread(target=work, args=(version,)) for version in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stage, alias = served(client)
    assert stage == [alias]
    assert len(list_decisions(NAME)) == 22
    assert find_production(NAME, read_clock()).version == alias


# models that are not guarded


@ON_EVERY_DATABASE
def test_an_unguarded_model_behaves_as_in_plain_mlflow(registry_uri, client):
    """The same calls to MLflow's store and to ours give the same answers, but for names and times."""

    def exercise(registry: MlflowClient, name: str) -> list[Any]:
        with mlflow.start_run():
            source = mlflow.pyfunc.log_model(name="other", python_model=Echo(), pip_requirements=[]).model_uri
        registry.create_registered_model(name, tags={"team": "a"}, description="d")
        for _ in range(2):
            registry.create_model_version(name, source, tags={"gates": "mine"})
        registry.set_registered_model_alias(name, "Production", "2")
        registry.set_registered_model_alias(name, "production", "1")
        registry.transition_model_version_stage(name, "1", "Production")
        registry.transition_model_version_stage(name, "2", "Production")
        registry.delete_registered_model_alias(name, "production")
        registry.set_model_version_tag(name, "1", "waive", "x")
        registry.delete_model_version_tag(name, "1", "waive")
        registry.rename_registered_model(name, f"{name}-b")
        found = [registry.get_model_version(f"{name}-b", v) for v in ("1", "2")]
        registry.delete_model_version(f"{name}-b", "2")
        model = registry.get_registered_model(f"{name}-b")
        return [
            [(v.version, v.current_stage, sorted(v.aliases), v.tags, v.description) for v in found],
            (model.tags, model.aliases, model.description),
        ]

    plain = MlflowClient(registry_uri=registry_uri)
    assert exercise(client, "ours") == exercise(plain, "theirs")


@ON_EVERY_DATABASE
def test_prompts_are_left_alone(client):
    mlflow.genai.register_prompt("greeting", "Say {{x}}")
    client.set_prompt_alias("greeting", "production", 1)
    assert mlflow.genai.load_prompt("prompts:/greeting@production").version == 1
