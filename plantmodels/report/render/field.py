"""What the report's section on field leaves shows: the comparison with validation leaves, and each species.

>>> from plantmodels.report.gate_report import read_report
>>> prepare_field(read_report(bundle)) is None
True
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from plantmodels.report.evidence.field import ACCEPTED_MEANS, ComparedRow, Decided, compare_field

if TYPE_CHECKING:
    from plantmodels.report.gate_report import GateReport


@dataclass(frozen=True)
class FieldView:
    """Values for the template `field.html.j2`.

    Attributes:
        rows: field leaves beside validation leaves.
        by_species: species to its field leaves by the decision of the detector, the largest share of accepted wrong
            answers first.
        explanation: what the decision of the detector does not say.
    """

    rows: tuple[ComparedRow, ...]
    by_species: dict[str, Decided]
    explanation: str


def prepare_field(report: "GateReport") -> FieldView | None:
    """Return what the section on field leaves shows; None if there are none."""
    field = report.field
    if field is None or report.accuracy is None or report.rejection is None:
        return None
    order = sorted(field.by_species.items(), key=lambda item: (-_share_accepted_wrong(item[1]), item[0]))
    return FieldView(compare_field(field, report.accuracy, report.rejection), dict(order), ACCEPTED_MEANS)


def _share_accepted_wrong(decided: Decided) -> float:
    species = decided.accepted.species
    return (species.images - species.count) / max(1, decided.rejected_share.images)
