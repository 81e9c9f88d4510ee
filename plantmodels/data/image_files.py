"""Names of image files: which suffixes count, and what digests and reports call an image."""

from pathlib import Path
from typing import Final

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")


def name_in_digest(root: Path, path: Path) -> str:
    """Return the name under which an image enters a digest: relative to the root, the whole path outside it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def name_below(root: Path, path: Path) -> str:
    """What reports call an image: its name relative to its set's folder, or the bare name outside it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
