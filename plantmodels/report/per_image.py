"""`gate-images.csv`: the answers to every image that the gates rest on, for paired tests between two versions.

Numbers are written with all their digits, so that reading returns them exactly.

>>> rows = read_image_rows(bundle / "gate-images.csv")
>>> write_image_rows(tmp / "copy.csv", rows)
>>> read_image_rows(tmp / "copy.csv") == rows
True
"""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final, Literal, get_args

from plantmodels.bundle.files import write_bytes
from plantmodels.errors import BundleError

ImageSetName = Literal["val", "non-plants", "unseen-plants"]
IMAGE_SETS: Final[tuple[ImageSetName, ...]] = get_args(ImageSetName)


@dataclass(frozen=True)
class ImageRow:
    """One image and the answers to it. A name is empty when there is no such class or the question was not asked.

    Attributes:
        set: set of the image; "val" for validation leaves.
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

    @property
    def flipped(self) -> bool:
        """Whether FP16 and INT8 give different species, or different diseases given the true species."""
        return (self.fp16_species, self.fp16_disease) != (self.int8_species, self.int8_disease)


COLUMNS: Final = tuple(field.name for field in fields(ImageRow))


def write_image_rows(path: Path, rows: Iterable[ImageRow]) -> None:
    """Write the rows in their order below a line of column names, in UTF-8. Other bytes in file names are kept."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)  # ends lines with CRLF, and so quotes a name that contains CR or LF
    writer.writerow(COLUMNS)
    writer.writerows(map(_format_row, rows))
    write_bytes(path, text.getvalue().encode(errors="surrogateescape"))


def _format_row(row: ImageRow) -> Iterator[str]:
    for value in astuple(row):
        if isinstance(value, bool):
            yield "true" if value else "false"
        else:
            yield repr(value) if isinstance(value, float) else value


def read_image_rows(path: Path) -> tuple[ImageRow, ...]:
    """Read what `write_image_rows` wrote.

    Raises:
        BundleError: the file is absent, or a line has other columns or a value of the wrong type; the error names the
            line.
    """
    try:
        text = path.read_bytes().decode(errors="surrogateescape")
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); `plantmodels verify` writes it") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = tuple(next(reader, ()))
        if header != COLUMNS:
            raise ValueError(f"columns must be {', '.join(COLUMNS)}, got {', '.join(header) or 'none'}")
        return tuple(_read_row(cells) for cells in reader)
    except (ValueError, csv.Error) as error:
        raise BundleError(f"{path}: line {reader.line_num}: {error}") from error


def _read_row(cells: list[str]) -> ImageRow:
    if len(cells) != len(COLUMNS):
        raise ValueError(f"expected {len(COLUMNS)} values, got {len(cells)}")
    values = dict(zip(COLUMNS, cells, strict=True))
    which = next((name for name in IMAGE_SETS if name == values["set"]), None)
    if which is None:
        raise ValueError(f"set must be one of {', '.join(IMAGE_SETS)}, got {values['set']!r:.80}")
    if values["rejected"] not in ("true", "false"):
        raise ValueError(f"rejected must be true or false, got {values['rejected']!r:.80}")
    names = {name: values[name] for name in COLUMNS[1:-3]}
    probability, score = (_read_number(name, values[name]) for name in COLUMNS[-3:-1])
    return ImageRow(
        set=which, **names, species_probability=probability, ood_score=score, rejected=values["rejected"] == "true"
    )


def _read_number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} must be a number, got {text!r:.80}") from None
