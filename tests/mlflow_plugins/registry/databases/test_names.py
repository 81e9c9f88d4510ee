"""Names, aliases and tags in other spellings: whatever the database takes for ours is guarded as ours."""

import threading

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModelTag
from mlflow.exceptions import MlflowException

from mlflow_plugins import flavor
from mlflow_plugins.registry.config import RegistryConfig
from mlflow_plugins.registry.guard.names import fold
from mlflow_plugins.registry.store import build_gated_store
from tests.fixtures.registry import register_bundle

pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated since 2.9.0:FutureWarning")  # stages

NAME = "plant-disease"
ALIASES = [
    "pröduction",
    "PRODUCTION",
    "ｐroduction",
    "production\n",
    "pròductìon",
    "productıon",
    "prøduction",
    "ⓟroduction",
]
TAGS = ["plantmödels.guarded", "Plantmodels.guarded", "ｐlantmodels.guarded", " plantmodels.guarded", ".gàtes"]
NAMES = [
    "plänt-disease",
    "PLANT-DISEASE",
    "ｐｌａｎｔ-disease",
    "plant-disease ",
    "plant\u200b-disease",
    "plant-disease\n",
]


@pytest.fixture
def client(registry_database: str) -> MlflowClient:
    """A client of the gated registry, on each kind of database."""
    mlflow.set_registry_uri(f"plantmodels:{registry_database}")
    return MlflowClient()


def served(client: MlflowClient, name: str = NAME) -> tuple[list[str], dict[str, str]]:
    """Versions in stage Production, and all aliases."""
    versions = client.search_model_versions(f"name = '{name}'")
    stage = [str(v.version) for v in versions if v.current_stage == "Production"]
    aliases = client.get_registered_model(name).aliases
    return stage, {alias: str(version) for alias, version in aliases.items()}


def test_folding_is_what_people_overlook() -> None:
    assert {fold(alias) for alias in ALIASES} == {"production", "productıon", "prøduction"}
    assert {fold(name) for name in NAMES} == {NAME}
    assert fold("plant-diseases") != fold(NAME)


def test_no_spelling_of_the_alias_moves_or_deletes_it(client, good_bundle, bad_bundle):
    good, bad = register_bundle(good_bundle, NAME), register_bundle(bad_bundle, NAME)
    client.set_registered_model_alias(NAME, "production", good)
    for alias in ALIASES:
        try:
            client.set_registered_model_alias(NAME, alias, bad)
        except MlflowException as error:
            assert error.error_code in ("PERMISSION_DENIED", "INVALID_PARAMETER_VALUE")
        stage, aliases = served(client)
        assert (stage, aliases["production"]) == ([good], good), alias
        assert str(client.get_model_version_by_alias(NAME, "production").version) == good
        assert [known for known in aliases if fold(known) == "production"] == ["production"], alias
    for alias in ALIASES:
        try:
            client.delete_registered_model_alias(NAME, alias)
        except MlflowException as error:
            assert error.error_code == "INVALID_PARAMETER_VALUE"
        stage, aliases = served(client)
        assert stage == ([good] if "production" in aliases else []), alias


def test_reserved_tags_are_refused_in_every_spelling(client, good_bundle):
    version = register_bundle(good_bundle, NAME)
    before = client.get_model_version(NAME, version).tags, client.get_registered_model(NAME).tags
    for key in TAGS:
        for call in (
            lambda: client.set_model_version_tag(NAME, version, key, "passed"),  # noqa: B023
            lambda: client.delete_model_version_tag(NAME, version, key),  # noqa: B023
            lambda: client.set_registered_model_tag(NAME, key, "false"),  # noqa: B023
            lambda: client.delete_registered_model_tag(NAME, key),  # noqa: B023
            lambda: client.create_registered_model("other", tags={key: "1"}),  # noqa: B023
            lambda: client._get_registry_client().create_model_version(NAME, "x", tags={key: "1"}),  # noqa: B023
        ):
            with pytest.raises(MlflowException, match="are reserved for the registry"):
                call()
    assert before == (client.get_model_version(NAME, version).tags, client.get_registered_model(NAME).tags)


class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input: list[str], params=None) -> list[str]:
        return model_input


@pytest.fixture
def foreign() -> str:
    """The address of a model of another flavor."""
    with mlflow.start_run():
        return mlflow.pyfunc.log_model(name="other", python_model=Echo(), pip_requirements=[]).model_uri


@pytest.mark.parametrize("name", NAMES)
def test_no_foreign_model_takes_the_place_of_a_listed_name(registry_database, foreign, name):
    store = build_gated_store(registry_database, RegistryConfig(guarded=(NAME,)))
    with pytest.raises(MlflowException, match="this name is guarded, so it cannot be a prompt"):
        store.create_registered_model(name, [RegisteredModelTag("mlflow.prompt.is_prompt", "true")])
    store.create_registered_model(name)
    for source in (foreign, "dummy-source"):
        with pytest.raises(MlflowException, match="refused to register a version"):
            store.create_model_version(name, source)
    store.create_registered_model("innocent")
    store.create_model_version("innocent", foreign)
    with pytest.raises(MlflowException, match="refused to rename"):
        store.rename_registered_model("innocent", f"{name.strip()}\u200d")
    store.create_registered_model("greeting", [RegisteredModelTag("mlflow.prompt.is_prompt", "true")])
    with pytest.raises(MlflowException, match="a prompt cannot have a guarded name"):
        store.rename_registered_model("greeting", f"{name.strip()}\u200e")


def test_a_model_by_another_spelling_is_the_model_that_the_database_finds(client, good_bundle, bad_bundle):
    good, bad = register_bundle(good_bundle, NAME), register_bundle(bad_bundle, NAME)
    for name in ("PLANT-DISEASE", "plänt-disease"):
        for version, expected in ((bad, False), (good, True)):
            try:
                client.set_registered_model_alias(name, "production", version)
            except MlflowException as error:
                found = error.error_code != "RESOURCE_DOES_NOT_EXIST"
                assert not (found and expected), error
        stage, aliases = served(client)
        assert stage == list(aliases.values())
        assert bad not in stage
        try:
            client.delete_registered_model(name)
        except MlflowException as error:
            assert error.error_code in ("RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED")
    assert client.get_registered_model(NAME).name == NAME


@pytest.mark.slow
def test_promotions_by_names_in_mixed_spelling_end_in_one_state(mariadb_database, good_bundle):
    """50 pairs, each at once: the lock's key is not the name as it is spelled."""
    mlflow.set_registry_uri(f"plantmodels:{mariadb_database}")
    client = MlflowClient()
    versions = [register_bundle(good_bundle, NAME), register_bundle(good_bundle, NAME)]
    spellings, failures = [NAME, "PLANT-Disease", "plänt-disease", "plant-diseasé"], []

    def promote(pair: int, place: int) -> None:
        name, version = spellings[(pair + place) % len(spellings)], versions[place]
        try:
            if (pair // 2 + place) % 2:
                client.transition_model_version_stage(name, version, "Production")
            else:
                client.set_registered_model_alias(name, "production", version)
        except MlflowException as error:
            failures.append(error)

    for pair in range(50):
        threads = [threading.Thread(target=promote, args=(pair, place)) for place in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stage, aliases = served(client)
        assert stage == list(aliases.values()), pair
    assert failures == []


def test_mariadb_takes_accents_and_case_for_the_same_row(mariadb_database, good_bundle):
    """Otherwise the tests above would prove nothing."""
    mlflow.set_registry_uri(f"plantmodels:{mariadb_database}")
    register_bundle(good_bundle, NAME)
    store = build_gated_store(mariadb_database)
    assert store._rows.find_model("PLÄNT-Disease").name == NAME
    assert store._rows.takes_for_alias("pröduction", "production")
    assert store._rows.takes_for_name("plänt-Diseasë", ["plant-*"])
    assert not store._rows.takes_for_name("plot", ["plant-*"])
    assert not store._rows.takes_for_alias("prodüktion", "production")


def test_exempt_names_are_never_guarded(registry_database, bad_bundle):
    config = RegistryConfig(guarded=("*",), unguarded=("scratch-*",))
    store = build_gated_store(registry_database, config)
    with mlflow.start_run():
        source = f"models:/{flavor.log_model(bad_bundle, name='m').model_id}"
    for name in ("scratch-1", "Scratch-1b"):
        store.create_registered_model(name)
        version = store.create_model_version(name, source).version
        if name == "scratch-1":
            store.set_registered_model_alias(name, "production", version)
            assert store.get_model_version_by_alias(name, "production").current_stage == "None"
        else:
            with pytest.raises(MlflowException, match="ood_recall"):
                store.set_registered_model_alias(name, "production", version)
