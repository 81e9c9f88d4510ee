"""Counts what a bundle does with field leaves: labelled leaves from another place than the data it was trained on.

A detector that accepts a leaf says that it looks like the training data, and not that the answer is right. So the
answers are counted by its decision.

>>> from plantmodels.report.per_image import read_image_rows
>>> table = ImageTable.from_rows(read_image_rows(bundle / "gate-images.csv"))
>>> decided = count_decided(table.of_set("val"))
>>> decided.accepted.images + decided.rejected.images, decided.rejected_share.images
(45, 45)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from plantmodels.arrays import Mask
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.report.evidence.accuracy import Temperatures, count_accuracy
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.evidence.rejection import count_rejection
from plantmodels.report.formatting import align_columns, format_percent, format_range
from plantmodels.report.results import Accuracy, Rejection
from plantmodels.report.statistics import Interval, Proportion

P_VALUES: Final = (0.05, 0.01)
"""Of leaves like those that the detector was calibrated on, these shares have a p-value of at most this number."""

ACCEPTED_MEANS: Final = (
    "The detector accepts what looks like its training data. That says nothing about whether the answer is right."
)
"""What people read below the comparison of field leaves with validation leaves."""


@dataclass(frozen=True)
class Answers:
    """The answers of INT8 to some leaves.

    Attributes:
        species: leaves with the right species, of all.
        end_to_end: leaves with the right species and disease, of all; without a disease head, the species alone counts.
        confidence: mean probability of the answered species; None without leaves.
    """

    species: Proportion
    end_to_end: Proportion
    confidence: float | None

    @property
    def images(self) -> int:
        """Number of leaves."""
        return self.species.images


@dataclass(frozen=True)
class Decided:
    """Leaves of one place, by the decision of the detector.

    Attributes:
        accepted: answers to the leaves that it accepts.
        rejected: answers to the leaves that it rejects; a service does not show them.
        low_p_values: each of `P_VALUES`, as text, to the leaves with a p-value of at most that number, of the leaves
            that have one.
    """

    accepted: Answers
    rejected: Answers
    low_p_values: Mapping[str, Proportion]

    @property
    def rejected_share(self) -> Proportion:
        """Rejected leaves, of all."""
        return Proportion(self.rejected.images, self.accepted.images + self.rejected.images)


@dataclass(frozen=True)
class Field:
    """What was measured on field leaves.

    Attributes:
        accuracy: accuracy and calibration of both precisions, counted as on validation leaves.
        rejection: rejection of the field leaves, which stand in the place of the plants, and of the non-plants.
        decided: the field leaves by the decision of the detector.
        val_decided: the validation leaves by the decision of the detector, to compare with.
        by_species: species to its field leaves by the decision of the detector. Species without leaves are absent.
    """

    accuracy: Accuracy
    rejection: Rejection
    decided: Decided
    val_decided: Decided
    by_species: Mapping[str, Decided]


def count_field(
    table: ImageTable, taxonomy: Taxonomy, temperatures: Temperatures, *, threshold: float, held_out: bool
) -> Field | None:
    """Return what was measured on field leaves; None if there are none.

    Args:
        table: all image rows.
        taxonomy: the bundle's species and diseases.
        temperatures: the temperatures that are served.
        threshold: an image whose score exceeds this value is rejected.
        held_out: whether the non-plants are the half that was not used to choose the detector.

    Raises:
        ValueError: a leaf has a class that the taxonomy lacks.
    """
    leaves = table.of_set("field")
    if not len(leaves):
        return None
    species = leaves.text("species")
    return Field(
        accuracy=count_accuracy(leaves, taxonomy, temperatures),
        rejection=count_rejection(table, threshold=threshold, held_out=held_out, plants="field"),
        decided=count_decided(leaves),
        val_decided=count_decided(table.of_set("val")),
        by_species={
            name: count_decided(leaves.where(chosen))
            for name in taxonomy.species
            if (chosen := np.asarray(species == name, np.bool_)).any()
        },
    )


def count_decided(leaves: ImageTable) -> Decided:
    """Return the answers to leaves by the decision of the detector.

    Args:
        leaves: rows of labelled leaves.
    """
    rejected = leaves.truths("rejected")
    p_values = leaves.numbers("ood_p_value")
    known = p_values[~np.isnan(p_values)]
    return Decided(
        accepted=_count_answers(leaves.where(~rejected)),
        rejected=_count_answers(leaves.where(rejected)),
        low_p_values={str(least): Proportion(int((known <= least).sum()), len(known)) for least in P_VALUES},
    )


def _count_answers(leaves: ImageTable) -> Answers:
    species = _agrees(leaves, "int8_species", "species")
    both = species & _agrees(leaves, "int8_routed_disease", "disease")
    confidence = float(leaves.numbers("species_probability").mean()) if len(leaves) else None
    return Answers(Proportion(int(species.sum()), len(leaves)), Proportion(int(both.sum()), len(leaves)), confidence)


def _agrees(leaves: ImageTable, answer: str, truth: str) -> Mask:
    return np.asarray(leaves.text(answer) == leaves.text(truth), np.bool_)


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
    calibration = accuracy.probabilities.served.get("species")  # reports of older formats lack it
    error = None if calibration is None else calibration.after.ece
    yield "species right", Measurement.of(right.species)
    yield "species and disease right", Measurement.of(right.end_to_end)
    yield "disease right, given the true species", Measurement.of(right.disease)
    yield "calibration error of the species (ECE)", Measurement(error)
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
    """Return field leaves beside validation leaves as a plain-text table for a terminal.

    Args:
        field: what was measured on field leaves.
        accuracy: what was measured on validation leaves.
        rejection: what the threshold rejects of validation leaves and non-plants.
    """
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
