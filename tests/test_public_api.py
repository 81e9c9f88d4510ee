"""The public names of both packages: exactly these, each imported when it is first used."""

import importlib
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    "ServiceError",
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


class OtherPath:
    """A path of another kind, such as `py.path.local` or what pytest and other libraries return."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


DOORS: dict[str, Callable[..., object]] = {
    "PlantClassifier.load": lambda path: plantmodels.PlantClassifier.load(path),
    "public_key": lambda path: plantmodels.PlantClassifier.load(path, public_key=path),
    "export_bundle": lambda path: plantmodels.export_bundle(path, path, path, non_plants=path, hyper_parameters=path),
    "verify_bundle": lambda path: plantmodels.verify_bundle(
        path, path, checkpoint=path, non_plants=path, unseen_plants=path, field=path, hyper_parameters=path
    ),
    "compare_bundles": lambda path: plantmodels.compare_bundles(path, path),
    "read_report": lambda path: plantmodels.read_report(path),
    "sign_bundle": lambda path: plantmodels.sign_bundle(path, path),
    "check_signature": lambda path: plantmodels.check_signature(path, path),
    "save_model": lambda path: mlflow_plugins.save_model(path, path),
    "log_model": lambda path: mlflow_plugins.log_model(path, name="m"),
    "load_model": lambda path: mlflow_plugins.load_model(path),
}
"""Every public function that takes a path, called with one path for all of its arguments."""


@pytest.mark.parametrize("kind", [str, Path, OtherPath])
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_path_may_be_text_or_any_kind_of_path(tmp_path: Path, door: Callable[..., object], kind: Any) -> None:
    """Nothing is there, so each answers with the project's own error, which names the path."""
    with pytest.raises(errors.PlantModelsError, match="nothing 100% here"):
        door(kind(tmp_path / "nothing 100% here"))


@pytest.mark.parametrize("name", [*FUNCTIONS, *PLUGINS])
def test_no_public_function_demands_a_path_object(name: str) -> None:
    """What is typed as `StrPath` must be converted before it is used as a `Path`: mypy sees to that."""
    value = getattr(plantmodels if name in FUNCTIONS else mlflow_plugins, name)
    functions = [value] if inspect.isfunction(value) else [m for _, m in inspect.getmembers(value, callable)]
    found = [inspect.signature(function).parameters.values() for function in functions if inspect.isfunction(function)]

    assert not [taken for parameters in found for taken in parameters if taken.annotation in (Path, Path | None)]


def test_python_m_plantmodels_is_the_command_line() -> None:
    assert run_python("-m", "plantmodels", "--version").split()[-1] == plantmodels.__version__
    assert "Usage: plantmodels export " in run_python("-m", "plantmodels", "export", "--help")


@pytest.mark.parametrize("package", ["plantmodels", "mlflow_plugins"])
def test_types_travel_with_the_packages(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert "py.typed" in setuptools["package-data"]["*"]
