"""The image rows as columns: a number or a name of every image at once, to count 10,000 images in an instant.

>>> from plantmodels.report.per_image import read_image_rows
>>> table = ImageTable.from_rows(read_image_rows(bundle / "gate-images.csv"))
>>> leaves = table.of_set("val")
>>> len(leaves), bool((leaves.text("species") == leaves.text("int8_species")).all())
(45, True)
"""

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from plantmodels.bundle.layout import IMAGES_FILE
from plantmodels.errors import BundleError
from plantmodels.report.per_image import (
    COLUMNS,
    COLUMNS_WITHOUT_GROUP,
    IMAGE_SETS,
    NUMBER_COLUMNS,
    ImageRow,
    ImageSetName,
    format_row,
    parse_image_rows,
)

Names = NDArray[np.object_]
"""(N,) text, one for each image."""

Numbers = NDArray[np.float64]
"""(N,) numbers, one for each image; NaN where there is none."""


@dataclass(frozen=True)
class ImageTable:
    """The rows of some images, as columns. Choosing among the images copies no column before it is asked for.

    Attributes:
        cells: name of each column to all its cells, as `gate-images.csv` holds them.
        given: names of the columns that the file has; the others are empty.
        chosen: places of the table's N images among the cells.
        names: name of each column of text to all its cells as an array, as far as they were asked for.
        parsed: name of each column of numbers to all its numbers, as far as they were asked for.
    """

    cells: Mapping[str, Sequence[str]]
    given: tuple[str, ...]
    chosen: NDArray[np.intp]
    names: dict[str, Names]
    parsed: dict[str, Numbers]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.chosen)

    @classmethod
    def from_rows(cls, rows: Iterable[ImageRow]) -> "ImageTable":
        """Return the table of these rows."""
        return cls._from_cells([cell for row in rows for cell in format_row(row)], COLUMNS)

    @classmethod
    def _from_cells(cls, cells: Sequence[str], columns: Sequence[str]) -> "ImageTable":
        """Return the table of these cells; columns that they lack are empty."""
        images = len(cells) // len(columns)
        found = {name: cells[place :: len(columns)] for place, name in enumerate(columns)}
        filled = {name: found.get(name) or [""] * images for name in COLUMNS}
        return cls(filled, tuple(columns), np.arange(images), {}, {})

    @classmethod
    def parse(cls, content: bytes, columns: Sequence[str] = COLUMNS) -> "ImageTable":
        """Return the table of a file `gate-images.csv`.

        Args:
            content: the whole content of the file.
            columns: the columns that the file must have; an older format has fewer. Of today's columns, the last one,
                `group`, may be missing.

        Raises:
            BundleError: a line has other columns or a value of the wrong type; the error names the line.
        """
        text = content.decode(errors="surrogateescape")
        if columns == COLUMNS and text.partition("\r\n")[0] == ",".join(COLUMNS_WITHOUT_GROUP):
            columns = COLUMNS_WITHOUT_GROUP
        try:
            cells = _split_lines(text, len(columns))
            if tuple(cells[: len(columns)]) != tuple(columns):
                raise ValueError("other columns")
            table = cls._from_cells(cells[len(columns) :], columns)
            table._check()
        except (ValueError, csv.Error) as error:
            parse_image_rows(content)  # names the line
            raise BundleError(f"{IMAGES_FILE}: {error}") from error
        return table

    def _check(self) -> None:
        """Raise a ValueError unless every cell has the type of its column."""
        if not set(IMAGE_SETS).issuperset(self.cells["set"]):
            raise ValueError("unknown set")
        if not {"true", "false"}.issuperset(self.cells["rejected"]):
            raise ValueError("rejected must be true or false")
        for name in ("species_probability", "ood_score"):
            if not all(self.cells[name]):
                raise ValueError(f"{name} must be a number")
        for name in NUMBER_COLUMNS:
            self.numbers(name)

    def text(self, name: str) -> Names:
        """Return a column of text."""
        if name not in self.names:
            self.names[name] = np.array(self.cells[name], dtype=object)
        return self.names[name][self._places]

    @property
    def _places(self) -> "NDArray[np.intp] | slice":
        """The chosen places, as a slice if they follow each other: then a column is looked at and not copied."""
        if len(self.chosen) and self.chosen[-1] - self.chosen[0] + 1 == len(self.chosen):
            return slice(int(self.chosen[0]), int(self.chosen[-1]) + 1)
        return self.chosen

    def numbers(self, name: str) -> Numbers:
        """Return a column of numbers."""
        if name not in self.parsed:
            self.parsed[name] = np.array([float(cell or "nan") for cell in self.cells[name]], np.float64)
        return self.parsed[name][self._places]

    def truths(self, name: str) -> NDArray[np.bool_]:
        """Return a column of "true" and "false"."""
        return np.asarray(self.text(name) == "true", np.bool_)

    def digest(self) -> str:
        """Return the SHA-256 of the images: of their names, true classes and contents, in whatever order."""
        columns = (self.text(name).tolist() for name in ("name", "species", "disease", "sha256"))
        lines = sorted(map("\0".join, zip(*columns, strict=True)))
        return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()

    def of_set(self, name: ImageSetName) -> "ImageTable":
        """Return the images of one set, in their order."""
        return self.where(np.asarray(self.text("set") == name, np.bool_))

    def where(self, is_chosen: NDArray[np.bool_]) -> "ImageTable":
        """Return the images at these places, in their order.

        Args:
            is_chosen: (N,) whether to keep each image.
        """
        return replace(self, chosen=self.chosen[is_chosen])


def _split_lines(text: str, width: int) -> list[str]:
    """Return the cells of all lines, one after the other; each line must have `width` of them.

    Most files have no quotes, and are split at once: a list for each line would take twice as long.
    """
    breaks = text.count("\r\n")
    if '"' not in text and text.endswith("\r\n") and breaks == text.count("\n") == text.count("\r"):
        cells = text.replace("\r\n", ",\n,").split(",")[:-1]
        if len(cells) == breaks * (width + 1) and set(cells[width :: width + 1]) == {"\n"}:
            del cells[width :: width + 1]
            return cells
    cells = []
    for line in csv.reader(io.StringIO(text, newline=""), strict=True):
        if len(line) != width:
            raise ValueError(f"every line must have {width} values")
        cells.extend(line)
    return cells
