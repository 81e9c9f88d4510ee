"""Fits an out-of-distribution detector on a stream of embeddings: memory does not grow with their number.

>>> moments = RunningMoments(classes=2, dim=3)
>>> moments.update(np.arange(100) % 2, np.random.default_rng(0).normal(size=(100, 3)))
>>> fit_detector(moments, "class_mahalanobis").mean.shape
(2, 3)

`select_detector` chooses among the methods and sets the threshold.

References:
    Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    Chen, Wiesel, Eldar, Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", 2010 (OAS).
    Friedman, "Regularized Discriminant Analysis", JASA 1989.
    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples", NeurIPS 2018.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from plantmodels.arrays import Labels, Scores
from plantmodels.bundle.detector import Method, OODDetector
from plantmodels.errors import DetectorError

MIN_FIT_IMAGES: Final = 50
"""With fewer images, the covariance would be almost entirely shrinkage."""

_POOLED: Final = 0.5
"""Share of the mean of both covariances in each covariance of "gaussian_ratio".

By cross-validation on a student's training leaves and the selection half, 0.25 and 0.5 did about equally well: at 0.5 %
false alarms they reject 97.9 and 97.2 % of the non-plants, where two separate covariances reject 86.4 % and one common
covariance 95.8 %.
"""


class RunningMoments:
    """Means of the classes and the scatter around them, for any number of embeddings, in float64.

    Attributes:
        counts: (C,) number of embeddings seen in each class.
        means: (C, D) mean embedding of each class.
        scatter: (D, D) sum over all embeddings `f` of `(f - mean)(f - mean)ᵀ`, with the mean of its class.
    """

    def __init__(self, classes: int, dim: int) -> None:
        """Start without any embedding.

        Args:
            classes: C, the number of classes.
            dim: D, the length of an embedding.
        """
        self.counts: Labels = np.zeros(classes, np.int64)
        self.means: NDArray[np.float64] = np.zeros((classes, dim))
        self.scatter: NDArray[np.float64] = np.zeros((dim, dim))

    def update(self, labels: Labels, features: NDArray[np.floating]) -> None:
        """Add embeddings; the result does not depend on how they are cut into batches, except for rounding.

        Args:
            labels: (N,) class of each embedding.
            features: (N, D) embeddings.

        Raises:
            DetectorError: an embedding holds NaN or infinity.
        """
        if not np.isfinite(features).all():
            raise DetectorError("an embedding holds NaN or infinity: the network or its INT8 model is broken")
        order = np.argsort(labels, kind="stable")
        present, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
        if not len(present):
            return
        rows = features[order].astype(np.float64)  # the only copy: 20,000 leaves take 123 MB
        means = np.add.reduceat(rows, starts) / counts[:, None]
        for start, count, mean in zip(starts.tolist(), counts.tolist(), means, strict=True):
            rows[start : start + count] -= mean
        before, total = self.counts[present], self.counts[present] + counts
        delta = means - self.means[present]
        shift = delta * np.sqrt(before * counts / total)[:, None]
        self.scatter += rows.T @ rows + shift.T @ shift
        self.means[present] += delta * (counts / total)[:, None]
        self.counts[present] = total

    def copy(self) -> "RunningMoments":
        """Return a copy that can be updated independently."""
        result = RunningMoments(*self.means.shape)
        result.counts, result.means, result.scatter = self.counts.copy(), self.means.copy(), self.scatter.copy()
        return result

    def pooled(self) -> "RunningMoments":
        """Return the moments with all embeddings counted as one class."""
        result = RunningMoments(1, self.means.shape[1])
        result.counts[0] = self.counts.sum()
        result.means[0] = self.counts @ self.means / max(1, result.counts[0])
        delta = self.means - result.means[0]
        result.scatter = self.scatter + (delta * self.counts[:, None]).T @ delta
        return result


def fit_detector(moments: RunningMoments, method: Method, non_plants: RunningMoments | None = None) -> OODDetector:
    """Return a detector with means and inverse covariances; its threshold rejects nothing yet.

    - "mahalanobis" has one mean and the total covariance.
    - "class_mahalanobis" has a mean for each class that occurs, and the covariance within classes.
    - "gaussian_ratio" has the means of the classes and of the non-plants, and two covariances (`fit_pair`).

    Covariances are shrunk to `(1 - s) S + s · trace(S)/D · I`, with `S = scatter / n` and `s` by Chen et al. (2010),
    equation 23, as in scikit-learn's OAS. Inverse covariances are rounded to float32.

    Args:
        moments: moments of the plants, by class.
        method: the method to fit.
        non_plants: moments of known non-plants, for "gaussian_ratio" only.

    Raises:
        DetectorError: there are fewer than `MIN_FIT_IMAGES` plants, or the embeddings do not vary.
        ValueError: the method is "gaussian_ratio" and `non_plants` is None.
    """
    if method == "mahalanobis":
        moments = moments.pooled()
    count = int(moments.counts.sum())
    if count < MIN_FIT_IMAGES:
        raise DetectorError(f"the detector needs at least {MIN_FIT_IMAGES} training images, got {count}")
    if method == "gaussian_ratio":
        if non_plants is None:
            raise ValueError("method 'gaussian_ratio' needs the moments of non-plants")
        near, other = fit_pair(moments, non_plants)
    else:
        near, other = fit_gaussian(moments, "training"), None
    fit: dict[str, float | int | str] = {"fit_images": count, "shrinkage": near.shrinkage}
    reject_nothing = np.finfo(float).max
    if other is None:
        return OODDetector(method, near.means, near.invert(), reject_nothing, fit=fit)
    fit |= {"fit_non_plants": other.images, "non_plant_shrinkage": other.shrinkage}
    return OODDetector(
        method,
        near.means,
        near.invert(),
        reject_nothing,
        other_mean=other.means[0],
        other_inv_cov=other.invert(),
        fit=fit,
    )


@dataclass(frozen=True)
class Gaussian:
    """Gaussians with different means and one covariance.

    Attributes:
        means: (C, D) float64, the mean of each class that occurs.
        factor: (D, D) float64, upper triangular `U` with the shrunk covariance `Uᵀ U`.
        shrinkage: the shrinkage of the covariance, 0 to 1.
        images: number of images that they were fitted on.
    """

    means: NDArray[np.float64]
    factor: NDArray[np.float64]
    shrinkage: float
    images: int

    def invert(self) -> NDArray[np.float32]:
        """Return the inverse of the covariance, (D, D)."""
        inverse = linalg.cho_solve((self.factor, False), np.eye(len(self.factor)))
        return np.asarray((inverse + inverse.T) / 2, np.float32)

    def squared_distances(self, features: NDArray[np.floating]) -> Scores:
        """Return the squared Mahalanobis distance of each embedding to the nearest mean, (N,), in float64.

        This is faster than the inverse of the covariance, for a few embeddings and a covariance that is used once.

        Args:
            features: (N, D) embeddings.
        """
        images, means = (
            linalg.solve_triangular(self.factor, rows.astype(np.float64).T, trans="T").T
            for rows in (features - self.means[0], self.means - self.means[0])
        )
        products = images @ means.T
        nearest = np.einsum("cd,cd->c", means, means) - 2 * products
        return np.asarray(np.maximum(np.einsum("nd,nd->n", images, images) + nearest.min(axis=1), 0))


def fit_gaussian(moments: RunningMoments, images: str) -> Gaussian:
    """Return the Gaussians of the classes that occur, with the shrunk covariance within them.

    Args:
        moments: moments of the images, by class.
        images: what the images are, for errors: "training" or "non-plant".

    Raises:
        DetectorError: the embeddings do not vary.
    """
    return _factorize(moments, *_shrink_covariance(moments, images), images)


def fit_pair(plants: RunningMoments, non_plants: RunningMoments) -> tuple[Gaussian, Gaussian]:
    """Return the Gaussians of the classes of plants and that of the non-plants, for "gaussian_ratio".

    Each shrunk covariance `S` becomes `(1 - p) S + p · mean of both`, with `p = 1/2` (Friedman 1989). The ratio reads
    how the two covariances differ in every direction, and a few hundred non-plants do not determine that.

    Args:
        plants: moments of the plants, by class.
        non_plants: moments of the non-plants; their classes count as one.

    Raises:
        DetectorError: the embeddings of one of the two do not vary.
    """
    others = non_plants.pooled()
    near, near_shrinkage = _shrink_covariance(plants, "training")
    far, far_shrinkage = _shrink_covariance(others, "non-plant")
    pooled = _POOLED * (near + far) / 2
    return (
        _factorize(plants, (1 - _POOLED) * near + pooled, near_shrinkage, "training"),
        _factorize(others, (1 - _POOLED) * far + pooled, far_shrinkage, "non-plant"),
    )


def _shrink_covariance(moments: RunningMoments, images: str) -> tuple[NDArray[np.float64], float]:
    """Return the shrunk covariance within classes, (D, D), and the shrinkage; `images` names them in errors."""
    count, dim = int(moments.counts.sum()), moments.means.shape[1]
    empirical = moments.scatter / max(1, count)
    scale = float(np.trace(empirical)) / dim
    if not scale > 0:
        raise DetectorError(f"all {count:,} {images} embeddings are equal: their covariance is singular")
    shrinkage = _compute_oas_shrinkage(empirical, count)
    return (1 - shrinkage) * empirical + shrinkage * scale * np.eye(dim), shrinkage


def _factorize(moments: RunningMoments, covariance: NDArray[np.float64], shrinkage: float, images: str) -> Gaussian:
    count = int(moments.counts.sum())
    try:
        factor, _ = linalg.cho_factor(covariance)
    except linalg.LinAlgError as error:
        raise DetectorError(
            f"the covariance of {count:,} {images} embeddings of length {len(covariance)} is singular"
        ) from error
    return Gaussian(moments.means[moments.counts > 0], factor, shrinkage, count)


def _compute_oas_shrinkage(covariance: NDArray[np.float64], count: int) -> float:
    dim = len(covariance)
    alpha = float(np.mean(covariance**2))
    mu_squared = (float(np.trace(covariance)) / dim) ** 2
    denominator = (count + 1) * (alpha - mu_squared / dim)
    return 1.0 if denominator <= 0 else min((alpha + mu_squared) / denominator, 1.0)
