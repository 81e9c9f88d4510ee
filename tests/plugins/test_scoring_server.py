"""`mlflow models serve` answers photographs in each of its four forms, and says what is wrong with the rest."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests

from mlflow_plugins import flavor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(verified_bundle: Path, tmp_path_factory: pytest.TempPathFactory, serve) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    flavor.save_model(verified_bundle, folder / "model")
    with serve(str(folder / "model"), folder) as url:
        yield url


def ask(server: str, document: Any) -> requests.Response:
    text = document if isinstance(document, str) else json.dumps(document)
    return requests.post(server, data=text, headers={"Content-Type": "application/json"}, timeout=60)


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


def test_params_reach_the_classifier(server: str, leaf: bytes) -> None:
    text = base64.b64encode(leaf).decode()
    answer = ask(server, {"inputs": [text], "params": {"top_k": 2, "routing": "soft", "return_embedding": True}})
    (row,) = answer.json()["predictions"]
    assert len(row["candidates"]) == 2 and len(row["embedding"]) == 32


def test_an_empty_batch_is_an_empty_answer(server: str) -> None:
    assert ask(server, {"dataframe_records": []}).json() == {"predictions": []}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "JSON"),
        ({"images": []}, "dataframe_split"),
        ({"dataframe_split": {"columns": ["picture"], "data": [["x"]]}}, "no column 'image': the columns are picture"),
        ({"inputs": [""], "params": {"routing": "firm"}}, "routing must be one of hard, soft, got 'firm'"),
        ({"inputs": [""], "params": {"top_k": -1}}, "top_k must be an integer of at least 0, got -1"),
        ({"inputs": [""], "params": {"top_k": "many"}}, "top_k"),
        ({"inputs": ["bad!"], "params": {"on_error": "raise"}}, "image 0: text that is not base64"),
    ],
)
def test_malformed_requests_are_told_why(server: str, document: Any, message: str) -> None:
    answer = ask(server, document)
    assert 400 <= answer.status_code < 500, answer.text
    assert message in answer.text
