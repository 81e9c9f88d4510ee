"""Which version of contract 4 a registered version answers by, and whose code answers."""

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from mlflow_plugins import flavor
from mlflow_plugins.loading.pyfunc import PREDICTION_COLUMNS
from plantmodels.errors import BundleError
from plantmodels.serve.classifier import PlantClassifier
from plantmodels.serve.routing import Routing
from tests.fixtures.scoring import forget_contract


@pytest.fixture
def model(verified_bundle: Path, tmp_path: Path) -> Path:
    flavor.save_model(verified_bundle, tmp_path / "model")
    return tmp_path / "model"


WITHOUT_PLUGINS = """
import importlib.metadata as metadata
find = metadata.entry_points
metadata.entry_points = lambda **names: [e for e in find(**names) if not e.value.startswith("mlflow_plugins")]
"""
"""MLflow then imports nothing of this project by itself, as where the project is not installed."""


@pytest.mark.parametrize("before", [WITHOUT_PLUGINS, "import mlflow_plugins"])
def test_one_code_answers_the_versions_own_or_the_installed(
    model: Path, leaf: bytes, tmp_path: Path, before: str
) -> None:
    """Modules of the version and of the installed project are never mixed."""
    script = f"""{before}
import json, sys, mlflow, pandas, pathlib
model = mlflow.pyfunc.load_model(sys.argv[1])
row = model.predict(pandas.DataFrame({{"image": [pathlib.Path(sys.argv[2]).read_bytes()]}})).to_dict("records")[0]
ours = [m.__file__ for name, m in sys.modules.items() if name.split(".")[0] in ("plantmodels", "mlflow_plugins")]
print(json.dumps([ours, row, [n for n in ("torch", "timm", "onnx") if n in sys.modules]]))
"""
    (tmp_path / "leaf.jpg").write_bytes(leaf)
    command = [sys.executable, "-c", script, str(model), str(tmp_path / "leaf.jpg")]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    files, row, building_libraries = json.loads(run.stdout.splitlines()[-1])
    assert {Path(file).is_relative_to(model / "code") for file in files} == {before == WITHOUT_PLUGINS}
    assert row["error"] is None and row["species"] and building_libraries == []


@pytest.mark.parametrize("routing", ["hard", "soft"])
def test_a_version_of_contract_1_keeps_its_columns_and_their_meaning(
    model: Path, verified_bundle: Path, leaf: bytes, routing: Routing
) -> None:
    before = mlflow.pyfunc.load_model(str(model))
    forget_contract(model)
    images, params = pd.DataFrame({"image": [leaf, b""]}), {"routing": routing}
    rows = mlflow.pyfunc.load_model(str(model)).predict(images, params=params)
    native, bad = PlantClassifier.load(verified_bundle, threads=1).predict([leaf, b""], routing=routing)
    assert "disease_given_species_probability" in before.predict(images)
    assert list(rows.columns) == [name for name in PREDICTION_COLUMNS if name != "disease_given_species_probability"]
    served = native.disease_given_species_probability if routing == "hard" else native.disease_probability
    assert rows["disease_probability"].tolist() == [served, None] and bad.error is not None
    assert flavor.load_model(str(model), threads=1).predict([leaf], routing=routing)[0] == native  # always the newest
    with pytest.raises(ValueError, match=r"column must be one of .*, got 'disease_given_species_probability'"):
        mlflow.pyfunc.load_model(str(model), model_config={"column": "disease_given_species_probability"})


@pytest.mark.parametrize("recorded", ["3", "0", "two"])
def test_a_version_of_an_unknown_contract_is_refused(model: Path, recorded: str) -> None:
    text = (model / "MLmodel").read_text(encoding="utf-8")
    (model / "MLmodel").write_text(text.replace("prediction_contract: 2", f"prediction_contract: {recorded}"))
    with pytest.raises(BundleError, match=f"prediction_contract is .*{recorded}.*, this code answers by 1 to 2"):
        mlflow.pyfunc.load_model(str(model))
