"""Parquet files that hold the images themselves, as Hugging Face writes them, read as labelled leaves.

The images are written into a temporary folder that the process removes when it ends, so that all code that reads image
files can read them. Their names say from which row they came, so digests do not depend on the temporary folder.
"""

import atexit
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from plantmodels.bundle.temporary import temporary_folder
from plantmodels.data.inputs import Split, is_image_table, list_tables, name_split
from plantmodels.data.labels import CLASS_SEPARATOR, GROUP_COLUMN, LabelledImage, pick_split, refuse_split
from plantmodels.errors import DataError
from plantmodels.foreign_text import quote_error

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

IMAGE_COLUMN: Final = "image"
_LABEL_COLUMNS: Final = ("label", "labels")
_ROWS_AT_ONCE: Final = 64
"""Rows that are held in memory, a few megabytes each."""

_SUFFIX_OF: Final = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"RI": ".webp"}

_TEMPORARY: Final = ExitStack()
atexit.register(_TEMPORARY.close)


def holds_images(data: Path) -> bool:
    """Return whether data are Parquet files with a column of images, and not a manifest or leaf folders.

    Raises:
        DataError: a file is not Parquet.
    """
    return is_image_table(data) and (data.is_dir() or _has_image_column(_open(data).schema_arrow))


def extract_images(data: Path, split: Split | None) -> tuple[Path, list[LabelledImage]]:
    """Write the images of a split into a temporary folder; return it, and each image file with its labels.

    Args:
        data: one Parquet file, or a folder of them. A column split says which rows are meant, or else the name of a
            file or of its folder: train-00000-of-00002.parquet, validation/0000.parquet.
        split: which split; None for field leaves, which have none: then all rows are meant.

    Raises:
        DataError: a file is not Parquet or lacks images or labels, the split cannot be told, there is a column split
            although no split is wanted, or the disk is full.
    """
    files = [data] if data.is_file() else list_tables(data)
    state = tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return _extract(data, state, split)


@cache
def _extract(
    data: Path, state: tuple[tuple[Path, int, int], ...], split: Split | None
) -> tuple[Path, list[LabelledImage]]:
    root = data if data.is_dir() else data.parent
    try:
        folder = _TEMPORARY.enter_context(temporary_folder("images"))
        rows = [row for file, _, _ in state for row in _extract_file(root, file, split, folder)]
    except OSError as error:
        raise DataError(
            f"{data}: the images cannot be written into a temporary folder ({quote_error(error)})"
        ) from error
    return folder, rows


def _extract_file(root: Path, file: Path, split: Split | None, folder: Path) -> Iterator[LabelledImage]:
    table = _open(file)
    schema = table.schema_arrow
    if not _has_image_column(schema):
        raise DataError(f"{file}: expected a column {IMAGE_COLUMN!r} of encoded images, got {_list_columns(schema)}")
    labels = _Labels(file, schema)
    if split is None:
        refuse_split(file, schema.names)
    by_row = "split" in schema.names
    if split is not None and not by_row and _split_by_name(root, file) != split:
        return
    place = folder / file.relative_to(root).with_suffix("")
    place.mkdir(parents=True)
    number = 0
    has_groups = GROUP_COLUMN in schema.names
    columns = [IMAGE_COLUMN, *labels.columns, *(["split"] if by_row else []), *([GROUP_COLUMN] if has_groups else [])]
    for batch in table.iter_batches(_ROWS_AT_ONCE, columns=columns):
        rows = batch.to_pylist()
        wanted = [True] * len(rows)
        if split is not None and by_row:
            wanted = pick_split(file, [row["split"] for row in rows], split)
        for row, is_wanted in zip(rows, wanted, strict=True):
            if is_wanted:
                image = _write_image(file, place, number, row[IMAGE_COLUMN])
                group = row[GROUP_COLUMN] if has_groups else None
                yield LabelledImage(image, *labels.name(row), "" if group is None else str(group))
            number += 1


def _write_image(file: Path, place: Path, number: int, image: Any) -> Path:
    """Write one image; a row without one becomes an empty file, which is reported as unreadable."""
    content = image if isinstance(image, bytes) else (image or {}).get("bytes")
    named = image.get("path") if isinstance(image, dict) else None
    if content is None and named and (beside := file.parent / named).is_file():
        content = beside.read_bytes()
    path = place / f"{number:07d}{_SUFFIX_OF.get((content or b'')[:2], '.jpg')}"
    path.write_bytes(content or b"")
    return path


class _Labels:
    """Names the class of a row: by a ClassLabel of Hugging Face, by text, or by the columns species and disease."""

    def __init__(self, file: Path, schema: "pa.Schema") -> None:
        self._file = file
        features = _read_features(schema)
        named = {name: value["names"] for name, value in features.items() if value.get("_type") == "ClassLabel"}
        if {"species", "disease"} <= set(schema.names):
            self.columns: tuple[str, ...] = ("species", "disease")
        else:
            found = [name for name in (*_LABEL_COLUMNS, *named) if name in schema.names]
            if not found:
                raise DataError(
                    f"{file}: expected a column label with the names of the classes, or columns species and disease, "
                    f"got {_list_columns(schema)}"
                )
            self.columns = (found[0],)
        self._names = [named.get(name) for name in self.columns]

    def name(self, row: dict[str, Any]) -> tuple[str, str]:
        """Return species and disease of a row."""
        texts = [self._spell(row[column], names) for column, names in zip(self.columns, self._names, strict=True)]
        if len(texts) == 2:
            return texts[0], texts[1]
        species, _, disease = texts[0].partition(CLASS_SEPARATOR)
        return species, disease

    def _spell(self, value: Any, names: list[str] | None) -> str:
        if isinstance(value, int) and names is not None and 0 <= value < len(names):
            return str(names[value])
        if isinstance(value, str):
            return value
        if value is None and len(self.columns) == 2:
            return ""
        raise DataError(
            f"{self._file}: label {value!r} has no name; expected text, or a number below {len(names or ())} for which "
            "the file's schema holds a name (ClassLabel)"
        )


def _read_features(schema: "pa.Schema") -> dict[str, Any]:
    """Return what Hugging Face recorded about the columns; nothing if it did not write the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: value for name, value in features.items() if isinstance(value, dict)}


def _split_by_name(root: Path, file: Path) -> str:
    """Return the split that the name of a file or of its folders means."""
    below = file.relative_to(root)
    for name in (re.split(r"[-_.]", file.name)[0], *reversed(below.parts[:-1])):
        if (split := name_split(name)) is not None:
            return split
    raise DataError(
        f"{file}: cannot tell its split; expected a column split, or a name such as train-0000.parquet or "
        "validation/0000.parquet"
    )


def _open(file: Path) -> "pq.ParquetFile":
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: neither a folder nor a CSV or Parquet manifest ({quote_error(error)})") from error


def _has_image_column(schema: "pa.Schema") -> bool:
    """Return whether the column image holds encoded bytes: binary, or a struct of bytes and path."""
    import pyarrow.types as kinds

    if IMAGE_COLUMN not in schema.names:
        return False
    kind = schema.field(IMAGE_COLUMN).type
    if kinds.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    return bool(kinds.is_binary(kind) or kinds.is_large_binary(kind))


def _list_columns(schema: "pa.Schema") -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema) or "no columns"
