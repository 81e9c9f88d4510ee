import math

import numpy as np
import pytest
from scipy import stats

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
