"""Errors of Spark as one line: the cause, the file where there is one, and what to do.

>>> print(describe_failure("java.net.URISyntaxException: Relative path in absolute URI: 10:32.jpg"))
... # doctest: +NORMALIZE_WHITESPACE
Spark: java.net.URISyntaxException: Relative path in absolute URI: 10:32.jpg; Hadoop takes no colon in a file name:
rename the file, or give a folder of this machine as a path
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from plantmodels.errors import ScoringError
from plantmodels.foreign_text import quote_error

_CAUSE: Final = re.compile(r"^(?:Caused by: )?((?:[\w$]+\.)*[\w$]*(?:Error|Exception)\b.*)", re.MULTILINE)
_FILE: Final = re.compile(r"(?:file|hdfs|s3a?|gs|abfss?|wasbs?):/(?:[^\s,;'\"]|,(?=\S))+[^\s,;'\".)]")

_ADVICE: Final = (
    (
        r"Relative path in absolute URI",
        "Hadoop takes no colon in a file name: rename the file, or give a folder of this machine as a path",
    ),
    (
        r"No FileSystem for scheme|FileSystem not found",
        "Spark lacks the connector for such addresses; name its package in PYSPARK_SUBMIT_ARGS, such as "
        '"--packages org.apache.hadoop:hadoop-aws:3.4.2 pyspark-shell" for s3a://',
    ),
    (r"JAVA_GATEWAY_EXITED|UnsupportedClassVersion", "Spark needs Java 17: see java -version and JAVA_HOME"),
    (r"No space left", "make space on the disk of the output, or name another disk in SPARK_LOCAL_DIRS"),
    (
        r"OutOfMemory|exited unexpectedly|WORKER_CRASHED|heap space",
        "a worker ran out of memory; use fewer cores, such as local[1], or more memory, then repeat the command",
    ),
    (r"PYTHON_VERSION_MISMATCH", "let PYSPARK_PYTHON name the same version of Python on every machine"),
    (r"ModuleNotFoundError|No module named", "install the package on every machine that Spark uses"),
    (r"[Cc]ould not parse Master URL", "expected a master such as local[*] or spark://HOST:7077"),
    (r"Mkdirs failed|Permission denied|AccessControl", "choose places that Spark may read and write"),
    (r"CANNOT_READ_FILE|[Ff]ooter|not a Parquet file", "write the file again, or remove it"),
)  # fmt: skip
"""Words of an error, and what a person can do about it."""

_REPEAT: Final = "complete batches are kept: repeat the command to score the others"


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
        raise ScoringError(describe_failure(str(error))) from error


def describe_failure(message: str) -> str:
    """Return a message of Spark's as one line: its cause, the file that it names, and what to do."""
    cause = _find_cause(message)
    file = next((found for found in _FILE.findall(message) if found not in cause), None)
    named = f" ({file})" if file is not None and not _FILE.search(cause) else ""
    advice = next((advice for words, advice in _ADVICE if re.search(words, message)), _REPEAT)
    return f"Spark: {cause}{named}; {advice}"


def _find_cause(message: str) -> str:
    """Return the last error in a message of Spark's, which is the cause that Spark wraps several times over."""
    causes = [cause for cause in _CAUSE.findall(message) if ": " in cause]
    return quote_error(causes[-1] if causes else message).rstrip(".")
