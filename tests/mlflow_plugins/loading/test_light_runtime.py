"""Services that have the serving libraries alone, with each MLflow from 2.17 on: no torch, timm, onnx or scipy."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_plugins import flavor

pytestmark = pytest.mark.slow

CHECKOUT = str(Path(__file__).parents[3])
LIBRARIES = [f"{name}=={version(name)}" for name in ("numpy", "onnxruntime", "pandas", "pillow")]
"""mlflow.pyfunc imports pandas, which mlflow-skinny does not bring along."""

CONSUMERS = {
    "2.17.2": ["mlflow-skinny==2.17.2"],
    "3.0.0": ["mlflow-skinny==3.0.0"],
    "pinned": [f"mlflow-skinny=={version('mlflow')}"],
    "3.18.0": [f"mlflow-skinny=={version('mlflow')}", "mlflow==3.18.0"],
}
"""The MLflow of each consumer: the oldest, the first with logged models, ours and the newest.

The last one goes over the files of mlflow-skinny without its dependencies: its own mlflow-skinny is not published."""

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
print(json.dumps([mlflow.__version__, absent, rows.to_dict("records"), native, plantmodels.__file__]))
"""

HANDLE = """
import dataclasses, json, pathlib, sys
from mlflow_plugins import ModelHandle
with ModelHandle("models:/plants@production", threads=1) as handle:
    (answer,) = handle.predict([pathlib.Path(sys.argv[1]).read_bytes()], top_k=2, return_embedding=True)
print(json.dumps(dataclasses.asdict(answer), default=lambda value: value.tolist()))
"""


def install(folder: Path, *packages: str) -> None:
    """Install packages with uv, which takes two seconds where pip takes thirty."""
    uv = [sys.executable, "-m", "uv", "--quiet"]
    if not folder.exists():
        subprocess.run([*uv, "venv", "--python", sys.executable, folder], check=True)
    command = [*uv, "pip", "install", "--python", folder / "bin" / "python", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Failed to fetch" in done.stderr or "Could not connect" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The interpreters of fresh environments with the serving libraries of the pinned versions and one MLflow each."""
    folder = tmp_path_factory.mktemp("light")
    for name, (skinny, *over) in CONSUMERS.items():
        install(folder / name, skinny, *LIBRARIES)
        if over:
            install(folder / name, "--no-deps", *over)
    return {name: folder / name / "bin" / "python" for name in CONSUMERS}


def run(python: Path, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "", "HOME": str(folder), "MLFLOW_DISABLE_TELEMETRY": "true", **variables}
    ran = subprocess.run(
        [str(python), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran


def check_equal(answer: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare with this process, which keeps denormal floats where a service does not."""
    for name, value in expected.items():
        if name == "candidates" and value is not None:
            assert [list(c.values()) for c in answer[name]] == [pytest.approx(list(c.values())) for c in value]
        else:
            exact = value is None or isinstance(value, str | bool)
            assert answer[name] == (value if exact else pytest.approx(value, rel=1e-4, abs=1e-5))


def test_a_version_answers_alike_by_its_uri_from_a_server_with_every_mlflow(
    pythons: dict[str, Path], start_server: Callable[..., object], good_bundle: Path, leaf: bytes, tmp_path: Path
) -> None:
    start_server("--artifacts-destination", str(tmp_path / "artifacts"))
    with mlflow.start_run():
        info = flavor.log_model(good_bundle, name="plants")
    registered = mlflow.register_model(info.model_uri, "plants")
    MlflowClient().set_registered_model_alias("plants", "production", registered.version)
    expected = mlflow.pyfunc.load_model("models:/plants@production").predict(
        [leaf, b"bad"], params={"top_k": 2, "return_embedding": True}
    )
    (service := tmp_path / "service").mkdir()
    (service / "leaf.jpg").write_bytes(leaf)
    uri = os.environ["MLFLOW_TRACKING_URI"]

    def ask(python: Path) -> tuple[Any, Any]:
        ran = run(python, service, "-c", SCRIPT, "leaf.jpg", MLFLOW_TRACKING_URI=uri)
        assert "WARNING" not in ran.stderr or python != pythons["pinned"], ran.stderr
        handle = run(python, service, "-c", HANDLE, "leaf.jpg", MLFLOW_TRACKING_URI=uri, PYTHONPATH=CHECKOUT)
        return json.loads(ran.stdout.splitlines()[-1]), json.loads(handle.stdout)

    with ThreadPoolExecutor(2) as pool:
        answers = dict(zip(pythons, pool.map(ask, pythons.values()), strict=True))
    for name, ((mlflow_version, absent, rows, native, code), handle) in answers.items():
        assert mlflow_version == (version("mlflow") if name == "pinned" else name)
        assert absent == ["torch", "timm", "onnx", "scipy", "plantmodels"]
        assert rows == answers["pinned"][0][2] and handle == answers["pinned"][1], f"MLflow {name} answers otherwise"
        for row, wanted in zip(rows, expected.to_dict("records"), strict=True):
            check_equal(row, wanted)
        check_equal(handle, expected.to_dict("records")[0])
        assert native == expected.loc[0, "species"]
        assert not Path(code).is_relative_to(CHECKOUT), "the code that answered came with the version"


def test_load_check_needs_the_checkout_and_no_more(pythons: dict[str, Path], tiny_bundle, tmp_path: Path) -> None:
    flavor.save_model(tiny_bundle.bundle, tmp_path / "model")
    ran = run(pythons["pinned"], tmp_path, "-m", "mlflow_plugins.cli", "load-check", "model", PYTHONPATH=CHECKOUT)
    assert "a grey image" in ran.stdout
