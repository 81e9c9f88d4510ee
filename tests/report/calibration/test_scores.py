"""Scores of probabilities, against scikit-learn, SciPy and slow loops."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax as scipy_softmax
from sklearn.metrics import brier_score_loss, log_loss

from plantmodels.report.calibration.scores import (
    evaluate_probabilities,
    find_change,
    find_reliability,
    score_brier,
    score_log_loss,
    simulate_noise,
    t_quantile,
)

RNG = np.random.default_rng(7)
PROBABILITIES = np.concatenate([RNG.beta(3, 1, 500), [0.0, 1.0, 1.0, 0.5]])
RIGHT = np.concatenate([RNG.random(500) < PROBABILITIES[:500], [False, True, False, True]])


def test_scores_equal_those_of_scikit_learn() -> None:
    found = find_reliability(PROBABILITIES, RIGHT)
    assert found.brier == pytest.approx(brier_score_loss(RIGHT, PROBABILITIES))
    assert found.log_loss == pytest.approx(log_loss(RIGHT, PROBABILITIES))
    assert found.right.count == RIGHT.sum() and found.mean_probability == pytest.approx(PROBABILITIES.mean())


def test_bins_equal_those_of_a_slow_loop() -> None:
    bins: list[list[int]] = [[] for _ in range(15)]
    for place, probability in enumerate(PROBABILITIES):
        bins[min(14, int(probability * 15))].append(place)
    found = find_reliability(PROBABILITIES, RIGHT)
    assert [(row.images, row.right) for row in found.bins] == [(len(part), RIGHT[part].sum()) for part in bins]
    error = sum(abs(RIGHT[part].sum() - PROBABILITIES[part].sum()) for part in bins) / len(RIGHT)
    assert found.ece == pytest.approx(error)


def test_without_images_there_is_nothing() -> None:
    nothing = find_reliability(np.empty(0), np.empty(0, bool))
    assert (nothing.ece, nothing.brier, nothing.log_loss) == (None, None, None)
    assert simulate_noise(np.empty(0)) is None
    assert find_change(np.ones(1), np.zeros(1)) is None


def test_the_interval_of_a_paired_change_equals_scipys() -> None:
    better = np.clip(PROBABILITIES + 0.1 * (RIGHT - 0.5), 0, 1)
    before, after = score_brier(PROBABILITIES, RIGHT), score_brier(better, RIGHT)
    change = find_change(before, after)
    assert change is not None
    exact = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (change.value, change.low, change.high) == pytest.approx((np.mean(after - before), *exact), rel=1e-6)
    drawn = stats.bootstrap((after - before,), np.mean, n_resamples=4000, rng=np.random.default_rng(1))
    width = change.high - change.low
    assert (change.low, change.high) == pytest.approx(tuple(drawn.confidence_interval), abs=0.06 * width)


@pytest.mark.parametrize(("degrees", "rel"), [(3, 2e-3), (5, 2e-4), (10, 1e-5), (100, 1e-9), (10_000, 1e-9)])
def test_students_quantile_equals_scipys(degrees: int, rel: float) -> None:
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=rel)


def test_an_infinite_loss_has_no_interval() -> None:
    assert find_change(np.array([1.0, 2.0]), np.array([1.0, math.inf])) is None


def exact_error(probabilities: np.ndarray) -> float:
    """Mean calibration error of calibrated answers in one bin: from the distribution of the number of right ones."""
    distribution = np.ones(1)
    for probability in probabilities:
        distribution = np.convolve(distribution, [1 - probability, probability])
    distances = np.abs(np.arange(len(distribution)) - probabilities.sum())
    return float(distribution @ distances)


@pytest.mark.parametrize("images", [1, 49, 400])
def test_the_noise_floor_is_that_of_a_calibrated_model(images: int) -> None:
    probabilities = np.random.default_rng(2).beta(2, 1, images)
    places = np.minimum((probabilities * 15).astype(int), 14)
    expected = sum(exact_error(probabilities[places == place]) for place in range(15)) / images
    noise = simulate_noise(probabilities)
    assert noise is not None and noise.ece == pytest.approx(expected, rel=0.02)
    rng, above, outside = np.random.default_rng(3), 0, np.zeros(2)
    for _ in range(400):
        sample = find_reliability(probabilities, rng.random(images) < probabilities)
        above += (sample.ece or 0) > noise.ece_high
        shares = [
            (row.right / row.images, band) for row, band in zip(sample.bins, noise.bands, strict=True) if row.images
        ]
        outside += [sum(not low <= share <= high for share, (low, high) in shares), len(shares)]  # type: ignore[misc]
    assert above <= 0.05 * 400 + 3 * math.sqrt(400 * 0.05 * 0.95)
    assert outside[0] / outside[1] <= 0.06


def test_the_noise_floor_is_the_same_each_time_and_shrinks_with_images() -> None:
    few, many = simulate_noise(PROBABILITIES[:50]), simulate_noise(np.tile(PROBABILITIES, 10))
    assert few == simulate_noise(PROBABILITIES[:50])
    assert few is not None and many is not None and few.ece > 5 * many.ece


def test_certain_answers_have_no_noise() -> None:
    noise = simulate_noise(np.array([0.0, 1.0]))
    assert noise is not None and (noise.ece, noise.bands[0], noise.bands[14]) == (pytest.approx(0), (0, 0), (1, 1))


def test_the_probability_of_the_truth_equals_that_of_a_slow_loop() -> None:
    rng = np.random.default_rng(4)
    logits, labels = rng.normal(0, 2, (50, 4)).astype(np.float32), rng.integers(0, 3, 50)
    logits[::3, 3] = -np.inf
    for temperature in (1.0, 0.6):
        answers, losses = evaluate_probabilities(logits, labels, temperature)
        chances = scipy_softmax(logits.astype(float) / temperature, axis=1)
        np.testing.assert_allclose(answers, chances.max(axis=1))
        np.testing.assert_allclose(losses, -np.log(chances[np.arange(50), labels]))


def test_an_impossible_label_has_an_infinite_loss() -> None:
    assert evaluate_probabilities(np.array([[1.0, -np.inf]], np.float32), np.array([1]), 1.0)[1].tolist() == [math.inf]


def test_a_wrong_answer_that_was_certain_has_a_large_finite_log_loss() -> None:
    assert score_log_loss(np.array([1.0]), np.array([False])).tolist() == pytest.approx([36.04], abs=0.01)
