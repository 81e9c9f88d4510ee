"""Spark for the job `score`: its session, its errors as one line, and the paths that Hadoop understands."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from plantmodels.errors import ScoringError
from plantmodels.foreign_text import quote_error
from plantmodels.serve.classifier import CHUNK

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MAX_IMAGE_BYTES: Final = 128 * 2**20
"""A larger file, and an empty one, becomes a row with `error`; it is not read."""

_SETTINGS: Final = {
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(CHUNK),
    "spark.sql.execution.arrow.maxBytesPerBatch": str(MAX_IMAGE_BYTES),
    "spark.sql.parquet.columnarReaderBatchSize": str(CHUNK),
    "spark.sql.files.openCostInBytes": "65536",  # else thirty images make a task, and each task loads the model
    "spark.sql.files.ignoreMissingFiles": "true",  # a file that was deleted meanwhile would stop every later try
    "spark.sql.streaming.schemaInference": "true",
    "spark.sql.shuffle.partitions": "1",
    "spark.ui.showConsoleProgress": "false",
}


@contextmanager
def spark_session(master: str) -> Iterator["SparkSession"]:
    """Start Spark and stop it at the end.

    Args:
        master: where Spark runs, such as "local[*]".

    Raises:
        ScoringError: pyspark or Java is not installed.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ScoringError(f"bulk scoring needs pyspark; install plantmodels with its extra spark ({error})") from error
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise ScoringError("Spark needs Java 17 (Debian: apt-get install openjdk-17-jre-headless)")
    if master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master(master).appName("plantmodels score")
    for name, value in _SETTINGS.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    try:
        spark.sparkContext.setLogLevel("ERROR")
        yield spark
    finally:
        spark.stop()


@contextmanager
def spark_errors() -> Iterator[None]:
    """Turn every error of Spark into a `ScoringError` of one line."""
    try:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException
    except ImportError:
        yield  # `spark_session` reports it
        return
    try:
        yield
    except (PySparkException, Py4JError) as error:
        raise ScoringError(f"Spark: {_find_cause(str(error))}") from error


def _find_cause(message: str) -> str:
    """Return the last error in a message of Spark's, which is the cause that Spark wraps several times over."""
    causes = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception): .+", message, flags=re.MULTILINE)
    return quote_error(causes[-1] if causes else message)


def to_absolute(path: str) -> str:
    """Return a path as an absolute path, and a URI unchanged."""
    return path if "://" in path else str(Path(path).resolve())


def escape_pattern(path: str) -> str:
    """Escape the characters that Hadoop would take for a pattern."""
    return re.sub(r"([\\*?\[\]{}])", r"\\\1", path)


def open_hadoop_path(spark: "SparkSession", path: str) -> tuple[Any, Any]:
    """Return Hadoop's file system for a path, and the path as Hadoop's own object."""
    context = spark.sparkContext
    found = context._jvm.org.apache.hadoop.fs.Path(path)  # type: ignore[union-attr]
    return found.getFileSystem(context._jsc.hadoopConfiguration()), found
