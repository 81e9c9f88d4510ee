"""`gate-images.csv`: every image that the gates rest on, with its answers and scores, from which all numbers follow.

Numbers are written with all their digits, so that reading returns them exactly.

>>> rows = read_image_rows(bundle / "gate-images.csv")
>>> write_image_rows(tmp / "copy.csv", rows)
>>> read_image_rows(tmp / "copy.csv") == rows
True
"""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, get_args

from plantmodels.bundle.files import write_bytes
from plantmodels.bundle.layout import IMAGES_FILE
from plantmodels.errors import BundleError

ImageSetName = Literal["val", "non-plants", "unseen-plants", "field"]
IMAGE_SETS: Final[tuple[ImageSetName, ...]] = get_args(ImageSetName)


@dataclass(frozen=True)
class ImageRow:
    """One image and the answers to it. A name is empty when there is no such class or the question was not asked.

    Attributes:
        set: set of the image; "val" for validation leaves, "field" for labelled leaves from another place.
        source: "<species>___<disease>" for a leaf, or its species alone if the species has no disease head. For other
            images, the folder that contains the image.
        name: name of the image below the folder of its set.
        species: true species.
        disease: true disease.
        fp16_species: species answered by the FP16 model.
        fp16_disease: disease answered by the FP16 model, given the true species.
        int8_species: species answered by the INT8 model, which is served.
        int8_disease: disease answered by the INT8 model, given the true species.
        int8_routed_disease: disease answered by the head of `int8_species` (hard routing).
        int8_soft_disease: disease with the highest probability over all species (soft routing).
        species_probability: calibrated probability of `int8_species`.
        ood_score: out-of-distribution score of the INT8 embedding.
        rejected: whether the score exceeds the threshold.
        sha256: digest of the image's content.
        fp16_ood_score: out-of-distribution score of the FP16 embedding, by the same detector.
        pytorch_ood_score: out-of-distribution score of PyTorch's embedding; None for an image that was not compared.
        species_nll: −log of the calibrated probability of the true species; None for an image that is no leaf.
        disease_given_species_probability: calibrated probability of `int8_routed_disease` given `int8_species`; None
            without a disease. Times `species_probability` it is the `disease_probability` of hard routing.
        disease_nll: −log of the calibrated probability of the true disease given the true species; None unless the true
            species has several diseases.
        raw_species_probability: `species_probability` at temperature 1.
        raw_species_nll: `species_nll` at temperature 1.
        raw_disease_given_species_probability: `disease_given_species_probability` at temperature 1.
        raw_disease_nll: `disease_nll` at temperature 1.
        ood_p_value: p-value of `ood_score` that is served; None if the detector has none.
        soft_disease_probability: calibrated probability of `int8_soft_disease`, the `disease_probability` of soft
            routing; None without a disease.
        soft_disease_given_species_probability: calibrated probability of `int8_soft_disease` given `int8_species`.
        raw_soft_disease_probability: `soft_disease_probability` at temperature 1.
        raw_soft_disease_given_species_probability: `soft_disease_given_species_probability` at temperature 1.
        fp16_species_nll: `species_nll` of FP16.
        fp16_disease_nll: `disease_nll` of FP16.
        group: key of the group that a validation leaf shares with training leaves; "" if it shares none.
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
    sha256: str = ""
    fp16_ood_score: float | None = None
    pytorch_ood_score: float | None = None
    species_nll: float | None = None
    disease_given_species_probability: float | None = None
    disease_nll: float | None = None
    raw_species_probability: float | None = None
    raw_species_nll: float | None = None
    raw_disease_given_species_probability: float | None = None
    raw_disease_nll: float | None = None
    ood_p_value: float | None = None
    soft_disease_probability: float | None = None
    soft_disease_given_species_probability: float | None = None
    raw_soft_disease_probability: float | None = None
    raw_soft_disease_given_species_probability: float | None = None
    fp16_species_nll: float | None = None
    fp16_disease_nll: float | None = None
    group: str = ""

    @property
    def flipped(self) -> bool:
        """Whether FP16 and INT8 give different species, or different diseases given the true species."""
        return (self.fp16_species, self.fp16_disease) != (self.int8_species, self.int8_disease)


COLUMNS: Final = tuple(field.name for field in fields(ImageRow))

TEXT_COLUMNS: Final = tuple(field.name for field in fields(ImageRow) if field.type in (str, ImageSetName))
"""Columns of names."""

NUMBER_COLUMNS: Final = tuple(name for name in COLUMNS if name not in (*TEXT_COLUMNS, "rejected"))
"""Columns of numbers."""

_NAMES_OF_FORMAT_3: Final = {
    "disease_given_species_probability": "disease_probability",
    "raw_disease_given_species_probability": "raw_disease_probability",
}
"""In the place of these columns format 3 had others, given the true species, which are not read."""

OLDER_COLUMNS: Final = {
    version: tuple(_NAMES_OF_FORMAT_3.get(name, name) for name in COLUMNS[: COLUMNS.index(last) + 1])
    for version, last in {2: "rejected", 3: "raw_disease_nll"}.items()
}
"""Older format of the report to its columns. New columns stand behind all older ones."""


COLUMNS_WITHOUT_GROUP: Final = COLUMNS[:-1]
"""Columns of the first reports of format 4, which do not say which groups are in train and val."""


def write_image_rows(path: Path, rows: Iterable[ImageRow]) -> None:
    """Write the rows in their order below a line of column names, in UTF-8. Other bytes in file names are kept."""
    write_bytes(path, format_image_rows(rows))


def format_image_rows(rows: Iterable[ImageRow]) -> bytes:
    """Return the content of `gate-images.csv`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # ends lines with CRLF, and so quotes a name that contains CR or LF
    writer.writerow(COLUMNS)
    writer.writerows(map(format_row, rows))
    return text.getvalue().encode(errors="surrogateescape")


def format_row(row: ImageRow) -> Iterator[str]:
    """Yield the cells of a row."""
    for column in COLUMNS:
        value = getattr(row, column)
        if isinstance(value, bool):
            yield "true" if value else "false"
        elif value is None:
            yield ""
        else:
            yield repr(value) if isinstance(value, float) else value


def read_image_rows(path: Path) -> tuple[ImageRow, ...]:
    """Read what `write_image_rows` wrote.

    Raises:
        BundleError: the file is absent, or a line has other columns or a value of the wrong type; the error names the
            line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); `plantmodels verify` writes it") from error
    return parse_image_rows(content, str(path))


def parse_image_rows(content: bytes, name: str = IMAGES_FILE) -> tuple[ImageRow, ...]:
    """Return the rows of a file's content.

    Args:
        content: the whole content of the file.
        name: the file's name in error messages.

    Raises:
        BundleError: as for `read_image_rows`.
    """
    reader = csv.reader(io.StringIO(content.decode(errors="surrogateescape"), newline=""), strict=True)
    try:
        header = tuple(next(reader, ()))
        if header not in (COLUMNS, COLUMNS_WITHOUT_GROUP, *OLDER_COLUMNS.values()):
            raise ValueError(f"columns must be {', '.join(COLUMNS)}, got {', '.join(header) or 'none'}")
        return tuple(_read_row(header, cells) for cells in reader)
    except (ValueError, csv.Error) as error:
        raise BundleError(f"{name}: line {reader.line_num}: {error}") from error


def _read_row(columns: tuple[str, ...], cells: list[str]) -> ImageRow:
    if len(cells) != len(columns):
        raise ValueError(f"expected {len(columns)} values, got {len(cells)}")
    values: dict[str, Any] = {name: cell for name, cell in zip(columns, cells, strict=True) if name in COLUMNS}
    if values["set"] not in IMAGE_SETS:
        raise ValueError(f"set must be one of {', '.join(IMAGE_SETS)}, got {values['set']!r:.80}")
    if values["rejected"] not in ("true", "false"):
        raise ValueError(f"rejected must be true or false, got {values['rejected']!r:.80}")
    values["rejected"] = values["rejected"] == "true"
    for name in NUMBER_COLUMNS:
        if name in values:
            values[name] = _read_number(name, values[name])
    return ImageRow(**values)


def _read_number(name: str, text: str) -> float | None:
    if not text and name not in ("species_probability", "ood_score"):
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {text!r:.80}") from None
