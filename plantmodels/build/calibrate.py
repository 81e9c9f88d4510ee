"""One temperature for the species and one for the diseases, fitted on held-out leaves as they are served.

The two differ: on the real Swin-Tiny species want 0.79 and diseases 0.54, and with the species' temperature for both
the diseases' calibration error on validation leaves is 3.0 % instead of 2.0 %.

>>> calibrator = Calibrator(held_out.samples, run_heads)  # doctest: +SKIP
>>> scores = embedder.score(detectors, held_out.paths, "set the threshold", watch=calibrator.add)  # doctest: +SKIP
>>> calibrator.fit().species  # doctest: +SKIP
0.794525

References:
    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
    Platt, "Probabilistic Outputs for Support Vector Machines", 1999: targets that one more example could soften.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from plantmodels.build.data import LeafSample
from plantmodels.serve.routing import RunHeads

TEMPERATURE_BOUNDS: Final = (0.1, 10.0)


@dataclass(frozen=True)
class Temperatures:
    """What logits are divided by before they become probabilities."""

    species: float
    disease: float


class Calibrator:
    """Collects the logits of held-out leaves: 4 bytes an image and class are kept."""

    def __init__(self, samples: Sequence[LeafSample], run_heads: RunHeads) -> None:
        """Starts empty.

        Args:
            samples: the leaves, in the order that `add` counts them in.
            run_heads: the packed heads that are served.
        """
        self._samples = samples
        self._run_heads = run_heads
        self._species: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []
        self._diseases: list[tuple[NDArray[np.float32], NDArray[np.int64]]] = []

    def add(self, positions: Sequence[int], logits: NDArray[np.float32], embedding: NDArray[np.float32]) -> None:
        """Adds a batch: positions (n,) in the samples, species logits (n, S) and embedding (n, D)."""
        batch = [self._samples[position] for position in positions]
        species = np.array([sample.species_index for sample in batch], np.int64)
        diseases = np.array([-1 if s.disease_index is None else s.disease_index for s in batch], np.int64)
        self._species.append((logits, species))
        rows = np.flatnonzero(diseases >= 0)
        if len(rows):
            self._diseases.append((self._run_heads(embedding[rows], species[rows]), diseases[rows]))

    def fit(self) -> Temperatures:
        """Fits both, the diseases' given the true species; 1 where there is nothing to fit on."""
        return Temperatures(*(_fit_all(parts) for parts in (self._species, self._diseases)))


def _fit_all(parts: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]]) -> float:
    if not parts:
        return 1.0
    logits, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    return fit_temperature(logits, labels)


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The T within `TEMPERATURE_BOUNDS` at which `Σ -log p[label] + mean(-log p)` is lowest, p = softmax(logits / T).

    The sum is over the images; the mean, over images and their classes, is that of one image more, of which any class
    is as likely: without it T would go to 0 wherever all images are right, however few they are. Rows with a single
    class say nothing; without others T is 1.

    Args:
        logits: (N, C), −inf at classes that a row lacks.
        labels: (N,), never such a class.
    """
    several = np.isfinite(logits).sum(axis=1) > 1
    logits, labels = logits[several].astype(np.float64), labels[several]
    if not len(logits):
        return 1.0
    gaps = logits - logits.max(axis=1, keepdims=True)
    label_gap = gaps[np.arange(len(labels)), labels].sum()
    is_class = np.isfinite(gaps)
    mean_gap = (np.where(is_class, gaps, 0).sum(axis=1) / is_class.sum(axis=1)).mean()

    def loss(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        normalizers = np.log(np.exp(gaps / temperature).sum(axis=1))
        return float(normalizers.sum() + normalizers.mean() - (label_gap + mean_gap) / temperature)

    low, high = map(math.log, TEMPERATURE_BOUNDS)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return round(math.exp(found.x), 6)
