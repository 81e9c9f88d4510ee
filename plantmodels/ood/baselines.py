"""Fits out-of-distribution scores from the literature, to compare them with the detectors that a bundle can hold.

Each `fit_…` function takes `FitData` and returns a `Scorer`. Higher scores mean more out-of-distribution. All methods
see embeddings and species logits only.

References:
    Mueller, Hein, "Mahalanobis++: Improving OOD Detection via Feature Normalization", ICML 2025.
    Ren et al., "A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection", 2021 (arXiv:2106.09022).
    Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020.
    Liu, Lochman, Zach, "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection", CVPR 2023.
    Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022.
    Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022.
    Hendrycks, Mazeika, Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from plantmodels.arrays import Embeddings, Labels, Scores
from plantmodels.bundle.detector import OODDetector
from plantmodels.ood.embeddings import ModelOutputs
from plantmodels.ood.moments import RunningMoments, fit_detector

Scorer = Callable[[ModelOutputs], Scores]
"""Maps the outputs for N images to N scores."""

# The constants below are the papers' own, except for the two regularization strengths, which did best on real leaves.
_GEN_POWER: Final = 0.1
_GEN_CLASSES: Final = 100
_NEIGHBORS: Final = 50
_VIM_DIMENSIONS: Final = 0.5
"""Share of the embedding's dimensions that span the principal space; the paper takes 1,000 of 2,048 and 512 of 768."""

_LOGISTIC_C: Final = 0.01
_SVM_C: Final = 10.0


@dataclass(frozen=True)
class FitData:
    """Images that a method is fitted on.

    Attributes:
        plants: outputs for N training leaves.
        classes: (N,) pair of species and disease, as one number.
        non_plants: outputs for M known non-plants; None for a method that may not see any.
    """

    plants: ModelOutputs
    classes: Labels
    non_plants: ModelOutputs | None


@dataclass(frozen=True)
class Baseline:
    """A method of the literature.

    Attributes:
        fit: function that fits the method.
        exposed: whether the method needs non-plants (outlier exposure).
    """

    fit: Callable[[FitData], Scorer]
    exposed: bool = False


def _compute_moments(features: NDArray[np.floating], classes: Labels) -> RunningMoments:
    moments = RunningMoments(int(classes.max()) + 1, features.shape[1])
    moments.update(classes, features)
    return moments


def _normalize(features: Embeddings) -> Embeddings:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit: Embeddings = features / np.maximum(lengths, np.float32(1e-12))
    return unit


def fit_normalized_mahalanobis(data: FitData) -> Scorer:
    """Fit Mahalanobis++ (Mueller & Hein 2025): `min_c d(f / |f|, mean_c, inv_cov)` with one tied covariance."""
    moments = _compute_moments(_normalize(data.plants.features), data.classes)
    detector = replace(fit_detector(moments, "class_mahalanobis"), normalize=True)
    return lambda outputs: detector.score(outputs.features)


def fit_relative_mahalanobis(data: FitData) -> Scorer:
    """Fit relative Mahalanobis (Ren et al. 2021): `min_c d(f, mean_c, inv_cov)² - d(f, mean, inv_cov of all)²`."""
    moments = _compute_moments(data.plants.features, data.classes)
    near, far = fit_detector(moments, "class_mahalanobis"), fit_detector(moments, "mahalanobis")
    detector = OODDetector(
        "gaussian_ratio", near.mean, near.inv_cov, 0.0, other_mean=far.mean[0], other_inv_cov=far.inv_cov
    )
    return lambda outputs: detector.score(outputs.features)


def fit_energy(data: FitData) -> Scorer:
    """Return the energy score (Liu et al. 2020): `-log Σ exp(logit)` at temperature 1. Nothing is fitted."""
    del data

    def score(outputs: ModelOutputs) -> Scores:
        return -np.asarray(logsumexp(outputs.logits.astype(np.float64), axis=1))

    return score


def fit_gen(data: FitData) -> Scorer:
    """Return the generalized entropy (Liu et al. 2023): `Σ (p (1 - p))^0.1` over the 100 highest probabilities.

    Nothing is fitted.
    """
    del data

    def score(outputs: ModelOutputs) -> Scores:
        probabilities = np.sort(softmax(outputs.logits.astype(np.float64), axis=1), axis=1)[:, -_GEN_CLASSES:]
        return np.asarray(np.sum((probabilities * (1 - probabilities)) ** _GEN_POWER, axis=1))

    return score


def fit_knn(data: FitData) -> Scorer:
    """Fit the distance from the normalized embedding to its 50th nearest training leaf (Sun et al. 2022)."""
    stored = _normalize(data.plants.features)
    index = NearestNeighbors(n_neighbors=min(_NEIGHBORS, len(stored)), algorithm="brute").fit(stored)

    def score(outputs: ModelOutputs) -> Scores:
        return np.asarray(index.kneighbors(_normalize(outputs.features))[0][:, -1], np.float64)

    return score


def fit_vim(data: FitData) -> Scorer:
    """Fit virtual-logit matching (Wang et al. 2022): `α |residual of f| - log Σ exp(logit)`.

    The residual is the part of `f - o` outside the principal half of the dimensions. The origin `o = -W⁺ b` is the
    point at which all logits are 0. The affine map `W, b` from embedding to logits is recovered by least squares. `α`
    makes the mean virtual logit of the training leaves equal to the mean of their largest logits.
    """
    features, logits = data.plants.features.astype(np.float64), data.plants.logits.astype(np.float64)
    center = features.mean(axis=0)
    weight = np.linalg.lstsq(features - center, logits - logits.mean(axis=0), rcond=None)[0].T
    origin = -np.linalg.pinv(weight) @ (logits.mean(axis=0) - weight @ center)
    shifted = features - origin
    values, vectors = np.linalg.eigh(shifted.T @ shifted)
    residual = vectors[:, : len(values) - round(_VIM_DIMENSIONS * len(values))]
    alpha = logits.max(axis=1).mean() / max(float(np.linalg.norm(shifted @ residual, axis=1).mean()), 1e-12)

    def score(outputs: ModelOutputs) -> Scores:
        length = np.linalg.norm((outputs.features.astype(np.float64) - origin) @ residual, axis=1)
        return np.asarray(alpha * length - logsumexp(outputs.logits.astype(np.float64), axis=1))

    return score


def fit_logistic(data: FitData) -> Scorer:
    """Fit a logistic regression of known non-plants against plants, on standardized features; scores are log-odds."""
    return _fit_classifier(data, LogisticRegression(C=_LOGISTIC_C, class_weight="balanced", max_iter=1000))


def fit_rbf(data: FitData) -> Scorer:
    """Fit a support vector machine with a Gaussian kernel, known non-plants against plants; scores are margins."""
    return _fit_classifier(data, SVC(C=_SVM_C, gamma="scale", class_weight="balanced"))


def _fit_classifier(data: FitData, classifier: Any) -> Scorer:
    if data.non_plants is None:
        raise ValueError("a method with outlier exposure needs non-plants")
    features = np.concatenate([data.plants.features, data.non_plants.features])
    is_non_plant = np.repeat([False, True], [len(data.plants), len(data.non_plants)])
    model = make_pipeline(StandardScaler(), classifier).fit(features, is_non_plant)
    return lambda outputs: np.asarray(model.decision_function(outputs.features), np.float64)


BASELINES: Final[Mapping[str, Baseline]] = {
    "normalized_mahalanobis": Baseline(fit_normalized_mahalanobis),
    "relative_mahalanobis": Baseline(fit_relative_mahalanobis),
    "energy": Baseline(fit_energy),
    "gen": Baseline(fit_gen),
    "knn": Baseline(fit_knn),
    "vim": Baseline(fit_vim),
    "logistic": Baseline(fit_logistic, exposed=True),
    "rbf_svm": Baseline(fit_rbf, exposed=True),
}
