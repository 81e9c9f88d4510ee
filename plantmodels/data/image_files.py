"""Names of image files: which suffixes count as images, and how digests and reports name an image."""

import re
from pathlib import Path
from typing import Final

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")
"""Compared in lower case. `plantmodels.data.listing` says what happens to files with other suffixes."""


_NOT_UTF8: Final = re.compile(r"[\ud800-\udfff]")
"""Python's stand-ins for bytes of a file name that are not UTF-8. No file, database or JSON document can hold them."""


def printable_name(name: str) -> str:
    r"""Return a file name, or text that contains one, as text that every file and database can hold.

    Bytes of the name that are not UTF-8 are written as `\xe9`; every other name is returned as it is.

    >>> import os
    >>> print(printable_name(os.fsdecode(b"caf\xe9.jpg")))
    caf\xe9.jpg
    """
    return _NOT_UTF8.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", name)


def name_in_digest(root: Path, path: Path) -> str:
    """Return the name under which an image enters a digest.

    It is relative to the root of the image's set, so that moving the set changes no digest. An image outside the root
    (a manifest may list one) keeps its whole path.

    >>> name_in_digest(Path("data"), Path("data/val/Apple___rot/1.jpg"))
    'val/Apple___rot/1.jpg'
    """
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def name_in_report(root: Path, path: Path) -> str:
    """Return the name of an image in a report: relative to the root, or the bare file name if it lies outside.

    A report travels with the bundle, so it must not contain the paths of the machine that made it. Bytes that are not
    UTF-8 are written as `printable_name` does.

    >>> name_in_report(Path("data"), Path("elsewhere/1.jpg"))
    '1.jpg'
    """
    return printable_name(path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name)
