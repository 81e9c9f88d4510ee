"""How the same measure of two bundles is compared: image by image where both saw the same images, by counts otherwise.

>>> compare_proportions("species", Proportion(80, 100), Proportion(81, 100), None).verdict
'no difference beyond noise'
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from plantmodels.bundle.layout import IMAGES_FILE
from plantmodels.bundle.metadata import Metadata
from plantmodels.compare.model import MeasurePair, Verdict
from plantmodels.report.gate_report import GateReport
from plantmodels.report.inputs import ImageSet
from plantmodels.report.per_image import ImageRow, ImageSetName
from plantmodels.report.results import Accuracy
from plantmodels.report.statistics import ALPHA, PairedCounts, Proportion, difference_interval

INTERVAL: Final = "unpaired, decided by the 95 % interval of the difference"
"""How proportions of different images are compared."""

_IsRight = Callable[[ImageRow], bool]
_GroupOf = Callable[[ImageRow], Hashable]
"""Which group of images an image belongs to; None when it does not count."""


@dataclass(frozen=True)
class VerifiedBundle:
    """What is read from one bundle.

    Attributes:
        report: its gate report.
        metadata: its metadata.
        rows: the answers to every image; None when the bundle has no file of them.
    """

    report: GateReport
    metadata: Metadata
    rows: tuple[ImageRow, ...] | None


@dataclass(frozen=True)
class Pairing:
    """How one set of images is compared.

    Attributes:
        pairs: the answers of A and B to each image that both measured; None when images cannot be paired.
        images: which images they are, in words.
    """

    pairs: tuple[tuple[ImageRow, ImageRow], ...] | None
    images: str

    @classmethod
    def match(
        cls, a: VerifiedBundle, b: VerifiedBundle, name: ImageSetName, set_a: ImageSet | None, set_b: ImageSet | None
    ) -> "Pairing":
        """Return how the images of a set are compared; `set_a` and `set_b` say which images A and B measured."""
        if set_a is None or set_b is None:
            return cls(None, "not measured in both")
        if set_a.sha256 != set_b.sha256:
            return cls(None, f"different images or labels ({set_a.sha256[:12]}, {set_b.sha256[:12]})")
        if a.rows is None or b.rows is None:
            lacking = " and ".join(name for name, bundle in (("A", a), ("B", b)) if bundle.rows is None)
            return cls(None, f"the same images, but {lacking} without {IMAGES_FILE}")
        answers = {(row.source, row.name): row for row in a.rows if row.set == name}
        pairs = tuple(
            (answers[key], row) for row in b.rows if row.set == name and (key := (row.source, row.name)) in answers
        )
        if not pairs:
            return cls(None, f"the same images, but no image is in both {IMAGES_FILE}")
        return cls(pairs, f"the same {len(pairs):,} images, one by one")

    def explain(self, unpaired: str) -> str:
        """Return which images are compared and by which test."""
        return f"{self.images}; {unpaired if self.pairs is None else 'decided by McNemar’s exact test'}"

    def count(self, is_right: _IsRight, group_of: _GroupOf = lambda row: "") -> dict[Hashable, PairedCounts]:
        """Return the paired counts of each group of images; empty when images cannot be paired."""
        cells = Counter((group_of(a), is_right(a), is_right(b)) for a, b in self.pairs or ())
        kinds = ((True, True), (True, False), (False, True), (False, False))
        return {
            group: PairedCounts(*(cells[group, *kind] for kind in kinds))
            for group in dict.fromkeys(group for group, _, _ in cells)
            if group is not None
        }


def compare_proportions(
    name: str,
    a: Proportion,
    b: Proportion,
    paired: PairedCounts | None,
    *,
    higher_is_better: bool = True,
    counted: str = "right",
) -> MeasurePair:
    """Compare two proportions: by McNemar's test when they are paired, otherwise by the interval of the difference.

    Args:
        name: what is measured.
        a: images of A that count.
        b: images of B that count.
        paired: how often both, one or neither count; None if the images cannot be paired.
        higher_is_better: whether more such images are better.
        counted: what is said of an image that counts.
    """
    measure = MeasurePair(name, "share", a.value, b.value, "not comparable", "", a.images, b.images)
    if a.value is None or b.value is None:
        lacking = " and ".join(side for side, share in (("A", a), ("B", b)) if share.value is None)
        return replace(measure, why=f"not measured in {lacking}")
    if paired is None:
        low, high = difference_interval(a, b)
        verdict = decide(low > 0 or high < 0, b.value > a.value, higher_is_better)
        return replace(measure, low=low, high=high, verdict=verdict)
    low, high = paired.interval or (0.0, 0.0)  # of A minus B
    verdict = decide(paired.p_value < ALPHA, paired.only_second > paired.only_first, higher_is_better)
    why = f"{paired.only_second:,} newly {counted}, {paired.only_first:,} no longer"
    return replace(measure, low=-high, high=-low, p_value=paired.p_value, verdict=verdict, why=why)


def decide(differs: bool, rises: bool, higher_is_better: bool) -> Verdict:
    """Return the verdict on a number that differs beyond noise, or does not, and that rises from A to B, or falls."""
    if not differs:
        return "no difference beyond noise"
    return "better" if rises == higher_is_better else "worse"


def measure_accuracy(a: Accuracy, b: Accuracy, leaves: Pairing, precision: str) -> Iterator[MeasurePair]:
    """Yield species, disease and both of one precision.

    Args:
        a: accuracy of A.
        b: accuracy of B.
        leaves: how the leaves are compared.
        precision: "fp16" or "int8".
    """

    def species(row: ImageRow) -> bool:
        return bool(getattr(row, f"{precision}_species") == row.species)

    def disease(row: ImageRow) -> bool:
        return bool(getattr(row, f"{precision}_disease") == row.disease)

    first, second = getattr(a, precision), getattr(b, precision)
    paired = {
        "species": leaves.count(species),
        "disease": leaves.count(disease, lambda row: "" if row.disease else None),
        "end_to_end": leaves.count(lambda row: species(row) and disease(row)),
    }
    names = {"species": "species", "disease": "disease given the species", "end_to_end": "end to end"}
    for field, name in names.items():
        yield compare_proportions(
            f"{name}, {precision.upper()}", getattr(first, field), getattr(second, field), paired[field].get("")
        )
