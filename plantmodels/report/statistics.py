"""Whether two shares differ beyond noise: what chance alone would make of the same images, or of as many others.

The first of two is always A and the second B, and every difference is B minus A.

>>> low, high = difference_interval(Proportion(80, 100), Proportion(95, 100))
>>> round(low, 3), round(high, 3)
(0.059, 0.243)
>>> correct_for_many([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

ALPHA: Final = 0.05
"""Differences that chance alone makes more seldom than this are beyond noise."""

_DRAWS: Final = 20_000

Interval = tuple[float, float]
"""Lower and upper end of a 95 % confidence interval."""


Z_95: Final = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""


@dataclass(frozen=True)
class Proportion:
    """How many of how many images.

    Attributes:
        count: images that are right, or rejected.
        images: images that were counted.
    """

    count: int
    images: int

    def __post_init__(self) -> None:
        """Refuses a share that is no share.

        Raises:
            ValueError: outside 0 ≤ count ≤ images.
        """
        if not 0 <= self.count <= self.images:
            raise ValueError(f"count must be from 0 to images, got {self.count} of {self.images}")

    @property
    def value(self) -> float | None:
        """`count / images`; None without images."""
        return self.count / self.images if self.images else None

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval of the share; None without images."""
        if not self.images:
            return None
        total, weight = self.images + Z_95**2, Z_95**2 / 2
        centre = (self.count + weight) / total
        half = Z_95 / total * math.sqrt(self.count * (self.images - self.count) / self.images + Z_95**2 / 4)
        return (
            0.0 if self.count == 0 else centre - half,
            1.0 if self.count == self.images else centre + half,
        )


@dataclass(frozen=True)
class PairedCounts:
    """Two answers to each of the same images: how often both are right, one alone, or none.

    Attributes:
        both: images that both are right on.
        only_first: images that the first alone is right on.
        only_second: images that the second alone is right on.
        neither: images that both are wrong on.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    def __post_init__(self) -> None:
        """Refuses counts below 0.

        Raises:
            ValueError: naming the counts.
        """
        counts = (self.both, self.only_first, self.only_second, self.neither)
        if min(counts) < 0:
            raise ValueError(f"counts of images must be at least 0, got {counts}")

    @property
    def images(self) -> int:
        """All images."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def first(self) -> Proportion:
        """What the first is right on."""
        return Proportion(self.both + self.only_first, self.images)

    @property
    def second(self) -> Proportion:
        """What the second is right on."""
        return Proportion(self.both + self.only_second, self.images)

    @property
    def difference(self) -> float | None:
        """Accuracy of the first minus that of the second; None without images."""
        return (self.only_first - self.only_second) / self.images if self.images else None

    @property
    def interval(self) -> Interval | None:
        """Tango's 95 % score interval of the difference, the one that inverts McNemar's test; None without images."""
        if not self.images:
            return None
        return self._find_end(-1.0), self._find_end(1.0)

    def _find_end(self, towards: float) -> float:
        """Bisects between the difference and ±1 for where the score is `Z_95`."""
        inside, outside = self.difference or 0.0, towards
        for _ in range(60):
            middle = (inside + outside) / 2
            if abs(self._score(middle)) <= Z_95:
                inside = middle
            else:
                outside = middle
        return inside

    def _score(self, delta: float) -> float:
        """Tango's statistic for a true difference of `delta`, between −1 and 1."""
        images, change = self.images, self.only_first + self.only_second
        b = (2 * images - self.only_first + self.only_second) * delta - change
        c = -self.only_second * delta * (1 - delta)
        only_second = (math.sqrt(max(0.0, b * b - 8 * images * c)) - b) / (4 * images)
        variance = images * (2 * only_second + delta * (1 - delta))
        gap = self.only_first - self.only_second - images * delta
        return gap / math.sqrt(variance) if variance > 0 else 0.0 if gap == 0 else math.copysign(math.inf, gap)

    @property
    def p_value(self) -> float:
        """Exact two-sided McNemar: how likely so uneven a split of the images that one alone is right on is by chance.

        Twice the lower tail of a binomial distribution of probability 1/2, at most 1.
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


def difference_p_value(a: Proportion, b: Proportion) -> float:
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
    plants: PairedCounts | tuple[Proportion, Proportion], others: PairedCounts | tuple[Proportion, Proportion]
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


def _draw(counts: PairedCounts | tuple[Proportion, Proportion], rng: np.random.Generator) -> NDArray[np.float64]:
    """(2, draws) rates of A and of B."""
    if isinstance(counts, PairedCounts):
        cells = np.array([counts.both, counts.only_first, counts.only_second, counts.neither])
        both, first, second, _ = rng.dirichlet(cells + 0.5, _DRAWS).T
        return np.stack([both + first, both + second])
    return np.stack([rng.beta(s.count + 0.5, s.images - s.count + 0.5, _DRAWS) for s in counts])
