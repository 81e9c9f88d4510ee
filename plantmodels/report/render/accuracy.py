"""What the report's sections on accuracy show: both precisions, the classes, confusions, calibration and routing.

>>> from plantmodels.report.gate_report import read_report
>>> view = prepare_accuracy(read_report(bundle).accuracy)
>>> list(view.precisions)
['Species', 'Disease, given the true species', 'End to end, both right']
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from plantmodels.report.calibration.results import SERVED, Calibration, Probabilities, TrueClass
from plantmodels.report.results import SMALL_CLASS, Accuracy, ClassRow
from plantmodels.report.statistics import PairedCounts, Proportion

_MOST_CONFUSIONS: Final = 10
_MORE_CONFUSIONS: Final = 90
"""Further confusions, which are shown on a click."""

_MOST_SMALL_CLASSES: Final = 20
"""Small classes that a line names one by one; more are counted."""


@dataclass(frozen=True)
class ClassAccuracy:
    """A row of the table of classes.

    Attributes:
        name: species, or "<species>___<disease>".
        images: number of images of the class.
        is_small: whether the class has too few images to say much about it.
        fp16: images that FP16 gets right.
        int8: images that INT8 gets right.
    """

    name: str
    images: int
    is_small: bool
    fp16: Proportion
    int8: Proportion


@dataclass(frozen=True)
class Confusion:
    """A species that INT8 took for another one.

    Attributes:
        truth: true species.
        answer: species that INT8 answered.
        share: images with that answer, of all images of the true species.
    """

    truth: str
    answer: str
    share: Proportion


@dataclass(frozen=True)
class AccuracyView:
    """Values for the template `accuracy.html.j2`.

    Attributes:
        precisions: what is asked to FP16 (first) beside INT8 (second).
        routings: what is asked to hard routing (first) beside soft routing (second).
        species: every species with images, the worst first.
        diseases: every disease class with images, the worst first.
        small_classes: name of each small class to its number of images.
        small_limit: number of images below which a class is small.
        names_small_classes: whether there are few enough small classes to name them.
        confusions: the most frequent confusions, most frequent first.
        more_confusions: the next ones.
        confusion_pairs: number of different confusions.
        calibrations: what is served to its calibration, where it was measured.
        true_classes: which true class to its NLL.
    """

    precisions: Mapping[str, PairedCounts]
    routings: Mapping[str, PairedCounts]
    species: tuple[ClassAccuracy, ...]
    diseases: tuple[ClassAccuracy, ...]
    small_classes: Mapping[str, int]
    small_limit: int
    names_small_classes: bool
    confusions: tuple[Confusion, ...]
    more_confusions: tuple[Confusion, ...]
    confusion_pairs: int
    calibrations: Mapping[str, Calibration]
    true_classes: Mapping[str, TrueClass]


def prepare_accuracy(accuracy: Accuracy) -> AccuracyView:
    """Return what the sections on accuracy show."""
    classes = {**accuracy.by_species, **accuracy.by_disease}
    small_classes = {name: row.images for name, row in classes.items() if row.is_small}
    confusions = _list_confusions(accuracy)
    return AccuracyView(
        precisions={
            "Species": accuracy.species,
            "Disease, given the true species": accuracy.disease,
            "End to end, both right": accuracy.end_to_end,
        },
        routings={
            "End to end, species and disease right": accuracy.routing,
            "Disease right, whatever the species": accuracy.disease_routing,
        },
        species=list_classes(accuracy.by_species),
        diseases=list_classes(accuracy.by_disease),
        small_classes=small_classes,
        small_limit=SMALL_CLASS,
        names_small_classes=len(small_classes) <= _MOST_SMALL_CLASSES,
        confusions=tuple(confusions[:_MOST_CONFUSIONS]),
        more_confusions=tuple(confusions[_MOST_CONFUSIONS:][:_MORE_CONFUSIONS]),
        confusion_pairs=len(confusions),
        calibrations=list_calibrations(accuracy.probabilities),
        true_classes={
            "True species": accuracy.probabilities.true_species,
            "True species and disease": accuracy.probabilities.true_both,
        },
    )


def list_calibrations(probabilities: Probabilities) -> dict[str, Calibration]:
    """Return what is served, in words, to its calibration; without those that were not measured."""
    served = probabilities.served
    return {text: served[name] for name, text in SERVED.items() if name in served and served[name].after.images}


def list_classes(rows: Mapping[str, ClassRow]) -> tuple[ClassAccuracy, ...]:
    """Return the classes with images, the lowest INT8 accuracy first; among equals, larger classes first."""
    order = sorted(rows.items(), key=lambda item: (item[1].int8 / max(1, item[1].images), -item[1].images, item[0]))
    return tuple(
        ClassAccuracy(
            name, row.images, row.is_small, Proportion(row.fp16, row.images), Proportion(row.int8, row.images)
        )
        for name, row in order
        if row.images
    )


def _list_confusions(accuracy: Accuracy) -> list[Confusion]:
    found = [
        Confusion(truth, answer, Proportion(images, accuracy.by_species[truth].images))
        for truth, answers in accuracy.confusions.items()
        for answer, images in answers.items()
    ]
    return sorted(found, key=lambda confusion: (-confusion.share.count, confusion.truth, confusion.answer))
