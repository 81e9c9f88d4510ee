"""The folder of scores that the job `score` fills, one folder for each batch.

A batch is complete once its folder holds `_SUCCESS`, which Spark writes last.
"""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlflow_plugins.jobs.scoring.spark import escape_pattern, open_hadoop_path
from plantmodels.errors import ScoringError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

BATCH: Final = "batch"
STATE: Final = "_state"
"""Holds the request and a stream's checkpoint; Spark and Arrow skip it when they read the scores."""

_SUCCESS: Final = "_SUCCESS"


def check_places(images: str, output: str) -> None:
    """Refuse images that do not exist, and an output that is something else already.

    Raises:
        ScoringError: names the path.
    """
    if "://" not in images and not Path(images).exists():
        raise ScoringError(f"{images}: no such folder or table of images")
    if "://" not in images and not images.endswith(".parquet") and not Path(images).is_dir():
        raise ScoringError(f"{images}: expected a folder of images or a table that is named .parquet")
    if "://" in output or not Path(output).exists():
        return
    begun = Path(output, STATE, "request").is_dir()
    if not Path(output).is_dir() or (not begun and {path.name for path in Path(output).iterdir()} - {STATE}):
        raise ScoringError(f"{output}: exists already and holds no scores; choose another output")


class ScoreFolder:
    """The output of one request, on one Spark session."""

    def __init__(self, spark: "SparkSession", path: str, partition_by: tuple[str, ...]) -> None:
        """Use the folder `path`, in which the columns `partition_by` become folders of each batch."""
        self.path = path
        self._spark = spark
        self._partition_by = partition_by

    def check_same_request(self, asked: dict[str, Any]) -> None:
        """Compare a request with the one that the output was begun with; a new output records it.

        Raises:
            ScoringError: the output was begun with another request.
        """
        from pyspark.errors import AnalysisException

        path = f"{self.path}/{STATE}/request"
        try:
            lines = [row.value for row in self._spark.read.text(escape_pattern(path)).collect()]
        except AnalysisException:
            lines = []
        if not lines:  # a new output, or one that was cut off before anything was scored
            line = self._spark.createDataFrame([(json.dumps(asked),)], "value string")
            line.coalesce(1).write.mode("overwrite").text(path)
            return
        begun = json.loads(lines[0])
        for name, value in asked.items():
            if begun.get(name) != value:
                raise ScoringError(
                    f"{self.path}: begun with {name} {begun.get(name)}, but this job has {value}; repeat the first "
                    "request to complete it, or choose another output"
                )

    def keep_complete_batches(self) -> list[int]:
        """Remove batches that were cut off; return the numbers of the complete ones."""
        system, root = open_hadoop_path(self._spark, self.path)
        complete = []
        for status in system.listStatus(root):
            found, number = status.getPath(), status.getPath().getName().removeprefix(f"{BATCH}=")
            if number == found.getName():
                continue
            if system.exists(open_hadoop_path(self._spark, f"{found}/{_SUCCESS}")[1]):
                complete.append(int(number))
            else:
                system.delete(found, True)
        return complete

    def count_names(self, scored: "DataFrame") -> Counter[str]:
        """Return how often each path occurs in the scores, whose columns are those of `scored`."""
        names = self.read(scored).select("path")
        return Counter(row.path for row in names.toLocalIterator())

    def name_batch(self, number: int) -> str:
        """Return the folder of a batch."""
        return f"{self.path}/{BATCH}={number}"

    def write(self, rows: "DataFrame", folder: str, mode: str = "overwrite") -> None:
        """Write rows into a folder of the output, one file for each value of the columns that become folders."""
        rows.repartition(1).write.mode(mode).partitionBy(*self._partition_by).parquet(folder)

    def count_rows(self, folder: str, scored: "DataFrame") -> tuple[int, int, int]:
        """Return the numbers of rows, errors and rejected images in a folder of scores."""
        from pyspark.sql.functions import count, count_if

        counted = self.read(scored, folder).agg(count("*"), count("error"), count_if("rejected"))
        (counts,) = counted.collect()
        return int(counts[0]), int(counts[1]), int(counts[2])

    def read(self, scored: "DataFrame", folder: str | None = None) -> "DataFrame":
        """Return the rows of a folder of the output, of all of it by default; the columns are those of `scored`."""
        return self._spark.read.schema(scored.schema).parquet(escape_pattern(folder or self.path))
