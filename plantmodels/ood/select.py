"""Which detector is served, and its threshold, by evidence: cross-validated on training leaves and known non-plants.

Every score that counts is computed by a detector that saw neither that leaf nor that non-plant. The selection half of
the non-plants is all that is used; gates measure the other half.

>>> selection = select_detector(plants, others)  # doctest: +SKIP
>>> selection.detector.method, selection.detector.threshold  # doctest: +SKIP
('gaussian_ratio', 317.2)

References:
    Vovk, "Cross-conformal Predictors", 2015 (arXiv:1208.0806).
    McNemar, "Note on the Sampling Error of the Difference Between Correlated Proportions or Percentages", 1947.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from threadpoolctl import threadpool_limits

from plantmodels.bundle.detector import METHODS, Method, OODDetector
from plantmodels.data.progress import log_step
from plantmodels.errors import DetectorError
from plantmodels.ood.baselines import BASELINES, Scorer, Training
from plantmodels.ood.embeddings import Embedded
from plantmodels.ood.metrics import auroc, fpr_at_recall
from plantmodels.ood.moments import MIN_FIT_IMAGES, RunningMoments, fit_detector

FOLDS: Final = 5
MIN_TRAINING_IMAGES: Final = math.ceil(MIN_FIT_IMAGES * FOLDS / (FOLDS - 1))
"""The fewest leaves of which every fold leaves enough to fit on."""

MIN_NON_PLANTS: Final = 20
"""With fewer there is nothing to choose a method by, and the classic detector is taken."""

BASE_QUANTILE: Final = 0.95
TARGET_PRECISION: Final = 0.99
TARGET_RECALL: Final = 0.95
FALSE_ALARMS: Final = 0.01
"""The share of plants rejected at which methods are compared."""

_SIGNIFICANCE: Final = 0.05
_SPECIES_GROUPS: Final = 4
_MAX_BASELINE_PLANTS: Final = 2_000


@dataclass(frozen=True)
class LeafEmbeddings:
    """Embedded training leaves.

    Attributes:
        embedded: N of them.
        classes: (N,) int64, species and disease as one number.
        species: (N,) int64.
    """

    embedded: Embedded
    classes: NDArray[np.int64]
    species: NDArray[np.int64]

    def __getitem__(self, rows: NDArray[np.bool_]) -> "LeafEmbeddings":
        """Those rows."""
        return LeafEmbeddings(self.embedded[rows], self.classes[rows], self.species[rows])


@dataclass(frozen=True)
class NonPlantEmbeddings:
    """Embedded non-plants of the selection half.

    Attributes:
        embedded: M of them.
        sources: (M,) names of the folders that they come from.
    """

    embedded: Embedded
    sources: NDArray[np.str_]


@dataclass(frozen=True)
class DetectorTrial:
    """How a method did, cross-validated. Shares rejected are those at 1 % of plants rejected (`FALSE_ALARMS`).

    Attributes:
        method: its name.
        served: whether a bundle can hold it; the others are there for comparison.
        exposed: whether it was fitted on non-plants as well.
        auroc: area under the ROC curve of non-plants against plants.
        fpr_at_95_recall: share of plants rejected where 95 % of the non-plants are.
        recall: share of the non-plants rejected.
        by_source: the same of each source.
        by_unseen_source: of each source, fitted without any non-plant of it; a source without which too few are left
            is absent.
        unseen_species: share of leaves rejected of species that the fit did not see, near plants; None where that
            leaves too few.
    """

    method: str
    served: bool
    exposed: bool
    auroc: float
    fpr_at_95_recall: float
    recall: float
    by_source: Mapping[str, float]
    by_unseen_source: Mapping[str, float]
    unseen_species: float | None


@dataclass(frozen=True)
class Threshold:
    """A chosen threshold and the evidence for it.

    Attributes:
        value: scores above it are rejected.
        quantile: share of the plants at or below it.
        precision: expected precision at equal numbers of plants and non-plants; None without non-plants.
        recall: share of the non-plants that is rejected; None without non-plants.
    """

    value: float
    quantile: float
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class Selection:
    """The detector to serve and the evidence for it.

    Attributes:
        detector: fitted on all that was given, with its threshold.
        reason: one line on why it was taken.
        trials: every method that was tried; empty without enough non-plants.
    """

    detector: OODDetector
    reason: str
    trials: tuple[DetectorTrial, ...]


def check_image_count(images: int) -> None:
    """Refuses too few training leaves before any of them is embedded.

    Raises:
        DetectorError: naming how many there are and how many are needed.
    """
    if images < MIN_TRAINING_IMAGES:
        raise DetectorError(
            f"{images} training images to fit the detector on, at least {MIN_TRAINING_IMAGES} are needed"
        )


def select_detector(
    plants: LeafEmbeddings, others: NonPlantEmbeddings | None, *, rest: RunningMoments | None = None, seed: int = 0
) -> Selection:
    """Tries every method, takes the best that a bundle can hold, and gives it its threshold.

    A method replaces a simpler one only if it rejects more of the non-plants at its own threshold beyond noise
    (McNemar, 5 %), no fewer of those whose source it never saw, and does not miss a target precision that the simpler
    one reaches. Without enough non-plants there is no evidence to choose by, and the classic detector is taken.

    On one BLAS thread: several make other bits, and beside other programs take twenty times as long.

    Args:
        plants: training leaves.
        others: the selection half of the non-plants, or None.
        rest: moments of further training leaves, by the same classes, for the final fit alone.
        seed: of the folds.

    Raises:
        DetectorError: too few leaves, or embeddings that are not finite or do not vary.
    """
    check_image_count(len(plants.embedded))
    with threadpool_limits(1):
        return _select(plants, others, rest, seed)


def _select(
    plants: LeafEmbeddings, others: NonPlantEmbeddings | None, rest: RunningMoments | None, seed: int
) -> Selection:
    given = 0 if others is None else len(others.embedded)
    if others is None or given < MIN_NON_PLANTS:
        scores = _cross_validate(_fit_of(METHODS[0]), plants, None, seed)
        threshold = choose_threshold(scores.plants, None)
        reason = f"{given} non-plants to choose by, at least {MIN_NON_PLANTS} are needed for another than the classic"
        return Selection(_finish(METHODS[0], plants, None, rest, scores, threshold), reason, ())
    with log_step("select detector", total=len(METHODS) + len(BASELINES), unit="method") as advance:
        candidates = {}
        for method in METHODS:
            candidates[method] = _try(method, plants, others, seed)
            advance()
        baselines = []
        for trial in _try_baselines(plants, others, seed):
            baselines.append(trial)
            advance()
    best = METHODS[0]
    for method in METHODS[1:]:
        if candidates[method].beats(candidates[best]):
            best = method
    recalls = ", ".join(f"{method} {candidate.threshold.recall:.1%}" for method, candidate in candidates.items())
    reason = f"of {given:,} non-plants rejected at each one's threshold: {recalls}"
    trials = (*(candidate.trial for candidate in candidates.values()), *baselines)
    chosen = candidates[best]
    return Selection(_finish(best, plants, others, rest, chosen.scores, chosen.threshold), reason, trials)


_Fit = Callable[[Training], Scorer]


def _fit_of(method: Method) -> _Fit:
    def fit(training: Training) -> Scorer:
        detector = _fit_detector(method, training)
        return lambda embedded: detector.score(embedded.features)

    return fit


def _fit_detector(method: Method, training: Training, rest: RunningMoments | None = None) -> OODDetector:
    dim = training.plants.features.shape[1]
    moments = RunningMoments(int(training.classes.max()) + 1, dim) if rest is None else rest.copy()
    moments.update(training.classes, training.plants.features)
    if training.others is None or method != "gaussian_ratio":
        return fit_detector(moments, method)
    others = RunningMoments(1, dim)
    others.update(np.zeros(len(training.others), np.int64), training.others.features)
    return fit_detector(moments, method, others)


@dataclass(frozen=True)
class _Scores:
    """Cross-validated scores: (N,) of plants, and (M,) of non-plants."""

    plants: NDArray[np.float64]
    others: NDArray[np.float64]


@dataclass(frozen=True)
class _Candidate:
    trial: DetectorTrial
    scores: _Scores
    threshold: Threshold

    def beats(self, other: "_Candidate") -> bool:
        """Whether this one is to be preferred to a simpler one (see `select_detector`)."""
        mine, its = self.threshold, other.threshold
        reached = [(threshold.precision or 0.0) >= TARGET_PRECISION for threshold in (mine, its)]
        if reached[0] != reached[1]:
            return reached[0]
        rejected = self.scores.others > mine.value, other.scores.others > its.value
        gained, lost = int((rejected[0] & ~rejected[1]).sum()), int((rejected[1] & ~rejected[0]).sum())
        if gained <= lost or binomtest(gained, gained + lost).pvalue >= _SIGNIFICANCE:
            return False
        unseen = self.trial.by_unseen_source
        return sum(unseen.values()) >= sum(other.trial.by_unseen_source[source] for source in unseen)


def _try(method: Method, plants: LeafEmbeddings, others: NonPlantEmbeddings, seed: int) -> _Candidate:
    scores = _cross_validate(_fit_of(method), plants, others, seed)
    exposed = method == "gaussian_ratio"
    trial = _judge(method, _fit_of(method), plants, others, scores, served=True, exposed=exposed)
    return _Candidate(trial, scores, choose_threshold(scores.plants, scores.others))


def _try_baselines(plants: LeafEmbeddings, others: NonPlantEmbeddings, seed: int) -> Iterator[DetectorTrial]:
    step = -(-len(plants.embedded) // _MAX_BASELINE_PLANTS)
    some = plants[np.arange(len(plants.embedded)) % step == 0]
    for name, baseline in BASELINES.items():
        scores = _cross_validate(baseline.fit, some, others, seed)
        yield _judge(name, baseline.fit, some, others, scores, served=False, exposed=baseline.exposed)


def _cross_validate(fit: _Fit, plants: LeafEmbeddings, others: NonPlantEmbeddings | None, seed: int) -> _Scores:
    plant_folds = _assign_folds(len(plants.embedded), seed)
    other_folds = _assign_folds(0 if others is None else len(others.embedded), seed)
    scores = _Scores(np.empty(len(plant_folds)), np.empty(len(other_folds)))
    for fold in range(FOLDS):
        seen, seen_others = plant_folds != fold, other_folds != fold
        score = fit(
            Training(
                plants.embedded[seen], plants.classes[seen], None if others is None else others.embedded[seen_others]
            )
        )
        scores.plants[~seen] = score(plants.embedded[~seen])
        if others is not None:
            scores.others[~seen_others] = score(others.embedded[~seen_others])
    return scores


def _assign_folds(count: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(count) % FOLDS


def _judge(
    name: str,
    fit: _Fit,
    plants: LeafEmbeddings,
    others: NonPlantEmbeddings,
    scores: _Scores,
    *,
    served: bool,
    exposed: bool,
) -> DetectorTrial:
    threshold = float(np.quantile(scores.plants, 1 - FALSE_ALARMS, method="higher"))
    by_source = {
        source: float((scores.others[others.sources == source] > threshold).mean())
        for source in np.unique(others.sources).tolist()
    }
    return DetectorTrial(
        method=name,
        served=served,
        exposed=exposed,
        auroc=auroc(scores.plants, scores.others),
        fpr_at_95_recall=fpr_at_recall(scores.plants, scores.others, TARGET_RECALL),
        recall=float((scores.others > threshold).mean()),
        by_source=by_source,
        by_unseen_source=_judge_unseen_sources(fit, plants, others, threshold) if exposed else by_source,
        unseen_species=_judge_unseen_species(fit, plants, others, threshold),
    )


def _judge_unseen_sources(
    fit: _Fit, plants: LeafEmbeddings, others: NonPlantEmbeddings, threshold: float
) -> dict[str, float]:
    shares = {}
    for source in np.unique(others.sources).tolist():
        unseen = others.sources == source
        if (~unseen).sum() >= MIN_NON_PLANTS:
            score = fit(Training(plants.embedded, plants.classes, others.embedded[~unseen]))
            shares[source] = float((score(others.embedded[unseen]) > threshold).mean())
    return shares


def _judge_unseen_species(
    fit: _Fit, plants: LeafEmbeddings, others: NonPlantEmbeddings, threshold: float
) -> float | None:
    names, number = np.unique(plants.species, return_inverse=True)
    rejected = 0
    for group in range(min(_SPECIES_GROUPS, len(names))):
        unseen = number % _SPECIES_GROUPS == group
        if (~unseen).sum() < MIN_FIT_IMAGES:
            return None
        score = fit(Training(plants.embedded[~unseen], plants.classes[~unseen], others.embedded))
        rejected += int((score(plants.embedded[unseen]) > threshold).sum())
    return rejected / len(number)


def choose_threshold(plants: NDArray[np.float64], others: NDArray[np.float64] | None) -> Threshold:
    """The threshold that leaves most room to both targets, precision and recall, measured in standard errors.

    Considered is every score from the 95th percentile of plants on, the split-conformal one: the
    `ceil((n + 1) · 0.95)`-th smallest. Precision at equal numbers is `recall / (recall + false alarms)`, false alarms
    counted as `(k + 1) / (n + 1)` for `k` of `n` plants above the threshold, so that few plants do not look like
    certainty. A threshold that misses the target precision is taken only if all do: then the one of the highest. It is
    put in the middle of the gap between two scores. Without non-plants it is the percentile.

    Args:
        plants: (n,) scores of plants that the detector was not fitted on.
        others: (m,) scores of non-plants that it was not fitted on, or None.
    """
    count, ordered = len(plants), np.sort(plants)
    first = math.ceil((count + 1) * BASE_QUANTILE) - 1
    if others is None or not len(others):
        return Threshold(float(ordered[first]), (first + 1) / count, None, None)
    ordered_others = np.sort(others)

    def rates(thresholds: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        alarms = (count - np.searchsorted(ordered, thresholds, side="right") + 1) / (count + 1)
        return alarms, 1 - np.searchsorted(ordered_others, thresholds, side="right") / len(ordered_others)

    candidates = np.unique(np.concatenate([ordered[first:], others[others > ordered[first]]]))
    alarms, recall = rates(candidates)
    precision = recall / (recall + alarms)
    margin = np.minimum(
        _in_standard_errors(recall * (1 / TARGET_PRECISION - 1) - alarms, alarms, count),
        _in_standard_errors(recall - TARGET_RECALL, recall, len(others)),
    )
    allowed = precision >= min(TARGET_PRECISION, precision.max())
    best = int(np.flatnonzero(allowed & (margin == margin[allowed].max()))[-1])
    value = candidates[best : best + 2].mean()
    alarms, recall = rates(np.array([value]))
    return Threshold(
        float(value), float((plants <= value).mean()), float((recall / (recall + alarms))[0]), float(recall[0])
    )


def _in_standard_errors(room: NDArray[np.float64], rate: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Room in standard errors of a rate of `count`, by Agresti and Coull's `(k + 2) / (n + 4)`, never 0 or 1."""
    smoothed = (rate * count + 2) / (count + 4)
    errors: NDArray[np.float64] = room / np.sqrt(smoothed * (1 - smoothed) / (count + 4))
    return errors


def _finish(
    method: Method,
    plants: LeafEmbeddings,
    others: NonPlantEmbeddings | None,
    rest: RunningMoments | None,
    scores: _Scores,
    threshold: Threshold,
) -> OODDetector:
    """Fits on everything and adds threshold, held-out scores and the evidence."""
    training = Training(plants.embedded, plants.classes, None if others is None else others.embedded)
    detector = _fit_detector(method, training, rest)
    evidence: dict[str, float | int | str] = {
        "calibration_images": len(scores.plants),
        "selection_images": len(scores.others),
        "quantile": threshold.quantile,
    }
    if threshold.precision is not None and threshold.recall is not None:
        evidence |= {"selection_precision": threshold.precision, "selection_recall": threshold.recall}
    return replace(
        detector,
        threshold=threshold.value,
        plant_scores=np.sort(scores.plants),
        fit={**detector.fit, **evidence},
    )
