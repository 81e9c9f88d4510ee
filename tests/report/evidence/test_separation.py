"""Checks AUROC, false alarms, ROC curve and their intervals against scikit-learn, a slow loop and simulation."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from plantmodels.report.evidence.separation import (
    MAX_CURVE_POINTS,
    bin_scores,
    estimate_auroc,
    measure_separation,
    trace_roc,
)
from plantmodels.report.statistics import wilson_interval

SCORES = st.lists(st.integers(-5, 5), min_size=1, max_size=40).map(lambda values: np.array(values, float))


@given(SCORES, SCORES)
def test_values_equal_sklearns_with_ties(plants: np.ndarray, others: np.ndarray) -> None:
    found = measure_separation(plants, others)
    labels, scores = np.repeat([0, 1], [len(plants), len(others)]), np.concatenate([plants, others])
    assert found is not None
    assert found.auroc.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    alarms, recall, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert found.fpr_at_95_recall.value == pytest.approx(alarms[recall >= 0.95 - 1e-12].min(), abs=1e-12)
    for estimate in (found.auroc, found.fpr_at_95_recall):
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def delong_slowly(plants: np.ndarray, others: np.ndarray) -> float:
    """The variance by its definition, pair by pair."""
    kernel = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in plants] for x in others])
    parts = [kernel.mean(axis=1).tolist(), kernel.mean(axis=0).tolist()]
    return sum(statistics.variance(part) / len(part) for part in parts)


@given(SCORES, SCORES)
def test_the_interval_of_auroc_is_delongs(plants: np.ndarray, others: np.ndarray) -> None:
    found = estimate_auroc(np.sort(plants), np.sort(others))
    if min(len(plants), len(others)) > 1 and 0 < found.value < 1 and delong_slowly(plants, others) > 0:
        half = stats.norm.ppf(0.975) * math.sqrt(delong_slowly(plants, others)) / found.value / (1 - found.value)
        centre = math.log(found.value / (1 - found.value))
        ends = [1 / (1 + math.exp(-(centre + side * half))) for side in (-1, 1)]
        assert [found.low, found.high] == pytest.approx(ends, abs=1e-9)


@pytest.mark.parametrize(("plants", "others", "value"), [([1.0, 2, 3], [4.0, 5], 1.0), ([4.0], [1.0], 0.0)])
def test_perfect_separation_is_not_certain(plants: list[float], others: list[float], value: float) -> None:
    found = estimate_auroc(np.array(plants), np.array(others))
    assert (found.low, found.high) == wilson_interval(value, min(len(plants), len(others)))


def test_the_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    auroc = stats.norm.cdf(1.5 / math.sqrt(2))
    alarms = stats.norm.sf(1.5 + stats.norm.ppf(0.05))
    covered = []
    for _ in range(400):
        found = measure_separation(rng.normal(size=200), rng.normal(1.5, size=150))
        assert found is not None
        both = ((found.auroc, auroc), (found.fpr_at_95_recall, alarms))
        covered.append([estimate.low <= truth <= estimate.high for estimate, truth in both])
    assert np.all(np.abs(np.mean(covered, axis=0) - 0.95) < 0.04)


def test_scores_that_are_not_finite_are_left_out() -> None:
    plants, others = np.array([0.0, 1.0, math.nan]), np.array([math.inf, 0.5, 2.0])
    assert measure_separation(plants, others) == measure_separation(plants[:2], others[1:])
    assert trace_roc(plants, others) == trace_roc(plants[:2], others[1:])
    assert measure_separation(plants[2:], others) is None
    assert trace_roc(plants[2:], others) == ()


@given(SCORES, SCORES)
def test_the_curve_equals_counted_rates(plants: np.ndarray, others: np.ndarray) -> None:
    points = list(trace_roc(plants, others))
    counted = {((plants >= t).mean(), (others >= t).mean()) for t in others}
    assert points == sorted(points)
    for alarms, recall in points:
        assert any(abs(alarms - a) < 1e-9 and abs(recall - r) < 1e-9 for a, r in counted)


def test_a_long_curve_is_thinned_out() -> None:
    points = trace_roc(np.arange(5000.0), np.arange(2000.0, 9000.0))
    assert len(points) == MAX_CURVE_POINTS
    assert points[-1] == (0.6, 1.0)


# ONNX Runtime sessions that treat denormals as zero leave the thread so; hypothesis insists on being told.
FINITE = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), max_size=50)


@given(FINITE, FINITE)
def test_every_finite_score_falls_into_one_bin(plants: list[float], non_plants: list[float]) -> None:
    histogram = bin_scores(np.array([*plants, math.nan]), np.array([*non_plants, math.inf]), np.array(plants[:3]))
    counts = [sum(group) for group in (histogram.plants, histogram.non_plants, histogram.unseen_plants)]
    assert counts == [len(plants), len(non_plants), len(plants[:3])]
    assert list(histogram.edges) == sorted(histogram.edges)
