"""Lists the image files below a URI as Spark's file source finds them, with a bar that advances.

Hadoop lists a folder, and Python gets all its entries in one answer: an answer for each file takes minutes for a
million files.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mlflow_plugins.jobs.scoring.sources import SUFFIXES
from mlflow_plugins.jobs.scoring.spark import open_hadoop_path
from plantmodels.data.progress import log_step

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_LOGGER: Final = logging.getLogger(__name__)

_AT_ONCE: Final = 8
"""Folders that are listed at once; each may be a request to a distant store."""

_ENDINGS: Final = tuple(f".{suffix}" for suffix in SUFFIXES)

_STATUS: Final = re.compile(r"\w*FileStatus\{path=(.*); isDirectory=(true|false)(?:; length=(\d+))?;", re.DOTALL)
"""How Hadoop prints an entry of a folder. The path is printed as it is, so it may hold these words too."""


@dataclass
class _Found:
    """What one folder holds: path and size of its image files, and Hadoop's paths of the folders in it."""

    files: list[tuple[str, int]] = field(default_factory=list)
    folders: list[Any] = field(default_factory=list)


def list_files(spark: "SparkSession", images: str) -> "DataFrame":
    """Return path and length of every image file at any depth, and log their number.

    Files and folders are left out by their names as Spark leaves them out (`_is_left_out`).
    """
    system, root = open_hadoop_path(spark, images)
    files: list[tuple[str, int]] = []
    java = spark.sparkContext._jvm
    with log_step("list images", unit="file") as advance, ThreadPoolExecutor(_AT_ONCE) as pool:
        level = [root]
        while level:
            below = []
            for found in pool.map(lambda folder: _list_folder(java, system, folder), level):
                files += found.files
                below += found.folders
                advance(len(found.files))
            level = below
    _LOGGER.info("%s: %s image files", images, f"{len(files):,}")
    return spark.createDataFrame(files, "path string, length long")


def _list_folder(java: Any, system: Any, folder: Any) -> _Found:
    entries = java.org.apache.hadoop.util.functional.RemoteIterators.toList(system.listStatusIterator(folder))
    text = java.org.apache.hadoop.util.StringUtils.join("\0", entries)
    found = _Found()
    for place, (path, is_folder, size) in enumerate(_read_entries(text.split("\0") if text else [], entries)):
        name = path.rpartition("/")[2]
        if _is_left_out(name, is_folder):
            continue
        if is_folder:
            found.folders.append(entries[place].getPath())
        elif name.lower().endswith(_ENDINGS):
            found.files.append((path, size))
    return found


def _is_left_out(name: str, is_folder: bool) -> bool:
    """Return whether Spark ignores a file or folder of this name.

    It ignores names that begin with a dot or an underscore, and those of unfinished copies. It keeps names that begin
    with an underscore and hold "=" (partitions), and folders whose name begins with `_metadata` or `_common_metadata`
    (`HadoopFSUtils.shouldFilterOutPathName`, and for files `PartitioningAwareFileIndex.isDataPath` too).
    """
    if is_folder and name.startswith(("_metadata", "_common_metadata")):
        return False
    return name.startswith(".") or name.endswith("._COPYING_") or (name.startswith("_") and "=" not in name)


def _read_entries(texts: Sequence[str], entries: Iterable[Any]) -> list[tuple[str, bool, int]]:
    """Return path, whether it is a folder, and size of each entry, from how the entries are printed.

    If a file system prints its entries in other words, each entry is asked.
    """
    matches = [_STATUS.match(text) for text in texts]
    known = [(match[1], match[2] == "true", int(match[3] or 0)) for match in matches if match is not None]
    if len(known) == len(texts):
        return known
    return [(str(entry.getPath()), bool(entry.isDirectory()), int(entry.getLen())) for entry in entries]
