"""Folders of images that show no plant: one half chooses the detector, the other half measures it.

>>> images = read_non_plants(non_plants)
>>> selection, gate = images.half("selection"), images.half("gate")
>>> len(selection.paths) + len(gate.paths) == len(images.paths)
True
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from plantmodels.data.digests import digest_content, hash_to_fraction
from plantmodels.data.image_files import IMAGE_SUFFIXES, printable_name
from plantmodels.data.inputs import check_image_folder
from plantmodels.data.listing import LeftOut, list_images
from plantmodels.errors import DataError


@dataclass(frozen=True)
class NonPlantSet:
    """Images below one folder, sorted by path.

    Attributes:
        root: the folder.
        paths: N image files.
        left_out: the files of the folder that are not taken as images.
    """

    root: Path
    paths: tuple[Path, ...]
    left_out: LeftOut = field(default=LeftOut(), compare=False)

    def source_of(self, path: Path) -> str:
        """Return the name of the subfolder of `root` that contains an image; "." if `root` itself contains it."""
        parts = path.relative_to(self.root).parts
        return printable_name(parts[0]) if len(parts) > 1 else "."

    def half(self, which: Literal["selection", "gate"]) -> "NonPlantSet":
        """Return the half that may choose a detector, or the half that the gates measure.

        An image's content alone decides which half it belongs to. No image changes halves when images are added,
        renamed or moved to other folders.
        """
        bucket = 0 if which == "selection" else 1
        return NonPlantSet(
            self.root, tuple(p for p in self.paths if int(hash_to_fraction(digest_content(p)) * 2) == bucket)
        )


def read_non_plants(folder: Path, kind: str = "non-plants") -> NonPlantSet:
    """Return all images below a folder, at any depth; opens none of them.

    Args:
        folder: where to search.
        kind: name of such images in error messages.

    Raises:
        DataError: the folder does not exist or contains no image.
    """
    check_image_folder(folder, kind)
    listing = list_images(folder)
    if not listing.paths:
        seen = listing.left_out.describe(f"; {kind}")
        raise DataError(f"{folder}: holds no images of type {', '.join(IMAGE_SUFFIXES)}{seen}")
    return NonPlantSet(folder, listing.paths, listing.left_out)
