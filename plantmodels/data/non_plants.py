"""Folders of images that show no plant: one half chooses the detector, the other half measures it.

>>> images = read_non_plants(non_plants)
>>> selection, gate = images.half("selection"), images.half("gate")
>>> len(selection.paths) + len(gate.paths) == len(images.paths)
True
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, Literal

from plantmodels.data.digests import digest_content, digest_lines, hash_to_fraction
from plantmodels.data.groups import Groups, find_groups
from plantmodels.data.image_files import IMAGE_SUFFIXES, name_in_digest, name_in_report, printable_name
from plantmodels.data.inputs import check_image_folder
from plantmodels.data.listing import LeftOut, list_images
from plantmodels.errors import DataError
from plantmodels.foreign_text import name_some

_NAMED: Final = 5
"""Files that an error names."""

HALVES_BY: Final = "halves_by"
"""Entry of a detector's `fit` that says how the halves of the non-plants were made; older ones have none."""

BY_GROUP: Final = "group"
"""Value of that entry: groups went whole into a half."""


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

    @cached_property
    def groups(self) -> Groups:
        """Which images belong together: by folders `group=NAME`, and by what they show. Reads every image once."""
        return find_groups(self.root, self.paths)

    def digest(self) -> str:
        """Return the SHA-256 of the set, as `digest_images` does, from the contents that `groups` has read."""
        named = zip(self.paths, self.groups.digests, strict=True)
        return digest_lines(f"{name_in_digest(self.root, path)}\0{digest}\n" for path, digest in named)

    def half(self, which: Literal["selection", "gate"], *, whole_groups: bool = True) -> "NonPlantSet":
        """Return the half that may choose a detector, or the half that the gates measure.

        A group goes whole into one half, and its key decides. No image changes halves when images of other groups are
        added, renamed or moved to other folders.

        Args:
            which: the half.
            whole_groups: False for the halves of older bundles, where the content of each image decided.

        Raises:
            DataError: the half is empty because of a group that holds too many of the images.
        """
        bucket = 0 if which == "selection" else 1
        if whole_groups:
            places = self.groups.places()
        else:
            places = [hash_to_fraction(digest_content(path)) for path in self.paths]
        chosen = tuple(path for path, place in zip(self.paths, places, strict=True) if int(place * 2) == bucket)
        if not chosen and whole_groups and self.groups.largest[1] > 1:
            task = "chooses the detector" if which == "selection" else "measures the gates"
            raise DataError(
                f"{self.root}: the half of the non-plants that {task} is empty, because a group goes whole into a half "
                f"and {self.groups.describe_largest()}; give images of more groups"
            )
        return NonPlantSet(self.root, chosen)


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


def refuse_seen(gate_half: NonPlantSet, seen: Collection[str]) -> None:
    """Refuse non-plants of the gates' half that the network has learned from: the gates would be too good.

    Args:
        gate_half: the half that the gates measure.
        seen: SHA-256 of the content of each non-plant that the network has learned from.

    Raises:
        DataError: names the files.
    """
    if not seen:
        return
    learned = [path for path in gate_half.paths if digest_content(path) in seen]
    if learned:
        named = [name_in_report(gate_half.root, path) for path in learned]
        raise DataError(
            f"{gate_half.root}: the network was trained on {len(learned):,} of the {len(gate_half.paths):,} non-plants "
            f"that the gates measure: {name_some(named, _NAMED)}. Give the folder that it was trained with"
        )
