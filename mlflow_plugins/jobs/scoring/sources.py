"""Where images come from that Hadoop reads: folders that have a URI, and Parquet tables."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlflow_plugins.jobs.scoring.spark import MAX_IMAGE_BYTES, escape_pattern, open_hadoop_path
from mlflow_plugins.loading.pyfunc import IMAGE_COLUMN
from plantmodels.data.inputs import list_tables
from plantmodels.data.listing import list_images
from plantmodels.errors import ScoringError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_ANY_AGE: Final = "36500d"
"""By default Spark skips files that are a week older than the newest it has seen."""

SUFFIXES: Final = ("jpg", "jpeg", "png", "webp")
_IMAGE_FILES: Final = f"*.{{{','.join(''.join(f'[{c}{c.upper()}]' for c in suffix) for suffix in SUFFIXES)}}}"
"""The files of a URI that are scored, at any depth. Spark skips most names that begin with a dot or an underscore."""


def is_uri(images: str) -> bool:
    """Return whether images are named by a URI, so that Hadoop must list and read them."""
    return "://" in images


def is_table(images: str) -> bool:
    """Return whether images are a Parquet table: by the name, or a folder that holds Parquet files and no images."""
    if images.endswith(".parquet"):
        return True
    folder = Path(images)
    return not is_uri(images) and folder.is_dir() and bool(list_tables(folder)) and not list_images(folder).paths


def is_read_by_hadoop(images: str) -> bool:
    """Return whether Java reads the images; otherwise they are files of a folder, which Python reads."""
    return is_table(images) or is_uri(images)


def read_folder(reader: Any, images: str) -> "DataFrame":
    """Return path, length and content of the image files below a URI, from a batch or a stream reader."""
    from pyspark.sql.functions import col

    files = reader.option("maxFileAge", _ANY_AGE).format("binaryFile").option("recursiveFileLookup", "true")
    found: DataFrame = files.option("pathGlobFilter", _IMAGE_FILES).load(escape_pattern(images))
    return found.select("path", "length", col("content").alias(IMAGE_COLUMN))


def read_table(spark: "SparkSession", reader: Any, images: str, reserved: set[str]) -> "DataFrame":
    """Return the rows of a table, from a batch or a stream reader; the column image holds bytes.

    Args:
        spark: the session.
        reader: `spark.read` or `spark.readStream`.
        images: a Parquet file or a folder of them. The column image is binary, or a struct with the field `bytes`, as
            Hugging Face writes it.
        reserved: names that the scores need for their own columns.

    Raises:
        ScoringError: there is no such column of images, or a column has a reserved name.
    """
    from pyspark.sql.functions import col
    from pyspark.sql.types import BinaryType, StructType

    reader = reader.option("maxFileAge", _ANY_AGE)
    system, path = open_hadoop_path(spark, images)
    if system.isFile(path):  # a stream reads folders and patterns only, so the file becomes a pattern
        rows: DataFrame = reader.parquet(f"{escape_pattern(images[:-1])}[{images[-1]}]")
    elif images.endswith(".parquet"):
        rows = reader.option("basePath", images).parquet(escape_pattern(images))
    else:
        rows = (
            reader.option("recursiveFileLookup", "true")
            .option("pathGlobFilter", "*.parquet")
            .parquet(escape_pattern(images))
        )
    kinds = {field.name: field.dataType for field in rows.schema.fields}
    kind = kinds.get(IMAGE_COLUMN)
    if isinstance(kind, StructType) and "bytes" in kind.names and kind["bytes"].dataType == BinaryType():
        rows = rows.withColumn(IMAGE_COLUMN, col(IMAGE_COLUMN)["bytes"])
    elif kind != BinaryType():
        columns = ", ".join(f"{name} {kind.simpleString()}" for name, kind in kinds.items())
        raise ScoringError(f"{images}: expected a binary column {IMAGE_COLUMN!r}, the columns are {columns}")
    if taken := sorted(reserved & set(kinds)):
        raise ScoringError(f"{images}: rename {', '.join(taken)}; the scores have columns of these names")
    return rows.repartition(spark.sparkContext.defaultParallelism)  # one file of it may be one task


def find_unread(files: "DataFrame", known: "DataFrame") -> "DataFrame":
    """Return path and `read_error` of the files that have no row, because Spark skipped them silently."""
    from pyspark.sql.functions import col, concat, format_number, lit, when

    size = concat(lit("a file of "), format_number("length", 0), lit(f" bytes: at most {MAX_IMAGE_BYTES:,} are read"))
    error = when(col("length") == 0, "zero bytes: expected an encoded image")
    error = error.when(col("length") > MAX_IMAGE_BYTES, size).otherwise("cannot be read")
    return files.join(known, "path", "left_anti").select("path", error.alias("error"))
