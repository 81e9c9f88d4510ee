"""What was measured, in words and as a table for a terminal.

>>> from plantmodels.report.gate_report import read_report
>>> describe_accuracy(read_report(bundle).accuracy)[:38]
'The INT8 model names the right species'
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from plantmodels.report.evidence.field import Field, describe_field
from plantmodels.report.evidence.worst import find_worst
from plantmodels.report.formatting import align_columns, format_percent
from plantmodels.report.results import Accuracy, Rejection

if TYPE_CHECKING:
    from plantmodels.report.gate_report import GateReport

UNCERTAIN_MEANS: Final = (
    "uncertain: the value meets its limit, but the worse end of its interval (the bound) does not; "
    "more images would tell"
)
"""What people read below a table with an uncertain verdict."""

_STATUS_TEXT: Final = {"uncertain": "UNCERTAIN", "failed": "FAILED", "not measured": "NOT MEASURED"}


def write_table(report: "GateReport") -> str:
    """Return the gates, the facts about accuracy, rejection and field leaves, and the verdict, for a terminal."""
    rows = [
        (gate.name, gate.limit_text, gate.measured_text, gate.samples_text, _STATUS_TEXT.get(gate.status, gate.status))
        for gate in report.gates
    ]
    lines = align_columns(("gate", "limit", "measured", "samples", "status"), rows)
    notes = [
        f"{gate.name}: {gate.detail}" for gate in report.gates if gate.detail and (gate.is_uncertain or not gate.passed)
    ]
    if any(gate.is_uncertain for gate in report.gates):
        notes.append(UNCERTAIN_MEANS)
    facts = [describe_accuracy(report.accuracy), *_describe_crossing(report), report.inputs.describe_calibration()]
    facts += filter(None, [find_worst(report.accuracy, report.rejection).describe()])
    facts += filter(None, [describe_rejection(report.rejection, report.policy.ood_precision_non_plant_share)])
    facts += _describe_field(report)
    return "\n".join((*lines, "", *facts, "", *notes, report.verdict))


def _describe_crossing(report: "GateReport") -> Iterator[str]:
    if report.leakage is not None and report.leakage.crossing is not None:
        yield report.leakage.crossing.describe()


def _describe_field(report: "GateReport") -> Iterator[str]:
    if report.field is not None and report.accuracy is not None and report.rejection is not None:
        yield ""
        yield describe_field(report.field, report.accuracy, report.rejection)


def describe_accuracy(accuracy: Accuracy | None) -> str:
    """Return the accuracy of the INT8 model, which is served, in words: species, both, and disease given the species.

    Args:
        accuracy: the measured accuracy; None when the models could not be run.
    """
    if accuracy is None:
        return "The models could not be run, so their accuracy is unknown."
    int8 = accuracy.int8
    text = (
        f"The INT8 model names the right species for {format_percent(int8.species.value, 1)} of "
        f"{int8.species.images:,} validation images, and the right species and disease for "
        f"{format_percent(int8.end_to_end.value, 1)}."
    )
    if int8.disease.images:
        text += f" Given the true species, it names the right disease for {format_percent(int8.disease.value, 1)}."
    return text


def summarize_field(field: Field | None) -> str:
    """Return in a sentence what the bundle does with leaves from another place; "" without any.

    Args:
        field: what was measured on field leaves.
    """
    if field is None:
        return ""
    right, accepted = field.accuracy.int8.species, field.decided.accepted.species
    text = (
        f"Of {right.images:,} field leaves, it names the right species for {format_percent(right.value, 1)}; the "
        f"detector accepts {accepted.images:,}"
    )
    if not accepted.images:
        return f"{text} of them."
    return f"{text} of them, and {format_percent(accepted.value, 1)} of these have the right species."


def describe_rejection(rejection: Rejection | None, share: float) -> str:
    """Return what the detector rejects, and the precision for a share of non-plants, in words; "" without non-plants.

    Args:
        rejection: the measured rejection; None when the models could not be run.
        share: share of non-plants among all images, from the policy.
    """
    precision = None if rejection is None else rejection.precision_of(rejection.non_plants, share)
    if rejection is None or precision is None:
        return ""
    return (
        f"The detector rejects {format_percent(rejection.recall)} of non-plants and "
        f"{format_percent(rejection.false_alarm_rate)} of leaves (false alarms). If {format_percent(share, 0)} of all "
        f"images are non-plants, {format_percent(precision)} of the rejected images are non-plants."
    )
