"""Digests of images and of labelled images, whatever their order, and the fractions that split sets by them."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from plantmodels.bundle.manifest import digest_file
from plantmodels.data.image_files import name_in_digest
from plantmodels.errors import BundleError

if TYPE_CHECKING:
    from plantmodels.data.leaves import LeafSet


def hash_to_fraction(text: str) -> float:
    """A number in [0, 1) that follows from the text, evenly spread."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def digest_images(root: Path, paths: Iterable[Path]) -> str:
    """SHA-256 over the names relative to the root and the contents of image files, whatever their order.

    A file that cannot be read counts by its name: skipping it is `stream_images`' to decide.
    """
    return _digest_lines(f"{name_in_digest(root, path)}\0{digest_content(path)}\n" for path in paths)


def digest_leaves(leaves: "LeafSet") -> str:
    """SHA-256 over names, labels and contents of labelled images, whatever their order."""
    return _digest_lines(
        f"{name_in_digest(leaves.root, s.path)}\0{s.species_index}\0{s.disease_index}\0{digest_content(s.path)}\n"
        for s in leaves.samples
    )


def _digest_lines(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def digest_content(path: Path) -> str:
    """Return the SHA-256 of a file, links followed, or "unreadable" where it cannot be read."""
    try:
        return digest_file(path.resolve()).sha256
    except BundleError:
        return "unreadable"
