"""Simulates a network that knows its training leaves by heart, and calibrates it on these or on fresh leaves.

The embedding of a training leaf lies close to the mean of its class; that of a fresh leaf varies as leaves do. So a
detector is surer of training leaves than of fresh ones, whatever folds it is fitted by.

>>> leaves = simulate_leaves(60, learned=True, seed=0)
>>> leaves.outputs.features.shape
(60, 12)
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from plantmodels.arrays import Probabilities
from plantmodels.ood.embeddings import LeafEmbeddings, ModelOutputs, NonPlantEmbeddings
from plantmodels.ood.select import select_detector

_DIM: Final = 12
_SPECIES: Final = 4
_LEARNED_SPREAD: Final = 0.8
"""Spread of training leaves around the mean of their class; that of fresh leaves is 1."""

_STRANGE: Final = 1.5
"""Spread of the last species, whose leaves look stranger than those of the others."""


@dataclass(frozen=True)
class Outcome:
    """What one simulated bundle does on fresh leaves.

    Attributes:
        aimed: share of the leaves that calibrated above the threshold.
        rejected: share of fresh leaves that it rejects.
        p_values: (N,) of the fresh leaves.
    """

    aimed: float
    rejected: float
    p_values: Probabilities


def simulate_leaves(count: int, *, learned: bool, seed: int) -> LeafEmbeddings:
    """Return leaves of four species of one class each, whose species the network always names rightly.

    Args:
        count: N, the number of leaves.
        learned: whether the network was trained on them.
        seed: another seed gives other leaves.
    """
    means = np.random.default_rng(99).normal(size=(_SPECIES, _DIM)) * 3
    species = np.arange(count) % _SPECIES
    spread = np.where(species == _SPECIES - 1, _STRANGE, 1.0) * (_LEARNED_SPREAD if learned else 1.0)
    noise = np.random.default_rng(seed).normal(size=(count, _DIM)) * spread[:, None]
    logits = np.eye(_SPECIES, dtype=np.float32)[species]
    return LeafEmbeddings(ModelOutputs((means[species] + noise).astype(np.float32), logits), species, species)


def simulate_non_plants(count: int, seed: int) -> NonPlantEmbeddings:
    """Return images that lie apart from all leaves, some of them close."""
    features = np.random.default_rng(seed).normal(size=(count, _DIM)) * 2 + 4
    outputs = ModelOutputs(features.astype(np.float32), np.zeros((count, _SPECIES), np.float32))
    return NonPlantEmbeddings(outputs, np.repeat("stones", count))


def run_once(seed: int, *, calibrate_on: int | None, train: int = 400, fresh: int = 1000) -> Outcome:
    """Fit and calibrate one detector, and try it on fresh leaves.

    Args:
        seed: another seed gives other images.
        calibrate_on: number of fresh leaves that calibrate; None takes the training leaves, as without such leaves.
        train: number of training leaves.
        fresh: number of fresh leaves to try it on.
    """
    plants = simulate_leaves(train, learned=True, seed=3 * seed)
    calibration = None if calibrate_on is None else simulate_leaves(calibrate_on, learned=False, seed=3 * seed + 1)
    detector = select_detector(plants, None, calibration=calibration).detector
    others = simulate_leaves(fresh, learned=False, seed=3 * seed + 2).outputs
    scores = detector.score(others.features)
    p_values = detector.p_values(scores, others.predicted)
    if p_values is None:
        raise RuntimeError("a detector that select_detector made has p-values")
    aimed = float(detector.rejects(detector.plant_scores).mean())
    return Outcome(aimed, float(detector.rejects(scores).mean()), p_values)
