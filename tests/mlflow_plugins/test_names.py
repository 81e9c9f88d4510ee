"""Names of registered models: each one that is accepted can be registered, searched and loaded by its URI."""

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_plugins import flavor
from mlflow_plugins.jobs.registration import check_registry
from mlflow_plugins.loading.addresses import resolve_models_uri
from mlflow_plugins.loading.native import load_model
from mlflow_plugins.names import check_name, filter_by_name, name_logged_model
from plantmodels.errors import RegistrationError

GOOD = [
    "prod.plants.disease",
    "100%",
    "a%41",
    "it's",
    'the "best"',
    "Pflanzen-Krankheit ä",
    "a b",
    "a;b",
    "a&b=c",
    "a+b",
]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("a/b", "'a/b' cannot name a registered model: Invalid model name 'a/b'. Names cannot contain '/' or ':'"),
        ("a:b", "Names cannot contain '/' or ':'"),
        ("", "'' cannot name a registered model"),
        (" ", "' ' cannot name a registered model"),
        ("..", "cannot name a registered model"),
        ("a#b", "# is not possible, because in a URI it begins the fragment"),
        ("a?b", r"\? is not possible, because in a URI it begins the query"),
        ("plant@production", "@ is not possible, because in models:/NAME@ALIAS it begins the alias"),
        ("a\\b", "not possible, because MLflow takes it for a slash"),
        (" a", "expected printable text without spaces at its ends"),
        ("a\nb", "expected printable text"),
        ("a\udce9", "expected printable text"),
        ('it\'s "a"', "MLflow's search takes names with ' or with \", not with both"),
    ],
)
def test_names_that_mlflow_could_not_register_or_load_are_refused(name: str, match: str) -> None:
    with pytest.raises(RegistrationError, match=match):
        check_name(name)


def test_names_that_pass_are_registered_found_and_loaded(embedded_mlflow: str, verified_bundle: Path) -> None:
    with mlflow.start_run():
        logged = {name: name_logged_model(name) for name in GOOD}
        info = flavor.log_model(verified_bundle, name=logged["prod.plants.disease"])
    assert logged["prod.plants.disease"] == "prod-plants-disease"
    client = MlflowClient()
    for name in GOOD:
        check_registry(name)
        client.create_registered_model(name)
        client.create_model_version(name, info.model_uri, model_id=info.model_id)
        client.set_registered_model_alias(name, "production", "1")
        assert [version.name for version in client.search_model_versions(filter_by_name(name))] == [name]
        assert resolve_models_uri(f"models:/{name}@production") == (name, "1")
        assert load_model(f"models:/{name}/1", threads=1).taxonomy
