"""How well scores tell non-plants from plants, whatever the threshold.

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
from numpy.typing import NDArray

Scores = NDArray[np.float64]

RESAMPLES: Final = 1_000
MAX_CURVE_POINTS: Final = 200


def auroc(plants: Scores, others: Scores) -> float:
    """Area under the ROC curve: how often a non-plant scores higher than a plant, ties counted as half.

    Args:
        plants: (n,) n ≥ 1, no NaN.
        others: (m,) of non-plants, m ≥ 1, no NaN.
    """
    ordered = np.sort(plants)
    below = np.searchsorted(ordered, others, side="left") + np.searchsorted(ordered, others, side="right")
    return float(below.mean() / 2 / len(plants))


def fpr_at_recall(plants: Scores, others: Scores, recall: float) -> float:
    """Share of plants that score at least as high as the highest threshold that this share of non-plants reaches.

    Args:
        plants: (n,) n ≥ 1.
        others: (m,) of non-plants, m ≥ 1.
        recall: above 0, at most 1.
    """
    needed = math.ceil(round(recall * len(others), 9))
    return float((plants >= np.sort(others)[len(others) - needed]).mean())


def roc_curve(plants: Scores, others: Scores) -> list[tuple[float, float]]:
    """Points (share of plants rejected, share of non-plants rejected), ascending, at most `MAX_CURVE_POINTS`.

    A point for every non-plant as the threshold, thinned out evenly; the ends (0, 0) and (1, 1) are not among them.

    Args:
        plants: (n,) scores.
        others: (m,) of non-plants; no points where either has none.
    """
    if not len(plants) or not len(others):
        return []
    ordered, thresholds = np.sort(plants), np.sort(others)[::-1]
    picks = np.unique(np.linspace(0, len(others) - 1, min(len(others), MAX_CURVE_POINTS)).round().astype(int))
    alarms = 1 - np.searchsorted(ordered, thresholds[picks], side="left") / len(plants)
    recall = 1 - np.searchsorted(thresholds[::-1], thresholds[picks], side="left") / len(others)
    return list(zip(alarms.tolist(), recall.tolist(), strict=True))


def bootstrap(
    statistic: Callable[[Scores, Scores], float], plants: Scores, others: Scores, *, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a statistic, plants and non-plants resampled each among themselves.

    Args:
        statistic: of scores of plants and of non-plants.
        plants: (n,) n ≥ 1.
        others: (m,) m ≥ 1.
        seed: of the resampling.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(rng.choice(plants, len(plants)), rng.choice(others, len(others))) for _ in range(RESAMPLES)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
