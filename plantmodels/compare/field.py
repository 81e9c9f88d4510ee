"""Compares what two bundles do with field leaves: labelled leaves from another place (`verify --field`).

>>> from plantmodels.bundle.metadata import read_metadata
>>> from plantmodels.report.gate_report import read_report
>>> verified = VerifiedBundle(read_report(bundle), read_metadata(bundle), None)
>>> list(compare_field(verified, verified))
[]
"""

from collections.abc import Iterator
from typing import Final

from plantmodels.compare.model import MeasurePair, Section
from plantmodels.compare.pairing import INTERVAL, Pairing, VerifiedBundle, compare_proportions, measure_accuracy
from plantmodels.report.evidence.field import Decided
from plantmodels.report.per_image import ImageRow
from plantmodels.report.statistics import Proportion

_RIGHT: Final = "accepted, with the right species"
_WRONG: Final = "accepted, with a wrong species"


def compare_field(a: VerifiedBundle, b: VerifiedBundle) -> Iterator[Section]:
    """Yield the section on field leaves if one of the reports has any; their accuracy is not compared if one has none.

    More accepted leaves are neither better nor worse in themselves, so those with a right and with a wrong answer are
    compared apart.
    """
    first, second = a.report.field, b.report.field
    if first is None or second is None:
        lacking = "A" if first is None else "B"
        if first is not second:
            values = [None if each is None else each.accuracy.int8.species.value for each in (first, second)]
            why = f"{lacking} has no field leaves"
            measure = MeasurePair("species, INT8", "share", values[0], values[1], "not comparable", why)
            yield Section("Field leaves", "Labelled leaves from another place.", False, (measure,))
        return
    leaves = Pairing.match(a, b, "field", a.report.inputs.field, b.report.inputs.field)
    measures = list(measure_accuracy(first.accuracy, second.accuracy, leaves, "int8"))
    for name, is_right in ((_RIGHT, True), (_WRONG, False)):
        paired = leaves.count(lambda row, is_right=is_right: _is_accepted(row, is_right)).get("")  # type: ignore[misc]
        shares = [_count_accepted(each.decided, is_right) for each in (first, second)]
        measures.append(
            compare_proportions(name, shares[0], shares[1], paired, higher_is_better=is_right, counted="such")
        )
    note = f"Labelled leaves from another place: {leaves.explain(INTERVAL)}."
    yield Section("Field leaves", note, False, tuple(measures))


def _is_accepted(row: ImageRow, is_right: bool) -> bool:
    return not row.rejected and (row.int8_species == row.species) == is_right


def _count_accepted(decided: Decided, is_right: bool) -> Proportion:
    species = decided.accepted.species
    return Proportion(species.count if is_right else species.images - species.count, decided.rejected_share.images)
