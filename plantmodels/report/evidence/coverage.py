"""Which classes have too few validation images to say that the model knows them.

>>> from plantmodels.report.gate_report import read_report
>>> report = read_report(bundle)
>>> find_gaps(report.taxonomy, report.accuracy, species=6, classes=6).total
10
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.report.evidence.accuracy import name_class
from plantmodels.report.formatting import spell_class
from plantmodels.report.results import Accuracy, ClassRow

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
