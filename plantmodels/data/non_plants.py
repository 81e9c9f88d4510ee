"""Folders of images that show no plant, and the halves that choose a detector and that gates measure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plantmodels.data.digests import digest_content, hash_to_fraction
from plantmodels.data.image_files import IMAGE_SUFFIXES
from plantmodels.errors import DataError


@dataclass(frozen=True)
class NonPlantSet:
    """Images of no plant; the first folder below the root is an image's source."""

    root: Path
    paths: tuple[Path, ...]

    def source_of(self, path: Path) -> str:
        """Name of the folder that the image lies in, "." for the root itself."""
        parts = path.relative_to(self.root).parts
        return parts[0] if len(parts) > 1 else "."

    def half(self, which: Literal["selection", "gate"]) -> "NonPlantSet":
        """The half that may choose a detector, or the half that gates measure.

        Membership follows from an image's content alone: neither adding nor renaming images, nor giving another
        folder above or below, moves one to the other half.
        """
        bucket = 0 if which == "selection" else 1
        return NonPlantSet(
            self.root, tuple(p for p in self.paths if int(hash_to_fraction(digest_content(p)) * 2) == bucket)
        )


def read_non_plants(folder: Path, kind: str = "non-plants") -> NonPlantSet:
    """Lists all images below a folder, sorted.

    Args:
        folder: of any depth.
        kind: what to call them in an error.

    Raises:
        DataError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of {kind}")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise DataError(f"{folder}: holds no images of type {', '.join(IMAGE_SUFFIXES)}")
    return NonPlantSet(folder, tuple(paths))
