"""Measures how well scores separate non-plants from plants, at any threshold.

>>> auroc(np.array([0.0, 1.0]), np.array([0.5, 2.0]))
0.75

References:
    Mann, Whitney, "On a Test of Whether one of Two Random Variables is Stochastically Larger", 1947 (the AUROC).
"""

import math

import numpy as np

from plantmodels.arrays import Scores


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
