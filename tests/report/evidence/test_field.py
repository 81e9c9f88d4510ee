"""Field leaves are counted by the decision of the detector, beside the validation leaves."""

import re
from dataclasses import replace

import numpy as np
import pytest

from plantmodels.report.evidence.accuracy import Temperatures, count_accuracy
from plantmodels.report.evidence.columns import ImageTable
from plantmodels.report.evidence.field import (
    Answers,
    Decided,
    compare_field,
    count_decided,
    count_field,
    describe_field,
)
from plantmodels.report.evidence.rejection import count_rejection
from plantmodels.report.per_image import ImageRow
from plantmodels.report.policy import GatePolicy
from plantmodels.report.statistics import Proportion
from tests.fixtures.reports import TAXONOMY, make_report
from tests.fixtures.rows import agree, make_leaf_rows, make_other_rows

THRESHOLD = 12.5
TEMPERATURES = Temperatures(0.8, 0.8)
VAL = tuple(make_leaf_rows(TAXONOMY, 200, threshold=THRESHOLD, alarms=0.01))
FIELD = tuple(make_leaf_rows(TAXONOMY, 90, threshold=THRESHOLD, wrong=0.5, alarms=0.6, name="field"))
OTHERS = tuple(make_other_rows(TAXONOMY, 50, threshold=THRESHOLD, recall=0.9))
UNSEEN = tuple(make_other_rows(TAXONOMY, 8, threshold=THRESHOLD, recall=0.5, name="unseen-plants"))
TABLE = ImageTable.from_rows((*VAL, *OTHERS, *UNSEEN, *FIELD))


def count_slowly(rows: tuple[ImageRow, ...], rejected: bool) -> Answers:
    mine = [row for row in rows if row.rejected is rejected]
    species = sum(row.int8_species == row.species for row in mine)
    both = sum((row.int8_species, row.int8_routed_disease) == (row.species, row.disease) for row in mine)
    mean = sum(row.species_probability for row in mine) / len(mine) if mine else None
    return Answers(Proportion(species, len(mine)), Proportion(both, len(mine)), mean)


def agrees(found: Answers, expected: Answers) -> bool:
    same = (found.species, found.end_to_end) == (expected.species, expected.end_to_end)
    return same and found.confidence == pytest.approx(expected.confidence, rel=1e-12)


def test_answers_equal_those_of_a_slow_loop_for_each_decision_and_species() -> None:
    found = count_field(TABLE, TAXONOMY, TEMPERATURES, threshold=THRESHOLD, held_out=True)

    assert found is not None
    assert 0 < found.decided.accepted.images < len(FIELD)
    by_species = {name: tuple(row for row in FIELD if row.species == name) for name in found.by_species}
    sides = [(found.decided, FIELD), (found.val_decided, VAL)]
    sides += [(found.by_species[name], rows) for name, rows in by_species.items()]
    assert sum(map(len, by_species.values())) == len(FIELD)
    for decided, rows in sides:
        assert agrees(decided.accepted, count_slowly(rows, False))
        assert agrees(decided.rejected, count_slowly(rows, True))
        assert decided.rejected_share == Proportion(sum(row.rejected for row in rows), len(rows))


def test_field_leaves_stand_in_the_place_of_the_plants_and_change_nothing_else() -> None:
    found = count_field(TABLE, TAXONOMY, TEMPERATURES, threshold=THRESHOLD, held_out=True)
    as_val = ImageTable.from_rows((*(replace(row, set="val") for row in FIELD), *OTHERS, *UNSEEN))
    without = ImageTable.from_rows((*VAL, *OTHERS, *UNSEEN))

    assert found is not None
    assert found.accuracy == count_accuracy(as_val.of_set("val"), TAXONOMY, TEMPERATURES)
    assert found.rejection == count_rejection(as_val, threshold=THRESHOLD, held_out=True)
    assert count_rejection(TABLE, threshold=THRESHOLD, held_out=True) == count_rejection(
        without, threshold=THRESHOLD, held_out=True
    )


def test_without_field_leaves_there_is_nothing() -> None:
    table = ImageTable.from_rows((*VAL, *OTHERS))
    assert count_field(table, TAXONOMY, TEMPERATURES, threshold=THRESHOLD, held_out=True) is None


def test_p_values_are_counted_where_there_are_any() -> None:
    p_values = [0.001, 0.01, 0.03, 0.05, 0.2, None]
    rows = [replace(VAL[0], ood_p_value=p_value) for p_value in p_values]

    assert count_decided(ImageTable.from_rows(rows)).low_p_values == {
        "0.05": Proportion(4, 5),
        "0.01": Proportion(2, 5),
    }


def test_no_accepted_leaf_has_no_confidence() -> None:
    rows = [replace(row, rejected=True, ood_score=THRESHOLD + 1) for row in FIELD[:5]]
    accepted = count_decided(ImageTable.from_rows(rows)).accepted
    assert (accepted.images, accepted.confidence, accepted.species.value) == (0, None, None)


def test_the_table_says_what_acceptance_is_worth() -> None:
    """Half of the accepted field leaves are wrong; the table must show that beside the validation leaves."""
    report = agree(make_report(), (*VAL, *OTHERS, *UNSEEN, *FIELD))
    assert report.field is not None and report.accuracy is not None and report.rejection is not None
    rows = {row.name: row for row in compare_field(report.field, report.accuracy, report.rejection)}

    accepted = rows["accepted: species right"]
    assert accepted.field.counts == report.field.decided.accepted.species
    assert accepted.val.counts == report.field.val_decided.accepted.species
    assert rows["non-plants among rejected images, at equal numbers"].field.value == pytest.approx(0.9 / (0.9 + 0.6))
    assert rows["accepted: mean probability of the species"].field.value == pytest.approx(
        np.mean([row.species_probability for row in FIELD if not row.rejected])
    )
    text = describe_field(report.field, report.accuracy, report.rejection)
    assert "200 val leaves" in text and "90 field leaves" in text
    assert re.search(r"^rejected +1\.00 % +60\.00 % +49\.\d\d to 69\.\d\d$", text, re.MULTILINE)
    assert text in report.table()
    assert report.metrics()["field.rejected"] == 0.6


def test_a_report_without_field_leaves_has_no_table_of_them() -> None:
    report = make_report()
    assert "field" not in report.table()
    assert not [name for name in report.metrics() if name.startswith("field")]


def test_the_decision_is_a_value() -> None:
    empty = Answers(Proportion(0, 0), Proportion(0, 0), None)
    assert Decided(empty, empty, {}).rejected_share == Proportion(0, 0)


@pytest.mark.parametrize(
    ("limits", "missed"),
    [
        ({}, set()),
        ({"min_field_species": 0.5, "min_field_end_to_end": 0.5, "min_field_accepted": 0.4}, set()),
        ({"min_field_species": 0.51}, {"field species"}),
        ({"min_field_end_to_end": 0.51}, {"field end to end"}),
        ({"min_field_accepted": 0.41}, {"field accepted"}),
        ({"min_field_accepted_right": 0.5}, {"field accepted and right"}),
        ({"min_field_species": 0.5, "min_field_images": 91}, {"field species"}),
    ],
)
def test_field_leaves_are_gated_only_where_the_policy_asks(limits: dict[str, float], missed: set[str]) -> None:
    policy = GatePolicy(**{f"accuracy_{name}": value for name, value in limits.items()})
    report = agree(make_report(policy), (*VAL, *OTHERS, *FIELD))
    gate = report.gate("accuracy")

    assert {value.name for value in gate.values if not gate.is_met(value)} == missed
    assert gate.passed == (not missed)
    if "min_field_images" in limits:
        assert "needs at least 91 field leaves (--field), got 90" in gate.detail


def test_a_limit_on_field_leaves_fails_without_any() -> None:
    gate = agree(make_report(GatePolicy(accuracy_min_field_species=0.1)), (*VAL, *OTHERS)).gate("accuracy")
    assert gate.status == "failed"
    assert gate.detail.startswith("needs at least 50 field leaves (--field), got 0; ")
