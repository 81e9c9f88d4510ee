"""Chooses the threshold above which an out-of-distribution score means "not a plant".

>>> choose_threshold(np.arange(100.0), None).value
95.0
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from plantmodels.arrays import Scores

BASE_QUANTILE: Final = 0.95
"""No threshold rejects more than the remaining 5 % of the plants."""

TARGET_PRECISION: Final = 0.99
TARGET_RECALL: Final = 0.95
"""What the gate `ood_rejection` asks for by default."""


@dataclass(frozen=True)
class Threshold:
    """A chosen threshold and the evidence for it.

    Attributes:
        value: scores above this value are rejected.
        quantile: share of the plants that score at most `value`.
        precision: expected share of non-plants among the rejected images when there are as many plants as
            non-plants; None without non-plants.
        recall: share of the non-plants that are rejected; None without non-plants.
    """

    value: float
    quantile: float
    precision: float | None
    recall: float | None


def choose_threshold(plants: Scores, non_plants: Scores | None) -> Threshold:
    """Return the threshold that leaves the most room to both targets, precision and recall.

    Candidates are all scores from the 95th percentile of the plants upwards. The percentile is the split-conformal
    one, the `ceil((n + 1) · 0.95)`-th smallest score. Without non-plants it is the threshold.

    Precision is `recall / (recall + false alarms)`, which assumes as many plants as non-plants. If `k` of `n` plants
    score above the threshold, the false alarms count as `(k + 1) / (n + 1)`, so that a few plants without a false
    alarm do not look like certainty. Room to a target is measured in standard errors. Candidates that miss the target
    precision are considered only if all of them do; then the most precise one wins. The threshold is put in the
    middle between the chosen score and the next.

    Args:
        plants: (n,) scores of plants on which the detector was not fitted.
        non_plants: (m,) scores of non-plants on which the detector was not fitted, or None.
    """
    count, ordered = len(plants), np.sort(plants)
    first = math.ceil((count + 1) * BASE_QUANTILE) - 1
    if non_plants is None or not len(non_plants):
        return Threshold(float(ordered[first]), (first + 1) / count, None, None)
    ordered_non_plants = np.sort(non_plants)

    def compute_rates(thresholds: Scores) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the false alarms and the recall of each threshold."""
        alarms = (count - np.searchsorted(ordered, thresholds, side="right") + 1) / (count + 1)
        return alarms, 1 - np.searchsorted(ordered_non_plants, thresholds, side="right") / len(ordered_non_plants)

    candidates = np.unique(np.concatenate([ordered[first:], non_plants[non_plants > ordered[first]]]))
    alarms, recall = compute_rates(candidates)
    precision = recall / (recall + alarms)
    room = np.minimum(
        _to_standard_errors(recall * (1 / TARGET_PRECISION - 1) - alarms, alarms, count),
        _to_standard_errors(recall - TARGET_RECALL, recall, len(non_plants)),
    )
    allowed = precision >= min(TARGET_PRECISION, precision.max())
    best = int(np.flatnonzero(allowed & (room == room[allowed].max()))[-1])
    value = candidates[best : best + 2].mean()
    alarms, recall = compute_rates(np.array([value]))
    return Threshold(
        float(value), float((plants <= value).mean()), float((recall / (recall + alarms))[0]), float(recall[0])
    )


def _to_standard_errors(room: NDArray[np.float64], rate: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return `room` in standard errors of a rate that was measured on `count` images.

    The rate is smoothed to `(k + 2) / (n + 4)` (Agresti and Coull), so that its error is never 0.
    """
    smoothed = (rate * count + 2) / (count + 4)
    errors: NDArray[np.float64] = room / np.sqrt(smoothed * (1 - smoothed) / (count + 4))
    return errors
