"""Reading and writing the files of a bundle: only regular files of bounded size, strict JSON, and whole replacements.

>>> write_json(tmp / "a.json", {"b": 1})
>>> read_json(tmp / "a.json")
{'b': 1}
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, overload

from plantmodels.bundle.serialization import parse_json_text
from plantmodels.errors import BundleError

StrPath = str | os.PathLike[str]
"""What a public function accepts as a path; `as_path` makes a `Path` of it."""

MAX_JSON_BYTES = 32 * 2**20
"""Far above every JSON file of a bundle: 1,000 species with 40 diseases each take 2 MB."""


@overload
def as_path(path: StrPath) -> Path: ...
@overload
def as_path(path: None) -> None: ...
def as_path(path: StrPath | None) -> Path | None:
    """Return a path that a user gave as a `Path`; None stays None.

    >>> as_path("models") == Path("models"), as_path(None)
    (True, None)
    """
    return None if path is None else Path(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object, strictly.

    Raises:
        BundleError: the file cannot be read (`read_bytes`), is larger than `MAX_JSON_BYTES`, or is not UTF-8 JSON of
            one object without repeated keys, NaN or infinity.
    """
    return parse_json(path, read_bytes(path, MAX_JSON_BYTES))


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a regular file. Refuse a file larger than `max_bytes` without reading it.

    Raises:
        BundleError: the path is a symbolic link or not a regular file, or the file is too large or unreadable.
    """
    try:
        size_bytes = path.lstat().st_size
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path}: expected a regular file")
        if size_bytes > max_bytes:
            raise BundleError(f"{path}: {size_bytes:,} bytes, at most {max_bytes:,} are read")
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error


def parse_json(path: Path, content: bytes) -> dict[str, Any]:
    """Return the JSON object in a file's content, as `read_json` does; the path is used only in errors.

    Raises:
        BundleError: the content is not UTF-8 JSON of one object without repeated keys, NaN or infinity.
    """
    try:
        document = parse_json_text(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: not UTF-8 text") from error
    except ValueError as error:
        raise BundleError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(document, dict):
        raise BundleError(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write one JSON object, its keys in the given order, as `write_bytes` does."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step: readers see the old content or the new content, never a part."""
    with replace_file(path) as file:
        file.write(data)


@contextmanager
def replace_file(path: Path) -> Iterator[IO[bytes]]:
    """Give a new file to write, which takes the place of `path` when the block ends without an error."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
