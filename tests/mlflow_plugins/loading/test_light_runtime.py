"""A service that has nothing but the serving libraries: no checkout, no torch, timm, onnx or scipy."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_plugins import flavor

pytestmark = pytest.mark.slow

LIBRARIES = ("mlflow-skinny", "numpy", "onnxruntime", "pandas", "pillow")
"""mlflow.pyfunc imports pandas, which mlflow-skinny does not bring along."""

SCRIPT = """
import importlib.util, json, pathlib, sys
absent = [name for name in ("torch", "timm", "onnx", "scipy", "plantmodels") if importlib.util.find_spec(name) is None]
import mlflow, pandas
leaf = pathlib.Path(sys.argv[1]).read_bytes()
model = mlflow.pyfunc.load_model("models:/plants@production")
rows = model.predict(pandas.DataFrame({"image": [leaf, b"bad"]}), params={"top_k": 2, "return_embedding": True})
from mlflow_plugins.flavor import load_model
native = load_model("models:/plants@production", precision="fp16").predict([leaf])[0].species
import plantmodels
print(json.dumps([absent, rows.to_dict("records"), native, plantmodels.__file__]))
"""


@pytest.fixture(scope="module")
def light_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with the libraries alone, of the pinned versions."""
    folder = tmp_path_factory.mktemp("light") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pins = [f"{name}=={version(name)}" for name in LIBRARIES]
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *pins]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    if "No matching distribution" in installed.stderr or "ConnectionError" in installed.stderr:
        pytest.skip("no package index can be reached")
    assert installed.returncode == 0, installed.stderr
    return folder / "bin" / "python"


def test_a_version_answers_by_its_uri_from_a_server(
    light_python: Path, start_server: Callable[..., object], good_bundle: Path, leaf: bytes, tmp_path: Path
) -> None:
    start_server("--artifacts-destination", str(tmp_path / "artifacts"))
    with mlflow.start_run():
        info = flavor.log_model(good_bundle, name="plants")
    registered = mlflow.register_model(info.model_uri, "plants")
    MlflowClient().set_registered_model_alias("plants", "production", registered.version)
    expected = mlflow.pyfunc.load_model("models:/plants@production").predict(
        [leaf, b"bad"], params={"top_k": 2, "return_embedding": True}
    )
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "leaf.jpg").write_bytes(leaf)
    ran = subprocess.run(
        [str(light_python), "-c", SCRIPT, "leaf.jpg"],
        cwd=tmp_path / "service",
        env={"PATH": "", "HOME": str(tmp_path), "MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    absent, rows, native, code = json.loads(ran.stdout.splitlines()[-1])
    assert absent == ["torch", "timm", "onnx", "scipy", "plantmodels"]
    for row, wanted in zip(rows, expected.to_dict("records"), strict=True):
        for name, value in wanted.items():
            if name == "candidates" and value is not None:  # one process keeps denormal floats, the other does not
                assert [list(c.values()) for c in row[name]] == [pytest.approx(list(c.values())) for c in value]
            else:
                exact = value is None or isinstance(value, str | bool)
                assert row[name] == (value if exact else pytest.approx(value, rel=1e-4, abs=1e-5))
    assert native == expected.loc[0, "species"]
    assert not Path(code).is_relative_to(Path(__file__).parents[3]), "the code that answered came with the version"
    assert "WARNING" not in ran.stderr, ran.stderr


def test_native_loader_handle_and_load_check_need_the_checkout_and_no_more(
    light_python: Path, tiny_bundle, tmp_path: Path
) -> None:
    script = "from mlflow_plugins.flavor import load_model; from mlflow_plugins.loading.handle import ModelHandle"
    checkout = {"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    flavor.save_model(tiny_bundle.bundle, tmp_path / "model")
    for arguments in (["-c", script], ["-m", "mlflow_plugins.cli", "load-check", "model"]):
        command = [str(light_python), *arguments]
        ran = subprocess.run(command, cwd=tmp_path, env=checkout, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
    assert "a grey image" in ran.stdout
