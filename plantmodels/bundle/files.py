"""Files read only if regular and bounded; strict JSON without repeated keys or NaN; written whole or not at all.

>>> write_json(Path("a.json"), {"b": 1})  # doctest: +SKIP
>>> read_json(Path("a.json"))  # doctest: +SKIP
{'b': 1}
"""

import json
import math
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from plantmodels.errors import BundleError

MAX_JSON_BYTES = 32 * 2**20
"""No document of a bundle comes near it: 1,000 species with 40 diseases each take 2 MB."""


def read_json(path: Path) -> dict[str, Any]:
    """Reads one JSON object.

    Raises:
        BundleError: as `read_bytes` for `MAX_JSON_BYTES`; not UTF-8 JSON, not an object, a key that is repeated, or
            NaN or infinity.
    """
    return parse_json(path, read_bytes(path, MAX_JSON_BYTES))


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """All bytes of a regular file, of which a larger one is not read at all.

    Raises:
        BundleError: a symbolic link, not a regular file, too large, or unreadable.
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
    """The same for a file whose bytes are at hand; the path only names it.

    Raises:
        BundleError: as `read_json`.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: not UTF-8 text") from error
    try:
        document = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_parse_finite
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not the JSON expected ({error})") from error
    if not isinstance(document, dict):
        raise BundleError(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"key {key!r} is repeated")
        document[key] = value
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _parse_finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes one JSON object, keys in the order given, to a temporary file that then takes the name."""
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces a file as one step: readers see the old content or the new, never a part."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
