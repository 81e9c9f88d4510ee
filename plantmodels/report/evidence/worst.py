"""The worst species and the worst source beside each pooled share, and how likely chance alone makes one so bad.

A pooled share hides a species that is lost: with 11 of 1,539 leaves, all of one species can be rejected, and every gate
passes.

>>> rejected = {"Mint": Proportion(11, 11), "Rose": Proportion(5, 500), "Fig": Proportion(4, 500)}
>>> worst = find_worst_share(rejected)
>>> worst.name, worst.count, worst.p_value < 1e-12
('Mint', 11, True)
"""

from collections.abc import Mapping
from dataclasses import dataclass

from plantmodels.report.formatting import spell_class
from plantmodels.report.results import Accuracy, Rejection
from plantmodels.report.statistics import ALPHA, PairedCounts, Proportion, correct_for_many, difference_p_value


@dataclass(frozen=True)
class Worst:
    """The species or source that is worst in one measure.

    Attributes:
        name: the species or source.
        count: how many of its images are lost, rejected or accepted.
        images: number of its images.
        p_value: how often chance alone makes one so bad, corrected for the number of species or sources (Holm).
        beyond_chance: all species or sources that are worse than chance explains, the smallest p-value first.
    """

    name: str
    count: int
    images: int
    p_value: float
    beyond_chance: tuple[str, ...]

    @property
    def share(self) -> float:
        """`count / images`."""
        return self.count / self.images

    @property
    def text(self) -> str:
        """Count, images and name, such as "3 of 11 Raspberry"."""
        return f"{self.count:,} of {self.images:,} {spell_class(self.name)}"


def find_worst_share(groups: Mapping[str, Proportion]) -> Worst | None:
    """Return the group with the largest share. Each is compared with all others together (Fisher's exact test).

    Args:
        groups: name of each species or source to its bad images. None if there are no images.
    """
    counted = {name: group for name, group in groups.items() if group.images}
    whole = Proportion(sum(g.count for g in counted.values()), sum(g.images for g in counted.values()))
    p_values = [_test_against_others(group, whole) for group in counted.values()]
    return _pick_worst({name: (group.count, group.images) for name, group in counted.items()}, p_values)


def _test_against_others(group: Proportion, whole: Proportion) -> float:
    """Return the p-value that a group is worse than the others; 1 if it is not worse or if there are no others."""
    others = Proportion(whole.count - group.count, whole.images - group.images)
    if group.value is None or others.value is None or group.value <= others.value:
        return 1.0
    return difference_p_value(group, others)


def find_worst_loss(groups: Mapping[str, PairedCounts]) -> Worst | None:
    """Return the group that loses the largest share of its images net. Each is tested by itself (McNemar's exact test).

    Args:
        groups: name of each species to its counts, first FP16 and second INT8. None if there are no images.
    """
    counted = {name: group for name, group in groups.items() if group.images}
    p_values = [group.p_value if group.only_first > group.only_second else 1.0 for group in counted.values()]
    return _pick_worst({name: (g.only_first - g.only_second, g.images) for name, g in counted.items()}, p_values)


def _pick_worst(groups: Mapping[str, tuple[int, int]], p_values: list[float]) -> Worst | None:
    """Return the largest share; of equal ones, that with more images."""
    if not groups:
        return None
    corrected = dict(zip(groups, correct_for_many(p_values), strict=True))
    name = max(groups, key=lambda each: (groups[each][0] / groups[each][1], groups[each][1]))
    beyond = sorted((each for each in groups if corrected[each] < ALPHA), key=corrected.__getitem__)
    return Worst(name, *groups[name], corrected[name], tuple(beyond))


@dataclass(frozen=True)
class WorstOfAll:
    """The worst of each measure; None where nothing was measured.

    Attributes:
        lost: the species that loses most answers, species and disease together, from FP16 to INT8.
        rejected: the species of which most leaves are rejected.
        accepted: the source of which most non-plants are accepted.
    """

    lost: Worst | None
    rejected: Worst | None
    accepted: Worst | None

    @property
    def rows(self) -> tuple[tuple[str, Worst], ...]:
        """What was counted, in words, and the worst of it."""
        rows = (
            ("leaves lost from FP16 to INT8", self.lost),
            ("leaves rejected", self.rejected),
            ("non-plants accepted", self.accepted),
        )
        return tuple((what, worst) for what, worst in rows if worst is not None)

    def describe(self) -> str:
        """Return a line for a terminal; "" if nothing was measured."""
        parts = [f"{what}: {worst.text} (p = {worst.p_value:.2g})" for what, worst in self.rows]
        return f"Worst species and source (p-values after Holm): {'; '.join(parts)}." if parts else ""


def find_worst(accuracy: Accuracy | None, rejection: Rejection | None) -> WorstOfAll:
    """Return the worst species and source of a report."""
    accepted = (
        {}
        if rejection is None
        else {n: Proportion(p.images - p.count, p.images) for n, p in rejection.by_source.items()}
    )
    return WorstOfAll(
        lost=None if accuracy is None else find_worst_loss(accuracy.losses_by_species),
        rejected=None if rejection is None else find_worst_share(rejection.by_species),
        accepted=find_worst_share(accepted),
    )
