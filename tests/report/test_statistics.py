"""Intervals and tests against SciPy, against published values, and against searches that use other formulas."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binom, binomtest

from plantmodels.report.statistics import (
    PairedCounts,
    Proportion,
    correct_for_many,
    difference_interval,
    difference_p_value,
    precision_difference_interval,
)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [  # Newcombe (1998), table II, method 10, by which the first share is subtracted from the second
        ((48, 80), (56, 70), (0.0524, 0.3339)),
        ((3, 10), (9, 10), (0.1705, 0.8090)),
        ((2, 7), (6, 7), (0.0582, 0.8062)),
        ((0, 29), (5, 56), (-0.0381, 0.1926)),
        ((0, 10), (0, 10), (-0.2775, 0.2775)),
    ],
)
def test_the_interval_is_the_published_one(a: tuple[int, int], b: tuple[int, int], expected: tuple[float, ...]) -> None:
    np.testing.assert_allclose(difference_interval(Proportion(*a), Proportion(*b)), expected, atol=1e-4)


def test_the_interval_needs_images() -> None:
    with pytest.raises(ValueError, match="both proportions need images, got 0 and 3"):
        difference_interval(Proportion(0, 0), Proportion(1, 3))


@pytest.mark.parametrize(
    ("a", "b"), [((3, 10), (9, 10)), ((0, 5), (0, 9)), ((1500, 1539), (1480, 1539)), ((7, 7), (0, 4)), ((5, 9), (5, 9))]
)
def test_fisher_is_scipys(a: tuple[int, int], b: tuple[int, int]) -> None:
    table = [[a[0], a[1] - a[0]], [b[0], b[1] - b[0]]]
    assert difference_p_value(Proportion(*a), Proportion(*b)) == pytest.approx(
        stats.fisher_exact(table).pvalue, rel=1e-7
    )


def test_holm_by_its_definition() -> None:
    values = np.random.default_rng(0).uniform(0, 0.2, 12).tolist()
    order = sorted(values)
    slow = {p: max(min(1.0, (len(order) - i) * order[i]) for i in range(order.index(p) + 1)) for p in values}
    assert correct_for_many(values) == [slow[p] for p in values]
    assert correct_for_many([]) == []


def test_the_interval_of_precision_agrees_with_the_delta_method_where_counts_are_large() -> None:
    plants, others = (
        (Proportion(300, 10_000), Proportion(200, 10_000)),
        (Proportion(7_000, 10_000), Proportion(7_600, 10_000)),
    )
    low, high = precision_difference_interval(plants, others)
    difference, variance = 0.0, 0.0
    for sign, alarms, recalled in zip((-1, 1), plants, others, strict=True):
        f, r = alarms.count / alarms.images, recalled.count / recalled.images
        difference += sign * r / (r + f)
        spread = (f / (r + f) ** 2) ** 2 * r * (1 - r) / recalled.images
        variance += spread + (r / (r + f) ** 2) ** 2 * f * (1 - f) / alarms.images
    expected = np.array([-1.96, 1.96]) * math.sqrt(variance) + difference
    np.testing.assert_allclose((low, high), expected, atol=5e-4)


def test_the_interval_of_precision_is_narrower_on_the_same_images() -> None:
    paired = precision_difference_interval(PairedCounts(290, 10, 10, 9_690), PairedCounts(6_900, 100, 100, 2_900))
    unpaired = precision_difference_interval((Proportion(300, 10_000),) * 2, (Proportion(7_000, 10_000),) * 2)
    assert paired[0] < 0 < paired[1]
    assert paired[1] - paired[0] < 0.6 * (unpaired[1] - unpaired[0])
    assert precision_difference_interval(PairedCounts(0, 0, 0, 50), PairedCounts(50, 0, 0, 0))[0] < 0


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
    """Score interval; the variance under a difference by maximizing the likelihood on a line, not by formula."""
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


def test_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"counts of images must be at least 0, got \(1, -1, 0, 0\)"):
        PairedCounts(1, -1, 0, 0)
