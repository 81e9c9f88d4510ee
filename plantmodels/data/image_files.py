"""Names of image files: which suffixes count as images, and how digests and reports name an image."""

from pathlib import Path
from typing import Final

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")
"""Compared in lower case; files with other suffixes are ignored."""


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

    A report travels with the bundle, so it must not contain the paths of the machine that made it.

    >>> name_in_report(Path("data"), Path("elsewhere/1.jpg"))
    '1.jpg'
    """
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
