"""The law of calibration: on fresh leaves, p-values are uniform and the rejected share is the one aimed at."""

import numpy as np
import pytest

from benchmarks.calibration.simulate import Outcome, run_once

RUNS = 40


def run(calibrate_on: int | None) -> list[Outcome]:
    return [run_once(seed, calibrate_on=calibrate_on) for seed in range(RUNS)]


@pytest.fixture(scope="module")
def fresh() -> list[Outcome]:
    """Bundles that fresh leaves calibrated."""
    return run(200)


def interval_of(values: list[float]) -> tuple[float, float]:
    """Return four standard errors around a mean: chance leaves it once in 16,000 times."""
    return float(np.mean(values)), 4 * float(np.std(values, ddof=1)) / RUNS**0.5


def test_the_rejected_share_is_the_one_aimed_at(fresh: list[Outcome]) -> None:
    mean, error = interval_of([outcome.rejected for outcome in fresh])

    assert mean == pytest.approx(np.mean([outcome.aimed for outcome in fresh]), abs=error)
    assert mean <= 0.05 + error
    assert error < 0.015, "otherwise it would prove little"


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2, 0.5, 0.8])
def test_p_values_are_uniform(fresh: list[Outcome], level: float) -> None:
    mean, error = interval_of([float((outcome.p_values <= level).mean()) for outcome in fresh])

    assert mean <= level + error, "the conformal bound"
    assert mean >= level - 1 / 201 - error, "and no more cautious than 200 leaves can tell"


def test_species_whose_leaves_look_strange_do_not_have_small_p_values(fresh: list[Outcome]) -> None:
    shares = np.array([[(o.p_values[species::4] <= 0.05).mean() for species in range(4)] for o in fresh]).mean(axis=0)

    assert shares.max() < 0.09


def test_training_leaves_break_the_law() -> None:
    """Without fresh leaves the folds of the detector do not help: the network has learned every leaf."""
    learned = run(None)
    rejected, error = interval_of([outcome.rejected for outcome in learned])
    small, small_error = interval_of([float((outcome.p_values <= 0.05).mean()) for outcome in learned])

    assert rejected - error > 2 * np.mean([outcome.aimed for outcome in learned])
    assert small - small_error > 0.1
