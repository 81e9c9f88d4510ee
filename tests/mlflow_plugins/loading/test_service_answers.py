"""`/invocations` of `plantmodels serve` gives the answers of `mlflow models serve`, in each form and for each param."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from mlflow_plugins import flavor
from mlflow_plugins.loading.handle import LoadedVersion
from mlflow_plugins.loading.mlmodel import CONTRACT_KEY
from mlflow_plugins.loading.native import load_with_contract
from plantmodels.serve.loading import LoadOptions
from plantmodels.service.app import answer_invocation
from tests.service.test_invocations import FORMS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model_folder(tiny_bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    flavor.save_model(tiny_bundle.bundle, folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def native(model_folder: Path) -> LoadedVersion:
    return LoadedVersion("plants", "1", *load_with_contract(str(model_folder), LoadOptions(threads=1)))


@pytest.fixture(scope="module")
def server(model_folder: Path, serve) -> Iterator[str]:
    with serve(str(model_folder), model_folder.parent) as url:
        yield url


def ask_both(server: str, native: LoadedVersion, document: Any) -> tuple[Any, Any]:
    """What `mlflow models serve` answers, and what the service does."""
    text = json.dumps(document)
    theirs = requests.post(server, data=text, headers={"Content-Type": "application/json"}, timeout=600)
    assert theirs.status_code == 200, theirs.text
    ours, _ = answer_invocation(native, text.encode(), 64)
    return theirs.json(), json.loads(ours.body)


@pytest.mark.parametrize("form", FORMS)
def test_the_answers_are_those_of_mlflow(server: str, native: LoadedVersion, leaf: bytes, form: str) -> None:
    text = base64.b64encode(leaf).decode()
    for images in ([text, None, "bad!", ""], [text], []):
        if not images and form in ("split, no columns", "split, more columns"):
            continue
        theirs, ours = ask_both(server, native, FORMS[form](images))
        assert json.dumps(ours) == json.dumps(theirs), "in the same order, too"


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 3},
        {"routing": "soft", "return_embedding": True},
        {"as_struct": True, "top_k": 1},
        {"colour": "red"},
        {},
        None,
    ],
)
def test_params_mean_the_same(server: str, native: LoadedVersion, leaf: bytes, params: Any) -> None:
    images = [base64.b64encode(leaf).decode(), "bad!"]
    theirs, ours = ask_both(server, native, {"inputs": images, "params": params})
    assert json.dumps(ours) == json.dumps(theirs)


def test_a_version_of_the_first_contract_keeps_its_columns(model_folder: Path, leaf: bytes, tmp_path: Path) -> None:
    import shutil

    from mlflow_plugins.loading.pyfunc import load_pyfunc

    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    description = yaml.safe_load((folder / "MLmodel").read_text())
    del description["flavors"]["plantmodels"][CONTRACT_KEY]
    (folder / "MLmodel").write_text(yaml.safe_dump(description))
    old = LoadedVersion("plants", "1", *load_with_contract(str(folder), LoadOptions(threads=1)))
    text = base64.b64encode(leaf).decode()
    for routing in ("hard", "soft"):
        expected = load_pyfunc(folder / flavor.BUNDLE_FOLDER).predict([text], {"routing": routing}).to_dict("records")
        body = json.dumps({"inputs": [text], "params": {"routing": routing}}).encode()
        assert json.loads(answer_invocation(old, body, 64)[0].body) == {"predictions": expected}
        assert "disease_given_species_probability" not in expected[0]
