"""One temperature for the species and one for the diseases, fitted on training leaves as they are served.

The network may have been trained on these leaves; validation leaves are for verification alone.

The two differ: on the real Swin-Tiny species want 0.79 and diseases 0.54, and with the species' temperature for both
the diseases' calibration error on validation leaves is 3.0 % instead of 2.0 %.

>>> fit_temperatures(embedded, samples, run_heads).species  # doctest: +SKIP
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

from plantmodels.data.leaves import LeafSample
from plantmodels.ood.embeddings import ModelOutputs
from plantmodels.serve.routing import RunHeads

TEMPERATURE_BOUNDS: Final = (0.1, 10.0)
_BATCH: Final = 256
"""Rows that the heads run at once: each gathers one head's weights."""


@dataclass(frozen=True)
class Temperatures:
    """What logits are divided by before they become probabilities."""

    species: float
    disease: float


def fit_temperatures(embedded: ModelOutputs, samples: Sequence[LeafSample], run_heads: RunHeads) -> Temperatures:
    """Fits both, the diseases' given the true species; 1 where there is nothing to fit on.

    Args:
        embedded: N leaves.
        samples: the same leaves.
        run_heads: the packed heads that are served.
    """
    species = np.array([sample.species_index for sample in samples], np.int64)
    diseases = np.array([-1 if s.disease_index is None else s.disease_index for s in samples], np.int64)
    headed = np.flatnonzero(diseases >= 0)
    batches = np.array_split(headed, math.ceil(len(headed) / _BATCH)) if len(headed) else []
    logits = [run_heads(embedded.features[rows], species[rows]) for rows in batches]
    return Temperatures(
        species=fit_temperature(embedded.logits, species),
        disease=fit_temperature(np.concatenate(logits), diseases[headed]) if logits else 1.0,
    )


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
