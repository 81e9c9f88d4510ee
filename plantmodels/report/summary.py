"""How often the model is right, in words, and field leaves beside validation leaves.

>>> from plantmodels.report.gate_report import read_report
>>> describe_accuracy(read_report(bundle).accuracy)[:38]
'The INT8 model names the right species'
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from plantmodels.report.evidence.field import P_VALUES, Decided, Field
from plantmodels.report.formatting import align_columns, format_percent, format_range
from plantmodels.report.results import Accuracy, Rejection
from plantmodels.report.statistics import Interval, Proportion

ACCEPTED_MEANS: Final = (
    "The detector accepts what looks like its training data. That says nothing about whether the answer is right."
)
"""What people read below the comparison of field leaves with validation leaves."""


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


@dataclass(frozen=True)
class Measurement:
    """A number from 0 to 1 that is measured on leaves.

    Attributes:
        value: the number; None where it is not defined.
        interval: its 95 % interval; None where there is none.
        counts: what was counted, if it is a proportion.
    """

    value: float | None
    interval: Interval | None = None
    counts: Proportion | None = None

    @classmethod
    def of(cls, counts: Proportion) -> "Measurement":
        """Return a proportion with its interval."""
        return cls(counts.value, counts.interval, counts)


@dataclass(frozen=True)
class ComparedRow:
    """A number of the validation leaves beside the same number of the field leaves."""

    name: str
    val: Measurement
    field: Measurement


def compare_field(field: Field, accuracy: Accuracy, rejection: Rejection) -> tuple[ComparedRow, ...]:
    """Return field leaves beside validation leaves, number by number.

    Args:
        field: what was measured on field leaves.
        accuracy: what was measured on validation leaves.
        rejection: what the threshold rejects of validation leaves and non-plants.
    """
    val = _list_measurements(accuracy, rejection, field.val_decided)
    elsewhere = _list_measurements(field.accuracy, field.rejection, field.decided)
    return tuple(ComparedRow(name, value, other) for (name, value), (_, other) in zip(val, elsewhere, strict=True))


def _list_measurements(accuracy: Accuracy, rejection: Rejection, decided: Decided) -> Iterator[tuple[str, Measurement]]:
    right, accepted, rejected = accuracy.int8, decided.accepted, decided.rejected
    yield "species right", Measurement.of(right.species)
    yield "species and disease right", Measurement.of(right.end_to_end)
    yield "disease right, given the true species", Measurement.of(right.disease)
    yield "calibration error of the species (ECE)", Measurement(accuracy.species_calibration.after.ece)
    yield "rejected", Measurement.of(decided.rejected_share)
    for least in map(str, P_VALUES):
        yield f"p-value at most {least}", Measurement.of(decided.low_p_values.get(least, Proportion(0, 0)))
    precision = Measurement(rejection.precision, rejection.precision_interval)
    yield "non-plants among rejected images, at equal numbers", precision
    yield "accepted: species right", Measurement.of(accepted.species)
    yield "accepted: mean probability of the species", Measurement(accepted.confidence)
    yield "accepted: species and disease right", Measurement.of(accepted.end_to_end)
    yield "rejected: species right", Measurement.of(rejected.species)


def _format_interval(interval: Interval) -> str:
    low, high = interval
    return format_range(100 * low, 100 * high)


def describe_field(field: Field, accuracy: Accuracy, rejection: Rejection) -> str:
    """Return field leaves beside validation leaves as a plain-text table for a terminal; see `compare_field`."""
    rows = [
        (
            row.name,
            format_percent(row.val.value),
            format_percent(row.field.value),
            "" if row.field.interval is None else _format_interval(row.field.interval),
        )
        for row in compare_field(field, accuracy, rejection)
    ]
    header = (
        "INT8, which is served",
        f"{accuracy.species.images:,} val leaves",
        f"{field.accuracy.species.images:,} field leaves",
        "95 % interval",
    )
    return "\n".join((*align_columns(header, rows), ACCEPTED_MEANS))
