"""Fits the out-of-distribution detector on streams of embeddings: memory does not grow with their number.

>>> moments = RunningMoments(classes=38, dim=768)  # doctest: +SKIP
>>> for labels, features in batches: moments.update(labels, features)  # doctest: +SKIP
>>> detector = fit_detector(moments, "class_mahalanobis")  # doctest: +SKIP

References:
    Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.
    Chen, Wiesel, Eldar, Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", 2010 (OAS).
    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples", NeurIPS 2018.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from plantmodels.bundle.detector import Method, OODDetector
from plantmodels.errors import DetectorError

MIN_FIT_IMAGES: Final = 50
BASE_QUANTILE: Final = 0.95
MIN_CALIBRATION_IMAGES: Final = 19
"""The fewest for which the 95th percentile of exchangeable scores has a finite bound: ceil(20 * 0.95) = 19."""

TARGET_PRECISION: Final = 0.99


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

    def pooled(self) -> "RunningMoments":
        """The same embeddings as one class: its scatter is that within classes plus that between them."""
        result = RunningMoments(1, self.means.shape[1])
        result.counts[0] = self.counts.sum()
        result.means[0] = self.counts @ self.means / max(1, result.counts[0])
        delta = self.means - result.means[0]
        result.scatter = self.scatter + (delta * self.counts[:, None]).T @ delta
        return result


def check_image_counts(fit_images: int, calibration_images: int) -> None:
    """Refuses too few images before any of them is embedded.

    Raises:
        DetectorError: naming how many there are and how many are needed.
    """
    if fit_images < MIN_FIT_IMAGES:
        raise DetectorError(
            f"{fit_images} training images to fit the detector on, at least {MIN_FIT_IMAGES} are needed"
        )
    if calibration_images < MIN_CALIBRATION_IMAGES:
        raise DetectorError(
            f"{calibration_images} held-out training images to set the threshold on, at least "
            f"{MIN_CALIBRATION_IMAGES} are needed"
        )


def fit_detector(moments: RunningMoments, method: Method) -> OODDetector:
    """Means and inverse covariance with OAS shrinkage; the threshold rejects nothing until one is chosen.

    The covariance is `(1 - s) S + s · trace(S)/D · I` with `S = scatter / n`, and `s` by Chen et al. (2010),
    equation 23 as scikit-learn computes it. "mahalanobis" has one mean and the total covariance,
    "class_mahalanobis" a mean for each class that occurs and the covariance within classes.

    Raises:
        DetectorError: fewer than `MIN_FIT_IMAGES`, or embeddings that do not vary.
    """
    if method == "mahalanobis":
        moments = moments.pooled()
    count, dim = int(moments.counts.sum()), moments.means.shape[1]
    check_image_counts(count, MIN_CALIBRATION_IMAGES)
    empirical = moments.scatter / count
    scale = float(np.trace(empirical)) / dim
    if not scale > 0:
        raise DetectorError(f"all {count:,} training embeddings are equal: their covariance is singular")
    shrinkage = _oas_shrinkage(empirical, count)
    covariance = (1 - shrinkage) * empirical + shrinkage * scale * np.eye(dim)
    try:
        inverse = linalg.cho_solve(linalg.cho_factor(covariance), np.eye(dim))
    except linalg.LinAlgError as error:
        raise DetectorError(f"the covariance of {count:,} embeddings of length {dim} is singular") from error
    fit: dict[str, float | int | str] = {"fit_images": count, "shrinkage": shrinkage}
    return OODDetector(
        method, moments.means[moments.counts > 0], (inverse + inverse.T) / 2, np.finfo(float).max, fit=fit
    )


def _oas_shrinkage(covariance: NDArray[np.float64], count: int) -> float:
    dim = len(covariance)
    alpha = float(np.mean(covariance**2))
    mu_squared = (float(np.trace(covariance)) / dim) ** 2
    denominator = (count + 1) * (alpha - mu_squared / dim)
    return 1.0 if denominator <= 0 else min((alpha + mu_squared) / denominator, 1.0)


@dataclass(frozen=True)
class Threshold:
    """A chosen threshold and the evidence for it.

    Attributes:
        value: scores above it are rejected.
        quantile: which quantile of held-out plants' scores it is.
        precision: expected precision at equal numbers of plants and non-plants; None without non-plants.
        recall: share of the selection half of the non-plants that is rejected; None without non-plants.
    """

    value: float
    quantile: float
    precision: float | None
    recall: float | None


def choose_threshold(
    plants: NDArray[np.float64],
    non_plants: NDArray[np.float64] | None,
    *,
    quantile: float = BASE_QUANTILE,
    target_precision: float = TARGET_PRECISION,
) -> Threshold:
    """The 95th percentile of held-out plants' scores, or the lowest score above it with enough precision.

    The percentile is the split-conformal one: the `ceil((n + 1) · quantile)`-th smallest score. Precision at
    equal numbers is `recall / (recall + false alarms)`, false alarms counted as `(k + 1) / (n + 1)` for `k` of
    `n` plants above the threshold, so that few plants do not look like certainty. Where no threshold reaches
    the target, the one of the highest precision is taken.

    Args:
        plants: (n,) scores of plants that the detector was not fitted on.
        non_plants: (m,) scores of the selection half of the non-plants, or None.
        quantile: the least quantile.
        target_precision: precision that shall hold.

    Raises:
        DetectorError: fewer than `MIN_CALIBRATION_IMAGES` plants.
    """
    count = len(plants)
    check_image_counts(MIN_FIT_IMAGES, count)
    ordered = np.sort(plants)
    first = math.ceil((count + 1) * quantile) - 1
    if non_plants is None or not len(non_plants):
        return Threshold(float(ordered[first]), (first + 1) / count, None, None)
    candidates = ordered[first:]
    recall = 1 - np.searchsorted(np.sort(non_plants), candidates, side="right") / len(non_plants)
    false_alarms = (count - np.searchsorted(ordered, candidates, side="right") + 1) / (count + 1)
    precision = recall / (recall + false_alarms)
    reached = np.flatnonzero(precision >= target_precision)
    best = int(reached[0]) if len(reached) else int(precision.argmax())
    return Threshold(float(candidates[best]), (first + best + 1) / count, float(precision[best]), float(recall[best]))


def select_detector(
    detectors: Sequence[OODDetector], plants: NDArray[np.float64], non_plants: NDArray[np.float64] | None
) -> OODDetector:
    """Gives each detector its threshold and takes the one that rejects most of the selection non-plants.

    One that reaches the target precision goes before one that does not. Without non-plants there is no evidence to
    choose by, and the first, classic, detector is taken; so it is when the others are no better.

    Args:
        detectors: fitted ones, the classic first.
        plants: (n, detectors) scores of held-out plants.
        non_plants: (m, detectors) scores of the selection half of the non-plants, or None.

    Raises:
        DetectorError: too few held-out plants.
    """
    if non_plants is None:
        detectors = detectors[:1]
    thresholds = [
        choose_threshold(plants[:, i], None if non_plants is None else non_plants[:, i]) for i in range(len(detectors))
    ]
    best = max(
        range(len(detectors)),
        key=lambda i: ((thresholds[i].precision or 0.0) >= TARGET_PRECISION, thresholds[i].recall or 0.0, -i),
    )
    chosen = thresholds[best]
    evidence: dict[str, float | int | str] = {
        "calibration_images": len(plants),
        "selection_images": 0 if non_plants is None else len(non_plants),
        "quantile": chosen.quantile,
    }
    if chosen.precision is not None and chosen.recall is not None:
        evidence |= {"selection_precision": chosen.precision, "selection_recall": chosen.recall}
    return replace(detectors[best], threshold=chosen.value, fit={**detectors[best].fit, **evidence})
