"""Checks the random halves on embeddings that are drawn here."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.students.halves import Embedded, Round, measure_halves, render
from plantmodels.export.calibration.embedding import EmbeddedImages, EmbeddedLeaves
from plantmodels.ood.embeddings import LeafEmbeddings, ModelOutputs, NonPlantEmbeddings
from plantmodels.report.statistics import Proportion

RNG = np.random.default_rng(0)


def outputs(count: int, shift: float) -> ModelOutputs:
    return ModelOutputs(RNG.normal(shift, 1, (count, 4)).astype(np.float32), np.zeros((count, 2), np.float32))


def leaves(count: int) -> EmbeddedLeaves:
    zeros = np.zeros(count, np.int64)
    return EmbeddedLeaves(LeafEmbeddings(outputs(count, 0), zeros, zeros), ())


def embedded(seen: int) -> Embedded:
    images = EmbeddedImages(leaves(200), None, leaves(120), None, ())
    others = NonPlantEmbeddings(outputs(100, 6), np.repeat("x", 100))
    return Embedded(images, outputs(150, 0), others, np.arange(100) < seen)


def test_a_half_is_measured_by_the_detector_of_the_other_half():
    rounds = list(measure_halves(embedded(0), 3))
    assert [each.non_plants.images for each in rounds] == [50] * 3
    assert {each.plants.images for each in rounds} == {150}
    assert all((each.non_plants.value or 0) > 0.95 and (each.plants.value or 0) < 0.05 for each in rounds)


def test_what_the_network_has_learned_is_never_measured():
    rounds = list(measure_halves(embedded(30), 4))
    assert [each.non_plants.images for each in rounds] == [70] * 4


@pytest.mark.parametrize(
    ("plants", "non_plants", "verdict"),
    [
        (Proportion(2, 1539), Proportion(313, 314), "passed"),
        (Proportion(13, 1539), Proportion(313, 314), "passed, uncertain"),
        (Proportion(2, 1539), Proportion(300, 314), "passed, uncertain"),
        (Proportion(20, 1539), Proportion(313, 314), "failed"),
        (Proportion(2, 1539), Proportion(290, 314), "failed"),
        (Proportion(0, 1539), Proportion(0, 314), "failed"),
    ],
)
def test_a_round_is_judged_as_the_gates_are(plants: Proportion, non_plants: Proportion, verdict: str):
    each = Round(plants, non_plants)
    assert each.judge() == verdict
    assert f"| {verdict} |" in render([each])


def test_the_numbers_of_a_round_are_those_of_a_report(measured):
    each = Round(Proportion(4, 900), Proportion(190, 200))
    rejection = replace(measured().rejection, plants=each.plants, non_plants=each.non_plants)
    assert each.precision == pytest.approx(rejection.precision)
    assert each.bounds == pytest.approx((rejection.precision_interval[0], rejection.non_plants.interval[0]))


def test_the_table_counts_the_rounds_that_pass():
    passed, uncertain = (Round(Proportion(k, 1539), Proportion(313, 314)) for k in (2, 13))
    assert "Both gates pass in 2 of 2 rounds, with certainty in 1." in render([passed, uncertain])
    assert "| 0 | 2 of 1539 | 99.87 | 99.44 | 99.68 | 98.22 | passed |" in render([passed])
