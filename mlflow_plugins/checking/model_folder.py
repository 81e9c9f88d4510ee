"""Compares a model folder with what `save_model` of the installed package writes: names, MLmodel, environment, code.

Nothing in the folder is imported. Each check returns a line for people.
"""

import re
import reprlib
from pathlib import Path
from typing import Final

from mlflow_plugins.flavor import list_serving_code
from mlflow_plugins.loading.mlmodel import (
    BUNDLE_FOLDER,
    CONTRACT_KEY,
    DESCRIPTION_FILE,
    FLAVOR_NAME,
    find_prediction_contract,
    read_description,
    read_yaml,
)
from plantmodels import __version__
from plantmodels.bundle.files import read_bytes
from plantmodels.bundle.manifest import digest_file, list_files
from plantmodels.errors import PlantModelsError
from plantmodels.serve.prediction import PREDICTION_CONTRACT

_CODE_FOLDER: Final = "code"
_LOADER_MODULE: Final = "mlflow_plugins.flavor"
_REQUIREMENTS_FILE: Final = "requirements.txt"
_CONDA_FILE: Final = "conda.yaml"
_PYTHON_FILE: Final = "python_env.yaml"
_REQUIRED_FILES: Final = (DESCRIPTION_FILE, _REQUIREMENTS_FILE, _CONDA_FILE, _PYTHON_FILE)
_EXAMPLE: Final = {
    "artifact_path": "input_example.json",
    "pandas_orient": "split",
    "serving_input_path": "serving_input_example.json",
    "type": "dataframe",
}
_EXAMPLE_FILES: Final = (_EXAMPLE["artifact_path"], _EXAMPLE["serving_input_path"])
_REGISTRATION_FILE: Final = "registered_model_meta"
"""MLflow writes name and version of a registered model into this file."""

_ORIGIN_KEYS: Final = (
    "artifact_path",
    "is_signature_from_type_hint",
    "mlflow_version",
    "model_id",
    "model_size_bytes",
    "model_uuid",
    "prompts",
    "run_id",
    "type_hint_from_example",
    "utc_time_created",
)
"""Keys of MLmodel that say where the model comes from; any plain value is accepted."""

_PLAIN_TYPES: Final = (str, int, type(None))
_SHA256: Final = re.compile("[0-9a-f]{64}")
_VERSION: Final = re.compile(r"[0-9]+(\.[0-9a-z]+)*")
_REQUIREMENTS: Final = ("mlflow", "numpy", "onnxruntime", "pandas", "pillow")
_BUILD_REQUIREMENTS: Final = ("pip", "setuptools", "wheel")
_MAX_REQUIREMENTS_BYTES: Final = 64 * 2**10
_MAX_LISTED_NAMES: Final = 10


class LoadCheckError(PlantModelsError):
    """A version contains something that `save_model` does not write, or it cannot be read."""


def check_names(folder: Path) -> str:
    """Check that every file has a name that `save_model` writes. The names of code and bundle have their own checks.

    Raises:
        LoadCheckError: a file is missing, has an unknown name or is byte code.
        BundleError: an entry is a link, or anything else that is not a plain file.
    """
    names = list_files(folder)
    below = (f"{_CODE_FOLDER}/", f"{BUNDLE_FOLDER}/")
    known = {*_REQUIRED_FILES, *_EXAMPLE_FILES, _REGISTRATION_FILE}
    if missing := sorted(set(_REQUIRED_FILES) - set(names)):
        raise LoadCheckError(f"{list_names(missing)}: missing from the model folder")
    if compiled := [name for name in names if name.endswith((".pyc", ".pyo")) or "__pycache__" in name.split("/")]:
        raise LoadCheckError(
            f"{list_names(compiled)}: byte code, which Python runs instead of the source; "
            "if Python wrote it when the version was loaded from this folder, delete it"
        )
    if foreign := [name for name in names if name not in known and not name.startswith(below)]:
        raise LoadCheckError(f"{list_names(foreign)}: save_model writes no such file")
    return f"{len(names)}, all of them written by save_model"


def list_names(names: list[str]) -> str:
    """Return the first ten names as text, with "…" if there are more."""
    return ", ".join(names[:_MAX_LISTED_NAMES]) + " …" * (len(names) > _MAX_LISTED_NAMES)


def check_description(folder: Path) -> str:
    """Compare MLmodel with what `save_model` writes, value by value.

    Raises:
        LoadCheckError: a value differs, or there is an unknown key.
        BundleError: the file is not YAML of plain values.
    """
    from mlflow_plugins.loading.pyfunc import MODEL_CONFIG, SIGNATURE

    document = read_description(folder)
    contract = find_prediction_contract(document["flavors"])
    if contract != PREDICTION_CONTRACT:
        raise LoadCheckError(
            f"{DESCRIPTION_FILE}: the version answers by version {contract} of contract 4, what the installed "
            f"plantmodels {__version__} saves by version {PREDICTION_CONTRACT}: check it with the release that wrote "
            "it, or use the native loader, which runs none of its code"
        )
    pyfunc = {
        "loader_module": _LOADER_MODULE,
        "code": _CODE_FOLDER,
        "data": BUNDLE_FOLDER,
        "env": {"conda": _CONDA_FILE, "virtualenv": _PYTHON_FILE},
        "config": dict(MODEL_CONFIG),
        "streamable": False,
        "python_version": _VERSION,
    }
    ours = {
        "bundle": BUNDLE_FOLDER,
        "manifest_sha256": _SHA256,
        "class_order_digest": _SHA256,
        "plantmodels_version": _VERSION,
        CONTRACT_KEY: PREDICTION_CONTRACT,
    }
    example = any((folder / name).is_file() for name in _EXAMPLE_FILES)
    expected = {
        "flavors": {FLAVOR_NAME: ours, "python_function": pyfunc},
        "signature": SIGNATURE.to_dict(),
        "saved_input_example_info": _EXAMPLE if example else None,
        **dict.fromkeys(_ORIGIN_KEYS, _PLAIN_TYPES),
    }
    _check_value(f"{DESCRIPTION_FILE}: ", document, expected)
    return f"as save_model writes it, with MLflow {document.get('mlflow_version')}"


def _check_value(name: str, value: object, expected: object) -> None:
    """Compare a value with the expected one, whose leaves are values, patterns of text or tuples of types."""
    if isinstance(expected, dict) and isinstance(value, dict):
        below = name if name.endswith(" ") else f"{name}."
        if unknown := [key for key in value if key not in expected]:
            raise LoadCheckError(f"{below}{unknown[0]!s:.60} is a key that save_model does not write")
        for key, item in expected.items():
            _check_value(f"{below}{key}", value.get(key), item)
    elif isinstance(expected, list) and isinstance(value, list) and len(expected) == len(value):
        for number, (found, item) in enumerate(zip(value, expected, strict=True)):
            _check_value(f"{name}[{number}]", found, item)
    elif isinstance(expected, re.Pattern):
        if not isinstance(value, str) or not expected.fullmatch(value):
            raise _make_error(name, value, f"text like {expected.pattern}")
    elif isinstance(expected, tuple):
        if not isinstance(value, expected):
            raise _make_error(name, value, "text, a number or null")
    elif value != expected:
        raise _make_error(name, value, reprlib.repr(expected))


def _make_error(name: str, value: object, expected: str) -> LoadCheckError:
    return LoadCheckError(f"{name} is {reprlib.repr(value)[:200]}, expected {expected}")


def check_environment(folder: Path) -> str:
    """Check that the version asks for the serving libraries only, each pinned, and that all three files agree.

    Raises:
        LoadCheckError: a file asks for another package, holds an option of pip such as a package index, or differs
            from the other files.
        BundleError: a file cannot be read.
    """
    content = read_bytes(folder / _REQUIREMENTS_FILE, _MAX_REQUIREMENTS_BYTES).decode(errors="backslashreplace")
    requirements = [line for line in content.split("\n") if line]
    pins = [re.compile(f"{name}=={_VERSION.pattern}") for name in _REQUIREMENTS]
    _check_value(f"{_REQUIREMENTS_FILE}: lines", requirements, pins)
    python_env, conda = read_yaml(folder / _PYTHON_FILE), read_yaml(folder / _CONDA_FILE)
    build = [re.compile(f"{name}(=={_VERSION.pattern})?") for name in _BUILD_REQUIREMENTS]
    dependencies = [f"-r {_REQUIREMENTS_FILE}"]
    _check_value(
        f"{_PYTHON_FILE}: ",
        python_env,
        {"python": _VERSION, "build_dependencies": build, "dependencies": dependencies},
    )
    python, pip = f"python={python_env['python']}", re.compile(f"pip(<={_VERSION.pattern})?")
    packages = [python, pip, {"pip": requirements}]
    _check_value(
        f"{_CONDA_FILE}: ", conda, {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": packages}
    )
    return f"Python {python_env['python']}; {', '.join(requirements)}"


def check_code(folder: Path) -> str:
    """Compare the code that travels with the version with the installed package, byte for byte.

    Raises:
        LoadCheckError: files differ, are missing or do not belong to it; the message names them.
    """
    installed, prefix = list_serving_code(), f"{_CODE_FOLDER}/"
    found = {name.removeprefix(prefix) for name in list_files(folder) if name.startswith(prefix)}
    changed = [
        name for name in installed if name in found and not _have_same_content(folder / prefix / name, installed[name])
    ]
    groups = {
        "differ": changed,
        "do not belong to it": sorted(found - set(installed)),
        "are missing": sorted(set(installed) - found),
    }
    if parts := [f"{list_names([prefix + name for name in names])} {what}" for what, names in groups.items() if names]:
        recorded = read_description(folder)["flavors"][FLAVOR_NAME]["plantmodels_version"]
        raise LoadCheckError(
            f"the code differs from the installed plantmodels {__version__}: {'; '.join(parts)}. "
            f"The version says that it was written by plantmodels {recorded}: check it with that release, "
            "or use the native loader, which runs none of this code"
        )
    return f"{len(installed)} files, identical to the installed plantmodels {__version__}"


def _have_same_content(path: Path, other: Path) -> bool:
    return digest_file(path) == digest_file(other)
