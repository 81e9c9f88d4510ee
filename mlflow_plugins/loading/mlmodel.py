"""MLmodel, MLflow's description of a model folder, read safely even if a stranger wrote it.

>>> _ = (tmp / "MLmodel").write_text("flavors: {plantmodels: {bundle: data/bundle}}")
>>> read_description(tmp)["flavors"]["plantmodels"]["bundle"]
'data/bundle'
"""

from pathlib import Path
from typing import Any, Final

from plantmodels.bundle.files import read_bytes
from plantmodels.errors import BundleError
from plantmodels.plain_yaml import parse_plain_yaml

DESCRIPTION_FILE: Final = "MLmodel"
"""The file that makes a folder an MLflow model."""

FLAVOR_NAME: Final = "plantmodels"
BUNDLE_FOLDER: Final = "data/bundle"
"""The bundle's folder inside a model folder."""

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
