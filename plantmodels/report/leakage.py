"""Leakage: validation images that are also training images, non-plants, or validation images of another class.

Groups cross the splits if some of their leaves are in train and others in val. Such leaves are not the same images, but
not independent either.

>>> twin = Twin("train", "train/Rose/3.jpg", "Rose", "ab", 6)
>>> leakage = Leakage({"train": 400, "val": 100, "non-plants": 0}, (Leak("val/Apple/1.jpg", "Apple", "cd", twin),))
>>> leakage.share, leakage.leaks[0].kind
(0.01, 'visually the same')
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import numpy as np

from plantmodels.report.evidence.accuracy import count_right
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.formatting import format_percent
from plantmodels.report.results import PrecisionAccuracy
from plantmodels.report.statistics import Proportion

TwinSet = Literal["train", "val", "non-plants"]
TWIN_SETS: Final[tuple[TwinSet, ...]] = get_args(TwinSet)

_PLACES: Final[dict[TwinSet, str]] = {
    "train": "in train",
    "val": "in another class",
    "non-plants": "among the non-plants",
}
"""Where a validation image must not occur."""


@dataclass(frozen=True)
class Twin:
    """An image that shows the same as a validation image.

    Attributes:
        set: the set that it belongs to.
        name: its name below the folder of the set.
        source: its class; the folder that contains it if it is a non-plant.
        sha256: digest of its content.
        distance: number of bits in which the perceptual hashes of the two images differ; 0 for identical bytes.
    """

    set: TwinSet
    name: str
    source: str
    sha256: str
    distance: int


@dataclass(frozen=True)
class Leak:
    """A validation image that should not be one, with the image that shows the same.

    Attributes:
        name: name of the validation image, as in its image row.
        source: its class, as in its image row.
        sha256: digest of its content.
        twin: the other image; the most similar one if there are several.
    """

    name: str
    source: str
    sha256: str
    twin: Twin

    @property
    def kind(self) -> Literal["identical", "visually the same"]:
        """Whether both files hold the same bytes."""
        return "identical" if self.sha256 == self.twin.sha256 else "visually the same"


@dataclass(frozen=True)
class Crossing:
    """Validation leaves that share a group with training leaves, and what INT8 gets right of them and of the others.

    Attributes:
        groups: number of these groups.
        leaves: these validation leaves, of all that were compared.
        shared: what INT8 gets right of these leaves.
        without: what INT8 gets right of all other validation leaves.
    """

    groups: int
    leaves: Proportion
    shared: PrecisionAccuracy
    without: PrecisionAccuracy

    def describe(self) -> str:
        """Return a line that says how many groups cross the splits, and how accurate INT8 is without their leaves."""
        if not self.groups:
            return (
                f"None of {self.leaves.images:,} validation images is of the same group as a training image. Another "
                "photograph of the same leaf is found only if a group names it."
            )
        share, right = format_percent(self.leaves.value, 1), self.without
        numbers = {
            "the species is right": right.species,
            "species and disease": right.end_to_end,
            "the disease given the true species": right.disease,
        }
        found = ", ".join(
            f"{name} for {format_percent(each.value, 1)}" for name, each in numbers.items() if each.images
        )
        return (
            f"{self.leaves.count:,} of {self.leaves.images:,} validation images ({share}) are of the same group as a "
            f"training image, in {self.groups:,} group{'s' * (self.groups > 1)}. Without them, "
            f"{found or 'no images are left'}."
        )


def count_crossing(leaves: ImageTable) -> Crossing | None:
    """Return which validation leaves share a group with training leaves; None if their rows do not say so.

    Args:
        leaves: rows of the validation leaves.
    """
    if "group" not in leaves.given:
        return None
    groups = leaves.text("group")
    is_shared = np.asarray(groups != "", np.bool_)
    return Crossing(
        groups=len(set(groups[is_shared].tolist())),
        leaves=Proportion(int(is_shared.sum()), len(leaves)),
        shared=count_right(leaves.where(is_shared)),
        without=count_right(leaves.where(~is_shared)),
    )


@dataclass(frozen=True)
class Leakage:
    """The result of the search for leaking validation images.

    Attributes:
        compared: each set to the number of its images that were compared with the validation images.
        leaks: every validation image that was found again, once, in the order of the image rows.
        crossing: validation leaves that share a group with training leaves; None if they were not looked for.
    """

    compared: Mapping[TwinSet, int]
    leaks: tuple[Leak, ...]
    crossing: Crossing | None = None

    def __post_init__(self) -> None:
        """Check that the numbers fit each other.

        Raises:
            ValueError: a set is missing or unknown, a number is negative, or there are more leaks than images.
        """
        if set(self.compared) != set(_PLACES) or min(self.compared.values()) < 0:
            raise ValueError(
                f"compared must count the images of {', '.join(_PLACES)}, got {dict(self.compared)!r:.200}"
            )
        if len(self.leaks) > self.compared["val"]:
            raise ValueError(f"{len(self.leaks)} leaks are more than {self.compared['val']} validation images")

    @property
    def leaking(self) -> Proportion:
        """Validation images that were found again, of all that were compared."""
        return Proportion(len(self.leaks), self.compared["val"])

    @property
    def share(self) -> float | None:
        """Value of the gate `leakage`: the share of validation images that were found again; None without images."""
        return self.leaking.value

    @property
    def by_set(self) -> Mapping[TwinSet, int]:
        """Each set with leaks to the number of validation images that were found again in it."""
        found = Counter(leak.twin.set for leak in self.leaks)
        return {name: found[name] for name in _PLACES if found[name]}

    def describe(self) -> str:
        """Return in a line how many validation images occur again, and where; "" without any."""
        found = [f"{images:,} {_PLACES[name]}" for name, images in self.by_set.items()]
        leaking = self.leaking
        return f"{leaking.count:,} of {leaking.images:,} occur again: {', '.join(found)}" if found else ""
