"""`gate-images.csv`: what a bundle answered to each image that the gates rest on.

>>> rows = read_images_file(Path("public/models/gate-images.csv"))  # doctest: +SKIP
"""

import csv
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

from plantmodels.errors import BundleError

ImageSetName = Literal["val", "non-plants", "unseen-plants"]


@dataclass(frozen=True)
class ImageRow:
    """One image.

    Attributes:
        set: which images it is one of.
        source: "<species>___<disease>" of a leaf, the folder of another image.
        name: below the set's folder.
        species: the true one; "" where there is none.
        disease: likewise.
        fp16_species: the FP16 model's answer.
        fp16_disease: its answer given the true species; "" without a head.
        int8_species: the INT8 model's answer, which is served.
        int8_disease: its answer given the true species.
        int8_routed_disease: its answer by hard routing.
        int8_soft_disease: its answer by soft routing.
        species_probability: of `int8_species`.
        ood_score: higher means more out-of-distribution.
        rejected: whether the score is over the threshold.
    """

    set: ImageSetName
    source: str
    name: str
    species: str
    disease: str
    fp16_species: str
    fp16_disease: str
    int8_species: str
    int8_disease: str
    int8_routed_disease: str
    int8_soft_disease: str
    species_probability: float
    ood_score: float
    rejected: bool


_COLUMNS: Final = [field.name for field in fields(ImageRow)]


def read_images_file(path: Path) -> tuple[ImageRow, ...]:
    """Reads every row.

    Raises:
        BundleError: absent, other columns, or a value of another kind.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != _COLUMNS:
                raise BundleError(f"{path}: expected the columns {', '.join(_COLUMNS)}, got {reader.fieldnames}")
            return tuple(_read_row(path, reader.line_num, row) for row in reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BundleError(f"{path}: cannot be read ({error})") from error


def _read_row(path: Path, line: int, row: dict[str, str]) -> ImageRow:
    try:
        numbers = {name: float(row[name]) for name in ("species_probability", "ood_score")}
        rejected = {"true": True, "false": False}[row["rejected"]]
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: line {line}: not a row of numbers and true or false ({error})") from error
    values: dict[str, Any] = {**row, **numbers, "rejected": rejected}
    return ImageRow(**values)
