"""Errors of Spark are one line: the cause, the file and what to do."""

import pytest

from mlflow_plugins.jobs.scoring.failures import describe_failure


def test_the_last_error_in_a_message_is_the_cause() -> None:
    message = "[STREAM_FAILED] Query\nTraceback\npyspark.errors.PythonException: thrown\nValueError: no\n SQLSTATE: 1"
    assert describe_failure(message).startswith("Spark: ValueError: no; complete batches are kept")
    assert describe_failure("[PATH_NOT_FOUND] it is\nnot there").startswith("Spark: [PATH_NOT_FOUND] it is not there; ")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "An error occurred while calling o9.load.\n: java.lang.IllegalArgumentException: "
            "java.net.URISyntaxException: "
            "Relative path in absolute URI: 10:32.jpg\n\tat org.apache.hadoop.fs.Path.initialize(Path.java:263)\n"
            "Caused by: java.net.URISyntaxException: Relative path in absolute URI: 10:32.jpg\n\t... 20 more",
            "Spark: java.net.URISyntaxException: Relative path in absolute URI: 10:32.jpg; Hadoop takes no colon",
        ),
        (
            "org.apache.spark.SparkException: Job aborted: Task 0 failed\n"
            "[CANNOT_READ_FILE_FOOTER] Could not read footer for file: file:/data/a.parquet. Please ensure\n"
            "Caused by: java.lang.RuntimeException: it is not a Parquet file. Expected magic number at tail",
            "Spark: java.lang.RuntimeException: it is not a Parquet file. Expected magic number at tail "
            "(file:/data/a.parquet); write the file again",
        ),
        (
            'org.apache.hadoop.fs.UnsupportedFileSystemException: No FileSystem for scheme "s3"',
            'No FileSystem for scheme "s3"; Spark lacks the connector for such addresses',
        ),
        ("[JAVA_GATEWAY_EXITED] Java gateway process exited before sending its port number.", "needs Java 17"),
        ("java.io.IOException: No space left on device", "No space left on device; make space on the disk"),
        ("org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)", "ran out of memory"),
        ("[PYTHON_VERSION_MISMATCH] Python in worker has different version", "the same version of Python"),
        ("ModuleNotFoundError: No module named 'onnxruntime'", "install the package on every machine"),
        ("org.apache.spark.SparkException: Could not parse Master URL: 'here'", "expected a master such as local"),
        ("java.io.IOException: Mkdirs failed to create file:/out/_temporary", "file:/out/_temporary; choose places"),
        (
            "Cannot list file:///in,%20b/10:32.jpg, which\n"
            "Caused by: java.net.URISyntaxException: Relative path: .10:32.jpg.crc",
            "(file:///in,%20b/10:32.jpg); complete batches",
        ),
    ],
)
def test_a_failure_names_cause_file_and_what_to_do(message: str, expected: str) -> None:
    line = describe_failure(message)
    assert expected in line and "\n" not in line and "\tat" not in line
