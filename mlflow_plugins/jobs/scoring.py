"""The job `score`: any number of images on Spark, through `mlflow.pyfunc.spark_udf`.

A Spark Structured Streaming query reads what is there, batch by batch, and ends. Its checkpoint, which lies beside
the scores, is what a stopped job resumes from: a batch is written as one folder, and a batch that was cut off is
written anew in its place, so that no image is ever scored into two rows. One machine is `local[*]`; on a cluster
each worker needs mlflow, numpy, onnxruntime, pandas, pillow and pyarrow, and sees `images` and `output`.

>>> run_score(ScoreRequest("models:/plant-disease@production", "photographs", "scores.parquet"))  # doctest: +SKIP
Scores(images=2000, errors=20, rejected=31, scored_now=2000, batches=2)
"""

import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import mlflow

from mlflow_plugins._mlflow_compat import resolve_models_uri
from mlflow_plugins.jobs.run import PREFIX, job, to_one_line
from mlflow_plugins.loading.pyfunc import IMAGE_COLUMN, PREDICTION_COLUMNS, STRUCT_COLUMN
from plantmodels.errors import ScoringError
from plantmodels.serve.classifier import CHUNK
from plantmodels.serve.routing import Routing

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_LOGGER: Final = logging.getLogger(__name__)

MAX_IMAGE_BYTES: Final = 128 * 2**20
"""A larger file, and an empty one, is a row with `error`; it is not read."""

_ANY_AGE: Final = "36500d"
"""By default Spark passes over files that are a week older than the newest it has seen."""

_SUFFIXES: Final = ("jpg", "jpeg", "png", "webp")
_IMAGE_NAME: Final = re.compile(rf"\.({'|'.join(_SUFFIXES)})$", re.IGNORECASE)
_IMAGE_FILES: Final = f"*.{{{','.join(''.join(f'[{c}{c.upper()}]' for c in suffix) for suffix in _SUFFIXES)}}}"
"""What a folder is searched for, at any depth. Spark passes over names that start with a dot or an underscore."""

_BATCH: Final = "batch"
_MODEL: Final = "model"
_STATE: Final = "_state"
"""Spark and Arrow pass over it when they read the scores: the request, and the query's checkpoint."""

_UNREAD: Final = -1
"""The batch of the files that no stream delivers: empty, too large, or not readable."""

_SETTINGS: Final = {
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(CHUNK),
    "spark.sql.execution.arrow.maxBytesPerBatch": str(MAX_IMAGE_BYTES),
    "spark.sql.parquet.columnarReaderBatchSize": str(CHUNK),
    "spark.sql.files.openCostInBytes": "65536",  # else thirty photographs make a task, and each task loads the model
    "spark.sql.files.ignoreMissingFiles": "true",  # one that was deleted meanwhile would stop every later try
    "spark.sql.streaming.schemaInference": "true",
    "spark.sql.shuffle.partitions": "1",
    "spark.ui.showConsoleProgress": "false",
}


@dataclass(frozen=True)
class ScoreRequest:
    """What a person asks of the job `score`.

    Attributes:
        model: `models:/` URI; an alias or stage means the version that it names when the job starts.
        images: folder of image files, or a Parquet table (a name that ends in .parquet) with the binary column
            `image`, whose other columns go to the scores. A path, or a URI that the cluster's Hadoop knows.
        output: folder of Parquet files; one that a stopped job left is completed.
        spark_master: such as "local[*]" or "spark://host:7077".
        partition_by: columns of the scores that become folders, outermost first.
        images_per_batch: what a stop loses at most, in files; of a table, in Parquet files of it.
        routing: "hard" or "soft".
    """

    model: str
    images: str
    output: str
    spark_master: str = "local[*]"
    partition_by: tuple[str, ...] = ()
    images_per_batch: int = 2000
    routing: Routing = "hard"


@dataclass(frozen=True)
class Scores:
    """What lies in the output in the end; `scored_now` and `batches` count what this job added."""

    images: int
    errors: int
    rejected: int
    scored_now: int
    batches: int


def run_score(request: ScoreRequest) -> Scores:
    """Scores every image that the output does not have yet.

    Raises:
        ScoringError: no such images, output of another request, or a Spark that does not start or fails; the batches
            that were complete stay.
        RegistrationError: no such model version.
    """
    with job("score"):
        with to_one_line(request.model):
            name, version = resolve_models_uri(request.model)
        model = f"models:/{name}/{version}"
        mlflow.log_params({f"{PREFIX}version": model, f"{PREFIX}spark_master": request.spark_master})
        images, output = _locate(request.images), _locate(request.output)
        _check_folders(images, output)
        with _spark_errors(), _session(request.spark_master) as spark:
            scorer = _Scorer(spark, request, model, images, output)
            scorer.agree()
            return scorer.run()


class _Scorer:
    """One request on one Spark session."""

    def __init__(self, spark: "SparkSession", request: ScoreRequest, model: str, images: str, output: str) -> None:
        self.spark = spark
        self.request = request
        self.model = model
        self.images = images
        self.output = output
        self.scored_now = 0
        self.batches = 0

    def agree(self) -> None:
        """Compares the request with the one that the output was begun with, or notes it down there."""
        from pyspark.errors import AnalysisException

        asked = {
            _MODEL: self.model,
            "images": self.images,
            "partition_by": list(self.request.partition_by),
            "routing": self.request.routing,
        }
        path = f"{self.output}/{_STATE}/request"
        try:
            lines = [row.value for row in self.spark.read.text(_escape(path)).collect()]
        except AnalysisException:
            lines = []
        if not lines:  # a new output, or one that was cut off before anything was scored
            line = self.spark.createDataFrame([(json.dumps(asked),)], "value string")
            line.coalesce(1).write.mode("overwrite").text(path)
            return
        begun = json.loads(lines[0])
        for name, value in asked.items():
            if begun.get(name) != value:
                raise ScoringError(
                    f"{self.output}: begun with {name} {begun.get(name)}, and now it is {value}: go on with what it "
                    "was begun with, or give another output"
                )

    def run(self) -> Scores:
        """Scores all batches, then what no stream delivers.

        Files are listed before the stream looks for them: one that comes later is in neither, and no file in both.
        """
        files = None if self._is_table else self._list_files()
        scored = self._score(self._read(self.spark.readStream))
        if unknown := [name for name in self.request.partition_by if name not in scored.columns]:
            raise ScoringError(f"cannot partition by {', '.join(unknown)}: expected {', '.join(scored.columns)}")
        query = (
            scored.writeStream.foreachBatch(self._write)
            .option("checkpointLocation", f"{self.output}/{_STATE}/checkpoint")
            .trigger(availableNow=True)
            .start()
        )
        query.awaitTermination()
        if files is not None:
            self._write_unread(files, scored)
        images, errors, rejected = self._count(self.output, scored)
        if not images:
            raise ScoringError(f"{self.images}: holds no image to score")
        mlflow.log_metrics({"images": images, "errors": errors, "rejected": rejected})
        return Scores(images, errors, rejected, self.scored_now, self.batches)

    @property
    def _is_table(self) -> bool:
        return self.images.endswith(".parquet")

    def _read(self, reader: Any) -> "DataFrame":
        """The images, a row each, with the column `image`, from a batch or stream reader."""
        from pyspark.sql.functions import col
        from pyspark.sql.types import BinaryType

        reader = reader.option("maxFilesPerTrigger", self.request.images_per_batch).option("maxFileAge", _ANY_AGE)
        if not self._is_table:
            files = reader.format("binaryFile").option("recursiveFileLookup", "true")
            found: DataFrame = files.option("pathGlobFilter", _IMAGE_FILES).load(_escape(self.images))
            return found.select("path", "length", col("content").alias(IMAGE_COLUMN))
        system, path = self._hadoop(self.images)
        if system.isFile(path):  # a stream reads folders, and whatever is a pattern
            rows: DataFrame = reader.parquet(f"{_escape(self.images[:-1])}[{self.images[-1]}]")
        else:
            rows = reader.option("basePath", self.images).parquet(_escape(self.images))
        kinds = {field.name: field.dataType for field in rows.schema.fields}
        if kinds.get(IMAGE_COLUMN) != BinaryType():
            columns = ", ".join(f"{name} {kind.simpleString()}" for name, kind in kinds.items())
            raise ScoringError(f"{self.images}: expected a binary column {IMAGE_COLUMN!r}, the columns are {columns}")
        if taken := sorted({*PREDICTION_COLUMNS, _MODEL, _BATCH, STRUCT_COLUMN} & set(kinds)):
            raise ScoringError(f"{self.images}: the scores have columns {', '.join(taken)} of their own: rename them")
        return rows.repartition(self.spark.sparkContext.defaultParallelism)  # one file of it may be one task

    def _score(self, rows: "DataFrame") -> "DataFrame":
        from pyspark.sql.functions import col, lit, struct
        from pyspark.sql.types import StructField, StructType

        if not self._is_table:
            rows = rows.filter(col("length") <= MAX_IMAGE_BYTES).drop("length")
        row = StructType([StructField(name, kind.to_spark()) for name, kind in PREDICTION_COLUMNS.items()])
        predict = mlflow.pyfunc.spark_udf(
            self.spark,
            self.model,
            result_type=StructType([StructField(STRUCT_COLUMN, row)]),
            env_manager="local",
            params={"as_struct": True, "routing": self.request.routing},
        )
        given = [name for name in rows.columns if name != IMAGE_COLUMN]
        answers = rows.select(*given, predict(struct(IMAGE_COLUMN))[STRUCT_COLUMN].alias(STRUCT_COLUMN))
        return answers.select(*given, f"{STRUCT_COLUMN}.*", lit(self.model).alias(_MODEL))

    def _write(self, scored: "DataFrame", batch: int) -> None:
        start = time.monotonic()
        folder = f"{self.output}/{_BATCH}={batch}"
        self._save(scored, folder)
        images, errors, _ = self._count(folder, scored)
        self.scored_now += images
        self.batches += 1
        speed = images / (time.monotonic() - start)
        mlflow.log_metrics({"images_scored": self.scored_now, "images_per_second": speed}, step=batch)
        _LOGGER.info(
            "batch %d: %s images, %s of them bad, %.1f a second; %s scored by this job",
            *(batch, f"{images:,}", f"{errors:,}", speed, f"{self.scored_now:,}"),
        )

    def _list_files(self) -> "DataFrame":
        """Path and length of every image file there; Spark lists none that is empty, and opens none for this."""
        system, root = self._hadoop(self.images)
        empty = []
        files = system.listFiles(root, True)
        while files.hasNext():
            file = files.next()
            if file.getLen():
                continue
            path = file.getPath().toString()
            below = path.removeprefix(root.toString()).split("/")
            if _IMAGE_NAME.search(path) and not any(part.startswith((".", "_")) for part in below):
                empty.append((path, 0))
        return (
            self._read(self.spark.read)
            .select("path", "length")
            .union(self.spark.createDataFrame(empty, "path string, length long"))
        )

    def _write_unread(self, files: "DataFrame", scored: "DataFrame") -> None:
        """Rows for the files that have none: Spark passes over them without a word.

        A file is scored once, as it was when it was met.
        """
        from pyspark.sql.functions import col, concat, format_number, lit, when

        folder = f"{self.output}/{_BATCH}={_UNREAD}"
        known = self.spark.read.schema(scored.schema).parquet(_escape(self.output)).select("path")
        size = concat(
            lit("a file of "), format_number("length", 0), lit(f" bytes: at most {MAX_IMAGE_BYTES:,} are read")
        )
        error = when(col("length") == 0, "zero bytes: expected an encoded image")
        error = error.when(col("length") > MAX_IMAGE_BYTES, size).otherwise("cannot be read")
        values = {"path": col("path"), "error": error, _MODEL: lit(self.model)}
        columns = [values.get(f.name, lit(None)).cast(f.dataType).alias(f.name) for f in scored.schema.fields]
        unread = files.join(known, "path", "left_anti").select(*columns).persist()
        if count := unread.count():
            self._save(unread, folder, mode="append")
            self.scored_now += count
            _LOGGER.info("%s files are empty, too large or cannot be read", f"{count:,}")
        unread.unpersist()

    def _hadoop(self, path: str) -> tuple[Any, Any]:
        """Hadoop's file system of a path, and its path, as py4j hands them over."""
        context = self.spark.sparkContext
        found = context._jvm.org.apache.hadoop.fs.Path(path)  # type: ignore[union-attr]
        return found.getFileSystem(context._jsc.hadoopConfiguration()), found

    def _save(self, rows: "DataFrame", folder: str, mode: str = "overwrite") -> None:
        rows.repartition(1).write.mode(mode).partitionBy(*self.request.partition_by).parquet(folder)

    def _count(self, folder: str, scored: "DataFrame") -> tuple[int, int, int]:
        """Rows, errors and rejected images that lie in a folder."""
        from pyspark.sql.functions import count, count_if

        rows = self.spark.read.schema(scored.schema).parquet(_escape(folder))
        (counts,) = rows.agg(count("*"), count("error"), count_if("rejected")).collect()
        return int(counts[0]), int(counts[1]), int(counts[2])


@contextmanager
def _session(master: str) -> Iterator["SparkSession"]:
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ScoringError(f"bulk scoring needs pyspark, which conda.yaml pins ({error})") from error
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
def _spark_errors() -> Iterator[None]:
    try:
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException
    except ImportError:
        yield  # `_session` says so
        return
    try:
        yield
    except (PySparkException, Py4JError) as error:
        raise ScoringError(f"Spark: {_reason(str(error))}") from error


def _reason(message: str) -> str:
    """The last error that a message of Spark's tells of: the cause, which it wraps several times over."""
    causes = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception): .+", message, flags=re.MULTILINE)
    return " ".join((causes[-1] if causes else message).split())[:500]


def _locate(path: str) -> str:
    """A URI as it is, a path as an absolute one."""
    return path if "://" in path else str(Path(path).resolve())


def _escape(path: str) -> str:
    """Takes their meaning from the characters by which Hadoop would search for other paths."""
    return re.sub(r"([\\*?\[\]{}])", r"\\\1", path)


def _check_folders(images: str, output: str) -> None:
    if "://" not in images and not Path(images).exists():
        raise ScoringError(f"no images there: {images}")
    if "://" in output or not Path(output).exists():
        return
    begun = Path(output, _STATE, "request").is_dir()
    if not Path(output).is_dir() or (not begun and {path.name for path in Path(output).iterdir()} - {_STATE}):
        raise ScoringError(f"{output}: is there already and holds no scores of this job")
