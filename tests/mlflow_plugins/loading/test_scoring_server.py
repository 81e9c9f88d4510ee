"""`mlflow models serve` answers images in each of its four forms, and says what is wrong with the rest."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from mlflow import MlflowClient

from mlflow_plugins import flavor
from mlflow_plugins.loading.pyfunc import PREDICTION_COLUMNS
from plantmodels.serve.classifier import PlantClassifier

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(verified_bundle: Path, tmp_path_factory: pytest.TempPathFactory, serve) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    flavor.save_model(verified_bundle, folder / "model")
    with serve(str(folder / "model"), folder) as url:
        yield url


def ask(server: str, document: Any) -> requests.Response:
    text = document if isinstance(document, str) else json.dumps(document)
    return requests.post(server, data=text, headers={"Content-Type": "application/json"}, timeout=600)


def test_four_forms_give_the_same_rows(server: str, leaf: bytes, verified_bundle: Path, tmp_path: Path) -> None:
    text = base64.b64encode(leaf).decode()
    flavor.save_model(verified_bundle, tmp_path / "model")
    expected = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict([leaf, b"bad"]).to_dict("records")
    expected[1]["error"] = None  # its bytes are told of in another way as text
    for document in (
        {"dataframe_split": {"columns": ["image"], "data": [[text], ["bad!"]]}},
        {"dataframe_records": [{"image": text}, {"image": "bad!"}]},
        {"instances": [text, "bad!"]},
        {"instances": [{"image": text}, {"image": "bad!"}]},
        {"inputs": [text, "bad!"]},
        {"inputs": {"image": [text, "bad!"]}},
        {"inputs": {"image": [base64.encodebytes(leaf).decode(), "bad!"]}},
    ):
        answer = ask(server, document)
        assert answer.status_code == 200, answer.text
        good, bad = answer.json()["predictions"]
        assert good == pytest.approx(expected[0])
        assert "not base64 of an image: 'bad!'" in bad.pop("error")
        assert set(bad.values()) == {None}


FORMS = {
    "split": lambda images: {"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}},
    "records": lambda images: {"dataframe_records": [{"image": image} for image in images]},
    "instances": lambda images: {"instances": images},
    "instances, rows": lambda images: {"instances": [{"image": image} for image in images]},
    "inputs": lambda images: {"inputs": images},
    "inputs, rows": lambda images: {"inputs": [{"image": image} for image in images]},
    "inputs, column": lambda images: {"inputs": {"image": images}},
}


@pytest.mark.parametrize("form", FORMS)
def test_any_number_of_images_in_any_form(server: str, leaf: bytes, verified_bundle: Path, form: str) -> None:
    text = base64.b64encode(leaf).decode()
    (native,) = PlantClassifier.load(verified_bundle).predict([leaf])
    expected = {name: getattr(native, name) for name in PREDICTION_COLUMNS}
    for number in (0, 1, 32):
        answer = ask(server, FORMS[form]([text] * number))
        assert answer.status_code == 200, answer.text
        rows = answer.json()["predictions"]
        assert rows == [pytest.approx(expected)] * number


@pytest.mark.parametrize("form", FORMS)
def test_a_null_never_fails_its_neighbours(server: str, leaf: bytes, form: str) -> None:
    text = base64.b64encode(leaf).decode()
    answer = ask(server, FORMS[form]([text, None, text]))
    assert answer.status_code == 200, answer.text
    first, null, last = answer.json()["predictions"]
    assert first == last and first["error"] is None and first["species"]
    assert null.pop("error") == "the image is missing (null)" and set(null.values()) == {None}


def test_the_server_serves_an_alias(leaf: bytes, verified_bundle: Path, tmp_path: Path, serve) -> None:
    with mlflow.start_run():
        info = flavor.log_model(verified_bundle, name="plants")
    version = mlflow.register_model(info.model_uri, "plants")
    MlflowClient().set_registered_model_alias("plants", "production", version.version)
    with serve("models:/plants@production", tmp_path) as url:
        (row,) = ask(url, {"instances": [base64.b64encode(leaf).decode()]}).json()["predictions"]
    assert row["error"] is None and row["species"]


def test_params_reach_the_classifier(server: str, leaf: bytes) -> None:
    text = base64.b64encode(leaf).decode()
    answer = ask(server, {"inputs": [text], "params": {"top_k": 2, "routing": "soft", "return_embedding": True}})
    (row,) = answer.json()["predictions"]
    assert len(row["candidates"]) == 2 and len(row["embedding"]) == 32


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "JSON"),
        ({"images": []}, "dataframe_split"),
        ({"dataframe_split": {"columns": ["picture"], "data": [["x"]]}}, "expected the column 'image', got picture"),
        ({"instances": [{"image": ""}, {"img": ""}]}, "a dict of lists must have only the key 'image', got image, img"),
        ({"inputs": [""], "params": {"routing": "firm"}}, "routing must be one of hard, soft, got 'firm'"),
        ({"inputs": [""], "params": {"top_k": -1}}, "top_k must be an integer of at least 0, got -1"),
        ({"inputs": [""], "params": {"top_k": "many"}}, "top_k"),
        ({"inputs": ["bad!"], "params": {"on_error": "raise"}}, "image 0: text that is not base64"),
    ],
)
def test_a_malformed_request_gets_the_reason(server: str, document: Any, message: str) -> None:
    answer = ask(server, document)
    assert 400 <= answer.status_code < 500, answer.text
    assert message in answer.text
