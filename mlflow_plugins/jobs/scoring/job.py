"""The job `score`: scores any number of images on Spark, through `mlflow.pyfunc.spark_udf`.

Each batch is written as one folder, and a batch that was cut off is written again, so no image is scored into two rows.
The files of a folder on this machine are listed and read by `local_files`; which of them have a row already stands in
the scores. Tables, and folders that have a URI, are read by a query of Spark Structured Streaming, which resumes from
its checkpoint beside the scores. One machine is `local[*]`. On a cluster each worker needs mlflow, numpy, onnxruntime,
pandas, pillow and pyarrow, and must see `images` and `output`.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import mlflow

from mlflow_plugins.jobs.requests import ScoreRequest
from mlflow_plugins.jobs.run import PREFIX, job_run, log_params, registration_errors
from mlflow_plugins.jobs.scoring.failures import spark_errors
from mlflow_plugins.jobs.scoring.hadoop_listing import list_files
from mlflow_plugins.jobs.scoring.local_files import READ_SCHEMA, NewFile, build_reader, list_new
from mlflow_plugins.jobs.scoring.output import BATCH, STATE, ScoreFolder, check_places
from mlflow_plugins.jobs.scoring.sources import find_unread, is_read_by_hadoop, is_table, read_folder, read_table
from mlflow_plugins.jobs.scoring.spark import MAX_IMAGE_BYTES, spark_session, to_absolute
from mlflow_plugins.loading.addresses import resolve_models_uri
from mlflow_plugins.loading.mlmodel import find_prediction_contract
from mlflow_plugins.loading.pyfunc import IMAGE_COLUMN, PREDICTION_COLUMNS, STRUCT_COLUMN, list_columns
from plantmodels.errors import ScoringError
from plantmodels.serve.classifier import CHUNK

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_LOGGER: Final = logging.getLogger(__name__)

_MODEL: Final = "model"
_READ_ERROR: Final = "read_error"

_BATCHES_AT_ONCE: Final = 2
"""The next batch keeps the cores busy while Spark plans, ends and writes one."""

_CANCEL_S: Final = 0.5
"""Seconds between two attempts to cancel batches. A batch is several jobs of Spark, and one may begin in between."""

_Counts = tuple[int, int, int]
"""The number of a batch, and how many images and errors it has."""

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
        DataError: a folder of images cannot be listed.
        ScoringError: no such images, the output belongs to another request, or Spark does not start or fails.
            Complete batches stay.
        RegistrationError: no such model version.
    """
    with job_run("score") as run:
        images, output = to_absolute(request.images), to_absolute(request.output)
        check_places(images, output)
        with registration_errors(f"{request.model} cannot be found in the registry {mlflow.get_registry_uri()}"):
            name, version = resolve_models_uri(request.model)
        model = f"models:/{name}/{version}"
        log_params({f"{PREFIX}version": model, f"{PREFIX}spark_master": request.spark_master})
        by_java = is_read_by_hadoop(images)
        with spark_errors(), spark_session(request.spark_master, java_reads_images=by_java) as spark:
            return _Scorer(spark, request, model, images, output, run.info.run_id).run()


class _Scorer:
    """Carries out one request on one Spark session."""

    def __init__(
        self, spark: "SparkSession", request: ScoreRequest, model: str, images: str, output: str, run_id: str
    ) -> None:
        self.spark = spark
        self.request = request
        self.model = model
        self.images = images
        self.output = ScoreFolder(spark, output, request.partition_by)
        self.run_id = run_id
        self.scored_now = 0
        self.batches = 0
        self.start = 0.0

    def run(self) -> Scores:
        """Score every image that has no row yet.

        Raises:
            ScoringError: the output was begun with another request, or there is no image.
        """
        asked = {_MODEL: self.model, "images": self.images, "partition_by": list(self.request.partition_by)}
        self.output.check_same_request(asked | {"routing": self.request.routing})
        if is_read_by_hadoop(self.images):
            scored = self._score_stream()
        else:
            scored = self._score_folder()
        images, errors, rejected = self.output.count_rows(self.output.path, scored)
        if not images:
            raise ScoringError(f"{self.images}: holds no image to score")
        mlflow.log_metrics({"images": images, "errors": errors, "rejected": rejected})
        return Scores(images, errors, rejected, self.scored_now, self.batches)

    def _score_folder(self) -> "DataFrame":
        """Score the files of a folder on this machine that have no row yet, batch by batch; return the columns."""
        complete = self.output.keep_complete_batches()
        scored = self._score(self._read_files([]))
        known = self.output.count_names(scored) if complete else Counter[str]()
        numbers = (number for number in count() if number not in complete)
        batches = _split(list_new(Path(self.images), known), self.request.images_per_batch)
        self._score_batches(zip(numbers, batches, strict=False))  # there is always another number
        return scored

    def _score_batches(self, batches: Iterator[tuple[int, list[NewFile]]]) -> None:
        """Score numbered batches of files, some at once. After an error those that run are cancelled."""
        from pyspark import inheritable_thread_target

        context, tag = self.spark.sparkContext, f"plantmodels-{self.run_id}"

        def score(number: int, files: list[NewFile]) -> _Counts:
            context.addJobTag(tag)
            return self._write_batch(self._score(self._read_files(files)), number)

        running: set[Future[_Counts]] = set()
        self.start = time.monotonic()
        with ThreadPoolExecutor(_BATCHES_AT_ONCE) as pool:
            try:
                for number, files in batches:
                    if len(running) == _BATCHES_AT_ONCE:
                        running = self._report_ended(running)
                    own = inheritable_thread_target(self.spark)(score)  # jobs stay in the group that the caller has set
                    running.add(pool.submit(own, number, files))
                while running:
                    running = self._report_ended(running)
            except BaseException:
                while wait(running, timeout=_CANCEL_S).not_done:
                    context.cancelJobsWithTag(tag)
                raise

    def _report_ended(self, running: set[Future[_Counts]]) -> set[Future[_Counts]]:
        """Wait until a batch has ended; report it, and return those that still run."""
        ended, rest = wait(running, return_when=FIRST_COMPLETED)
        for future in ended:
            self._report(*future.result())
        return rest

    def _read_files(self, files: list[NewFile]) -> "DataFrame":
        """Return path, content and error of files, read by at most one task for each core.

        Fewer tasks are better: on one machine each of them loads the model.
        """
        tasks = min(-(-len(files) // CHUNK), self.spark.sparkContext.defaultParallelism)
        named = self.spark.createDataFrame(files, "file binary, path string").repartition(max(1, tasks))
        return named.mapInArrow(build_reader(MAX_IMAGE_BYTES), READ_SCHEMA)

    def _score_stream(self) -> "DataFrame":
        """Score what Hadoop reads, then add rows for the files that no stream delivers; return the columns.

        Files are listed before the stream looks for them, so no file is scored twice; a file that comes later is left
        to the next job.
        """
        reader = self.spark.readStream.option("maxFilesPerTrigger", self.request.images_per_batch)
        files = None
        if is_table(self.images):
            rows = read_table(self.spark, reader, self.images, {*PREDICTION_COLUMNS, _MODEL, BATCH, STRUCT_COLUMN})
        else:
            files = list_files(self.spark, self.images)
            found = read_folder(reader, self.images)
            rows = found.filter(found["length"] <= MAX_IMAGE_BYTES).drop("length")
        scored = self._score(rows)
        self.start = time.monotonic()
        query = (
            scored.writeStream.foreachBatch(lambda batch, number: self._report(*self._write_batch(batch, number)))
            .option("checkpointLocation", f"{self.output.path}/{STATE}/checkpoint")
            .trigger(availableNow=True)
            .start()
        )
        query.awaitTermination()
        if files is not None:
            self._write_unread(files, scored)
        return scored

    @cached_property
    def _predict(self) -> Any:
        """The model as a function of a column of images; the workers get its files."""
        from pyspark.sql.types import StructField, StructType

        columns = list_columns(find_prediction_contract(mlflow.models.get_model_info(self.model).flavors))
        row = StructType([StructField(name, PREDICTION_COLUMNS[name].to_spark()) for name in columns])
        with _without_advice():
            return mlflow.pyfunc.spark_udf(
                self.spark,
                self.model,
                result_type=StructType([StructField(STRUCT_COLUMN, row)]),
                env_manager="local",
                params={"as_struct": True, "routing": self.request.routing},
            )

    def _score(self, rows: "DataFrame") -> "DataFrame":
        """Return the scores of images, with the columns that the rows have beside the image.

        Raises:
            ScoringError: the scores lack a column that is to become folders.
        """
        from pyspark.sql.functions import coalesce, lit, struct

        given = [name for name in rows.columns if name != IMAGE_COLUMN]
        answers = rows.select(*given, self._predict(struct(IMAGE_COLUMN))[STRUCT_COLUMN].alias(STRUCT_COLUMN))
        scored = answers.select(*given, f"{STRUCT_COLUMN}.*", lit(self.model).alias(_MODEL))
        if _READ_ERROR in given:
            scored = scored.withColumn("error", coalesce(_READ_ERROR, "error")).drop(_READ_ERROR)
        if unknown := [name for name in self.request.partition_by if name not in scored.columns]:
            raise ScoringError(f"cannot partition by {', '.join(unknown)}: the scores have {', '.join(scored.columns)}")
        return scored

    def _write_batch(self, scored: "DataFrame", batch: int) -> _Counts:
        """Score and write a batch."""
        folder = self.output.name_batch(batch)
        self.output.write(scored, folder)
        images, errors, _ = self.output.count_rows(folder, scored)
        return batch, images, errors

    def _report(self, batch: int, images: int, errors: int) -> None:
        self.scored_now += images
        self.batches += 1
        speed = self.scored_now / (time.monotonic() - self.start)
        values = {"images_scored": self.scored_now, "images_per_second": speed}
        # a stream calls this in a thread without a run
        mlflow.log_metrics(values, step=self.batches, run_id=self.run_id)
        _LOGGER.info(
            "batch %d: %s images, %s of them bad; %s scored by this job, %.1f a second",
            *(batch, f"{images:,}", f"{errors:,}", f"{self.scored_now:,}", speed),
        )

    def _write_unread(self, files: "DataFrame", scored: "DataFrame") -> None:
        """Add a row with an error for each file that has no row, because Spark skipped it silently.

        A file is scored once, as it was when the job first met it.
        """
        from pyspark.sql.functions import col, lit

        values = {"path": col("path"), "error": col("error"), _MODEL: lit(self.model)}
        columns = [values.get(f.name, lit(None)).cast(f.dataType).alias(f.name) for f in scored.schema.fields]
        unread = find_unread(files, self.output.read(scored).select("path")).select(*columns).persist()
        if number := unread.count():
            self.output.write(unread, self.output.name_batch(_UNREAD), mode="append")
            self.scored_now += number
            _LOGGER.info("%s files are empty, too large or cannot be read", f"{number:,}")
        unread.unpersist()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence MLflow's advice to install the version's environment anew for each job."""
    logger = logging.getLogger("mlflow.pyfunc")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _split(files: list[NewFile], size: int) -> Iterator[list[NewFile]]:
    return (files[start : start + size] for start in range(0, len(files), size))
