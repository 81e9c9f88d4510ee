"""Scores of probabilities: bins, Brier score, log loss, paired intervals, and what chance alone does to them.

>>> probability, right = np.array([0.9, 0.6]), np.array([True, False])
>>> [round(float(part.mean()), 4) for part in (score_brier(probability, right), score_log_loss(probability, right))]
[0.185, 0.5108]
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from plantmodels.arrays import Mask
from plantmodels.report.calibration.results import Bin, Change, Noise, Reliability
from plantmodels.report.statistics import Z_95

BINS: Final = 15
"""Number of bins of equal width, as in Guo et al. (2017)."""

DRAWS: Final = 1000
"""Samples of right and wrong answers that are drawn to see what chance does: the mean error is known to a hundredth of
its size."""

_DRAWS_AT_ONCE: Final = 50
"""Bounds memory: 10,000 images need 4 MB."""

_LEAST: Final = float(np.finfo(np.float64).eps)
"""Probabilities are taken as at least this, and at most 1 minus this, in the log loss, as scikit-learn does."""

Numbers = NDArray[np.float64]


def score_brier(probabilities: Numbers, right: Mask) -> Numbers:
    """Return (probability − 1)² of each right answer and probability² of each wrong one; their mean is the Brier score.

    References:
        Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 1950; here for the
        two outcomes "right" and "wrong".
    """
    squares: Numbers = (probabilities - right) ** 2
    return squares


def score_log_loss(probabilities: Numbers, right: Mask) -> Numbers:
    """Return −log(probability) of each right answer and −log(1 − probability) of each wrong one."""
    inside = np.clip(probabilities, _LEAST, 1 - _LEAST)
    losses: Numbers = -np.where(right, np.log(inside), np.log1p(-inside))
    return losses


def find_change(before: Numbers, after: Numbers) -> Change | None:
    """Return the mean of `after − before` on the same images with Student's 95 % interval.

    None with fewer than 2 images, or if a value is infinite.
    """
    differences = after - before
    images = len(differences)
    if images < 2 or not np.isfinite(differences).all():
        return None
    mean = float(differences.mean())
    half = t_quantile(images - 1) * float(differences.std(ddof=1)) / math.sqrt(images)
    return Change(mean, mean - half, mean + half)


def t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t distribution, right to 3 digits from 4 degrees of freedom on.

    References:
        Abramowitz, Stegun, "Handbook of Mathematical Functions", 26.7.5.
    """
    z = Z_95
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / degrees**power for power, term in enumerate(terms))


def find_reliability(probabilities: Numbers, right: Mask) -> Reliability:
    """Return answers in bins by their probability, and their scores.

    Args:
        probabilities: (N,) probability of each answer.
        right: (N,) whether each answer is right.
    """
    places = _find_places(probabilities)
    images, hits, sums = (
        np.bincount(places, weights, BINS).tolist() for weights in (None, right.astype(float), probabilities)
    )
    return Reliability(
        tuple(Bin(int(n), int(k), total / n if n else 0.0) for n, k, total in zip(images, hits, sums, strict=True)),
        float(score_brier(probabilities, right).mean()) if len(right) else None,
        float(score_log_loss(probabilities, right).mean()) if len(right) else None,
    )


def evaluate_probabilities(
    logits: NDArray[np.floating], labels: NDArray[np.integer], temperature: float
) -> tuple[Numbers, Numbers]:
    """Return the probability of each answer, and −log of the probability of each label.

    Args:
        logits: (N, C) float32, −inf at classes that a row lacks.
        labels: (N,) int64, the true classes.
        temperature: the temperature by which the logits are divided.

    Returns:
        (N,) and (N,) float64.
    """
    gaps = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    sums = np.exp(gaps / temperature).sum(axis=1)
    return 1 / sums, np.log(sums) - gaps[np.arange(len(labels)), labels] / temperature


def _find_places(probabilities: Numbers) -> NDArray[np.int64]:
    places: NDArray[np.int64] = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    return places


def simulate_noise(probabilities: Numbers) -> Noise | None:
    """Return what chance alone does to the calibration error if every probability is exactly right.

    Right and wrong answers are drawn `DRAWS` times: an answer with the probability 0.8 is right in 8 of 10 draws. The
    bits come from PCG64 with the seed 0, whose stream NumPy keeps for ever, so every machine counts the same.

    Args:
        probabilities: (N,) probability of each answer.

    Returns:
        None without images.
    """
    images = len(probabilities)
    if not images:
        return None
    places = _find_places(probabilities)
    member = (places[:, None] == np.arange(BINS)).astype(np.float32)
    limits = np.minimum(probabilities * 2.0**32, 2.0**32 - 1).astype(np.uint32)
    bits = np.random.PCG64(0)
    hits = np.empty((DRAWS, BINS))
    for start in range(0, DRAWS, _DRAWS_AT_ONCE):
        drawn = bits.random_raw((_DRAWS_AT_ONCE * images + 1) // 2).view(np.uint32)[: _DRAWS_AT_ONCE * images]
        hits[start : start + _DRAWS_AT_ONCE] = (drawn.reshape(-1, images) < limits).astype(np.float32) @ member
    counts, sums = np.bincount(places, minlength=BINS), np.bincount(places, probabilities, BINS)
    errors = np.abs(hits - sums).sum(axis=1) / images
    ends = np.quantile(hits, [0.025, 0.975], axis=0, method="closest_observation").T.tolist()
    return Noise(
        float(errors.mean()),
        float(np.quantile(errors, 0.95)),
        tuple((low / n, high / n) if n else None for n, (low, high) in zip(counts.tolist(), ends, strict=True)),
    )
