"""Listing what lies below a URI: what Spark's file source would find, with its sizes, whatever the names are."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from mlflow_plugins.jobs.scoring import hadoop_listing
from mlflow_plugins.jobs.scoring.hadoop_listing import list_files
from mlflow_plugins.jobs.scoring.sources import read_folder
from mlflow_plugins.jobs.scoring.spark import spark_session

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # py4j's sockets
    pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed"),
]

FOUND = (
    "a.jpg",
    "b; isDirectory=true; length=7; c.JPEG",
    "line\nbreak %20 [1] {é}.png",
    "deep/er/d.webp",
    "deep/_part=1/e.jpg",
    "_metadata 2/_common_metadata/g.jpg",
    "_x=1.jpg",
    "in, {a}*/f.Png",
)
LEFT_OUT = (
    ".a.jpg",
    "_b.jpg",
    "notes.txt",
    "jpg",
    ".hidden/a.jpg",
    "_temporary/a.jpg",
    "a.jpg.part",
    "b._COPYING_/a.jpg",
    ".x=1.jpg",
)


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    with spark_session("local[2]") as session:
        yield session


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for size, name in enumerate((*FOUND, *LEFT_OUT)):
        file = tmp_path / "in [1]" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(size))
    return tmp_path / "in [1]"


@pytest.mark.parametrize("printed", ["as Hadoop prints it", "in other words"])
def test_every_image_is_found_once_with_its_size(
    spark: SparkSession, folder: Path, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a file system prints its entries in other words, each entry is asked."""
    if printed == "in other words":
        monkeypatch.setattr(hadoop_listing, "_STATUS", re.compile("ObjectStatus"))
    rows = list_files(spark, f"file://{folder}").collect()
    assert sorted((row.path, row.length) for row in rows) == sorted(
        (f"file:{folder}/{name}", size) for size, name in enumerate(FOUND)
    )


def test_spark_finds_the_same_files(spark: SparkSession, folder: Path) -> None:
    theirs = {row.path: row.length for row in read_folder(spark.read, f"file://{folder}").collect()}
    ours = {row.path: row.length for row in list_files(spark, f"file://{folder}").collect()}
    assert theirs | {f"file:{folder}/a.jpg": 0} == ours  # Spark reads no empty file


def test_the_bar_counts_the_files_of_each_folder(
    spark: SparkSession, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []

    monkeypatch.setattr(hadoop_listing, "log_step", lambda *_, **__: contextlib.nullcontext(steps.append))
    list_files(spark, f"file://{folder}")
    assert sum(steps) == len(FOUND) and len(steps) == 7  # the root, and six folders below it


def test_an_empty_folder_has_no_image(spark: SparkSession, tmp_path: Path) -> None:
    assert list_files(spark, f"file://{tmp_path}").collect() == []
