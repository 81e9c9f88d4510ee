"""The function that reads files on Spark's workers, which need not have this project."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from mlflow_plugins.jobs.scoring.local_files import build_reader


def read(files: dict[str, bytes]) -> dict[str, tuple[bytes | None, str | None]]:
    batch = pa.RecordBatch.from_pylist([{"file": file, "path": name} for name, file in files.items()])
    rows = [row for found in build_reader(10)([batch]) for row in found.to_pylist()]
    return {row["path"]: (row["image"], row["read_error"]) for row in rows}


def test_a_file_is_content_or_a_reason(tmp_path: Path) -> None:
    (tmp_path / "a:b").write_bytes(b"1234")
    (tmp_path / "empty").touch()
    (tmp_path / "large").write_bytes(b"x" * 11)
    (tmp_path / "link").symlink_to("absent")
    os.mkfifo(tmp_path / "pipe")
    folder = os.fsencode(tmp_path)
    Path(os.fsdecode(folder + b"/caf\xe9")).write_bytes(b"5")
    names = [b"a:b", b"empty", b"large", b"link", b"pipe", b"absent", b"caf\xe9", b"."]
    assert read({name.decode("latin1"): folder + b"/" + name for name in names}) == {
        "a:b": (b"1234", None),
        "empty": (b"", None),
        "large": (None, "a file of 11 bytes: at most 10 are read"),
        "link": (None, "cannot be read (a link to nothing)"),
        "pipe": (None, "cannot be read (not a regular file)"),
        "absent": (None, "cannot be read (no such file here)"),
        "caf\xe9": (b"5", None),
        ".": (None, "cannot be read (Is a directory)"),
    }


def test_a_file_that_may_not_be_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may read everything
    assert read({"locked": b"locked"}) == {"locked": (None, "cannot be read (Permission denied)")}


def test_its_code_travels_along(tmp_path: Path) -> None:
    cloudpickle = pytest.importorskip("pyspark.cloudpickle")
    (tmp_path / "reader").write_bytes(cloudpickle.dumps(build_reader(10)))
    (tmp_path / "x").write_bytes(b"12")
    script = (
        "import pickle, sys, pyarrow as pa; sys.modules['mlflow_plugins'] = sys.modules['plantmodels'] = None\n"
        "read = pickle.load(open('reader', 'rb'))\n"
        "batch = pa.RecordBatch.from_pylist([{'file': b'x', 'path': 'x'}])\n"
        "print(next(iter(read([batch]))).to_pylist()[0]['image'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "b'12'"
