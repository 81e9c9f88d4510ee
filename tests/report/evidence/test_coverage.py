import dataclasses
from collections.abc import Callable

from plantmodels.bundle.taxonomy import Taxonomy
from plantmodels.report.evidence.coverage import MOST_NAMED, find_gaps
from plantmodels.report.evidence.judge import Measured, judge_gates
from plantmodels.report.policy import GatePolicy
from plantmodels.report.results import Accuracy, ClassRow

TAXONOMY = Taxonomy(("Apple", "Mint", "Rose"), {"Apple": ("rust", "scab"), "Rose": ("spot", "healthy")})


def rows(**images: int) -> dict[str, ClassRow]:
    return {name: ClassRow(count, count, count) for name, count in images.items()}


def test_species_and_disease_classes_below_are_counted_and_named(accuracy: Callable[..., Accuracy]) -> None:
    measured = accuracy(by_species=rows(Apple=10, Rose=4), by_class=rows(Apple___rust=9, Apple___scab=1, Rose___spot=4))
    gaps = find_gaps(TAXONOMY, measured, species=5, classes=1)
    assert (gaps.species, gaps.classes) == ({"Mint": 0, "Rose": 4}, {"Rose___healthy": 0})
    assert (gaps.total, gaps.all_species, gaps.all_classes) == (3, 3, 4)
    assert gaps.describe(species=5, classes=1) == (
        "2 of 3 species have fewer than 5 validation images: Mint (0), Rose (4); "
        "1 of 4 disease classes have no validation image: Rose · healthy"
    )


def test_enough_images_of_everything_leave_no_gap(accuracy: Callable[..., Accuracy]) -> None:
    measured = accuracy(
        by_species=rows(Apple=5, Mint=5, Rose=5),
        by_class=rows(Apple___rust=1, Apple___scab=4, Mint=5, Rose___spot=2, Rose___healthy=3),
    )
    gaps = find_gaps(TAXONOMY, measured, species=5, classes=1)
    assert (gaps.total, gaps.describe(species=5, classes=1)) == (0, "")


def test_of_many_species_without_images_the_gate_says_how_many(
    measured: Callable[..., Measured], accuracy: Callable[..., Accuracy]
) -> None:
    """330 species of which 14 have images."""
    names = tuple(f"Plant {number:03d}" for number in range(330))
    counted = accuracy(by_species={name: ClassRow(100, 90, 90) for name in names[:14]}, by_class={})
    everything = dataclasses.replace(measured(accuracy=counted), taxonomy=Taxonomy(names, {}))
    gate = next(gate for gate in judge_gates(everything, GatePolicy()) if gate.name == "coverage")
    assert (gate.status, gate.measured, gate.measured_text, gate.limit_text) == ("failed", 316, "316", "0 classes")
    assert gate.detail == "316 of 330 species have fewer than 5 validation images"
    assert MOST_NAMED == 20
