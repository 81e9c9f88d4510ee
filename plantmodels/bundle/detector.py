"""The out-of-distribution detector: its arrays, its score and its file.

Let `d(f, m, P) = sqrt((f - m) · P · (f - m))`, the Mahalanobis distance. An embedding `f` is L2-normalized first if
`normalize` is true. The score depends on `method`:

- "mahalanobis": `d(f, mean, inv_cov)`, the classic detector, equal to SciPy's `mahalanobis`;
- "class_mahalanobis": `min_c d(f, mean_c, inv_cov)`, with a mean per class and one covariance for all classes;
- "gaussian_ratio": `min_c d(f, mean_c, inv_cov)² - d(f, other_mean, other_inv_cov)²`. Up to constants, this is twice
  the log-likelihood ratio between a Gaussian of known non-plants and the nearest class of plants (outlier exposure).

A higher score means more out-of-distribution; `score > threshold` rejects.

>>> detector = OODDetector("mahalanobis", mean=np.zeros(2), inv_cov=np.eye(2), threshold=3.0)
>>> scores = detector.score(np.array([[0.0, 1.0], [3.0, 4.0]]))
>>> scores.tolist(), detector.rejects(scores).tolist()
([1.0, 5.0], [False, True])

References:
    Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples", NeurIPS 2018.
    Hendrycks, Mazeika, Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019.
    Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005 (the conformal p-value).
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from plantmodels.arrays import Labels, Mask, Probabilities, Scores
from plantmodels.bundle.files import read_bytes, write_bytes
from plantmodels.bundle.layout import DETECTOR_FILE
from plantmodels.bundle.plain_pickle import load_plain_pickle
from plantmodels.bundle.quadratic_form import FLOAT32_SPREAD, QuadraticForm, check_definite
from plantmodels.errors import BundleError, DetectorError

Method = Literal["mahalanobis", "class_mahalanobis", "gaussian_ratio"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)

FORMAT_VERSION: Final = 3
"""Version 1 had neither "gaussian_ratio" nor the scores of held-out plants. Version 2 did not tell species apart."""

SPECIES_LEAVES: Final = 500
"""Leaves that a p-value rests on. If fewer held-out plants are of its species, plants of other species fill up."""

_EVIDENCE: Final = ("plant_scores", "plant_species", "species_center", "species_scale", "round_thresholds")
"""What threshold and p-values rest on."""

MAX_PICKLE_BYTES: Final = 256 * 2**20
_PICKLE_PROTOCOL: Final = 4
_LARGEST: Final = float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class OODDetector:
    """A fitted detector; D is the length of the embedding.

    Attributes:
        method: how embeddings are scored (see the module).
        mean: (C, D) float64, one row per class of plants; a single row for "mahalanobis".
        inv_cov: (D, D) float32 or float64, inverse covariance of plants, symmetric and positive definite.
        threshold: scores above it are rejected.
        normalize: whether embeddings are L2-normalized before scoring.
        other_mean: (D,) float64, mean of non-plants; only for "gaussian_ratio".
        other_inv_cov: (D, D), inverse covariance of non-plants; only for "gaussian_ratio".
        plant_scores: (n,) float64, ascending scores of plants that were held out from fitting, for `p_values`; may be
            empty.
        plant_species: (n,) int64, index of the species that the network names for each of these plants; empty if it
            is not known, and then p-values do not tell species apart.
        species_center: (S,) float64, usual score of the plants that the network names each species; empty as above.
        species_scale: (S,) float64, by how much such scores vary, above 0; empty as above.
        round_thresholds: (R,) float64, the threshold that each round of cross-validation alone gives; may be empty.
        fit: numbers and text that say how the detector was fitted, for people; not used in scoring.
    """

    method: Method
    mean: NDArray[np.float64]
    inv_cov: NDArray[np.floating]
    threshold: float
    normalize: bool = False
    other_mean: NDArray[np.float64] | None = None
    other_inv_cov: NDArray[np.floating] | None = None
    plant_scores: Scores = field(default_factory=lambda: np.empty(0))
    plant_species: Labels = field(default_factory=lambda: np.empty(0, np.int64))
    species_center: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    species_scale: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    round_thresholds: Scores = field(default_factory=lambda: np.empty(0))
    fit: Mapping[str, float | int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check shapes, finiteness and definiteness.

        Raises:
            DetectorError: names the field, its value and what is required.
        """
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise DetectorError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        mean = np.atleast_2d(np.asarray(self.mean, dtype=np.float64))
        inv_cov = _to_float(self.inv_cov)
        if mean.ndim != 2 or 0 in mean.shape or inv_cov.shape != (mean.shape[1], mean.shape[1]):
            raise DetectorError(f"mean must be (C, D) and inv_cov (D, D), got {mean.shape} and {inv_cov.shape}")
        if self.method == "mahalanobis" and len(mean) != 1:
            raise DetectorError(f"method 'mahalanobis' has one mean, got {len(mean)}")
        plant_scores = np.asarray(self.plant_scores, dtype=np.float64)
        if plant_scores.ndim != 1 or not (np.diff(plant_scores) >= 0).all():
            raise DetectorError(f"plant_scores must be one ascending row, got shape {plant_scores.shape}")
        if not all(np.isfinite(values).all() for values in (mean, inv_cov, plant_scores, self.threshold)):
            raise DetectorError("mean, inv_cov, plant_scores and threshold must be finite, got NaN or infinity")
        for name, value in (("mean", mean), ("inv_cov", inv_cov), ("plant_scores", plant_scores)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "threshold", float(self.threshold))
        self._set_species()
        self._set_non_plants()
        _ = self.quadratic_form

    def _set_species(self) -> None:
        for name in ("species_center", "species_scale", "round_thresholds"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if values.ndim != 1 or not np.isfinite(values).all():
                raise DetectorError(f"{name} must be one row of finite numbers, got shape {values.shape}")
            object.__setattr__(self, name, values)
        species, count = np.asarray(self.plant_species), len(self.species_center)
        if species.ndim != 1 or (len(species) and species.dtype.kind not in "iu"):
            raise DetectorError(f"plant_species must be one row of integers, got {species.dtype} {species.shape}")
        if len(self.species_scale) != count or not (self.species_scale > 0).all():
            raise DetectorError(f"species_scale must be {count} numbers above 0, as many as species_center has")
        if len(species) != (len(self.plant_scores) if count else 0) or not ((species >= 0) & (species < count)).all():
            raise DetectorError(
                f"plant_species must be the index of one of {count} species for each of {len(self.plant_scores)} "
                f"plant_scores, and is empty without species_center; got {len(species)} from "
                f"{species.min(initial=0)} to {species.max(initial=0)}"
            )
        object.__setattr__(self, "plant_species", species.astype(np.int64))

    def _set_non_plants(self) -> None:
        given = [self.other_mean is not None, self.other_inv_cov is not None]
        if given != [self.method == "gaussian_ratio"] * 2:
            raise DetectorError(
                f"other_mean and other_inv_cov belong to method 'gaussian_ratio', both; the method is {self.method!r}"
            )
        if self.other_mean is None or self.other_inv_cov is None:
            return
        mean, inv_cov = np.asarray(self.other_mean, dtype=np.float64), _to_float(self.other_inv_cov)
        if (mean.shape, inv_cov.shape) != (self.mean.shape[1:], self.inv_cov.shape):
            raise DetectorError(
                f"other_mean must be {self.mean.shape[1:]} and other_inv_cov {self.inv_cov.shape}, "
                f"got {mean.shape} and {inv_cov.shape}"
            )
        if not (np.isfinite(mean).all() and np.isfinite(inv_cov).all()):
            raise DetectorError("other_mean and other_inv_cov must be finite, got NaN or infinity")
        object.__setattr__(self, "other_mean", mean)
        object.__setattr__(self, "other_inv_cov", inv_cov)

    @property
    def embedding_dim(self) -> int:
        """D, the length of the embeddings that the detector scores."""
        return int(self.mean.shape[1])

    def check_length(self, embedding_dim: int) -> None:
        """Raise unless the detector scores embeddings of a given length.

        Raises:
            DetectorError: the length differs.
        """
        if self.embedding_dim != embedding_dim:
            raise DetectorError(
                f"{DETECTOR_FILE}: scores {self.embedding_dim} features, the models give {embedding_dim}"
            )

    @cached_property
    def quadratic_form(self) -> QuadraticForm:
        """The squared distances and their difference as one quadratic form around the first mean."""
        means = self.mean - self.mean[0]
        spread = check_definite(self.inv_cov, "inv_cov")
        matrix = self.inv_cov.astype(np.float64)
        slopes, constants = -2 * means @ matrix, np.einsum("cd,cd->c", means @ matrix, means)
        if self.other_mean is not None and self.other_inv_cov is not None:
            spread = max(spread, check_definite(self.other_inv_cov, "other_inv_cov"))
            mean, other = self.other_mean - self.mean[0], self.other_inv_cov.astype(np.float64)
            pulled = other @ mean
            matrix, slopes, constants = matrix - other, slopes + 2 * pulled, constants - mean @ pulled
        return QuadraticForm.build(matrix, slopes, constants, np.float32 if spread < FLOAT32_SPREAD else np.float64)

    def score(self, features: NDArray[np.floating]) -> Scores:
        """Return the score of each embedding, (N,) float64; higher means more out-of-distribution.

        A row's score does not depend on the other rows. If the covariances are well conditioned, scores are computed
        in float32, and the squared distances have a relative error of at most 1e-4; otherwise in float64.

        Args:
            features: (N, D) embeddings of any float dtype. NaN gives NaN.

        Raises:
            ValueError: the shape differs.
        """
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or features.shape[1] != self.embedding_dim:
            raise ValueError(f"features must be (N, {self.embedding_dim}), got {features.shape}")
        if self.normalize:
            features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        scores = self.quadratic_form.evaluate(features - self.mean[0])
        return scores if self.method == "gaussian_ratio" else np.sqrt(np.maximum(scores, 0))

    def rejects(self, scores: Scores) -> Mask:
        """Return whether each score is above the threshold; NaN is rejected."""
        return ~(scores <= self.threshold)

    def p_values(self, scores: Scores, species: Labels) -> Probabilities | None:
        """Return the conformal p-value of "this is a plant", compared with held-out plants of the same species.

        `z = (score - species_center) / species_scale` makes the scores of different species comparable. With `own`
        held-out plants that the network names this species, and `others`, the p-value is

            (1 + #{own: z ≥ z of the image} + w · #{others: z ≥ z of the image}) / (1 + #own + w · #others)

        with `w = min(1, max(0, SPECIES_LEAVES - #own) / #others)`. If there are at most `SPECIES_LEAVES` held-out
        plants, all count alike. If as many are of the species, those alone count. In both cases, if an image is a plant
        like those that were held out, its p-value is at most `p` with a probability of at most `p`, whatever the
        distribution of scores. In between, this holds approximately.

        Args:
            scores: (N,) float64, from `score`.
            species: (N,) index of the species that the network names.

        Returns:
            (N,) float64 in (0, 1]; None if the detector has no `plant_scores`.

        References:
            Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005 (Mondrian conformal predictors).
            Barber, Candès, Ramdas, Tibshirani, "Conformal Prediction beyond Exchangeability", 2023 (weights).
        """
        if not len(self.plant_scores):
            return None
        if not len(self.species_center):
            return _count_tail(self.plant_scores, scores, np.zeros(len(scores)), 0.0)
        standard = (scores - self.species_center[species]) / self.species_scale[species]
        all_plants, by_species, ends = self._standard_scores
        found = np.empty(len(scores))
        for index in sorted(set(species.tolist())):
            own, rows = by_species[ends[index] : ends[index + 1]], species == index
            others, weight = len(all_plants) - len(own), self.tail_weights[1][index]
            as_high = _count_as_high(all_plants, standard[rows]) - _count_as_high(own, standard[rows])
            further = np.asarray(weight * as_high, np.float64)
            found[rows] = _count_tail(own, standard[rows], further, weight * others)
        return found

    @cached_property
    def comparable_scores(self) -> Scores:
        """The z of each held-out plant (see `p_values`), in their order; its score if species are not told apart."""
        if not len(self.species_center):
            return self.plant_scores
        named = self.plant_species
        return np.asarray((self.plant_scores - self.species_center[named]) / self.species_scale[named], np.float64)

    @cached_property
    def tail_weights(self) -> tuple[Labels, NDArray[np.float64]]:
        """For each species, its number of held-out plants and the weight `w` of all others (see `p_values`)."""
        own = np.bincount(self.plant_species, minlength=len(self.species_center))
        others = len(self.plant_scores) - own
        return own, np.minimum(1.0, np.maximum(0, SPECIES_LEAVES - own) / np.maximum(1, others))

    @cached_property
    def _standard_scores(self) -> tuple[Scores, Scores, Labels]:
        """The held-out plants' comparable scores: of all, ascending; species by species; and where each begins.

        The last has S + 1 places: species i has the scores from place i to place i + 1.
        """
        named, standard = self.plant_species, self.comparable_scores
        order = np.lexsort((standard, named))
        ends = np.searchsorted(named[order], np.arange(len(self.species_center) + 1))
        return np.sort(standard), standard[order], ends


def _to_float(matrix: object) -> NDArray[np.floating]:
    array = np.asarray(matrix)
    return array if array.dtype == np.float32 else array.astype(np.float64)


def _count_tail(ordered: Scores, scores: Scores, further: NDArray[np.float64], total: float) -> Probabilities:
    """Return `(1 + #{ordered ≥ score} + further) / (1 + #ordered + total)`."""
    return np.asarray((1 + _count_as_high(ordered, scores) + further) / (1 + len(ordered) + total), dtype=np.float64)


def _count_as_high(ordered: Scores, scores: Scores) -> Labels:
    """Return how many of the ascending numbers are at least as high as each score, (N,)."""
    return np.asarray(len(ordered) - np.searchsorted(ordered, scores, side="left"), np.int64)


def write_detector(path: Path, detector: OODDetector) -> None:
    """Write a detector as a pickle of one dict of plain arrays, numbers and text.

    For the method "mahalanobis", `mean` is written one-dimensional, so that a reader that knows only `mean`, `inv_cov`
    and `threshold` gets the classic detector.
    """
    classic = detector.method == "mahalanobis"
    document = {
        "format_version": FORMAT_VERSION,
        "method": detector.method,
        "normalize": detector.normalize,
        "mean": np.ascontiguousarray(detector.mean[0] if classic else detector.mean),
        "inv_cov": np.ascontiguousarray(detector.inv_cov),
        "threshold": detector.threshold,
        **{name: np.ascontiguousarray(getattr(detector, name)) for name in _EVIDENCE},
        "fit": dict(detector.fit),
    }
    if detector.other_mean is not None and detector.other_inv_cov is not None:
        document["other_mean"] = np.ascontiguousarray(detector.other_mean)
        document["other_inv_cov"] = np.ascontiguousarray(detector.other_inv_cov)
    write_bytes(path, pickle.dumps(document, protocol=_PICKLE_PROTOCOL))


def read_detector(path: Path) -> OODDetector:
    """Read a detector's pickle without running anything that it names (`load_plain_pickle`).

    Compare the file's digest with the manifest first all the same.

    Raises:
        DetectorError: the pickle cannot be read, holds anything but plain arrays, numbers and text, or its arrays do
            not make a detector.
    """
    try:
        content = read_bytes(path, MAX_PICKLE_BYTES)
    except BundleError as error:
        raise DetectorError(str(error)) from error
    return parse_detector(path, content)


def parse_detector(path: Path, content: bytes) -> OODDetector:
    """Return the detector in a file's content; the path is used only in errors.

    Raises:
        DetectorError: as `read_detector`.
    """
    try:
        return _build_detector(load_plain_pickle(content))
    except DetectorError as error:
        raise DetectorError(f"{path}: {error}") from error


def _build_detector(document: dict[str, Any]) -> OODDetector:
    version = document.get("format_version", FORMAT_VERSION)
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise DetectorError(f"format_version {version!r}, this code reads 1 to {FORMAT_VERSION}")
    missing = {"mean", "inv_cov", "threshold"} - set(document)
    if missing:
        raise DetectorError(f"{', '.join(sorted(missing))} missing; it holds {', '.join(map(str, document))}")
    threshold = document["threshold"]
    if isinstance(threshold, bool) or not isinstance(threshold, float | int) or not abs(threshold) <= _LARGEST:
        raise DetectorError(f"threshold must be a finite number, got {threshold!r:.80}")
    arrays = {name: document[name] for name in ("mean", "inv_cov")}
    arrays |= {name: document[name] for name in ("other_mean", "other_inv_cov", *_EVIDENCE) if name in document}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DetectorError(f"{name} must be an array, got {type(array).__name__}")
    normalize, fit = document.get("normalize", False), document.get("fit", {})
    if not isinstance(normalize, bool):
        raise DetectorError(f"normalize must be true or false, got {normalize!r:.80}")
    if not isinstance(fit, dict):
        raise DetectorError(f"fit must be a dict, got {type(fit).__name__}")
    return OODDetector(
        method=document.get("method", "mahalanobis"),
        threshold=float(threshold),
        normalize=normalize,
        fit=fit,
        **arrays,
    )
