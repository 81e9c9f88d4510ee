"""Checks AUROC, false alarms and ROC curve against scikit-learn, and the bootstrap against resampling in a loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from plantmodels.ood import metrics
from plantmodels.ood.metrics import MAX_CURVE_POINTS, RESAMPLES, auroc, bootstrap, fpr_at_recall

SCORES = st.lists(st.integers(-5, 5), min_size=1, max_size=40).map(lambda values: np.array(values, float))


@given(SCORES, SCORES)
def test_auroc_equals_sklearn_with_ties(plants: np.ndarray, non_plants: np.ndarray) -> None:
    labels = np.repeat([0, 1], [len(plants), len(non_plants)])

    assert auroc(plants, non_plants) == pytest.approx(
        roc_auc_score(labels, np.concatenate([plants, non_plants])), abs=1e-12
    )


@given(SCORES, SCORES, st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_false_alarms_are_the_fewest_at_that_recall(plants: np.ndarray, non_plants: np.ndarray, recall: float) -> None:
    alarms, reached, _ = roc_curve(
        np.repeat([0, 1], [len(plants), len(non_plants)]), np.concatenate([plants, non_plants]), drop_intermediate=False
    )

    assert fpr_at_recall(plants, non_plants, recall) == pytest.approx(
        alarms[reached >= recall - 1e-12].min(), abs=1e-12
    )


@given(SCORES, SCORES)
def test_the_curve_equals_counted_rates(plants: np.ndarray, non_plants: np.ndarray) -> None:
    points = metrics.roc_curve(plants, non_plants)
    counted = {((plants >= t).mean(), (non_plants >= t).mean()) for t in non_plants}

    assert points == sorted(points)
    for alarms, recall in points:
        assert any(abs(alarms - a) < 1e-9 and abs(recall - r) < 1e-9 for a, r in counted)


def test_a_long_curve_is_thinned_out() -> None:
    points = metrics.roc_curve(np.arange(5000.0), np.arange(2000.0, 9000.0))

    assert len(points) == MAX_CURVE_POINTS
    assert points[-1] == (0.6, 1.0)


def test_the_bootstrap_covers_the_truth_and_repeats() -> None:
    rng = np.random.default_rng(2)
    truth, covered = 0.8555, []  # of two unit Gaussians 1.5 apart: Φ(1.5 / √2)
    for _ in range(40):
        low, high = bootstrap(auroc, rng.normal(size=80), rng.normal(1.5, size=60))
        covered.append(low <= truth <= high)

    assert np.mean(covered) >= 0.85
    assert bootstrap(auroc, np.arange(9.0), np.arange(5.0)) == bootstrap(auroc, np.arange(9.0), np.arange(5.0))


@pytest.mark.parametrize("counts", [(30, 20), (30, 1), (1, 20), (1, 1)])
def test_the_bootstrap_equals_a_loop_over_resamples(counts: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    plants, non_plants = rng.normal(size=counts[0]), rng.normal(1, size=counts[1])
    rng = np.random.default_rng(0)
    values = [auroc(rng.choice(plants, counts[0]), rng.choice(non_plants, counts[1])) for _ in range(RESAMPLES)]

    assert bootstrap(auroc, plants, non_plants) == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=1e-12)
