"""The job `score`: scores any number of images on Spark, through `mlflow.pyfunc.spark_udf`.

A Spark Structured Streaming query reads what is there, batch by batch, and ends. A stopped job resumes from the
query's checkpoint, which lies beside the scores. Each batch is written as one folder, and a batch that was cut off is
written again in its place, so no image is scored into two rows. One machine is `local[*]`. On a cluster each worker
needs mlflow, numpy, onnxruntime, pandas, pillow and pyarrow, and must see `images` and `output`.
"""

import json
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import mlflow

from mlflow_plugins._mlflow_compat import resolve_models_uri
from mlflow_plugins.jobs.requests import ScoreRequest
from mlflow_plugins.jobs.run import PREFIX, job_run, registration_errors
from mlflow_plugins.jobs.spark import (
    MAX_IMAGE_BYTES,
    escape_pattern,
    open_hadoop_path,
    spark_errors,
    spark_session,
    to_absolute,
)
from mlflow_plugins.loading.pyfunc import IMAGE_COLUMN, PREDICTION_COLUMNS, STRUCT_COLUMN
from plantmodels.errors import ScoringError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_LOGGER: Final = logging.getLogger(__name__)

_ANY_AGE: Final = "36500d"
"""By default Spark skips files that are a week older than the newest it has seen."""

_SUFFIXES: Final = ("jpg", "jpeg", "png", "webp")
_IMAGE_NAME: Final = re.compile(rf"\.({'|'.join(_SUFFIXES)})$", re.IGNORECASE)
_IMAGE_FILES: Final = f"*.{{{','.join(''.join(f'[{c}{c.upper()}]' for c in suffix) for suffix in _SUFFIXES)}}}"
"""The files that are scored, at any depth. Spark skips names that start with a dot or an underscore."""

_BATCH: Final = "batch"
_MODEL: Final = "model"
_STATE: Final = "_state"
"""Holds the request and the query's checkpoint; Spark and Arrow skip it when they read the scores."""

_UNREAD: Final = -1
"""The number of the batch with the files that no stream delivers: empty, too large or unreadable files."""


@dataclass(frozen=True)
class Scores:
    """What a job left in the output.

    Attributes:
        images: rows in the output.
        errors: rows of images that could not be classified.
        rejected: rows of images that were rejected as out-of-distribution.
        scored_now: rows that this job added.
        batches: batches that this job added.
    """

    images: int
    errors: int
    rejected: int
    scored_now: int
    batches: int


def run_score(request: ScoreRequest) -> Scores:
    """Score every image that the output does not have yet.

    Raises:
        ScoringError: no such images, the output belongs to another request, or Spark does not start or fails.
            Complete batches stay.
        RegistrationError: no such model version.
    """
    with job_run("score"):
        images, output = to_absolute(request.images), to_absolute(request.output)
        _check_folders(images, output)
        with registration_errors(f"{request.model} cannot be found in the registry {mlflow.get_registry_uri()}"):
            name, version = resolve_models_uri(request.model)
        model = f"models:/{name}/{version}"
        mlflow.log_params({f"{PREFIX}version": model, f"{PREFIX}spark_master": request.spark_master})
        with spark_errors(), spark_session(request.spark_master) as spark:
            scorer = _Scorer(spark, request, model, images, output)
            scorer.check_same_request()
            return scorer.run()


class _Scorer:
    """Carries out one request on one Spark session."""

    def __init__(self, spark: "SparkSession", request: ScoreRequest, model: str, images: str, output: str) -> None:
        self.spark = spark
        self.request = request
        self.model = model
        self.images = images
        self.output = output
        self.scored_now = 0
        self.batches = 0

    def check_same_request(self) -> None:
        """Compare the request with the one that the output was begun with; a new output records it.

        Raises:
            ScoringError: the output was begun with another request.
        """
        from pyspark.errors import AnalysisException

        asked = {
            _MODEL: self.model,
            "images": self.images,
            "partition_by": list(self.request.partition_by),
            "routing": self.request.routing,
        }
        path = f"{self.output}/{_STATE}/request"
        try:
            lines = [row.value for row in self.spark.read.text(escape_pattern(path)).collect()]
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
                    f"{self.output}: begun with {name} {begun.get(name)}, but this job has {value}; repeat the first "
                    "request to complete it, or choose another output"
                )

    def run(self) -> Scores:
        """Score all batches, then add rows for the files that no stream delivers.

        Files are listed before the stream looks for them, so no file is scored twice; a file that comes later is left
        to the next job.
        """
        files = None if self._is_table else self._list_files()
        scored = self._score(self._read(self.spark.readStream))
        if unknown := [name for name in self.request.partition_by if name not in scored.columns]:
            raise ScoringError(f"cannot partition by {', '.join(unknown)}: the scores have {', '.join(scored.columns)}")
        query = (
            scored.writeStream.foreachBatch(self._write_batch)
            .option("checkpointLocation", f"{self.output}/{_STATE}/checkpoint")
            .trigger(availableNow=True)
            .start()
        )
        query.awaitTermination()
        if files is not None:
            self._write_unread(files, scored)
        images, errors, rejected = self._count_rows(self.output, scored)
        if not images:
            raise ScoringError(f"{self.images}: holds no image to score")
        mlflow.log_metrics({"images": images, "errors": errors, "rejected": rejected})
        return Scores(images, errors, rejected, self.scored_now, self.batches)

    @property
    def _is_table(self) -> bool:
        return self.images.endswith(".parquet")

    def _read(self, reader: Any) -> "DataFrame":
        """Return the images, one row each, with the column `image`, from a batch or a stream reader."""
        from pyspark.sql.functions import col
        from pyspark.sql.types import BinaryType

        reader = reader.option("maxFilesPerTrigger", self.request.images_per_batch).option("maxFileAge", _ANY_AGE)
        if not self._is_table:
            files = reader.format("binaryFile").option("recursiveFileLookup", "true")
            found: DataFrame = files.option("pathGlobFilter", _IMAGE_FILES).load(escape_pattern(self.images))
            return found.select("path", "length", col("content").alias(IMAGE_COLUMN))
        system, path = open_hadoop_path(self.spark, self.images)
        if system.isFile(path):  # a stream reads folders and patterns only, so the file becomes a pattern
            rows: DataFrame = reader.parquet(f"{escape_pattern(self.images[:-1])}[{self.images[-1]}]")
        else:
            rows = reader.option("basePath", self.images).parquet(escape_pattern(self.images))
        kinds = {field.name: field.dataType for field in rows.schema.fields}
        if kinds.get(IMAGE_COLUMN) != BinaryType():
            columns = ", ".join(f"{name} {kind.simpleString()}" for name, kind in kinds.items())
            raise ScoringError(f"{self.images}: expected a binary column {IMAGE_COLUMN!r}, the columns are {columns}")
        if taken := sorted({*PREDICTION_COLUMNS, _MODEL, _BATCH, STRUCT_COLUMN} & set(kinds)):
            raise ScoringError(f"{self.images}: rename {', '.join(taken)}; the scores have columns of these names")
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

    def _write_batch(self, scored: "DataFrame", batch: int) -> None:
        start = time.monotonic()
        folder = f"{self.output}/{_BATCH}={batch}"
        self._write_parquet(scored, folder)
        images, errors, _ = self._count_rows(folder, scored)
        self.scored_now += images
        self.batches += 1
        speed = images / (time.monotonic() - start)
        mlflow.log_metrics({"images_scored": self.scored_now, "images_per_second": speed}, step=batch)
        _LOGGER.info(
            "batch %d: %s images, %s of them bad, %.1f a second; %s scored by this job",
            *(batch, f"{images:,}", f"{errors:,}", speed, f"{self.scored_now:,}"),
        )

    def _list_files(self) -> "DataFrame":
        """Return path and length of every image file; Spark does not list empty files, so Hadoop is asked for them."""
        system, root = open_hadoop_path(self.spark, self.images)
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
        """Add a row with an error for each file that has no row, because Spark skipped it silently.

        A file is scored once, as it was when the job first met it.
        """
        from pyspark.sql.functions import col, concat, format_number, lit, when

        folder = f"{self.output}/{_BATCH}={_UNREAD}"
        known = self.spark.read.schema(scored.schema).parquet(escape_pattern(self.output)).select("path")
        size = concat(
            lit("a file of "), format_number("length", 0), lit(f" bytes: at most {MAX_IMAGE_BYTES:,} are read")
        )
        error = when(col("length") == 0, "zero bytes: expected an encoded image")
        error = error.when(col("length") > MAX_IMAGE_BYTES, size).otherwise("cannot be read")
        values = {"path": col("path"), "error": error, _MODEL: lit(self.model)}
        columns = [values.get(f.name, lit(None)).cast(f.dataType).alias(f.name) for f in scored.schema.fields]
        unread = files.join(known, "path", "left_anti").select(*columns).persist()
        if count := unread.count():
            self._write_parquet(unread, folder, mode="append")
            self.scored_now += count
            _LOGGER.info("%s files are empty, too large or cannot be read", f"{count:,}")
        unread.unpersist()

    def _write_parquet(self, rows: "DataFrame", folder: str, mode: str = "overwrite") -> None:
        rows.repartition(1).write.mode(mode).partitionBy(*self.request.partition_by).parquet(folder)

    def _count_rows(self, folder: str, scored: "DataFrame") -> tuple[int, int, int]:
        """Return the numbers of rows, errors and rejected images in a folder of scores."""
        from pyspark.sql.functions import count, count_if

        rows = self.spark.read.schema(scored.schema).parquet(escape_pattern(folder))
        (counts,) = rows.agg(count("*"), count("error"), count_if("rejected")).collect()
        return int(counts[0]), int(counts[1]), int(counts[2])


def _check_folders(images: str, output: str) -> None:
    if "://" not in images and not Path(images).exists():
        raise ScoringError(f"{images}: no such folder or table of images")
    if "://" in output or not Path(output).exists():
        return
    begun = Path(output, _STATE, "request").is_dir()
    if not Path(output).is_dir() or (not begun and {path.name for path in Path(output).iterdir()} - {_STATE}):
        raise ScoringError(f"{output}: exists already and holds no scores; choose another output")
