"""The metadata of a bundle: `onnx-metadata.json`, and the `disease-heads-list.json` that must agree with it.

>>> metadata = read_metadata(bundle)
>>> metadata.preprocessing.image_size, metadata.embedding_dim
(224, 32)
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, get_args

import numpy as np

from plantmodels.bundle.calibration import CalibrationRecord
from plantmodels.bundle.files import parse_json, read_json, write_json
from plantmodels.bundle.layout import (
    HEADS_LIST_FILE,
    METADATA_FILE,
    SPECIES_FILES,
    Precision,
    head_file,
)
from plantmodels.bundle.serialization import decode, encode
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.errors import BundleError, TaxonomyError

METADATA_VERSION: Final = 3
"""Version of `onnx-metadata.json`. Bundles of version 2 have no one file (`ONE_FILES`). In version 1, training leaves
calibrated the bundle, and it did not say so."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
INTERPOLATIONS: Final[tuple[Interpolation, ...]] = get_args(Interpolation)
RECIPES: Final = (1, 2)
"""How a large image becomes small (`Preprocessing.recipe`); the last one is what `export` writes."""

MAX_IMAGE_SIZE: Final = 2048
MIN_CROP_PCT: Final = 0.1
"""Bounds the size of the resized image. timm's own configs go down to 0.85."""

MIN_TEMPERATURE: Final = 1e-3
MAX_TEMPERATURE: Final = 1e3

KNOWN_SESSION_OPTIONS: Final = frozenset({"session.set_denormal_as_zero", "session.intra_op.allow_spinning"})
"""Options that a bundle may set. Other options of ONNX Runtime can name files to read and write."""

_LARGEST: Final = float(np.finfo(np.float32).max)
_TEMPERATURES: Final = ("species_temperature", "disease_temperature")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input, in the same way for fitting, verifying and serving.

    Attributes:
        image_size: side of the square input, in pixels.
        mean: mean of each channel, subtracted after pixels were scaled to 0..1.
        std: standard deviation of each channel, by which the difference is divided.
        interpolation: filter of the resize.
        crop_pct: side of the central crop, as a fraction of the resized shorter side; from `MIN_CROP_PCT` to 1.
        recipe: how an image becomes small. 1: every pixel is decoded, and one resize reads them all. 2: the same for an
            image that is less than four times as large as the resized one. A larger one is first reduced by a whole
            number, to at least twice the resized size: a JPEG while it is decoded, any other image by averages.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"
    crop_pct: float = 1.0
    recipe: int = RECIPES[-1]

    def __post_init__(self) -> None:
        """Check every value.

        Raises:
            ValueError: names the field, what it must be and what came.
        """
        if type(self.image_size) is not int or not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be an integer from 1 to {MAX_IMAGE_SIZE}, got {self.image_size!r}")
        for name in ("mean", "std"):
            values = tuple(getattr(self, name))
            if len(values) != 3 or not all(isinstance(v, int | float) and abs(v) <= _LARGEST for v in values):
                raise ValueError(f"{name} must be three finite numbers, got {values!r}")
            object.__setattr__(self, name, tuple(float(v) for v in values))
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        if not isinstance(self.crop_pct, int | float) or not MIN_CROP_PCT <= self.crop_pct <= 1:
            raise ValueError(f"crop_pct must be from {MIN_CROP_PCT} to 1, got {self.crop_pct!r}")
        object.__setattr__(self, "crop_pct", float(self.crop_pct))
        if self.recipe not in RECIPES or type(self.recipe) is not int:
            raise ValueError(f"recipe must be one of {', '.join(map(str, RECIPES))}, got {self.recipe!r}")

    @property
    def resized_side(self) -> int:
        """The shorter side of the resized image, in pixels, before it is cropped."""
        return math.floor(self.image_size / self.crop_pct)


@dataclass(frozen=True)
class Metadata:
    """The content of `onnx-metadata.json`.

    Attributes:
        taxonomy: all species and diseases, in logit order.
        preprocessing: how images become the network's input, as in training.
        embedding_dim: D, the length of the embedding.
        session_options: ONNX Runtime's session configuration entries, which every session of this bundle needs.
        models: precision, inputs, outputs, opset and recipe of each ONNX file, by its name.
        provenance: digests of checkpoint and data, git commit, seed and backbone.
        versions: versions of the libraries that made the bundle.
        cpu: features of the exporting machine's CPU.
        species_temperature: divides the species logits before they become probabilities, which changes no label; 1.0 in
            bundles that were made before temperatures existed.
        disease_temperature: divides the logits of a disease head before they become probabilities.
        calibration: the leaves that gave threshold, p-values and temperatures; None in format 1, where they were
            training leaves.
    """

    taxonomy: Taxonomy
    preprocessing: Preprocessing
    embedding_dim: int
    session_options: Mapping[str, str]
    models: Mapping[str, Mapping[str, Any]]
    provenance: Mapping[str, Any]
    versions: Mapping[str, str]
    cpu: Mapping[str, Any]
    species_temperature: float = 1.0
    disease_temperature: float = 1.0
    calibration: CalibrationRecord | None = None

    def __post_init__(self) -> None:
        """Check the temperatures.

        Raises:
            ValueError: names the field, what it must be and what came.
        """
        for name in _TEMPERATURES:
            value = getattr(self, name)
            if type(value) not in (int, float) or not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
                raise ValueError(
                    f"{name} must be a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}, got {value!r:.60}"
                )

    def rows_per_run(self, precision: Precision) -> int | None:
        """Return the largest number of images in one run of a species model; None for any number."""
        rows: int | None = self.models.get(SPECIES_FILES[precision], {}).get("rows_per_run")
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with the class-order digest."""
        return {
            "format_version": METADATA_VERSION,
            "embedding_dim": self.embedding_dim,
            "preprocessing": asdict(self.preprocessing),
            "session_options": dict(self.session_options),
            "models": {name: dict(model) for name, model in self.models.items()},
            "class_order_digest": self.taxonomy.digest,
            "taxonomy": self.taxonomy.to_dict(),
            "provenance": dict(self.provenance),
            "versions": dict(self.versions),
            "cpu": dict(self.cpu),
            "species_temperature": self.species_temperature,
            "disease_temperature": self.disease_temperature,
            "calibration": encode(self.calibration),
        }


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Write `onnx-metadata.json`, and the `disease-heads-list.json` that follows from it."""
    write_json(folder / METADATA_FILE, metadata.to_dict())
    write_json(folder / HEADS_LIST_FILE, _build_heads_list(metadata.taxonomy))


def _build_heads_list(taxonomy: Taxonomy) -> dict[str, Any]:
    return {
        str(i): {
            "file": head_file(taxonomy.slugs[i]),
            "species": taxonomy.species[i],
            "slug": taxonomy.slugs[i],
            "diseases": list(taxonomy.diseases_of(i)),
        }
        for i in taxonomy.species_with_head
    }


def read_metadata(folder: Path, contents: Mapping[str, bytes] | None = None) -> Metadata:
    """Read `onnx-metadata.json`, and check that `disease-heads-list.json` has the same class order.

    Args:
        folder: the bundle.
        contents: the bytes of both files by name, if the caller has read them; the folder is then used only in errors.

    Raises:
        BundleError: a file is missing or malformed, the class-order digest does not fit the taxonomy, or the list of
            heads disagrees with the taxonomy.
    """
    path = folder / METADATA_FILE
    document = _read_document(path, contents)
    version = document.get("format_version")
    if type(version) is not int or not 1 <= version <= METADATA_VERSION:
        raise BundleError(f"{path}: format_version {version!r}, this code reads 1 to {METADATA_VERSION}")
    sections = ("session_options", "models", "provenance", "versions", "cpu", "taxonomy", "preprocessing")
    for name in sections:
        if not isinstance(document.get(name), dict):
            raise BundleError(f"{path}: {name!r} must be an object, got {document.get(name)!r:.60}")
    _check_models(path, document["models"])
    unknown = sorted(set(document["session_options"]) - KNOWN_SESSION_OPTIONS)
    if unknown:
        known = ", ".join(sorted(KNOWN_SESSION_OPTIONS))
        raise BundleError(f"{path}: session option {unknown[0]!r:.60} is refused; known are {known}")
    taxonomy = _parse(path, lambda: Taxonomy.from_dict(document["taxonomy"]))
    if document.get("class_order_digest") != taxonomy.digest:
        raise BundleError(
            f"{path}: class_order_digest {document.get('class_order_digest')!r} does not fit the taxonomy "
            f"(digest {taxonomy.digest}): the class order was changed"
        )
    embedding_dim = document.get("embedding_dim")
    if type(embedding_dim) is not int or embedding_dim < 1:
        raise BundleError(f"{path}: embedding_dim must be a positive integer, got {embedding_dim!r}")
    _check_heads_list(folder / HEADS_LIST_FILE, _read_document(folder / HEADS_LIST_FILE, contents), taxonomy)
    preprocessing = _parse(path, lambda: Preprocessing(**{"recipe": RECIPES[0], **document["preprocessing"]}))
    return _parse(
        path,
        lambda: Metadata(
            taxonomy=taxonomy,
            preprocessing=preprocessing,
            embedding_dim=embedding_dim,
            session_options={str(k): str(v) for k, v in document["session_options"].items()},
            **{name: document[name] for name in ("models", "provenance", "versions", "cpu")},
            **{name: document[name] for name in _TEMPERATURES if name in document},
            calibration=_decode_calibration(document.get("calibration")),
        ),
    )


def _read_document(path: Path, contents: Mapping[str, bytes] | None) -> dict[str, Any]:
    return read_json(path) if contents is None else parse_json(path, contents[path.name])


def _decode_calibration(document: object) -> CalibrationRecord | None:
    return None if document is None else decode(CalibrationRecord, document, "calibration")


def _check_models(path: Path, models: Mapping[str, object]) -> None:
    for name, model in models.items():
        if not isinstance(model, dict):
            raise BundleError(f"{path}: models: {name!r} must be an object, got {model!r:.60}")
        rows = model.get("rows_per_run")
        if rows is not None and (type(rows) is not int or rows < 1):
            raise BundleError(f"{path}: models: rows_per_run of {name!r} must be null or at least 1, got {rows!r:.60}")


def _parse(path: Path, build: Callable[[], _T]) -> _T:
    try:
        return build()
    except (TaxonomyError, ValueError, TypeError) as error:
        raise BundleError(f"{path}: {error}") from error


def _check_heads_list(path: Path, found: Mapping[str, Any], taxonomy: Taxonomy) -> None:
    expected = _build_heads_list(taxonomy)
    if found == expected:
        return
    for key in sorted(set(found) | set(expected), key=lambda k: (len(k), k)):
        if found.get(key) != expected.get(key):
            raise BundleError(
                f"{path}: species id {key} is {found.get(key)!r:.200}, {METADATA_FILE} says {expected.get(key)!r:.200}"
            )
