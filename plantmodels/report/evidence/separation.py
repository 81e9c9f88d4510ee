"""How well scores separate other images from plants: AUROC, false alarms, ROC curve and histogram, with NumPy alone.

The intervals have closed forms, so that whoever reads a report can compute them again.

>>> plants, non_plants = np.array([0.1, 0.2, 0.4, 0.6]), np.array([0.5, 0.9])
>>> separation = measure_separation(plants, non_plants)
>>> separation.auroc.value, separation.fpr_at_95_recall.value
(0.875, 0.25)
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from plantmodels.arrays import Scores
from plantmodels.report.results import Estimate, Histogram, Separation
from plantmodels.report.statistics import Z_95, wilson_interval

HISTOGRAM_BINS: Final = 60
"""Bins of the histogram of scores: as many as its plot can show."""

MAX_CURVE_POINTS: Final = 200
"""More points than a plot of the ROC curve can show."""

_RECALL: Final = 0.95
"""Recall at which false alarms are reported, as is usual for out-of-distribution detectors."""


def measure_separation(plants: Scores, others: Scores) -> Separation | None:
    """Return AUROC and false alarms at 95 % recall, each with its 95 % interval.

    Scores that are not finite are left out.

    Args:
        plants: (N,) scores of leaves.
        others: (M,) scores of other images.

    Returns:
        The two estimates; None if there are no plants or no other images.
    """
    plants, others = np.sort(_keep_finite(plants)), np.sort(_keep_finite(others))
    if not len(plants) or not len(others):
        return None
    return Separation(estimate_auroc(plants, others), estimate_false_alarms(plants, others))


def _keep_finite(scores: Scores) -> Scores:
    return scores[np.isfinite(scores)]


def estimate_auroc(plants: Scores, others: Scores) -> Estimate:
    """Return the area under the ROC curve: how often another image scores higher than a plant; a tie counts as half.

    The interval is DeLong's, on the scale of the logit. Where his variance is 0, for instance with perfect separation,
    it is Wilson's interval of as many images as the smaller group has.

    Args:
        plants: (N,) ascending scores, N ≥ 1, without NaN.
        others: (M,) ascending scores, M ≥ 1, without NaN.

    References:
        DeLong, DeLong, Clarke-Pearson, "Comparing the areas under two or more correlated receiver operating
        characteristic curves: a nonparametric approach", Biometrics 1988.
        Qin, Hotilovac, "Comparison of non-parametric confidence intervals for the area under the ROC curve of a
        continuous-scale diagnostic test", Statistical Methods in Medical Research 2008 (the scale).
    """
    above_plants = _count_below(plants, others) / len(plants)
    below_others = 1 - _count_below(others, plants) / len(others)
    area = float(above_plants.mean())
    variance = sum(float(part.var(ddof=1)) / len(part) for part in (above_plants, below_others) if len(part) > 1)
    if not variance or not 0 < area < 1:
        return Estimate(area, *wilson_interval(area, min(len(plants), len(others))))
    centre, half = math.log(area / (1 - area)), Z_95 * math.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + math.exp(min(700.0, -(centre + side * half)))) for side in (-1, 1))
    return Estimate(area, low, high)


def _count_below(ordered: Scores, scores: Scores) -> NDArray[np.float64]:
    """Return how many of the ordered scores are below each score; an equal one counts as half."""
    both = np.searchsorted(ordered, scores, side="left") + np.searchsorted(ordered, scores, side="right")
    return both.astype(np.float64) / 2


def estimate_false_alarms(plants: Scores, others: Scores) -> Estimate:
    """Return the share of plants that are rejected by the highest threshold that rejects 95 % of the other images.

    Two things are uncertain: the threshold, which is an order statistic of the other images, and the share of plants
    above it. Their intervals (the binomial one of the order statistic, and Wilson's) are combined by the square root of
    the sum of squares, as in Newcombe's method for a difference.

    Args:
        plants: (N,) ascending scores, N ≥ 1.
        others: (M,) ascending scores, M ≥ 1.

    References:
        David, Nagaraja, "Order Statistics", 2003, section 7.1.
        Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine
        1998, method 10.
    """
    images = len(others)
    let_through = images - math.ceil(round(_RECALL * images, 9))
    spread = Z_95 * math.sqrt(images * _RECALL * (1 - _RECALL))
    places = (let_through, min(images - 1, math.ceil(let_through + spread)), max(0, math.floor(let_through - spread)))
    value, fewest, most = (_share_at_least(plants, float(others[place])) for place in places)
    low, high = wilson_interval(value, len(plants))
    return Estimate(
        value,
        max(0.0, value - math.hypot(value - low, value - fewest)),
        min(1.0, value + math.hypot(high - value, most - value)),
    )


def _share_at_least(ordered: Scores, threshold: float) -> float:
    return 1 - int(np.searchsorted(ordered, threshold, side="left")) / len(ordered)


def trace_roc(plants: Scores, others: Scores) -> tuple[tuple[float, float], ...]:
    """Return points (share of plants rejected, share of other images rejected) in ascending order.

    Each point belongs to a threshold at the score of one other image. If there are more than `MAX_CURVE_POINTS` other
    images, they are thinned out evenly. The end (0, 0) is never a point. Scores that are not finite are left out.

    Args:
        plants: (N,) scores of plants.
        others: (M,) scores of other images. Without one of the two, there are no points.
    """
    plants, others = np.sort(_keep_finite(plants)), np.sort(_keep_finite(others))
    if not len(plants) or not len(others):
        return ()
    count = min(len(others), MAX_CURVE_POINTS)
    picks = np.unique(np.linspace(0, len(others) - 1, count).round().astype(int))
    thresholds = others[::-1][picks]
    rates = (1 - np.searchsorted(group, thresholds, side="left") / len(group) for group in (plants, others))
    return tuple(zip(*(rate.tolist() for rate in rates), strict=True))


def bin_scores(plants: Scores, non_plants: Scores, unseen_plants: Scores) -> Histogram:
    """Return the finite scores of each group, counted in `HISTOGRAM_BINS` bins of equal width from lowest to highest.

    Args:
        plants: (N,) scores.
        non_plants: (M,) scores.
        unseen_plants: (K,) scores.
    """
    groups = [_keep_finite(scores) for scores in (plants, non_plants, unseen_plants)]
    everything = np.concatenate(groups)
    if not len(everything):
        return Histogram((), (), (), ())
    low, high = float(everything.min()), float(everything.max())
    middle = max(abs(low), abs(high))
    if high - low <= 4 * HISTOGRAM_BINS * np.spacing(middle):  # too close for that many different edges
        margin = max(0.5, 1e-6 * middle)
        low, high = low - margin, high + margin
    edges = np.linspace(low, high, HISTOGRAM_BINS + 1)
    counts = [tuple(np.histogram(scores, edges)[0].tolist()) for scores in groups]
    return Histogram(tuple(edges.tolist()), *counts)
