"""Which classes have too few validation images, and how many images would make an uncertain gate certain.

>>> from plantmodels.report.gate_report import read_report
>>> report = read_report(bundle)
>>> find_gaps(report.taxonomy, report.accuracy, species=6, classes=6).total
10
>>> tell_images(Proportion(97, 100), "non-plants", 0.95, 0.95)
'at this rate about 457 non-plants would make it certain'
>>> find_unreachable(GatePolicy(ood_recall_confidence=0.95), leaves=500, non_plants=60)
('ood_recall: with 60 non-plants no result reaches its limit with 95 % confidence; at least 73 would do',)
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.report.evidence.accuracy import name_class
from plantmodels.report.formatting import format_percent, spell_class
from plantmodels.report.policy import GatePolicy
from plantmodels.report.results import Accuracy, ClassRow, Rejection
from plantmodels.report.statistics import PairedCounts, Proportion, normal_quantile

MOST_NAMED: Final = 20
"""Classes that a line names one by one. More are counted there, and the page lists them."""


@dataclass(frozen=True)
class Gaps:
    """Classes with too few validation images.

    Attributes:
        species: name of each species with too few images to its number of images.
        classes: "<species>___<disease>" with too few images to its number of images.
        all_species: number of all species.
        all_classes: number of all disease classes.
    """

    species: Mapping[str, int]
    classes: Mapping[str, int]
    all_species: int
    all_classes: int

    @property
    def total(self) -> int:
        """Value of the gate `coverage`: how many species and disease classes have too few images."""
        return len(self.species) + len(self.classes)

    def describe(self, *, species: int, classes: int) -> str:
        """Return the gaps in a line; "" without any.

        Args:
            species: images that every species needs.
            classes: images that every disease class needs.
        """
        parts = (
            _describe_part(self.species, self.all_species, "species", species),
            _describe_part(self.classes, self.all_classes, "disease classes", classes),
        )
        return "; ".join(filter(None, parts))


def find_gaps(taxonomy: Taxonomy, accuracy: Accuracy, *, species: int, classes: int) -> Gaps:
    """Return the species and disease classes with too few validation images, in the order of the logits.

    Args:
        taxonomy: all species and diseases.
        accuracy: the accuracy, which counts the validation images of every class.
        species: images that every species needs.
        classes: images that every disease class needs.
    """
    names = [
        name_class(taxonomy.species[index], disease)
        for index in taxonomy.species_with_head
        for disease in taxonomy.diseases_of(index)
    ]
    return Gaps(
        _list_below(taxonomy.species, accuracy.by_species, species),
        _list_below(names, accuracy.by_class, classes),
        len(taxonomy.species),
        len(names),
    )


def _list_below(names: Sequence[str], rows: Mapping[str, ClassRow], least: int) -> dict[str, int]:
    images = {name: rows[name].images if name in rows else 0 for name in names}
    return {name: count for name, count in images.items() if count < least}


def _describe_part(found: Mapping[str, int], total: int, noun: str, least: int) -> str:
    if not found:
        return ""
    few = "no validation image" if least == 1 else f"fewer than {least} validation images"
    start = f"{len(found):,} of {total:,} {noun} have {few}"
    if len(found) > MOST_NAMED:
        return start
    return f"{start}: {', '.join(spell_class(name) + f' ({images})' * (least > 1) for name, images in found.items())}"


_MOST_TIMES: Final = 1000.0
"""More times as many images than this are not a hint any more."""


def tell_images(found: Proportion, noun: str, limit: float, confidence: float) -> str:
    """Return how many images at the same rate would make a gate certain, in words; "" if no number would.

    Args:
        found: the images that were measured.
        noun: what they are, in the plural.
        limit: the gate's limit.
        confidence: confidence of the bound.
    """
    needed = found.images_needed(limit, confidence)
    return "" if needed is None else f"at this rate about {needed:,} {noun} would make it certain"


def tell_leaves(accuracy: Accuracy, limit: float, confidence: float) -> str:
    """Return how many leaves would make `int8_accuracy` certain, if INT8 changed as large a share of the answers."""
    parts = [paired.images_needed(limit, confidence) for paired in accuracy.int8_losses.values()]
    known = [images for images in parts if images is not None]
    needed = max(known, default=None) if len(known) == len(parts) else None
    return "" if needed is None else f"at this rate of changes about {needed:,} leaves would make it certain"


def tell_times_as_many(rejection: Rejection, limit: float, confidence: float) -> str:
    """Return how many times as many images would make `ood_precision` certain, at the same rates."""
    scale = 1.0
    while scale < _MOST_TIMES:
        scale *= 1.05
        interval = rejection.precision_interval_at(confidence, scale=scale)
        if interval is not None and interval[0] >= limit:
            images = (math.ceil(scale * group.images) for group in (rejection.plants, rejection.non_plants))
            leaves, others = images
            return f"at these rates about {leaves:,} leaves and {others:,} non-plants would make it certain"
    return ""


def find_unreachable(policy: GatePolicy, *, leaves: int, non_plants: int | None) -> tuple[str, ...]:
    """Return a sentence for each gate whose limit no result on so few images can reach with the policy's confidence.

    Args:
        policy: the limits.
        leaves: number of validation leaves.
        non_plants: number of non-plants that measure gates; None without any.
    """
    return tuple(_list_unreachable(policy, leaves, non_plants))


def _list_unreachable(policy: GatePolicy, leaves: int, non_plants: int | None) -> Iterator[str]:
    counts = {
        "int8_accuracy": (leaves, "leaves"),
        "ood_precision": (leaves, "leaves"),
        "ood_recall": (non_plants, "non-plants"),
        "false_alarms": (leaves, "leaves"),
        "accuracy": (leaves, "leaves"),
        "leakage": (leaves, "leaves"),
    }
    for gate, (images, noun) in counts.items():
        confidence = policy.confidence_of(gate)
        if confidence is None or images is None or (gate == "ood_precision" and not non_plants):
            continue
        needed = _count_best_case(gate, policy, confidence, non_plants or 0)
        if needed is None or needed > images:
            advice = "no number would do" if needed is None else f"at least {needed:,} would do"
            yield (
                f"{gate}: with {images:,} {noun} no result reaches its limit with {format_percent(confidence, 0)} "
                f"confidence; {advice}"
            )


def _count_best_case(gate: str, policy: GatePolicy, confidence: float, non_plants: int) -> int | None:
    """Return how many images a perfect result needs to be certain; None if no number suffices."""
    limits = policy.limits_of(gate)
    if gate == "int8_accuracy":
        return PairedCounts(1, 0, 0, 0).images_needed(limits[""], confidence)
    if gate == "ood_precision":
        return _count_for_precision(limits[""], confidence, non_plants)
    if gate == "accuracy":
        needed = [_count_all(limits[name], confidence) for name in ("species", "end to end")]
        return None if None in needed else max(count or 0 for count in needed)
    limit = limits[""]
    return _count_all(limit if gate == "ood_recall" else 1 - limit, confidence)


def _count_all(limit: float, confidence: float) -> int | None:
    """Return how many images, all right, put Wilson's lower end at the limit: `z² · limit / (1 − limit)`."""
    return 1 if limit == 0 else Proportion(1, 1).images_needed(limit, confidence)


def _count_for_precision(limit: float, confidence: float, non_plants: int) -> int | None:
    """Return how many leaves without a false alarm make the precision certain, if all non-plants are rejected."""
    if limit >= 1:
        return None
    z = normal_quantile(confidence)  # half a false alarm stands for none, as in `Rejection.precision_interval_at`
    images = math.ceil(0.5 * math.exp(z * math.sqrt(2)) * limit / (1 - limit))
    while images > 1 and math.log(2 * images - 1) - z * math.sqrt(2 - 1 / (images - 0.5)) >= math.log(
        limit / (1 - limit)
    ):
        images -= 1
    return images if non_plants else None
