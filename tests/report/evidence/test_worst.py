"""The worst species and source: a pooled share must not hide one that is lost."""

from dataclasses import replace

import pytest
from scipy import stats

from plantmodels.report.evidence.judge import judge_gates
from plantmodels.report.evidence.worst import find_worst, find_worst_loss, find_worst_share
from plantmodels.report.policy import GatePolicy
from plantmodels.report.statistics import PairedCounts, Proportion
from tests.fixtures.reports import SMALL_SETS, make_accuracy, make_measured

SPECIES = {f"species {number}": Proportion(1, 117) for number in range(13)}


def test_a_species_that_is_rejected_as_a_whole_is_named_although_the_pooled_share_is_small() -> None:
    worst = find_worst_share({**SPECIES, "Raspberry": Proportion(11, 11)})
    assert worst is not None
    assert (worst.text, worst.share, worst.beyond_chance) == ("11 of 11 Raspberry", 1.0, ("Raspberry",))
    table = [[11, 0], [13, 13 * 116]]
    assert worst.p_value == pytest.approx(14 * stats.fisher_exact(table).pvalue)


def test_one_bad_image_of_a_small_species_is_chance() -> None:
    worst = find_worst_share({**SPECIES, "Raspberry": Proportion(1, 11)})
    assert worst is not None
    assert (worst.name, worst.beyond_chance) == ("Raspberry", ())
    assert worst.p_value > 0.5


def test_a_species_that_is_lost_in_int8_is_named() -> None:
    kept = {f"species {number}": PairedCounts(110, 1, 1, 5) for number in range(13)}
    worst = find_worst_loss({**kept, "Raspberry": PairedCounts(0, 11, 0, 0)})
    assert worst is not None
    assert (worst.text, worst.beyond_chance) == ("11 of 11 Raspberry", ("Raspberry",))
    assert worst.p_value == pytest.approx(14 * stats.binomtest(0, 11).pvalue)


def test_a_species_that_gains_is_never_beyond_chance() -> None:
    worst = find_worst_loss({"Mint": PairedCounts(50, 0, 20, 5)})
    assert worst is not None and (worst.count, worst.p_value, worst.beyond_chance) == (-20, 1.0, ())
    assert find_worst_share({"Mint": Proportion(5, 10)}).p_value == 1.0  # type: ignore[union-attr]  # no others


def test_without_images_nothing_is_worst() -> None:
    assert find_worst(None, None).rows == ()
    assert find_worst(None, None).describe() == ""
    assert find_worst_share({"Mint": Proportion(0, 0)}) is None


def test_the_terminal_names_the_worst() -> None:
    measured = make_measured()
    assert find_worst(measured.accuracy, measured.rejection).describe() == (
        "Worst species and source (p-values after Holm): leaves lost from FP16 to INT8: 1 of 80 Apple (p = 1); "
        "leaves rejected: 1 of 200 Apple (p = 1); non-plants accepted: 1 of 30 rocks (p = 1)."
    )


@pytest.mark.parametrize(
    ("limit", "gate"),
    [
        ({"int8_accuracy_max_worst_species": 0.01}, "int8_accuracy"),
        ({"false_alarms_max_worst_species": 0.004}, "false_alarms"),
        ({"ood_recall_min_worst_source": 0.97}, "ood_recall"),
    ],
)
def test_the_policy_may_limit_the_worst(limit: dict[str, float], gate: str) -> None:
    losses = {"Apple": PairedCounts(70, 1, 0, 9), "Mint": PairedCounts(17, 0, 1, 1)}
    measured = make_measured(accuracy=make_accuracy(losses_by_species=losses))
    small = replace(GatePolicy(), **SMALL_SETS)
    assert all(found.passed for found in judge_gates(measured, small))
    judged = {found.name: found for found in judge_gates(measured, replace(small, **limit))}
    assert {name for name, found in judged.items() if not found.passed} == {gate}
    assert ("worst source" if gate == "ood_recall" else "worst species") in judged[gate].measured_text
