"""Whether two shares differ beyond noise: what chance alone would make of the same images, or of as many others.

The first of two is always A and the second B, and every difference is B minus A.

>>> low, high = difference_interval(Share(80, 100), Share(95, 100))
>>> round(low, 3), round(high, 3)
(0.059, 0.244)
>>> correct_for_many([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from plantmodels.verify.measurements import Paired, Share

ALPHA: Final = 0.05
"""Differences that chance alone makes more seldom than this are beyond noise."""

_DRAWS: Final = 20_000


def difference_interval(a: Share, b: Share) -> tuple[float, float]:
    """95 % interval of B's share minus A's, of different images (independent samples).

    Raises:
        ValueError: a share of no images.

    References:
        Newcombe, Interval estimation for the difference between independent proportions (1998), method 10:
        the Wilson intervals of both, combined by square and add.
    """
    if a.value is None or b.value is None or a.interval is None or b.interval is None:
        raise ValueError(f"both shares need images, got {a.images} and {b.images}")
    (low_a, high_a), (low_b, high_b) = a.interval, b.interval
    difference = b.value - a.value
    return (
        difference - math.hypot(b.value - low_b, high_a - a.value),
        difference + math.hypot(high_b - b.value, a.value - low_a),
    )


def difference_p_value(a: Share, b: Share) -> float:
    """Fisher's exact two-sided p-value that two shares of different images are the same."""
    right, images = a.count + b.count, a.images + b.images
    total = _log_choose(images, right)

    def probability(count: int) -> float:
        return math.exp(_log_choose(a.images, count) + _log_choose(b.images, right - count) - total)

    possible = [probability(count) for count in range(max(0, right - b.images), min(right, a.images) + 1)]
    seen = probability(a.count) * (1 + 1e-7)
    return min(1.0, math.fsum(value for value in possible if value <= seen))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def correct_for_many(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being so many: one below 0.05 is seldom chance, however many are looked at.

    References:
        Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    corrected = [1.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = worst
    return corrected


def precision_difference_interval(
    plants: Paired | tuple[Share, Share], others: Paired | tuple[Share, Share]
) -> tuple[float, float]:
    """95 % interval of B's precision at equal numbers minus A's: `recall / (recall + false alarms)`.

    A quantile of draws from what both rates may be, given the counts and Jeffreys' prior; always the same draws.

    Args:
        plants: rejected by A and B, on the same plants (paired) or on different ones.
        others: the same of non-plants.
    """
    rng = np.random.default_rng(0)
    alarms, recalls = _draw(plants, rng), _draw(others, rng)
    precisions = recalls / (recalls + alarms)
    low, high = np.quantile(precisions[1] - precisions[0], [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def _draw(counts: Paired | tuple[Share, Share], rng: np.random.Generator) -> NDArray[np.float64]:
    """(2, draws) rates of A and of B."""
    if isinstance(counts, Paired):
        cells = np.array([counts.both, counts.only_first, counts.only_second, counts.neither])
        both, first, second, _ = rng.dirichlet(cells + 0.5, _DRAWS).T
        return np.stack([both + first, both + second])
    return np.stack([rng.beta(s.count + 0.5, s.images - s.count + 0.5, _DRAWS) for s in counts])
