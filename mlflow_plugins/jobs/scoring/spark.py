"""Spark for the job `score`: its session, and the paths that Hadoop understands."""

import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlflow_plugins.environment import changed_environment
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
}

_START_SETTINGS: Final = {"spark.ui.showConsoleProgress": "false"}
"""Settings that only a Spark that is started here can take."""

_SUBMIT_OPTIONS: Final = "SPARK_SUBMIT_OPTS"
"""Environment variable with options of Java; those of Spark's own settings come after it, and win."""

_LESS_OPTIMIZED: Final = "-XX:TieredStopAtLevel=1"
"""Java starts sooner, and optimizes no code, which costs more than it saves if Java only moves bytes."""

_CONNECT_S: Final = 5.0


@contextmanager
def spark_session(master: str, *, java_reads_images: bool = True) -> Iterator["SparkSession"]:
    """Start Spark and stop it at the end. If Spark runs in this process already, use it and leave it running.

    Args:
        master: where Spark runs, such as "local[*]".
        java_reads_images: whether Java itself reads images. If Python reads them, Java need not be fast.

    Raises:
        ScoringError: pyspark or Java is not installed, or the master does not answer.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ScoringError(
            f"bulk scoring needs pyspark; the extra spark brings it: pip install 'plantmodels[spark]' ({error})"
        ) from error
    if (running := SparkSession.getActiveSession()) is not None:
        session = running.newSession()
        for name, value in _SETTINGS.items():
            session.conf.set(name, value)
        yield session
        return
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        raise ScoringError("Spark needs Java 17 (Debian: apt-get install openjdk-17-jre-headless)")
    _check_master(master)
    settings, java = _SETTINGS | _START_SETTINGS, {}
    if master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        settings = settings | {"spark.ui.enabled": "false"}
        if not java_reads_images:
            java[_SUBMIT_OPTIONS] = f"{_LESS_OPTIMIZED} {os.environ.get(_SUBMIT_OPTIONS, '')}".strip()
    builder = SparkSession.builder.master(master).appName("plantmodels score")
    for name, value in settings.items():
        builder = builder.config(name, value)
    with changed_environment(java):
        spark = builder.getOrCreate()
    try:
        spark.sparkContext.setLogLevel("OFF")  # what fails is raised, and Java's stack traces help nobody
        yield spark
    finally:
        spark.stop()


def _check_master(master: str) -> None:
    """Refuse a cluster that nobody answers for; Spark itself would try for minutes."""
    addresses = re.findall(r"([^/,:\s]+):(\d+)", master.removeprefix("spark://"))
    if not master.startswith("spark://") or not addresses:
        return
    problems = []
    for host, port in addresses:
        try:
            socket.create_connection((host, int(port)), _CONNECT_S).close()
            return
        except (OSError, OverflowError) as error:
            problems.append(f"{host}:{port}: {quote_error(error)}")
    raise ScoringError(f"{master}: no Spark master answers ({'; '.join(problems)}); start it, or use local[*]")


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
