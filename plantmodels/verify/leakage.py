"""Searches for validation images that are also training images, non-plants, or validation images of another class.

The same search finds the groups that have images in both train and val.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from plantmodels.bundle.calibration import MAX_DISTANCE
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.data.duplicates import DuplicateIndex, Fingerprint, Match, take_fingerprints
from plantmodels.data.groups import Groups
from plantmodels.data.image_files import name_in_report, printable_name
from plantmodels.data.leaves import LeafSample, LeafSet, read_leaves
from plantmodels.data.non_plants import NonPlantSet
from plantmodels.data.progress import log_step
from plantmodels.errors import DataError
from plantmodels.report.evidence.accuracy import name_class
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.leakage import Leak, Leakage, Twin, TwinSet, count_crossing
from plantmodels.report.per_image import ImageRow

_LOGGER: Final = logging.getLogger(__name__)
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class LeakageRun:
    """The result of the search, and where its images are.

    Attributes:
        leakage: the leaks.
        pairs: for each leak, the file of the validation image and the file of the image that shows the same.
        rows: the rows of the validation images, which now say which group they share with training images.
    """

    leakage: Leakage
    pairs: tuple[tuple[Path, Path], ...]
    rows: tuple[ImageRow, ...]


@dataclass(frozen=True)
class _Image:
    """An image that the validation images are compared with."""

    set: TwinSet
    path: Path
    name: str
    source: str
    group: str = ""


@dataclass(frozen=True)
class _Found:
    """What a validation image was found to be, and the file of the other image."""

    leak: Leak
    path: Path


def read_training_leaves(data: Path, taxonomy: Taxonomy) -> LeafSet | None:
    """Return the split "train" of the data; None, with a logged warning, if it is missing or cannot be read."""
    try:
        return read_leaves(data, "train", taxonomy)
    except DataError as error:
        _LOGGER.warning("the gate leakage cannot be measured: %s", error)
        return None


def measure_leakage(
    samples: Sequence[LeafSample],
    rows: Sequence[ImageRow],
    train: LeafSet,
    non_plants: NonPlantSet | None,
    taxonomy: Taxonomy,
) -> LeakageRun:
    """Compare every validation image with all training images, all non-plants, and those of other classes.

    An image that cannot be decoded is compared by its bytes alone.

    Args:
        samples: N validation leaves.
        rows: N rows, the answers for each image.
        train: the training leaves.
        non_plants: images that show no plant, or None.
        taxonomy: the names of the classes.
    """
    paths = [sample.path for sample in samples]
    own = [_Image("val", s.path, row.name, row.source, s.group) for s, row in zip(samples, rows, strict=True)]
    others = [*_list_training(train, taxonomy), *_list_non_plants(non_plants)]
    best: dict[int, _Found] = {}
    digests: list[str] = []
    alike: list[tuple[int, int]] = []
    with log_step("search for leaks", total=len(own) + len(others), unit="image") as advance:
        fingerprints = list(_count(take_fingerprints(paths, all_views=True), advance))
        index = DuplicateIndex(fingerprints, max_distance=MAX_DISTANCE)
        rest = _count(take_fingerprints(image.path for image in others), advance)
        for images, taken in ((own, iter(fingerprints)), (others, rest)):
            for image, fingerprint in zip(images, taken, strict=True):
                matches = index.find(fingerprint)
                alike += [(len(digests), match.position) for match in matches if image.set != "non-plants"]
                digests.append(fingerprint.sha256)
                for position, leak in _list_leaks(matches, own, fingerprints, image, fingerprint):
                    if position not in best or _rank(leak) < _rank(best[position].leak):
                        best[position] = _Found(leak, image.path)
    found = [(paths[position], best[position]) for position in sorted(best)]
    compared: dict[TwinSet, int] = {"val": len(own), "train": len(train.samples)}
    compared["non-plants"] = 0 if non_plants is None else len(non_plants.paths)
    leaves = [*own, *(image for image in others if image.set == "train")]
    groups = Groups.of([image.group for image in leaves], digests[: len(leaves)], alike)
    grouped = _name_shared(rows, groups)
    crossing = count_crossing(ImageTable.from_rows(grouped))
    leakage = Leakage(compared, tuple(each.leak for _, each in found), crossing)
    return LeakageRun(leakage, tuple((path, each.path) for path, each in found), grouped)


def _name_shared(rows: Sequence[ImageRow], groups: Groups) -> tuple[ImageRow, ...]:
    """Return the rows with the group that each image shares with training images, which follow them in `groups`."""
    keys, trained = groups.keys[: len(rows)], frozenset(groups.keys[len(rows) :])
    return tuple(
        replace(row, group=printable_name(key) if key in trained else "") for row, key in zip(rows, keys, strict=True)
    )


def _list_training(train: LeafSet, taxonomy: Taxonomy) -> Iterator[_Image]:
    for sample in train.samples:
        diseases = taxonomy.diseases_of(sample.species_index)
        disease = "" if sample.disease_index is None else diseases[sample.disease_index]
        source = name_class(taxonomy.species[sample.species_index], disease)
        yield _Image("train", sample.path, name_in_report(train.root, sample.path), source, sample.group)


def _list_non_plants(images: NonPlantSet | None) -> Iterator[_Image]:
    if images is not None:
        for path in images.paths:
            yield _Image("non-plants", path, name_in_report(images.root, path), images.source_of(path))


def _list_leaks(
    matches: Sequence[Match],
    own: Sequence[_Image],
    fingerprints: Sequence[Fingerprint],
    other: _Image,
    fingerprint: Fingerprint,
) -> Iterator[tuple[int, Leak]]:
    """Yield the position of each validation image that another image shows, and the leak that this is."""
    for match in matches:
        image = own[match.position]
        if other.set == "val" and other.source == image.source:
            continue  # the image itself, or its class once more, which is no leak
        twin = Twin(other.set, other.name, other.source, fingerprint.sha256, match.distance)
        yield match.position, Leak(image.name, image.source, fingerprints[match.position].sha256, twin)


def _rank(leak: Leak) -> tuple[bool, int]:
    """Return a key that is lower for a more similar image."""
    return leak.kind != "identical", leak.twin.distance


def _count(items: Iterable[_Item], advance: Callable[[], object]) -> Iterator[_Item]:
    for item in items:
        yield item
        advance()
