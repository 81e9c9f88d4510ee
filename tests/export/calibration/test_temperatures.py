"""Checks temperatures against a grid of values, and on logits whose true temperature is known."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from plantmodels.data.leaves import LeafSample
from plantmodels.export.calibration.temperatures import (
    TEMPERATURE_BOUNDS,
    Temperatures,
    fit_temperature,
    fit_temperatures,
)
from plantmodels.ood.embeddings import ModelOutputs


def draw(temperature: float, count: int = 400, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits, and labels that follow `softmax(logits / temperature)`."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (count, classes)).astype(np.float32)
    chances = softmax(logits / temperature, axis=1)
    return logits, np.array([rng.choice(classes, p=row) for row in chances])


def loss(logits: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    total = extra = 0.0
    for row, label in zip(logits.astype(float), labels, strict=True):
        logs = log_softmax(row[np.isfinite(row)] / temperature)
        total -= logs[label]
        extra -= logs.mean() / len(logits)
    return total + extra


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_the_likelihood_has_no_better_temperature(truth: float) -> None:
    logits, labels = draw(truth)
    found = fit_temperature(logits, labels)
    grid = np.geomspace(*TEMPERATURE_BOUNDS, 201)
    best = grid[np.argmin([loss(logits, labels, t) for t in grid])]
    assert found == pytest.approx(best, rel=2e-2)
    assert found == pytest.approx(truth, rel=0.2)


def test_a_temperature_stays_within_its_bounds() -> None:
    logits = np.eye(4, dtype=np.float32)
    right, wrong = np.tile(np.arange(4), 1000), (np.arange(4) + 1) % 4
    low, high = TEMPERATURE_BOUNDS
    assert fit_temperature(np.tile(logits, (1000, 1)) / 100, right) == pytest.approx(low, rel=1e-4)
    assert fit_temperature(logits, wrong) == pytest.approx(high, rel=1e-4)


@pytest.mark.parametrize("images", [4, 40, 400])
def test_a_few_right_predictions_do_not_make_the_temperature_zero(images: int) -> None:
    """The more images are right, the lower the temperature; it never reaches 0."""
    logits, labels = np.tile(5 * np.eye(4, dtype=np.float32), (images // 4, 1)), np.tile(np.arange(4), images // 4)
    found = fit_temperature(logits, labels)
    chance = softmax(logits[0] / found)[0]
    assert chance == pytest.approx((images + 1 / 4) / (images + 1), abs=1e-4)


def test_heads_with_one_class_are_ignored() -> None:
    logits, labels = draw(2.0, classes=3)
    single = np.full((50, 3), -np.inf, np.float32)
    single[:, 0] = 7
    both = np.concatenate([single, logits]), np.concatenate([np.zeros(50, int), labels])
    assert fit_temperature(*both) == fit_temperature(logits, labels)
    assert fit_temperature(single, np.zeros(50, int)) == 1.0


def test_extreme_logits_stay_finite() -> None:
    logits = np.array([[3e38, -3e38], [1e4, -1e4]], np.float32)
    assert math.isfinite(fit_temperature(logits, np.array([1, 0])))


def test_species_and_diseases_are_fitted_on_the_same_leaves() -> None:
    species_logits, species = draw(0.6, classes=3)
    disease_logits, diseases = draw(1.7)
    headless = species == 2
    samples = [
        LeafSample(Path(str(i)), int(s), None if s == 2 else int(d))
        for i, (s, d) in enumerate(zip(species, diseases, strict=True))
    ]
    embedding = np.arange(len(samples), dtype=np.float32)[:, None]

    def run_heads(features: np.ndarray, asked: np.ndarray) -> np.ndarray:
        rows = features[:, 0].astype(int)
        np.testing.assert_array_equal(asked, species[rows])
        assert not headless[rows].any()
        return disease_logits[rows]

    expected = Temperatures(
        fit_temperature(species_logits, species), fit_temperature(disease_logits[~headless], diseases[~headless])
    )
    assert fit_temperatures(ModelOutputs(embedding, species_logits), samples, run_heads) == expected


def test_without_a_disease_its_temperature_is_1() -> None:
    logits, species = draw(0.6, classes=3)
    samples = [LeafSample(Path(str(i)), int(s), None) for i, s in enumerate(species)]
    fitted = fit_temperatures(ModelOutputs(logits, logits), samples, lambda *_: pytest.fail("asked"))

    assert fitted == Temperatures(fit_temperature(logits, species), 1.0)
