"""Judges whether a version is worse than the one that it replaces, by the images that both were measured on.

Each measure is compared image by image if both reports share enough images, by their content and their labels, and
otherwise between the two sets of images. Only a loss beyond noise (95 %) counts.

>>> from plantmodels.report.per_image import read_image_rows
>>> table = ImageTable.from_rows(read_image_rows(bundle / "gate-images.csv"))
>>> [loss.lost for loss in measure_losses(table, table, min_images=20)]
[0.0, 0.0, 0.0]
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from plantmodels.arrays import Mask
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.formatting import format_percent, format_range
from plantmodels.report.gates import GateResult, GateValue, judge_gate, not_measured
from plantmodels.report.per_image import ImageSetName
from plantmodels.report.policy import GatePolicy
from plantmodels.report.statistics import (
    Interval,
    PairedCounts,
    Proportion,
    difference_interval,
    precision_at_equal_numbers,
    precision_difference_interval,
)

GATE: Final = "no_regression"

MEASURES: Final = ("end to end", "OOD precision", "OOD recall")
"""What may not become worse: the accuracy of species and disease together with hard routing, and the rejection."""


_COMPARED: Final[tuple[ImageSetName, ...]] = ("val", "non-plants")


class TooFewImagesError(ValueError):
    """One of the versions was measured on too few images to compare them."""


@dataclass(frozen=True)
class Loss:
    """How much worse the new version is in one measure.

    Attributes:
        name: one of `MEASURES`.
        before: value of the version before; None if it is not defined.
        now: value of the new version; None if it is not defined.
        interval: 95 % interval of `lost`; None if it is not defined.
        images: in words, how many images the values rest on and whether they are the same ones.
    """

    name: str
    before: float | None
    now: float | None
    interval: Interval | None
    images: str

    @property
    def lost(self) -> float | None:
        """`before − now`; negative if the new version is better; None if either is not defined."""
        return None if self.before is None or self.now is None else self.before - self.now

    @property
    def beyond_noise(self) -> float:
        """The loss if its interval excludes 0, and 0 otherwise."""
        if self.lost is None or self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return 0.0
        return self.lost

    def to_sentence(self) -> str:
        """Return both values and the interval of the loss."""
        if self.interval is None:
            return f"{self.name} is not defined where nothing is rejected"
        low, high = (100 * end for end in self.interval)
        return (
            f"{self.name} {format_percent(self.now)}, before {format_percent(self.before)} "
            f"(95 % interval of the loss {format_range(low, high)} points, {self.images})"
        )


def judge_regression(before: ImageTable, now: ImageTable, policy: GatePolicy, which: str) -> GateResult:
    """Return the gate `no_regression` for a version that replaces, or is to replace, another one.

    Args:
        before: rows of the version before.
        now: rows of the new version.
        policy: the limits.
        which: the version that is compared with, in words: "version 1, which is in Production".

    Returns:
        The gate, whose value is the largest loss beyond noise. If it fails, its detail names the losses over the limit.
    """
    least = policy.min_images_of(GATE)
    try:
        losses = measure_losses(before, now, min_images=least)
    except TooFewImagesError as error:
        return regression_not_measured(f"{error} ({which})", policy)
    (limit,) = policy.limits_of(GATE).values()
    worst = max(loss.beyond_noise for loss in losses)
    shown = [loss for loss in losses if loss.beyond_noise > limit or loss.lost is None] or losses
    detail = f"against {which}: {'; '.join(loss.to_sentence() for loss in shown)}"
    samples = min(len(table.of_set(name)) for table in (before, now) for name in _COMPARED)
    return judge_gate(GATE, [GateValue("", limit, worst)], samples=samples, min_images=least, detail=detail)


def regression_not_measured(reason: str, policy: GatePolicy) -> GateResult:
    """Return the gate `no_regression` for versions that cannot be compared. It does not pass, and may be waived."""
    return not_measured(
        GATE, policy.limits_of(GATE), reason=reason, min_images=policy.min_images_of(GATE), confidence=None
    )


def measure_losses(before: ImageTable, now: ImageTable, *, min_images: int) -> tuple[Loss, ...]:
    """Return how much worse a version is than another one in each of `MEASURES`.

    Args:
        before: rows of the version before.
        now: rows of the new version.
        min_images: number of images, of each set, below which versions are not compared, and number of shared images
            from which they are compared one by one.

    Raises:
        TooFewImagesError: names the version and the set with too few images.
    """
    leaves = _Counts.count(before, now, "val", _are_right, min_images)
    plants = _Counts.count(before, now, "val", _are_rejected, min_images)
    others = _Counts.count(before, now, "non-plants", _are_rejected, min_images)
    return (leaves.lose("end to end"), _lose_precision(plants, others), others.lose("OOD recall"))


def _are_right(images: ImageTable) -> Mask:
    species = images.text("int8_species") == images.text("species")
    return np.asarray(species & (images.text("int8_routed_disease") == images.text("disease")), np.bool_)


def _are_rejected(images: ImageTable) -> Mask:
    return images.truths("rejected")


@dataclass(frozen=True)
class _Counts:
    """Images of one set for which something holds, in both versions.

    Attributes:
        before: of the version before.
        now: of the new version.
        paired: both on the images that both were measured on; None if these are too few.
    """

    before: Proportion
    now: Proportion
    paired: PairedCounts | None

    @classmethod
    def count(
        cls,
        before: ImageTable,
        now: ImageTable,
        name: ImageSetName,
        hold: Callable[[ImageTable], Mask],
        min_images: int,
    ) -> "_Counts":
        """Count the rows of one set.

        Raises:
            TooFewImagesError: a version has fewer than `min_images` rows.
        """
        sides = [table.of_set(name) for table in (before, now)]
        for rows, version in zip(sides, ("the version before", "the new version"), strict=True):
            if len(rows) < min_images:
                raise TooFewImagesError(
                    f"{version} was measured on {len(rows):,} images of the set {name!r}, at least {min_images:,} are "
                    "needed to compare"
                )
        hits = [hold(rows) for rows in sides]
        first, second = (
            dict(zip(_list_keys(rows), mask.tolist(), strict=True)) for rows, mask in zip(sides, hits, strict=True)
        )
        shared = first.keys() & second.keys()
        if len(shared) < min_images:
            before_all, now_all = (Proportion(int(mask.sum()), len(mask)) for mask in hits)
            return cls(before_all, now_all, None)
        paired = _pair(first, second, shared)
        return cls(paired.first, paired.second, paired)

    @property
    def images(self) -> str:
        """How many images the counts rest on, in words."""
        if self.paired is not None:
            return f"the same {self.paired.images:,} images"
        return f"{self.now.images:,} images, {self.before.images:,} others before"

    def lose(self, name: str) -> Loss:
        """Return the loss of this proportion."""
        if self.paired is not None:
            interval = self.paired.interval
        else:
            low, high = difference_interval(self.now, self.before)
            interval = (low, high)
        return Loss(name, self.before.value, self.now.value, interval, self.images)

    @property
    def source(self) -> PairedCounts | tuple[Proportion, Proportion]:
        """The counts as `precision_difference_interval` takes them."""
        return self.paired or (self.before, self.now)


def _list_keys(images: ImageTable) -> Iterator[Hashable]:
    """Yield what makes each image the same in two reports: its content and its label."""
    return zip(*(images.text(name).tolist() for name in ("sha256", "species", "disease")), strict=True)


def _pair(
    first: Mapping[Hashable, bool], second: Mapping[Hashable, bool], shared: Sequence[Hashable] | set[Hashable]
) -> PairedCounts:
    cells = Counter((first[key], second[key]) for key in shared)
    return PairedCounts(*(cells[pair] for pair in ((True, True), (True, False), (False, True), (False, False))))


def _lose_precision(plants: _Counts, others: _Counts) -> Loss:
    """Return the loss of precision at equal numbers of plants and non-plants."""
    before, now = (
        precision_at_equal_numbers(rejected.value or 0.0, alarms.value or 0.0)
        for rejected, alarms in ((others.before, plants.before), (others.now, plants.now))
    )
    if before is None or now is None:
        return Loss("OOD precision", before, now, None, plants.images)
    low, high = precision_difference_interval(plants.source, others.source)
    return Loss("OOD precision", before, now, (-high, -low), f"plants: {plants.images}, non-plants: {others.images}")
