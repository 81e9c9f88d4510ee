"""Fits the temperatures of the species and of the diseases on the outputs of the served models for training leaves.

The network may have been trained on these leaves; the validation leaves are reserved for verification.

The two temperatures differ. On the real Swin-Tiny they are 0.79 for species and 0.54 for diseases. With the species'
temperature for both, the calibration error of the diseases on validation leaves is 3.0 % instead of 2.0 %.

>>> fit_temperature(np.array([[2, 0], [0, 2], [2, 0], [2, 0]], np.float32), np.array([0, 1, 0, 1])) > 1
True

References:
    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
    Platt, "Probabilistic Outputs for Support Vector Machines", 1999: targets that one more example could soften.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import minimize_scalar

from plantmodels.arrays import Labels, Logits
from plantmodels.data.leaves import LeafSample
from plantmodels.ood.embeddings import ModelOutputs
from plantmodels.serve.routing import RunHeads

TEMPERATURE_BOUNDS: Final = (0.1, 10.0)
"""Wide enough for any usable network; outside, the data do not determine a temperature."""

_BATCH: Final = 256
"""Rows in one run of the packed heads, which copies the weights of one head for each row."""


@dataclass(frozen=True)
class Temperatures:
    """Numbers by which logits are divided before softmax.

    Attributes:
        species: temperature of the species logits.
        disease: temperature of the disease logits.
    """

    species: float
    disease: float


def fit_temperatures(outputs: ModelOutputs, samples: Sequence[LeafSample], run_heads: RunHeads) -> Temperatures:
    """Fit both temperatures. The disease logits come from the true species' heads. Without data a temperature is 1.

    Args:
        outputs: outputs of the species model for N leaves.
        samples: the same leaves with their labels.
        run_heads: function that runs the served packed heads.
    """
    species = np.array([sample.species_index for sample in samples], np.int64)
    diseases = np.array([-1 if s.disease_index is None else s.disease_index for s in samples], np.int64)
    headed = np.flatnonzero(diseases >= 0)
    batches = np.array_split(headed, math.ceil(len(headed) / _BATCH)) if len(headed) else []
    logits = [run_heads(outputs.features[rows], species[rows]) for rows in batches]
    return Temperatures(
        species=fit_temperature(outputs.logits, species),
        disease=fit_temperature(np.concatenate(logits), diseases[headed]) if logits else 1.0,
    )


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature T that minimizes `Σ -log p[label] + mean(-log p)`, with `p = softmax(logits / T)`.

    T is searched within `TEMPERATURE_BOUNDS`. The sum runs over the images. The mean runs over the images and their
    classes, and acts as one more image whose classes are equally likely. Without it, T would go to 0 whenever all
    images are right, however few they are. Rows with a single class are ignored; if there are no others, T is 1.

    Args:
        logits: (N, C) logits, −inf for classes that a row lacks.
        labels: (N,) true class of each row, whose logit is finite.
    """
    has_several = np.isfinite(logits).sum(axis=1) > 1
    logits, labels = logits[has_several].astype(np.float64), labels[has_several]
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
