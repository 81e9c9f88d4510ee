"""AUROC, false alarms and ROC curve against scikit-learn; the bootstrap's coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from plantmodels.ood import metrics as separation
from plantmodels.ood.metrics import MAX_CURVE_POINTS, auroc, bootstrap, fpr_at_recall

SCORES = st.lists(st.integers(-5, 5), min_size=1, max_size=40).map(lambda values: np.array(values, float))


@given(SCORES, SCORES)
def test_auroc_is_that_of_sklearn_with_ties(plants: np.ndarray, others: np.ndarray) -> None:
    labels = np.repeat([0, 1], [len(plants), len(others)])

    assert auroc(plants, others) == pytest.approx(roc_auc_score(labels, np.concatenate([plants, others])), abs=1e-12)


@given(SCORES, SCORES, st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_false_alarms_are_the_fewest_at_that_recall(plants: np.ndarray, others: np.ndarray, recall: float) -> None:
    alarms, reached, _ = roc_curve(
        np.repeat([0, 1], [len(plants), len(others)]), np.concatenate([plants, others]), drop_intermediate=False
    )

    assert fpr_at_recall(plants, others, recall) == pytest.approx(alarms[reached >= recall - 1e-12].min(), abs=1e-12)


@given(SCORES, SCORES)
def test_the_curve_is_that_of_counting(plants: np.ndarray, others: np.ndarray) -> None:
    points = separation.roc_curve(plants, others)
    counted = {((plants >= t).mean(), (others >= t).mean()) for t in others}

    assert points == sorted(points)
    for alarms, recall in points:
        assert any(abs(alarms - a) < 1e-9 and abs(recall - r) < 1e-9 for a, r in counted)


def test_a_long_curve_is_thinned_out() -> None:
    points = separation.roc_curve(np.arange(5000.0), np.arange(2000.0, 9000.0))

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
