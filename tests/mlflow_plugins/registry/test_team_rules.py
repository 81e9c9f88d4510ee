"""What a team sets: protected aliases, who may promote, how many must ask, who may waive what and until when."""

import threading
from collections.abc import Callable
from typing import Any

import mlflow
import pytest
from mlflow.entities.model_registry import ModelVersionTag
from mlflow.exceptions import MlflowException

from mlflow_plugins.registry import audit
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.people import approvals
from mlflow_plugins.registry.store import build_gated_store
from mlflow_plugins.registry.tags import WAIVE_TAG
from plantmodels.errors import RegistryError
from tests.fixtures.databases import ON_EVERY_DATABASE
from tests.fixtures.registry import register_bundle

NAME = "plant-disease"


@pytest.fixture
def build(registry_database: str) -> Callable[..., Any]:
    """`build(approvals=2)`: the gated store of the test's database with this configuration."""
    mlflow.set_registry_uri(f"plantmodels:{registry_database}")
    return lambda **settings: build_gated_store(registry_database, RegistryConfig(**settings))


@pytest.fixture
def log_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """`log_in("ada")`: she makes the next requests of a server; with None it does not know its users."""

    def log_in(user: str | None) -> None:
        monkeypatch.setattr(audit, "read_authenticated_user", lambda: user)
        monkeypatch.setattr(audit, "is_serving", lambda: True)

    return log_in


def refused(match: str) -> Any:
    return pytest.raises(MlflowException, match=match)


def by_stage(store: Any, version: str) -> None:
    store.transition_model_version_stage(NAME, version, "Production", False)


def by_alias(store: Any, version: str) -> None:
    store.set_registered_model_alias(NAME, "production", version)


PROMOTIONS = pytest.mark.parametrize("promote", [by_stage, by_alias])


def in_production(store: Any) -> str | None:
    alias = store.get_registered_model(NAME).aliases.get("production")
    return None if alias is None else str(alias)


# protected aliases


def test_every_protected_alias_is_gated(build, good_bundle, bad_bundle):
    good, bad = register_bundle(good_bundle, NAME), register_bundle(bad_bundle, NAME)
    store = build(aliases=("production", "champion"))
    with refused(r"version 2: refused to set alias champion: ood_recall measured 50.00 %, limit ≥ 95 %"):
        store.set_registered_model_alias(NAME, "champion", bad)
    store.set_registered_model_alias(NAME, "champion", good)
    found = store.get_model_version(NAME, good)
    assert (found.aliases, found.current_stage) == (["champion"], "None")
    store.set_registered_model_alias(NAME, "challenger", bad)


@ON_EVERY_DATABASE
@pytest.mark.parametrize("alias", ["Champion", "ｃhampion", "chämpion"])
def test_other_spellings_of_a_protected_alias_are_refused(build, good_bundle, alias):
    version, store = register_bundle(good_bundle, NAME), build(aliases=("production", "champion"))
    with refused("this alias must be written 'champion'"):
        store.set_registered_model_alias(NAME, alias, version)


def test_deleting_a_protected_alias_leaves_production_alone(build, good_bundle):
    version, store = register_bundle(good_bundle, NAME), build(aliases=("production", "champion"))
    for alias in ("champion", "production"):
        store.set_registered_model_alias(NAME, alias, version)
    store.delete_registered_model_alias(NAME, "champion")
    found = store.get_model_version(NAME, version)
    assert (found.aliases, found.current_stage) == (["production"], "Production")


def test_a_version_with_a_protected_alias_is_not_deleted(build, good_bundle):
    version, store = register_bundle(good_bundle, NAME), build(aliases=("production", "champion"))
    store.set_registered_model_alias(NAME, "champion", version)
    with refused("refused to delete the version: it has the alias champion"):
        store.delete_model_version(NAME, version)
    with refused("refused to delete the registered model: version 1 has the alias champion"):
        store.delete_registered_model(NAME)


def test_a_rename_or_a_first_bundle_brings_no_ungated_alias_under_protection(build, good_bundle):
    """The alias was set where it was not protected."""
    register_bundle(good_bundle, "trial")
    build().set_registered_model_alias("trial", "champion", "1")
    store = build(aliases=("production", "champion"), guarded=("prod-*",))
    with refused("version 1 has the alias champion; take it out first"):
        store.rename_registered_model("trial", "prod-plants")


@pytest.mark.parametrize("alias", ["latest", "v1", "Champion", "a b", "chämpion"])
def test_what_cannot_be_an_alias_stops_the_start(monkeypatch, alias):
    monkeypatch.setenv("PLANTMODELS_ALIASES", f"production,{alias}")
    with pytest.raises(RegistryError, match=f"PLANTMODELS_ALIASES: '{alias}' cannot be an alias"):
        RegistryConfig.from_environment()


def test_production_is_always_protected(monkeypatch):
    monkeypatch.setenv("PLANTMODELS_ALIASES", "champion, challenger")
    assert RegistryConfig.from_environment().aliases == ("production", "champion", "challenger")


# promoters


@PROMOTIONS
def test_only_promoters_promote(build, good_bundle, log_in, promote):
    version, store = register_bundle(good_bundle, NAME), build(promoters=("ada", "carl"))
    log_in("bob")
    with refused("bob is not one of the promoters: ada, carl"):
        promote(store, version)
    with refused("bob is not one of the promoters: ada, carl"):
        store.transition_model_version_stage(NAME, version, "Staging", False)
    log_in("ada")
    promote(store, version)
    assert in_production(store) == version


def test_only_promoters_take_out_of_production(build, good_bundle, log_in):
    version, store = register_bundle(good_bundle, NAME), build(promoters=("ada",), aliases=("production", "champion"))
    log_in("ada")
    by_alias(store, version)
    store.set_registered_model_alias(NAME, "champion", version)
    log_in("bob")
    for call in (
        lambda: store.transition_model_version_stage(NAME, version, "Archived", False),
        lambda: store.transition_model_version_stage(NAME, version, "None", False),
        lambda: store.delete_registered_model_alias(NAME, "production"),
        lambda: store.delete_registered_model_alias(NAME, "champion"),
    ):
        with refused("bob is not one of the promoters: ada"):
            call()
    assert store.get_model_version(NAME, version).current_stage == "Production"
    log_in("ada")
    store.transition_model_version_stage(NAME, version, "Archived", False)
    assert in_production(store) is None


def test_only_promoters_rename_into_a_guarded_name(build, good_bundle, log_in):
    register_bundle(good_bundle, "trial")
    store = build(promoters=("ada",), guarded=("prod-*",))
    log_in("bob")
    with refused("refused to rename trial to prod-plants: bob is not one of the promoters: ada"):
        store.rename_registered_model("trial", "prod-plants")


def test_a_copy_is_no_way_round_the_promoters(build, good_bundle, log_in):
    register_bundle(good_bundle, "trial")
    register_bundle(good_bundle, NAME)
    store = build(promoters=("ada",))
    log_in("bob")
    copied = store.copy_model_version(store.get_model_version("trial", "1"), NAME)
    assert (copied.aliases, copied.current_stage) == ([], "None")
    with refused("bob is not one of the promoters: ada"):
        by_alias(store, copied.version)


def test_a_server_that_knows_no_users_promotes_nothing(build, good_bundle, log_in):
    version = register_bundle(good_bundle, NAME)
    log_in(None)
    hint = r"the server does not know its users; start it with `--app-name basic-auth`"
    with refused(rf"an unknown user is not one of the promoters: ada \({hint}\)"):
        by_alias(build(promoters=("ada",)), version)
    with refused(f"2 different users must ask for it, and {hint}"):
        by_stage(build(approvals=2), version)


# approvals


@pytest.mark.parametrize("first", [by_stage, by_alias])
@pytest.mark.parametrize("second", [by_stage, by_alias])
def test_the_second_user_completes_what_the_first_asked_for(build, good_bundle, log_in, first, second):
    version, store = register_bundle(good_bundle, NAME), build(approvals=2)
    log_in("ada")
    with refused(r"ada's request is noted \(approval 1 of 2\); one more user must ask for it within 7 days"):
        first(store, version)
    with refused(r"ada asked for it before \(approval 1 of 2\); one more user must ask for it within 7 days"):
        second(store, version)
    log_in("ADA")
    with refused("ADA asked for it before"):
        first(store, version)
    assert in_production(store) is None
    log_in("bob")
    second(store, version)
    assert in_production(store) == version


def test_three_approvals(build, good_bundle, log_in):
    version, store = register_bundle(good_bundle, NAME), build(approvals=3)
    for user, message in (("ada", "2 more users must ask"), ("bob", r"approval 2 of 3\); one more user must ask")):
        log_in(user)
        with refused(message):
            by_alias(store, version)
    log_in("carl")
    by_alias(store, version)
    assert in_production(store) == version


def test_an_approval_counts_for_one_version_and_one_alias(build, good_bundle, log_in):
    first, second = register_bundle(good_bundle, NAME), register_bundle(good_bundle, NAME)
    store = build(approvals=2, aliases=("production", "champion"))
    log_in("ada")
    with refused("approval 1 of 2"):
        by_alias(store, first)
    log_in("bob")
    with refused("approval 1 of 2"):
        by_alias(store, second)
    with refused("approval 1 of 2"):
        store.set_registered_model_alias(NAME, "champion", first)


@ON_EVERY_DATABASE
def test_approvals_end_with_the_promotion(build, good_bundle, log_in):
    """Ada's old request for version 1 is not completed after version 2 went into Production."""
    first, second = register_bundle(good_bundle, NAME), register_bundle(good_bundle, NAME)
    store = build(approvals=2)
    log_in("ada")
    with refused("approval 1 of 2"):
        by_alias(store, first)
    for user in ("bob", "carl"):
        log_in(user)
        if user == "bob":
            with refused("approval 1 of 2"):
                by_alias(store, second)
        else:
            by_alias(store, second)
    log_in("bob")
    with refused("approval 1 of 2"):
        by_alias(store, first)
    assert in_production(store) == second


def test_an_approval_is_for_the_waivers_of_its_time(build, bad_bundle, log_in):
    version, store = register_bundle(bad_bundle, NAME), build(approvals=2)
    log_in("ada")
    store.set_model_version_tag(NAME, version, ModelVersionTag(f"{WAIVE_TAG}ood_recall", "greenhouse only"))
    with refused("approval 1 of 2"):
        by_alias(store, version)
    log_in("bob")
    store.set_model_version_tag(NAME, version, ModelVersionTag(f"{WAIVE_TAG}ood_recall", "anything goes"))
    with refused("approval 1 of 2"):
        by_alias(store, version)


def test_an_approval_is_forgotten_after_a_week(build, good_bundle, log_in, monkeypatch):
    version, store = register_bundle(good_bundle, NAME), build(approvals=2)
    log_in("ada")
    with monkeypatch.context() as patch:
        patch.setattr(approvals, "read_clock", lambda: "2026-01-01T00:00:00.000000Z")
        with refused("approval 1 of 2"):
            by_alias(store, version)
    log_in("bob")
    with refused("approval 1 of 2"):
        by_alias(store, version)


def test_gates_come_before_approvals(build, bad_bundle, log_in):
    version, store = register_bundle(bad_bundle, NAME), build(approvals=2)
    for user in ("ada", "bob"):
        log_in(user)
        with refused("ood_recall measured 50.00 %"):
            by_alias(store, version)


def test_what_is_in_production_needs_no_second_approval(build, good_bundle, log_in):
    """So that `reconcile` can mend a promotion that a crash cut off."""
    version = register_bundle(good_bundle, NAME)
    by_alias(build(), version)
    log_in("ada")
    by_stage(build(approvals=2), version)


def test_staging_needs_one_user(build, good_bundle, log_in):
    version = register_bundle(good_bundle, NAME)
    log_in("ada")
    build(approvals=2).transition_model_version_stage(NAME, version, "Staging", False)


def test_two_users_who_ask_at_once_end_in_one_promotion(build, good_bundle, monkeypatch):
    version, store = register_bundle(good_bundle, NAME), build(approvals=2)
    monkeypatch.setattr(audit, "is_serving", lambda: True)
    monkeypatch.setattr(audit, "read_authenticated_user", lambda: threading.current_thread().name)
    refusals: list[MlflowException] = []

    def ask() -> None:
        try:
            by_alias(store, version)
        except MlflowException as error:
            refusals.append(error)

    threads = [threading.Thread(target=ask, name=name) for name in ("ada", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refusals) == 1
    assert in_production(store) == version


@pytest.mark.parametrize("number", ["two", "-1", "1.5", ""])
def test_a_number_of_approvals_that_is_none_stops_the_start(monkeypatch, number):
    monkeypatch.setenv("PLANTMODELS_APPROVALS", number)
    with pytest.raises(
        RegistryError, match=f"PLANTMODELS_APPROVALS must be a number of users, such as 2, got '{number}'"
    ):
        RegistryConfig.from_environment()


def test_more_approvals_than_promoters_stop_the_start():
    with pytest.raises(
        RegistryError, match="2 users must ask for a promotion, but PLANTMODELS_PROMOTERS lists only ada"
    ):
        RegistryConfig(promoters=("ada", "Ada"), approvals=2)
    with pytest.raises(RegistryError, match="PLANTMODELS_APPROVALS must be at least 1, got 0"):
        RegistryConfig(approvals=0)


# waivers


def waive(store: Any, version: str, text: str, gate: str = "ood_recall") -> None:
    store.set_model_version_tag(NAME, version, ModelVersionTag(f"{WAIVE_TAG}{gate}", text))


def test_only_its_owners_waive_a_gate(build, judged_bundle, log_in):
    version = register_bundle(judged_bundle(ood_recall=0.5, latency=900.0), NAME)
    store = build(gate_owners={"ood_recall": ("ada",)}, waiver_users=("bob",))
    log_in("bob")
    with refused("bob may not waive ood_recall; allowed users: ada"):
        waive(store, version, "fine")
    waive(store, version, "fine", "latency")
    log_in("ada")
    with refused("ada may not waive gates; allowed users: bob"):
        waive(store, version, "fine", "latency")
    waive(store, version, "fine")
    log_in("bob")
    with refused("bob may not waive ood_recall; allowed users: ada"):
        store.delete_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall")


@pytest.mark.parametrize("text", ["ood_recall", "speed=ada", "ood_recall=", "ood_recall=ada;ood_recall=bob", "=ada"])
def test_owners_of_no_gate_stop_the_start(monkeypatch, text):
    monkeypatch.setenv("PLANTMODELS_GATE_OWNERS", text)
    with pytest.raises(RegistryError, match="PLANTMODELS_GATE_OWNERS: expected entries such as 'ood_recall=ada,bob'"):
        RegistryConfig.from_environment()


@PROMOTIONS
def test_a_waiver_ends(build, bad_bundle, monkeypatch, promote):
    version, store = register_bundle(bad_bundle, NAME), build()
    waive(store, version, "until 2036-12-31: greenhouse only")
    promote(store, version)
    store.delete_registered_model_alias(NAME, "production")
    monkeypatch.setattr("mlflow_plugins.registry.waivers.read_clock", lambda: "2037-01-01T00:00:00.000000Z")
    with refused("ood_recall measured 50.00 %, limit ≥ 95 %, its waiver ended 2036-12-31T23:59:59Z"):
        promote(store, version)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("until tomorrow: fine", "'tomorrow' is not a time such as 2026-11-24T10:00 or 2026-11-24"),
        ("until 2020-01-01: fine", "the waiver would end 2020-01-01T23:59:59Z, which is past"),
        ("until 2036-01-01: ", "a waiver needs a reason of 1 to 1000 characters"),
    ],
)
def test_an_end_that_is_none_is_refused(build, bad_bundle, text, message):
    version, store = register_bundle(bad_bundle, NAME), build()
    with refused(message):
        waive(store, version, text)
