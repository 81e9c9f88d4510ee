"""The public names of both packages: exactly these, each imported when it is first used."""

import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mlflow_plugins
import plantmodels
from plantmodels import errors

ROOT = Path(__file__).resolve().parents[1]

FUNCTIONS = {
    "PlantClassifier": "plantmodels.serve.classifier",
    "Prediction": "plantmodels.serve.prediction",
    "export_bundle": "plantmodels.export.bundle",
    "verify_bundle": "plantmodels.verify.run",
    "compare_bundles": "plantmodels.compare.compare",
    "read_report": "plantmodels.report.gate_report",
    "sign_bundle": "plantmodels.bundle.signature",
    "check_signature": "plantmodels.bundle.signature",
}

ERRORS = {
    "PlantModelsError",
    "BundleError",
    "CheckpointError",
    "DataError",
    "DetectorError",
    "ExportError",
    "GatesNotPassedError",
    "RegistryError",
    "ImageError",
    "ManifestMismatchError",
    "PolicyError",
    "RegistrationError",
    "ScoringError",
    "SignatureError",
    "TaxonomyError",
    "TrainingError",
}

PLUGINS = {
    "save_model": "mlflow_plugins.flavor",
    "log_model": "mlflow_plugins.flavor",
    "load_model": "mlflow_plugins.loading.native",
    "ModelHandle": "mlflow_plugins.loading.handle",
    "arrow_schema": "mlflow_plugins.loading.pyfunc",
}

HEAVY = {"torch", "timm", "onnx", "onnxruntime", "scipy", "sklearn", "mlflow", "pandas", "numpy", "PIL", "click"}


def test_the_public_names_are_exactly_these() -> None:
    assert set(plantmodels.__all__) == {*FUNCTIONS, *ERRORS, "__version__"}
    assert set(mlflow_plugins.__all__) == {*PLUGINS}
    for package in (plantmodels, mlflow_plugins):
        assert dir(package) == sorted(package.__all__)
        assert len(set(package.__all__)) == len(package.__all__)


def test_every_error_of_the_project_is_public() -> None:
    assert {name for name, value in vars(errors).items() if inspect.isclass(value)} == ERRORS


@pytest.mark.parametrize(
    ("package", "name", "module"),
    [
        *((plantmodels, name, module) for name, module in FUNCTIONS.items()),
        *((plantmodels, name, "plantmodels.errors") for name in sorted(ERRORS)),
        *((mlflow_plugins, name, module) for name, module in PLUGINS.items()),
    ],
)
def test_a_public_name_is_what_its_module_defines(package, name: str, module: str) -> None:
    value = getattr(package, name)

    assert value is getattr(importlib.import_module(module), name)
    assert value.__module__ == module
    assert inspect.getdoc(value)


@pytest.mark.parametrize("package", [plantmodels, mlflow_plugins])
def test_another_name_is_an_attribute_error(package) -> None:
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'PlantClasifier'"):
        _ = package.PlantClasifier


def run_python(*arguments: str) -> str:
    ran = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import plantmodels, mlflow_plugins; dir(plantmodels); plantmodels.__version__", HEAVY),
        ("from plantmodels import PlantClassifier, Prediction", HEAVY - {"numpy", "onnxruntime", "PIL"}),
        ("from plantmodels import sign_bundle, check_signature, BundleError", HEAVY - {"numpy"}),
        ("from plantmodels import read_report, compare_bundles", HEAVY - {"numpy", "scipy", "sklearn", "PIL"}),
        ("from mlflow_plugins import load_model, ModelHandle", HEAVY - {"numpy", "onnxruntime", "PIL"}),
    ],
)
def test_a_name_loads_no_more_than_it_needs(statement: str, absent: set[str]) -> None:
    loaded = run_python("-c", f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})")

    assert not set(loaded.split()) & absent


def test_python_m_plantmodels_is_the_command_line() -> None:
    assert run_python("-m", "plantmodels", "--version").split()[-1] == plantmodels.__version__
    assert "Usage: plantmodels export " in run_python("-m", "plantmodels", "export", "--help")


@pytest.mark.parametrize("package", ["plantmodels", "mlflow_plugins"])
def test_types_travel_with_the_packages(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "py.typed" in setuptools["package-data"]["*"]
