"""Checks AUROC and false alarms against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from plantmodels.ood.metrics import auroc, fpr_at_recall

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
