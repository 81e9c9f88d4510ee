"""Intervals and tests for proportions of images: whether two accuracies differ by more than chance.

The formulas are written out here, although SciPy has some of them, because reading a report must not need SciPy. The
tests compare every formula with SciPy or with published values.

>>> low, high = difference_interval(Proportion(80, 100), Proportion(95, 100))
>>> round(low, 3), round(high, 3)
(0.059, 0.243)
>>> correct_for_many([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

ALPHA: Final = 0.05
"""A difference is beyond noise when chance alone makes it less often than this."""

_DRAWS: Final = 20_000
"""Enough draws that the ends of an interval are stable to a tenth of a percentage point."""

Interval = tuple[float, float]
"""Lower and upper end of a confidence interval."""

CONFIDENCE: Final = 0.95
"""Confidence of every interval unless a caller asks for another one."""


def normal_quantile(confidence: float) -> float:
    """Return how many standard errors a two-sided interval reaches: 1.96 for a confidence of 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


Z_95: Final = normal_quantile(CONFIDENCE)
"""The 97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True)
class Proportion:
    """How many of how many images are right, or rejected.

    Attributes:
        count: number of images that are right, or rejected.
        images: number of all images.
    """

    count: int
    images: int

    def __post_init__(self) -> None:
        """Check that `0 ≤ count ≤ images`.

        Raises:
            ValueError: the count is outside this range.
        """
        if not 0 <= self.count <= self.images:
            raise ValueError(f"count must be from 0 to images, got {self.count} of {self.images}")

    @property
    def value(self) -> float | None:
        """`count / images`; None without images."""
        return self.count / self.images if self.images else None

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval of the proportion; None without images."""
        return self.interval_at(CONFIDENCE)

    def interval_at(self, confidence: float) -> Interval | None:
        """Return Wilson's two-sided interval of the proportion; None without images."""
        return wilson_interval(self.count / self.images, self.images, confidence) if self.images else None

    def images_needed(self, limit: float, confidence: float) -> int | None:
        """Return how many images with this share would put the whole interval on one side of a limit.

        None if no number would: without images, if the share is the limit, or if the limit is 0 or 1.
        """
        if self.value is None or not 0 < limit < 1 or self.value == limit:
            return None
        return math.ceil(normal_quantile(confidence) ** 2 * limit * (1 - limit) / (self.value - limit) ** 2)


def wilson_interval(share: float, images: int, confidence: float = CONFIDENCE) -> Interval:
    """Return Wilson's two-sided interval of a proportion.

    Args:
        share: the proportion.
        images: number of images, at least 1.
        confidence: confidence of the interval.

    References:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927.
    """
    z = normal_quantile(confidence)
    total, count = images + z**2, share * images
    centre = (count + z**2 / 2) / total
    half = z / total * math.sqrt(count * (images - count) / images + z**2 / 4)
    return 0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half


@dataclass(frozen=True)
class PairedCounts:
    """Two answers to each image: how often both are right, only one is, or neither is.

    Attributes:
        both: number of images that both get right.
        only_first: number of images that only the first gets right.
        only_second: number of images that only the second gets right.
        neither: number of images that both get wrong.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    def __post_init__(self) -> None:
        """Check that every count is at least 0.

        Raises:
            ValueError: a count is negative.
        """
        counts = (self.both, self.only_first, self.only_second, self.neither)
        if min(counts) < 0:
            raise ValueError(f"counts of images must be at least 0, got {counts}")

    @property
    def images(self) -> int:
        """Number of all images."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def first(self) -> Proportion:
        """Images that the first gets right."""
        return Proportion(self.both + self.only_first, self.images)

    @property
    def second(self) -> Proportion:
        """Images that the second gets right."""
        return Proportion(self.both + self.only_second, self.images)

    @property
    def difference(self) -> float | None:
        """Accuracy of the first minus accuracy of the second; None without images."""
        return (self.only_first - self.only_second) / self.images if self.images else None

    @property
    def interval(self) -> Interval | None:
        """Tango's 95 % score interval of the difference; None without images."""
        return self.interval_at(CONFIDENCE)

    def interval_at(self, confidence: float) -> Interval | None:
        """Return Tango's two-sided score interval of the difference; None without images. It inverts McNemar's test.

        References:
            Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
            design", Statistics in Medicine 1998.
        """
        if not self.images:
            return None
        z = normal_quantile(confidence)
        return self._find_end(-1.0, z), self._find_end(1.0, z)

    def images_needed(self, limit: float, confidence: float) -> int | None:
        """Return how many images, split as these are, would put the whole interval below a limit.

        None if no number would. The score grows with the square root of the number of images.
        """
        score = self._score(limit) if self.images else 0.0
        if score >= 0:
            return None
        return math.ceil(self.images * (normal_quantile(confidence) / score) ** 2)

    def _find_end(self, towards: float, z: float) -> float:
        """Find by bisection between the difference and ±1 where the score is `z`."""
        inside, outside = self.difference or 0.0, towards
        for _ in range(60):
            middle = (inside + outside) / 2
            if abs(self._score(middle)) <= z:
                inside = middle
            else:
                outside = middle
        return inside

    def _score(self, delta: float) -> float:
        """Return Tango's statistic for a true difference of `delta`, between −1 and 1."""
        images, change = self.images, self.only_first + self.only_second
        b = (2 * images - self.only_first + self.only_second) * delta - change
        c = -self.only_second * delta * (1 - delta)
        only_second = (math.sqrt(max(0.0, b * b - 8 * images * c)) - b) / (4 * images)
        variance = images * (2 * only_second + delta * (1 - delta))
        gap = self.only_first - self.only_second - images * delta
        return gap / math.sqrt(variance) if variance > 0 else 0.0 if gap == 0 else math.copysign(math.inf, gap)

    @property
    def p_value(self) -> float:
        """P-value of McNemar's exact two-sided test.

        It says how often chance alone splits the images that only one gets right at least so unevenly: twice the lower
        tail of a binomial distribution with probability 1/2, at most 1.

        References:
            McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 1947.
        """
        split, fewer = self.only_first + self.only_second, min(self.only_first, self.only_second)
        if self.only_first == self.only_second:
            return 1.0
        term = math.exp(
            math.lgamma(split + 1) - math.lgamma(fewer + 1) - math.lgamma(split - fewer + 1) - split * math.log(2)
        )
        tail = 0.0
        for count in range(fewer, -1, -1):
            tail += term
            term *= count / (split - count + 1)
            if term < tail * 1e-17:
                break
        return min(1.0, 2 * tail)


def difference_interval(a: Proportion, b: Proportion) -> tuple[float, float]:
    """Return the 95 % interval of B minus A for proportions of different images (independent samples).

    Raises:
        ValueError: one of the proportions has no images.

    References:
        Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine
        1998, method 10: the Wilson intervals of both, combined by the square root of the sum of squares.
    """
    if a.value is None or b.value is None or a.interval is None or b.interval is None:
        raise ValueError(f"both proportions need images, got {a.images} and {b.images}")
    (low_a, high_a), (low_b, high_b) = a.interval, b.interval
    difference = b.value - a.value
    return (
        difference - math.hypot(b.value - low_b, high_a - a.value),
        difference + math.hypot(high_b - b.value, a.value - low_a),
    )


def difference_p_value(a: Proportion, b: Proportion) -> float:
    """Return the p-value of Fisher's exact two-sided test that two proportions of different images are equal."""
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
    """Return p-values corrected for their number by Holm's method.

    However many are tested, one below `ALPHA` is rarely due to chance.

    References:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.
    """
    corrected = [1.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = worst
    return corrected


def precision_at_share(recall: float, false_alarm_rate: float, share: float) -> float | None:
    """Return the precision if non-plants were this share of all images; None if nothing is rejected.

    It is `recall · share / (recall · share + false_alarm_rate · (1 − share))`.
    """
    hits, alarms = recall * share, false_alarm_rate * (1 - share)
    return hits / (hits + alarms) if hits + alarms else None


def precision_at_equal_numbers(recall: float, false_alarm_rate: float) -> float | None:
    """Return the precision if there were as many plants as other images; None if nothing is rejected.

    It is `recall / (recall + false_alarm_rate)`.
    """
    return recall / (recall + false_alarm_rate) if recall + false_alarm_rate else None


def precision_difference_interval(
    plants: PairedCounts | tuple[Proportion, Proportion], others: PairedCounts | tuple[Proportion, Proportion]
) -> tuple[float, float]:
    """Return the 95 % interval of B minus A for the precision at equal numbers of plants and non-plants.

    Precision is `recall / (recall + false-alarm rate)`. Both rates are drawn from their posterior under Jeffreys'
    prior, always with the same seed, and the ends are quantiles of the differences.

    Args:
        plants: plants rejected by A and B: paired counts on the same plants, or one proportion each.
        others: non-plants rejected by A and B: paired counts on the same images, or one proportion each.
    """
    rng = np.random.default_rng(0)
    alarms, recalls = _draw(plants, rng), _draw(others, rng)
    precisions = recalls / (recalls + alarms)
    low, high = np.quantile(precisions[1] - precisions[0], [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def _draw(counts: PairedCounts | tuple[Proportion, Proportion], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return draws of the rates of A and B, (2, draws) float64."""
    if isinstance(counts, PairedCounts):
        cells = np.array([counts.both, counts.only_first, counts.only_second, counts.neither])
        both, first, second, _ = rng.dirichlet(cells + 0.5, _DRAWS).T
        return np.stack([both + first, both + second])
    return np.stack([rng.beta(s.count + 0.5, s.images - s.count + 0.5, _DRAWS) for s in counts])
