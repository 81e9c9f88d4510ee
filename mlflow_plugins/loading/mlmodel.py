"""MLmodel, MLflow's description of a model folder, read safely even if a stranger wrote it.

>>> _ = (tmp / "MLmodel").write_text("flavors: {plantmodels: {bundle: data/bundle}}")
>>> read_description(tmp)["flavors"]["plantmodels"]["bundle"]
'data/bundle'
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from plantmodels.bundle.files import read_bytes
from plantmodels.errors import BundleError
from plantmodels.plain_yaml import parse_plain_yaml
from plantmodels.serve.prediction import PREDICTION_CONTRACT

DESCRIPTION_FILE: Final = "MLmodel"
"""The file that makes a folder an MLflow model."""

FLAVOR_NAME: Final = "plantmodels"
BUNDLE_FOLDER: Final = "data/bundle"
"""The bundle's folder inside a model folder."""

CONTRACT_KEY: Final = "prediction_contract"
"""The flavor's key that says which version of contract 4 the model version answers by."""

MAX_BYTES: Final = 4 * 2**20
"""The largest MLmodel that is read."""


def read_description(folder: Path, *, aliases: bool = False) -> dict[str, Any]:
    """Read the MLmodel of a model folder.

    Args:
        folder: the model folder.
        aliases: whether YAML aliases are accepted; MLflow writes aliases for some other flavors.

    Raises:
        BundleError: the file cannot be read (`read_yaml`), or names no flavors.
    """
    path = folder / DESCRIPTION_FILE
    return parse_description(path, read_bytes(path, MAX_BYTES), aliases=aliases)


def parse_description(path: Path, content: bytes, *, aliases: bool = False) -> dict[str, Any]:
    """Return the MLmodel with a given content, as `read_description` does; the path is used only in errors."""
    document = _parse_yaml(path, content, aliases)
    if not isinstance(document.get("flavors"), dict):
        raise BundleError(f"{path}: names no flavors")
    return document


def find_prediction_contract(flavors: Mapping[str, Any]) -> int:
    """Return the version of contract 4 that a model version answers by; 1 if it was saved before there was another.

    Args:
        flavors: the flavors of its MLmodel.

    Raises:
        BundleError: the recorded value is no version that this code knows.

    >>> find_prediction_contract({"plantmodels": {"bundle": "data/bundle"}})
    1
    """
    flavor = flavors.get(FLAVOR_NAME)
    found = flavor.get(CONTRACT_KEY, 1) if isinstance(flavor, Mapping) else 1
    if type(found) is not int or not 1 <= found <= PREDICTION_CONTRACT:
        raise BundleError(
            f"{DESCRIPTION_FILE}: {CONTRACT_KEY} is {found!r:.60}, this code answers by 1 to {PREDICTION_CONTRACT}"
        )
    return found


def read_yaml(path: Path, *, aliases: bool = False) -> dict[str, Any]:
    """Read one YAML object of plain values.

    Args:
        path: the file.
        aliases: whether YAML aliases are accepted.

    Raises:
        BundleError: the file is missing, too large or not a regular file; or its YAML is malformed, nested too deeply,
            not one object, or holds a repeated key, a merge key, an unaccepted alias or a tag that is not plain.
    """
    return _parse_yaml(path, read_bytes(path, MAX_BYTES), aliases)


def _parse_yaml(path: Path, content: bytes, aliases: bool) -> dict[str, Any]:
    try:
        document = parse_plain_yaml(content, aliases=aliases)
    except ValueError as error:
        raise BundleError(f"{path}: not the YAML expected ({error})") from error
    if not isinstance(document, dict):
        raise BundleError(f"{path}: expected a YAML object, got {type(document).__name__}")
    return document
