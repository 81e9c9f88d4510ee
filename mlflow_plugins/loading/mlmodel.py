"""MLmodel, MLflow's description of a model folder, read safely even if a stranger wrote it.

PyYAML's C parser ends the process on brackets that are nested 100,000 deep, and a few lines of merge keys (`<<`) over
aliases take any amount of memory. Depth, aliases and keys are therefore checked on the events, before values are made.

>>> _ = (tmp / "MLmodel").write_text("flavors: {plantmodels: {bundle: data/bundle}}")
>>> read_description(tmp)["flavors"]["plantmodels"]["bundle"]
'data/bundle'
"""

from pathlib import Path
from typing import Any, Final

import yaml

from plantmodels.bundle.files import read_bytes
from plantmodels.errors import BundleError
from plantmodels.foreign_text import quote_error

DESCRIPTION_FILE: Final = "MLmodel"
"""The file that makes a folder an MLflow model."""

FLAVOR_NAME: Final = "plantmodels"
BUNDLE_FOLDER: Final = "data/bundle"
"""The bundle's folder inside a model folder."""

MAX_BYTES: Final = 4 * 2**20
"""The largest MLmodel that is read."""

_MAX_DEPTH: Final = 50
_MERGE: Final = "<<"
_YAML_ERRORS: Final = (yaml.YAMLError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What PyYAML raises for malformed YAML, and for a value that does not fit its tag, as in `!!timestamp x`."""

_OPENING: Final = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_CLOSING: Final = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Makes only plain values, and refuses a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"key {name!r:.60} is repeated")
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


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
        _check_events(content, aliases)
        document = yaml.load(content, _Loader)
    except _YAML_ERRORS as error:
        raise BundleError(f"{path}: not the YAML expected ({quote_error(error)})") from error
    if not isinstance(document, dict):
        raise BundleError(f"{path}: expected a YAML object, got {type(document).__name__}")
    return document


def _check_events(content: bytes, aliases: bool) -> None:
    depth = 0
    for event in yaml.parse(content, _Loader):
        depth += isinstance(event, _OPENING) - isinstance(event, _CLOSING)
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {_MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise yaml.YAMLError(f"the alias *{event.anchor:.60} is refused")
        if isinstance(event, yaml.ScalarEvent) and event.value == _MERGE:
            raise yaml.YAMLError("the merge key << is refused")
