"""What a checkpoint says about its network: the fields of contract 1, in its pickle or in a file of their own.

>>> parameters = {"backbone": "resnet10t", "embedding_dim": 512, "image_size": [224, 224], "species": ["Mint"]}
>>> parameters |= {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "diseases": {}}
>>> read_spec(Path("last.ckpt"), parameters).preprocessing.image_size
224
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from plantmodels.bundle.files import read_bytes
from plantmodels.bundle.metadata import Preprocessing
from plantmodels.bundle.serialization import parse_json_text
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.checkpoint.inert_pickle import Foreign, StoredTensor
from plantmodels.checkpoint.scale import check_scale
from plantmodels.errors import BundleError, CheckpointError, TaxonomyError
from plantmodels.plain_yaml import parse_plain_yaml

REQUIRED: Final = ("backbone", "embedding_dim", "image_size", "mean", "std", "species", "diseases")
OPTIONAL: Final = ("backbone_kwargs", "interpolation", "crop_pct")
"""The fields of contract 1. All other entries of `hyper_parameters` are ignored, whatever they hold."""

HELD_OUT: Final = "held_out_sha256"
"""The optional field that names the training leaves which no weight was fitted to, by the digests of their contents."""

SEEN_NON_PLANTS: Final = "seen_non_plants_sha256"
"""The optional field that names the non-plants that the network learned from, by the digests of their contents."""

FILL_IN: Final = "FILL IN"
"""What the template of `plantmodels describe` says where a person must write something."""

_MAX_BYTES: Final = 16 * 2**20
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MAX_DEPTH: Final = 6
_MAX_VALUES: Final = 100_000
"""Limits of one field. A pickle may nest lists in one another and name each of them twice."""


@dataclass(frozen=True)
class NetworkSpec:
    """The description of a network in `hyper_parameters`.

    Attributes:
        backbone: timm model name.
        backbone_kwargs: further arguments of `timm.create_model`.
        embedding_dim: D, the length of the embedding that the heads read.
        preprocessing: how images became inputs in training.
        taxonomy: all classes in logit order.
    """

    backbone: str
    backbone_kwargs: Mapping[str, Any]
    embedding_dim: int
    preprocessing: Preprocessing
    taxonomy: Taxonomy


def read_parameter_file(path: Path) -> dict[str, Any]:
    """Return the hyper-parameters in a JSON or YAML file.

    Raises:
        CheckpointError: the file is missing, larger than 16 MB, malformed, or does not hold one object.
    """
    try:
        content = read_bytes(path.resolve(), _MAX_BYTES)  # Hugging Face's cache holds links
        parse = parse_plain_yaml if path.suffix.lower() in (".yaml", ".yml") else _parse_json
        document = parse(content)
    except BundleError as error:
        raise CheckpointError(str(error)) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not the hyper-parameters expected, in JSON or YAML ({error})") from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise CheckpointError(
            f"{path}: expected an object with {', '.join(REQUIRED)}, got {type(document).__name__} {document!r:.60}"
        )
    waiting = [name for name, value in document.items() if FILL_IN in str(value)]
    if waiting:
        raise CheckpointError(f"{path}: still to be filled in: {', '.join(waiting)}")
    return document


def _parse_json(content: bytes) -> Any:
    return parse_json_text(content.decode("utf-8-sig"))


def read_spec(path: Path, parameters: Mapping[str, Any]) -> NetworkSpec:
    """Return the description of the network in a checkpoint's hyper-parameters.

    Args:
        path: the checkpoint, for error messages.
        parameters: name to value; entries that are not fields of contract 1 are not looked at.

    Raises:
        CheckpointError: a field is missing, holds an object that is not plain data, or has a value that contract 1
            does not allow.
    """
    missing = [name for name in REQUIRED if name not in parameters]
    if missing:
        raise CheckpointError(f"{path}: hyper_parameters lack {', '.join(missing)}.{_name_way_out(path)}")
    fields = {name: parameters[name] for name in (*REQUIRED, *OPTIONAL) if name in parameters}
    for name, value in fields.items():
        _check_plain(path, name, value)
    kwargs, dim = fields.get("backbone_kwargs") or {}, fields["embedding_dim"]
    try:
        if not isinstance(fields["backbone"], str) or not isinstance(kwargs, Mapping):
            raise ValueError("backbone must be a timm name and backbone_kwargs a dict")
        if type(dim) is not int or dim < 1:
            raise ValueError(f"embedding_dim must be a positive integer, got {dim!r}")
        preprocessing = Preprocessing(
            _read_side(fields["image_size"]),
            _to_tuple("mean", fields["mean"]),
            _to_tuple("std", fields["std"]),
            **{name: fields[name] for name in ("interpolation", "crop_pct") if name in fields},
        )
        check_scale(preprocessing)
        diseases = {name: _to_tuple("diseases", names) for name, names in fields["diseases"].items()}
        species = _to_tuple("species", fields["species"])
        taxonomy = Taxonomy(species, {name: names for name, names in diseases.items() if names})
    except (TaxonomyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: hyper_parameters: {error}") from error
    return NetworkSpec(fields["backbone"], kwargs, dim, preprocessing, taxonomy)


def read_digests(path: Path, parameters: Mapping[str, Any], name: str) -> frozenset[str]:
    """Return the digests of images that a checkpoint names in an optional field; none without the field.

    Args:
        path: the checkpoint, for error messages.
        parameters: its hyper-parameters.
        name: the field, `HELD_OUT` or `SEEN_NON_PLANTS`.

    Raises:
        CheckpointError: the field is not a list of SHA-256 digests in lower-case hexadecimal.
    """
    digests = parameters.get(name, [])
    _check_plain(path, name, digests)
    if not isinstance(digests, list | tuple):
        raise CheckpointError(f"{path}: {name} must be a list of SHA-256 digests, got {type(digests).__name__}")
    wrong = next((each for each in digests if not isinstance(each, str) or not _DIGEST.fullmatch(each)), None)
    if wrong is not None:
        raise CheckpointError(
            f"{path}: {name} must hold SHA-256 digests of 64 lower-case hexadecimal digits, got {wrong!r:.80}"
        )
    return frozenset(digests)


def _read_side(size: object) -> Any:
    """Return the side of square images, which may be given as a pair of equal numbers."""
    if isinstance(size, list | tuple) and len(size) == 2:
        if size[0] != size[1]:
            raise ValueError(f"image_size must be square, got {list(size)}")
        return size[0]
    return size


def _to_tuple(name: str, values: object) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} must be a list, got {type(values).__name__}")
    return tuple(values)


def _check_plain(path: Path, field: str, value: object) -> None:
    """Raise an error that names the entry of a field that is not plain data, and what the pickle calls it."""
    waiting: list[tuple[str, object, int]] = [("", value, 0)]
    for count in range(_MAX_VALUES):
        if not waiting:
            return
        place, item, depth = waiting.pop()
        if isinstance(item, Foreign | StoredTensor):
            name = item.name if isinstance(item, Foreign) else "torch.Tensor"
            raise CheckpointError(
                f"{path}: hyper_parameters[{field!r}]{place} holds {name}, which is not a plain value: nothing that a "
                f"checkpoint names is run, so it cannot be read.{_name_way_out(path)}"
            )
        if isinstance(item, dict):
            children = [(f"{place}[{key!r:.40}]", child) for key, child in item.items()]
            children += [(f"{place}[{key!r:.40}]", key) for key in item if isinstance(key, Foreign)]
        else:
            children = (
                [(f"{place}[{i}]", child) for i, child in enumerate(item)] if isinstance(item, list | tuple) else []
            )
        if (depth == _MAX_DEPTH and children) or count + len(waiting) + len(children) > _MAX_VALUES:
            break
        waiting += [(name, child, depth + 1) for name, child in reversed(children)]
    raise CheckpointError(f"{path}: hyper_parameters[{field!r}] is nested too deeply or holds too many values")


def _name_way_out(path: Path) -> str:
    """Return two lines that a person can run to give hyper-parameters in a file."""
    return (
        f" What to do:\n  plantmodels describe {path} --write parameters.yaml    # fill in what it could not read"
        f"\n  plantmodels export --checkpoint {path} --hyper-parameters parameters.yaml ..."
    )


def refuse_parameters(path: Path, parameters: object) -> CheckpointError:
    """Return the error for hyper-parameters that are missing, or are an object instead of a dict."""
    if isinstance(parameters, Foreign):
        what = f"hyper_parameters is {parameters.name}, which is not a plain dict"
    else:
        what = "expected a dict with 'hyper_parameters' (a dict), as Lightning writes it"
    return CheckpointError(f"{path}: {what}.{_name_way_out(path)}")
