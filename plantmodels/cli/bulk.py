r"""Classifies image files in bulk on one machine: files, folders, patterns and Parquet tables in, scores out.

>>> from plantmodels.serve.classifier import PlantClassifier
>>> classifier = PlantClassifier.load(bundle, threads=1, allow_paths=True)
>>> count = write_scores(tmp / "scores.csv", classify(classifier, find_images([data / "val"]).images))
>>> count.images, count.errors, (tmp / "scores.csv").read_text().count("\n")
(45, 0, 46)
"""

import csv
import glob
import importlib.util
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Final, get_args

from plantmodels.bundle.files import replace_file
from plantmodels.data.image_files import printable_name
from plantmodels.data.inputs import list_tables
from plantmodels.data.listing import list_images
from plantmodels.errors import DataError
from plantmodels.foreign_text import quote_error
from plantmodels.serve.classifier import CHUNK, PlantClassifier
from plantmodels.serve.cores import count_cores
from plantmodels.serve.image_input import ImageLike
from plantmodels.serve.prediction import Prediction

SCORE_SUFFIXES: Final = (".csv", ".jsonl", ".parquet")
_ROWS_AT_ONCE: Final = 1000
"""Rows that are held before they are written, and rows of a table that are read at a time."""

_VALUES: Final = {field.name: get_args(field.type)[0] for field in fields(Prediction) if field.name != "embedding"}
"""The columns of contract 4 to the type of their values; each may also be null."""

_NO_PYARROW: Final = "a .parquet file needs pyarrow; the extra parquet brings it: pip install 'plantmodels[parquet]'"

Named = tuple[str, ImageLike]
"""The name of an image, as it stands in the scores, and the image."""


@dataclass(frozen=True)
class FoundImages:
    """Images to classify.

    Attributes:
        images: names and images, read when they are asked for.
        count: number of images.
        notes: lines about files that are not taken as images.
    """

    images: Iterable[Named]
    count: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ScoreCount:
    """How many images were classified, could not be read, and were rejected as out-of-distribution."""

    images: int
    errors: int
    rejected: int


def find_images(places: Sequence[Path]) -> FoundImages:
    """Return the images that files, folders, patterns and Parquet tables name.

    A folder is searched at any depth, as non-plants are (contract 2). Without images, its Parquet files are read.
    A pattern is a path with *, ? or [] that does not exist as it is. A table has a column `image` of bytes, or of
    bytes and path.

    Raises:
        DataError: a folder holds no image, a pattern matches nothing, or a table has no column of images.
    """
    parts: list[Iterable[Named]] = []
    count, notes = 0, []
    for place in chain.from_iterable(map(_expand, places)):
        if place.is_dir():
            listing = list_images(place)
            if not listing.paths and (tables := list_tables(place)):
                for rows, images in map(_read_table, tables):
                    parts.append(images)
                    count += rows
                continue
            if not listing.paths:
                raise DataError(f"{place}: holds no image to classify{listing.left_out.describe('; files')}")
            parts.append([(printable_name(str(path)), path) for path in listing.paths])
            count += len(listing.paths)
            notes += [listing.left_out.describe(str(place))]
        elif place.suffix.lower() == ".parquet" and place.is_file():
            rows, images = _read_table(place)
            parts.append(images)
            count += rows
        else:
            parts.append([(printable_name(str(place)), place)])
            count += 1
    return FoundImages(chain.from_iterable(parts), count, tuple(filter(None, notes)))


def classify(classifier: PlantClassifier, images: Iterable[Named], *, top_k: int = 0) -> Iterator[dict[str, Any]]:
    """Yield a row with path and answer for each image, in order; all cores work.

    Args:
        classifier: loaded with threads=1 and allow_paths=True.
        images: names and images.
        top_k: number of candidate species in a row.
    """
    workers, remaining = count_cores(), iter(images)
    pending: deque[tuple[list[str], Future[list[Prediction]]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        while chunk := list(islice(remaining, CHUNK)):
            names = [name for name, _ in chunk]
            pending.append((names, pool.submit(classifier.predict, [image for _, image in chunk], top_k=top_k)))
            if len(pending) > 2 * workers:
                yield from _build_rows(*pending.popleft())
        while pending:
            yield from _build_rows(*pending.popleft())


def write_scores(
    path: Path, rows: Iterable[dict[str, Any]], advance: Callable[[], object] = lambda: None
) -> ScoreCount:
    """Write rows into a .csv, .jsonl or .parquet file, which appears when it is complete; return their numbers.

    Args:
        path: the file; an older one is replaced.
        rows: what `classify` yields.
        advance: called after each row.

    Raises:
        DataError: the file has another suffix or cannot be written.
    """
    check_output(path)
    counts = [0, 0, 0]

    def count(row: dict[str, Any]) -> dict[str, Any]:
        for index, found in enumerate((True, row["error"] is not None, bool(row["rejected"]))):
            counts[index] += found
        advance()
        return row

    write = {".csv": _write_csv, ".jsonl": _write_lines, ".parquet": _write_parquet}[path.suffix.lower()]
    try:
        with replace_file(path) as file:
            write(file, map(count, rows))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({quote_error(error)})") from error
    return ScoreCount(*counts)


def check_output(path: Path) -> None:
    """Refuse a file of scores that could not be written, before any image is read.

    Raises:
        DataError: the suffix is unknown, the folder does not exist, the path is a folder, or pyarrow is not installed.
    """
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise DataError(_NO_PYARROW)
    if path.suffix.lower() not in SCORE_SUFFIXES:
        raise DataError(f"{path}: scores are written as {', '.join(SCORE_SUFFIXES)}; choose a name that ends so")
    if path.is_dir() or not path.parent.is_dir():
        raise DataError(f"{path}: expected a file in a folder that exists")


def _expand(place: Path) -> list[Path]:
    if not glob.has_magic(str(place)) or place.exists():
        return [place]
    found = [Path(name) for name in sorted(glob.glob(str(place), recursive=True))]  # noqa: PTH207 - absolute patterns
    if not found:
        raise DataError(f"{place}: no file matches this pattern")
    return found


def _read_table(path: Path) -> tuple[int, Iterator[Named]]:
    """Return the number of rows of a Parquet table, and name and image of each row."""
    pa, pq = _import_pyarrow()
    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a Parquet file ({quote_error(error)})") from error
    if "image" not in table.schema_arrow.names:
        raise DataError(f"{path}: expected a column image, got {', '.join(table.schema_arrow.names)}")

    def read() -> Iterator[Named]:
        number, batches = 0, table.iter_batches(_ROWS_AT_ONCE // 10, columns=["image"])
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path}: damaged after row {number:,} ({quote_error(error)})") from error
            if batch is None:
                return
            for image in batch.column(0).to_pylist():
                yield f"{printable_name(str(path))}:{number}", image
                number += 1

    return table.metadata.num_rows, read()


def _build_rows(names: list[str], future: Future[list[Prediction]]) -> Iterator[dict[str, Any]]:
    for name, prediction in zip(names, future.result(), strict=True):
        row = {"path": name} | {column: getattr(prediction, column) for column in _VALUES}
        if prediction.candidates is not None:
            row["candidates"] = [asdict(candidate) for candidate in prediction.candidates]
        yield row


def _write_lines(file: IO[bytes], rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


def _write_csv(file: IO[bytes], rows: Iterable[dict[str, Any]]) -> None:
    class Encoded:
        def write(self, text: str) -> int:
            return file.write(text.encode())

    writer = csv.writer(Encoded(), lineterminator="\n")
    writer.writerow(["path", *_VALUES])
    for row in rows:
        writer.writerow(
            json.dumps(value, ensure_ascii=False) if isinstance(value, list | bool) else value for value in row.values()
        )


def _write_parquet(file: IO[bytes], rows: Iterable[dict[str, Any]]) -> None:
    remaining = iter(rows)
    part = list(islice(remaining, _ROWS_AT_ONCE))  # all cores work while pyarrow is imported
    pa, pq = _import_pyarrow()
    candidates = pa.list_(pa.struct({"species": pa.string(), "probability": pa.float64()}))
    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    columns = [(name, kinds.get(kind, candidates)) for name, kind in {"path": str, **_VALUES}.items()]
    schema = pa.schema(columns)
    with pq.ParquetWriter(file, schema) as writer:
        while part:
            writer.write_table(pa.Table.from_pylist(part, schema))
            part = list(islice(remaining, _ROWS_AT_ONCE))


def _import_pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet.

    Raises:
        DataError: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError(_NO_PYARROW) from error
    return pa, pq
