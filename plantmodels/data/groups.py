"""Images that belong together: frames of one film, copies of one image, photographs of one plant.

Images of a group are not independent. A group goes whole to one side of every split, or what is measured on one side
has been seen on the other. Three things make a group:

- the same text in the column `group` of a manifest
- a folder named `group=NAME` above the images, such as `Rose___spot/group=plant 12/3.jpg`
- images that show the same (`plantmodels.data.duplicates`): copied, encoded anew, resized, cropped, mirrored or turned

A group's key is its name or, if it has none, the content of one of its images. Images that are added or renamed move no
other group to another side.

>>> groups = Groups.of(["plant 12", "", "plant 12"], ["a1", "b2", "c3"])
>>> groups.keys, groups.largest
(('plant 12', 'b2', 'plant 12'), ('plant 12', 2))
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from plantmodels.bundle.calibration import MAX_DISTANCE
from plantmodels.data.digests import UNREADABLE, digest_content, hash_to_fraction
from plantmodels.data.duplicates import DuplicateIndex, Fingerprint, take_fingerprints
from plantmodels.data.image_files import printable_name
from plantmodels.data.listing import GROUP_PREFIX
from plantmodels.data.progress import log_step, track

MAX_SEARCHED: Final = 20_000
"""Among more images, copies are found by their bytes alone: the search would take longer than the embedding."""

_LOGGER: Final = logging.getLogger(__name__)


def name_group(root: Path, path: Path) -> str:
    """Return the name of the group that the folders of an image give it; "" for none.

    Args:
        root: folder of the data set; what lies above it gives no name.
        path: the image.
    """
    folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    names = [folder.removeprefix(GROUP_PREFIX) for folder in folders if folder.startswith(GROUP_PREFIX)]
    return printable_name("/".join(names))


@dataclass(frozen=True)
class Groups:
    """Which of N images belong together.

    Attributes:
        keys: (N,) text that is the same for the images of a group, and different for different groups.
        digests: (N,) digest of each image's content.
    """

    keys: tuple[str, ...]
    digests: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str], digests: Sequence[str], alike: Iterable[tuple[int, int]] = ()) -> "Groups":
        """Return groups from what is known of N images.

        Args:
            names: (N,) name of each image's group; "" for none.
            digests: (N,) digest of each image's content, or other text that stays with the image.
            alike: pairs of places of images that show the same.
        """
        roots = list(range(len(names)))
        first: dict[tuple[str, str], int] = {}

        def find(place: int) -> int:
            while roots[place] != place:
                roots[place] = roots[roots[place]]
                place = roots[place]
            return place

        for place, (name, digest) in enumerate(zip(names, digests, strict=True)):
            for same in (("name", name), ("content", digest)):
                if same[1] not in ("", UNREADABLE):
                    roots[find(place)] = find(first.setdefault(same, place))
        for one, other in alike:
            roots[find(one)] = find(other)
        members = defaultdict(list)
        for place in range(len(names)):
            members[find(place)].append(place)
        keys = {
            root: min(filter(None, (names[place] for place in places)), default="")
            or min(digests[place] for place in places)
            for root, places in members.items()
        }
        return cls(tuple(keys[find(place)] for place in range(len(names))), tuple(digests))

    @property
    def sizes(self) -> Counter[str]:
        """Key of each group to its number of images."""
        return Counter(self.keys)

    @property
    def largest(self) -> tuple[str, int]:
        """Key and size of the largest group; "" and 0 without images."""
        return self.sizes.most_common(1)[0] if self.keys else ("", 0)

    def places(self, salt: str = "") -> list[float]:
        """Return (N,) numbers in [0, 1) that are the same for all images of a group, and evenly spread over groups.

        A group of one unnamed image has the number of its content alone.

        Args:
            salt: other text gives other numbers.
        """
        found = {key: hash_to_fraction(salt + key) for key in self.sizes}
        return [found[key] for key in self.keys]

    def describe_largest(self) -> str:
        """Return the largest group and its size in words, for the error that a part is empty."""
        key, size = self.largest
        return f"the largest group, {key!r:.80}, holds {size:,} of {len(self.keys):,} images"


class Contents:
    """What was read of image files, so that each is read once.

    Attributes:
        digests: path of each file that was read to the digest of its content.
        fingerprints: path to fingerprint, of the files that `read` was given in small enough sets.
    """

    def __init__(self) -> None:
        """Start without files."""
        self.digests: dict[Path, str] = {}
        self.fingerprints: dict[Path, Fingerprint] = {}

    def read(self, paths: Sequence[Path]) -> None:
        """Read the files that were not read before, with a bar; of more than `MAX_SEARCHED` files the digests alone."""
        search = len(paths) <= MAX_SEARCHED
        missing = [path for path in dict.fromkeys(paths) if path not in (self.fingerprints if search else self.digests)]
        if not missing:
            return
        with log_step("search for copies" if search else "digest images", total=len(missing), unit="image") as advance:
            if search:
                for path, found in zip(missing, take_fingerprints(missing, all_views=True), strict=True):
                    self.fingerprints[path] = found
                    self.digests[path] = found.sha256 or digest_content(path)
                    advance()
            else:
                for path in missing:
                    self.digests[path] = digest_content(path)
                    advance()


def find_groups(
    root: Path, paths: Sequence[Path], names: Sequence[str] | None = None, contents: Contents | None = None
) -> Groups:
    """Return the groups of images: by name, and by what they show. Reads every image that was not read before.

    An image that cannot be decoded is grouped by its name and bytes alone.

    Args:
        root: folder of the data set.
        paths: N images.
        names: (N,) name of each image's group, "" for none; None for those that its folders give.
        contents: what was read before, to which the other images are added; None reads every image.
    """
    names = [name_group(root, path) for path in paths] if names is None else names
    contents = Contents() if contents is None else contents
    contents.read(paths)
    digests = [contents.digests[path] for path in paths]
    if len(paths) > MAX_SEARCHED:
        _LOGGER.warning("%s: of %d images, copies are found by their bytes alone; name groups", root, len(paths))
        return Groups.of(names, digests)
    return Groups.of(names, digests, _list_alike([contents.fingerprints[path] for path in paths]))


def _list_alike(fingerprints: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
    """Yield the places of two images that show the same, for each pair of such images."""
    index = DuplicateIndex(fingerprints, max_distance=MAX_DISTANCE)
    for place, fingerprint in enumerate(track(fingerprints, "compare images", unit="image")):
        yield from ((place, match.position) for match in index.find(fingerprint) if match.position != place)
