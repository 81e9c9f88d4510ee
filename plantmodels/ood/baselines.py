"""Out-of-distribution scores of the literature, for comparison with those that a bundle can hold.

Each `fit_…` takes a `Training` and returns a `Scorer`; higher scores mean more out-of-distribution. All see embeddings
and species logits alone.

>>> score = BASELINES["knn"].fit(training)  # doctest: +SKIP
>>> score(embedded).shape  # doctest: +SKIP
(600,)

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

from plantmodels.bundle.detector import OODDetector
from plantmodels.ood.embeddings import Embedded
from plantmodels.ood.moments import RunningMoments, fit_detector

Scorer = Callable[[Embedded], NDArray[np.float64]]
"""N images to scores (N,)."""

_GEN_POWER: Final = 0.1
_GEN_CLASSES: Final = 100
_NEIGHBOURS: Final = 50
_VIM_DIMENSIONS: Final = 0.5
"""Of the embedding's, for its principal space; the paper takes 1,000 of 2,048 and 512 of 768."""

_LOGISTIC_C: Final = 0.01
_SVM_C: Final = 10.0


@dataclass(frozen=True)
class Training:
    """What a score may be fitted on.

    Attributes:
        plants: N training leaves.
        classes: (N,) int64, species and disease as one number.
        others: M known non-plants; None for a score that may not see any.
    """

    plants: Embedded
    classes: NDArray[np.int64]
    others: Embedded | None


@dataclass(frozen=True)
class Baseline:
    """How a score is fitted, and whether it wants non-plants (outlier exposure)."""

    fit: Callable[[Training], Scorer]
    exposed: bool = False


def _moments(features: NDArray[np.floating], classes: NDArray[np.int64]) -> RunningMoments:
    moments = RunningMoments(int(classes.max()) + 1, features.shape[1])
    moments.update(classes, features)
    return moments


def _normalized(features: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit: NDArray[np.float32] = features / np.maximum(lengths, np.float32(1e-12))
    return unit


def fit_normalized_mahalanobis(training: Training) -> Scorer:
    """Mahalanobis++ (Mueller & Hein 2025): `min_c d(f / |f|, mean_c, inv_cov)` with one tied covariance."""
    moments = _moments(_normalized(training.plants.features), training.classes)
    detector = replace(fit_detector(moments, "class_mahalanobis"), normalize=True)
    return lambda embedded: detector.score(embedded.features)


def fit_relative_mahalanobis(training: Training) -> Scorer:
    """Relative Mahalanobis (Ren et al. 2021): `min_c d(f, mean_c, inv_cov)² - d(f, mean, inv_cov of all)²`."""
    moments = _moments(training.plants.features, training.classes)
    near, far = fit_detector(moments, "class_mahalanobis"), fit_detector(moments, "mahalanobis")
    detector = OODDetector(
        "gaussian_ratio", near.mean, near.inv_cov, 0.0, other_mean=far.mean[0], other_inv_cov=far.inv_cov
    )
    return lambda embedded: detector.score(embedded.features)


def fit_energy(training: Training) -> Scorer:
    """Energy (Liu et al. 2020): `-log Σ exp(logit)`, temperature 1. Nothing is fitted."""
    del training

    def score(embedded: Embedded) -> NDArray[np.float64]:
        return -np.asarray(logsumexp(embedded.logits.astype(np.float64), axis=1))

    return score


def fit_gen(training: Training) -> Scorer:
    """Generalized entropy (Liu et al. 2023): `Σ (p (1 - p))^0.1`, the 100 highest probabilities. Nothing is fitted."""
    del training

    def score(embedded: Embedded) -> NDArray[np.float64]:
        probabilities = np.sort(softmax(embedded.logits.astype(np.float64), axis=1), axis=1)[:, -_GEN_CLASSES:]
        return np.asarray(np.sum((probabilities * (1 - probabilities)) ** _GEN_POWER, axis=1))

    return score


def fit_knn(training: Training) -> Scorer:
    """Distance of the normalised embedding to its 50th nearest training leaf (Sun et al. 2022)."""
    stored = _normalized(training.plants.features)
    index = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(stored)), algorithm="brute").fit(stored)

    def score(embedded: Embedded) -> NDArray[np.float64]:
        return np.asarray(index.kneighbors(_normalized(embedded.features))[0][:, -1], np.float64)

    return score


def fit_vim(training: Training) -> Scorer:
    """Virtual-logit matching (Wang et al. 2022): `α |residual of f| - log Σ exp(logit)`.

    The residual is what the principal half of the dimensions leaves of `f - o`, with `o = -W⁺ b`, the origin at which
    all logits are 0; the affine map `W, b` from embedding to logits is recovered from the two. `α` makes the mean
    virtual logit of the training leaves equal the mean of their largest logits.
    """
    features, logits = training.plants.features.astype(np.float64), training.plants.logits.astype(np.float64)
    centre = features.mean(axis=0)
    weight = np.linalg.lstsq(features - centre, logits - logits.mean(axis=0), rcond=None)[0].T
    origin = -np.linalg.pinv(weight) @ (logits.mean(axis=0) - weight @ centre)
    shifted = features - origin
    values, vectors = np.linalg.eigh(shifted.T @ shifted)
    residual = vectors[:, : len(values) - round(_VIM_DIMENSIONS * len(values))]
    alpha = logits.max(axis=1).mean() / max(float(np.linalg.norm(shifted @ residual, axis=1).mean()), 1e-12)

    def score(embedded: Embedded) -> NDArray[np.float64]:
        length = np.linalg.norm((embedded.features.astype(np.float64) - origin) @ residual, axis=1)
        return np.asarray(alpha * length - logsumexp(embedded.logits.astype(np.float64), axis=1))

    return score


def fit_logistic(training: Training) -> Scorer:
    """Log-odds of logistic regression, plants against known non-plants, L2, standardised features."""
    return _fit_classifier(training, LogisticRegression(C=_LOGISTIC_C, class_weight="balanced", max_iter=1000))


def fit_rbf(training: Training) -> Scorer:
    """Margin of a support vector machine with a Gaussian kernel, plants against known non-plants."""
    return _fit_classifier(training, SVC(C=_SVM_C, gamma="scale", class_weight="balanced"))


def _fit_classifier(training: Training, classifier: Any) -> Scorer:
    if training.others is None:
        raise ValueError("a score with outlier exposure needs non-plants")
    features = np.concatenate([training.plants.features, training.others.features])
    is_other = np.repeat([False, True], [len(training.plants), len(training.others)])
    model = make_pipeline(StandardScaler(), classifier).fit(features, is_other)
    return lambda embedded: np.asarray(model.decision_function(embedded.features), np.float64)


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
