"""Checks that the leaks of a report agree with its image rows, and that none that the rows show is left out."""

from collections import Counter, defaultdict
from collections.abc import Mapping

from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.leakage import Leak, Leakage

_HASH_BITS = 256
"""Bits of the perceptual hashes whose distance a report states."""

_Image = tuple[str, str]
"""Class and name of a validation image."""


def check_leaks(leakage: Leakage, table: ImageTable) -> None:
    """Check that leaks agree with the image rows, and that identical images among the rows are all there.

    The training images have no rows. Whether a validation image is one of them cannot be checked here.

    Args:
        leakage: the leaks that a report states.
        table: all its image rows.

    Raises:
        ValueError: a leak contradicts the rows, or one is missing or stated twice; the message names the image.
    """
    leaves, others = table.of_set("val"), table.of_set("non-plants")
    digests = leaves.text("sha256").tolist()
    val = dict(zip(zip(leaves.text("source"), leaves.text("name"), strict=True), digests, strict=True))
    non_plants = dict(zip(others.text("name").tolist(), others.text("sha256").tolist(), strict=True))
    if leakage.compared["val"] != len(leaves):
        raise ValueError(f"leakage.compared.val is {leakage.compared['val']}, but there are {len(leaves)} such rows")
    stated = Counter((leak.source, leak.name) for leak in leakage.leaks)
    for leak in leakage.leaks:
        if stated[leak.source, leak.name] > 1:
            raise ValueError(f"leakage names {leak.name!r:.200} more than once")
        _check_leak(leak, val, non_plants)
    missing = sorted(_find_identical(val, non_plants) - set(stated))
    if missing:
        raise ValueError(f"leakage leaves out {missing[0][1]!r:.200}, whose content occurs again among the rows")


def _check_leak(leak: Leak, val: Mapping[_Image, str], non_plants: Mapping[str, str]) -> None:
    twin = leak.twin
    expected = {
        "val": val.get((twin.source, twin.name), ""),
        "non-plants": non_plants.get(twin.name, twin.sha256),  # only the half that the gates measure has rows
        "train": twin.sha256,
    }
    if val.get((leak.source, leak.name)) != leak.sha256 or expected[twin.set] != twin.sha256:
        raise ValueError(f"leakage of {leak.name!r:.200} does not agree with the rows of its images")
    if twin.set == "val" and twin.source == leak.source:
        raise ValueError(f"leakage of {leak.name!r:.200} names an image of the same class and set")
    if not 0 <= twin.distance <= _HASH_BITS or (leak.kind == "identical" and twin.distance):
        raise ValueError(f"leakage of {leak.name!r:.200} has the distance {twin.distance}, which is impossible")


def _find_identical(val: Mapping[_Image, str], non_plants: Mapping[str, str]) -> set[_Image]:
    """Return the validation images whose content is also that of a non-plant or of another class."""
    shown = set(non_plants.values())
    classes: dict[str, set[str]] = defaultdict(set)
    for (source, _), sha256 in val.items():
        classes[sha256].add(source)
    return {image for image, sha256 in val.items() if sha256 in shown or len(classes[sha256]) > 1}
