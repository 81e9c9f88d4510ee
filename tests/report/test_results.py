"""Intervals and tests against scipy, and against searches that know nothing of the formulas used."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, binomtest

from plantmodels.report.results import SMALL_CLASS, Bin, ClassRow, Reliability, Scatter
from plantmodels.report.statistics import PairedCounts, Proportion

COUNTS = st.integers(0, 60)


@pytest.mark.parametrize(("count", "images"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 50), (1245, 1539), (1, 10**6)])
def test_a_share_has_wilsons_interval(count: int, images: int) -> None:
    expected = binomtest(count, images).proportion_ci(0.95, method="wilson")
    assert Proportion(count, images).interval == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


def test_a_share_of_nothing_has_no_interval() -> None:
    assert Proportion(0, 0).interval is None


@pytest.mark.parametrize(
    ("first", "second"),
    [(0, 0), (5, 5), (0, 1), (1, 0), (0, 9), (13, 6), (300, 350), (5000, 5400), (10**6, 0)],
)
def test_p_is_twice_the_lower_binomial_tail(first: int, second: int) -> None:
    split = first + second
    expected = 1.0 if first == second else binomtest(first, split, 0.5).pvalue
    assert PairedCounts(10, first, second, 3).p_value == pytest.approx(expected, rel=1e-7)


def test_p_of_millions_of_images_is_quick_and_right() -> None:
    split, fewer = 2_000_000, 998_600
    expected = 2 * binom.cdf(fewer, split, 0.5)
    assert PairedCounts(0, fewer, split - fewer, 0).p_value == pytest.approx(expected, rel=1e-5)


def tango_by_search(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Score interval; the variance under a difference by maximising the likelihood on a line, not by formula."""
    images = both + first + second + neither

    def score(delta: float) -> float:
        def loss(only_second: float) -> float:
            only_first, same = only_second + delta, 1 - 2 * only_second - delta
            terms = ((first, only_first), (second, only_second), (both + neither, same))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in terms if count)

        low, high = max(0.0, -delta), (1 - delta) / 2
        best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
        variance = images * (2 * best + delta - delta**2)
        return (first - second - images * delta) / math.sqrt(variance)

    middle, edge = (first - second) / images, 1 - 1e-9
    low = -1.0 if middle == -1 else brentq(lambda delta: score(delta) - 1.959963984540054, -edge, middle - 1e-9)
    high = 1.0 if middle == 1 else brentq(lambda delta: score(delta) + 1.959963984540054, middle + 1e-9, edge)
    return low, high


@pytest.mark.parametrize(
    "counts", [(36, 12, 2, 0), (20, 12, 2, 16), (1200, 13, 6, 320), (50, 0, 0, 5), (40, 7, 0, 3), (40, 0, 7, 3)]
)
def test_a_difference_has_tangos_interval(counts: tuple[int, int, int, int]) -> None:
    paired = PairedCounts(*counts)
    assert paired.difference == (counts[1] - counts[2]) / sum(counts)
    assert paired.interval == pytest.approx(tango_by_search(*counts), abs=2e-6)


@settings(max_examples=200)
@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_a_pair_is_consistent_with_itself(both: int, first: int, second: int, neither: int) -> None:
    paired, swapped = PairedCounts(both, first, second, neither), PairedCounts(both, second, first, neither)
    assert (paired.first, paired.second) == (swapped.second, swapped.first)
    assert paired.p_value == swapped.p_value
    assert 0 < paired.p_value <= 1
    if not paired.images:
        assert (paired.difference, paired.interval) == (None, None)
        return
    assert paired.interval is not None and swapped.interval is not None
    low, high = paired.interval
    assert -1 <= low <= paired.difference <= high <= 1
    assert (low, high) == pytest.approx((-swapped.interval[1], -swapped.interval[0]), abs=1e-12)
    chi = (first - second) / math.sqrt(max(1, first + second))
    if abs(abs(chi) - 1.959963984540054) > 1e-6:
        assert (low > 0 or high < 0) == (abs(chi) > 1.959963984540054), "it is McNemar's score test, inverted"


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    draws = rng.multinomial(400, (0.8, 0.03, 0.02, 0.15), size=600)
    covered = [low <= 0.01 <= high for low, high in (PairedCounts(*map(int, row)).interval for row in draws)]
    assert 0.93 <= np.mean(covered) <= 0.98


def test_counts_below_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"counts of images must be at least 0, got \(1, -1, 0, 0\)"):
        PairedCounts(1, -1, 0, 0)


def test_small_classes_are_named_as_such() -> None:
    assert ClassRow(SMALL_CLASS - 1, 0, 0).is_small
    assert not ClassRow(SMALL_CLASS, 0, 0).is_small


def test_the_calibration_error_weighs_bins_by_their_images() -> None:
    assert Reliability((Bin(10, 5, 0.7), Bin(0, 0, 0.0), Bin(30, 27, 0.85)), None).ece == pytest.approx((2 + 1.5) / 40)
    assert Reliability((Bin(0, 0, 0.0),), None).ece is None


def test_a_scatter_has_as_many_of_each() -> None:
    with pytest.raises(ValueError, match=r"a scatter needs as many logits of each, got \(2, 2, 1\)"):
        Scatter((1.0, 2.0), (1.0, 2.0), (1.0,))
