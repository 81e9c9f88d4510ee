"""Digests that identify a set of images, and the stable pseudo-random numbers that split such sets.

The order of the images does not matter: a digest stays the same when files are listed in another order.
"""

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from plantmodels.data.image_files import name_in_digest

_BLOCK_BYTES: Final = 2**20
"""Most images are smaller, and are read by one call."""

UNREADABLE: Final = "unreadable"
"""Stands for the digest of a file that cannot be read."""


def hash_to_fraction(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone; different texts give evenly spread numbers.

    >>> round(hash_to_fraction("leaf 1.jpg"), 6), round(hash_to_fraction("leaf 2.jpg"), 6)
    (0.946487, 0.859704)
    """
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:6]) / 2**48


def digest_images(root: Path, paths: Iterable[Path]) -> str:
    """Return the SHA-256 of a set of image files: of their names relative to the root and their contents.

    Unreadable files are no error here, because `ImageStream` decides which to skip; only their names are digested.
    """
    return digest_lines(f"{name_in_digest(root, path)}\0{digest_content(path)}\n" for path in paths)


def digest_lines(lines: Iterable[str]) -> str:
    """Return the SHA-256 of lines in alphabetical order, one for each image. Names keep bytes that are not UTF-8."""
    sha256 = hashlib.sha256()
    for line in sorted(lines):
        sha256.update(line.encode("utf-8", "surrogateescape"))
    return sha256.hexdigest()


def digest_content(path: Path) -> str:
    """Return the SHA-256 of a regular file's content, or `UNREADABLE`. Symbolic links are followed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would block
    except OSError:
        return UNREADABLE
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return UNREADABLE
        sha256 = hashlib.sha256()
        while block := os.read(descriptor, _BLOCK_BYTES):
            sha256.update(block)
        return sha256.hexdigest()
    except OSError:
        return UNREADABLE
    finally:
        os.close(descriptor)
