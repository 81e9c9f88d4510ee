"""A MariaDB whose tables are in latin1, as older servers made them: our own text fits, foreign text is escaped."""

import html

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_plugins.jobs.records import log_data
from mlflow_plugins.jobs.run import job_run, log_params
from mlflow_plugins.jobs.training import _log_request
from mlflow_plugins.registry.audit import read_clock
from mlflow_plugins.registry.commands.history import find_production, list_decisions
from mlflow_plugins.registry.tags import GATES_TAG, GLANCE_TAG, WAIVE_TAG
from plantmodels.errors import DataError
from plantmodels.training.requests import TrainRequest
from tests.fixtures.databases import ON_EVERY_DATABASE
from tests.fixtures.registry import register_bundle

NAME = "plant-disease"
REASON = "Gewächshaus ≥ 5 °C, 温室 🌱"


def read_texts(client: MlflowClient, version: str) -> list[str]:
    """Every text that the registry wrote into MLflow's tables."""
    found, model = client.get_model_version(NAME, version), client.get_registered_model(NAME)
    return [found.description, model.description or "", *found.tags.values(), *model.tags.values()]


@ON_EVERY_DATABASE
def test_the_registrys_own_text_is_ascii(registry_database, good_bundle, bad_bundle):
    mlflow.set_registry_uri(f"plantmodels:{registry_database}")
    client = MlflowClient()
    for bundle in (bad_bundle, good_bundle):
        version = register_bundle(bundle, NAME)
    client.set_model_version_tag(NAME, "1", f"{WAIVE_TAG}ood_recall", "a demo")
    client.set_registered_model_alias(NAME, "production", version)
    for number in ("1", version):
        assert [text for text in read_texts(client, number) if not text.isascii()] == []
    assert client.get_model_version(NAME, "1").tags[GATES_TAG].endswith("ood_recall measured 50.00 %, limit >= 95 %")


def test_a_latin1_database_holds_everything_that_a_registry_writes(latin1_database, bad_bundle):
    mlflow.set_registry_uri(f"plantmodels:{latin1_database}")
    client, version = MlflowClient(), register_bundle(bad_bundle, NAME)
    with pytest.raises(MlflowException, match=r"ood_recall measured 50\.00 %, limit ≥ 95 %"):
        client.set_registered_model_alias(NAME, "production", version)
    client.set_model_version_tag(NAME, version, f"{WAIVE_TAG}ood_recall", REASON)
    client.set_registered_model_alias(NAME, "production", version)
    found = client.get_model_version(NAME, version)
    assert found.current_stage == "Production"
    assert found.tags[GLANCE_TAG] == "passed, uncertain: ood_precision; waived: ood_recall"
    assert found.tags[f"{WAIVE_TAG}ood_recall"].endswith(r": Gewächshaus >= 5 °C, \u6e29\u5ba4 \U0001f331")
    assert "In Production" in client.get_registered_model(NAME).description
    assert html.unescape(found.description).count(REASON) == 1
    assert [decision.reason for decision in list_decisions(NAME)][-2] == REASON  # the registry's own tables hold all
    assert find_production(NAME, read_clock()).version == version


def test_a_latin1_database_holds_everything_that_a_job_writes_into_its_run(latin1_database, tmp_path):
    """A client cannot know the characters of the server's database, so what it refuses is written again in ASCII."""
    mlflow.set_tracking_uri(latin1_database)
    folder = tmp_path / "Gewächshaus 温室"
    folder.mkdir()
    request = TrainRequest(data=folder, out=folder / "≥ 5 °C.ckpt")
    with pytest.raises(DataError), job_run("train") as run:
        _log_request(request)
        log_data(folder, "train", "0" * 64)
        raise DataError(f"{folder}: ≥ 1 leaf is needed")
    found = mlflow.get_run(run.info.run_id)
    assert found.data.params["plantmodels.data"].endswith(r"/Gew\xe4chshaus \u6e29\u5ba4")
    assert found.data.params["plantmodels.out"].endswith(r"\u6e29\u5ba4/>= 5 \xb0C.ckpt")
    assert found.data.params["plantmodels.seed"] == "0"
    (data,) = found.inputs.dataset_inputs
    assert data.dataset.name == r"Gew\xe4chshaus \u6e29\u5ba4"
    assert found.data.tags["plantmodels.failure"].endswith(r"Gew\xe4chshaus \u6e29\u5ba4: >= 1 leaf is needed")


def test_a_database_that_holds_every_character_gets_the_texts_as_they_are(embedded_mlflow, tmp_path):
    folder = tmp_path / "Gewächshaus 温室 ≥ 5 °C"
    folder.mkdir()
    with job_run("train") as run:
        _log_request(TrainRequest(data=folder, out=folder / "last.ckpt"))
        log_data(folder, "train", "0" * 64)
    found = mlflow.get_run(run.info.run_id)
    assert found.data.params["plantmodels.data"] == str(folder)
    assert found.inputs.dataset_inputs[0].dataset.name == folder.name


def test_what_is_refused_for_another_reason_is_an_error(embedded_mlflow):
    with mlflow.start_run():
        log_params({"plantmodels.seed": 0})
        with pytest.raises(MlflowException, match="Changing param values is not allowed"):
            log_params({"plantmodels.seed": 1})
