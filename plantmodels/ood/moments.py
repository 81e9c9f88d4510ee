"""Fits the out-of-distribution detector on streams of embeddings: memory does not grow with their number.

>>> moments = RunningMoments(classes=38, dim=768)  # doctest: +SKIP
>>> for labels, features in batches: moments.update(labels, features)  # doctest: +SKIP
>>> detector = fit_detector(moments, "class_mahalanobis")  # doctest: +SKIP

`select_detector` chooses among methods and sets the threshold.

References:
    Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    Chen, Wiesel, Eldar, Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", 2010 (OAS).
    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples", NeurIPS 2018.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from plantmodels.bundle.detector import Method, OODDetector
from plantmodels.errors import DetectorError

MIN_FIT_IMAGES: Final = 50


class RunningMoments:
    """Class means and the scatter around them, of any number of embeddings, in float64.

    Attributes:
        counts: (C,) embeddings seen of each class.
        means: (C, D).
        scatter: (D, D), the sum over embeddings of `(f - mean_c)(f - mean_c)ᵀ`.
    """

    def __init__(self, classes: int, dim: int) -> None:
        """Starts empty."""
        self.counts: NDArray[np.int64] = np.zeros(classes, np.int64)
        self.means: NDArray[np.float64] = np.zeros((classes, dim))
        self.scatter: NDArray[np.float64] = np.zeros((dim, dim))

    def update(self, labels: NDArray[np.int64], features: NDArray[np.floating]) -> None:
        """Adds embeddings; the result does not depend on how they are cut into batches.

        Args:
            labels: (N,) class of each.
            features: (N, D).

        Raises:
            DetectorError: NaN or infinity.
        """
        features = features.astype(np.float64)
        if not np.isfinite(features).all():
            raise DetectorError("an embedding holds NaN or infinity; the network or its INT8 form is broken")
        for label in np.unique(labels):
            rows = features[labels == label]
            mean = rows.mean(axis=0)
            delta = mean - self.means[label]
            before, total = self.counts[label], self.counts[label] + len(rows)
            centred = rows - mean
            self.scatter += centred.T @ centred + np.outer(delta, delta) * (before * len(rows) / total)
            self.means[label] += delta * (len(rows) / total)
            self.counts[label] = total

    def copy(self) -> "RunningMoments":
        """The same, to be updated by itself."""
        result = RunningMoments(*self.means.shape)
        result.counts, result.means, result.scatter = self.counts.copy(), self.means.copy(), self.scatter.copy()
        return result

    def pooled(self) -> "RunningMoments":
        """The same embeddings as one class: its scatter is that within classes plus that between them."""
        result = RunningMoments(1, self.means.shape[1])
        result.counts[0] = self.counts.sum()
        result.means[0] = self.counts @ self.means / max(1, result.counts[0])
        delta = self.means - result.means[0]
        result.scatter = self.scatter + (delta * self.counts[:, None]).T @ delta
        return result


def fit_detector(moments: RunningMoments, method: Method, others: RunningMoments | None = None) -> OODDetector:
    """Means and inverse covariance with OAS shrinkage; the threshold rejects nothing until one is chosen.

    The covariance is `(1 - s) S + s · trace(S)/D · I` with `S = scatter / n`, and `s` by Chen et al. (2010),
    equation 23 as scikit-learn computes it. "mahalanobis" has one mean and the total covariance,
    "class_mahalanobis" a mean for each class that occurs and the covariance within classes, and "gaussian_ratio" the
    same beside mean and covariance of the non-plants. Inverse covariances are rounded to float32.

    Args:
        moments: of plants, by class.
        method: what to fit.
        others: of known non-plants, as one class; for "gaussian_ratio" alone.

    Raises:
        DetectorError: fewer than `MIN_FIT_IMAGES` plants, or embeddings that do not vary.
        ValueError: "gaussian_ratio" without `others`.
    """
    if method == "mahalanobis":
        moments = moments.pooled()
    count = int(moments.counts.sum())
    if count < MIN_FIT_IMAGES:
        raise DetectorError(f"{count} training images to fit the detector on, at least {MIN_FIT_IMAGES} are needed")
    inv_cov, shrinkage = _invert(moments, "training")
    fit: dict[str, float | int | str] = {"fit_images": count, "shrinkage": shrinkage}
    mean, never = moments.means[moments.counts > 0], np.finfo(float).max
    if method != "gaussian_ratio":
        return OODDetector(method, mean, inv_cov, never, fit=fit)
    if others is None:
        raise ValueError("method 'gaussian_ratio' needs the moments of non-plants")
    other_inv_cov, other_shrinkage = _invert(others.pooled(), "non-plant")
    fit |= {"fit_non_plants": int(others.counts.sum()), "non_plant_shrinkage": other_shrinkage}
    other_mean = others.pooled().means[0]
    return OODDetector(method, mean, inv_cov, never, other_mean=other_mean, other_inv_cov=other_inv_cov, fit=fit)


def _invert(moments: RunningMoments, what: str) -> tuple[NDArray[np.float32], float]:
    """Inverse of the shrunk covariance, and the shrinkage."""
    count, dim = int(moments.counts.sum()), moments.means.shape[1]
    empirical = moments.scatter / max(1, count)
    scale = float(np.trace(empirical)) / dim
    if not scale > 0:
        raise DetectorError(f"all {count:,} {what} embeddings are equal: their covariance is singular")
    shrinkage = _oas_shrinkage(empirical, count)
    covariance = (1 - shrinkage) * empirical + shrinkage * scale * np.eye(dim)
    try:
        inverse = linalg.cho_solve(linalg.cho_factor(covariance), np.eye(dim))
    except linalg.LinAlgError as error:
        raise DetectorError(f"the covariance of {count:,} {what} embeddings of length {dim} is singular") from error
    return ((inverse + inverse.T) / 2).astype(np.float32), shrinkage


def _oas_shrinkage(covariance: NDArray[np.float64], count: int) -> float:
    dim = len(covariance)
    alpha = float(np.mean(covariance**2))
    mu_squared = (float(np.trace(covariance)) / dim) ** 2
    denominator = (count + 1) * (alpha - mu_squared / dim)
    return 1.0 if denominator <= 0 else min((alpha + mu_squared) / denominator, 1.0)
