"""Field leaves of two versions: answers and decisions are compared, and a side without field leaves says so."""

from dataclasses import replace

import pytest

from plantmodels.bundle.metadata import Metadata, Preprocessing
from plantmodels.compare.measures import compare_measures
from plantmodels.compare.model import Section
from plantmodels.compare.pairing import VerifiedBundle
from plantmodels.report.per_image import ImageRow
from tests.fixtures.reports import TAXONOMY, make_report
from tests.fixtures.rows import agree, make_leaf_rows, make_other_rows

METADATA = Metadata(TAXONOMY, Preprocessing(16, (0, 0, 0), (1, 1, 1)), 4, {}, {}, {}, {}, {})
OTHERS = (*make_leaf_rows(TAXONOMY, 40, threshold=12.5), *make_other_rows(TAXONOMY, 40, threshold=12.5))


def make_field(wrong: float, alarms: float, images: int = 200) -> tuple[ImageRow, ...]:
    return tuple(make_leaf_rows(TAXONOMY, images, threshold=12.5, wrong=wrong, alarms=alarms, name="field"))


def verify(field: tuple[ImageRow, ...], *, with_rows: bool = True) -> VerifiedBundle:
    rows = (*OTHERS, *field)
    return VerifiedBundle(agree(make_report(), rows), METADATA, rows if with_rows else None)


def find_section(a: VerifiedBundle, b: VerifiedBundle) -> Section | None:
    return next((section for section in compare_measures(a, b) if section.title == "Field leaves"), None)


@pytest.mark.parametrize("with_rows", [True, False])
def test_answers_and_accepted_leaves_are_compared(with_rows: bool) -> None:
    a, b = verify(make_field(0.6, 0.5), with_rows=with_rows), verify(make_field(0.2, 0.0), with_rows=with_rows)
    section = find_section(a, b)
    assert section is not None
    assert section.note.startswith("Labelled leaves from another place: the same ")
    assert ("McNemar" in section.note) is with_rows
    found = {measure.name: measure for measure in section.measures}
    assert list(found) == [
        "species, INT8",
        "disease given the species, INT8",
        "end to end, INT8",
        "accepted, with the right species",
        "accepted, with a wrong species",
    ]
    for side, bundle in (("a", a), ("b", b)):
        decided = bundle.report.field.decided
        right = decided.accepted.species.count
        assert getattr(found["species, INT8"], side) == bundle.report.field.accuracy.int8.species.value
        assert getattr(found["accepted, with the right species"], side) == right / 200
        assert getattr(found["accepted, with a wrong species"], side) == (decided.accepted.images - right) / 200
    assert found["species, INT8"].verdict == found["accepted, with the right species"].verdict == "better"


def test_more_accepted_wrong_answers_are_worse() -> None:
    section = find_section(verify(make_field(0.5, 1.0)), verify(make_field(0.5, 0.0)))
    verdicts = {measure.name: measure.verdict for measure in section.measures}
    assert verdicts["accepted, with a wrong species"] == "worse"
    assert verdicts["accepted, with the right species"] == "better"
    assert verdicts["species, INT8"] == "no difference beyond noise"


@pytest.mark.parametrize(("swap", "lacking"), [(False, "A"), (True, "B")])
def test_a_side_without_field_leaves_says_so(swap: bool, lacking: str) -> None:
    pair = [verify(()), verify(make_field(0.4, 0.1))]
    section = find_section(*(reversed(pair) if swap else pair))
    assert [(each.verdict, each.why) for each in section.measures] == [
        ("not comparable", f"{lacking} has no field leaves")
    ]
    assert find_section(pair[0], replace(pair[0])) is None
