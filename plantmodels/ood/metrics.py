"""Measures how well scores separate non-plants from plants, at any threshold.

>>> auroc(np.array([0.0, 1.0]), np.array([0.5, 2.0]))
0.75

References:
    Mann, Whitney, "On a Test of Whether one of Two Random Variables is Stochastically Larger", 1947 (the AUROC).
    Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979.
"""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from scipy import stats
from sklearn import metrics

from plantmodels.arrays import Scores

RESAMPLES: Final = 1_000
"""Bootstrap resamples for one interval: enough for its ends to be stable in the second digit."""

MAX_CURVE_POINTS: Final = 200
"""More points than a plot of the ROC curve can show."""

# `auroc` and `fpr_at_recall` count by hand, because `bootstrap` calls them a thousand times for every source of
# non-plants: scikit-learn checks its input at every call and takes 30 and 80 times as long. The tests compare both
# functions with scikit-learn.


def auroc(plants: Scores, non_plants: Scores) -> float:
    """Return the area under the ROC curve: how often a non-plant scores higher than a plant.

    A tie counts as half.

    Args:
        plants: (n,) scores of plants, n ≥ 1, without NaN.
        non_plants: (m,) scores of non-plants, m ≥ 1, without NaN.
    """
    ordered = np.sort(plants)
    below = np.searchsorted(ordered, non_plants, side="left") + np.searchsorted(ordered, non_plants, side="right")
    return float(below.mean() / 2 / len(plants))


def fpr_at_recall(plants: Scores, non_plants: Scores, recall: float) -> float:
    """Return the share of plants that are rejected when the threshold rejects the share `recall` of the non-plants.

    The threshold is the highest one with this recall.

    Args:
        plants: (n,) scores of plants, n ≥ 1.
        non_plants: (m,) scores of non-plants, m ≥ 1.
        recall: share of non-plants to reject, above 0 and at most 1.
    """
    needed = math.ceil(round(recall * len(non_plants), 9))
    return float((plants >= np.sort(non_plants)[len(non_plants) - needed]).mean())


def roc_curve(plants: Scores, non_plants: Scores) -> list[tuple[float, float]]:
    """Return points (share of plants rejected, share of non-plants rejected) in ascending order.

    Each point belongs to a threshold at the score of one non-plant. If there are more than `MAX_CURVE_POINTS`
    non-plants, they are thinned out evenly. The end (0, 0) is never a point.

    Args:
        plants: (n,) scores of plants.
        non_plants: (m,) scores of non-plants. Without plants or without non-plants, the list is empty.
    """
    if not len(plants) or not len(non_plants):
        return []
    is_non_plant = np.repeat([False, True], [len(plants), len(non_plants)])
    scores = np.concatenate([plants, non_plants])
    alarms, recall, thresholds = metrics.roc_curve(is_non_plant, scores, drop_intermediate=False)
    count = min(len(non_plants), MAX_CURVE_POINTS)
    picks = np.unique(np.linspace(0, len(non_plants) - 1, count).round().astype(int))
    rows = np.searchsorted(-thresholds, -np.sort(non_plants)[::-1][picks])
    return list(zip(alarms[rows].tolist(), recall[rows].tolist(), strict=True))


def bootstrap(
    statistic: Callable[[Scores, Scores], float], plants: Scores, non_plants: Scores, *, seed: int = 0
) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval of a statistic.

    Plants and non-plants are resampled separately, so that their numbers stay the same.

    Args:
        statistic: function of the scores of plants and the scores of non-plants.
        plants: (n,) scores of plants, n ≥ 1.
        non_plants: (m,) scores of non-plants, m ≥ 1.
        seed: seed of the resampling.
    """
    samples = (plants, non_plants)
    varying = [sample for sample in samples if len(sample) > 1]  # SciPy refuses a sample of one
    if not varying:
        return statistic(*samples), statistic(*samples)

    def compute(*resampled: Scores) -> float:
        remaining = iter(resampled)
        return statistic(*(next(remaining) if len(sample) > 1 else sample for sample in samples))

    found = stats.bootstrap(
        varying,
        compute,
        n_resamples=RESAMPLES,
        batch=1,  # memory stays at one resample
        vectorized=False,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
