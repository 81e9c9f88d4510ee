"""Checks that the leaks of a report agree with its image rows, and that none that the rows show is left out."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.leakage import MAX_DISTANCE, Leak, Leakage, TwinSet

_Image = tuple[str, str, str]
"""Class, name and digest of a validation image."""


def check_leaks(leakage: Leakage, table: ImageTable, non_plants_given: int) -> None:
    """Check that leaks agree with the image rows, and that identical images among the rows are all there.

    The training images have no rows. Whether a validation image is one of them cannot be checked here.

    Args:
        leakage: the leaks that a report states.
        table: all its image rows.
        non_plants_given: number of non-plants that the report's inputs state.

    Raises:
        ValueError: a leak contradicts the rows, or one is missing or stated twice; the message names the image.
    """
    leaves, others = table.of_set("val"), table.of_set("non-plants")
    expected: dict[TwinSet, int] = {"val": len(leaves), "non-plants": non_plants_given}
    for place, images in expected.items():
        if leakage.compared[place] != images:
            raise ValueError(
                f"leakage.compared.{place} is {leakage.compared[place]}, but there are {images} such images"
            )
    if not leakage.leaks and _are_all_different(leaves, others):
        return
    val = Counter(zip(*(leaves.text(name).tolist() for name in ("source", "name", "sha256")), strict=True))
    non_plants: dict[str, set[str]] = defaultdict(set)
    for name, sha256 in zip(others.text("name").tolist(), others.text("sha256").tolist(), strict=True):
        non_plants[name].add(sha256)
    stated = Counter(map(_key, leakage.leaks))
    for leak in leakage.leaks:
        _check_leak(leak, val, non_plants)
        if stated[_key(leak)] > val[_key(leak)]:
            raise ValueError(f"leakage names {leak.name!r:.200} more than once")
    missing = sorted(image for image in _find_identical(val, non_plants) if stated[image] < val[image])
    if missing:
        raise ValueError(f"leakage leaves out {missing[0][1]!r:.200}, whose content occurs again among the rows")


def _are_all_different(leaves: ImageTable, others: ImageTable) -> bool:
    """Return whether no content occurs twice, as in most reports, which spares a closer look."""
    digests = {*leaves.text("sha256").tolist(), *others.text("sha256").tolist()}
    return len(digests) == len(leaves) + len(others)


def _key(leak: Leak) -> _Image:
    return leak.source, leak.name, leak.sha256


def _check_leak(leak: Leak, val: Mapping[_Image, int], non_plants: Mapping[str, AbstractSet[str]]) -> None:
    twin = leak.twin
    agrees = {
        "val": (twin.source, twin.name, twin.sha256) in val,
        "non-plants": twin.name not in non_plants or twin.sha256 in non_plants[twin.name],  # half of them have rows
        "train": True,
    }
    if _key(leak) not in val or not agrees[twin.set]:
        raise ValueError(f"leakage of {leak.name!r:.200} does not agree with the rows of its images")
    if twin.set == "val" and twin.source == leak.source:
        raise ValueError(f"leakage of {leak.name!r:.200} names an image of the same class and set")
    if not 0 <= twin.distance <= MAX_DISTANCE or (leak.kind == "identical" and twin.distance):
        raise ValueError(f"leakage of {leak.name!r:.200} has the distance {twin.distance}, which is impossible")


def _find_identical(val: Iterable[_Image], non_plants: Mapping[str, AbstractSet[str]]) -> set[_Image]:
    """Return the validation images whose content is also that of a non-plant or of another class."""
    shown = set().union(*non_plants.values())
    classes: dict[str, set[str]] = defaultdict(set)
    for source, _, sha256 in val:
        classes[sha256].add(source)
    return {image for image in val if image[2] in shown or len(classes[image[2]]) > 1}
