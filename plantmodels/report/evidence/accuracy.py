"""Counts the accuracy of both precisions from the image rows.

Three things are counted: the species; the disease given the TRUE species (its head answers, whatever the species model
says); and both together, by hard and by soft routing.

>>> from plantmodels.bundle.metadata import read_metadata
>>> from plantmodels.report.per_image import read_image_rows
>>> table = ImageTable.from_rows(read_image_rows(bundle / "gate-images.csv"))
>>> count_accuracy(table.of_set("val"), read_metadata(bundle).taxonomy, Temperatures(0.8, 1.1)).int8.species
Proportion(count=45, images=45)
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plantmodels.arrays import Mask
from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.report.calibration.count import count_probabilities
from plantmodels.report.evidence.columns import ImageTable, Names
from plantmodels.report.results import Accuracy, Baseline, ClassRow, PrecisionAccuracy
from plantmodels.report.statistics import PairedCounts, Proportion


@dataclass(frozen=True)
class Temperatures:
    """By what the logits of a bundle are divided before they become probabilities."""

    species: float
    disease: float


@dataclass(frozen=True)
class _Answers:
    """Which of n leaves each precision gets right; first FP16, then INT8."""

    species: tuple[Mask, Mask]
    disease: tuple[Mask, Mask]
    both: tuple[Mask, Mask]


def count_accuracy(leaves: ImageTable, taxonomy: Taxonomy, temperatures: Temperatures) -> Accuracy:
    """Return how often each precision is right.

    Args:
        leaves: the validation leaves.
        taxonomy: the bundle's species and diseases.
        temperatures: the temperatures that are served.

    Raises:
        ValueError: an image has a class that the taxonomy lacks.
    """
    truth, disease = leaves.text("species"), leaves.text("disease")
    labels = _name_classes(leaves, taxonomy)
    has_head = _are(disease != "")
    right = _find_right(leaves)
    soft = right.species[1] & (_are(leaves.text("int8_soft_disease") == disease) | ~has_head)
    routings = [_are(leaves.text(f"int8_{routing}_disease") == disease) for routing in ("routed", "soft")]
    return Accuracy(
        species=count_pairs(*right.species),
        disease=count_pairs(*(hits[has_head] for hits in right.disease)),
        end_to_end=count_pairs(*right.both),
        routing=count_pairs(right.both[1], soft),
        disease_routing=count_pairs(*(hits[has_head] for hits in routings)),
        species_flips=int(_are(leaves.text("fp16_species") != leaves.text("int8_species")).sum()),
        disease_flips=int(_are(leaves.text("fp16_disease") != leaves.text("int8_disease")).sum()),
        by_species=_count_classes(truth, right.species, taxonomy.species),
        by_disease=_count_classes(
            labels[has_head], [hits[has_head] for hits in right.disease], list_classes(taxonomy, only_with_head=True)
        ),
        by_class=_count_classes(labels, right.both, list_classes(taxonomy)),
        losses_by_species=_count_losses(truth, right.both, taxonomy.species),
        species_baseline=_find_baseline(truth, right.species[1]),
        class_baseline=_find_baseline(labels, right.both[1]),
        confusions=_count_confusions(truth, leaves.text("int8_species"), taxonomy.species),
        probabilities=count_probabilities(
            leaves,
            _find_several(truth, taxonomy),
            species_temperature=temperatures.species,
            disease_temperature=temperatures.disease,
        ),
    )


def _are(comparison: object) -> Mask:
    return np.asarray(comparison, np.bool_)


def _find_right(leaves: ImageTable) -> _Answers:
    """Where the species is right, hard routing asks the true species' head."""
    species, disease = (
        tuple(_are(leaves.text(f"{precision}_{what}") == leaves.text(what)) for precision in ("fp16", "int8"))
        for what in ("species", "disease")
    )
    both = tuple(a & b for a, b in zip(species, disease, strict=True))
    return _Answers((species[0], species[1]), (disease[0], disease[1]), (both[0], both[1]))


def count_right(leaves: ImageTable) -> PrecisionAccuracy:
    """Return how often INT8, which is served, is right.

    Args:
        leaves: rows of labelled leaves.
    """
    right, has_head = _find_right(leaves), _are(leaves.text("disease") != "")
    species, disease, both = (
        Proportion(int(hits.sum()), len(hits)) for hits in (right.species[1], right.disease[1][has_head], right.both[1])
    )
    return PrecisionAccuracy(species, disease, both)


def name_class(species: str, disease: str) -> str:
    """Return the name of a class: "<species>___<disease>", or the species alone without a head."""
    return f"{species}___{disease}" if disease else species


def list_classes(taxonomy: Taxonomy, *, only_with_head: bool = False) -> list[str]:
    """Return the names of all classes in the taxonomy's order."""
    return [
        name_class(species, disease)
        for index, species in enumerate(taxonomy.species)
        for disease in taxonomy.diseases_of(index) or ([] if only_with_head else [""])
    ]


def _name_classes(leaves: ImageTable, taxonomy: Taxonomy) -> Names:
    pairs = list(zip(leaves.text("species"), leaves.text("disease"), strict=True))
    names = {pair: name_class(*pair) for pair in dict.fromkeys(pairs)}
    known = set(list_classes(taxonomy))
    for name in names.values():
        if name not in known:
            raise ValueError(f"a leaf is of the class {name!r:.80}, which the taxonomy lacks")
    return np.array([names[pair] for pair in pairs], dtype=object)


def _find_several(species: Names, taxonomy: Taxonomy) -> Mask:
    """Return which leaves are of a species with several diseases."""
    several = {name for name, diseases in taxonomy.diseases.items() if len(diseases) > 1}
    return np.array([name in several for name in species], np.bool_)


def count_pairs(first: Mask, second: Mask) -> PairedCounts:
    """Return how often both are right, only one is, or neither is."""
    return PairedCounts(
        *(int(part.sum()) for part in (first & second, first & ~second, ~first & second, ~first & ~second))
    )


def _count_classes(labels: Names, right: Sequence[Mask], order: Sequence[str]) -> dict[str, ClassRow]:
    """Return the counts of each class that has images, in the given order."""
    images = Counter(labels.tolist())
    fp16, int8 = (Counter(labels[hits].tolist()) for hits in right)
    return {name: ClassRow(images[name], fp16[name], int8[name]) for name in order if name in images}


def _count_losses(truth: Names, right: Sequence[Mask], order: Sequence[str]) -> dict[str, PairedCounts]:
    """Return how often both precisions, one or none are right for each species that has leaves, in the given order."""
    leaves: dict[str, list[int]] = {}
    for place, name in enumerate(truth.tolist()):
        leaves.setdefault(name, []).append(place)
    return {name: count_pairs(*(hits[leaves[name]] for hits in right)) for name in order if name in leaves}


def _find_baseline(labels: Names, right: Mask) -> Baseline:
    """Return the commonest label, the first in the alphabet of equals, against INT8."""
    counts = Counter(labels.tolist())
    commonest = min(counts, key=lambda name: (-counts[name], name), default="")
    return Baseline(commonest, count_pairs(_are(labels == commonest), right))


def _count_confusions(truth: Names, answers: Names, order: Sequence[str]) -> dict[str, dict[str, int]]:
    wrong = _are(truth != answers)
    counts = Counter(zip(truth[wrong].tolist(), answers[wrong].tolist(), strict=True))
    places = {name: place for place, name in enumerate(order)}
    found: dict[str, dict[str, int]] = {}
    for true, answer in sorted(counts, key=lambda pair: [places.get(name, len(places)) for name in pair]):
        found.setdefault(true, {})[answer] = counts[true, answer]
    return found
